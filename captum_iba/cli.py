"""The command line: ``captum-iba demo``, ``captum-iba explain`` and ``captum-iba compare``."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from captum_iba._cli_compare import SOME_SKIPPED
from captum_iba._cli_compare import add_parser as add_compare
from captum_iba.attr import LayerIBA, resize_bits, suggest_layer
from captum_iba.errors import CaptumIBAError, InvalidArgumentError, MissingFileError, StatisticsError
from captum_iba.photos import Classifier, load_classifier, photos_in, read_batches
from captum_iba.visualization import Heatmap, plot_attributions

_BATCH_SIZE = 8
USER_ERROR = 2
_STATISTICS_HINT = (
    "--calibrate FOLDER makes the statistics of this model and layer, from about a thousand photos, and writes them to "
    "the output folder; --statistics FILE uses them again."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments (Sequence[str], optional): without the program's name. Default: None: ``sys.argv``.

    Returns:
        int: 0; 1 if some images could not be read; 2 for a mistake in the arguments.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.showwarning = _show_warning
            status: int = options.run(options)
    except CaptumIBAError as error:
        print(f"captum-iba: {error}", file=sys.stderr)
        if options.run is _explain and isinstance(error, (StatisticsError, MissingFileError)):
            print(f"captum-iba: {_STATISTICS_HINT}", file=sys.stderr)
        return USER_ERROR
    except OSError as error:
        print(f"captum-iba: {error}. Choose another --output.", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("captum-iba: interrupted; what is written stays.", file=sys.stderr)
        return 130
    return status


def _show_warning(message: Warning | str, *_args: object, **_kwargs: object) -> None:
    print(f"captum-iba: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="captum-iba", description="How many bits each region gives the decision.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="explain embedded handwritten digits; nothing is downloaded")
    demo.add_argument("--output", type=Path, default=Path("iba-demo"), metavar="DIR", help="default: iba-demo")
    demo.set_defaults(run=_demo)
    explain = commands.add_parser("explain", help="explain photos with one of torchvision's classifiers")
    explain.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    explain.add_argument("--model", default="resnet50", help="torchvision's name, default: resnet50")
    explain.add_argument("--weights", default="DEFAULT", metavar="DEFAULT|FILE", help="a state dict, default: DEFAULT")
    explain.add_argument("--layer", metavar="NAME", help="dotted name, default: chosen by the feature maps' size")
    explain.add_argument("--target", metavar="CLASS", help="index or name, default: the predicted class")
    source = explain.add_mutually_exclusive_group()
    source.add_argument("--statistics", type=Path, metavar="FILE", help="feature statistics of this layer")
    source.add_argument("--calibrate", type=Path, metavar="FOLDER", help="about a thousand photos for them")
    explain.add_argument("--beta", type=float, default=10.0, help="weight of the information, default: 10")
    explain.add_argument(
        "--output", type=Path, default=Path("iba-explained"), metavar="DIR", help="default: iba-explained"
    )
    explain.set_defaults(run=_explain)
    add_compare(commands)
    return parser


def _demo(options: argparse.Namespace) -> int:
    from captum_iba.demo.run import report, run_demo

    print(report(run_demo(options.output)))
    return 0


def _explain(options: argparse.Namespace) -> int:
    classifier = load_classifier(options.model, options.weights)
    target = None if options.target is None else classifier.class_index(options.target)
    name, layer = _find_layer(classifier.model, options.layer)
    print(f"{classifier.name}, layer {name}")
    iba = LayerIBA(classifier.model, layer)
    options.output.mkdir(parents=True, exist_ok=True)
    _give_statistics(iba, classifier, options)
    skipped: list[Path] = []

    def skip(path: Path, reason: str) -> None:
        skipped.append(path)
        print(f"captum-iba: skipped {path}: {reason}", file=sys.stderr)

    writer = _Writer(options.output, classifier, name)
    for files, images in read_batches(options.images, classifier.preprocess, _BATCH_SIZE, skip):
        with torch.no_grad():
            probability = classifier.model(images).softmax(dim=1)
        classes = probability.argmax(dim=1) if target is None else torch.full((len(files),), target)
        bits, record = iba.attribute(images, target=classes, beta=options.beta, return_diagnostics=True)
        own = probability.gather(1, classes[:, None])[:, 0]
        through = torch.as_tensor(record.target_probability)
        writer.write(files, images, bits, classes, torch.stack([own, through]))
    if skipped:
        print(f"captum-iba: {len(skipped)} of {len(options.images)} images skipped", file=sys.stderr)
    return SOME_SKIPPED if skipped else 0


def _find_layer(model: nn.Module, name: str | None) -> tuple[str, nn.Module]:
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


def _give_statistics(iba: LayerIBA, classifier: Classifier, options: argparse.Namespace) -> None:
    if options.statistics is None and options.calibrate is None:
        print(f"captum-iba: for bits that are an upper bound: {_STATISTICS_HINT}", file=sys.stderr)
    if options.statistics is not None:
        iba.load_statistics(options.statistics)
    if options.calibrate is not None:
        left_out: list[Path] = []

        def skip(path: Path, reason: str) -> None:
            left_out.append(path)
            print(f"captum-iba: left out of the calibration {path}: {reason}", file=sys.stderr)

        photos = photos_in(options.calibrate)
        batches = read_batches(photos, classifier.preprocess, _BATCH_SIZE, skip)
        iba.estimate((images for _, images in batches), show_progress=True)
        path = options.output / "statistics.safetensors"
        iba.save_statistics(path)
        print(f"statistics of {len(photos) - len(left_out)} photos: {path}")


class _Writer:
    """Writes one picture a photo and prints one line."""

    def __init__(self, folder: Path, classifier: Classifier, layer: str) -> None:
        self._folder, self._classifier, self._layer = folder, classifier, layer
        self._taken: set[str] = set()

    def write(self, files: list[Path], images: Tensor, bits: Tensor, classes: Tensor, probability: Tensor) -> None:
        """Write and print a batch; ``probability`` holds the model's own and the one through the bottleneck."""
        if bits.ndim != 4:
            raise InvalidArgumentError(
                f"The layer gives attributions of shape {list(bits.shape)}, which are no map. Choose a --layer with a "
                "spatial grid."
            )
        if bits.shape[1] != 1:  # channels last
            bits = bits.movedim(-1, 1)
        pixels = resize_bits(bits, (images.shape[2], images.shape[3]))
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
            print(f"{file}: {label} ({index}), {probabilities}, {total:.0f} bits -> {path}")

    def _path(self, file: Path) -> Path:
        stem, number = file.stem, 1
        while stem in self._taken:  # photos of one name from several folders
            number += 1
            stem = f"{file.stem}_{number}"
        self._taken.add(stem)
        return self._folder / f"{stem}.png"
