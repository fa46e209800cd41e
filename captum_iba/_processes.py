"""Work of several processes, with torch.distributed."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")

_groups = itertools.count()
_alone = ContextVar("alone", default=False)


def rank() -> int:
    """This process's number; 0 without a group."""
    return dist.get_rank() if _running() else 0


def world_size() -> int:
    """Number of processes; 1 without a group."""
    return dist.get_world_size() if _running() else 1


def _running() -> bool:
    return not _alone.get() and dist.is_available() and dist.is_initialized()


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process works as if there were no others: for work that they may never come to, or not now."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


@contextmanager
def process_group(device_type: str = "cpu") -> Iterator[None]:
    """Join the group that torchrun started this process for, unless that is done or there is none.

    Args:
        device_type (str, optional): of the tensors to be exchanged; gloo carries those of the CPU, and NCCL those of
            GPUs. Default: ``"cpu"``, for a few objects.
    """
    if _alone.get() or _running() or int(os.environ.get("WORLD_SIZE", "1")) == 1 or not dist.is_available():
        yield
        return
    from torch.distributed.distributed_c10d import PrefixStore

    store, number, size = _meeting_place()
    # under a name of its own, or a second group would find the addresses of the first
    prefix = f"captum_iba/{next(_groups)}"
    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=PrefixStore(prefix, store), rank=number, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()


@functools.cache
def _meeting_place() -> Any:
    """The key-value store that torchrun's environment leads to, rank and world size; it stays for later groups."""
    from torch.distributed.rendezvous import rendezvous

    return next(iter(rendezvous("env://")))


def from_all(value: T) -> list[T]:
    """Every process's value, in order of their ranks."""
    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]
