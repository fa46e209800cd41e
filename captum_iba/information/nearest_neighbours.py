"""Mutual information from distances to nearest neighbours: Kraskov et al. 2004, and Ross 2014 for labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from captum_iba._numbers import assert_integer
from captum_iba.errors import InvalidArgumentError
from captum_iba.information.estimate import Estimate, from_terms
from captum_iba.information.estimator import Estimator, columns_of
from captum_iba.information.variables import is_labels

# Doubles of one table of distances: 16 MB, which stays in a processor's cache for the most part.
_TABLE = 2**21
_TIED_SHARE = 0.01
_SCALE_RATIO = 10.0
_MANY_DIMENSIONS = 4
_MUCH = 0.5  # nats; from here on, many dimensions cost the estimate more than its sampling error


@dataclass(frozen=True)
class KSG(Estimator, name="ksg"):
    r"""The first estimator of Kraskov, Stögbauer and Grassberger (2004, eq. 8), with the maximum norm.

    :math:`\psi(k) + \psi(n) - \langle\psi(n_x + 1) + \psi(n_y + 1)\rangle` with the numbers :math:`n_x, n_y` of
    examples nearer in x, or in y, than the k-th neighbour in both. For labels the estimator of Ross (2014), eq. 6;
    examples alone in their class are left out there. The first choice for two single columns. It is too low where the
    information is high in several dimensions, and never above :math:`\psi(n) - \psi(k)`.

    Args:
        k (int, optional): number of neighbours. More lower the variance and raise the bias. Default: 3, as Kraskov
            et al. recommend (2 to 4).

    Examples::

        >>> import torch
        >>> from captum_iba.information import KSG, mutual_information
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(2000, generator=generator)
        >>> labels = x > 0  # one bit, which x determines
        >>> round(float(mutual_information(x, labels, KSG(k=5))), 2)
        1.0
    """

    k: int = 3

    ranked: ClassVar[bool] = True
    takes_labels: ClassVar[str] = "one"

    def __post_init__(self) -> None:
        assert_integer("k", self.k)

    @property
    def at_least(self) -> int:  # type: ignore[override]
        """Examples needed: each must have k others."""
        return self.k + 2

    def estimate(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Estimate:
        """See :meth:`Estimator.estimate`."""
        if is_labels(y):
            return self._of_labels(x, y)
        _assert_few_ties(x, y)
        terms = torch.cat([self._terms(_table(x, rows), _table(y, rows)) for rows in _chunks(len(x), len(x))])
        return from_terms(terms, repr(self), self._cap(len(x)), warnings=_met(x, y, terms.mean()))

    def pairwise(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Estimate:
        """See :meth:`Estimator.pairwise`; a column's distances are computed once for all its pairs."""
        if is_labels(x) or is_labels(y):
            return super().pairwise(x, y, generator)
        _assert_few_ties(x, y)
        n = len(x)
        sums = x.new_zeros(2, x.shape[1], y.shape[1])
        for rows in _chunks(n, n * (1 + y.shape[1])):
            tables = [_table(column, rows) for column in columns_of(y)]
            for i, column in enumerate(columns_of(x)):
                own = _table(column, rows)
                terms = torch.stack([self._terms(own, other) for other in tables])
                sums[:, i] += torch.stack([terms.sum(dim=1), terms.square().sum(dim=1)])
        mean, square = sums / n
        error = ((square - mean.square()).clamp_min(0.0) / (n - 1)).sqrt()
        none = torch.zeros_like(mean)
        return Estimate(mean, error, n, repr(self), none + self._cap(n), none, warnings=_met(x, y, none[0, 0]))

    def _terms(self, x: Tensor, y: Tensor) -> Tensor:
        """Each row's information from its distances to all examples, itself included: two (rows, n) -> (rows,)."""
        # the k-th neighbour, after the example itself
        radius = torch.maximum(x, y).topk(self.k + 1, dim=1, largest=False).values[:, -1:]
        # strictly nearer, and the example itself: n_x + 1. It is not nearer than a radius of 0, hence the minimum
        counts = [(table < radius).sum(dim=1).clamp_min(1).double() for table in (x, y)]
        return _digamma(self.k, x) + _digamma(x.shape[1], x) - counts[0].digamma() - counts[1].digamma()

    def _cap(self, n: int) -> float:
        return float(torch.special.digamma(torch.tensor([n, self.k], dtype=torch.float64)).diff().neg())

    def _of_labels(self, x: Tensor, labels: Tensor) -> Estimate:
        """Ross 2014: the k-th neighbour of the own class, and how many of any class are nearer."""
        _assert_few_ties(x)
        sizes = labels.bincount()
        kept = (sizes > 1)[labels]
        if not bool(kept.any()):
            raise InvalidArgumentError(
                f"Each of the {len(labels)} examples has a label of its own; KSG needs classes of several examples. "
                "Numbers belong in a floating-point tensor."
            )
        x, labels = x[kept], labels[kept]
        terms = x.new_empty(len(x))
        for label in sizes.nonzero()[:, 0]:
            members = (labels == label).nonzero()[:, 0]
            if len(members) == 0:
                continue
            k = min(self.k, len(members) - 1)
            for rows in _chunks(len(members), len(x)):
                part = members[rows]
                table = _table(x, part)
                radius = table[:, members].topk(k + 1, dim=1, largest=False).values[:, -1:]
                counts = (table < radius).sum(dim=1).clamp_min(1).double()
                terms[part] = _digamma(k, x) - _digamma(len(members), x) - counts.digamma()
        terms += _digamma(len(x), x)
        return from_terms(terms, repr(self), warnings=_met(x, x[:, :0], terms.mean()) + _alone(int((~kept).sum())))


def _digamma(value: int, like: Tensor) -> Tensor:
    return like.new_tensor(float(value)).digamma()


def _chunks(n: int, width: int) -> Iterator[slice]:
    """Rows in parts whose tables of so many columns stay small."""
    step = max(1, _TABLE // width)
    return (slice(start, start + step) for start in range(0, n, step))


def _table(points: Tensor, rows: slice | Tensor) -> Tensor:
    """Distances in the maximum norm of some points to all: (rows, n)."""
    if points.shape[1] == 1:
        return (points[rows] - points.T).abs_()
    return torch.cdist(points[rows], points, p=float("inf"))


def _assert_few_ties(*variables: Tensor) -> None:
    """Refuse columns with many equal values, among which distances do not tell neighbours apart."""
    for variable in variables:
        for column in variable.T:
            tied = float((column.sort().values.diff() == 0).double().mean())
            if tied > _TIED_SHARE:
                raise InvalidArgumentError(
                    f"{tied:.0%} of a column's values repeat others; nearest neighbours allow {_TIED_SHARE:.0%}. Leave "
                    'transform="auto", which breaks ties at random, or pass values that are names as integers.'
                )


def _met(x: Tensor, y: Tensor, value: Tensor) -> tuple[str, ...]:
    """The traps of distances."""
    met = []
    deviations = torch.cat([x, y], dim=1).std(dim=0)
    if float(deviations.max()) > _SCALE_RATIO * float(deviations.min()):
        met.append(
            f"The columns' standard deviations reach from {float(deviations.min()):.3g} to "
            f'{float(deviations.max()):.3g}, and the widest decides who is a neighbour; leave transform="auto".'
        )
    n_dimensions = x.shape[1] + y.shape[1]
    if n_dimensions > _MANY_DIMENSIONS and float(value) > _MUCH:
        met.append(
            f"Nearest neighbours in {n_dimensions} dimensions find too little of high information, by a nat and more; "
            'estimator="neural" is made for this.'
        )
    return tuple(met)


def _alone(n: int) -> tuple[str, ...]:
    return (f"{n} examples that are alone in their class were left out.",) if n else ()
