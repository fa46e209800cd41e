"""``captum-iba explain-text``: sentences coloured by the bits that a text classifier needs of each token, by layer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from captum_iba._cli_texts import KEPT, TextBatches, encoded, target_classes, texts_in
from captum_iba.attr import LayerInformation, information_by_layer
from captum_iba.attr.blocks import named_layers
from captum_iba.text_models import load_text_classifier
from captum_iba.visualization import layers_to_html, plot_layers

_N_TOP = 3


def add_parser(commands: Any) -> None:
    """Add ``explain-text`` to the command line."""
    parser = commands.add_parser(
        "explain-text", help="explain sentences with a text classifier of transformers, token by token, layer by layer"
    )
    parser.add_argument("sentences", nargs="+", metavar="SENTENCE")
    parser.add_argument(
        "--model",
        required=True,
        metavar="FOLDER|NAME",
        help="folder of a sequence classifier, or its name on the Hugging Face hub",
    )
    parser.add_argument("--layers", default="all", metavar="all|NAMES", help="separated by commas; default: all blocks")
    parser.add_argument("--target", metavar="CLASS", help="index or name; default: what the model predicts")
    parser.add_argument(
        "--calibrate", type=Path, metavar="FILE", help="texts for the feature statistics, one a line, up to a tab"
    )
    parser.add_argument("--beta", type=float, help="weight of the information, default: as in LayerIBA")
    parser.add_argument(
        "--mask-granularity",
        choices=("element", "token"),
        default="element",
        help="one lambda for each hidden unit or each token, default: element",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output", type=Path, default=Path("iba-explained"), metavar="DIR", help="default: iba-explained"
    )
    parser.set_defaults(run=run_explain_text)


def run_explain_text(options: argparse.Namespace) -> int:
    """Print each sentence's figures, write page, table and pictures; returns the exit status."""
    texts = None if options.calibrate is None else texts_in(options.calibrate)
    classifier = load_text_classifier(options.model)
    layers = options.layers if options.layers == "all" else [name.strip() for name in options.layers.split(",")]
    named_layers(classifier.model, layers)  # before any work is done
    batch = encoded(classifier, options.sentences, _say)
    classes, probability = target_classes(classifier, batch, options.target)
    options.output.mkdir(parents=True, exist_ok=True)
    if texts is None:
        print(
            "captum-iba: for bits that are an upper bound: --calibrate FILE, about a thousand texts like those that "
            "the model was trained on",
            file=sys.stderr,
        )
    found = information_by_layer(
        classifier.model,
        layers,
        batch,
        target=classes,
        calibration=None if texts is None else TextBatches(classifier, texts),
        tokenizer=classifier.tokenizer,
        beta=options.beta,
        mask_granularity=options.mask_granularity,
        seed=options.seed,
        show_progress=True,
    )
    for index, sentence in enumerate(options.sentences):
        label = classifier.categories[int(classes[index])]
        print(f"\n{sentence}\n{label} ({int(classes[index])}), p = {float(probability[index]):.3f}")
        print("\n".join(_lines(found, index)))
    print(f"\nmost bits pass {found.most_informative_layer}")
    _warn_of_lost_decisions(found, probability)
    for path in _write(found, options.output):
        print(path)
    return 0


def _say(message: str) -> None:
    print(f"captum-iba: {message}", file=sys.stderr)


def _lines(found: LayerInformation, index: int) -> Iterator[str]:
    """A line for each layer: bits, probability through the bottleneck, spread, and the tokens with most bits."""
    width = max(map(len, found.layers))
    bits, tokens = found.of_example(index), found.tokens[index]
    yield f"{'layer':{width}s} {'bits':>9s} {'p':>6s} {'tokens':>7s}  most bits"
    for layer, name in enumerate(found.layers):
        p = "–" if found.target_probability is None else f"{float(found.target_probability[layer, index]):.3f}"
        top = bits[layer].topk(min(_N_TOP, len(tokens)))
        words = ", ".join(f"{tokens[i]} {float(value):.1f}" for value, i in zip(*top, strict=True))
        spread = float(found.effective_tokens[layer, index])
        yield f"{name:{width}s} {float(bits[layer].sum()):9.1f} {p:>6s} {spread:7.1f}  {words}"


def _warn_of_lost_decisions(found: LayerInformation, probability: Tensor) -> None:
    """Say where little of the class is left: with few classes, guessing costs less than information does."""
    if found.target_probability is None:
        return
    kept = found.target_probability.double().mean(dim=1) / float(probability.double().mean())
    lost = [name for name, share in zip(found.layers, kept.tolist(), strict=True) if share < KEPT]
    if lost:
        print(
            f"captum-iba: at {', '.join(lost)} the class keeps less than {KEPT:.0%} of its probability through the "
            "bottleneck; a smaller --beta keeps more of it",
            file=sys.stderr,
        )


def _write(found: LayerInformation, folder: Path) -> Iterator[Path]:
    """Page, table and a picture of each sentence."""
    page, table = folder / "layers.html", folder / "layers.csv"
    page.write_text(layers_to_html(found), encoding="utf-8")
    yield page
    found.to_dataframe().to_csv(table, index=False)
    yield table
    for index in range(len(found.tokens)):
        path = folder / f"sentence_{index + 1}.png"
        plot_layers(found, index).savefig(path, dpi=130)
        yield path
