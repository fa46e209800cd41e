"""What the benchmarks on photos share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
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
