"""Layers hand on tensors in many wrappings; here the first floating tensor is found in one, and exchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from captum_iba.errors import IntegerFeaturesError, NoTensorError


def find_features(container: Any, layer_name: str, side: str = "output") -> Tensor:
    """Return the first floating-point tensor of a layer's output (or input).

    Args:
        container (Any): tensor, tuple, list, named tuple, mapping or model output; nested ones are not searched.
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
            return _rebuild(container, key, tensor)
    raise NoTensorError(f"No floating-point tensor in {type(container).__name__} to replace.")


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply a function to every tensor in nested tuples, lists and mappings; other objects are handed on."""
    if isinstance(value, Tensor):
        return function(value)
    entries = _entries(value)
    for key, entry in entries:
        value = _rebuild(value, key, map_tensors(function, entry))
    return value


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors of a nested container, in order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(note, value)
    return found


def _entries(container: Any) -> list[tuple[Any, Any]]:
    if isinstance(container, Tensor):
        return [(None, container)]
    if isinstance(container, (tuple, list)):
        return list(enumerate(container))
    if isinstance(container, dict):  # model outputs of transformers are dicts
        return list(container.items())
    return []


def _rebuild(container: Any, key: Any, entry: Any) -> Any:
    if key is None:
        return entry
    if isinstance(container, dict):
        return type(container)(**{**container, key: entry})
    items = [entry if index == key else item for index, item in enumerate(container)]
    if hasattr(container, "_fields"):  # named tuples take their fields one by one
        return type(container)(*items)
    return type(container)(items)
