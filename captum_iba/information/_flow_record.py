"""What the units of a model's layers do on some data, and what links them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from captum_iba.errors import (
    InvalidArgumentError,
    LayerNotExecutedError,
    LayerReusedError,
    NonFiniteError,
    NoTensorError,
)
from captum_iba.information._flow_bypass import sole_links
from captum_iba.information._flow_data import FlowData, logits_of, predicting
from captum_iba.information._flow_weights import CONVOLUTIONS, WEIGHTED, Link, link_of

InputUnits: TypeAlias = Literal["auto", "channels", "elements"]

INPUTS = "inputs"
# A unit is constant if its values differ by less than this share of the most that a unit of its layer differs by.
CONSTANT_WITHIN = 1e-6
# or by no more than so many roundings of its value
_ROUNDINGS = 4
# in 16 bits several roundings are levels that a layer may well take on purpose
_COARSE_ROUNDINGS = 1


@dataclass(frozen=True)
class Record:
    """Activations of the layers, inputs first.

    Attributes:
        names (tuple[str, ...]): of the layers.
        units (tuple[Tensor, ...]): (n, units) for each layer, float64; of feature maps the mean over positions.
        constant (tuple[Tensor, ...]): (units,) bool: the same value for every example and position.
        links (tuple[Link, ...]): what lies between one layer and the next.
        labels (Tensor or None): (n,).
        input_shape (tuple[int, ...]): shape of one input.
        input_elements (bool): each element of an input is a unit, not each channel.
    """

    names: tuple[str, ...]
    units: tuple[Tensor, ...]
    constant: tuple[Tensor, ...]
    links: tuple[Link, ...]
    labels: Tensor | None
    input_shape: tuple[int, ...]
    input_elements: bool


def record(model: nn.Module, layers: Mapping[str, nn.Module], data: FlowData, input_units: InputUnits) -> Record:
    """Run the data through the model and keep what its layers do.

    Raises:
        InvalidArgumentError: layers in another order than they run in, units that cannot be told, a last layer that
            does not have as many units as the model's output, or no example.
        LayerNotExecutedError: a layer did not run.
        LayerReusedError: one ran more than once.
        NoTensorError: one has no tensor output.
        NonFiniteError: a NaN or an infinity in the inputs or in a layer.
    """
    watch = _Watch(layers)
    collected = [_Units() for _ in range(len(layers) + 1)]
    labels: list[Tensor] = []
    shape: tuple[int, ...] | None = None
    with predicting(model), watch.hooked(model):
        for inputs, batch_labels in data:
            watch.clear()
            logits = logits_of(model, inputs)
            between = watch.between()
            elements = _are_elements(inputs, between[0], input_units)
            shape = shape or tuple(inputs.shape[1:])
            _assert_shape(inputs, shape)
            first = inputs.to(logits.device)
            tensors = [first.flatten(1) if elements else first, *watch.outputs()]
            producers = [[], *between]
            for name, units, tensor, ran in zip((INPUTS, *layers), collected, tensors, producers, strict=True):
                units.add(_channels_first(tensor, name, ran), name)
            _assert_logits(list(layers)[-1], collected[-1].count, logits)
            labels += [] if batch_labels is None else [batch_labels]
    if shape is None:
        raise InvalidArgumentError("data holds no example; wanted some hundreds.")
    found = _as_record((INPUTS, *layers), collected, between, labels, shape, elements)
    return replace(found, links=sole_links(model, layers, found.links, data))


def _as_record(
    names: tuple[str, ...],
    collected: list[_Units],
    between: list[list[nn.Module]],
    labels: list[Tensor],
    shape: tuple[int, ...],
    elements: bool,
) -> Record:
    counts = [units.count for units in collected]
    links = [
        link_of(ran, *sizes, pair) for ran, sizes, pair in zip(between, pairwise(counts), pairwise(names), strict=True)
    ]
    n = len(collected[0].matrix())
    known = torch.cat(labels) if labels else None
    if known is not None and len(known) != n:
        raise InvalidArgumentError(f"{len(known)} of {n} examples have labels; wanted all or none.")
    units, constant = zip(*((u.matrix(), u.constant()) for u in collected), strict=True)
    return Record(names, units, constant, tuple(links), known, shape, elements)


class _Units:
    """One layer's units over all batches."""

    def __init__(self) -> None:
        self._means: list[Tensor] = []
        self._lowest: Tensor | None = None
        self._highest: Tensor | None = None

    @property
    def count(self) -> int:
        return self._means[0].shape[1]

    def add(self, maps: Tensor, name: str) -> None:
        """Add (n, units, positions)."""
        if not bool(torch.isfinite(maps).all()):
            what = "the inputs" if name == INPUTS else f"layer {name!r}"
            raise NonFiniteError(f"A NaN or an infinity stands in {what}; clean the data, or use another model.")
        if self._means and maps.shape[1] != self.count:
            raise InvalidArgumentError(f"Layer {name!r} has {maps.shape[1]} units, and {self.count} in another batch.")
        self._means.append(maps.double().mean(dim=2))
        lowest, highest = maps.amin(dim=(0, 2)).double(), maps.amax(dim=(0, 2)).double()
        self._lowest = lowest if self._lowest is None else torch.minimum(self._lowest, lowest)
        self._highest = highest if self._highest is None else torch.maximum(self._highest, highest)
        kind = torch.finfo(maps.dtype)
        self._rounding = kind.eps * (_ROUNDINGS if kind.bits > 16 else _COARSE_ROUNDINGS)

    def matrix(self) -> Tensor:
        """(n, units); units that vary by rounding alone do not vary, as their ranks would seem to mean something."""
        means = torch.cat(self._means)
        lowest, highest = self._range()
        size = torch.maximum(lowest.abs(), highest.abs())
        still = means.amax(dim=0) - means.amin(dim=0) <= self._rounding * size
        return torch.where(still | self.constant(), means[:1], means)

    def constant(self) -> Tensor:
        """(units,) bool."""
        lowest, highest = self._range()
        spread, size = highest - lowest, torch.maximum(lowest.abs(), highest.abs())
        return spread <= torch.maximum(CONSTANT_WITHIN * spread.max(), self._rounding * size)

    def _range(self) -> tuple[Tensor, Tensor]:
        assert self._lowest is not None
        assert self._highest is not None
        return self._lowest, self._highest


class _Watch:
    """Hooks on the layers, and on every module that has no other in it."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = dict(layers)
        self.clear()

    def clear(self) -> None:
        self._ran: list[nn.Module] = []
        self._places: dict[str, int] = {}
        self._outputs: dict[str, Tensor] = {}

    @contextmanager
    def hooked(self, model: nn.Module) -> Iterator[None]:
        handles = []
        try:
            for name, module in model.named_modules():
                is_leaf = isinstance(module, WEIGHTED) or next(module.children(), None) is None
                if is_leaf and "parametrizations" not in name.split("."):
                    handles.append(module.register_forward_hook(self._note))
            handles += [module.register_forward_hook(self._keep(name)) for name, module in self._layers.items()]
            yield
        finally:
            for handle in handles:
                handle.remove()

    def outputs(self) -> list[Tensor]:
        return [self._outputs[name] for name in self._layers]

    def between(self) -> list[list[nn.Module]]:
        """Modules that ran after one layer's output was there, up to the next one's."""
        if missing := [name for name in self._layers if name not in self._places]:
            raise LayerNotExecutedError(f"The model did not run {', '.join(map(repr, missing))}.")
        places = [0, *(self._places[name] for name in self._layers)]
        if places != sorted(places):
            ran = ", ".join(map(repr, sorted(self._places, key=lambda name: self._places[name])))
            raise InvalidArgumentError(f"layers is not in the order in which they run, which is {ran}.")
        return [self._ran[start:end] for start, end in pairwise(places)]

    def _note(self, module: nn.Module, _inputs: Any, _output: Any) -> None:
        self._ran.append(module)

    def _keep(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if name in self._places:
                raise LayerReusedError(f"Layer {name!r} ran more than once in one pass; its units have no one value.")
            if not isinstance(output, Tensor) or not output.is_floating_point():
                raise NoTensorError(f"Layer {name!r} returns a {type(output).__name__}; wanted a floating tensor.")
            self._places[name] = len(self._ran)
            # what follows in place would change it
            self._outputs[name] = output.detach().clone()

        return hook


def _are_elements(inputs: Tensor, first: list[nn.Module], input_units: InputUnits) -> bool:
    if input_units != "auto":
        return input_units == "elements"
    reader = next((module for module in first if isinstance(module, WEIGHTED)), None)
    return not isinstance(reader, CONVOLUTIONS)


def _channels_first(tensor: Tensor, name: str, ran: list[nn.Module]) -> Tensor:
    """(n, units, positions) of (n, units) or of feature maps."""
    if tensor.ndim == 2:
        return tensor.unsqueeze(2)
    writer = next((module for module in reversed(ran) if isinstance(module, WEIGHTED)), None)
    if tensor.ndim < 2 or (name != INPUTS and not isinstance(writer, CONVOLUTIONS)):
        raise InvalidArgumentError(
            f"Layer {name!r} gives {list(tensor.shape)}; wanted (n, units), or feature maps (n, channels, ...) of a "
            "convolution. Choose a layer after the positions are pooled."
        )
    return tensor.flatten(2)


def _assert_shape(inputs: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(inputs.shape[1:]) != shape:
        raise InvalidArgumentError(f"Inputs have shapes {list(shape)} and {list(inputs.shape[1:])}; wanted one shape.")


def _assert_logits(name: str, units: int, logits: Tensor) -> None:
    if units != logits.shape[1]:
        raise InvalidArgumentError(
            f"The last layer, {name!r}, has {units} units, the model's output {logits.shape[1]}; end with the layer "
            "that gives the logits."
        )
