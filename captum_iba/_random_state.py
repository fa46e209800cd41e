"""The global random generators, borrowed and given back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class OwnRandomState:
    """A state of the global generators of torch (CPU), numpy and Python that belongs to one user.

    Data loaders shuffle and augment with these. Inside :meth:`entered` they go on from where the last visit left them,
    outside they are as if nothing had happened.

    Args:
        seed (int): of the first visit.

    Examples::

        >>> own, before = OwnRandomState(0), torch.random.get_rng_state()
        >>> with own.entered():
        ...     first = torch.rand(1)
        >>> with own.entered():
        ...     bool(torch.rand(1) == first), bool((torch.random.get_rng_state() == before).all())
        (False, False)
        >>> bool((torch.random.get_rng_state() == before).all())
        True
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._states: tuple[Any, ...] | None = None

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Put this state in place of the global one."""
        before = _states()
        try:
            if self._states is None:
                torch.default_generator.manual_seed(self._seed)
                random.seed(self._seed)
                np.random.seed(self._seed % 2**32)  # noqa: NPY002 (the generator that others draw from)
            else:
                _restore(self._states)
            yield
        finally:
            self._states = _states()
            _restore(before)


def _states() -> tuple[Any, ...]:
    return torch.random.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002


def _restore(states: tuple[Any, ...]) -> None:
    torch.random.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])  # noqa: NPY002
