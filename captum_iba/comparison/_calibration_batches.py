"""The calibration data as methods see them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor


class Calibration(Protocol):
    """Images to fit on."""

    def __call__(self) -> Iterable[Tensor]:
        """Batches (B, C, H, W)."""

    @property
    def summary(self) -> str:
        """What tells them from other images."""


class Batches:
    """The calibration data, as often as they are asked for.

    Args:
        calibration (Callable): the data.
        most (int, optional): most images of a batch.
    """

    def __init__(self, calibration: Calibration, most: int | None) -> None:
        self._calibration, self.most = calibration, most

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self._calibration():
            yield from (batch,) if self.most is None else torch.split(batch, self.most)
