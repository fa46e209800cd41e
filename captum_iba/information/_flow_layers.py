"""The layers of an information flow: which modules they are, and which of them a plain chain has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from captum_iba.errors import InvalidArgumentError, InvalidTypeError, LayerNotExecutedError
from captum_iba.information._flow_weights import WEIGHTED, is_unit_wise


def resolve_layers(model: nn.Module, layers: Sequence[str | nn.Module] | None) -> dict[str, nn.Module]:
    """Modules by their dotted names, in order.

    Args:
        model (nn.Module): the model.
        layers (Sequence[str or nn.Module], optional): names or modules. Default: None, those of a chain.

    Returns:
        dict[str, nn.Module]: at least one.

    Raises:
        InvalidTypeError: the model is no module, or layers are neither names nor modules.
        InvalidArgumentError: no layers or one twice, or None for a model that is no chain.
        LayerNotExecutedError: the model has no such layer.
    """
    if not isinstance(model, nn.Module):
        raise InvalidTypeError(f"model is a {type(model).__name__}; wanted a torch.nn.Module.")
    names = {module: name for name, module in model.named_modules(remove_duplicate=True)}
    if layers is None:
        return {names[module]: module for module in _of_chain(model)}
    if isinstance(layers, (str, nn.Module)) or not isinstance(layers, Sequence):
        raise InvalidTypeError(f"layers is a {type(layers).__name__}; wanted a list of names or modules, in order.")
    found = [_find(model, names, layer) for layer in layers]
    if not found or len(set(found)) != len(found):
        raise InvalidArgumentError(
            f"layers names {', '.join(repr(names[m]) for m in found) or 'nothing'}; wanted at least one, each once."
        )
    return {names[module]: module for module in found}


def _find(model: nn.Module, names: dict[nn.Module, str], layer: Any) -> nn.Module:
    if isinstance(layer, nn.Module):
        if layer not in names:
            raise LayerNotExecutedError(f"The model holds no such {type(layer).__name__}; pass one of its own modules.")
        return layer
    if not isinstance(layer, str):
        raise InvalidTypeError(f"layers holds a {type(layer).__name__}; wanted dotted names or modules.")
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if layer not in modules or not layer:
        known = ", ".join(repr(name) for name in list(modules)[1:9])
        raise LayerNotExecutedError(f"The model has no layer {layer!r}; it has {known}{', ...' * (len(modules) > 9)}.")
    return modules[layer]


def _of_chain(model: nn.Module) -> list[nn.Module]:
    """After each linear or convolutional module what follows it unit by unit, and last the module with the logits."""
    chain = list(_leaves(model))
    places = [place for place, module in enumerate(chain) if isinstance(module, WEIGHTED)]
    if not isinstance(model, nn.Sequential) or not places or not all(map(_is_known, chain)):
        raise InvalidArgumentError(
            f"layers=None for a {type(model).__name__}; wanted an nn.Sequential of linear or convolutional layers and "
            "what follows them unit by unit. Name the layers: the hidden ones in order, and last the one with the "
            "logits."
        )
    hidden = [_last_of_units(chain, start, end) for start, end in pairwise(places)]
    return [*hidden, chain[places[-1]]]


def _is_known(module: nn.Module) -> bool:
    return isinstance(module, (*WEIGHTED, nn.Softmax, nn.LogSoftmax)) or is_unit_wise(module)


def _last_of_units(chain: list[nn.Module], start: int, end: int) -> nn.Module:
    last = start
    while last + 1 < end and not isinstance(chain[last + 1], (nn.Flatten, nn.Unflatten)):
        last += 1
    return chain[last]


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, nn.Sequential):
        for child in module:
            yield from _leaves(child)
    else:
        yield module
