"""Whether the attribution of a random set of parts tells how much the output falls without them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from captum_iba._captum import TargetType
from captum_iba.errors import InvalidArgumentError
from captum_iba.metrics._accumulate import Accumulator
from captum_iba.metrics._baselines import Baselines, make_baselines
from captum_iba.metrics._options import bound_options
from captum_iba.metrics._output import OutputType
from captum_iba.metrics._perturb import Removal, Rows, as_inputs
from captum_iba.metrics._result import MetricResult, as_seed, assert_defined
from captum_iba.metrics._units import Tensors, Units, make_units

Pool: TypeAlias = Literal["per_sample", "pooled"]
Sets: TypeAlias = Sequence[Tensor]

_POINTS, _LARGEST_SHARE = 16, 0.8
# A spread below this share of the values' size is rounding error, which must not be correlated.
_FLAT = 1e-12


@dataclass(frozen=True)
class SensitivityNResult(MetricResult):
    """Correlations of attribution and fall of the output.

    Attributes:
        per_sample (Tensor): (N,), mean over n of the example's correlations; NaN where none is defined.
        n (Tensor): (P,), sizes of the removed sets.
        correlations (Tensor): (N, P), Pearson's correlation over the sets; NaN where either side does not vary.
        sums, drops (Tensor): (N, P, M), attribution of each set, and how much the output falls without it; NaN where
            an example has fewer than n units.
        pool (str): ``"per_sample"``, or ``"pooled"``: what curve, mean and stderr report.
    """

    n: Tensor
    correlations: Tensor
    sums: Tensor
    drops: Tensor
    pool: Pool = "per_sample"

    @property
    def pooled(self) -> Tensor:
        """(P,), one correlation over the sets of all examples together, as the published code computes it."""
        sums, drops = (values.movedim(1, 0).flatten(1) for values in (self.sums, self.drops))
        return torch.stack([pearson(s[~s.isnan()], d[~d.isnan()]) for s, d in zip(sums, drops, strict=True)])

    @property
    def curve(self) -> Tensor:
        """(P,), correlation for each n: mean over the examples where it is defined, or pooled."""
        return self.pooled if self.pool == "pooled" else self.correlations.nanmean(dim=0)

    @property
    def mean(self) -> float:
        """Mean of the examples' values, or of the pooled correlations over n."""
        return float(self.pooled.nanmean()) if self.pool == "pooled" else super().mean

    @property
    def stderr(self) -> float:
        """Standard error over the examples; NaN for the pooled correlation, which has no value per example."""
        return float("nan") if self.pool == "pooled" else super().stderr


@dataclass(frozen=True)
class SetOutputs:
    """How the output falls without random sets: what sensitivity-n needs of the model, whatever the attribution.

    Attributes:
        n (Tensor): (P,).
        removed (tuple[Tensor, ...]): for each n the sets, bool, (1 or N, M, K).
        drops (Tensor): (N, P, M).
    """

    n: Tensor
    removed: tuple[Tensor, ...]
    drops: Tensor


def log_spaced(n_units: int) -> list[int]:
    """Set sizes of the paper: 16 log-spaced numbers from 1 to 80 % of the units, each once.

    Examples::

        >>> log_spaced(784)
        [1, 2, 4, 6, 9, 13, 20, 31, 48, 73, 113, 173, 266, 408, 627]
    """
    last = math.log(max(1.0, _LARGEST_SHARE * n_units))
    spaced = torch.linspace(0, last, _POINTS, dtype=torch.float64, device="cpu").exp().round().long()
    return sorted(set(spaced.tolist()))


def sensitivity_n(
    forward_func: Callable[..., Any],
    inputs: Tensors,
    attributions: Tensors,
    n: int | Sequence[int] | None = None,
    baselines: Baselines = "zero",
    feature_mask: Tensors | None = None,
    additional_forward_args: object | None = None,
    target: TargetType = None,
    *,
    tile_size: int | None = 1,
    n_perturb_samples: int = 100,
    index_sets: Sets | None = None,
    pool: Pool = "per_sample",
    output: OutputType = "logit",
    max_examples_per_batch: int | None = None,
    seed: int = 0,
    show_progress: bool = False,
) -> SensitivityNResult:
    r"""Correlate, over random sets of n units, the attribution of a set with how much the output falls without it.

    For each example :math:`\mathrm{corr}_T(\sum_{i \in T} a_i,\ S(x) - S(x_{T=0}))` over 100 sets of n units each,
    drawn without replacement and the same for all examples with as many units. This is the metric of Ancona et al.;
    other packages use the name for an infidelity error, or for a correlation across examples.

    Args:
        forward_func (Callable): the model; returns logits (N, classes).
        inputs (Tensor or tuple[Tensor, ...]): see :func:`degradation`.
        attributions (Tensor or tuple[Tensor, ...]): see :func:`degradation`.
        n (int or Sequence[int], optional): sizes of the sets. Default: None: 16 log-spaced sizes from 1 to 80 % of the
            units, as in the paper; of the example with the most, where a feature_mask gives each its own. An example's
            values then follow from its batch: pass n to compare batches.
        baselines (optional): see :func:`degradation`. Default: ``"zero"`` (paper).
        feature_mask (Tensor or tuple[Tensor, ...], optional): see :func:`degradation`. Default: None.
        additional_forward_args (Any, optional): as in Captum. Default: None.
        target (int, tuple, Tensor or list, optional): as in Captum. Default: None.
        tile_size (int, optional): side of a tile. Default: 1, pixels with all their channels; the paper's main figure
            has 8.
        n_perturb_samples (int, optional): number of sets for each n. Default: 100 (paper).
        index_sets (Sequence[Tensor], optional): the sets instead of random ones: for each n an integer tensor (M, n),
            or (N, M, n) for sets of each example's own. Units count from 0: tiles row by row, groups in the order of
            their numbers in the example's feature_mask. Default: None.
        pool (str, optional): ``"per_sample"``, correlations per example and then their mean; ``"pooled"``: one
            correlation over all examples, as in the published code, which depends on the maps' scale from example to
            example. Default: ``"per_sample"`` (the paper's text).
        output (str or Callable, optional): see :func:`degradation`. Default: ``"logit"`` (paper): a softmax hides what
            the sets add up to.
        max_examples_per_batch (int, optional): see :func:`degradation`. Default: None.
        seed (int, optional): of the sets. Default: 0. The sets of one n do not depend on the others.
        show_progress (bool, optional): show a progress bar. Default: False.

    Returns:
        SensitivityNResult: correlations for each example and n. Higher is better; 1 for a linear model and its exact
        contributions.

    Raises:
        InvalidArgumentError: an argument out of range, or no correlation is defined.
        CaptumIBAError: as :func:`degradation`.

    Reference:
        Ancona et al. 2018, section 4; Schulz et al. 2020, appendix G.1, eq. 16.

    Examples::

        >>> weights = torch.tensor([1.0, -2.0, 0.5, 3.0])
        >>> x = torch.rand(2, 4) + 1
        >>> result = sensitivity_n(lambda x: x @ weights, x, weights * x, n=[1, 2, 3])
        >>> result.curve.round(decimals=6).tolist()
        [1.0, 1.0, 1.0]
    """
    if pool not in ("per_sample", "pooled"):
        raise InvalidArgumentError(f"pool={pool!r}; wanted 'per_sample' or 'pooled'.")
    tensors = as_inputs(inputs)
    units = make_units(tensors, attributions, feature_mask, tile_size)
    outputs = set_outputs(
        Removal(
            Rows(
                forward_func,
                tensors,
                additional_forward_args,
                target,
                output,
                max_examples_per_batch,
                SensitivityN.name if show_progress else None,
            ),
            units.index,
            make_baselines(baselines, tensors, units.index, isinstance(inputs, tuple)),
        ),
        units.removable,
        n,
        n_perturb_samples,
        index_sets,
        seed,
    )
    result = correlate(units, outputs, pool)
    assert_defined(result, SensitivityN.name, _UNDEFINED)
    return result


_UNDEFINED = "the attribution of the sets, or the output, does not vary"


def set_outputs(
    removal: Removal,
    removable: Tensor,
    n: int | Sequence[int] | None,
    n_perturb_samples: int,
    index_sets: Sets | None,
    seed: int,
) -> SetOutputs:
    """Run the model without each of the sets.

    ``removal`` holds model, examples and baselines, ``removable`` is bool, (N, K); the others are arguments of
    :func:`sensitivity_n`.
    """
    removed = _given_sets(index_sets, removable) if index_sets is not None else None
    if removed is None:
        sizes = _sizes(n, int(removable.sum(dim=1).max()))
        if isinstance(n_perturb_samples, bool) or not isinstance(n_perturb_samples, int) or n_perturb_samples < 2:
            raise InvalidArgumentError(f"n_perturb_samples={n_perturb_samples!r}; wanted an integer of at least 2.")
        removed = [_draw(removable, size, n_perturb_samples, seed) for size in sizes]
    else:
        sizes = [int(sets[0, 0].sum()) for sets in removed]
    intact = removal.intact().value
    drops = [_drops(removal, intact, sets, removable.sum(dim=1) >= n) for n, sets in zip(sizes, removed, strict=True)]
    return SetOutputs(torch.tensor(sizes, device=intact.device), tuple(removed), torch.stack(drops, dim=1))


def correlate(units: Units, outputs: SetOutputs, pool: Pool = "per_sample") -> SensitivityNResult:
    """Correlate the units' scores with how the output falls; see :func:`sensitivity_n`."""
    sums = torch.stack([torch.matmul(sets.double(), units.sums[..., None])[..., 0] for sets in outputs.removed], dim=1)
    sums = torch.where(outputs.drops.isnan(), float("nan"), sums)
    correlations = pearson(sums, outputs.drops)
    return SensitivityNResult(correlations.nanmean(dim=1), outputs.n, correlations, sums, outputs.drops, pool)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation along the last axis; NaN where either side does not vary."""
    centred = [values - values.mean(dim=-1, keepdim=True) for values in (a, b)]
    spread = [values.square().sum(dim=-1).sqrt() for values in centred]
    size = [values.square().sum(dim=-1).sqrt() for values in (a, b)]
    varies = (spread[0] > _FLAT * size[0]) & (spread[1] > _FLAT * size[1])
    value = (centred[0] * centred[1]).sum(dim=-1) / (spread[0] * spread[1]).clamp_min(1e-300)
    return torch.where(varies, value, float("nan")).clamp(-1, 1)


def _sizes(n: int | Sequence[int] | None, n_units: int) -> list[int]:
    if n is None:
        return log_spaced(n_units)
    sizes = list(n) if isinstance(n, Sequence) else [n]
    if not sizes or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
        raise InvalidArgumentError(f"n={n!r}; wanted sizes of sets, integers of at least 1.")
    if min(sizes) > n_units:
        raise InvalidArgumentError(f"n={min(sizes)} is more than the {n_units} units; pass at most that many.")
    return sizes


def _draw(removable: Tensor, n: int, n_sets: int, seed: int) -> Tensor:
    """Random sets of n units, bool, (1 or N, M, K): the same for all examples with as many units."""
    generator = torch.Generator("cpu").manual_seed(as_seed(as_seed(seed) * 1_000_003 + n))
    # unit by unit: an example's j-th unit has the j-th keys, however many units others in the batch have
    keys = torch.rand(removable.shape[1], n_sets, generator=generator, dtype=torch.float64, device="cpu")
    keys = keys.T.to(removable.device)
    if bool(removable.all()):
        removable = removable[:1]
    keys = torch.where(removable[:, None], keys, float("inf"))
    # where no example has n units the sets are never looked at
    lowest = keys.topk(min(n, keys.shape[2]), dim=2, largest=False).indices
    return torch.zeros_like(keys, dtype=torch.bool).scatter_(2, lowest, True)


def _given_sets(index_sets: Sets, removable: Tensor) -> list[Tensor]:
    """A user's sets as masks, (1 or N, M, K)."""
    removed = []
    for number, sets in enumerate(index_sets):
        if not isinstance(sets, Tensor) or sets.numel() == 0:
            raise InvalidArgumentError(f"index_sets[{number}] is {sets!r}; wanted an integer tensor (M, n).")
        wanted = sets.ndim in (2, 3) and (sets.ndim == 2 or sets.shape[0] == len(removable)) and sets.shape[-2] > 1
        if not wanted or sets.is_floating_point() or int(sets.min()) < 0 or int(sets.max()) >= removable.shape[1]:
            raise InvalidArgumentError(
                f"index_sets[{number}] of shape {list(sets.shape)} does not fit; wanted integers from 0 to "
                f"{removable.shape[1] - 1} of shape (M, n) or (N, M, n), M at least 2."
            )
        sets = sets.to(removable.device).view(-1, *sets.shape[-2:])
        mask = torch.zeros(*sets.shape[:2], removable.shape[1], dtype=torch.bool, device=sets.device)
        removed.append(mask.scatter_(2, sets, True))
        if bool((removed[-1].sum(dim=2) != sets.shape[2]).any()):
            raise InvalidArgumentError(f"index_sets[{number}] names a unit twice in one set; wanted each at most once.")
    if not removed:
        raise InvalidArgumentError("index_sets is empty; wanted one tensor for each n.")
    return removed


def _drops(removal: Removal, intact: Tensor, removed: Tensor, has_enough: Tensor) -> Tensor:
    """How much the output falls without each set, (N, M); NaN for examples with too few units."""
    n, n_sets = len(intact), removed.shape[1]
    examples = torch.arange(n, device=intact.device).repeat_interleave(n_sets)
    shared = removed.shape[0] == 1

    def kept(jobs: Tensor) -> Tensor:
        rows = torch.zeros_like(jobs) if shared else jobs // n_sets
        return ~removed[rows, jobs % n_sets]

    values = removal.run(examples, kept).value.view(n, n_sets)
    return torch.where(has_enough[:, None], intact[:, None] - values, float("nan"))


class SensitivityN(Accumulator[SensitivityNResult]):
    """:func:`sensitivity_n` over batches.

    Args:
        forward_func (Callable): the model.
        n (int or Sequence[int], optional): sizes of the sets. Default: None, log-spaced; to be passed where batches
            differ in their largest number of units.
        **options (Any): ``baselines`` and the keyword-only arguments of :func:`sensitivity_n`.

    Raises:
        InvalidTypeError: an option that the function does not have, or that belongs to :meth:`evaluate`.

    Examples::

        >>> metric = SensitivityN(lambda x: x.sum(dim=1), n=2)
        >>> for x in torch.rand(4, 5).split(2):
        ...     _ = metric.evaluate(x, x)
        >>> round(metric.summary().mean, 6)
        1.0
    """

    name = "sensitivity-n"
    higher_is_better = True

    def __init__(self, forward_func: Callable[..., Any], n: int | Sequence[int] | None = None, **options: Any) -> None:
        fixed = {"forward_func": forward_func}
        super().__init__(bound_options(sensitivity_n, type(self).evaluate, fixed, {"n": n, **options}))
        self.forward_func, self._n, self._options = forward_func, n, options

    def evaluate(
        self,
        inputs: Tensors,
        attributions: Tensors,
        feature_mask: Tensors | None = None,
        additional_forward_args: object | None = None,
        target: TargetType = None,
    ) -> SensitivityNResult:
        """:func:`sensitivity_n` of a batch; :meth:`summary` will include it."""
        return self._add_defined(
            lambda: sensitivity_n(
                self.forward_func,
                inputs,
                attributions,
                self._n,
                feature_mask=feature_mask,
                additional_forward_args=additional_forward_args,
                target=target,
                **self._options,
            )
        )

    def summary(self) -> SensitivityNResult:
        """All examples since the start or the last :meth:`reset`.

        Raises:
            InvalidArgumentError: nothing was evaluated, no correlation is defined, or batches differ in their sizes of
                sets: pass n.
        """
        results = self._all()
        first = results[0]
        for result in results[1:]:
            if not torch.equal(result.n, first.n) or result.sums.shape[2] != first.sums.shape[2]:
                raise InvalidArgumentError(
                    f"Batches have different sets: n={first.n.tolist()} and n={result.n.tolist()}. Pass the same n to "
                    "all, as its default follows the number of units."
                )
        names = ("per_sample", "correlations", "sums", "drops")
        joined = {name: torch.cat([getattr(result, name) for result in results]) for name in names}
        summary = SensitivityNResult(n=first.n, pool=first.pool, **joined)
        assert_defined(summary, self.name, _UNDEFINED)
        return summary
