"""From a text to what a model takes of it, by a tokenizer of transformers, or one that is called alike."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_iba.errors import InvalidArgumentError, InvalidTypeError, UnreadableExampleError

IDS, SPECIAL = "input_ids", "special_tokens_mask"
# tokenizers without a limit of their own state a huge number
_NO_LIMIT = 1_000_000


@dataclass(frozen=True, eq=False)
class Encoded:
    """One text.

    Attributes:
        ids (Tensor): (T,), int64.
        special (Tensor): (T,), bool: the tokenizer's own tokens.
        arguments (Mapping[str, Tensor]): (T,) each, further arguments of the model by name.
        n_all (int): tokens that the text has without a limit.
    """

    ids: Tensor
    special: Tensor
    arguments: Mapping[str, Tensor]
    n_all: int


class Encoder:
    """A tokenizer with the choices that go with it.

    Args:
        tokenizer (Any): called with a text it returns a mapping with ``input_ids``, ``special_tokens_mask`` and further
            arguments of the model, as those of transformers do.
        max_length (int, optional): most tokens, special ones included. Default: None: the tokenizer's own limit.
        baseline_token (str, optional): stands for nothing. Default: None: the mask token, else the padding token, else
            the unknown one.

    Raises:
        InvalidTypeError: a tokenizer that cannot be called.
        InvalidArgumentError: a max_length below 1, or a token that the tokenizer does not have.
    """

    def __init__(self, tokenizer: Any, max_length: int | None = None, baseline_token: str | None = None) -> None:
        if not callable(tokenizer):
            raise InvalidTypeError(
                f"tokenizer is a {type(tokenizer).__name__}; wanted one of transformers, such as "
                "AutoTokenizer.from_pretrained(folder)."
            )
        if max_length is not None and (type(max_length) is not int or max_length < 1):
            raise InvalidArgumentError(f"max_length={max_length!r}; wanted an integer of at least 1, or None.")
        own = getattr(tokenizer, "model_max_length", None)
        self.tokenizer = tokenizer
        self.max_length = max_length or (own if isinstance(own, int) and own < _NO_LIMIT else None)
        self.baseline_token, self.baseline_id = _baseline(tokenizer, baseline_token)

    @property
    def fingerprint(self) -> dict[str, object]:
        """Tokenizer and choices, fit for JSON."""
        vocabulary = sorted(getattr(self.tokenizer, "get_vocab", dict)().items())
        return {
            "tokenizer": type(self.tokenizer).__name__,
            "vocabulary": hashlib.sha256(repr(vocabulary).encode()).hexdigest()[:16],
            "max_length": self.max_length,
            "baseline_token": self.baseline_token,
        }

    def __call__(self, text: str) -> Encoded:
        """One text without padding.

        Raises:
            UnreadableExampleError: it has no tokens but special ones.
        """
        limit = {} if self.max_length is None else {"truncation": True, "max_length": self.max_length}
        found = self.tokenizer(text, return_special_tokens_mask=True, **limit)
        ids = torch.tensor(found[IDS], dtype=torch.long)
        special = torch.tensor(found[SPECIAL]).bool()
        if ids.ndim != 1 or bool(special.all()):
            raise UnreadableExampleError(f"{text[:60]!r} has no tokens but the tokenizer's own; wanted a text.")
        n_all = len(ids)
        if n_all == self.max_length:
            n_all = len(self.tokenizer(text, verbose=False)[IDS])
        others = {name: torch.tensor(found[name]) for name in found if name not in (IDS, SPECIAL)}
        return Encoded(ids, special, {name: value for name, value in others.items() if value.shape == ids.shape}, n_all)

    def shown(self, ids: Tensor) -> tuple[str, ...]:
        """Tokens as they are read; what cannot be decoded alone by its name in the vocabulary."""
        texts = [self.tokenizer.decode([token], clean_up_tokenization_spaces=False).strip() for token in ids.tolist()]
        names = self.tokenizer.convert_ids_to_tokens(ids.tolist())
        return tuple(text or str(name) for text, name in zip(texts, names, strict=True))


def _baseline(tokenizer: Any, token: str | None) -> tuple[str, int]:
    """The token that stands for nothing, and its id."""
    if token is None:
        known = (getattr(tokenizer, name, None) for name in ("mask_token", "pad_token", "unk_token"))
        token = next((own for own in known if own is not None), None)
        if token is None:
            raise InvalidArgumentError(
                "The tokenizer has neither a mask token nor one for padding or unknown words; pass baseline_token=..., "
                "the token that stands for nothing."
            )
    number = tokenizer.convert_tokens_to_ids(token)
    if number is None or (number == tokenizer.unk_token_id and token != tokenizer.unk_token):
        raise InvalidArgumentError(f"baseline_token={token!r} is no token of the tokenizer's vocabulary.")
    return str(token), int(number)
