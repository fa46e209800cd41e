"""Prompt, answer and contrast as token ids, checked before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import torch
from captum.attr import TextTemplateInput, TextTokenInput
from torch import Tensor, nn

from captum_iba._captum import _convert_ids_to_pretty_tokens
from captum_iba._warn import Warner
from captum_iba.attr._llm_template import NO_VALUE, encode_with_offsets, owners, value_spans
from captum_iba.errors import InvalidArgumentError, InvalidTypeError, TargetIndexError

Tokens = str | int | Sequence[int] | Tensor


@dataclass(frozen=True)
class Prompt:
    """The prompt's tokens, and the columns that they are reported in.

    Attributes:
        inp (TextTokenInput or TextTemplateInput): as the user passed it.
        ids (Tensor): (1, n_tokens).
        columns (Tensor): (n_tokens,), the column of each token, ``NO_VALUE`` for those that are in none.
        n_columns (int): how many.
    """

    inp: Any
    ids: Tensor
    columns: Tensor
    n_columns: int
    names: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, inp: Any, tokenizer: Any, warner: Warner) -> Prompt:
        """Read a Captum input.

        Raises:
            InvalidTypeError: another kind of input.
            InvalidArgumentError: no tokens, or none that is to be explained.
        """
        if isinstance(inp, TextTokenInput):
            prompt = _token_prompt(inp)
        elif isinstance(inp, TextTemplateInput):
            prompt = _template_prompt(inp, tokenizer, warner)
        else:
            hint = "Wrap the text: TextTokenInput(text, tokenizer)." if isinstance(inp, str) else "Describe it as text."
            raise InvalidTypeError(
                f"inp is a {type(inp).__name__}; wanted Captum's TextTokenInput or TextTemplateInput. {hint}"
            )
        if prompt.n_columns == 0 or prompt.ids.numel() == 0:
            raise InvalidArgumentError(
                f"inp has {prompt.ids.numel()} tokens in {prompt.n_columns} columns; wanted at least one of each. Pass "
                "a text that is not empty, and skip_tokens that leave something of it."
            )
        return prompt

    def in_columns(self, bits: Tensor) -> Tensor:
        """Sums over each column's tokens: (rows, n_tokens) to (rows, n_columns)."""
        columns = self.columns.to(bits.device)
        found = bits.new_zeros(len(bits), self.n_columns)
        found.index_add_(1, columns[columns != NO_VALUE], bits[:, columns != NO_VALUE])
        if not isinstance(self.inp, TextTemplateInput) or self.inp.mask is None:
            return found
        # values of one group are one feature, and end with the same attribution
        group = torch.tensor(self.inp.formatted_mask, device=bits.device)
        grouped = bits.new_zeros(len(bits), self.inp.n_itp_features).index_add_(1, group, found)
        formatted: Tensor = self.inp.format_attr(grouped)
        return formatted


def _token_prompt(inp: TextTokenInput) -> Prompt:
    ids = inp.inp_tensor
    shown = torch.ones_like(ids, dtype=torch.bool) if inp.itp_mask is None else inp.itp_mask
    columns = torch.where(shown, shown.cumsum(dim=1) - 1, NO_VALUE)
    return Prompt(inp, ids, columns[0], int(shown.sum()), list(inp.values))


def _template_prompt(inp: TextTemplateInput, tokenizer: Any, warner: Warner) -> Prompt:
    text, spans = value_spans(inp)
    ids, offsets = encode_with_offsets(text, tokenizer)
    columns = owners(offsets, spans)
    without = [repr(inp.values[index]) for index, places in enumerate(spans) if places and index not in columns]
    without = [value for value in without if value != "''"]
    if without:
        warner.once(
            ("template", text),
            f"{', '.join(without)} of the template's values have no token of their own: their characters lie in tokens "
            "with more characters of another value, which has the bits. Put a space between values.",
        )
    return Prompt(inp, torch.tensor([ids], dtype=torch.long), torch.tensor(columns), len(spans), list(inp.values))


def as_tokens(value: Tokens, name: str, tokenizer: Any) -> Tensor:
    """Token ids (n,) from a text, one id, several ids, or a tensor of them.

    Raises:
        InvalidTypeError: anything else.
        InvalidArgumentError: no token, or a tensor of another shape.
    """
    if isinstance(value, str):
        ids = torch.tensor(list(tokenizer.encode(value, add_special_tokens=False)), dtype=torch.long)
    elif isinstance(value, Tensor):
        if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool or value.ndim > 1:
            raise InvalidArgumentError(
                f"{name} is a tensor of shape {list(value.shape)} and dtype {value.dtype}; wanted token ids of shape "
                "(n,)."
            )
        ids = value.detach().reshape(-1).long().cpu()
    else:
        several = value if isinstance(value, Sequence) else [value]
        if not all(isinstance(token, Integral) and not isinstance(token, bool) for token in several):
            raise InvalidTypeError(f"{name}={value!r}; wanted a str, or token ids as integers, a list or a tensor.")
        ids = torch.tensor([int(token) for token in several], dtype=torch.long)
    return ids


def without_skipped(ids: Tensor, skip_tokens: Sequence[int] | Sequence[str] | None, tokenizer: Any) -> Tensor:
    """Token ids that are left when some are skipped.

    Raises:
        InvalidTypeError: skip_tokens is no list of ids or of tokens.
    """
    if not skip_tokens:
        return ids
    if isinstance(skip_tokens, (str, bytes)) or not isinstance(skip_tokens, Sequence):
        raise InvalidTypeError(
            f"skip_tokens is a {type(skip_tokens).__name__}; wanted a list of token ids or of tokens. Pass gen_args by "
            "name."
        )
    skipped: list[Any] = list(skip_tokens)
    if all(isinstance(token, str) for token in skipped):
        # None: a token that this vocabulary does not have
        skipped = [token for token in tokenizer.convert_tokens_to_ids(skipped) if token is not None]
    return ids[~torch.isin(ids, as_tokens(skipped, "skip_tokens", tokenizer))]


def contrast_tokens(contrast: Tokens, answer: Tensor, one_for_all: bool, tokenizer: Any) -> Tensor:
    """The other token at each position of the answer.

    Args:
        contrast: as the user passed it.
        answer (Tensor): token ids (n,).
        one_for_all (bool): whether a single token may stand at each position.
        tokenizer: of the model.

    Raises:
        InvalidArgumentError: another number of tokens, or tokens that are the answer's own.
    """
    others = as_tokens(contrast, "contrast", tokenizer)
    if one_for_all and len(others) == 1:
        others = others.expand(len(answer))
    if len(others) != len(answer):
        raise InvalidArgumentError(
            f"contrast={contrast!r} has {len(others)} tokens and the answer {len(answer)}: {answer.tolist()}. Wanted "
            "one for each answer token" + (", or a single one for all." if one_for_all else ".")
        )
    same = others == answer
    if bool(same.any() if one_for_all else same.all()):
        at = int(same.int().argmax())
        raise InvalidArgumentError(
            f"contrast={contrast!r} has the answer's own token {int(answer[at])} at position {at}, and nothing tells "
            "a token from itself. "
            + ('Pass another, or per="sequence", which adds up over positions.' if one_for_all else "Pass another.")
        )
    return others


def assert_fits(model: nn.Module, prompt: Tensor, answer: Tensor) -> None:
    """Refuse token ids that the model has no embedding for, and more of them than it has positions.

    Raises:
        TargetIndexError: an id beyond the vocabulary.
        InvalidArgumentError: too many tokens.
    """
    size = n_embeddings(model)
    for name, ids in (("inp", prompt), ("target", answer)):
        if size is not None and not bool(((ids >= 0) & (ids < size)).all()):
            wrong = ids[(ids < 0) | (ids >= size)].flatten()[0]
            raise TargetIndexError(
                f"{name} holds token id {int(wrong)}, and {type(model).__name__} has {size}. Pass the model's own "
                "tokenizer."
            )
    most, n = n_positions(model), prompt.numel() + len(answer) - 1
    if most is not None and n > most:
        raise InvalidArgumentError(
            f"The prompt's {prompt.numel()} tokens and the answer's {len(answer)} (the last of which is not read) take "
            f"{n} positions, and {type(model).__name__} has {most}. Shorten inp or target."
        )


def n_embeddings(model: nn.Module) -> int | None:
    """Size of the vocabulary that the model reads; None where it does not tell."""
    try:
        weight = model.get_input_embeddings().weight  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    return int(weight.shape[0])


def n_positions(model: nn.Module) -> int | None:
    """Most tokens that the model reads at once; None where its configuration does not tell."""
    most = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return int(most) if isinstance(most, Integral) and int(most) > 0 else None


def readable(ids: Tensor, tokenizer: Any) -> list[str]:
    """The answer's tokens as text, as Captum shows them; one by one where the tokenizer cannot place them."""
    try:
        return list(_convert_ids_to_pretty_tokens(ids, tokenizer))
    except (NotImplementedError, TypeError, KeyError, IndexError):
        return [str(tokenizer.decode(int(token))) for token in ids]
