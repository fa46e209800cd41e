"""``captum-iba explain-text``: sentences coloured by the bits that a text classifier needs of each token, by layer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_iba.attr import LayerInformation, information_by_layer
from captum_iba.attr._llm_tokens import n_positions
from captum_iba.attr._signature import parameters_of
from captum_iba.attr.blocks import named_layers
from captum_iba.errors import InvalidArgumentError, MissingFileError
from captum_iba.text_models import TextClassifier, load_text_classifier
from captum_iba.visualization import layers_to_html, plot_layers

_BATCH_SIZE = 32
_MOST_TEXTS = 1000
_N_TOP = 3
# tokenizers without a limit of their own state a huge number
_NO_LIMIT = 1_000_000
# below this share of the class's probability the bits are not those of the decision
_KEPT = 0.8


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
    texts = None if options.calibrate is None else _texts_in(options.calibrate)
    classifier = load_text_classifier(options.model)
    layers = options.layers if options.layers == "all" else [name.strip() for name in options.layers.split(",")]
    named_layers(classifier.model, layers)  # before any work is done
    batch = _encoded(classifier, options.sentences)
    classes, probability = _classes(classifier, batch, options.target)
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
        calibration=None if texts is None else _Batches(classifier, texts),
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


def _texts_in(path: Path) -> list[str]:
    """Lines of a file up to the first tab, at most a thousand, spread evenly."""
    if not path.is_file():
        raise MissingFileError(f"There is no file {str(path)!r}; wanted texts, one a line.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{str(path)!r} is no UTF-8 text ({error}); wanted texts, one a line.") from error
    texts = [text for line in lines if (text := line.split("\t")[0].strip())]
    if len(texts) < 2:
        raise InvalidArgumentError(f"{str(path)!r} holds {len(texts)} texts; wanted at least two, better a thousand.")
    return texts[:: -(-len(texts) // _MOST_TEXTS)]


def _limit(classifier: TextClassifier) -> int:
    """Most tokens of a text: the tokenizer's limit, or the model's, where the tokenizer has none."""
    own, of_model = classifier.tokenizer.model_max_length, n_positions(classifier.model)
    return int(own if of_model is None else min(own, of_model))


def _arguments(classifier: TextClassifier, texts: Sequence[str]) -> dict[str, Tensor]:
    """Texts as a padded batch of what the model takes.

    Raises:
        InvalidArgumentError: several texts, and a tokenizer that cannot pad.
    """
    tokenizer = classifier.tokenizer
    if len(texts) > 1 and tokenizer.pad_token is None:
        raise InvalidArgumentError(
            f"The tokenizer of {classifier.name} has no padding token, so its texts go one at a time. Set "
            "tokenizer.pad_token and the model's config.pad_token_id, and save both."
        )
    limit = _limit(classifier)
    options = {"truncation": True, "max_length": limit} if limit < _NO_LIMIT else {}
    found = tokenizer(list(texts), padding=len(texts) > 1, return_tensors="pt", **options)
    known = {parameter.name for parameter in parameters_of(classifier.model)}
    return {name: value for name, value in found.items() if name in known}


class _Batches:
    """Texts as padded batches of the model's arguments."""

    def __init__(self, classifier: TextClassifier, texts: Sequence[str]) -> None:
        self._classifier = classifier
        self._size = 1 if classifier.tokenizer.pad_token is None else _BATCH_SIZE
        self._texts = sorted(texts, key=len)  # with little padding

    def __len__(self) -> int:
        return -(-len(self._texts) // self._size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(self._texts), self._size):
            yield _arguments(self._classifier, self._texts[start : start + self._size])


def _encoded(classifier: TextClassifier, sentences: Sequence[str]) -> dict[str, Tensor]:
    """The sentences as one padded batch; too long ones are cut, and a line says so."""
    tokenizer, limit = classifier.tokenizer, _limit(classifier)
    for number, sentence in enumerate(sentences, start=1):
        n_tokens = len(tokenizer(sentence, verbose=False)["input_ids"])
        if not tokenizer.tokenize(sentence):
            raise InvalidArgumentError(f"Sentence {number}, {sentence!r}, has no tokens; wanted a text.")
        if n_tokens > limit:
            print(f"captum-iba: sentence {number} has {n_tokens} tokens and is cut to {limit}", file=sys.stderr)
    return _arguments(classifier, sentences)


def _classes(classifier: TextClassifier, batch: dict[str, Tensor], target: str | None) -> tuple[Tensor, Tensor]:
    """The classes to explain, and the model's probabilities of them."""
    with torch.no_grad():
        probability = classifier.model(**batch).logits.softmax(dim=1)
    if target is None:
        classes = probability.argmax(dim=1)
    else:
        classes = torch.full((len(probability),), _class_index(classifier, target))
    return classes, probability.gather(1, classes[:, None])[:, 0]


def _class_index(classifier: TextClassifier, target: str) -> int:
    names = [name.lower() for name in classifier.categories]
    if target.isdigit() and int(target) < len(names):
        return int(target)
    if target.lower() in names:
        return names.index(target.lower())
    raise InvalidArgumentError(
        f"target={target!r} is no class of {classifier.name}; wanted an index from 0 to {len(names) - 1} or one of "
        f"{', '.join(classifier.categories[:10])}."
    )


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
    lost = [name for name, share in zip(found.layers, kept.tolist(), strict=True) if share < _KEPT]
    if lost:
        print(
            f"captum-iba: at {', '.join(lost)} the class keeps less than {_KEPT:.0%} of its probability through the "
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
