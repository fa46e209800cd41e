"""The bottleneck on a text classifier: what information_by_layer costs, and token degradation against other methods.

    python -m benchmarks.text layers MODEL TEXTS.tsv --calibrate MORE.tsv       # one call against one call a layer
    python -m benchmarks.text beta MODEL TEXTS.tsv --calibrate MORE.tsv         # beta for one lambda a token
    python -m benchmarks.text choose MODEL TEXTS.tsv --calibrate MORE.tsv       # layer and beta by token degradation
    python -m benchmarks.text compare MODEL TEXTS.tsv --calibrate MORE.tsv      # chosen setting against other methods

MODEL is a folder of a sequence classifier of transformers, or its name on the hub; TEXTS.tsv holds lines of text, tab
and class. Settings are chosen on other texts than those that methods are compared on: pass training texts to
``choose``, and held-out ones to ``compare``, which goes on from its ``--store FILE``. Times are processor times on one
thread.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.readout import print_report
from captum_iba import LayerIBA, compare, information_by_layer
from captum_iba.attr import TOKEN_RANKING, find_blocks
from captum_iba.attr._signature import in_order
from captum_iba.comparison import Method, TextFile
from captum_iba.text_models import TextClassifier, load_text_classifier

METRICS = ["degradation mask", "degradation delete"]
OTHERS = ["LayerIntegratedGradients", "LayerGradientXActivation", "GradientNorm", "AttentionRollout", "Random"]
# chosen by ``choose`` on training sentences of SST-2, for a BERT of six layers
CHOSEN: dict[str, Any] = dict(TOKEN_RANKING)
LAYER = "bert.embeddings"
N_CALIBRATION = 400


def lines_of(path: Path, limit: int) -> tuple[list[str], list[int]]:
    """The first texts of a file, and their classes."""
    rows = [line.rsplit("\t", 1) for line in path.read_text(encoding="utf-8").splitlines()[:limit]]
    return [text for text, _ in rows], [int(label) for _, label in rows]


def encoded(classifier: TextClassifier, texts: list[str]) -> dict[str, Tensor]:
    return dict(classifier.tokenizer(texts, padding=True, truncation=True, return_tensors="pt"))


def corpus(classifier: TextClassifier, path: Path) -> list[dict[str, Tensor]]:
    texts, _ = lines_of(path, N_CALIBRATION)
    return [encoded(classifier, texts[start : start + 50]) for start in range(0, len(texts), 50)]


def layers(options: argparse.Namespace) -> None:
    """Processor time of all layers in one call, and of one LayerIBA call a layer on the same padded batch."""
    classifier, blocks = options.classifier, find_blocks(options.classifier.model)
    texts, labels = lines_of(options.texts, options.n)
    batch, target = encoded(classifier, texts), torch.tensor(labels)
    further = in_order(classifier.model, batch)
    data = corpus(classifier, options.calibrate)
    first = encoded(classifier, texts[:2])
    known = information_by_layer(
        classifier.model, "all", first, target[:2], calibration=data, n_steps=1, n_samples=1
    ).statistics
    times: dict[str, list[float]] = {"separate calls": [], "information_by_layer": []}
    for _ in range(options.repeats):
        start = time.process_time()
        alone = []
        for name, block in blocks.items():
            iba: Any = LayerIBA(classifier.model, block, statistics=known[name])
            bits, _ = iba.attribute(
                batch["input_ids"], target, additional_forward_args=further, return_diagnostics=True
            )
            alone.append(bits[..., 0])
        times["separate calls"].append(time.process_time() - start)
        start = time.process_time()
        found = information_by_layer(classifier.model, "all", batch, target, statistics=known)
        times["information_by_layer"].append(time.process_time() - start)
    for name, seconds in times.items():
        ratio = min(seconds) / min(times["separate calls"])
        print(f"{name:24s} {min(seconds):8.1f} s {ratio:6.2f} times, {len(blocks)} layers, {len(texts)} texts")
    print(f"largest difference {float((found.bits - torch.stack(alone)).abs().max()):.1e} bits per token")
    print_layers(found)


def beta(options: argparse.Namespace) -> None:
    """Bits, probability and spread for several beta, with one lambda a token and one an element."""
    texts, labels = lines_of(options.texts, options.n)
    batch, known = encoded(options.classifier, texts), None
    for granularity, value in itertools.product(("token", "element"), options.values):
        source = {"calibration": corpus(options.classifier, options.calibrate)} if known is None else {}
        found = information_by_layer(
            options.classifier.model,
            options.layers,
            batch,
            torch.tensor(labels),
            statistics=known,
            mask_granularity=granularity,
            beta=value,
            **source,
        )
        known = found.statistics
        print(f"\n{granularity}, beta {value:g}")
        print_layers(found)


def print_layers(found: Any) -> None:
    table = found.to_dataframe().groupby("layer", sort=False).mean().drop(columns="example")
    print(table.round(3).to_string())


def as_method(name: str, layer: str, data: list[dict[str, Tensor]], settings: dict[str, Any]) -> Method:
    """LayerIBA at a layer of its own, with its statistics."""

    def build(context: Any) -> Any:
        iba: Any = LayerIBA(context.model, context.model.get_submodule(layer)).estimate(data)

        def explain(x: Tensor, y: Tensor, additional_forward_args: Any = None) -> Tensor:
            bits: Tensor = iba.attribute(x, target=y, additional_forward_args=additional_forward_args, **settings)
            return bits

        return explain

    return Method(name, build, name, "bits per token", kinds=("text",))


def run(options: argparse.Namespace, methods: list[Any]) -> None:
    classifier = options.classifier
    data = TextFile(options.texts, classifier.tokenizer, limit=options.n, categories=classifier.categories)
    report = compare(
        classifier.model,
        data,
        methods,
        METRICS,
        options.layer,
        calibration=TextFile(options.calibrate, classifier.tokenizer, limit=N_CALIBRATION),
        n_steps=options.n_steps,
        n_pictures=0,
        store=options.store,
        show_progress=True,
    )
    if os.environ.get("RANK", "0") == "0":  # under torchrun the texts are shared out
        print_report(report)


def choose(options: argparse.Namespace) -> None:
    """Token degradation of several layers and beta."""
    data = corpus(options.classifier, options.calibrate)
    settings = [CHOSEN | {"beta": value} for value in options.values]
    settings += [{"mask_granularity": "element", "beta": value} for value in options.values]
    methods = [
        as_method(f"{layer} {own['mask_granularity']} {own['beta']:g}", layer, data, own)
        for layer in options.layers
        for own in settings
    ]
    run(options, methods)


def against_others(options: argparse.Namespace) -> None:
    """The chosen setting beside the other methods."""
    own = as_method("LayerIBA", LAYER, corpus(options.classifier, options.calibrate), CHOSEN)
    run(options, [own, *OTHERS])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, function in {"layers": layers, "beta": beta, "choose": choose, "compare": against_others}.items():
        command = commands.add_parser(name, help=(function.__doc__ or "").rstrip("."))
        command.set_defaults(run=function)
        command.add_argument("model")
        command.add_argument("texts", type=Path)
        command.add_argument("--calibrate", type=Path, required=True, metavar="FILE.tsv")
        command.add_argument("--n", type=int, default={"layers": 32, "compare": 200}.get(name, 30), help="texts")
        command.add_argument("--repeats", type=int, default=1, help="of layers")
        command.add_argument("--values", type=float, nargs="+", default=[1.0, 10.0, 100.0], help="of beta")
        command.add_argument("--layers", nargs="+", default=[LAYER, "bert.encoder.layer.0", "bert.encoder.layer.2"])
        command.add_argument("--layer", default="bert.encoder.layer.1", help="of LayerGradientXActivation")
        command.add_argument("--n-steps", type=int, help="points on the degradation curves; default: every token")
        command.add_argument("--store", type=Path, help="SQLite file to keep results in, and to go on from")
        command.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.classifier = load_text_classifier(options.model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # texts for rough statistics
        options.run(options)


if __name__ == "__main__":
    main()
