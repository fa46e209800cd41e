"""The information bottleneck between jointly Gaussian variables, exact: what a variational bottleneck should reach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_iba.errors import InvalidArgumentError, InvalidTypeError
from captum_iba.information.estimate import BITS_PER_NAT, Unit, assert_unit


class GaussianBottleneck(NamedTuple):
    """Optimal bottlenecks, one for each beta; each tensor in float64 and of the shape of beta.

    Attributes:
        i_xz (Tensor): I(X;Z), what the bottleneck keeps of its input.
        i_zy (Tensor): I(Z;Y), what this tells of the output.
        n_components (Tensor): number of directions of X that pass at all, int64.
    """

    i_xz: Tensor
    i_zy: Tensor
    n_components: Tensor


def gaussian_information_bottleneck(
    correlations: float | Sequence[float] | Tensor, beta: float | Sequence[float] | Tensor, unit: Unit = "bits"
) -> GaussianBottleneck:
    r"""Minimum of ``beta * I(X;Z) - I(Z;Y)`` over all Z that depend on X alone, for jointly Gaussian X and Y.

    Chechik et al., Information Bottleneck for Gaussian Variables (JMLR 2005). In the canonical coordinates of X the
    problem falls into one for each canonical correlation rho. A direction with :math:`\rho^2 \le \beta` is dropped;
    any other gets a noisy copy with

    .. math::

        I(X;Z) = \tfrac12 \ln \frac{\rho^2 (1-\beta)}{\beta (1-\rho^2)}, \qquad
        I(Z;Y) = \tfrac12 \ln \frac{1-\beta}{1-\rho^2},

    and vectors have the sums. The beta here is the weight of the *rate*, as in
    :class:`~captum_iba.information.vib_loss.VIBLoss`; Chechik et al. weigh I(Z;Y), so that their beta is one over this.

    Args:
        correlations (float, Sequence[float] or Tensor): canonical correlations of X and Y, a number or (d,), each
            between -1 and 1, ends excluded.
        beta (float, Sequence[float] or Tensor): weights of the rate, a number or any shape, each above 0. From 1 on
            nothing passes.
        unit (str, optional): of the informations, ``"bits"`` or ``"nats"``; beta is the same for both. Default:
            ``"bits"``.

    Returns:
        GaussianBottleneck: I(X;Z), I(Z;Y) and the number of directions that pass, of the shape of beta.

    Raises:
        InvalidArgumentError: a correlation or beta is out of range, or no number.
        InvalidTypeError: one of them is nothing that a tensor can be made of.

    Examples::

        >>> optimum = gaussian_information_bottleneck(0.8, beta=[0.1, 0.5, 0.7])
        >>> optimum.i_xz.mul(1000).round().int().tolist()  # millibits; nothing from beta = 0.8**2 on
        [2000, 415, 0]
        >>> gaussian_information_bottleneck([0.9, 0.8, 0.2], beta=0.5).n_components.item()
        2
    """
    assert_unit(unit)
    rho, weight = _as_numbers("correlations", correlations), _as_numbers("beta", beta)
    if rho.ndim > 1 or rho.numel() == 0:
        raise InvalidArgumentError(f"correlations has shape {tuple(rho.shape)}; wanted a number or (d,).")
    if not bool((rho.abs() < 1).all()):
        raise InvalidArgumentError(
            f"correlations={rho.tolist()}; wanted each between -1 and 1, ends excluded: X that determines Y has "
            "infinite information."
        )
    if not bool((weight > 0).all()):
        raise InvalidArgumentError(
            f"beta={weight.tolist()}; wanted each above 0: without a price, all of X passes, which is infinite."
        )
    squared, each = rho.reshape(-1).square(), weight.unsqueeze(-1)
    passes = squared > each
    # where nothing passes, any number keeps the logarithms finite
    price, relevance = torch.where(passes, each, 0.5), torch.where(passes, squared, 0.5)
    i_zy = 0.5 * (torch.log1p(-price) - torch.log1p(-relevance))
    i_xz = i_zy + 0.5 * (relevance.log() - price.log())
    factor = BITS_PER_NAT if unit == "bits" else 1.0
    rate, relevant = (torch.where(passes, values, 0.0).sum(dim=-1) * factor for values in (i_xz, i_zy))
    return GaussianBottleneck(rate, relevant, passes.sum(dim=-1))


def _as_numbers(name: str, value: Any) -> Tensor:
    try:
        numbers = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidTypeError(f"{name} is {value!r}; wanted numbers, a list of them, or a tensor.") from error
    if not bool(numbers.isfinite().all()):
        raise InvalidArgumentError(f"{name}={numbers.tolist()}; wanted finite numbers.")
    return numbers.detach()
