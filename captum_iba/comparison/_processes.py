"""One comparison over several processes, with torch.distributed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def rank() -> int:
    """This process's number; 0 without a group."""
    return dist.get_rank() if _running() else 0


def world_size() -> int:
    """Number of processes; 1 without a group."""
    return dist.get_world_size() if _running() else 1


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextmanager
def process_group() -> Iterator[None]:
    """Join the group that torchrun started this process for, unless that is done or there is none.

    The group uses gloo: what is exchanged are a few objects, not gradients.
    """
    if _running() or int(os.environ.get("WORLD_SIZE", "1")) == 1 or not dist.is_available():
        yield
        return
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def from_all(value: T) -> list[T]:
    """Every process's value, in order of their ranks."""
    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]
