"""What the commands share about photos."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

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
    """

    def __init__(self, folder: Path, classifier: Classifier, batch_size: int, purpose: str) -> None:
        self._paths, self._classifier = photos_in(folder), classifier
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
