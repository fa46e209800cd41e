"""Values, and what there is to say about them, as a reader sees them: the same in every table and figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from captum_iba.comparison._types import MethodInfo, MetricInfo, Results

NOTHING = "–"
BOUNDING_BOX = "bounding box"
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


def plain_figure_text(text: str) -> str:
    """Text of which matplotlib reads no part as mathematics, which a $ would start."""
    return text.replace("$", r"\$")


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


def count_text(n: int, thing: str = "example") -> str:
    """A number of things.

    Examples::

        >>> count_text(1), count_text(2)
        ('1 example', '2 examples')
    """
    return f"{n} {thing}{'' if n == 1 else 's'}"


def seconds_text(results: Results) -> str:
    """What the time of a method is of."""
    return "seconds a text" if results.kind == "text" else "seconds an image"


def names_text(names: Sequence[str], everything: Sequence[str], whole: str) -> str:
    """Names in a row; ``whole`` for all of them, and for more than half of them without the rest.

    Examples::

        >>> names_text(["a", "b"], ["a", "b"], "all"), names_text(["a"], ["a", "b", "c"], "all")
        ('all', 'a')
        >>> names_text(["a", "b", "d", "e"], ["a", "b", "c", "d", "e"], "all")
        'all but c'
    """
    rest = [name for name in everything if name not in names]
    if len(everything) > 1 and not rest:
        return whole
    return ", ".join(names) if len(names) <= len(rest) or not rest else f"{whole} but {', '.join(rest)}"


def methods_that_ran(results: Results) -> list[MethodInfo]:
    """Methods with values, in order."""
    return [info for info in results.methods if not info.reason]


def value_count(results: Results, method: str, metric: str) -> int:
    """The number of examples on which a method has a value of a metric."""
    return int((~np.isnan(results.scores[method][metric])).sum())


def column_count(results: Results, metric: str) -> int:
    """The number of examples that a column is about: those on which any method has a value of it."""
    defined = np.zeros(len(results.examples), bool)
    for info in methods_that_ran(results):
        defined |= ~np.isnan(results.scores[info.name][metric])
    return int(defined.sum())


def fewer_text(results: Results, method: str, metric: str) -> str:
    """``"n=2"`` where a value rests on fewer examples than its column is about; else empty."""
    n = value_count(results, method, metric)
    return f"n={n}" if n not in (0, column_count(results, metric)) else ""


def stopped_lines(results: Results) -> list[str]:
    """Methods that could not run, with their reasons."""
    return [f"{info.name} could not run: {info.reason}" for info in results.methods if info.reason]


def notes(results: Results) -> list[str]:
    """What the table leaves open, a line each: failures, constant maps, and why a value is missing."""
    total, ran = count_text(len(results.examples)), methods_that_ran(results)
    failed = [
        f"{info.name} failed on {info.n_failed} of {total}" + (f": {info.failure}" if info.failure else "")
        for info in ran
        if info.n_failed
    ]
    constant = [
        f"{info.name}'s map is constant on {count_text(info.n_constant)}, where it ranks nothing"
        for info in ran
        if info.n_constant
    ]
    columns = [line for metric in results.metrics if ran for line in _column_notes(results, metric.name)]
    trained = [
        f"training {info.name} took {number_text(info.fit_seconds, 3)} s, which is not in its {seconds_text(results)}"
        for info in ran
        if info.fit_seconds is not None
    ]
    costs = (("time", [info.seconds for info in ran]), ("peak memory", [info.peak_memory for info in ran]))
    return [
        *failed,
        *constant,
        *columns,
        *trained,
        *(line for name, values in costs for line in _unmeasured(ran, name, values)),
    ]


def _column_notes(results: Results, metric: str) -> list[str]:
    ran = [info.name for info in methods_that_ran(results)]
    undefined: dict[tuple[int, str], list[str]] = {}
    for name in ran:
        n, reason = results.undefined.get(name, {}).get(metric, (0, ""))
        if n:
            undefined.setdefault((n, reason), []).append(name)
    explained = {name for names in undefined.values() for name in names}
    silent = [name for name in ran if name not in explained and not value_count(results, name, metric)]
    lines = []
    for (n, reason), names in undefined.items():
        who = names_text(names, ran, "all methods")
        lines.append(f"{metric} is undefined on {count_text(n)} for {who}" + (f": {reason}" if reason else ""))
    if silent:
        missing = "boxes (or masks)" if metric == BOUNDING_BOX else "a value"
        who = "" if len(silent) == len(ran) else f" for {names_text(silent, ran, 'all methods')}"
        lines.append(f"{metric}: no example has {'a value' if who else missing}{who}")
    wanted, total = column_count(results, metric), len(results.examples)
    if 0 < wanted < total:
        why = "; it needs boxes (or masks)" if metric == BOUNDING_BOX else ""
        lines.append(f"{metric}: over {wanted} of {count_text(total)}{why}")
    return lines


def _unmeasured(ran: Sequence[MethodInfo], name: str, values: Sequence[float]) -> list[str]:
    without = [info.name for info, value in zip(ran, values, strict=True) if math.isnan(value)]
    if len(without) == len(ran):
        return [f"{name} was not measured"] if ran else []
    return [f"{name} was not measured for {', '.join(without)}"] if without else []


def left_out(results: Results, most: int = 10) -> tuple[str, list[str]]:
    """Examples that could not be read: a heading, and a line each for the first of them; empty without any.

    Examples::

        >>> left_out(Results([], [], [], {}, {}, {}, skipped={"a": "broken", "b": "too small"}), most=1)
        ('Left out 2 of 2 examples', ['a: broken', 'and 1 more'])
    """
    skipped = [f"{key}: {reason}" for key, reason in results.skipped.items()]
    if not skipped:
        return "", []
    more = [f"and {len(skipped) - most} more"] if len(skipped) > most else []
    return f"Left out {len(skipped)} of {count_text(len(skipped) + len(results.examples))}", [*skipped[:most], *more]


SUMMARY_HEADING = "Best mean of each metric; not told apart from it: a paired difference within two standard errors"


def summary(results: Results) -> list[str]:
    """The best mean of each metric, and the methods that are not told apart from it, a line each.

    Examples::

        >>> from captum_iba.comparison._types import ExampleInfo
        >>> methods, metrics = [MethodInfo(name, "", "") for name in "abc"], [MetricInfo("insertion", "")]
        >>> values = {"a": [3.0, 5.0, 4.1], "b": [3.1, 4.9, 4.0], "c": [1.0, 2.0, 2.1]}
        >>> scores = {name: {"insertion": np.array(own)} for name, own in values.items()}
        >>> examples = [ExampleInfo(key, "cat", "cat", 0.9) for key in "xyz"]
        >>> summary(Results(methods, metrics, examples, scores, {}, {}))
        ['insertion: a; not told apart: b']
        >>> summary(Results(methods[1:], metrics, examples, scores, {}, {}))
        ['insertion: b, ahead of c by more than two standard errors']
    """
    return [line for metric in results.metrics if (line := _best_line(results, metric))]


def _best_line(results: Results, metric: MetricInfo) -> str:
    means = {info.name: results.mean(info.name, metric.name) for info in methods_that_ran(results)}
    sign = -1.0 if metric.higher_is_better else 1.0
    order = sorted((name for name, mean in means.items() if not math.isnan(mean)), key=lambda name: sign * means[name])
    if metric.higher_is_better is None or len(order) < 2:
        return ""
    best, others = order[0], order[1:]
    level, ahead = [], []
    for other in others:
        difference, error, _ = results.paired(other, best, metric.name)
        if not abs(difference) > 2 * error:  # undefined ones as well
            level.append(other)
        elif sign * difference < 0:  # they share only some of the examples
            ahead.append(other)
    fewer = fewer_text(results, best, metric.name)
    line = f"{metric.name}: {best}{f' ({fewer})' if fewer else ''}"
    if level:
        line += f"; not told apart: {names_text(level, others, 'all others')}"
    if ahead:
        line += f"; better on the examples that both have: {', '.join(ahead)}"
    if not level and not ahead:
        rivals = "all others" if len(others) > 1 else others[0]
        line += f", ahead of {rivals} by more than two standard errors"
    return line
