"""Evaluation mode, borrowed from a model and given back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


def in_training(roots: Iterable[nn.Module]) -> list[nn.Module]:
    """Modules in training mode among these and all inside them."""
    return [module for root in roots for module in root.modules() if module.training]


@contextmanager
def evaluation(*roots: nn.Module) -> Iterator[None]:
    """Run these modules in evaluation mode; afterwards each one inside has the flag that it had.

    Flags are set one by one: a module's own ``train`` may do more, or refuse.

    Args:
        *roots (nn.Module): all their descendants count.
    """
    training = in_training(roots)
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
