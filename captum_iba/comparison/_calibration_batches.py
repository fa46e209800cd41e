"""The calibration data as methods see them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor


class Calibration(Protocol):
    """Examples to fit on."""

    def __call__(self) -> Iterable[Any]:
        """Batches: images (B, C, H, W); of text ``((ids (B, T), *further arguments),)``, all of one length."""

    @property
    def summary(self) -> str:
        """What tells them from others."""


class Summed(ABC):
    """Calibration data that are counted and summed up as they pass.

    Attributes:
        things (str): what they are, for the summary.
    """

    things = "examples"

    def __init__(self) -> None:
        self._summary: str | None = None

    @abstractmethod
    def _batches(self) -> Iterator[Any]:
        """One pass over the batches."""

    def __call__(self) -> Iterator[Any]:
        """One pass over the batches."""
        n, digest = 0, 0
        for batch in self._batches():
            yield batch
            inputs = batch if isinstance(batch, Tensor) else batch[0][0]
            n += len(inputs)
            for row in inputs.detach().cpu():
                own = hashlib.sha256(row.contiguous().flatten().view(torch.uint8).numpy().data).digest()
                digest = (digest + int.from_bytes(own[:8], "big")) % 2**64  # a sum, as the order does not matter
        self._summary = f"{n} {self.things}, {digest:016x}"

    @property
    def summary(self) -> str:
        """Number of examples and a digest of their values: equal for equal ones in any order and batches."""
        if self._summary is None:
            for _ in self():
                pass
        return str(self._summary)


class Batches:
    """The calibration data, as often as they are asked for.

    Args:
        calibration (Callable): the data.
        most (int, optional): most examples of a batch.
    """

    def __init__(self, calibration: Calibration, most: int | None) -> None:
        self._calibration, self.most = calibration, most

    def __iter__(self) -> Iterator[Any]:
        for batch in self._calibration():
            yield from (batch,) if self.most is None else _split(batch, self.most)


def _split(batch: Any, most: int) -> Iterator[Any]:
    if isinstance(batch, Tensor):
        yield from torch.split(batch, most)
        return
    (arguments,) = batch
    for start in range(0, len(arguments[0]), most):
        piece = slice(start, start + most)
        yield (tuple(part[piece] if isinstance(part, Tensor) else part for part in arguments),)
