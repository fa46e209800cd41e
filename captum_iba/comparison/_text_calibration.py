"""The texts that statistics are fitted on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from captum_iba._warn import Warner
from captum_iba.attr._calibration import LABEL_KEYS
from captum_iba.comparison._arguments import ordered
from captum_iba.comparison._calibration_batches import Summed
from captum_iba.comparison._calibration_data import BATCH, MOST_OWN, warn_of_own
from captum_iba.comparison._encode import IDS
from captum_iba.comparison.dataset import ExampleSet
from captum_iba.errors import InvalidTypeError, UnreadableExampleError

Arguments = Mapping[str, Tensor]


class TextCalibration(Summed):
    """Batches of texts of one length, so that nothing is padded, as often as they are asked for.

    Args:
        source (Iterable, optional): another set of texts; texts, or lists of them; or mappings from the tokenizer,
            whose attention masks say what is padding. None stands for the compared texts themselves, up to 1000, with a
            warning when they are used.
        examples (ExampleSet): the compared texts.
        model (nn.Module): says in which order it takes its arguments.
        device (torch.device): where the batches go.
        warner (Warner): remembers the warning.
    """

    things = "texts"

    def __init__(
        self, source: Any, examples: ExampleSet, model: nn.Module, device: torch.device, warner: Warner
    ) -> None:
        super().__init__()
        self._source: Any = list(source) if isinstance(source, Iterator) else source
        self._examples, self._model, self._device, self._warner = examples, model, device, warner

    def _batches(self) -> Iterator[Any]:
        held: dict[int, list[Arguments]] = {}
        for one in self._texts():
            equal = held.setdefault(len(one[IDS]), [])
            equal.append(one)
            if len(equal) == BATCH:
                yield self._batch(held.pop(len(one[IDS])))
        for _, rest in sorted(held.items()):
            yield self._batch(rest)

    def _batch(self, texts: list[Arguments]) -> Any:
        stacked = {name: torch.stack([text[name] for text in texts]).to(self._device) for name in texts[0]}
        ids = stacked.pop(IDS)
        return ((ids, *(ordered(self._model, stacked) or ())),)

    def _texts(self) -> Iterator[Arguments]:
        """The arguments of one text after another."""
        if self._source is None:
            warn_of_own(self._warner, "texts")
            yield from self._of_examples(self._examples, MOST_OWN)
        elif callable(getattr(self._source, "load", None)):
            yield from self._of_examples(self._source, None)
        else:
            single = isinstance(self._source, (str, Mapping))
            for batch in [self._source] if single else self._source:
                yield from self._of_batch(batch)

    def _of_examples(self, examples: ExampleSet, most: int | None) -> Iterator[Arguments]:
        for index in range(len(examples.keys))[:most]:
            try:
                example = examples.load(index)
            except UnreadableExampleError as error:
                if examples is not self._examples:  # those are named where they are explained
                    self._warner.once(str(error), f"Left out of the calibration: {error}")
                continue
            yield {IDS: example.inputs, **example.arguments}

    def _of_batch(self, batch: Any) -> Iterator[Arguments]:
        if isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], (Mapping, tuple, list)):
            batch = batch[0]  # labels and the like are left out
        if isinstance(batch, Mapping) and isinstance(batch.get(IDS), Tensor) and batch[IDS].ndim == 2:
            yield from _of_mapping(batch)
            return
        texts = [batch] if isinstance(batch, str) else batch
        if not isinstance(texts, (tuple, list)) or not all(isinstance(text, str) for text in texts):
            raise InvalidTypeError(
                f"calibration yields a {type(batch).__name__}; wanted texts, lists of texts, or mappings from the "
                "tokenizer with tensors (B, T)."
            )
        encode = getattr(self._examples, "encode", None)
        if encode is None:
            raise InvalidTypeError(
                f"calibration yields texts, and {type(self._examples).__name__} has no tokenizer for them; pass "
                "mappings from the tokenizer."
            )
        for text in texts:
            found = encode(text)
            yield {IDS: found.ids, **found.arguments}


def _of_mapping(batch: Mapping[str, Any]) -> Iterator[Arguments]:
    """The rows of a tokenizer's mapping, without their padding."""
    ids = batch[IDS]
    alike = {
        name: value
        for name, value in batch.items()
        if isinstance(value, Tensor) and value.shape == ids.shape and name not in LABEL_KEYS
    }
    mask = batch.get("attention_mask")
    for row in range(len(ids)):
        kept = torch.ones_like(ids[row], dtype=torch.bool) if mask is None else mask[row].bool()
        yield {name: value[row][kept] for name, value in alike.items()}
