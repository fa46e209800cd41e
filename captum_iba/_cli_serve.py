"""``captum-iba serve``: a page on this computer where photos and sentences are explained."""

from __future__ import annotations

import argparse
import sys
import warnings
from itertools import zip_longest
from pathlib import Path
from typing import Any

from captum_iba._cli_photos import FolderBatches
from captum_iba.bottleneck.statistics import FeatureStatistics
from captum_iba.errors import InvalidArgumentError
from captum_iba.photos import load_classifier
from captum_iba.serve import PhotoModel, TextModel, digits_model
from captum_iba.text_models import load_text_classifier

_BATCH_SIZE = 8
# one waits for them on the page
_MOST_PHOTOS = 1000
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_parser(commands: Any) -> None:
    """Add ``serve`` to the command line."""
    parser = commands.add_parser("serve", help="show a page on this computer where photos and sentences are explained")
    parser.add_argument("--demo", action="store_true", help="offer the embedded digits; nothing is downloaded")
    parser.add_argument(
        "--model", action="append", default=[], metavar="NAME", help="torchvision's name; may be there several times"
    )
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="DEFAULT|FILE",
        help="a state dict, in the order of the models, default: DEFAULT",
    )
    parser.add_argument("--layer", metavar="NAME", help="of the first --model, chosen at first")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--statistics", type=Path, metavar="FILE", help="of the first --model and its --layer")
    source.add_argument("--calibrate", type=Path, metavar="FOLDER", help="photos for feature statistics, at most 1000")
    parser.add_argument(
        "--text-model",
        action="append",
        default=[],
        metavar="FOLDER|NAME",
        help="of a sequence classifier of transformers; may be there several times",
    )
    parser.add_argument("--calibrate-text", type=Path, metavar="FILE", help="texts, one a line, up to a tab")
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this computer alone")
    parser.add_argument("--port", type=int, help="default: the first from 7860 that is free")
    parser.set_defaults(run=run_serve)


def run_serve(options: argparse.Namespace) -> int:
    """Show the page until interrupted; returns the exit status."""
    from captum_iba.serve.page import serve

    photos, texts = load_photo_models(options), load_text_models(options)
    if options.host not in _LOOPBACK:
        print(f"captum-iba: whoever reaches {options.host} can use this page", file=sys.stderr)
    for category in (DeprecationWarning, FutureWarning, ResourceWarning):  # gradio's own
        warnings.simplefilter("ignore", category)
    serve(photos, texts, options.host, options.port, lambda url: print(f"{url} (Ctrl-C ends it)", flush=True))
    return 0


def load_photo_models(options: argparse.Namespace) -> dict[str, PhotoModel]:
    """The models of photos that were asked for; the embedded digits where nothing was."""
    if not options.model and (options.weights or options.layer or options.statistics or options.calibrate):
        raise InvalidArgumentError(
            "--weights, --layer, --statistics and --calibrate are for a --model, which is not there."
        )
    if len(options.weights) > len(options.model):
        raise InvalidArgumentError(
            f"There are {len(options.weights)} --weights for {len(options.model)} --model; wanted one each at most."
        )
    statistics = None if options.statistics is None else FeatureStatistics.load(options.statistics)
    models: dict[str, PhotoModel] = {}
    for name, weights in zip_longest(options.model, options.weights, fillvalue="DEFAULT"):
        classifier = load_classifier(name, weights)
        photos = (
            None
            if options.calibrate is None
            else FolderBatches(options.calibrate, classifier, _BATCH_SIZE, "calibration", _MOST_PHOTOS)
        )
        first = not models
        models[_free(name, models)] = PhotoModel(
            classifier, options.layer if first else None, photos, statistics if first else None
        )
    if options.demo or not (options.model or options.text_model):
        models["embedded digits"] = digits_model()
    return models


def load_text_models(options: argparse.Namespace) -> dict[str, TextModel]:
    """The text models that were asked for."""
    if options.calibrate_text is not None and not options.text_model:
        raise InvalidArgumentError("--calibrate-text is for a --text-model, which is not there.")
    models: dict[str, TextModel] = {}
    for name in options.text_model:
        shown = _free(Path(name).name, models)
        models[shown] = TextModel(load_text_classifier(name), calibration=options.calibrate_text)
    return models


def _free(name: str, taken: dict[str, Any]) -> str:
    """The name, with a number where it is taken."""
    number = 1
    while (shown := name if number == 1 else f"{name} ({number})") in taken:
        number += 1
    return shown
