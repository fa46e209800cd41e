"""Cuts a padded batch into small ones of sentences that are about as long, without the padding they do not need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_iba._captum import TargetType
from captum_iba.attr._signature import in_order, parameters_of
from captum_iba.errors import InvalidArgumentError, InvalidTypeError, MismatchedArgumentsError


def as_positional(forward_func: Callable[..., Any], inputs: Any) -> tuple[Any, tuple[Any, ...]]:
    """Keyword arguments in the order of the model's signature: the first one, and those behind it.

    Args:
        forward_func (Callable): the model.
        inputs (Mapping): by name, as a tokenizer gives them.

    Raises:
        InvalidArgumentError: the signature does not have one of the names, or its first argument is missing.
    """
    names = [parameter.name for parameter in parameters_of(forward_func)]
    unknown = [name for name in inputs if name not in names]
    if unknown or not names or names[0] not in inputs:
        raise InvalidArgumentError(
            f"inputs has {list(inputs)}, and the model's arguments are {names[:8]}; wanted some of these, {names[:1]} "
            "among them. Leave the others out, or pass tensors in order: inputs and additional_forward_args."
        )
    return inputs[names[0]], in_order(forward_func, inputs)


@dataclass(frozen=True)
class PaddedBatch:
    """A call's arguments.

    Attributes:
        inputs (Tensor): (N, ...).
        additional (tuple or None): further arguments.
        mask (Tensor or None): (N, T), nonzero where a token is real.
        target: in one of Captum's forms.
    """

    inputs: Tensor
    additional: tuple[Any, ...] | None
    mask: Tensor | None
    target: TargetType

    def __post_init__(self) -> None:
        if not isinstance(self.inputs, Tensor) or self.inputs.ndim < 2 or len(self.inputs) == 0:
            raise InvalidTypeError(
                f"inputs is {_kind(self.inputs)}; wanted token ids (N, T), N at least 1, or a mapping of the model's "
                "arguments as a tokenizer gives it."
            )
        if self.mask is not None:
            empty = (self.mask == 0).flatten(1).all(dim=1).nonzero().flatten()
            if len(empty):
                raise InvalidArgumentError(
                    f"The mask marks no token of example {int(empty[0])} as real; wanted at least one in each row. "
                    "Leave empty examples out of the batch."
                )
        n_targets = None
        if isinstance(self.target, list) or (isinstance(self.target, Tensor) and self.target.numel() > 1):
            n_targets = len(self.target)
        if n_targets not in (None, len(self.inputs)):
            raise MismatchedArgumentsError(
                f"target has {n_targets} entries for {len(self.inputs)} examples; wanted one class for all, or one for "
                "each."
            )

    def parts(self, most: int) -> Iterator[tuple[list[int], PaddedBatch]]:
        """Rows, and batches of at most so many of them, from the shortest to the longest, cut behind the longest."""
        lengths = self._lengths()
        order = sorted(range(len(self.inputs)), key=lambda row: lengths[row])
        for start in range(0, len(order), most):
            rows = order[start : start + most]
            yield rows, self._part(rows, max(lengths[row] for row in rows))

    def _lengths(self) -> list[int]:
        """Places up to each example's last real token; padding in front stays, as positions may count from there."""
        if self.mask is None:
            return [0] * len(self.inputs)
        places = torch.arange(1, self.mask.shape[1] + 1, device=self.mask.device)
        lengths: list[int] = ((self.mask != 0) * places).amax(dim=1).tolist()
        return lengths

    def _can_be_cut(self) -> bool:
        """Whether all that has tokens has them on its second axis; masks of pairs of tokens have them on two."""
        if self.mask is None or self.inputs.shape[1] != self.mask.shape[1]:
            return False
        n = self.mask.shape[1]
        return not any(isinstance(value, Tensor) and n in value.shape[2:] for value in self.additional or ())

    def _part(self, rows: list[int], length: int) -> PaddedBatch:
        def cut(value: Any) -> Any:
            if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != len(self.inputs):
                return value
            chosen = value[torch.tensor(rows, device=value.device)]
            is_long = can_be_cut and value.ndim > 1 and value.shape[1] == self.inputs.shape[1]
            return chosen[:, :length] if is_long else chosen

        can_be_cut = self._can_be_cut()

        target: Any = self.target
        if isinstance(target, list):
            target = [target[row] for row in rows]
        elif isinstance(target, Tensor) and target.numel() > 1:
            target = target[torch.tensor(rows, device=target.device)]
        additional = None if self.additional is None else tuple(cut(value) for value in self.additional)
        return PaddedBatch(cut(self.inputs), additional, None if self.mask is None else cut(self.mask), target)


def as_batch(
    forward_func: Callable[..., Any],
    inputs: Any,
    additional: tuple[Any, ...] | None,
    find_mask: Callable[[Tensor, tuple[Any, ...] | None], Tensor | None],
    target: TargetType,
) -> PaddedBatch:
    """A call's arguments, given in order or by name; ``find_mask(inputs, additional)`` gives the real tokens."""
    if isinstance(inputs, Mapping):
        if additional is not None:
            raise InvalidArgumentError(
                "inputs is a mapping of all arguments, and additional_forward_args is there too; pass one of the two."
            )
        inputs, additional = as_positional(forward_func, inputs)
    return PaddedBatch(inputs, additional, find_mask(inputs, additional), target)


def _kind(value: Any) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def names_of_tokens(tokenizer: Any, ids: Tensor, mask: Tensor) -> list[list[str]]:
    """Each example's real tokens as text; their numbers without a tokenizer.

    Raises:
        InvalidTypeError: it cannot turn ids into tokens.
    """
    counts: Sequence[int] = (mask != 0).sum(dim=1).tolist()
    if tokenizer is None:
        return [[str(place) for place in range(count)] for count in counts]
    if not callable(getattr(tokenizer, "convert_ids_to_tokens", None)):
        raise InvalidTypeError(
            f"tokenizer is a {type(tokenizer).__name__}; wanted one with convert_ids_to_tokens, as transformers' have."
        )
    return [list(tokenizer.convert_ids_to_tokens(row[keep].tolist())) for row, keep in zip(ids, mask != 0, strict=True)]
