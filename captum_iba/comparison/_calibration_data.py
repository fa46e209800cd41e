"""The images that statistics and patterns are fitted on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from captum_iba._warn import Warner
from captum_iba.comparison.dataset import ExampleSet
from captum_iba.errors import InvalidTypeError, UnreadableExampleError

_OWN, _BATCH = 1000, 16


class CalibrationData:
    """Batches of images, as often as they are asked for, in the type and on the device of the compared ones.

    Args:
        source (Iterable, optional): batches, or tuples that begin with them; a tensor is one batch. None stands for the
            compared images themselves, up to 1000, with a warning when they are used.
        examples (ExampleSet): the compared images.
        like (Tensor): gives type and device.
        warner (Warner): remembers the warning.
    """

    def __init__(self, source: Iterable[Any] | None, examples: ExampleSet, like: Tensor, warner: Warner) -> None:
        self._source = list(source) if isinstance(source, Iterator) else source
        self._examples, self._like, self._warner = examples, like, warner
        self._summary: str | None = None

    def __call__(self) -> Iterator[Tensor]:
        """One pass over the batches."""
        n, digest = 0, 0
        for batch in self._batches():
            yield batch
            n += len(batch)
            for image in batch.detach().cpu():
                own = hashlib.sha256(image.contiguous().flatten().view(torch.uint8).numpy().data).digest()
                digest = (digest + int.from_bytes(own[:8], "big")) % 2**64  # a sum, as the order does not matter
        self._summary = f"{n} images, {digest:016x}"

    @property
    def summary(self) -> str:
        """Number of images and a digest of their values: equal for equal images in any order and batches."""
        if self._summary is None:
            for _ in self():
                pass
        return str(self._summary)

    def _batches(self) -> Iterator[Tensor]:
        if self._source is None:
            self._warner.once(
                "calibration",
                "The feature statistics come from the compared images themselves, so the bits are no strict upper "
                "bound. Pass calibration=..., other images of the kind.",
            )
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


def _own_images(examples: ExampleSet) -> Iterator[Tensor]:
    held: list[Tensor] = []
    for index in range(min(len(examples.keys), _OWN)):
        try:
            image = examples.load(index).inputs
        except UnreadableExampleError:  # it becomes a row with its reason later
            continue
        if held and (image.shape != held[0].shape or len(held) == _BATCH):
            yield torch.stack(held)
            held = []
        held.append(image)
    if held:
        yield torch.stack(held)
