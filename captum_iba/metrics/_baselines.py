"""What takes the place of a removed unit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from captum_iba._warn import Warner
from captum_iba.bottleneck.smoothing import GaussianBlur
from captum_iba.errors import InvalidArgumentError, InvalidTypeError, NonFiniteError
from captum_iba.metrics._units import Tensors

One: TypeAlias = Literal["zero", "mean", "blur"] | float | Tensor
Baselines: TypeAlias = One | tuple[One, ...] | Callable[[Tensors], Tensors]

# InputIBA's deviation for photos of 224 pixels a side
_BLUR, _BLUR_SIDE = 15.0, 224


def make_baselines(
    baselines: Baselines, inputs: tuple[Tensor, ...], index: tuple[Tensor, ...], as_tuple: bool
) -> tuple[Tensor, ...]:
    """Return a baseline of each input's shape and type.

    Args:
        baselines: ``"zero"``; ``"mean"``, each example's mean over the positions, channel by channel; ``"blur"``, the
            input under a Gaussian of 15 pixels for a side of 224, else in proportion; a number; a tensor that
            broadcasts to the input; a tuple with one of these for each input; or a callable
            ``baselines(inputs) -> tensor(s)``.
        inputs (tuple[Tensor, ...]): each (N, ...).
        index (tuple[Tensor, ...]): numbers of the units, which tell the axes of the positions.
        as_tuple (bool): the callable gets and returns a tuple.

    Returns:
        tuple[Tensor, ...]: one for each input.

    Raises:
        InvalidArgumentError: an unknown word, a shape that does not fit, or a mean of integers.
        InvalidTypeError: something else.
        NonFiniteError: NaN or infinity.
    """
    if callable(baselines) and not isinstance(baselines, Tensor):
        made = baselines(inputs if as_tuple else inputs[0])
        baselines = made if isinstance(made, tuple) else (made,)
    chosen = baselines if isinstance(baselines, tuple) else (baselines,) * len(inputs)
    if len(chosen) != len(inputs):
        raise InvalidArgumentError(f"baselines has {len(chosen)} entries for {len(inputs)} inputs; wanted as many.")
    made_all = tuple(_one(b, x, _axes(x, i)) for b, x, i in zip(chosen, inputs, index, strict=True))
    for tensor in made_all:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise NonFiniteError("baselines contain NaN or infinity; wanted finite values.")
    return made_all


def _axes(inputs: Tensor, index: Tensor) -> tuple[int, ...]:
    """Axes of the positions: those of a map, else the first one that units divide."""
    if inputs.ndim >= 4:
        return tuple(range(2, inputs.ndim))
    return next(((axis,) for axis in range(1, inputs.ndim) if index.shape[axis] > 1), (1,))


def _one(baseline: object, inputs: Tensor, axes: tuple[int, ...]) -> Tensor:
    if isinstance(baseline, str):
        return _named(baseline, inputs, axes)
    if isinstance(baseline, (int, float)) and not isinstance(baseline, bool):
        if not math.isfinite(baseline):
            raise NonFiniteError(f"baselines={baseline!r}; wanted a finite number.")
        if baseline != int(baseline) and not inputs.is_floating_point():
            raise InvalidArgumentError(f"baselines={baseline!r} for inputs of {inputs.dtype}; wanted an integer.")
        return torch.full_like(inputs[:1], baseline).expand_as(inputs)
    if isinstance(baseline, Tensor):
        try:
            return baseline.detach().to(inputs).expand_as(inputs)
        except RuntimeError:
            raise InvalidArgumentError(
                f"baselines of shape {list(baseline.shape)} do not broadcast to inputs of shape {list(inputs.shape)}."
            ) from None
    raise InvalidTypeError(
        f"baselines is a {type(baseline).__name__}; wanted 'zero', 'mean', 'blur', a number, a tensor or a callable."
    )


def _named(name: str, inputs: Tensor, axes: tuple[int, ...]) -> Tensor:
    if name == "zero":
        return torch.zeros_like(inputs[:1]).expand_as(inputs)
    if name not in ("mean", "blur"):
        raise InvalidArgumentError(
            f"baselines={name!r}; wanted 'zero', 'mean', 'blur', a number, a tensor or a callable."
        )
    if not inputs.is_floating_point():
        raise InvalidArgumentError(
            f"baselines={name!r} has no meaning for integers ({inputs.dtype}); pass the id that stands for nothing, "
            "such as tokenizer.mask_token_id."
        )
    if name == "mean":
        return inputs.mean(dim=axes, keepdim=True).expand_as(inputs)
    if inputs.ndim < 4:
        raise InvalidArgumentError(f"baselines='blur' is for maps; found inputs of shape {list(inputs.shape)}.")
    sizes = tuple(inputs.shape[2:])
    warner = Warner()
    warner.given(("sigma", sizes))  # a window cut at a narrow image is what a blur of it means
    return GaussianBlur(_BLUR * max(sizes) / _BLUR_SIDE, sizes, warner)(inputs)
