"""Information through a channel with Gaussian noise: T = s(X) + N(0, noise_var I), s a function without randomness."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from captum_iba._numbers import assert_integer, assert_number
from captum_iba.errors import InvalidArgumentError
from captum_iba.information.estimate import Estimate, from_terms
from captum_iba.information.estimator import Estimator

# Entries of the kernel matrix that are held at once (2 MiB): they stay in the cache, and freed blocks are small enough
# that what the allocator keeps of them does not add up in a long training.
_ENTRIES = 2**18
# With more columns, distances from a matrix product: faster, and exact enough.
_DIRECT_COLUMNS = 32

NO_BOUND = (
    "The information about labels is the difference of two entropies, each replaced by a bound: it is an estimate, and "
    "itself no bound."
)


@dataclass(frozen=True)
class NoiseChannel(Estimator):
    """What the estimators of T = s + noise share: one matrix of kernels between all s_i, read row by row.

    With q_i the mean kernel of row i, and q_i(a) its mean over the examples with the same label, the information of
    the labels about T is the mean of ``ln q_i(a_i) - ln q_i``. Where each row has a label of its own, q_i(a_i) is 1.
    The terms also hold what example i does to all other rows' means (their influence function, mean 0), so that their
    deviation gives the standard error.
    """

    noise_var: float = 1e-3

    takes_labels: ClassVar[str] = "one"
    at_least: ClassVar[int] = 2

    def __post_init__(self) -> None:
        assert_number("noise_var", self.noise_var, lambda value: value > 0, "above 0")

    def estimate(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Estimate:
        """Information of x about y + noise, in nats.

        Args:
            x (Tensor): (n, dx), where equal rows are the same input; or labels (n,).
            y (Tensor): (n, dy); or labels (n,), if x is not: then the noise is added to x.
            generator (torch.Generator): draws the noise, where noise is drawn.
        """
        labels, signal = (x, y) if y.is_floating_point() else (y, x)
        if labels.is_floating_point():
            labels = distinct_rows(labels)
        return self.label_information(signal, [labels], generator)[0]

    def label_information(self, signal: Tensor, labels: Sequence[Tensor], generator: torch.Generator) -> list[Estimate]:
        """Information of several labels about the same signal with noise, from one matrix of kernels.

        Args:
            signal (Tensor): (n, d), floating point.
            labels (Sequence[Tensor]): int64 (n,) each.
            generator (torch.Generator): draws the noise, where noise is drawn.

        Returns:
            list[Estimate]: one for each of the labels, in nats; the cap is ln n.
        """
        assert_channel(signal, labels)
        n = len(signal)
        own = [_LogMeans(one) for one in labels]
        everyone = _LogMeans(torch.zeros_like(labels[0]))
        n_kernels = 0
        for rows, kernel in self._kernels(_scaled(signal, self.noise_var), generator):
            n_kernels += len(kernel)
            for means in (everyone, *own):
                means.add(rows, kernel)
        passes = n_kernels // n
        return [
            from_terms((means.terms - everyone.terms) / passes, repr(self), math.log(n), warnings=means.warnings)
            for means in own
        ]

    @abstractmethod
    def _kernels(self, scaled: Tensor, generator: torch.Generator) -> Iterator[tuple[slice, Tensor]]:
        """Rows and their kernels with all examples, (rows, n), 1 on the diagonal; each row equally often.

        Args:
            scaled (Tensor): (n, d), the signal in standard deviations of the noise.
            generator (torch.Generator): on the CPU.
        """


@dataclass(frozen=True)
class KDE(NoiseChannel, name="kde"):
    """Bounds on the information through a channel with Gaussian noise by pairwise distances.

    With s_i the signal (n examples), ``-mean_i ln mean_j exp(-|s_i - s_j|^2 / (2 noise_var))`` bounds I(S; S + noise)
    from above, and the same with 8 in place of 2 from below (Kolchinsky and Tracey 2017, "Estimating mixture entropy
    with pairwise distances", section 4), if the n examples are all that there is. As an estimate for a population, both
    end at ln n. The information about labels is a difference of such bounds, and no bound.

    Args:
        noise_var (float, optional): variance of the noise, in the square of y's unit. Default: 1e-3, the literature's
            for hidden units with values in [-1, 1].
        bound (str, optional): ``"upper"`` or ``"lower"``. Default: ``"upper"``, as in the literature.

    Raises:
        InvalidArgumentError: a variance that is not above 0, another bound.

    Examples::

        >>> import torch
        >>> corners = torch.tensor([[-1.0], [1.0]]).repeat(50, 1).double()  # one bit, told apart in spite of the noise
        >>> which = torch.arange(100)
        >>> estimate = KDE(noise_var=0.01).estimate(which, corners, torch.Generator())
        >>> f"{estimate.to('bits').value:.3f}"
        '1.000'
    """

    bound: Literal["upper", "lower"] = "upper"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bound not in ("upper", "lower"):
            raise InvalidArgumentError(f'bound={self.bound!r}; wanted "upper" or "lower".')

    def _kernels(self, scaled: Tensor, generator: torch.Generator) -> Iterator[tuple[slice, Tensor]]:
        factor = -1 / 2 if self.bound == "upper" else -1 / 8
        for rows in blocks(len(scaled), len(scaled)):
            yield rows, squared_distances(scaled, rows).mul_(factor).exp_()


@dataclass(frozen=True)
class SamplePropagation(NoiseChannel, name="noise"):
    """Information through a channel with Gaussian noise by drawing the noise.

    The entropy of the mixture of Gaussians around all s_i is the mean of its own negative log density at s_i + noise
    (Goldfeld et al. 2019, "Estimating information flow in deep neural networks", section 4, the sample-propagation
    estimator). It lies between the two bounds of :class:`KDE` up to the error of drawing. As the noise's density at
    its own draws is subtracted with the same draws, the value is never above ln n. For n examples the bias is small
    while the information is below about ln n - 3 nats; the error falls with 1 / sqrt(n), at a rate that grows
    exponentially in the dimension.

    Args:
        noise_var (float, optional): variance of the noise, in the square of y's unit. Default: 1e-3, as for
            :class:`KDE`.
        n_draws (int, optional): draws for each example. Default: 5; the examples themselves average the noise too.

    Raises:
        InvalidArgumentError: a variance that is not above 0, no draws.

    Examples::

        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> s = torch.randn(1000, 1, generator=generator).double()
        >>> estimate = SamplePropagation(noise_var=0.1).estimate(s, s, generator)
        >>> abs(float(estimate.value) - 0.5 * math.log(1 + 1 / 0.1)) < 0.1
        True
    """

    n_draws: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        assert_integer("n_draws", self.n_draws)

    def _kernels(self, scaled: Tensor, generator: torch.Generator) -> Iterator[tuple[slice, Tensor]]:
        source = independent(generator)
        for rows in blocks(len(scaled), len(scaled)):
            own = scaled[rows]
            squared = squared_distances(scaled, rows)
            for _ in range(self.n_draws):
                noise = torch.randn(own.shape, generator=source, dtype=torch.float64).to(own.device)
                # density at s_i + noise around s_k, over that around s_i. With u the distance of s_i and s_k it is
                # exp(u z - u^2 / 2) <= exp(z^2 / 2) for a standard normal z: never too large for a float
                exponent = (noise @ scaled.T).sub_((noise * own).sum(dim=1, keepdim=True)).sub_(squared, alpha=0.5)
                _diagonal(exponent, rows).zero_()
                yield rows, exponent.exp_()


class _LogMeans:
    """Log means of kernels over the examples with the same label, with the influence of each example on all."""

    def __init__(self, labels: Tensor) -> None:
        self._labels = torch.unique(labels, return_inverse=True)[1]
        counts = self._labels.bincount()
        self._sizes = counts[self._labels].double()
        self._n_groups = len(counts)
        self.terms = torch.zeros(len(labels), dtype=torch.float64, device=labels.device)

    @property
    def warnings(self) -> tuple[str, ...]:
        """That a difference of bounds is no bound, where there is a difference."""
        return () if self._n_groups == len(self._labels) else (NO_BOUND,)

    def add(self, rows: slice, kernel: Tensor) -> None:
        """Take the kernels of these rows with all examples into account."""
        if self._n_groups == len(self._labels):  # the means are the diagonal: 1
            self.terms[rows] += 1
            return
        if self._n_groups > 1:
            kernel = kernel * (self._labels[rows, None] == self._labels)
        sums = kernel.sum(dim=1)
        self.terms[rows] += (sums / self._sizes[rows]).log()
        self.terms += (1 / sums) @ kernel


def independent(generator: torch.Generator) -> torch.Generator:
    """A generator whose numbers have nothing to do with those of a user who took the same seed for the data."""
    return torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))


def as_rows(variable: Tensor) -> Tensor:
    """A row for each example: (n,) or (n, ...) -> (n, d)."""
    return variable.unsqueeze(-1).flatten(1)


def distinct_rows(variable: Tensor) -> Tensor:
    """Labels that are equal where rows are: (n, ...) -> int64 (n,)."""
    rows = as_rows(variable.detach()).cpu()
    rows = rows.double() + 0.0 if rows.is_floating_point() else rows  # -0.0 and 0.0 are one number
    numbers: dict[bytes, int] = {}
    labels = [numbers.setdefault(row.tobytes(), len(numbers)) for row in rows.contiguous().numpy()]
    return torch.tensor(labels, device=variable.device)


def assert_channel(signal: Tensor, labels: Sequence[Tensor]) -> None:
    """Refuse a signal that no noise can be added to, and labels that do not fit it.

    Raises:
        InvalidArgumentError: another number of dimensions, integers, or lengths that differ.
    """
    if signal.ndim != 2 or not signal.is_floating_point():
        raise InvalidArgumentError(
            f"The signal has shape {tuple(signal.shape)} and dtype {signal.dtype}; wanted floating point (n, d), as "
            "noise is added to it. For two sets of labels take Binning()."
        )
    for one in labels:
        if one.shape != signal.shape[:1] or one.is_floating_point():
            raise InvalidArgumentError(
                f"Labels have shape {tuple(one.shape)} and dtype {one.dtype} for a signal of {len(signal)} examples; "
                f"wanted int64 ({len(signal)},)."
            )


def spread_terms(signal: Tensor, noise_var: float, n_draws: int, generator: torch.Generator) -> Tensor:
    """Terms (n,) whose mean is h(S + noise) - h(noise), S a row of ``signal`` at random; by drawing, in nats."""
    channel = SamplePropagation(noise_var, n_draws)
    means = _LogMeans(torch.zeros(len(signal), dtype=torch.long, device=signal.device))
    for rows, kernel in channel._kernels(_scaled(signal, noise_var), generator):
        means.add(rows, kernel)
    return 1 - means.terms / n_draws


def blocks(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Rows in blocks that hold a bounded number of entries; for the same matrix always the same blocks."""
    size = max(1, _ENTRIES // n_columns)
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))


def squared_distances(points: Tensor, rows: slice) -> Tensor:
    """Squared Euclidean distances of some rows to all, 0 from each to itself: (rows, n)."""
    own = points[rows]
    if points.shape[1] <= _DIRECT_COLUMNS:
        squared = torch.cdist(own, points, compute_mode="donot_use_mm_for_euclid_dist").square_()
    else:
        norms = points.square().sum(dim=1)
        squared = torch.addmm(norms[rows, None] + norms, own, points.T, alpha=-2).clamp_(min=0)
    _diagonal(squared, rows).zero_()
    return squared


def _scaled(signal: Tensor, noise_var: float) -> Tensor:
    """The signal around 0, where differences lose least, in standard deviations of the noise."""
    signal = signal.detach().double()
    return (signal - signal.mean(dim=0)) / math.sqrt(noise_var)


def _diagonal(block: Tensor, rows: slice) -> Tensor:
    """Entries (i, i) of the matrix that this block of rows is from."""
    return block.diagonal(rows.start)[: len(block)]
