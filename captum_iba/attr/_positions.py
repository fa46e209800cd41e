"""Which positions of a batch the bottleneck covers: neither padding nor what the user protects."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_iba.attr._layout import positions_of
from captum_iba.errors import InvalidArgumentError, InvalidTypeError, MismatchedArgumentsError

PADDING_NAME = "attention_mask"
ProtectedPositions = Tensor | Sequence[int] | None


def padding_of(forward_func: Callable[..., Any], inputs: Any, additional: tuple[Any, ...] | None) -> Tensor | None:
    """The attention mask (N, T) among a model's arguments, by its name; None where there is none.

    Args:
        forward_func (Callable): the model.
        inputs (Mapping or tuple): keyword arguments, or the first positional ones.
        additional (tuple, optional): further positional arguments.
    """
    if isinstance(inputs, Mapping):
        found = inputs.get(PADDING_NAME)
    else:
        function = forward_func.forward if isinstance(forward_func, nn.Module) else forward_func
        try:
            found = inspect.signature(function).bind_partial(*inputs, *(additional or ())).arguments.get(PADDING_NAME)
        except (TypeError, ValueError):  # arguments that do not fit are told of when the model runs
            return None
    return found if isinstance(found, Tensor) and found.ndim == 2 else None


@dataclass(frozen=True)
class Positions:
    """The positions of a batch.

    Attributes:
        real (Tensor or None): bool, 1 on the channels' axis and else of the features' shape; False on padding. None
            without any.
        exempt (Tensor or None): likewise; True on padding and where the user protects. None where there is neither.
    """

    real: Tensor | None = None
    exempt: Tensor | None = None

    @property
    def place(self) -> Tensor | None:
        """(N, T), each token's number among its example's real ones; None where that is its position."""
        if self.real is None or self.real.ndim != 3:
            return None
        real = self.real.flatten(1)
        place = real.cumsum(dim=1).sub(1).clamp_min(0)
        in_order = torch.arange(real.shape[1], device=real.device).expand_as(place)
        return None if bool((place == in_order)[real].all()) else place


def real_positions(
    mask: Any, shape: Sequence[int], channel_dim: int, layer_name: str, name: str = "position_mask"
) -> Tensor | None:
    """A mask of real positions, laid out to broadcast against features of this shape; None if all are real.

    Args:
        mask (Tensor): (N, *positions), nonzero where real.
        shape (Sequence[int]): of the features, with the batch axis.
        channel_dim (int): their axis of channels.
        layer_name (str): for messages.
        name (str, optional): of the argument, for messages.

    Raises:
        InvalidTypeError: no tensor.
        InvalidArgumentError: another shape, or an example without a real position.
    """
    mask = _of_positions(mask, shape, channel_dim, layer_name, name)
    empty = (~mask.flatten(1).any(dim=1)).nonzero().flatten()
    if len(empty):
        raise InvalidArgumentError(
            f"{name} marks no position of example {int(empty[0])} as real; wanted at least one nonzero entry in each "
            "row. Leave empty examples out of the batch, and look at the order of the model's arguments."
        )
    return None if bool(mask.all()) else mask.unsqueeze(channel_dim)


def fits(mask: Tensor, shape: Sequence[int], channel_dim: int) -> bool:
    """Whether a mask (N, *positions) belongs to features of this shape."""
    return tuple(mask.shape) == (shape[0], *positions_of(shape[1:], channel_dim))


def _of_positions(mask: Any, shape: Sequence[int], channel_dim: int, layer_name: str, name: str) -> Tensor:
    if not isinstance(mask, Tensor):
        raise InvalidTypeError(f"{name} is a {type(mask).__name__}; wanted a tensor such as the attention mask.")
    wanted = [shape[0], *positions_of(shape[1:], channel_dim)]
    if len(wanted) < 2:
        raise InvalidArgumentError(
            f"{name} has no meaning at {layer_name}, whose features of shape {list(shape)} have no positions. Leave it "
            "out, or choose a layer of tokens."
        )
    if not fits(mask, shape, channel_dim):
        raise InvalidArgumentError(
            f"{name} has shape {list(mask.shape)}, but the features of {layer_name} have shape {list(shape)}; wanted "
            f"{wanted}, one entry for each position."
        )
    return mask != 0


def find_positions(
    position_mask: Tensor | None,
    padding: Tensor | None,
    protected_positions: ProtectedPositions,
    features: Tensor,
    channel_dim: int,
    layer_name: str,
) -> Positions:
    """Which positions the bottleneck covers.

    Args:
        position_mask (Tensor, optional): the user's, see :meth:`LayerIBA.attribute`.
        padding (Tensor, optional): the model's own attention mask, used where the user gives none and it fits.
        protected_positions (Tensor or Sequence[int], optional): the user's.
        features (Tensor): the layer's features.
        channel_dim (int): their axis of channels.
        layer_name (str): for messages.

    Raises:
        InvalidTypeError, InvalidArgumentError: a mask that does not fit, or nothing left to cover.
    """
    name = "position_mask"
    if position_mask is None and padding is not None and fits(padding, features.shape, channel_dim):
        position_mask, name = padding, f"The model's {PADDING_NAME}"
    real = None
    if position_mask is not None:
        real = real_positions(position_mask, features.shape, channel_dim, layer_name, name)
        real = None if real is None else real.to(features.device)
    if protected_positions is None:
        return Positions(real, None if real is None else ~real)
    protected = _protected(protected_positions, real, features, channel_dim, layer_name)
    exempt = protected if real is None else protected | ~real
    nothing = exempt.flatten(1).all(dim=1).nonzero().flatten()
    if len(nothing):
        raise InvalidArgumentError(
            f"protected_positions covers every position of example {int(nothing[0])}; wanted at least one that the "
            "bottleneck may put noise on."
        )
    return Positions(real, exempt)


def _protected(
    chosen: Tensor | Sequence[int], real: Tensor | None, features: Tensor, channel_dim: int, layer_name: str
) -> Tensor:
    """Bool, laid out like ``real``: the positions that the user protects."""
    name = "protected_positions"
    if isinstance(chosen, Tensor):
        mask = _of_positions(chosen, features.shape, channel_dim, layer_name, name)
        return mask.unsqueeze(channel_dim).to(features.device)
    if not isinstance(chosen, Sequence) or not all(type(index) is int for index in chosen):
        raise InvalidTypeError(
            f"{name} is {chosen!r}; wanted positions such as [0], or a tensor (N, T), nonzero at protected ones."
        )
    if features.ndim != 3 or channel_dim != 2:
        raise InvalidArgumentError(
            f"{name}={list(chosen)} counts tokens, but {layer_name} gives features of shape {list(features.shape)}; "
            "pass a tensor with one entry for each position."
        )
    there = torch.ones_like(features[..., 0], dtype=torch.bool) if real is None else real.flatten(1)
    place = there.cumsum(dim=1) - 1  # counted among the real ones, so that padding does not matter
    count = there.sum(dim=1)
    protected = torch.zeros_like(there)
    for index in chosen:
        short = (count < (index + 1 if index >= 0 else -index)).nonzero().flatten()
        if len(short):
            raise MismatchedArgumentsError(
                f"{name} has {index}, but example {int(short[0])} has {int(count[short[0]])} positions."
            )
        protected |= there & (place == (index if index >= 0 else count[:, None] + index))
    return protected.unsqueeze(channel_dim)
