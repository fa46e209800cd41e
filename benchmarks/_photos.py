"""What the benchmarks on photos share."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from captum_iba import LayerIBA
from captum_iba.photos import Classifier, load_classifier, photos_in


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="squeezenet1_0")
    parser.add_argument("--weights", default="DEFAULT", help="DEFAULT or the file of a state dict")
    parser.add_argument("--layer", default="features.7")
    parser.add_argument("--calibrate", type=Path, required=True, help="folder of photos for the feature statistics")
    parser.add_argument("--threads", type=int, default=2)


def cropped(paths: Sequence[Path], classifier: Classifier) -> Tensor:
    """Photos as the model is usually given them."""
    images = []
    for path in paths:
        with Image.open(path) as photo:
            images.append(classifier.preprocess(photo.convert("RGB")))
    return torch.stack(images)


class Mosaics:
    """Batches of one, two or four photos joined to an image, each a random crop, half of them mirrored.

    A readout that is trained on a few photos of one object each learns to find objects. Joined, only one of several
    objects is what the network sees in the image, and the others are its background.

    Args:
        photos (Tensor): (N, 3, side, side), side even.
        batch (int): images a batch.
        n_batches (int): batches an epoch; each epoch has others, drawn from torch's global generator.
    """

    def __init__(self, photos: Tensor, batch: int, n_batches: int) -> None:
        self._photos, self._batch, self._n_batches = photos, batch, n_batches

    def __len__(self) -> int:
        return self._n_batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self._n_batches):
            images = torch.stack([self._image() for _ in range(self._batch)])
            yield images, torch.zeros(len(images), dtype=torch.long)  # the targets are the predictions

    def _image(self) -> Tensor:
        side = self._photos.shape[-1]
        rows, columns = ((1, 1), (1, 2), (2, 1), (2, 2))[int(torch.randint(4, ()))]
        size = (side // rows, side // columns)
        return torch.cat([torch.cat([self._crop(size) for _ in range(columns)], dim=2) for _ in range(rows)], dim=1)

    def _crop(self, size: tuple[int, int]) -> Tensor:
        """A square of at least half a random photo's side, at any place, resized."""
        photo = self._photos[int(torch.randint(len(self._photos), ()))]
        side = int(torch.randint(photo.shape[-1] // 2, photo.shape[-1] + 1, ()))
        top, left = torch.randint(photo.shape[-1] - side + 1, (2,)).tolist()
        part = photo[None, :, top : top + side, left : left + side]
        part = part.flip(3) if float(torch.rand(())) < 0.5 else part
        return torch.nn.functional.interpolate(part, size, mode="bilinear", antialias=True)[0]


def calibrated(classifier: Classifier, layer: nn.Module, folder: Path) -> LayerIBA:
    """LayerIBA with statistics of a folder's photos."""
    paths = photos_in(folder)
    batches = (cropped(paths[i : i + 20], classifier) for i in range(0, len(paths), 20))
    return LayerIBA(classifier.model, layer).estimate(batches)


def mean_and_error(values: Tensor) -> str:
    return f"{float(values.mean()):7.4f} ({float(values.std()) / len(values) ** 0.5:.4f})"


def start(options: argparse.Namespace) -> Classifier:
    torch.set_num_threads(options.threads)
    return load_classifier(options.model, options.weights)
