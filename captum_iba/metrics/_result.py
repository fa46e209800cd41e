"""What every metric returns: one value an example, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from captum_iba._warn import Warner
from captum_iba.errors import InvalidArgumentError


@dataclass(frozen=True)
class MetricResult:
    """Values of a metric.

    Attributes:
        per_sample (Tensor): (N,), float64; NaN where the metric is undefined for an example. Such examples are left
            out of mean and standard error.
    """

    per_sample: Tensor

    @property
    def valid(self) -> Tensor:
        """The defined values."""
        return self.per_sample[~self.per_sample.isnan()]

    @property
    def n_valid(self) -> int:
        """Number of examples with a defined value."""
        return len(self.valid)

    @property
    def mean(self) -> float:
        """Mean over the defined values."""
        return float(self.valid.mean())

    @property
    def stderr(self) -> float:
        """Standard error of the mean, sample deviation over the root of the number; NaN for a single value."""
        return float(self.valid.std()) / self.n_valid**0.5 if self.n_valid > 1 else float("nan")


class UndefinedResultError(InvalidArgumentError):
    """No example has a value; classes that gather batches go on without this one's."""

    def __init__(self, message: str, result: MetricResult) -> None:
        super().__init__(message)
        self.result = result


def assert_defined(result: MetricResult, metric: str, reason: str) -> None:
    """Warn where some examples have no value, refuse where none has.

    Args:
        result (MetricResult): its values per example.
        metric (str): for messages.
        reason (str): why a value is undefined.

    Raises:
        UndefinedResultError: no value is defined.
    """
    total = len(result.per_sample)
    undefined = total - result.n_valid
    if undefined == total:
        raise UndefinedResultError(f"{metric} is undefined for all {total} examples: {reason}.", result)
    if undefined:
        Warner().once(metric, f"{metric} is undefined for {undefined} of {total} examples and left out: {reason}.")


def as_seed(seed: object) -> int:
    """A seed that torch takes.

    Raises:
        InvalidArgumentError: no integer.
    """
    if not isinstance(seed, int):
        raise InvalidArgumentError(f"seed={seed!r}; wanted an integer.")
    return seed % 2**63
