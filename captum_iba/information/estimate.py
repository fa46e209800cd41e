"""What an estimator of mutual information returns: the value with all that is needed to judge it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from captum_iba.errors import InvalidArgumentError

Unit: TypeAlias = Literal["bits", "nats"]

BITS_PER_NAT = 1.0 / math.log(2.0)
# An estimate this near to the largest that its method can return says "at least so much" (nats).
SATURATED_WITHIN = 0.5


@dataclass(frozen=True)
class Estimate:
    """An estimate of mutual information.

    All tensors are 0-dimensional, or (dx, dy) for all pairs of columns of two matrices, in float64.

    Attributes:
        value (Tensor): the estimate, in ``unit``.
        standard_error (Tensor): its sampling error: the deviation of the examples' own terms over the root of ``n``. A
            bias of the estimator is not in it.
        n (int): number of examples that it rests on.
        estimator (str): the estimator and its settings.
        cap (Tensor): the largest value that the estimator can return for so many examples; infinity if there is none.
        slack (Tensor): known loss of the method beside its sampling error, added to the interval's upper end.
        in_sample (Tensor or None): the value on the examples that a critic was trained on; too high, for comparison.
        held_out (Tensor or None): the value on examples that no critic was trained on, before negative ones became 0.
        null_quantile (Tensor or None): 95 % quantile of the estimate when the pairs are permuted, that is, of estimates
            whose true value is 0.
        p_value (Tensor or None): share of permutations with an estimate as high as this one, the estimate included.
        warnings (tuple[str, ...]): traps that this estimate met.
        unit (str): ``"bits"`` or ``"nats"``.

    Examples::

        >>> import torch
        >>> from captum_iba.information import mutual_information
        >>> x = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
        >>> details = mutual_information(x, x + x.roll(1, 0), "gaussian", return_details=True)
        >>> details.unit, details.n, bool(details.saturated)
        ('bits', 1000, False)
        >>> low, high = details.interval
        >>> bool(low < 0.5 < high)  # 1/2 log2(1 + 1)
        True
    """

    value: Tensor
    standard_error: Tensor
    n: int
    estimator: str
    cap: Tensor
    slack: Tensor
    in_sample: Tensor | None = None
    held_out: Tensor | None = None
    null_quantile: Tensor | None = None
    p_value: Tensor | None = None
    warnings: tuple[str, ...] = ()
    unit: Unit = "nats"

    @property
    def interval(self) -> tuple[Tensor, Tensor]:
        """Value minus and plus two standard errors, the upper end with the ``slack``."""
        return self.value - 2 * self.standard_error, self.value + 2 * self.standard_error + self.slack

    @property
    def saturated(self) -> Tensor:
        """Bool: the value is so near to ``cap`` that the true one may be anything above."""
        within = SATURATED_WITHIN * (BITS_PER_NAT if self.unit == "bits" else 1.0)
        return self.value > self.cap - within

    def to(self, unit: Unit) -> Estimate:
        """The same estimate in another unit."""
        assert_unit(unit)
        if unit == self.unit:
            return self
        factor = BITS_PER_NAT if unit == "bits" else 1 / BITS_PER_NAT
        scaled = {name: value * factor for name, value in self._informations() if value is not None}
        return replace(self, unit=unit, **scaled)

    def _informations(self) -> list[tuple[str, Any]]:
        apart = ("p_value",)
        return [(f.name, v) for f in fields(self) if _is_tensor(v := getattr(self, f.name)) and f.name not in apart]


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def from_terms(terms: Tensor, estimator: str, cap: float = math.inf, **more: Any) -> Estimate:
    """An estimate that is the mean of its examples' own terms.

    Args:
        terms (Tensor): (n,), one information for each example, in nats.
        estimator (str): who made them.
        cap (float, optional): largest possible value, nats. Default: infinity.
        **more: further attributes.
    """
    terms = terms.double()
    n = len(terms)
    deviation = terms.std() if n > 1 else terms.new_tensor(math.nan)
    standing = {"slack": terms.new_zeros(()), **more}
    return Estimate(terms.mean(), deviation / n**0.5, n, estimator, terms.new_tensor(cap), **standing)


def no_information(shape: tuple[int, ...], n: int, estimator: str, reason: str, device: torch.device) -> Estimate:
    """Zero by definition, with the reason why."""
    zeros = torch.zeros(shape, dtype=torch.float64, device=device)
    return Estimate(zeros, zeros, n, estimator, zeros + math.inf, zeros, warnings=(reason,))


def assert_unit(unit: Any) -> None:
    """Refuse all but the two units.

    Raises:
        InvalidArgumentError: another one.
    """
    if unit not in ("bits", "nats"):
        raise InvalidArgumentError(f'unit={unit!r}; wanted "bits" or "nats".')
