"""How fast the decision falls when what an attribution ranks highest is removed first, against lowest first."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from captum_iba._captum import TargetType
from captum_iba._warn import Warner
from captum_iba.errors import InvalidArgumentError
from captum_iba.metrics._accumulate import Accumulator
from captum_iba.metrics._baselines import Baselines
from captum_iba.metrics._curves import (
    Points,
    RemovalKind,
    at_fractions,
    common_fractions,
    integral,
    prepare,
    removal_curves,
)
from captum_iba.metrics._options import bound_options
from captum_iba.metrics._output import OutputType
from captum_iba.metrics._result import MetricResult, assert_defined
from captum_iba.metrics._units import Tensors

Normalizer: TypeAlias = tuple[float, float] | Literal["none"] | None


@dataclass(frozen=True)
class DegradationResult(MetricResult):
    """Degradation curves and the area between them.

    Attributes:
        per_sample (Tensor): (N,), ``area / (t1 - b)``: higher is better, a random map scores 0 on average; NaN where
            fewer than two units can be removed, since all orders are then the same, or where t1 is not above b.
        area (Tensor): (N,), area between the example's curves, least minus most relevant first, in the output's unit.
        fractions (Tensor): (N, P), share of the removable units that is removed.
        morf, lerf (Tensor): (N, P), the target's value with the most (least) relevant units removed first.
        morf_top1, lerf_top1 (Tensor): (N, P), 1 where the target is the highest class, 0 where not; NaN where the
            output has no single axis of classes. Their means are curves of accuracy.
        top1 (Tensor): (N,), value of the highest class on the intact examples.
        fully_degraded (Tensor): (N,), the target's value with all units removed.
        normalizer (tuple[float, float]): t1 and b of eq. 8.
    """

    area: Tensor
    fractions: Tensor
    morf: Tensor
    lerf: Tensor
    morf_top1: Tensor
    lerf_top1: Tensor
    top1: Tensor
    fully_degraded: Tensor
    normalizer: tuple[float, float]

    @property
    def x(self) -> Tensor:
        """(P,), shares of removed units at which the mean curves are given."""
        return common_fractions(self.fractions)

    @property
    def morf_curve(self) -> Tensor:
        """(P,), mean of the scaled value s(x) over the examples with two units or more, most relevant first."""
        return self.scaled(self.morf)[~self.area.isnan()].mean(dim=0)

    @property
    def lerf_curve(self) -> Tensor:
        """(P,), mean of the scaled value s(x) over the examples with two units or more, least relevant first."""
        return self.scaled(self.lerf)[~self.area.isnan()].mean(dim=0)

    @property
    def curve(self) -> Tensor:
        """(P,), :attr:`lerf_curve` minus :attr:`morf_curve`; its integral is the mean score."""
        return self.lerf_curve - self.morf_curve

    def scaled(self, values: Tensor) -> Tensor:
        """Curves (N, P) scaled as s(x) = (p - b) / (t1 - b), at the common shares :attr:`x`."""
        t1, b = self.normalizer
        return (at_fractions(values, self.fractions, self.x) - b) / (t1 - b)


def degradation(
    forward_func: Callable[..., Any],
    inputs: Tensors,
    attributions: Tensors,
    baselines: Baselines = "mean",
    feature_mask: Tensors | None = None,
    additional_forward_args: object | None = None,
    target: TargetType = None,
    *,
    tile_size: int | None = None,
    n_steps: int | None = None,
    points: Points = "even",
    output: OutputType = "prob",
    normalizer: Normalizer = None,
    removal: RemovalKind = "replace",
    n_tie_draws: int = 1,
    max_examples_per_batch: int | None = None,
    seed: int = 0,
    show_progress: bool = False,
) -> DegradationResult:
    r"""Remove tiles or tokens in the order of an attribution and measure the area between the two curves.

    Both orders start at the intact example and end at the fully degraded one: most relevant first (MoRF) should fall
    at once, least relevant first (LeRF) late. The value is scaled by :math:`s(x) = (p(y|x) - b) / (t_1 - b)`, with
    :math:`t_1` the mean top-1 value of the intact examples and :math:`b` the mean value of the fully degraded ones, and
    the score is :math:`\int s(\mathrm{LeRF}) - s(\mathrm{MoRF})` over the removed share, by the trapezoid rule.

    Units of equal score are removed in random order, the same for both curves, which gives the expected value over
    ties: a constant map scores exactly 0. An example with fewer than two units has no score.

    Args:
        forward_func (Callable): the model; returns logits (N, classes).
        inputs (Tensor or tuple[Tensor, ...]): images (N, C, H, W), tokens (N, T) or (N, T, D), vectors (N, F), signals.
        attributions (Tensor or tuple[Tensor, ...]): one for each input. Images: (N, 1, h, w), (N, C, h, w), summed
            over channels, or (N, h, w); of another size than the input they are resized bilinearly, once. Tokens:
            (N, T), (N, T, 1) or (N, T, D).
        baselines (str, float, Tensor, tuple or Callable, optional): what replaces a removed unit: ``"mean"``, each
            image's own colour; ``"zero"``; ``"blur"``, a Gaussian of 15 pixels at a side of 224; a number, such as
            the mask token's id; a tensor that broadcasts; ``baselines(inputs)``. Default: ``"mean"``, the paper's.
        feature_mask (Tensor or tuple[Tensor, ...], optional): units as integers, as in Captum's FeatureAblation, with
            one row for all examples or one for each; negative numbers mark what is never removed, such as special
            tokens and padding. Default: None, square tiles.
        additional_forward_args (Any, optional): as in Captum. Default: None.
        target (int, tuple, Tensor or list, optional): as in Captum. Default: None.
        tile_size (int, optional): side of a tile; what remains at the border belongs to the last tile. Units rank
            by their mean attribution, which among units of equal size ranks as their sum. Default: None: 14 on maps
            (the paper uses 8 and 14), 1 elsewhere.
        n_steps (int, optional): number of points on each curve, evenly spread, the two ends among them. Default: None,
            every unit.
        points (str, optional): ``"even"``, or ``"paper"``: the 100 points of the published code, which leaves out the
            fully degraded image and takes the mean of the points. Default: ``"even"``.
        output (str or Callable, optional): ``"prob"``, softmax over axis 1; ``"logit"``, the output as it is; or a
            function of the output. Default: ``"prob"`` (paper), comparable between models.
        normalizer (tuple[float, float] or str, optional): t1 and b, or ``"none"`` for no scaling. Default: None: of
            this batch. The ranking of methods does not depend on it.
        removal (str, optional): ``"replace"`` by the baseline, or ``"delete"``: tokens are cut out and the sequence
            gets shorter; arguments with one entry a token, such as the attention mask, are cut alike.
            Default: ``"replace"``, which keeps positions.
        n_tie_draws (int, optional): average over this many random orders of equal scores. Default: 1.
        max_examples_per_batch (int, optional): most rows in one forward pass; halved, with a warning, where memory
            does not suffice. Default: None: 128 on a GPU; on the CPU as many as make up four photos of 224 pixels,
            between 4 and 64.
        seed (int, optional): of the order of equal scores. Default: 0.
        show_progress (bool, optional): show a progress bar. Default: False.

    Returns:
        DegradationResult: scores, curves and their scaling.

    Raises:
        InvalidArgumentError: an argument out of range, shapes that do not fit, or no example with a score.
        NonFiniteError: NaN or infinity in attributions, baselines or output.
        TargetError, TargetIndexError: the target does not select one value per example.

    Reference:
        Schulz et al. 2020, section 4.2 and eq. 8; for tokens Ramezani 2023.

    Examples::

        >>> weights = torch.tensor([[3.0, -1.0, 2.0, 0.0]])
        >>> x = torch.ones(1, 4)
        >>> result = degradation(lambda x: x @ weights.T, x, weights, 0.0, target=0, output="logit", normalizer="none")
        >>> result.morf.tolist()  # what is left after the k largest
        [[4.0, 1.0, -1.0, -1.0, 0.0]]
        >>> result.mean
        3.5
    """
    remover, units = prepare(
        forward_func,
        inputs,
        attributions,
        baselines,
        feature_mask,
        additional_forward_args,
        target,
        tile_size=tile_size,
        output=output,
        removal=removal,
        max_examples_per_batch=max_examples_per_batch,
        progress=Degradation.name if show_progress else None,
    )
    curves = removal_curves(remover, units, ("morf", "lerf"), n_steps, points, n_tie_draws, seed)
    area = integral(curves.values["lerf"] - curves.values["morf"], curves.fractions, points)
    area = torch.where(units.count > 1, area, float("nan"))
    raw = DegradationResult(
        per_sample=area,
        area=area,
        fractions=curves.fractions,
        morf=curves.values["morf"],
        lerf=curves.values["lerf"],
        morf_top1=curves.top1["morf"],
        lerf_top1=curves.top1["lerf"],
        top1=curves.best,
        fully_degraded=curves.full,
        normalizer=(1.0, 0.0),
    )
    assert_defined(raw, Degradation.name, _TOO_FEW)
    return _normalized(raw, normalizer)


_TOO_FEW = "fewer than two units may be removed"


def _is_finite(number: object) -> bool:
    return isinstance(number, (int, float)) and math.isfinite(number)


def _normalized(raw: DegradationResult, normalizer: Normalizer) -> DegradationResult:
    """Scores scaled by t1 - b; NaN with a warning where that is not positive."""
    if normalizer == "none":
        normalizer = (1.0, 0.0)
    elif normalizer is None:
        there = ~raw.area.isnan()
        normalizer = (float(raw.top1[there].mean()), float(raw.fully_degraded[there].mean()))
    elif not (isinstance(normalizer, tuple) and len(normalizer) == 2 and all(map(_is_finite, normalizer))):
        raise InvalidArgumentError(f"normalizer={normalizer!r}; wanted (t1, b), 'none' or None.")
    t1, b = normalizer
    if t1 <= b:
        Warner().once(
            "normalizer",
            f"The mean top-1 value of the intact examples, {t1:.3g}, is not above the target's mean value on the fully "
            f"degraded ones, {b:.3g}; the scores are undefined, the curves are not. Choose another baseline.",
        )
    scores = raw.area / (t1 - b) if t1 > b else torch.full_like(raw.area, float("nan"))
    return dataclasses.replace(raw, per_sample=scores, normalizer=(t1, b))


class Degradation(Accumulator[DegradationResult]):
    """:func:`degradation` over batches, scaled over all of them.

    Args:
        forward_func (Callable): the model.
        **options (Any): ``baselines`` and the keyword-only arguments of :func:`degradation`.

    Raises:
        InvalidTypeError: an option that the function does not have, or that belongs to :meth:`evaluate`.

    Examples::

        >>> metric = Degradation(lambda x: x.flatten(1), tile_size=1, baselines="zero")
        >>> for x in (torch.rand(2, 1, 2, 2) + 0.1, torch.rand(1, 1, 2, 2) + 0.1):
        ...     _ = metric.evaluate(x, x, target=0)
        >>> metric.summary().n_valid
        3
    """

    name = "degradation"
    higher_is_better = True

    def __init__(self, forward_func: Callable[..., Any], **options: Any) -> None:
        super().__init__(bound_options(degradation, type(self).evaluate, {"forward_func": forward_func}, options))
        self.forward_func = forward_func
        self._options = options

    def evaluate(
        self,
        inputs: Tensors,
        attributions: Tensors,
        feature_mask: Tensors | None = None,
        additional_forward_args: object | None = None,
        target: TargetType = None,
    ) -> DegradationResult:
        """:func:`degradation` of a batch, scaled by its own t1 and b; :meth:`summary` will include it."""
        return self._add_defined(
            lambda: degradation(
                self.forward_func,
                inputs,
                attributions,
                feature_mask=feature_mask,
                additional_forward_args=additional_forward_args,
                target=target,
                **self._options,
            )
        )

    def summary(self) -> DegradationResult:
        """All examples since the start or the last :meth:`reset`, scaled by t1 and b of all.

        Raises:
            InvalidArgumentError: nothing was evaluated, or t1 is not above b.
        """
        results = self._all()
        most = max(results, key=lambda result: result.morf.shape[1])
        curves = {name: torch.cat([_on_grid(r, name, most) for r in results]) for name in _CURVES}
        single = {name: torch.cat([getattr(r, name) for r in results]) for name in ("area", "top1", "fully_degraded")}
        merged = DegradationResult(per_sample=single["area"], normalizer=(1.0, 0.0), **single, **curves)
        assert_defined(merged, self.name, _TOO_FEW)
        summary = _normalized(merged, self._options.get("normalizer"))
        if summary.n_valid == 0:
            t1, b = summary.normalizer
            raise InvalidArgumentError(
                f"The degradation score of {len(merged.area)} examples is undefined: t1={t1:.3g} and b={b:.3g}, wanted "
                "t1 > b. Choose another baseline."
            )
        return summary


_CURVES = ("fractions", "morf", "lerf", "morf_top1", "lerf_top1")


def _on_grid(result: DegradationResult, name: str, like: DegradationResult) -> Tensor:
    """Curves with as many points as the longest, where batches differ in their number of units."""
    values: Tensor = getattr(result, name)
    if values.shape[1] == like.morf.shape[1]:
        return values
    grid = torch.linspace(0, 1, like.morf.shape[1], dtype=torch.float64, device=values.device)
    return grid.expand(len(values), -1) if name == "fractions" else at_fractions(values, result.fractions, grid)
