"""Photos with Pascal-VOC boxes, and what the benchmarks share about them."""

from __future__ import annotations

import argparse
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from captum_iba import LayerIBA
from captum_iba.metrics import boxes_to_mask
from captum_iba.photos import Classifier, load_classifier, photos_in

SIZE = 224


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="squeezenet1_0")
    parser.add_argument("--weights", default="DEFAULT", help="DEFAULT or the file of a state dict")
    parser.add_argument("--layer", default="features.7")
    parser.add_argument("--calibrate", type=Path, required=True, help="folder of photos for the feature statistics")
    parser.add_argument("--threads", type=int, default=2)


def resized(path: Path, classifier: Classifier) -> Tensor:
    """The whole photo at 224 x 224, without a crop, so that boxes scale with it; normalised."""
    with Image.open(path) as photo:
        pixels = photo.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    values = torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8).view(SIZE, SIZE, 3)
    return (values.permute(2, 0, 1) / 255 - classifier.mean) / classifier.std


def cropped(paths: Sequence[Path], classifier: Classifier) -> Tensor:
    """Photos as the model is usually given them."""
    images = []
    for path in paths:
        with Image.open(path) as photo:
            images.append(classifier.preprocess(photo.convert("RGB")))
    return torch.stack(images)


def box_mask(annotation: Path) -> Tensor:
    """Union of an annotation's boxes on the resized photo, (224, 224)."""
    root = ElementTree.parse(annotation).getroot()
    width, height = (float(root.findtext(f"size/{key}", "0")) for key in ("width", "height"))
    boxes = []
    for box in root.iter("bndbox"):
        x0, y0, x1, y1 = (float(box.findtext(key, "0")) for key in ("xmin", "ymin", "xmax", "ymax"))
        boxes.append([int(x0 * SIZE / width), int(y0 * SIZE / height), int(x1 * SIZE / width), int(y1 * SIZE / height)])
    return boxes_to_mask(boxes, (SIZE, SIZE))


def with_boxes(folder: Path, largest: float) -> list[tuple[Path, Tensor]]:
    """Photos of ``folder/images`` whose boxes (``folder/annots``) cover less than a share of them."""
    found = []
    photos = {path.stem: path for path in photos_in(folder / "images")}
    for annotation in sorted((folder / "annots").glob("*.xml")):
        mask = box_mask(annotation)
        if annotation.stem in photos and 0 < float(mask.float().mean()) < largest:
            found.append((photos[annotation.stem], mask))
    return found


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
