"""Text classifiers of transformers with their tokenizers, by name or folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from captum_iba.errors import InvalidArgumentError, MissingDependencyError


@dataclass(frozen=True)
class TextClassifier:
    """A model for text classification with what it needs around it.

    Attributes:
        name (str): as it was asked for.
        model (nn.Module): in float32 and evaluation mode; returns an object with ``logits`` (N, classes).
        tokenizer (Any): of transformers.
        categories (Sequence[str]): names of the classes, as the model's configuration has them.
    """

    name: str
    model: nn.Module
    tokenizer: Any
    categories: Sequence[str]


def load_text_classifier(name_or_path: str | os.PathLike[str]) -> TextClassifier:
    """Load a model that transformers knows as a sequence classifier.

    Args:
        name_or_path (str or path): a folder with ``config.json``, weights and tokenizer, as ``save_pretrained`` writes
            it; or a name on the Hugging Face hub, which is downloaded at first use.

    Returns:
        TextClassifier: model and tokenizer; weights in half precision become float32, since CPUs are slow in any other
        and bits are computed in it.

    Raises:
        MissingDependencyError: transformers is not installed.
        InvalidArgumentError: there is no such model or tokenizer, or it has no trained head for classification.

    Examples::

        >>> import tempfile
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"[UNK]": 0, "warm": 1, "flat": 2}, "[UNK]"))
        >>> sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        >>> model = BertForSequenceClassification(BertConfig(vocab_size=3, num_labels=2, **sizes))
        >>> with tempfile.TemporaryDirectory() as folder:  # or a folder of yours, or a name on the hub
        ...     model.save_pretrained(folder)
        ...     _ = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(folder)
        ...     classifier = load_text_classifier(folder)
        >>> classifier.categories
        ['LABEL_0', 'LABEL_1']
    """
    transformers = _transformers()
    name = os.fspath(name_or_path)
    where = "" if os.path.isdir(name) else " (no folder here, so a name on the Hugging Face hub)"
    model, info = _loaded(
        lambda: transformers.AutoModelForSequenceClassification.from_pretrained(name, output_loading_info=True),
        f"model={name!r}{where} cannot be loaded as a text classifier",
        "Wanted config.json and weights of a sequence classifier, as save_pretrained writes them.",
    )
    missing = sorted(info["missing_keys"])
    if missing:
        more = " and more" if len(missing) > 3 else ""
        raise InvalidArgumentError(
            f"model={name!r} has no weights for {', '.join(missing[:3])}{more}, which are thus random. "
            "Wanted a model fine-tuned for sequence classification."
        )
    tokenizer = _loaded(
        lambda: transformers.AutoTokenizer.from_pretrained(name),
        f"model={name!r} has no tokenizer that can be loaded",
        "Wanted its files, such as tokenizer.json, beside the model's: tokenizer.save_pretrained(folder).",
    )
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes where there is none
        raise InvalidArgumentError(
            f"model={name!r} has no tokenizer with words. Wanted its files, such as tokenizer.json, beside the "
            "model's: tokenizer.save_pretrained(folder)."
        )
    names = model.config.id2label
    return TextClassifier(name, model.float().eval(), tokenizer, [str(names[index]) for index in sorted(names)])


def _loaded(load: Any, what: str, wanted: str) -> Any:
    """What a function of transformers returns; it reports missing and broken files in many ways."""
    try:
        return load()
    except Exception as error:
        reason = next((line.strip()[:200] for line in str(error).splitlines() if line.strip()), "no reason given")
        raise InvalidArgumentError(f"{what}: {type(error).__name__}: {reason} {wanted}") from error


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError("Text models need transformers: pip install 'captum_iba[text]'.") from error
    return transformers
