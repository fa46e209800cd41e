"""Variables as estimators want them: checked, in float64 or as labels, without constant columns, ranked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_iba.errors import InvalidArgumentError, InvalidTypeError, MismatchedArgumentsError, NonFiniteError

# A column that varies by less than so many roundings of its largest value is constant; 16 bits have few values, so that
# there even one rounding is a difference.
_ROUNDINGS, _ROUNDINGS_OF_16_BITS = 4.0, 0.5


def is_labels(variable: Tensor) -> bool:
    """Whether a checked variable holds labels rather than numbers."""
    return not variable.is_floating_point()


def as_variable(name: str, value: Any) -> Tensor:
    """Numbers as float64 (n, d); integers and booleans, whose values are names, as labels 0, 1, ... of shape (n,).

    Args:
        name (str): of the argument.
        value (Tensor): (n,) or (n, d). Rows of integers are one label each.

    Raises:
        InvalidTypeError: no tensor, or a complex one.
        InvalidArgumentError: no examples, or another number of dimensions.
        NonFiniteError: a NaN or an infinity.
    """
    if not isinstance(value, Tensor):
        raise InvalidTypeError(f"{name} is a {type(value).__name__}; wanted a tensor (torch.as_tensor makes one).")
    if value.is_complex():
        raise InvalidTypeError(f"{name} is complex; wanted real numbers (torch.view_as_real gives two columns).")
    if value.ndim not in (1, 2) or value.numel() == 0:
        raise InvalidArgumentError(
            f"{name} has shape {tuple(value.shape)}; wanted (n,) or (n, d) with a row for each example (flatten(1))."
        )
    columns = value.detach() if value.ndim == 2 else value.detach()[:, None]
    if not columns.is_floating_point():
        return numbered(columns)
    if not bool(columns.isfinite().all()):
        bad = int((~columns.isfinite()).any(dim=1).nonzero()[0])
        raise NonFiniteError(f"{name} has a NaN or an infinity in row {bad}; leave such rows out of both variables.")
    return columns.double()


def assert_pairs(x: Tensor, y: Tensor, at_least: int) -> None:
    """Refuse variables that are not pairs, or too few.

    Raises:
        MismatchedArgumentsError: of different lengths, or on different devices.
        InvalidArgumentError: too few.
    """
    if len(x) != len(y):
        raise MismatchedArgumentsError(f"x has {len(x)} examples and y has {len(y)}; wanted a row of each per example.")
    if x.device != y.device:
        raise MismatchedArgumentsError(f"x is on {x.device} and y on {y.device}; move one of them.")
    if len(x) < at_least:
        raise InvalidArgumentError(f"There are {len(x)} examples; this estimator needs at least {at_least}.")


def varying(variable: Tensor, given: torch.dtype) -> Tensor:
    """Bool for each column (one for labels): whether it varies by more than its dtype's rounding.

    Args:
        variable (Tensor): as :func:`as_variable` returns it.
        given (torch.dtype): of the user's tensor.
    """
    if is_labels(variable):
        return (variable != variable[0]).any()[None]
    spread = variable.amax(dim=0) - variable.amin(dim=0)
    roundings = _ROUNDINGS_OF_16_BITS if torch.finfo(given).bits == 16 else _ROUNDINGS
    return spread > roundings * torch.finfo(given).eps * variable.abs().amax(dim=0)


def rank_gaussianize(variable: Tensor, generator: torch.Generator) -> Tensor:
    """Each column's ranks as quantiles of the standard normal distribution: ``ndtri(rank / (n + 1))``.

    Mutual information does not change under strictly monotone maps of single columns. Ties are broken at random, for
    each column anew: the spread-out column still determines the old one, and what it has beyond that is noise that
    belongs to no other column.

    Args:
        variable (Tensor): (n, d), or labels, which are returned as they are.
        generator (torch.Generator): on the CPU, breaks ties.

    Returns:
        Tensor: (n, d), float64.
    """
    if is_labels(variable):
        return variable
    n = len(variable)
    quantiles = torch.special.ndtri(torch.arange(1, n + 1, dtype=torch.float64, device=variable.device) / (n + 1))
    ranked = torch.empty_like(variable, dtype=torch.float64)
    for column, out in zip(variable.T, ranked.T, strict=True):
        shuffle = torch.randperm(n, generator=generator).to(variable.device)
        out[shuffle[column[shuffle].argsort(stable=True)]] = quantiles
    return ranked


def numbered(rows: Tensor) -> Tensor:
    """Rows of integers as labels 0, 1, ...: (n, d) -> (n,)."""
    labels: Tensor = torch.unique(rows, dim=0, return_inverse=True)[1]
    return labels.reshape(-1)
