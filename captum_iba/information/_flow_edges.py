"""The edges of an information flow: estimates, what of them exceeds the null, and what a mode makes of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from captum_iba.errors import InvalidArgumentError, UnsupportedModelError
from captum_iba.information import _flow_modes as modes
from captum_iba.information._flow_null import (
    estimates_against_labels,
    independent_estimates,
    permuted_matrices,
    quiet,
)
from captum_iba.information._flow_record import Record
from captum_iba.information._flow_weights import Link
from captum_iba.information.estimate import BITS_PER_NAT, Estimate, Unit
from captum_iba.information.estimator import Estimator, columns_of
from captum_iba.information.mutual_information import generator_of, mutual_information, mutual_information_matrix
from captum_iba.information.permutation import NULL_QUANTILE

# the null has a stream of its own, so that it does not depend on what was estimated before
_NULL_STREAM = 1_000_003


@dataclass(frozen=True)
class EdgeSettings:
    """How edges are estimated; the arguments of :class:`NeuralInformationFlow`."""

    estimator: Estimator
    mode: modes.Mode
    redundancy_weight: float
    mask_zero_weights: bool
    weighted: bool
    labels: bool
    n_permutations: int
    family_wise: bool
    unit: Unit
    seed: int


@dataclass(frozen=True)
class Layer:
    """Edges from one layer to the next; see :class:`InformationFlow`."""

    estimates: Tensor
    null_quantile: Tensor
    saturated: Tensor
    edges: Tensor
    estimator: str
    warnings: tuple[str, ...]


@dataclass
class Edges:
    """Pairs of layers that are estimated, with what they were estimated from."""

    settings: EdgeSettings
    nulls: dict[int, Tensor] = field(default_factory=dict)
    done: list[tuple[Tensor, Tensor, float, Layer]] = field(default_factory=list)

    def known(self, x: Tensor, y: Tensor, level: float) -> Layer | None:
        """What was estimated from the same activations."""
        for a, b, at, layer in self.done:
            if at == level and a.shape == x.shape and b.shape == y.shape and bool((a == x).all() and (b == y).all()):
                return layer
        return None


def edges_of(edges: Edges, found: Record, show_progress: bool) -> list[Layer]:
    """Estimate the edges between all neighbouring layers.

    Raises:
        InvalidArgumentError: labels that there are not, or too few permutations.
        UnsupportedModelError: weights are wanted where there are none.
    """
    settings = edges.settings
    from tqdm.auto import tqdm

    variables = [*found.units[:-1], _last(found, settings)]
    widths = [_width(variable, found) for variable in variables]
    level = _level(settings, sum(a * b for a, b in pairwise(widths)))
    strengths = [_strengths(link, settings) for link in found.links]
    layers = []
    names = [f"{a} to {b}" for a, b in pairwise(found.names)]
    bar = tqdm(names, desc="Information flow", unit="layer", disable=not show_progress)
    for place, name in enumerate(bar):
        bar.set_postfix_str(name)
        x, y = variables[place], variables[place + 1]
        known = edges.known(x, y, level)
        if known is None:
            known = _estimated(edges, x, y, widths[place + 1], level, settings.seed + place)
            edges.done.append((x, y, level, known))
        layers.append(_with_weights(known, strengths[place], found.links[place], settings))
    # what a later fit may ask for again is this data, not an earlier one
    edges.done = edges.done[-len(names) :]
    return layers


def _last(found: Record, settings: EdgeSettings) -> Tensor:
    if not settings.labels:
        return found.units[-1]
    if found.labels is None:
        raise InvalidArgumentError('output="labels", and data has none; pass (inputs, labels), or output="logits".')
    n_classes = found.units[-1].shape[1]
    if int(found.labels.min()) < 0 or int(found.labels.max()) >= max(n_classes, 2):
        raise InvalidArgumentError(
            f"Labels reach from {int(found.labels.min())} to {int(found.labels.max())} for {n_classes} logits; wanted "
            "class indices."
        )
    return found.labels.to(found.units[-1].device)


def _width(variable: Tensor, found: Record) -> int:
    return variable.shape[1] if variable.ndim == 2 else found.units[-1].shape[1]


def _level(settings: EdgeSettings, n_edges: int) -> float:
    if not settings.family_wise:
        return NULL_QUANTILE
    beyond = (1 - NULL_QUANTILE) / n_edges
    if settings.n_permutations * beyond < 1:
        raise InvalidArgumentError(
            f"family_wise=True for {n_edges} edges needs the {1 - beyond:.5%} quantile of the null, and "
            f"n_permutations={settings.n_permutations} draws do not reach there; wanted at least "
            f"{round(n_edges / (1 - NULL_QUANTILE))}, or family_wise=False."
        )
    return 1 - beyond


def _strengths(link: Link, settings: EdgeSettings) -> Tensor | None:
    if link.module is None and settings.weighted:
        raise UnsupportedModelError(f"weighted=True, but {link.reason} Use weighted=False, or name other layers.")
    return None if link.module is None else link.strengths()


def _estimated(edges: Edges, x: Tensor, y: Tensor, width: int, level: float, seed: int) -> Layer:
    settings = edges.settings
    others = [(y == label).long() for label in range(width)] if y.ndim == 1 else [y]
    with quiet():
        tables = [_table(x, other, settings, seed) for other in others]
        values, saturated = (torch.cat([getattr(t, name) for t in tables], dim=1) for name in ("values", "saturated"))
        null = _null(edges, x, others, level, seed)
        informative = modes.above(values, null)
        if settings.mode != "pairwise":
            redundancy = _table(x, None, settings, seed).values
        if settings.mode == "mifs":
            # units of one layer have the null of units of two
            redundancy = modes.above(redundancy, _null(edges, x, [x], level, seed))
            informative = modes.mifs(informative, redundancy, settings.redundancy_weight)
        if settings.mode == "poster":
            informative = modes.poster(_joint(x, others, settings, seed), redundancy, settings.redundancy_weight)
    met = dict.fromkeys(text for table in tables for text in table.warnings)
    return Layer(values, null, saturated, informative, repr(settings.estimator), tuple(met))


@dataclass(frozen=True)
class _Table:
    """Estimates of all pairs of columns, (dx, dy)."""

    values: Tensor
    saturated: Tensor
    warnings: tuple[str, ...]


def _table(x: Tensor, y: Tensor | None, settings: EdgeSettings, seed: int) -> _Table:
    """Estimates where both columns vary; 0 where one does not, which is said of units, not of edges."""
    left = _varying(x)
    right = left if y is None else _varying(y)
    values = x.new_zeros(len(left), len(right))
    saturated = torch.zeros_like(values, dtype=torch.bool)
    if not bool(left.any() and right.any()):
        return _Table(values, saturated, ())
    other = y if y is None or y.ndim == 1 else y[:, right]
    found: Estimate = mutual_information_matrix(
        x[:, left], other, settings.estimator, settings.unit, return_details=True, seed=seed
    )
    pairs = left[:, None] & right
    values[pairs], saturated[pairs] = found.value.flatten(), found.saturated.flatten()
    return _Table(values, saturated, found.warnings)


def _varying(variable: Tensor) -> Tensor:
    varies = (variable != variable[0]).any(dim=0)
    return varies if variable.ndim == 2 else varies[None]


def _joint(x: Tensor, others: list[Tensor], settings: EdgeSettings, seed: int) -> Tensor:
    """Information of all units together about each of the next layer: (width,)."""
    columns = [one for other in others for one in columns_of(other)]
    found = [mutual_information(x, one, settings.estimator, settings.unit, seed=seed) for one in columns]
    return torch.stack(found)


def _null(edges: Edges, x: Tensor, others: list[Tensor], level: float, seed: int) -> Tensor:
    """Quantile of the null: one number, one for each class, or one for each pair."""
    settings = edges.settings
    generator = generator_of(settings.seed + _NULL_STREAM)
    estimator, n_draws = settings.estimator, settings.n_permutations
    if not estimator.ranked:
        null = torch.cat([permuted_matrices(estimator, x, y, n_draws, generator, seed) for y in others], dim=2)
    elif others[0].ndim == 1:
        null = torch.stack([estimates_against_labels(estimator, y, n_draws, generator) for y in others], dim=1)
    else:
        if len(x) not in edges.nulls:
            edges.nulls[len(x)] = independent_estimates(estimator, len(x), n_draws, generator, x.device)
        null = edges.nulls[len(x)]
    quantile = null.quantile(level, dim=0).clamp_min(0.0)
    return quantile * (BITS_PER_NAT if settings.unit == "bits" else 1.0)


def _with_weights(layer: Layer, strengths: Tensor | None, link: Link, settings: EdgeSettings) -> Layer:
    """Edges without those whose weights are 0, or times the weights."""
    if not settings.mask_zero_weights and not settings.weighted:
        return layer
    if strengths is None:
        text = f"Edges are not checked for weights of 0: {link.reason}"
        return replace(layer, warnings=(*layer.warnings, text))
    factor = strengths if settings.weighted else (strengths != 0).double()
    return replace(layer, edges=layer.edges * factor.to(layer.edges.device))
