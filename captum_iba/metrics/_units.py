"""Units of removal: the tiles, tokens or groups that a metric removes from the inputs, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from captum_iba.errors import InvalidArgumentError, InvalidTypeError
from captum_iba.metrics._maps import assert_finite_maps, resized

Tensors: TypeAlias = Tensor | tuple[Tensor, ...]

IMAGE_TILE = 14


@dataclass(frozen=True)
class Units:
    """Which unit each position belongs to, and what an attribution gives each unit.

    Attributes:
        index (tuple[Tensor, ...]): for each input int64, broadcastable to it, first axis 1 or N: a unit's number in
            its example, counted from 0 without gaps, so that it does not depend on the other examples; -1 where
            nothing is ever removed.
        sums (Tensor): (N, K), float64, attribution of each unit.
        means (Tensor): (N, K), float64, its mean over the unit, by which units rank, as they may differ in size.
        removable (Tensor): bool, (N, K): the example has so many units; K is the most that any has.
    """

    index: tuple[Tensor, ...]
    sums: Tensor
    means: Tensor
    removable: Tensor

    @property
    def count(self) -> Tensor:
        """Number of removable units of each example, (N,)."""
        return self.removable.sum(dim=1)


def make_units(
    inputs: tuple[Tensor, ...],
    attributions: Tensors,
    feature_mask: Tensors | None,
    tile_size: int | None,
) -> Units:
    """Divide the inputs into units and score them.

    Args:
        inputs (tuple[Tensor, ...]): each (N, ...).
        attributions (Tensor or tuple[Tensor, ...]): one for each input, see :func:`degradation`.
        feature_mask (Tensor or tuple[Tensor, ...], optional): numbers of units, as in Captum; negative where nothing
            is ever removed.
        tile_size (int, optional): side of the square tiles of maps; with None 14 on maps and 1 elsewhere.

    Returns:
        Units: numbers and scores.

    Raises:
        InvalidArgumentError: shapes that do not fit, or tiles larger than the input.
        NonFiniteError: NaN or infinity in the attributions.
    """
    maps = as_tuple(attributions, "attributions")
    if len(maps) != len(inputs):
        raise InvalidArgumentError(f"attributions holds {len(maps)} tensors for {len(inputs)} inputs; wanted as many.")
    maps = tuple(_fitted(m.detach(), x, i) for i, (m, x) in enumerate(zip(maps, inputs, strict=True)))
    if feature_mask is None:
        numbers = _tiles(inputs, maps, tile_size)
    else:
        numbers = _given(inputs, as_tuple(feature_mask, "feature_mask"))
    return Units(numbers, *_sums(maps, numbers))


def as_tuple(value: Any, name: str) -> tuple[Tensor, ...]:
    """A tensor, or tuple of tensors, as a tuple.

    Raises:
        InvalidTypeError: something else; ``name`` is for the message.
    """
    tensors = value if isinstance(value, tuple) else (value,)
    for index, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            place = f"{name}[{index}]" if isinstance(value, tuple) else name
            raise InvalidTypeError(f"{place} is a {type(tensor).__name__}; wanted a tensor.")
    return tensors


def _fitted(attribution: Tensor, inputs: Tensor, number: int) -> Tensor:
    """An attribution with as many axes as its input, resized to it; channels may be one or all."""
    assert_finite_maps(attribution)
    values = attribution.to(inputs.device).double()
    if inputs.ndim >= 4 and values.ndim == inputs.ndim - 1 and values.shape[0] == inputs.shape[0]:
        values = values.unsqueeze(1)  # a map without axis for the channels
    if inputs.ndim == 3 and values.ndim == 2:
        values = values.unsqueeze(2)  # one value a token
    if inputs.ndim == 2 and values.ndim == 3 and values.shape[2] == 1:
        values = values.squeeze(2)  # LayerIBA's bits of tokens
    if values.ndim != inputs.ndim or values.shape[0] != inputs.shape[0]:
        raise _misfit(attribution, inputs, number)
    if inputs.ndim >= 4 and values.shape[2:] != inputs.shape[2:]:
        values = resized(values, tuple(inputs.shape[2:]))
    if any(have not in (1, want) for have, want in zip(values.shape[1:], inputs.shape[1:], strict=True)):
        raise _misfit(attribution, inputs, number)
    return values


def _misfit(attribution: Tensor, inputs: Tensor, number: int) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"attributions[{number}] of shape {list(attribution.shape)} do not fit inputs of shape {list(inputs.shape)}; "
        "wanted one map an example: (N, 1, h, w), (N, C, h, w) or (N, h, w) for images (N, C, H, W), (N, T) for tokens."
    )


def _tiles(inputs: tuple[Tensor, ...], maps: tuple[Tensor, ...], tile_size: int | None) -> tuple[Tensor, ...]:
    if tile_size is not None and (isinstance(tile_size, bool) or not isinstance(tile_size, int) or tile_size < 1):
        raise InvalidArgumentError(f"tile_size={tile_size!r}; wanted an integer of at least 1, or None.")
    numbers, first = [], 0
    for x, attribution in zip(inputs, maps, strict=True):
        axes = _unit_axes(x, attribution)
        index = torch.zeros([1] * x.ndim, dtype=torch.long, device=x.device)
        for axis in axes:
            size = x.shape[axis]
            side = tile_size or (IMAGE_TILE if x.ndim >= 4 else 1)
            n_tiles = size // side
            if n_tiles == 0:
                raise InvalidArgumentError(
                    f"tile_size={side} is larger than the input, {list(x.shape)}; pass a smaller one."
                )
            along = (torch.arange(size, device=x.device) // side).clamp_max(n_tiles - 1)
            index = index * n_tiles + along.view([-1 if a == axis else 1 for a in range(x.ndim)])
        numbers.append(index + first)
        first += int(index.max()) + 1
    return tuple(numbers)


def _unit_axes(inputs: Tensor, attribution: Tensor) -> tuple[int, ...]:
    """All axes behind the channels on maps, the one behind the batch on tokens and vectors."""
    if inputs.ndim == 3 and attribution.shape[2] > 1:
        if attribution.shape[1] > 1 or inputs.shape[1] == 1:
            raise InvalidArgumentError(
                f"attributions of shape {list(attribution.shape)} for inputs of shape {list(inputs.shape)} leave open "
                "which axis holds the positions. Sum over the channels: (N, T, 1) for tokens, (N, 1, L) for signals; "
                "or pass feature_mask."
            )
        return (2,)
    return tuple(range(2, inputs.ndim)) if inputs.ndim >= 4 else (1,)


def _given(inputs: tuple[Tensor, ...], masks: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Numbers of a user's feature_mask, made consecutive over all inputs of each example."""
    if len(masks) != len(inputs):
        raise InvalidArgumentError(f"feature_mask holds {len(masks)} tensors for {len(inputs)} inputs; wanted as many.")
    for mask, x in zip(masks, inputs, strict=True):
        if mask.is_floating_point() or mask.dtype == torch.bool or mask.ndim != x.ndim or not _broadcasts(mask, x):
            raise InvalidArgumentError(
                f"feature_mask of shape {list(mask.shape)} and type {mask.dtype} does not fit inputs of shape "
                f"{list(x.shape)}; wanted integers with as many axes, each of the input's size or 1."
            )
    rows = max(mask.shape[0] for mask in masks)
    spread = [mask.to("cpu", torch.long).expand(rows, *mask.shape[1:]) for mask in masks]
    by_input = zip(*(_consecutive([mask[row] for mask in spread]) for row in range(rows)), strict=True)
    return tuple(torch.stack(parts).to(x.device) for parts, x in zip(by_input, inputs, strict=True))


def _consecutive(masks: Sequence[Tensor]) -> list[Tensor]:
    """One example's numbers, in the same order, without gaps; -1 for all negative ones."""
    known = torch.unique(torch.cat([mask.flatten() for mask in masks]))
    known = known[known >= 0]
    return [torch.where(mask < 0, -1, torch.searchsorted(known, mask.contiguous())) for mask in masks]


def _broadcasts(mask: Tensor, inputs: Tensor) -> bool:
    return all(have in (1, want) for have, want in zip(mask.shape, inputs.shape, strict=True))


def _sums(maps: tuple[Tensor, ...], numbers: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Sum and mean of the attribution over each unit, and whether the unit has elements, each (N, K)."""
    n_units = max(0, *(int(index.max()) for index in numbers)) + 1  # one that no example has, where nothing is removed
    spread = [_spread(values, index) for values, index in zip(maps, numbers, strict=True)]

    def total(parts: Sequence[Tensor]) -> Tensor:
        # unit -1 gets a column of its own, which is dropped
        sums = torch.zeros(len(maps[0]), n_units + 1, dtype=torch.float64, device=maps[0].device)
        for part, (_, unit, _) in zip(parts, spread, strict=True):
            sums.scatter_add_(1, unit + 1, part)
        return sums[:, 1:]

    sums = total([values for values, _, _ in spread])
    sizes = total([torch.full_like(values, size) for values, _, size in spread])
    filled = sizes.clamp_min(1)
    equal = ((sizes == sizes.amax(dim=1, keepdim=True)) | (sizes == 0)).all(dim=1, keepdim=True)
    if bool(equal.all()):
        return sums, sums / filled, sizes > 0
    # summed from the lowest value on, so that rounding does not tell units of a constant map by their sizes
    lowest = torch.stack([values.amin(dim=1) / size for values, _, size in spread]).amin(dim=0)[:, None]
    means = lowest + total([values - size * lowest for values, _, size in spread]) / filled
    return sums, torch.where(equal, sums / filled, means), sizes > 0


def _spread(values: Tensor, index: Tensor) -> tuple[Tensor, Tensor, int]:
    """The attribution of each element and the number of its unit, both (N, elements); positions in an element."""
    channels = 1 if values.ndim >= 4 or index.shape[-1] > 1 else 2
    size = 1
    for axis in range(1, values.ndim):  # an axis that units do not divide is summed, as channels are
        if index.shape[axis] == 1 and values.shape[axis] > 1:
            size *= values.shape[axis] if axis != channels else 1
            values = values.sum(dim=axis, keepdim=True)
    shape = [max(a, b) for a, b in zip(values.shape, index.shape, strict=True)]
    if shape[1:] != list(values.shape[1:]):
        raise InvalidArgumentError(
            f"feature_mask divides an axis that the attributions of shape {list(values.shape)} have summed up; "
            "pass attributions of the input's full shape."
        )
    return values.flatten(1), index.expand(shape).flatten(1), size
