"""``captum-iba compare``: methods and metrics on photos, texts, or the embedded digits."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from captum_iba._cli_photos import SOME_SKIPPED, FolderBatches
from captum_iba._processes import process_group, rank
from captum_iba.attr._readout_file import layer_of
from captum_iba.bottleneck.statistics import FeatureStatistics
from captum_iba.comparison import JoinedExamples, PhotoFolder, Report, TextFile, compare, registered_methods
from captum_iba.comparison.columns import FURTHER_METRICS, PAPER_METRICS, TEXT_METRICS
from captum_iba.comparison.dataset import ExampleSet, TensorExamples
from captum_iba.comparison.example import Kind
from captum_iba.comparison.methods import TEXT, find_methods
from captum_iba.comparison.readout_method import NAME as READOUT
from captum_iba.errors import DeviceError, InvalidArgumentError, ReadoutFileError
from captum_iba.photos import load_classifier, photos_in
from captum_iba.text_models import load_text_classifier

_OF_PHOTOS = {
    "data": None,
    "boxes": None,
    "labels": None,
    "target": None,
    "boxes_target": None,
    "crop": "center",
    "largest_coverage": 0.33,
    "model": "resnet50",
    "weights": "DEFAULT",
    "calibrate": None,
    "statistics": None,
}
_BATCH, _CALIBRATION = 16, 2000
# 32 x 32 positions on 64 pixels: tiles of 8 pixels ask for finer maps than the demo's own layer has
_DEMO_LAYER = "stage1"


def add_parser(commands: Any) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser(
        "compare",
        help="compare attribution methods on photos, texts, or the embedded digits (--demo)",
        description="Every method, every metric, one table and one page. Interrupted, the same command goes on where "
        "it was. Under torchrun the examples are shared out among the processes.",
        epilog=f"Methods: {', '.join(registered_methods())}. Of text: {', '.join(TEXT)}. Metrics of paper: "
        f"{', '.join(PAPER_METRICS)}; of all, in addition: {', '.join(FURTHER_METRICS)}. Of text: "
        f"{', '.join(TEXT_METRICS)}; of all, in addition: sufficiency.",
    )
    _add_data(parser)
    _add_model(parser)
    _add_run(parser)
    parser.set_defaults(run=run, **_OF_PHOTOS)


def _add_data(parser: argparse.ArgumentParser) -> None:
    """What is explained."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--demo", action="store_true", help="the embedded digits and their network")
    source.add_argument("--data", type=Path, metavar="FOLDER", help="photos")
    source.add_argument(
        "--text", type=Path, metavar="FILE.tsv", help="texts, one a line: text, tab, class; needs --model and --layer"
    )
    parser.add_argument(
        "--boxes",
        type=Path,
        metavar="FOLDER",
        help="Pascal-VOC annotations of the photos; or a folder with photos of its own beside their annotations, which "
        "then serve the bounding-box metric alone",
    )
    parser.add_argument(
        "--labels",
        metavar="folder|predicted|FILE.csv",
        help="classes to explain: from the folders' or files' names (WordNet id or class index), the model's own "
        "prediction, or a table of file and label; default: folder",
    )
    parser.add_argument("--target", metavar="CLASS", help="one class for all photos instead: index or name")
    parser.add_argument(
        "--boxes-target", metavar="CLASS", help="class of the photos in --boxes; default: as the other photos"
    )
    parser.add_argument("--crop", choices=("center", "none"), help="none: the whole photo, squeezed; default: center")
    parser.add_argument(
        "--largest-coverage",
        type=float,
        help="boxes that cover this share or more do not count, default: 0.33 (paper)",
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="most photos of --data or texts, spread evenly, or most digits"
    )
    parser.add_argument(
        "--max-length", type=int, metavar="N", help="most tokens of a text; default: the tokenizer's own limit"
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    """What explains it."""
    parser.add_argument(
        "--model",
        help="torchvision's name, default: resnet50; with --text the folder of a text classifier of transformers, or "
        "its name on the Hugging Face hub",
    )
    parser.add_argument("--weights", metavar="DEFAULT|FILE", help="a state dict, default: DEFAULT")
    parser.add_argument(
        "--layer",
        metavar="NAME",
        help="of the bottleneck, default: chosen by the feature maps' size; stage1 with --demo",
    )
    parser.add_argument("--gradcam-layer", metavar="NAME", help="of the GradCAM methods, default: the last feature map")
    calibration = parser.add_mutually_exclusive_group()
    calibration.add_argument(
        "--calibrate",
        type=Path,
        metavar="FOLDER|FILE.tsv",
        help="photos for statistics and patterns; with --text other texts",
    )
    calibration.add_argument("--statistics", type=Path, metavar="FILE", help="feature statistics of the layer")


def _add_run(parser: argparse.ArgumentParser) -> None:
    """What is compared, and how."""
    sets = "paper, text, all, or names separated by commas; default: paper, with --text text"
    parser.add_argument("--methods", help=sets)
    parser.add_argument("--metrics", help=sets)
    parser.add_argument(
        "--baseline",
        type=_baseline,
        metavar="mean|zero|blur|NUMBER",
        help="what stands for nothing in an image, default: its mean colour (paper); the black background with --demo",
    )
    parser.add_argument(
        "--n-steps", type=int, metavar="N", help="points on the degradation curves, default: every tile"
    )
    parser.add_argument("--n-pictures", type=int, default=40, metavar="N", help="examples with pictures, default: 40")
    parser.add_argument("--beta", type=float, help="of LayerIBA, default: 10, with --text 100")
    parser.add_argument(
        "--readout",
        type=Path,
        metavar="FILE",
        help="a trained readout, which joins the methods; without it LayerReadoutIBA, if asked for, is trained on "
        "--calibrate. With --demo the embedded one stands in, and joins --methods paper",
    )
    parser.add_argument(
        "--max-examples-per-batch", type=int, metavar="N", help="rows at once, default: what runs fastest"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, or cuda:N; default: cpu")
    parser.add_argument(
        "--output", type=Path, default=Path("iba-compared"), metavar="DIR", help="default: iba-compared"
    )


@dataclass(frozen=True)
class _Subject:
    """What is compared on: model, examples, and what belongs to them."""

    name: str
    model: nn.Module
    examples: ExampleSet
    layer: str | None
    categories: list[str]
    calibration: Any
    statistics: FeatureStatistics | None
    baseline: Any = "mean"


def _baseline(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def run(options: argparse.Namespace) -> int:
    """Compare, print the table and write the report."""
    trained_for = None if options.readout is None else layer_of(options.readout)
    with process_group():
        device = _device(options.device)
        subject = _subject(options)
        if trained_for is not None and trained_for not in dict(subject.model.named_modules()):
            raise ReadoutFileError(
                f"{str(options.readout)!r} is of another network: a readout of layer {trained_for!r}, which "
                f"{subject.name} has not."
            )
        options.output.mkdir(parents=True, exist_ok=True)
        report = compare(
            subject.model.to(device),
            subject.examples,
            _methods(options),
            _names(options.metrics),
            subject.layer,
            gradcam_layer=options.gradcam_layer,
            statistics=subject.statistics,
            calibration=subject.calibration,
            method_options=_method_options(options),
            baselines=subject.baseline if options.baseline is None else options.baseline,
            n_steps=options.n_steps,
            categories=subject.categories,
            name=subject.name,
            n_pictures=options.n_pictures,
            store=options.output / "results.sqlite",
            max_examples_per_batch=options.max_examples_per_batch,
            seed=options.seed,
            show_progress=True,
        )
        if rank() == 0:
            _write(report, options.output)
    return SOME_SKIPPED if report.results.skipped else 0


def _subject(options: argparse.Namespace) -> _Subject:
    """What is compared on, as far as the arguments go together."""
    if options.max_length is not None and options.text is None:
        raise InvalidArgumentError("--max-length is for --text.")
    if options.text is not None:
        return _texts(options)
    return _demo(options) if options.demo else _photos(options)


def _write(report: Report, folder: Path) -> None:
    print(report)
    for path in report.save(folder):
        print(path)


def _names(text: str | None) -> str | list[str] | None:
    return (
        text if text in (None, "paper", "text", "all") else [name.strip() for name in text.split(",") if name.strip()]
    )


def _methods(options: argparse.Namespace) -> list[str]:
    """The methods asked for, and the readout where there is a trained one."""
    kind: Kind = "image" if options.text is None else "text"
    named = [method.name for method in find_methods(_names(options.methods), kind)]
    joins = options.readout is not None or (options.demo and options.methods in (None, "paper"))
    return [*named, READOUT] if joins and READOUT not in named else named


def _method_options(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Arguments of single methods that the command line has."""
    found: dict[str, dict[str, Any]] = {}
    if options.beta is not None:
        found["LayerIBA"] = {"beta": options.beta}
    if options.readout is not None:
        found[READOUT] = {"path": options.readout}
    elif options.demo and READOUT in _methods(options):
        from captum_iba.demo.readout import PATH

        found[READOUT] = {"path": PATH}
    return found


def _device(name: str) -> torch.device:
    """The device; under torchrun each process takes the GPU of its own number."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"device={name!r}: {str(error).splitlines()[0]}. Pass cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"device={name!r}, but torch finds no GPU. Pass --device cpu.")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


def _demo(options: argparse.Namespace) -> _Subject:
    from captum_iba.demo import load_canvases, load_model, to_display
    from captum_iba.demo.data import GREY_MEAN, GREY_STD

    _refuse(options, _OF_PHOTOS, "--demo, which brings its own data")
    canvases = load_canvases("test", 100 if options.limit is None else options.limit)
    examples = TensorExamples(canvases.images, canvases.labels, boxes=canvases.boxes, display=to_display)
    calibration = torch.split(load_canvases("train", _CALIBRATION).images, 250)
    digits = [str(digit) for digit in range(10)]
    # on these canvases nothing is black; tiles of the mean grey would be new strokes
    black = -GREY_MEAN / GREY_STD
    return _Subject("DigitsNet", load_model(), examples, options.layer or _DEMO_LAYER, digits, calibration, None, black)


def _refuse(options: argparse.Namespace, names: Iterable[str], source: str) -> None:
    """Refuse arguments that were given and do not go with what is explained."""
    for name in names:
        if getattr(options, name) != _OF_PHOTOS.get(name):
            raise InvalidArgumentError(f"--{name.replace('_', '-')} does not go with {source}.")


def _texts(options: argparse.Namespace) -> _Subject:
    of_photos_alone = [name for name in _OF_PHOTOS if name not in ("data", "model", "calibrate", "statistics")]
    _refuse(options, [*of_photos_alone, "gradcam_layer", "baseline", "readout"], "--text")
    if options.model == _OF_PHOTOS["model"]:
        raise InvalidArgumentError("--text needs --model, the folder of a text classifier or its name on the hub.")
    for path in (options.text, options.calibrate):
        if path is not None and not path.is_file():  # before any weights are downloaded
            raise InvalidArgumentError(f"There is no file {str(path)!r}; wanted lines of text, tab and class.")
    classifier = load_text_classifier(options.model)
    choices: dict[str, Any] = {"categories": classifier.categories, "max_length": options.max_length}
    examples = TextFile(options.text, classifier.tokenizer, limit=options.limit, **choices)
    return _Subject(
        Path(classifier.name).name,
        classifier.model,
        examples,
        options.layer,
        list(classifier.categories),
        None if options.calibrate is None else TextFile(options.calibrate, classifier.tokenizer, **choices),
        None if options.statistics is None else FeatureStatistics.load(options.statistics),
    )


def _photos(options: argparse.Namespace) -> _Subject:
    photos_in(options.data)  # before any weights are downloaded
    classifier = load_classifier(options.model, options.weights)
    if options.labels is not None and options.target is not None:
        raise InvalidArgumentError("--labels and --target name the classes twice; pass one of them.")
    targets = options.target or options.labels or "folder"
    has_own = options.boxes is not None and _has_photos(options.boxes)
    common = {"crop": options.crop, "largest_coverage": options.largest_coverage}
    annotations = None if has_own else options.boxes
    examples: ExampleSet = PhotoFolder(
        options.data, classifier, targets, annotations=annotations, limit=options.limit, **common
    )
    if has_own:
        boxed = PhotoFolder(
            options.boxes,
            classifier,
            options.boxes_target or targets,
            annotations=options.boxes,
            only_boxes=True,
            **common,
        )
        examples = JoinedExamples(examples, boxed)
    elif options.boxes_target is not None:
        raise InvalidArgumentError("--boxes-target is for a --boxes folder with photos of its own; this one has none.")
    calibration = (
        None if options.calibrate is None else FolderBatches(options.calibrate, classifier, _BATCH, "calibration")
    )
    return _Subject(
        classifier.name,
        classifier.model,
        examples,
        options.layer,
        list(classifier.categories),
        calibration,
        None if options.statistics is None else FeatureStatistics.load(options.statistics),
    )


def _has_photos(folder: Path) -> bool:
    if not folder.is_dir():
        raise InvalidArgumentError(f"--boxes {str(folder)!r} is no folder; wanted one with annotations.")
    try:
        return bool(photos_in(folder))
    except InvalidArgumentError:
        return False
