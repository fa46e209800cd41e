"""Sentences: the models that are offered, and the explanation of one."""

from __future__ import annotations

import html
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from captum_iba._cli_texts import TextBatches, encoded, target_classes, texts_in
from captum_iba._numbers import assert_beta
from captum_iba.attr import LayerInformation, information_by_layer
from captum_iba.attr.blocks import find_blocks, named_layers
from captum_iba.bottleneck.statistics import FeatureStatistics
from captum_iba.errors import InvalidArgumentError
from captum_iba.serve.notes import on_calibration, on_loss
from captum_iba.serve.photo import Over
from captum_iba.text_models import TextClassifier
from captum_iba.visualization import plot_layers


@dataclass(frozen=True)
class TextExplanation:
    """What is shown of a sentence.

    Attributes:
        label (str): name of the class that is explained.
        index (int): its index.
        layer (str): dotted name.
        tokens (list[str]): the tokenizer's, with its own.
        bits (Tensor): (T,), of each token at the layer.
        probability (float): of the class.
        probability_through (float): of the class through the bottleneck, mean over noisy copies.
        information (LayerInformation): of all layers that were asked for.
        figure (Figure or None): layers x tokens, with a colour bar in bits per token; None for one layer.
        notes (list[str]): what is to be known about these figures.
    """

    label: str
    index: int
    layer: str
    tokens: list[str]
    bits: Tensor
    probability: float
    probability_through: float
    information: LayerInformation
    figure: Figure | None
    notes: list[str]

    @property
    def total_bits(self) -> float:
        """Bits of all tokens together."""
        return float(self.bits.sum())


class TextModel:
    """A text classifier with its blocks, which are calibrated together when they are first asked for.

    Args:
        classifier (TextClassifier): the model and its tokenizer.
        layer (str, optional): the one chosen at first. Default: None: the second block, as early ones are nearest to
            the tokens.
        calibration (Path, optional): a file of texts for the statistics, one a line, up to a tab. Default: None.

    Raises:
        InvalidArgumentError: there is no such layer, no row of blocks, or the file holds too few texts.
        MissingFileError: there is no file.
    """

    def __init__(self, classifier: TextClassifier, layer: str | None = None, calibration: Path | None = None) -> None:
        self.classifier = classifier
        self.layers = list(find_blocks(classifier.model))
        self.layer = next(iter(named_layers(classifier.model, [layer]))) if layer else self.layers[:2][-1]
        if self.layer not in self.layers:
            self.layers.insert(0, self.layer)
        self._texts = None if calibration is None else texts_in(calibration)
        self._statistics: dict[str, FeatureStatistics] = {}
        self.lock = threading.RLock()
        """What runs the model holds it: a bottleneck is in the model while one is computed."""

    def information(self, layers: Sequence[str], over: Over, batch: dict[str, Tensor], **options: Any) -> Any:
        """:func:`information_by_layer`, with statistics that are estimated once.

        Args:
            layers (Sequence[str]): dotted names.
            over (Callable): goes over the batches of a calibration, to show progress.
            batch (dict[str, Tensor]): the model's arguments.
            **options (Any): the further arguments.
        """
        if self._texts is not None:
            if all(name in self._statistics for name in layers):
                options["statistics"] = self._statistics
            else:
                options["calibration"] = over(TextBatches(self.classifier, self._texts))
        model, tokenizer = self.classifier.model, self.classifier.tokenizer
        found = information_by_layer(model, list(layers), batch, tokenizer=tokenizer, **options)
        self._statistics.update(found.statistics)
        return found


def explain_text(
    model: TextModel,
    sentence: str,
    layer: str = "",
    target: str = "",
    beta: float = 10.0,
    every_layer: bool = True,
    over: Over = iter,
) -> TextExplanation:
    """Bits of each token of a sentence.

    Args:
        model (TextModel): the model.
        sentence (str): the sentence.
        layer (str, optional): dotted name. Default: ``""``, the model's first choice.
        target (str, optional): class by index or name. Default: ``""``, the predicted one.
        beta (float, optional): weight of the information, as in :meth:`LayerIBA.attribute`. Default: 10.0.
        every_layer (bool, optional): all other layers too. Default: True.
        over (Callable, optional): goes over the batches of a calibration, to show progress. Default: ``iter``.

    Returns:
        TextExplanation: figures, tokens and notes.

    Raises:
        InvalidArgumentError: no text, or an argument out of range.
        CaptumIBAError: everything :func:`information_by_layer` raises.
    """
    sentence, layer = (sentence or "").strip(), layer.strip() or model.layer
    if not sentence:
        raise InvalidArgumentError("There is no sentence yet: type one first.")
    assert_beta(beta)
    notes: list[str] = []
    layers = list(dict.fromkeys([*model.layers, layer])) if every_layer else [layer]
    with model.lock:
        batch = encoded(model.classifier, [sentence], notes.append)
        classes, own = target_classes(model.classifier, batch, target.strip() or None)
        found = model.information(layers, over, batch, target=classes, beta=beta)
    row = found.layers.index(layer)
    through = float(torch.as_tensor(found.target_probability)[row, 0])
    notes += on_calibration(found.statistics.get(layer), "texts")
    return TextExplanation(
        label=model.classifier.categories[int(classes[0])],
        index=int(classes[0]),
        layer=layer,
        tokens=found.tokens[0],
        bits=found.of_example(0)[row],
        probability=float(own[0]),
        probability_through=through,
        information=found,
        figure=plot_layers(found) if len(layers) > 1 else None,
        notes=[*notes, *on_loss(float(own[0]), through)],
    )


def tokens_to_html(tokens: Sequence[str], bits: Tensor) -> str:
    """Tokens, each on the colour of its bits, which stand below it; for the page's style sheet.

    Args:
        tokens (Sequence[str]): of one sentence.
        bits (Tensor): (T,), not negative.

    Examples::

        >>> tokens_to_html(["<b>"], torch.tensor([2.0]))
        '<div class="iba-tokens"><span style="--share:1.000">&lt;b&gt;<small>2.0</small></span></div>'
    """
    high = float(bits.max()) or 1.0  # a line of zeros stays white
    spans = (
        f'<span style="--share:{value / high:.3f}">{html.escape(token)}<small>{value:.1f}</small></span>'
        for token, value in zip(tokens, bits.tolist(), strict=True)
    )
    return f'<div class="iba-tokens">{"".join(spans)}</div>'
