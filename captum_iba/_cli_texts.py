"""What explain-text and serve share about texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from captum_iba.attr._llm_tokens import n_positions
from captum_iba.attr._signature import parameters_of
from captum_iba.errors import InvalidArgumentError, MissingFileError
from captum_iba.text_models import TextClassifier

KEPT = 0.8
"""Below this share of the class's probability the bits are not those of the decision."""

_BATCH_SIZE = 32
_MOST_TEXTS = 1000
# tokenizers without a limit of their own state a huge number
_NO_LIMIT = 1_000_000


def texts_in(path: Path) -> list[str]:
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


class TextBatches:
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


def encoded(classifier: TextClassifier, sentences: Sequence[str], say: Callable[[str], object]) -> dict[str, Tensor]:
    """The sentences as one padded batch; too long ones are cut, and a line says so."""
    tokenizer, limit = classifier.tokenizer, _limit(classifier)
    for number, sentence in enumerate(sentences, start=1):
        n_tokens = len(tokenizer(sentence, verbose=False)["input_ids"])
        if not tokenizer.tokenize(sentence):
            raise InvalidArgumentError(f"Sentence {number}, {sentence!r}, has no tokens; wanted a text.")
        if n_tokens > limit:
            say(f"sentence {number} has {n_tokens} tokens and is cut to {limit}")
    return _arguments(classifier, sentences)


def target_classes(classifier: TextClassifier, batch: dict[str, Tensor], target: str | None) -> tuple[Tensor, Tensor]:
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
    if target.isdecimal() and int(target) < len(names):
        return int(target)
    if target.lower() in names:
        return names.index(target.lower())
    raise InvalidArgumentError(
        f"target={target!r} is no class of {classifier.name}; wanted an index from 0 to {len(names) - 1} or one of "
        f"{', '.join(classifier.categories[:10])}."
    )
