"""The edges of an information flow: estimates, what of them exceeds the null, and what a mode makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
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
from captum_iba.information.generators import generator_of
from captum_iba.information.mutual_information import mutual_information, mutual_information_matrix
from captum_iba.information.permutation import NULL_QUANTILE
from captum_iba.information.variables import assert_pairs

# the null has a stream of its own, so that it does not depend on what was estimated before
_NULL_STREAM = 1_000_003
# so many units against a whole layer are one estimate, after which an interrupted fit can go on
_UNITS_AT_ONCE = 16


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


class Edges:
    """Estimates of edges, a block of units at a time, each kept with what it was estimated from.

    Args:
        settings (EdgeSettings): how to estimate.
    """

    def __init__(self, settings: EdgeSettings) -> None:
        self.settings = settings
        self.nulls: dict[int, Tensor] = {}
        self._done: list[_Block] = []
        self._used: list[_Block] = []

    def started(self) -> None:
        """Note that a fit begins."""
        self._used = []

    def ended(self) -> None:
        """Keep what this fit used; what it did not use was of other data."""
        self._done = self._used

    def estimate(self, x: Tensor, y: Tensor, seed: int) -> Estimate:
        """Estimate all pairs of columns, or remember it."""
        block = next((block for block in self._done if block.is_of(x, y, seed)), None)
        if block is None:
            settings = self.settings
            with quiet():
                found: Estimate = mutual_information_matrix(
                    x, y, settings.estimator, settings.unit, return_details=True, seed=seed
                )
            block = _Block(x, y, seed, found)
            self._done.append(block)
        self._used.append(block)
        return block.found


@dataclass(frozen=True)
class _Block:
    x: Tensor
    y: Tensor
    seed: int
    found: Estimate

    def is_of(self, x: Tensor, y: Tensor, seed: int) -> bool:
        return self.seed == seed and torch.equal(self.x, x) and torch.equal(self.y, y)


def edges_of(edges: Edges, found: Record, show_progress: bool) -> list[Layer]:
    """Estimate the edges between all neighbouring layers.

    Raises:
        InvalidArgumentError: labels that there are not, too few examples, or too few permutations.
        UnsupportedModelError: weights are wanted where there are none.
    """
    from tqdm.auto import tqdm

    settings = edges.settings
    assert_pairs(found.units[0], found.units[-1], settings.estimator.at_least)
    variables = [*found.units[:-1], _last(found, settings)]
    widths = [_width(variable, found) for variable in variables]
    n_edges = sum(a * b for a, b in pairwise(widths))
    level = _level(settings, n_edges)
    strengths = [_strengths(link, settings) for link in found.links]
    edges.started()
    layers = []
    with tqdm(total=n_edges, desc="Information flow", unit="edge", disable=not show_progress) as bar:
        for place, (x, y) in enumerate(pairwise(variables)):
            others = [(y == label).long() for label in range(widths[place + 1])] if y.ndim == 1 else [y]
            layer = _estimated(edges, x, others, level, settings.seed + place, bar.update)
            layers.append(_with_weights(layer, strengths[place], found.links[place], settings))
    edges.ended()
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


def _estimated(
    edges: Edges, x: Tensor, others: list[Tensor], level: float, seed: int, advance: Callable[[int], object]
) -> Layer:
    settings = edges.settings
    tables = [_table(edges, x, other, seed, advance) for other in others]
    values, saturated = (torch.cat([getattr(t, name) for t in tables], dim=1) for name in ("values", "saturated"))
    null = _null(edges, x, others, level, seed)
    informative = modes.above(values, null)
    if settings.mode != "pairwise":
        # the diagonal, a unit with itself, is not read
        redundancy = _table(edges, x, x, seed, lambda _: None).values
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


def _table(edges: Edges, x: Tensor, y: Tensor, seed: int, advance: Callable[[int], object]) -> _Table:
    """Estimates where both columns vary; 0 where one does not, which is said of units, not of edges."""
    left, right = _varying(x), _varying(y)
    values = x.new_zeros(len(left), len(right))
    saturated = torch.zeros_like(values, dtype=torch.bool)
    met: dict[str, None] = {}
    if bool(left.any() and right.any()):
        other = y if y.ndim == 1 else y[:, right]
        for units in torch.split(left.nonzero()[:, 0], _UNITS_AT_ONCE):
            found = edges.estimate(x[:, units], other, seed)
            values[units[:, None], right.nonzero()[:, 0]] = found.value
            saturated[units[:, None], right.nonzero()[:, 0]] = found.saturated
            met |= dict.fromkeys(found.warnings)
            advance(found.value.numel())
    advance(int((~(left[:, None] & right)).sum()))
    return _Table(values, saturated, tuple(met))


def _varying(variable: Tensor) -> Tensor:
    varies = (variable != variable[0]).any(dim=0)
    return varies if variable.ndim == 2 else varies[None]


def _joint(x: Tensor, others: list[Tensor], settings: EdgeSettings, seed: int) -> Tensor:
    """Information of all units together about each of the next layer: (width,)."""
    columns = [one for other in others for one in columns_of(other)]
    with quiet():
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
