"""Values as a reader sees them: the same in every table and figure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from captum_iba.comparison._types import MetricInfo

NOTHING = "–"
_ARROWS = {True: "↑", False: "↓", None: ""}


def number_text(value: float, digits: int = 4) -> str:
    """A number with that many significant digits, in plain notation where it is readable.

    Args:
        value (float): the number.
        digits (int, optional): at least one. Default: 4.

    Returns:
        str: a dash for NaN.

    Examples::

        >>> number_text(0.123456), number_text(12345.6, 3), number_text(1.5e-7, 2), number_text(float("nan"))
        ('0.1235', '12346', '1.5e-07', '–')
    """
    if math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def mean_text(mean: float, error: float) -> str:
    """A mean and its standard error, both to the error's second significant digit.

    Args:
        mean (float): the mean; NaN where there is none.
        error (float): its standard error; NaN where fewer than two values are behind the mean.

    Returns:
        str: a dash where there is no mean.

    Examples::

        >>> mean_text(0.51234, 0.01234), mean_text(51.2, 12.3), mean_text(0.5, float("nan"))
        ('0.512 ± 0.012', '51 ± 12', '0.5000 ± –')
    """
    if math.isnan(mean):
        return NOTHING
    if not math.isfinite(error) or error == 0 or not 1e-5 <= error < 1e7:
        return f"{number_text(mean)} ± {number_text(error, 2)}"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{mean:.{decimals}f} ± {error:.{decimals}f}"


def probability_text(probability: float) -> str:
    """A probability; small ones keep two digits.

    Examples::

        >>> probability_text(0.98765), probability_text(0.00001234)
        ('0.988', '1.2e-05')
    """
    return NOTHING if math.isnan(probability) else f"{probability:.3f}" if probability >= 1e-3 else f"{probability:.1e}"


def heading_text(metric: MetricInfo) -> str:
    """A metric's name and direction.

    Examples::

        >>> heading_text(MetricInfo("insertion", "...")), heading_text(MetricInfo("size", "...", None))
        ('insertion ↑', 'size')
    """
    return f"{metric.name} {_ARROWS[metric.higher_is_better]}".strip()


def plain_text(value: object) -> str:
    """A configured value on one line.

    Examples::

        >>> plain_text({"seed": 0, "sizes": (8, 14)}), plain_text(None)
        ('seed = 0, sizes = 8, 14', 'none')
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {plain_text(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(plain_text(item) for item in value)
    return "none" if value is None else str(value)


def best_of(values: Mapping[str, float], higher_is_better: bool | None) -> set[str]:
    """Names of the best values; none without direction, or without two values to compare.

    Examples::

        >>> sorted(best_of({"a": 1.0, "b": 2.0, "c": 2.0, "d": float("nan")}, True))
        ['b', 'c']
        >>> best_of({"a": 1.0, "d": float("nan")}, True)
        set()
    """
    defined = {name: value for name, value in values.items() if not math.isnan(value)}
    if higher_is_better is None or len(defined) < 2:
        return set()
    best = max(defined.values()) if higher_is_better else min(defined.values())
    return {name for name, value in defined.items() if value == best}
