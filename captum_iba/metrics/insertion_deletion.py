"""Area under the decision while the most relevant parts are added to, or removed from, an input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_iba._captum import TargetType
from captum_iba.metrics._baselines import Baselines
from captum_iba.metrics._curves import Order, at_fractions, common_fractions, integral, prepare, removal_curves
from captum_iba.metrics._output import OutputType
from captum_iba.metrics._perturb import Removal
from captum_iba.metrics._result import MetricResult, assert_defined
from captum_iba.metrics._units import Tensors, Units


@dataclass(frozen=True)
class AreaResult(MetricResult):
    """Area under curves.

    Attributes:
        per_sample (Tensor): (N,), area under the example's curve over the share from 0 to 1; NaN where there is
            nothing to remove.
        fractions (Tensor): (N, P), share of the units inserted or deleted, most relevant first.
        values (Tensor): (N, P), the target's value there.
    """

    fractions: Tensor
    values: Tensor

    @property
    def x(self) -> Tensor:
        """(P,), shares at which the mean curve is given."""
        return common_fractions(self.fractions)

    @property
    def curve(self) -> Tensor:
        """(P,), mean curve over the examples with units to remove."""
        return at_fractions(self.values, self.fractions, self.x)[~self.per_sample.isnan()].mean(dim=0)


def deletion(
    forward_func: Callable[..., Any],
    inputs: Tensors,
    attributions: Tensors,
    baselines: Baselines = "mean",
    feature_mask: Tensors | None = None,
    additional_forward_args: object | None = None,
    target: TargetType = None,
    *,
    tile_size: int | None = 1,
    n_steps: int | None = 100,
    output: OutputType = "prob",
    max_examples_per_batch: int | None = None,
    seed: int = 0,
    show_progress: bool = False,
) -> AreaResult:
    """Replace the most relevant units first; a good attribution gives a small area.

    It is the MoRF curve of :func:`degradation` alone, pixel by pixel; arguments that are not listed are those of
    :func:`degradation`, ties and errors too.

    Args:
        forward_func (Callable): see :func:`degradation`.
        inputs (Tensor or tuple[Tensor, ...]): see :func:`degradation`.
        attributions (Tensor or tuple[Tensor, ...]): see :func:`degradation`.
        baselines (optional): see :func:`degradation`. Default: ``"mean"``.
        feature_mask (Tensor or tuple[Tensor, ...], optional): see :func:`degradation`. Default: None.
        additional_forward_args (Any, optional): as in Captum. Default: None.
        target (int, tuple, Tensor or list, optional): as in Captum. Default: None.
        tile_size (int, optional): side of a tile. Default: 1, pixels.
        n_steps (int, optional): number of points on the curve. Default: 100; None for every unit.
        output (str or Callable, optional): see :func:`degradation`. Default: ``"prob"``.
        max_examples_per_batch (int, optional): most rows in one forward pass. Default: None, see :func:`degradation`.
        seed (int, optional): of the order of equal scores. Default: 0.
        show_progress (bool, optional): show a progress bar. Default: False.

    Returns:
        AreaResult: areas and curves; lower is better.

    Reference:
        Petsiuk et al. 2018 (RISE), section 4.2.

    Examples::

        >>> x = torch.tensor([[3.0, 1.0]])
        >>> deletion(lambda x: x.sum(dim=1), x, x, 0.0).values.tolist()
        [[4.0, 1.0, 0.0]]
    """
    removal, units = prepare(
        forward_func,
        inputs,
        attributions,
        baselines,
        feature_mask,
        additional_forward_args,
        target,
        tile_size=tile_size,
        output=output,
        removal="replace",
        max_examples_per_batch=max_examples_per_batch,
        progress="deletion" if show_progress else None,
    )
    return _area(removal, units, "morf", n_steps, seed)


def insertion(
    forward_func: Callable[..., Any],
    inputs: Tensors,
    attributions: Tensors,
    baselines: Baselines = "blur",
    feature_mask: Tensors | None = None,
    additional_forward_args: object | None = None,
    target: TargetType = None,
    *,
    tile_size: int | None = 1,
    n_steps: int | None = 100,
    output: OutputType = "prob",
    max_examples_per_batch: int | None = None,
    seed: int = 0,
    show_progress: bool = False,
) -> AreaResult:
    """Start from the baseline and insert the most relevant units first; a good attribution gives a large area.

    Args:
        forward_func (Callable): see :func:`degradation`.
        inputs (Tensor or tuple[Tensor, ...]): see :func:`degradation`.
        attributions (Tensor or tuple[Tensor, ...]): see :func:`degradation`.
        baselines (optional): see :func:`degradation`. Default: ``"blur"``: a blurred image keeps the insertion from
            drawing edges of its own.
        feature_mask (Tensor or tuple[Tensor, ...], optional): see :func:`degradation`. Default: None.
        additional_forward_args (Any, optional): as in Captum. Default: None.
        target (int, tuple, Tensor or list, optional): as in Captum. Default: None.
        tile_size (int, optional): side of a tile. Default: 1, pixels.
        n_steps (int, optional): number of points on the curve. Default: 100; None for every unit.
        output (str or Callable, optional): see :func:`degradation`. Default: ``"prob"``.
        max_examples_per_batch (int, optional): most rows in one forward pass. Default: None, see :func:`degradation`.
        seed (int, optional): of the order of equal scores. Default: 0.
        show_progress (bool, optional): show a progress bar. Default: False.

    Returns:
        AreaResult: areas and curves; higher is better.

    Reference:
        Petsiuk et al. 2018 (RISE), section 4.2.

    Examples::

        >>> x = torch.tensor([[3.0, 1.0]])
        >>> insertion(lambda x: x.sum(dim=1), x, x, 0.0).values.tolist()
        [[0.0, 3.0, 4.0]]
    """
    removal, units = prepare(
        forward_func,
        inputs,
        attributions,
        baselines,
        feature_mask,
        additional_forward_args,
        target,
        tile_size=tile_size,
        output=output,
        removal="replace",
        max_examples_per_batch=max_examples_per_batch,
        progress="insertion" if show_progress else None,
    )
    return _area(removal, units, "lerf", n_steps, seed)


def _area(removal: Removal, units: Units, order: Order, n_steps: int | None, seed: int) -> AreaResult:
    curves = removal_curves(removal, units, (order,), n_steps, "even", 1, seed)
    fractions, values = curves.fractions, curves.values[order]
    if order == "lerf":
        # inserting the best k leaves out the worst K - k: the removal's curve, read from its end
        fractions, values = 1 - fractions.flip(1), values.flip(1)
    area = torch.where(units.count > 0, integral(values, fractions, "even"), float("nan"))
    result = AreaResult(area, fractions, values)
    assert_defined(result, "The area", "an example has no unit that may be removed")
    return result
