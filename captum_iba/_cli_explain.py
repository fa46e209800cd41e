"""``captum-iba explain``: photos, one of torchvision's classifiers, and the per-sample or the readout bottleneck."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captum_iba._cli_photos import SOME_SKIPPED, FolderBatches, bits_on_image, find_layer
from captum_iba._numbers import assert_beta, assert_integer, assert_learning_rate
from captum_iba.attr import (
    IBADiagnostics,
    LayerIBA,
    LayerReadoutIBA,
    TrainingHistory,
)
from captum_iba.attr._readout_checkpoint import training_of
from captum_iba.attr._readout_file import layer_of
from captum_iba.attr._readout_fit import SHORT_TRAINING
from captum_iba.errors import (
    InvalidArgumentError,
    MissingFileError,
    NotTrainedError,
    ReadoutFileError,
    StatisticsError,
)
from captum_iba.photos import Classifier, load_classifier, read_batches
from captum_iba.visualization import Heatmap, plot_attributions

_BATCH_SIZE = 8
_HINTS = {
    "iba": "--calibrate FOLDER makes the statistics of this model and layer, from about a thousand photos, and writes "
    "them to the output folder; --statistics FILE uses them again.",
    "readout": "--train FOLDER trains a readout for this model and layer, on as many photos as there are, and writes "
    "it to the output folder; --readout FILE uses it again.",
}
_OF_METHOD = {
    "iba": ("statistics", "calibrate"),
    "readout": ("readout", "train", "epochs", "learning_rate"),
}

Explain = Callable[[Tensor, Tensor], tuple[Tensor, IBADiagnostics]]


def add_parser(commands: Any) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser("explain", help="explain photos with one of torchvision's classifiers")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--model", default="resnet50", help="torchvision's name, default: resnet50")
    parser.add_argument("--weights", default="DEFAULT", metavar="DEFAULT|FILE", help="a state dict, default: DEFAULT")
    parser.add_argument(
        "--layer", metavar="NAME", help="dotted name, default: the readout's, or chosen by the feature maps' size"
    )
    parser.add_argument("--target", metavar="CLASS", help="index or name, default: the predicted class")
    parser.add_argument(
        "--method",
        choices=("iba", "readout"),
        default="iba",
        help="iba: a mask is searched for each photo; readout: a trained network predicts it. Default: iba",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--statistics", type=Path, metavar="FILE", help="feature statistics of this layer")
    source.add_argument("--calibrate", type=Path, metavar="FOLDER", help="about a thousand photos for them")
    source.add_argument("--readout", type=Path, metavar="FILE", help="a trained readout")
    source.add_argument("--train", type=Path, metavar="FOLDER", help="photos to train a readout on the predictions for")
    parser.add_argument("--epochs", type=int, help=f"of --train, default: {SHORT_TRAINING['epochs']}")
    parser.add_argument(
        "--learning-rate", type=float, metavar="RATE", help=f"of --train, default: {SHORT_TRAINING['learning_rate']}"
    )
    parser.add_argument("--beta", type=float, help="weight of the information, default: 10")
    parser.add_argument(
        "--output", type=Path, default=Path("iba-explained"), metavar="DIR", help="default: iba-explained"
    )
    parser.set_defaults(run=run_explain)


def hint(options: argparse.Namespace, error: Exception) -> str:
    """What to do about an error that a file or folder can mend; else empty."""
    mendable = isinstance(error, (StatisticsError, MissingFileError, NotTrainedError))
    return _HINTS[options.method] if mendable and options.run is run_explain else ""


def run_explain(options: argparse.Namespace) -> int:
    """Write a picture of each photo's bits and print a line; returns the exit status."""
    _assert_options(options)
    trained_for = None if options.readout is None else layer_of(options.readout)
    classifier = load_classifier(options.model, options.weights)
    if trained_for is not None and trained_for not in dict(classifier.model.named_modules()):
        raise ReadoutFileError(
            f"{str(options.readout)!r} is of another network: a readout of layer {trained_for!r}, which "
            f"{options.model} has not."
        )
    target = None if options.target is None else classifier.class_index(options.target)
    name, layer = find_layer(classifier.model, options.layer or trained_for)
    print(f"{classifier.name}, layer {name}")
    options.output.mkdir(parents=True, exist_ok=True)
    explain = {"iba": _per_sample, "readout": _readout}[options.method](classifier, layer, options)
    skipped: list[Path] = []

    def skip(path: Path, reason: str) -> None:
        skipped.append(path)
        print(f"captum-iba: skipped {path}: {reason}", file=sys.stderr)

    writer = _Writer(options.output, classifier, name)
    for files, images in read_batches(options.images, classifier.preprocess, _BATCH_SIZE, skip):
        with torch.no_grad():
            probability = classifier.model(images).softmax(dim=1)
        classes = probability.argmax(dim=1) if target is None else torch.full((len(files),), target)
        bits, record = explain(images, classes)
        own = probability.gather(1, classes[:, None])[:, 0]
        through = torch.as_tensor(record.target_probability)
        writer.write(files, images, bits, classes, torch.stack([own, through]))
    if skipped:
        print(f"captum-iba: {len(skipped)} of {len(options.images)} images skipped", file=sys.stderr)
    return SOME_SKIPPED if skipped else 0


def _assert_options(options: argparse.Namespace) -> None:
    other = "readout" if options.method == "iba" else "iba"
    misplaced = [name for name in _OF_METHOD[other] if getattr(options, name) is not None]
    if misplaced:
        raise InvalidArgumentError(
            f"--{misplaced[0].replace('_', '-')} goes with --method {other}, and this is --method {options.method}."
        )
    if options.train is None and (options.epochs is not None or options.learning_rate is not None):
        raise InvalidArgumentError("--epochs and --learning-rate are for --train FOLDER, which is not there.")
    if options.readout is not None and options.beta is not None:
        raise InvalidArgumentError("--beta does not go with --readout FILE, which was trained with a beta of its own.")
    options.beta = 10.0 if options.beta is None else options.beta
    assert_beta(options.beta)
    if options.epochs is not None:
        assert_integer("epochs", options.epochs)
    if options.learning_rate is not None:
        assert_learning_rate(options.learning_rate)


def _per_sample(classifier: Classifier, layer: nn.Module, options: argparse.Namespace) -> Explain:
    """The bottleneck searched for each photo, with the statistics asked for."""
    iba: Any = LayerIBA(classifier.model, layer)
    if options.statistics is None and options.calibrate is None:
        print(f"captum-iba: for bits that are an upper bound: {_HINTS['iba']}", file=sys.stderr)
    if options.statistics is not None:
        iba.load_statistics(options.statistics)
    if options.calibrate is not None:
        photos = FolderBatches(options.calibrate, classifier, _BATCH_SIZE, "calibration")
        iba.estimate(photos, show_progress=True)
        path = options.output / "statistics.safetensors"
        iba.save_statistics(path)
        print(f"statistics of {photos.n_read} photos: {path}")
    return lambda x, y: iba.attribute(x, target=y, beta=options.beta, return_diagnostics=True)


def _readout(classifier: Classifier, layer: nn.Module, options: argparse.Namespace) -> Explain:
    """The trained bottleneck, loaded or trained now; interrupted, the same command goes on."""
    readout: Any = LayerReadoutIBA(classifier.model, layer)
    if options.readout is not None:
        readout.load(options.readout)
    if options.train is not None:
        photos = FolderBatches(options.train, classifier, _BATCH_SIZE, "training")
        path = options.output / "readout.safetensors"
        chosen = {"epochs": options.epochs, "learning_rate": options.learning_rate}
        chosen = SHORT_TRAINING | {name: value for name, value in chosen.items() if value is not None}
        if path.is_file():
            print(f"captum-iba: {path} is there and is gone on with; another --output trains anew.", file=sys.stderr)
        else:
            readout.estimate(photos, show_progress=True)
        readout.fit(
            photos,
            beta=options.beta,
            targets="predictions",
            checkpoint=path,
            warmup_steps=_warmup_steps(path, len(photos) * int(chosen["epochs"])),
            **chosen,
        )
        _print_training(readout.history, len(photos), path)
    return lambda x, y: readout.attribute(x, target=y, return_diagnostics=True)


def _print_training(history: TrainingHistory, n_batches: int, path: Path) -> None:
    latest = history.training[-n_batches:]
    n = sum(each.n for each in latest)
    bits = sum(each.bits * each.n for each in latest) / n
    accuracy = sum((each.accuracy or 0.0) * each.n for each in latest) / n
    print(f"readout after {len(history.training)} steps: {bits:.0f} bits, accuracy {accuracy:.3f}: {path}")


def _warmup_steps(path: Path, steps: int) -> int:
    """Half of the training, or what a training that goes on had."""
    before = training_of(path) if path.is_file() else None
    return steps // 2 if before is None else int(before["warmup_steps"])


class _Writer:
    """Writes one picture a photo and prints one line."""

    def __init__(self, folder: Path, classifier: Classifier, layer: str) -> None:
        self._folder, self._classifier, self._layer = folder, classifier, layer
        self._taken: set[str] = set()

    def write(self, files: list[Path], images: Tensor, bits: Tensor, classes: Tensor, probability: Tensor) -> None:
        """Write and print a batch; ``probability`` holds the model's own and the one through the bottleneck."""
        bits, pixels, beside = bits_on_image(bits, (images.shape[2], images.shape[3]))
        for i, file in enumerate(files):
            index = int(classes[i])
            label, total = self._classifier.categories[index], float(bits[i].sum())
            own, through = probability[:, i].tolist()
            path = self._path(file)
            figure = plot_attributions(
                self._classifier.to_display(images[i : i + 1]),
                {f"{total:.0f} bits at {self._layer}": Heatmap(pixels[i : i + 1], "bits per pixel")},
                [f"{label}, p = {own:.2f}"],
            )
            figure.savefig(path, dpi=130)
            probabilities = f"p = {own:.3f} ({through:.3f} through the bottleneck)"
            tokens = f" (and {float(beside[i]):.0f} in tokens that are no patches)" if beside is not None else ""
            print(f"{file}: {label} ({index}), {probabilities}, {total:.0f} bits{tokens} -> {path}")

    def _path(self, file: Path) -> Path:
        stem, number = file.stem, 1
        while stem in self._taken:  # photos of one name from several folders
            number += 1
            stem = f"{file.stem}_{number}"
        self._taken.add(stem)
        return self._folder / f"{stem}.png"
