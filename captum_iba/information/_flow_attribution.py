"""A class's column of a global attribution matrix, in the shape of the inputs."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from captum_iba.errors import InvalidTypeError, MismatchedArgumentsError, TargetError, TargetIndexError
from captum_iba.information._flow_record import Record


def expand_rows(
    attribution: Tensor, found: Record, inputs: Tensor | tuple[Tensor], target: Any
) -> Tensor | tuple[Tensor]:
    """See :meth:`NeuralInformationFlow.attribute`."""
    if isinstance(inputs, tuple):
        if len(inputs) != 1:
            raise InvalidTypeError(f"inputs is a tuple of {len(inputs)}; wanted the one tensor that the model takes.")
        return (_expand(attribution, found, inputs[0], target),)
    return _expand(attribution, found, inputs, target)


def _expand(attribution: Tensor, found: Record, inputs: Tensor, target: Any) -> Tensor:
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        raise InvalidTypeError(f"inputs is a {type(inputs).__name__}; wanted a floating-point tensor.")
    shape = tuple(inputs.shape[1:])
    fits = shape == found.input_shape
    if not found.input_elements:  # channels stand for all their positions, however many
        fits = len(shape) == len(found.input_shape) and shape[:1] == found.input_shape[:1]
    if inputs.ndim < 2 or not fits:
        raise MismatchedArgumentsError(
            f"inputs has shape {list(inputs.shape)}, the data of fit (n, {', '.join(map(str, found.input_shape))})."
        )
    columns = _classes(target, len(inputs), attribution.shape[1])
    rows = attribution.T.to(inputs.device, inputs.dtype)[columns.to(inputs.device)]
    if found.input_elements:
        return rows.reshape(inputs.shape)
    return rows.reshape(*rows.shape, *[1] * (inputs.ndim - 2)).expand(inputs.shape).clone()


def _classes(target: Any, n_examples: int, n_classes: int) -> Tensor:
    """One class for each example, from what Captum's methods take as a target for outputs (n, classes)."""
    if target is None:
        if n_classes != 1:
            raise TargetError(f"target=None for {n_classes} classes; wanted a class index, or one for each example.")
        target = 0
    if isinstance(target, tuple) and len(target) == 1:
        target = target[0]
    if isinstance(target, Tensor):
        if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            raise TargetError(f"target is of {target.dtype}; wanted integers.")
        target = target.flatten().tolist() if target.numel() != 1 else int(target)
    if isinstance(target, Integral) and not isinstance(target, bool):
        target = [int(target)] * n_examples
    is_list = isinstance(target, list) and all(isinstance(t, Integral) and not isinstance(t, bool) for t in target)
    if not is_list or len(target) != n_examples:
        raise TargetError(f"target={target!r}; wanted a class index, or a list or tensor of {n_examples} of them.")
    if wrong := [t for t in target if not 0 <= t < n_classes]:
        raise TargetIndexError(f"target names class {wrong[0]}; the model has classes 0 to {n_classes - 1}.")
    return torch.tensor([int(t) for t in target], dtype=torch.long)
