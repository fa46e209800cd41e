"""The images that statistics and patterns are fitted on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from captum_iba._warn import Warner
from captum_iba.comparison._calibration_batches import Summed
from captum_iba.comparison.dataset import ExampleSet
from captum_iba.errors import InvalidTypeError, UnreadableExampleError

MOST_OWN, BATCH = 1000, 16


class CalibrationData(Summed):
    """Batches of images, as often as they are asked for, in the type and on the device of the compared ones.

    Args:
        source (Iterable, optional): batches, or tuples that begin with them; a tensor is one batch. None stands for the
            compared images themselves, up to 1000, with a warning when they are used.
        examples (ExampleSet): the compared images.
        like (Tensor): gives type and device.
        warner (Warner): remembers the warning.
    """

    things = "images"

    def __init__(self, source: Iterable[Any] | None, examples: ExampleSet, like: Tensor, warner: Warner) -> None:
        super().__init__()
        self._source = list(source) if isinstance(source, Iterator) else source
        self._examples, self._like, self._warner = examples, like, warner

    def _batches(self) -> Iterator[Tensor]:
        if self._source is None:
            warn_of_own(self._warner, "images")
            yield from _own_images(self._examples)
            return
        for batch in [self._source] if isinstance(self._source, Tensor) else self._source:
            images = batch[0] if isinstance(batch, (tuple, list)) else batch
            if not isinstance(images, Tensor):
                raise InvalidTypeError(
                    f"calibration yields a {type(images).__name__}; wanted batches of images (B, C, H, W), or tuples "
                    "that begin with them."
                )
            yield images.to(self._like)


def warn_of_own(warner: Warner, things: str) -> None:
    """Warn that the examples to explain are those that statistics come from."""
    warner.once(
        "calibration",
        f"The feature statistics come from the compared {things} themselves, so the bits are no strict upper "
        f"bound. Pass calibration=..., other {things} of the kind.",
    )


def _own_images(examples: ExampleSet) -> Iterator[Tensor]:
    held: list[Tensor] = []
    for index in range(min(len(examples.keys), MOST_OWN)):
        try:
            image = examples.load(index).inputs
        except UnreadableExampleError:  # it becomes a row with its reason later
            continue
        if held and (image.shape != held[0].shape or len(held) == BATCH):
            yield torch.stack(held)
            held = []
        held.append(image)
    if held:
        yield torch.stack(held)
