"""What the commands share about photos."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn

from captum_iba.attr import resize_bits, suggest_layer, tokens_to_map
from captum_iba.errors import InvalidArgumentError
from captum_iba.photos import Classifier, photos_in, read_batches

SOME_SKIPPED = 1
"""Exit status where some photos could not be read."""


class FolderBatches:
    """Batches of a folder's photos, read anew each time they are asked for; those left out are named once.

    Args:
        folder (Path): the folder.
        classifier (Classifier): prepares the photos.
        batch_size (int): most photos at once.
        purpose (str): for the messages.
        most (int, optional): photos that are enough; the folder's are then spread evenly. Default: None, all.
    """

    def __init__(
        self, folder: Path, classifier: Classifier, batch_size: int, purpose: str, most: int | None = None
    ) -> None:
        paths = photos_in(folder)
        self._paths, self._classifier = paths if most is None else paths[:: -(-len(paths) // most)], classifier
        self._batch_size, self._purpose = batch_size, purpose
        self._named: set[Path] = set()

    @property
    def n_read(self) -> int:
        """Photos that were read in the last pass."""
        return len(self._paths) - len(self._named)

    def __len__(self) -> int:
        """Batches of a pass, if all photos can be read."""
        return -(-len(self._paths) // self._batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        for _, images in read_batches(self._paths, self._classifier.preprocess, self._batch_size, self._name):
            yield images

    def _name(self, path: Path, reason: str) -> None:
        if path not in self._named:
            self._named.add(path)
            print(f"captum-iba: left out of the {self._purpose} {path}: {reason}", file=sys.stderr)


def find_layer(model: nn.Module, name: str | None) -> tuple[str, nn.Module]:
    """A layer with its name; without one :func:`suggest_layer` has the choice.

    Raises:
        InvalidArgumentError: there is no such layer.
    """
    modules = dict(model.named_modules())
    if name is None:
        layer = suggest_layer(model)
        return next(key for key, module in modules.items() if module is layer), layer
    if name not in modules or not name:
        children = ", ".join(key for key in modules if "." not in key and key)
        raise InvalidArgumentError(
            f"layer={name!r} is not in the model; its children are {children}, and dotted names reach further in."
        )
    return name, modules[name]


def bits_on_image(bits: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor | None]:
    """What a layer's bits are on an image.

    Args:
        bits (Tensor): as a method returns them, of a map or of a vision transformer's tokens.
        size (tuple[int, int]): (H, W).

    Returns:
        tuple: bits of the layer's map (N, 1, h, w), bits per pixel (N, 1, H, W), and of tokens the bits (N,) of those
        that are no patches; else None.

    Raises:
        InvalidArgumentError: neither map nor patches.
    """
    beside = None
    if bits.ndim == 3:
        bits, prefix = tokens_to_map(bits, image_size=size)
        beside = prefix.sum(dim=1) if prefix.shape[1] else None
    if bits.ndim != 4:
        raise InvalidArgumentError(
            f"The layer gives attributions of shape {list(bits.shape)}, which are no map. Choose a --layer with a "
            "spatial grid or patches."
        )
    if bits.shape[1] != 1:  # channels last
        bits = bits.movedim(-1, 1)
    return bits, resize_bits(bits, size), beside
