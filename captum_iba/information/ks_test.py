"""Whether two sets of attributions have the same distribution, and whether they rank alike."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_iba.errors import InvalidArgumentError, InvalidTypeError, MismatchedArgumentsError, NonFiniteError

# up to so many steps of a lattice its paths are counted; beyond, the limit distribution is exact to three digits
_COUNTED = 4_000_000


@dataclass(frozen=True)
class KSTest:
    """Two-sample Kolmogorov-Smirnov test.

    Attributes:
        statistic (float): D, the largest difference of the two empirical distribution functions, from 0 to 1.
        p_value (float): probability of a D at least as large if both samples come from one continuous distribution.
        least_p_value (float): the p value of D = 1, the smallest that samples of these sizes can reach.
        exact (bool): by counting; else from the limit distribution.
        n (tuple[int, int]): sizes of the samples.
    """

    statistic: float
    p_value: float
    least_p_value: float
    exact: bool
    n: tuple[int, int]

    def describe(self) -> str:
        """What the test says and does not say, in words."""
        found = f"D = {self.statistic:.3g}, {'exact ' if self.exact else ''}p = {self.p_value:.3g}"
        if self.p_value < 0.05:
            said = "the two distributions differ; a large D and a small p speak against equality, never for it"
        else:
            said = "no difference is shown, which does not show that the distributions are the same"
        power = ""
        if self.least_p_value > 0.001:
            power = (
                f" With {self.n[0]} against {self.n[1]} values even the largest distance, D = 1, has p = "
                f"{self.least_p_value:.3g}: there is next to no power. Judge by rank correlations."
            )
        return f"{found}: {said}.{power}"


def ks_test(a: Tensor, b: Tensor) -> KSTest:
    """Test whether two samples come from the same distribution.

    D is a *distance*: 0 for samples that are distributed alike, 1 for samples that do not overlap. A small p value
    rejects equality. The poster of Neural Information Flow reads both the other way round: it reports D = 1 with p =
    0.011 as "the same distribution", which is the largest distance there is and a rejection. With four features, as
    there, D is one of 0, 0.25, 0.5, 0.75 and 1, whose exact p values are 1, 1, 0.77, 0.23 and 0.029; the poster's
    figures are the large-sample formula's. So few values decide nothing: compare ranks with :func:`spearman` and
    :func:`kendall` in place of it. Values are compared as they are, so scale both to the same sum first.

    Args:
        a (Tensor): (n,), values of one sample.
        b (Tensor): (m,), of the other.

    Returns:
        KSTest: with D, p, and :meth:`KSTest.describe` for the reading.

    Raises:
        InvalidTypeError: no tensor.
        InvalidArgumentError: not of one dimension, or empty.
        NonFiniteError: a NaN or an infinity.

    Examples::

        >>> import torch
        >>> found = ks_test(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([5.0, 6.0, 7.0, 8.0]))
        >>> found.statistic, round(found.p_value, 4)
        (1.0, 0.0286)
        >>> print(found.describe())
        D = 1, exact p = 0.0286: the two distributions differ; a large D and a small p speak against equality, never for
        it. With 4 against 4 values even the largest distance, D = 1, has p = 0.0286: there is next to no power. Judge
        by rank correlations.
    """
    a, b = _sample("a", a), _sample("b", b)
    n, m = len(a), len(b)
    values = torch.unique(torch.cat([a, b]))
    below = [torch.searchsorted(sample.sort().values, values, right=True) for sample in (a, b)]
    # in units of 1 / (n m), where it is an integer
    steps = int((below[0] * m - below[1] * n).abs().max())
    exact = n * m <= _COUNTED
    p_value = _counted(steps, n, m) if exact else _limit(steps / (n * m), n, m)
    # two of the (n + m choose n) orders have one sample before the other
    least = 2.0 / math.comb(n + m, n) if n + m < 1000 else 0.0
    return KSTest(steps / (n * m), p_value, min(least, 1.0), exact, (n, m))


def spearman(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation; equal values have the mean of their ranks.

    Args:
        a (Tensor): (n,).
        b (Tensor): (n,).

    Returns:
        float: from -1 to 1.

    Raises:
        InvalidArgumentError: fewer than two values, or all the same, which have no ranks.
        CaptumIBAError: as :func:`ks_test`; or lengths that differ.

    Examples::

        >>> round(spearman(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([0.1, 0.5, 0.2])), 4)
        0.5
    """
    ranks = [_ranks(values) for values in _paired(a, b)]
    x, y = (rank - rank.mean() for rank in ranks)
    return float((x @ y) / (x.norm() * y.norm()))


def kendall(a: Tensor, b: Tensor) -> float:
    """Kendall's rank correlation, tau-b: pairs in the same order less pairs in the other, ties in neither left out.

    Args:
        a (Tensor): (n,).
        b (Tensor): (n,).

    Returns:
        float: from -1 to 1.

    Raises:
        CaptumIBAError: as :func:`spearman`.

    Examples::

        >>> round(kendall(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([0.1, 0.5, 0.2])), 4)
        0.3333
    """
    x, y = ((values[:, None] - values[None, :]).sign() for values in _paired(a, b))
    return float((x * y).sum() / (x.square().sum() * y.square().sum()).sqrt())


def _counted(steps: int, n: int, m: int) -> float:
    """Share of orders of the two samples whose distribution functions come ``steps / (n m)`` apart or further.

    An order is a lattice path from (0, 0) to (n, m), and each is as likely. The chance to have stayed nearer than that
    is carried from column to column: a path at (i, j) goes on to the right with probability (n - i) of what is left.
    """
    if steps == 0:
        return 1.0
    j = torch.arange(m + 1, dtype=torch.float64)
    inside = [(i * m - j * n).abs() < steps for i in range(n + 1)]
    # probability that a random path is at (i, j), having stayed inside
    column = torch.zeros(m + 1, dtype=torch.float64)
    column[0] = 1.0
    for i in range(n + 1):
        column = _upwards(column, inside[i], i, n, m)
        if i < n:
            left = n - i + m - j
            column = column * (n - i) / left
    return min(max(1.0 - float(column[m]), 0.0), 1.0)


def _upwards(column: Tensor, inside: Tensor, i: int, n: int, m: int) -> Tensor:
    """Add to each place of a column what comes from below it."""
    values, allowed = column.tolist(), inside.tolist()
    for j in range(m + 1):
        if j:
            values[j] += values[j - 1] * (m - j + 1) / (n - i + m - j + 1)
        if not allowed[j]:
            values[j] = 0.0
    return torch.tensor(values, dtype=torch.float64)


def _limit(distance: float, n: int, m: int) -> float:
    scaled = distance * math.sqrt(n * m / (n + m))
    if scaled < 0.2:  # the sum below converges slowly there, and is 1 to ten digits
        return 1.0
    terms = (2.0 * (-1.0) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101))
    return min(max(math.fsum(terms), 0.0), 1.0)


def _sample(name: str, values: Tensor) -> Tensor:
    if not isinstance(values, Tensor):
        raise InvalidTypeError(f"{name} is a {type(values).__name__}; wanted a tensor.")
    if values.ndim != 1 or not len(values):
        raise InvalidArgumentError(f"{name} has shape {list(values.shape)}; wanted (n,), at least one value.")
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteError(f"{name} holds a NaN or an infinity.")
    return values.detach().double().cpu()


def _paired(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    a, b = _sample("a", a), _sample("b", b)
    if len(a) != len(b):
        raise MismatchedArgumentsError(f"a has {len(a)} values and b {len(b)}; wanted as many.")
    for name, values in (("a", a), ("b", b)):
        if bool((values == values[0]).all()):
            raise InvalidArgumentError(f"{name} holds {len(values)} equal values, which cannot be ranked.")
    return a, b


def _ranks(values: Tensor) -> Tensor:
    _, places, counts = torch.unique(values, return_inverse=True, return_counts=True)
    means: Tensor = counts.cumsum(0) - (counts.double() - 1) / 2
    return means[places]
