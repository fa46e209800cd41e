"""Removal of units: what a layer gets of them goes into its bias."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_iba._numbers import is_integer
from captum_iba.errors import InvalidArgumentError, UnsupportedModelError
from captum_iba.information._flow_data import FlowData, logits_of, predicting
from captum_iba.information._flow_record import CONSTANT_WITHIN, Record
from captum_iba.information._flow_weights import (
    CONVOLUTIONS,
    Link,
    Weighted,
    clear_input,
    dense_weight,
    input_width,
)
from captum_iba.information.information_flow import InformationFlow

# Outputs that differ by more than this share of the largest are not the same up to rounding.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-4}
_COARSE = 2e-2


@dataclass(frozen=True)
class PruneReport:
    """What was removed, and what came of it on the data of ``fit``.

    Attributes:
        what (str): ``"constant"``, ``"null"``, or ``"chosen"``.
        units (dict[str, tuple[int, ...]]): removed units by layer; layers without one are left out.
        n (int): number of examples.
        largest_difference (float): largest absolute difference of an output.
        largest_output (float): largest absolute output before, to compare with.
        accuracy_before (float or None): share of examples whose largest logit is the label's; of a single output, whose
            sign is the label's. None without labels.
        accuracy_after (float or None): likewise.
    """

    what: str
    units: dict[str, tuple[int, ...]]
    n: int
    largest_difference: float
    largest_output: float
    accuracy_before: float | None
    accuracy_after: float | None

    @property
    def n_units(self) -> int:
        """Number of removed units."""
        return sum(map(len, self.units.values()))

    def describe(self) -> str:
        """The report in words."""
        if not self.n_units:
            nothing = {
                "constant": "No hidden unit is constant on this data",
                "null": "Every hidden unit varies and has a flow above the null",
                "chosen": "No unit was named",
            }
            return f"{nothing[self.what]}: there is nothing to remove, and the model is unchanged."
        where = ", ".join(f"{len(units)} of layer {name}" for name, units in self.units.items())
        text = (
            f"Removed {self.n_units} unit{'s' * (self.n_units > 1)} ({where}); on {self.n} examples no output changed "
            f"by more than {self.largest_difference:.2g} (largest output {self.largest_output:.3g})"
        )
        if self.accuracy_before is not None:
            text += f"; accuracy {self.accuracy_before:.4f} before, {self.accuracy_after:.4f} after"
        return text + ". On other data a removed unit may matter: check there too."


@dataclass(frozen=True)
class Pruning:
    """A model, its layers, and the data on which it is compared with what is left of it."""

    model: nn.Module
    layers: Mapping[str, nn.Module]
    found: Record
    data: FlowData


def prune(pruning: Pruning, result: InformationFlow, what: Any, show_progress: bool) -> tuple[nn.Module, PruneReport]:
    """See :meth:`NeuralInformationFlow.prune`."""
    from tqdm.auto import tqdm

    name, units = _chosen(result, what)
    is_exact = name == "constant"
    places = [place for place, layer in enumerate(result.layers) if layer in units]
    # one deepcopy of both, so that the modules of the links are the copy's own
    smaller, links = copy.deepcopy((pruning.model, pruning.found.links))
    for place in tqdm(places, desc="Pruning", unit="layer", disable=not show_progress):
        layer = result.layers[place]
        _remove(smaller, links[place - 1], links[place], units[layer], pruning.data, is_exact, layer)
    report = _compare(pruning, smaller, name, units)
    if is_exact:
        _assert_same(report, next((p.dtype for p in pruning.model.parameters()), torch.float32))
    return smaller, report


def _chosen(result: InformationFlow, what: Any) -> tuple[str, dict[str, tuple[int, ...]]]:
    if isinstance(what, Mapping):
        return "chosen", _as_units(result, what)
    if what not in ("constant", "null"):
        raise InvalidArgumentError(f'what={what!r}; wanted "constant", "null", or units by layer.')
    constant = result.units_of("constant")
    if what == "constant":
        return what, constant
    if result.mode == "poster":
        raise InvalidArgumentError('mode="poster" has no null; use mode="pairwise", or prune("constant").')
    null = result.units_of("null")
    names = [name for name in result.layers if name in constant or name in null]
    return what, {name: tuple(sorted((*constant.get(name, ()), *null.get(name, ())))) for name in names}


def _as_units(result: InformationFlow, what: Mapping[Any, Any]) -> dict[str, tuple[int, ...]]:
    hidden = dict(zip(result.layers[1:-1], result.units[1:-1], strict=True))
    chosen = {}
    for name, units in what.items():
        if name not in hidden:
            raise InvalidArgumentError(f"There is no hidden layer {name!r}; wanted {', '.join(map(repr, hidden))}.")
        wanted = f"indices below {len(hidden[name])}"
        if not isinstance(units, Sequence) or isinstance(units, str):
            raise InvalidArgumentError(f"Units of layer {name!r} are a {type(units).__name__}; wanted {wanted}.")
        for unit in units:
            if not is_integer(unit, 0) or unit >= len(hidden[name]):
                raise InvalidArgumentError(f"Layer {name!r} has no unit {unit!r}; wanted {wanted}.")
        if units:
            chosen[name] = tuple(sorted({int(unit) for unit in units}))
    return chosen


def _remove(
    model: nn.Module, writer: Link, reader: Link, units: Sequence[int], data: FlowData, is_exact: bool, layer: str
) -> None:
    """Fold what a layer gets of some units into its bias, and cut them off, in place."""
    if reader.module is None:
        raise UnsupportedModelError(f"Units of layer {layer!r} cannot be removed: {reader.reason}")
    module, features = reader.module, reader.features_of(units)
    mean, spread, largest = _what_it_reads(model, module, data, layer)
    if is_exact:
        _assert_exact(module, mean[features], spread[features], largest, layer)
    replaced = torch.zeros_like(mean)
    replaced[features] = mean[features]
    with torch.no_grad():
        shift = dense_weight(module).double().sum(dim=2) @ replaced
        if bool((shift != 0).any()):
            bias = module.weight.new_zeros(len(shift)) if module.bias is None else module.bias
            shifted = (bias.double() + shift).to(bias.dtype)
            if module.bias is None:
                module.bias = nn.Parameter(shifted, requires_grad=module.weight.requires_grad)
            else:
                module.bias.copy_(shifted)
        clear_input(module, features)
        if writer.module is not None:
            rows = writer.rows_of(units)
            writer.module.weight[rows] = 0
            if writer.module.bias is not None:
                writer.module.bias[rows] = 0


def _what_it_reads(model: nn.Module, module: Weighted, data: FlowData, layer: str) -> tuple[Tensor, Tensor, float]:
    """Mean and spread of each input feature over examples and positions, and the largest spread of all."""
    means, lowest, highest, n_runs = [], [], [], 0

    def look(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal n_runs
        n_runs += 1
        read = inputs[0].detach()
        is_map = isinstance(module, CONVOLUTIONS)
        rows = read.movedim(1, -1).flatten(0, -2) if is_map else read.flatten(0, -2)
        means.append(rows.double().sum(dim=0))
        counts.append(len(rows))
        lowest.append(rows.amin(dim=0).double())
        highest.append(rows.amax(dim=0).double())

    counts: list[int] = []
    n_batches = _run_all(model, module, look, data)
    if n_runs != n_batches:
        raise UnsupportedModelError(
            f"The {type(module).__name__} that reads layer {layer!r} runs {n_runs / n_batches:g} times in one pass; "
            "units can be removed where it runs once."
        )
    spread = torch.stack(highest).amax(dim=0) - torch.stack(lowest).amin(dim=0)
    assert len(spread) == input_width(module)
    return torch.stack(means).sum(dim=0) / sum(counts), spread, float(spread.max())


def _run_all(model: nn.Module, module: nn.Module, look: Callable[..., None], data: FlowData) -> int:
    handle = module.register_forward_pre_hook(look)
    n_batches = 0
    try:
        with predicting(model):
            for inputs, _ in data:
                logits_of(model, inputs)
                n_batches += 1
    finally:
        handle.remove()
    return n_batches


def _assert_exact(module: Weighted, mean: Tensor, spread: Tensor, largest: float, layer: str) -> None:
    name = type(module).__name__
    rounding = torch.finfo(module.weight.dtype).eps * 4 * float(mean.abs().max())
    # some slack beside what made the unit constant, as what is in between may stretch it
    if float(spread.max()) > max(100 * CONSTANT_WITHIN * largest, rounding):
        raise UnsupportedModelError(
            f"Constant units of layer {layer!r} are not constant where the {name} reads them: what is in between mixes "
            "units or positions. Name a layer nearer to it."
        )
    if isinstance(module, CONVOLUTIONS) and _pads_zeros(module) and bool((mean != 0).any()):
        raise UnsupportedModelError(
            f"The {name} that reads layer {layer!r} pads with zeros: at the border it sees 0 beside the constant "
            f"{float(mean.abs().max()):.3g}, which no bias can replace. prune({{layer: units}}) measures the change."
        )


def _pads_zeros(module: Any) -> bool:
    if module.padding_mode != "zeros" or module.padding == "valid":
        return False
    if module.padding == "same":
        return any(size > 1 for size in module.kernel_size)
    return any(width > 0 for width in module.padding)


def _compare(pruning: Pruning, smaller: nn.Module, what: str, units: dict[str, tuple[int, ...]]) -> PruneReport:
    """Both models on the same batches, in one go: a loader that shuffles gives others the next time."""
    difference = largest = 0.0
    n = 0
    correct = [0, 0]
    with predicting(pruning.model), predicting(smaller):
        for inputs, labels in pruning.data:
            before, after = logits_of(pruning.model, inputs), logits_of(smaller, inputs)
            difference = max(difference, float((before.double() - after.double()).abs().max()))
            largest = max(largest, float(before.abs().max()))
            n += len(inputs)
            if labels is not None:
                correct = [c + _n_correct(o, labels) for c, o in zip(correct, (before, after), strict=True)]
    before_after = [c / n for c in correct] if pruning.found.labels is not None else [None, None]
    return PruneReport(what, units, n, difference, largest, *before_after)


def _n_correct(logits: Tensor, labels: Tensor) -> int:
    said = logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(dim=1)
    return int((said.long() == labels.to(said.device)).sum())


def _assert_same(report: PruneReport, dtype: torch.dtype) -> None:
    allowed = _ROUNDING.get(dtype, _COARSE) * report.largest_output
    if report.largest_difference > allowed:
        raise UnsupportedModelError(
            f"Without its {report.n_units} constant units the outputs change by {report.largest_difference:.3g}, "
            f"more than rounding ({allowed:.2g}): something beside the next layer reads them, such as a residual "
            'connection, or weights are shared. Use prune("null") or name units, which measure the change.'
        )
