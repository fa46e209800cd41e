"""Texts with their classes, as a tokenizer prepares them: of a file, or in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from captum_iba._warn import Warner
from captum_iba.comparison._encode import Encoder
from captum_iba.comparison._limit import assert_limit, spread
from captum_iba.comparison._pictures import quantised
from captum_iba.comparison._types import HeatMap
from captum_iba.comparison.example import Kind
from captum_iba.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    MismatchedArgumentsError,
    MissingFileError,
    UnreadableExampleError,
)


@dataclass(frozen=True, eq=False)
class TextExample:
    """One text and what is known about it.

    Attributes:
        key (str): unique and stable.
        inputs (Tensor): (T,), int64, token ids; not padded, as examples are explained one at a time.
        target (int): class to explain.
        tokens (tuple[str, ...]): T, as they are shown.
        special (Tensor): (T,), bool: the tokenizer's own tokens, which are never removed.
        baselines (Tensor): (T,), ids that stand for nothing: special tokens are kept.
        arguments (Mapping[str, Tensor]): (T,) each, further arguments of the model by name, such as the attention mask.
    """

    kind: ClassVar[Kind] = "text"
    mask: ClassVar[None] = None
    only_boxes: ClassVar[bool] = False
    is_shown: ClassVar[bool] = True
    key: str
    inputs: Tensor
    target: int
    tokens: tuple[str, ...]
    special: Tensor
    baselines: Tensor
    arguments: Mapping[str, Tensor]

    @property
    def feature_mask(self) -> Tensor:
        """(T,): each token a unit of its own, special ones -1."""
        return torch.where(self.special, -1, torch.arange(len(self.special)))

    def details(self, pictured: bool) -> dict[str, Any]:
        """Tokens, see :class:`AnyExample`."""
        return {"tokens": self.tokens, "special": tuple(self.special.tolist())} if pictured else {}

    def fitted(self, maps: Tensor) -> Tensor:
        """(1, T), see :class:`AnyExample`."""
        n = len(self.inputs)
        if maps.ndim == 3:
            maps = maps.sum(dim=2)
        if maps.shape != (1, n):
            raise InvalidArgumentError(
                f"The method returned {list(maps.shape)} for {n} tokens; wanted maps (1, {n}), (1, {n}, 1) or "
                f"(1, {n}, D)."
            )
        return maps

    def heat_map(self, maps: Tensor, unit: str) -> HeatMap:
        """(1, T), see :class:`AnyExample`."""
        return quantised(maps, np.uint16)

    def ranked(self, maps: Tensor) -> Tensor:
        """Without the special tokens, see :class:`AnyExample`."""
        return maps[0, ~self.special.to(maps.device)]


class TextExamples:
    """Texts that are in memory.

    Args:
        texts (Sequence[str]): N of them.
        labels (Sequence[int or str]): N classes to explain: their indices, or names of ``categories``.
        tokenizer (Any): of transformers, or one that is called alike.
        categories (Sequence[str], optional): names of the classes. Default: None: labels are indices.
        max_length (int, optional): most tokens, special ones included; longer texts are cut, with a warning.
            Default: None: the tokenizer's own limit.
        baseline_token (str, optional): stands for a token that is not there, in metrics and as the start of integrated
            gradients. Default: None: the mask token, which language models know as "something that is not said"; else
            the padding token, else the unknown one.
        keys (Sequence[str], optional): unique names. Default: None: ``"0"``, ``"1"`` and so on.

    Attributes:
        keys (Sequence[str]): names of the texts.
        encode (Encoder): the tokenizer with its choices.

    Raises:
        InvalidTypeError: texts, labels or a tokenizer of another type.
        InvalidArgumentError: no texts, keys that repeat, or a token that the tokenizer does not have.
        MismatchedArgumentsError: another number of labels or keys than of texts.

    Examples::

        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast  # or AutoTokenizer.from_pretrained(folder)
        >>> words = Tokenizer(models.WordLevel({"[UNK]": 0, "[MASK]": 1, "warm": 2, "flat": 3, "film": 4}, "[UNK]"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", mask_token="[MASK]")
        >>> texts = TextExamples(["warm film", "flat"], [1, 0], tokenizer)
        >>> texts.load(0).tokens, texts.load(1).target
        (('warm', 'film'), 0)
    """

    def __init__(
        self,
        texts: Sequence[str],
        labels: Sequence[int | str],
        tokenizer: Any,
        *,
        categories: Sequence[str] | None = None,
        max_length: int | None = None,
        baseline_token: str | None = None,
        keys: Sequence[str] | None = None,
    ) -> None:
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise InvalidTypeError(f"texts is a {type(texts).__name__}; wanted a sequence of strings.")
        rows = [_Row(text, label) for text, label in zip(texts, labels, strict=False)]
        keys = tuple(map(str, range(len(texts)))) if keys is None else tuple(keys)
        for name, values in (("labels", labels), ("keys", keys)):
            if len(values) != len(texts):
                raise MismatchedArgumentsError(f"{len(values)} {name} do not fit {len(texts)} texts; wanted as many.")
        if not rows or len(set(keys)) < len(keys):
            raise InvalidArgumentError(f"{len(rows)} texts, {len(set(keys))} different keys; wanted one text or more.")
        self._texts = _Texts(
            dict(zip(keys, rows, strict=True)), Encoder(tokenizer, max_length, baseline_token), categories
        )
        self.keys: Sequence[str] = keys
        self.encode = self._texts.encode

    @cached_property
    def fingerprint(self) -> Mapping[str, object]:
        """Choices, and a digest of texts and labels."""
        return {"class": "TextExamples", **self._texts.fingerprint}

    def load(self, index: int) -> TextExample:
        """One text.

        Raises:
            UnreadableExampleError: it has no tokens, or its label is no class.
        """
        return self._texts.load(self.keys[index])


class TextFile:
    r"""The texts of a file, one a line: text, tab, class.

    Nothing is quoted: a line is split at its last tab. Blank lines are passed over. A line that is no text in UTF-8,
    has no tab, or whose class is unknown is an example that cannot be read: a comparison names it and goes on.

    Args:
        path (str or path): the file.
        tokenizer (Any): of transformers, or one that is called alike.
        header (bool, optional): the first line is a heading. Default: None: it is one if what stands behind its tab is
            neither a number nor one of the categories.
        categories (Sequence[str], optional): names of the classes, which may stand in place of their indices.
            Default: None: only indices.
        limit (int, optional): most texts, spread evenly over the file. Default: None: all.
        max_length, baseline_token: see :class:`TextExamples`.

    Attributes:
        keys (Sequence[str]): the file's name and the line, such as ``"dev.tsv:12"``.
        encode (Encoder): the tokenizer with its choices.

    Raises:
        MissingFileError: there is no such file.
        InvalidTypeError, InvalidArgumentError: no lines in it, or an argument out of its range.

    Examples::

        >>> import tempfile
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast  # or AutoTokenizer.from_pretrained(folder)
        >>> words = Tokenizer(models.WordLevel({"[UNK]": 0, "[MASK]": 1, "warm": 2, "flat": 3, "film": 4}, "[UNK]"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", mask_token="[MASK]")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "dev.tsv")
        ...     _ = path.write_text("warm film\t1\nflat\t0\n")
        ...     texts = TextFile(path, tokenizer)
        ...     texts.keys, texts.load(0).tokens
        (('dev.tsv:1', 'dev.tsv:2'), ('warm', 'film'))
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        tokenizer: Any,
        *,
        header: bool | None = None,
        categories: Sequence[str] | None = None,
        limit: int | None = None,
        max_length: int | None = None,
        baseline_token: str | None = None,
    ) -> None:
        self.path, self.limit = Path(path), limit
        assert_limit(limit)
        if header not in (None, True, False):
            raise InvalidTypeError(f"header is a {type(header).__name__}; wanted True, False or None.")
        rows = _rows_of(self.path, header, categories)
        if not rows:
            raise InvalidArgumentError(f"{str(path)!r} has no lines; wanted a text, a tab and a class on each.")
        self._texts = _Texts(rows, Encoder(tokenizer, max_length, baseline_token), categories)
        self.keys: Sequence[str] = spread(tuple(rows), limit)
        self.encode = self._texts.encode

    @cached_property
    def fingerprint(self) -> Mapping[str, object]:
        """Choices, and a digest of texts and labels."""
        return {"class": "TextFile", "limit": self.limit, "texts": len(self.keys), **self._texts.fingerprint}

    def load(self, index: int) -> TextExample:
        """One line.

        Raises:
            UnreadableExampleError: it is no text and class.
        """
        return self._texts.load(self.keys[index])


@dataclass(frozen=True)
class _Row:
    """Text and label as given, or why there are none."""

    text: str = ""
    label: int | str = ""
    reason: str = ""


class _Texts:
    """Rows by key, which become examples when they are asked for."""

    def __init__(self, rows: Mapping[str, _Row], encode: Encoder, categories: Sequence[str] | None) -> None:
        self.rows, self.encode, self._categories = rows, encode, categories
        self._warner = Warner()

    @property
    def fingerprint(self) -> dict[str, object]:
        digest = hashlib.sha256(repr([(key, row) for key, row in self.rows.items()]).encode()).hexdigest()[:16]
        names = None if self._categories is None else list(self._categories)
        return {"digest": digest, "categories": names, **self.encode.fingerprint}

    def load(self, key: str) -> TextExample:
        row = self.rows[key]
        try:
            if row.reason:
                raise UnreadableExampleError(row.reason)
            target = _target(row.label, self._categories)
            found = self.encode(row.text)
        except UnreadableExampleError as error:
            raise UnreadableExampleError(f"{key}: {error}") from error
        if found.n_all > len(found.ids):
            self._warner.once(
                "cut",
                f"{key} has {found.n_all} tokens and is cut to {len(found.ids)}, as are others that are longer. Pass a "
                "larger max_length if the model takes it.",
            )
        baselines = torch.where(found.special, found.ids, self.encode.baseline_id)
        shown = self.encode.shown(found.ids)
        return TextExample(key, found.ids, target, shown, found.special, baselines, found.arguments)


def _target(label: int | str, categories: Sequence[str] | None) -> int:
    """The class of a label: an index, or a name."""
    index = _class_of(label, categories)
    if index is None:
        known = "an index from 0" if categories is None else f"an index from 0 or one of {', '.join(categories)}"
        raise UnreadableExampleError(f"label {label!r} is no class; wanted {known}.")
    return index


def _class_of(label: int | str, categories: Sequence[str] | None) -> int | None:
    text = str(label).strip()
    if text.isascii() and text.isdigit() and (categories is None or int(text) < len(categories)):
        return int(text)
    names = [name.lower() for name in categories or ()]
    return names.index(text.lower()) if text.lower() in names else None


def _rows_of(path: Path, header: bool | None, categories: Sequence[str] | None) -> dict[str, _Row]:
    """Rows of a file by key."""
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except FileNotFoundError as error:
        raise MissingFileError(f"There is no file {str(path)!r}; wanted lines of text, tab and class.") from error
    except OSError as error:
        raise InvalidArgumentError(f"{str(path)!r} cannot be read: {error}. Wanted a file of lines.") from error
    rows = {number: _row(line) for number, line in enumerate(lines, start=1) if line.strip()}
    if rows and header is not False:
        first = next(iter(rows))
        own = rows[first]
        if header or (not own.reason and _class_of(own.label, categories) is None):
            del rows[first]
    return {f"{path.name}:{number}": row for number, row in rows.items()}


def _row(line: bytes) -> _Row:
    try:
        text, tab, label = line.decode("utf-8").rpartition("\t")
    except UnicodeDecodeError as error:
        return _Row(reason=f"it is no text in UTF-8 ({error.reason} at byte {error.start}).")
    if not tab:
        return _Row(reason=f"{label.strip()[:60]!r} has no tab; wanted a text, a tab and a class.")
    return _Row(text.strip(), label.strip())
