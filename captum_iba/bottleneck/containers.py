"""Layers hand on tensors in many wrappings; here the first floating tensor is found in one, and exchanged."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from captum_iba.errors import IntegerFeaturesError, NoTensorError


def find_features(container: Any, layer_name: str, side: str = "output") -> Tensor:
    """Return the first floating-point tensor of a layer's output (or input).

    Args:
        container (Any): tensor, tuple, list, named tuple, mapping, data class or model output; nested ones are not
            searched.
        layer_name (str): for messages.
        side (str, optional): ``"output"`` or ``"input"``, for messages. Default: ``"output"``.

    Returns:
        Tensor: the features.

    Raises:
        IntegerFeaturesError: there are tensors, but none is floating.
        NoTensorError: there is no tensor.

    Examples::

        >>> import torch
        >>> find_features((None, torch.ones(2)), "attention").tolist()
        [1.0, 1.0]
    """
    tensors = [value for _, value in _entries(container) if isinstance(value, Tensor)]
    for tensor in tensors:
        if tensor.is_floating_point():
            return tensor
    if tensors:
        raise IntegerFeaturesError(
            f"The {side} of {layer_name} is of dtype {tensors[0].dtype}; noise needs floating-point features. "
            + (
                "Choose the layer's output (attribute_to_layer_input=False)."
                if side == "input"
                else "Choose a later layer, for token ids the embedding's output."
            )
        )
    raise NoTensorError(
        f"The {side} of {layer_name} holds no tensor, found {type(container).__name__}. Choose a layer whose {side} is "
        "a tensor, or a tuple, list or mapping with a tensor in it."
    )


def replace_features(container: Any, tensor: Tensor) -> Any:
    """Return the container, of the same type, with its first floating tensor exchanged."""
    for key, value in _entries(container):
        if isinstance(value, Tensor) and value.is_floating_point():
            return _rebuild(container, [(key, tensor)])
    raise NoTensorError(f"No floating-point tensor in {type(container).__name__} to replace.")


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply a function to every tensor in nested containers, which are made anew; other objects are handed on."""
    if isinstance(value, Tensor):
        return function(value)
    if not _is_container(value):
        return value
    return _rebuild(value, [(key, map_tensors(function, entry)) for key, entry in _entries(value)])


def leaves_in(value: Any) -> list[Any]:
    """Everything in nested containers that is no container itself, in order."""
    if not _is_container(value):
        return [value]
    return [leaf for _, entry in _entries(value) for leaf in leaves_in(entry)]


def _is_container(value: Any) -> bool:
    is_record = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return isinstance(value, (tuple, list, Mapping)) or is_record


def _entries(container: Any) -> list[tuple[Any, Any]]:
    if isinstance(container, Tensor):
        return [(None, container)]
    if isinstance(container, (tuple, list)):
        return list(enumerate(container))
    if isinstance(container, Mapping):  # model outputs of transformers are mappings, and records too
        return list(container.items())
    if _is_container(container):
        return [(field.name, getattr(container, field.name)) for field in dataclasses.fields(container)]
    return []


def _rebuild(container: Any, changes: list[tuple[Any, Any]]) -> Any:
    """A new container of the same type with some entries exchanged."""
    if isinstance(container, Tensor):
        return changes[0][1]
    if isinstance(container, Mapping):
        if dataclasses.is_dataclass(container):
            return type(container)(**{**container, **dict(changes)})
        new = copy.copy(container)
        for key, entry in changes:
            new[key] = entry  # type: ignore[index]
        return new
    if isinstance(container, (tuple, list)):
        items = list(container)
        for index, entry in changes:
            items[index] = entry
        # named tuples take their fields one by one
        return type(container)(*items) if hasattr(container, "_fields") else type(container)(items)
    return dataclasses.replace(container, **dict(changes))
