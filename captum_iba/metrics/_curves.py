"""A model's value while units are removed one after another, in the order of an attribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from captum_iba._captum import TargetType
from captum_iba.errors import InvalidArgumentError
from captum_iba.metrics._baselines import Baselines, make_baselines
from captum_iba.metrics._output import OutputType, Row
from captum_iba.metrics._perturb import Removal, Rows, as_inputs
from captum_iba.metrics._result import as_seed
from captum_iba.metrics._units import Tensors, Units, make_units

Order: TypeAlias = Literal["morf", "lerf"]
Points: TypeAlias = Literal["even", "paper"]
RemovalKind: TypeAlias = Literal["replace", "delete"]

_PAPER_POINTS = 100


@dataclass(frozen=True)
class Curves:
    """Curves of one batch.

    Attributes:
        fractions (Tensor): (N, P), share of the removable units that is removed.
        values (dict[str, Tensor]): (N, P) for each order, the target's value.
        top1 (dict[str, Tensor]): (N, P), 1 where the target is the highest class, 0 where not; NaN without classes.
        best (Tensor): (N,), value of the highest class on the intact examples.
        full (Tensor): (N,), the target's value with all units removed.
    """

    fractions: Tensor
    values: dict[Order, Tensor]
    top1: dict[Order, Tensor]
    best: Tensor
    full: Tensor


def prepare(
    forward_func: Callable[..., Any],
    inputs: Tensors,
    attributions: Tensors,
    baselines: Baselines,
    feature_mask: Tensors | None,
    additional_forward_args: object | None,
    target: TargetType,
    *,
    tile_size: int | None,
    output: OutputType,
    removal: RemovalKind,
    max_examples_per_batch: int | None,
    progress: str | None,
) -> tuple[Removal, Units]:
    """Units with their scores, and the means to remove them.

    Arguments are those of :func:`degradation`; ``progress`` is the name of a progress bar, None for none.

    Raises:
        InvalidArgumentError: an argument out of range, or shapes that do not fit.
    """
    if removal not in ("replace", "delete"):
        raise InvalidArgumentError(f"removal={removal!r}; wanted 'replace' or 'delete'.")
    tensors = as_inputs(inputs)
    units = make_units(tensors, attributions, feature_mask, tile_size)
    rows = Rows(forward_func, tensors, additional_forward_args, target, output, max_examples_per_batch, progress)
    replaced = removal == "replace"
    made = make_baselines(baselines, tensors, units.index, isinstance(inputs, tuple)) if replaced else None
    return Removal(rows, units.index, made), units


def removal_curves(
    removal: Removal,
    units: Units,
    orders: Sequence[Order],
    n_steps: int | None,
    points: Points,
    n_tie_draws: int,
    seed: int,
) -> Curves:
    """Remove units in order and record the model's values.

    Units of equal score come in random order, the same one for both orders, so that a constant map gives equal curves;
    an example's order does not depend on the others.

    Raises:
        InvalidArgumentError: an argument out of range.
    """
    if isinstance(n_tie_draws, bool) or not isinstance(n_tie_draws, int) or n_tie_draws < 1:
        raise InvalidArgumentError(f"n_tie_draws={n_tie_draws!r}; wanted an integer of at least 1.")
    counts = _counts(units.count, n_steps, points)
    generator = torch.Generator("cpu").manual_seed(as_seed(seed))
    # unit by unit: an example's j-th unit has the j-th keys, however many units others in the batch have
    keys = torch.rand(units.sums.shape[1], n_tie_draws, generator=generator, dtype=torch.float64, device="cpu")
    draws = []
    for key in keys.T.to(units.sums.device):
        ranks = {order: _ranks(units, key, order) for order in orders}
        draws.append(_one_draw(removal, units.count, ranks, counts))
    return _mean(draws)


def _counts(available: Tensor, n_steps: int | None, points: Points) -> Tensor:
    """Numbers of removed units, (N, P)."""
    most = int(available.max())
    if points == "paper":
        if n_steps is not None:
            raise InvalidArgumentError("n_steps has no meaning with points='paper', which fixes 100 points.")
        grid = torch.arange(_PAPER_POINTS, dtype=torch.float64, device=available.device) / (_PAPER_POINTS - 1)
        after = (grid * available[:, None]).round().long() + 1
        # nothing removed first; the last point, all removed, is never looked at
        return torch.cat([torch.zeros_like(after[:, :1]), after[:, :-1]], dim=1).minimum(available[:, None])
    if points != "even":
        raise InvalidArgumentError(f"points={points!r}; wanted 'even' or 'paper'.")
    if n_steps is not None and (isinstance(n_steps, bool) or not isinstance(n_steps, int) or n_steps < 2):
        raise InvalidArgumentError(
            f"n_steps={n_steps!r}; wanted an integer of at least 2, the points with nothing and with all removed, or "
            "None for every unit."
        )
    n_points = max(most + 1, 2) if n_steps is None else min(n_steps, max(most + 1, 2))
    grid = torch.linspace(0, 1, n_points, dtype=torch.float64, device=available.device)
    return (grid * available[:, None]).round().long()


def _ranks(units: Units, key: Tensor, order: Order) -> Tensor:
    """Place of each unit in the order of removal, (N, K); units that are never removed come last."""
    shuffled = key.argsort()
    scores = units.means if order == "lerf" else -units.means
    scores = torch.where(units.removable, scores, float("inf"))[:, shuffled]
    places = shuffled[scores.argsort(dim=1, stable=True)]
    return places.argsort(dim=1)


def _one_draw(removal: Removal, available: Tensor, ranks: dict[Order, Tensor], counts: Tensor) -> Curves:
    """Curves for one order of ties; the intact and the fully degraded examples run once."""
    orders, n = list(ranks), len(counts)
    ranking = torch.stack([ranks[order] for order in orders])
    inner = ((counts > 0) & (counts < available[:, None])).nonzero()
    examples = torch.arange(n, device=counts.device)
    ends = torch.cat([torch.zeros_like(available), available])
    job_order = torch.cat([torch.full_like(inner[:, 0], i) for i in range(len(orders))] + [torch.zeros_like(ends)])
    job_example = torch.cat([inner[:, 0]] * len(orders) + [examples, examples])
    job_count = torch.cat([counts[inner[:, 0], inner[:, 1]]] * len(orders) + [ends])

    def kept(jobs: Tensor) -> Tensor:
        return ranking[job_order[jobs], job_example[jobs]] >= job_count[jobs, None]

    found = removal.run(job_example, kept)
    tail = len(inner) * len(orders)
    intact, full = _part(found, slice(tail, tail + n)), _part(found, slice(tail + n, tail + 2 * n))
    values, top1 = {}, {}
    for number, order in enumerate(orders):
        own = _part(found, slice(number * len(inner), (number + 1) * len(inner)))
        values[order] = _filled(counts, available, inner, own.value, intact.value, full.value)
        top1[order] = _filled(counts, available, inner, *(_is_top(part.rank) for part in (own, intact, full)))
    fractions = counts.double() / available[:, None].clamp_min(1)
    return Curves(fractions, values, top1, intact.best, full.value)


def _part(rows: Row, piece: slice) -> Row:
    return Row(rows.value[piece], rows.best[piece], rows.rank[piece])


def _is_top(rank: Tensor) -> Tensor:
    return torch.where(rank.isnan(), rank, (rank == 1).double())


def _filled(counts: Tensor, available: Tensor, inner: Tensor, own: Tensor, intact: Tensor, full: Tensor) -> Tensor:
    values = torch.where(counts == 0, intact[:, None], full[:, None])
    values[inner[:, 0], inner[:, 1]] = own
    return values


def _mean(draws: list[Curves]) -> Curves:
    if len(draws) == 1:
        return draws[0]
    values = {order: torch.stack([d.values[order] for d in draws]).mean(dim=0) for order in draws[0].values}
    top1 = {order: torch.stack([d.top1[order] for d in draws]).mean(dim=0) for order in draws[0].top1}
    return Curves(draws[0].fractions, values, top1, draws[0].best, draws[0].full)


def integral(values: Tensor, fractions: Tensor, points: Points) -> Tensor:
    """Area under each row over the removed share; the plain mean of the points for ``"paper"``."""
    return values.mean(dim=1) if points == "paper" else torch.trapezoid(values, fractions, dim=1)


def common_fractions(fractions: Tensor) -> Tensor:
    """Fractions (P,) at which to average curves: all rows' own where they agree, else even ones."""
    first = fractions[0]
    if bool((fractions == first).all()):
        return first
    return torch.linspace(0, 1, fractions.shape[1], dtype=torch.float64, device=first.device)


def at_fractions(values: Tensor, fractions: Tensor, grid: Tensor) -> Tensor:
    """Rows of curves (N, P), given at their own rising fractions, interpolated linearly at common ones (G,)."""
    if fractions.shape[1] == len(grid) and bool((fractions == grid).all()):
        return values
    right = torch.searchsorted(fractions.contiguous(), grid.expand(len(fractions), -1).contiguous())
    right = right.clamp(1, fractions.shape[1] - 1)
    x0, x1 = fractions.gather(1, right - 1), fractions.gather(1, right)
    y0, y1 = values.gather(1, right - 1), values.gather(1, right)
    weight = torch.where(x1 > x0, (grid - x0) / (x1 - x0).clamp_min(1e-300), torch.ones_like(x0)).clamp(0, 1)
    return y0 + weight * (y1 - y0)
