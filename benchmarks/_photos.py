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
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    for box in root.iter("bndbox"):
        x0, y0, x1, y1 = (float(box.findtext(key, "0")) for key in ("xmin", "ymin", "xmax", "ymax"))
        rows = slice(int(y0 * SIZE / height), int(y1 * SIZE / height))
        columns = slice(int(x0 * SIZE / width), int(x1 * SIZE / width))
        mask[rows, columns] = True
    return mask


def with_boxes(folder: Path, largest: float) -> list[tuple[Path, Tensor]]:
    """Photos of ``folder/images`` whose boxes (``folder/annots``) cover less than a share of them."""
    found = []
    photos = {path.stem: path for path in photos_in(folder / "images")}
    for annotation in sorted((folder / "annots").glob("*.xml")):
        mask = box_mask(annotation)
        if annotation.stem in photos and 0 < float(mask.float().mean()) < largest:
            found.append((photos[annotation.stem], mask))
    return found


def box_ratio(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of the n highest pixels inside the box of n pixels, ties by their expected value; (N,)."""
    ratios = []
    for values, mask in zip(maps.flatten(1).double(), masks.flatten(1), strict=True):
        n = int(mask.sum())
        threshold = values.topk(n).values[-1]
        above, equal = values > threshold, values == threshold
        rest = (n - above.sum()) * (equal & mask).sum() / equal.sum()
        ratios.append(((above & mask).sum() + rest) / n)
    return torch.stack(ratios)


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
