"""Curves of the page: lines in units of the plot, ticks in per cent of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.ticker import MaxNLocator

from captum_iba.comparison._palette import DASHES, LIGHT
from captum_iba.comparison._types import Array, Curve, MetricInfo, Results

# the plot is SIZE x SIZE units, stretched to the space there is
SIZE = 1000
# more points than can be told apart on a screen are left out
MOST_POINTS = 101
_MARKS = 8


@dataclass(frozen=True)
class Line:
    """A method's line: SVG paths of the means, of the band of a standard error around them, and of dots on it."""

    name: str
    path: str
    band: str
    marks: str


@dataclass(frozen=True)
class Series:
    """A method's lines and their style."""

    name: str
    colour: int
    dashes: str
    lines: list[Line]


@dataclass(frozen=True)
class Chart:
    """A metric's figure; ticks are (per cent, text)."""

    metric: MetricInfo
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    line_names: list[str]
    series: list[Series]


def charts(results: Results) -> list[Chart]:
    """A figure for each metric of which some method has a curve."""
    found = []
    for metric in results.metrics:
        curves = {
            place: thinned(results.curves[info.name][metric.name])
            for place, info in enumerate(results.methods)
            if metric.name in results.curves.get(info.name, {})
        }
        if curves:
            found.append(_chart(results, metric, curves))
    return found


def thinned(curve: Curve) -> Curve:
    """A curve with at most MOST_POINTS points, both ends among them.

    Examples::

        >>> x = np.linspace(0, 1, 785)
        >>> short = thinned(Curve(x, {"mean": (x, 0 * x)}))
        >>> len(short.x), float(short.x[0]), float(short.x[-1])
        (101, 0.0, 1.0)
    """
    x = np.asarray(curve.x, float)
    chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), MOST_POINTS)).round().astype(int))
    lines = {name: (np.asarray(m, float)[chosen], np.asarray(e, float)[chosen]) for name, (m, e) in curve.lines.items()}
    return Curve(x[chosen], lines)


def _chart(results: Results, metric: MetricInfo, curves: dict[int, Curve]) -> Chart:
    x_values = np.concatenate([curve.x for curve in curves.values()])
    y_values = np.concatenate(
        [
            mean + sign * np.nan_to_num(error)
            for curve in curves.values()
            for mean, error in curve.lines.values()
            for sign in (-1, 1)
        ]
    )
    x_range, y_range = _range(x_values), _range(y_values)
    names = list(dict.fromkeys(name for curve in curves.values() for name in curve.lines))
    series = [
        Series(
            results.methods[place].name,
            place % len(LIGHT),
            " ".join(map(str, DASHES[place % len(DASHES)])),
            [_line(name, curve, x_range, y_range, place) for name in names if name in curve.lines],
        )
        for place, curve in curves.items()
    ]
    return Chart(metric, _ticks(x_range), _ticks(y_range), names, series)


def _range(values: Array) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if low == high:
        return low - 0.5, high + 0.5
    return low, high


def _ticks(ends: tuple[float, float]) -> list[tuple[float, str]]:
    low, high = ends
    values = MaxNLocator(nbins=5).tick_values(low, high)
    slack = 1e-9 * (high - low)
    inside = [float(value) for value in values if low - slack <= value <= high + slack]
    return [(round(100 * (value - low) / (high - low), 2), f"{value:.6g}") for value in inside]


def _line(name: str, curve: Curve, x_range: tuple[float, float], y_range: tuple[float, float], place: int) -> Line:
    mean, error = curve.lines[name]
    x = _scaled(curve.x, x_range)
    middle = SIZE - _scaled(mean, y_range)
    upper, lower = (SIZE - _scaled(mean + sign * error, y_range) for sign in (1, -1))
    shown = np.flatnonzero(np.isfinite(x) & np.isfinite(middle))
    marks = "".join(f"M{_point(x[i], middle[i])}h0" for i in _dots(shown, place))
    return Line(name, _path(x, middle), _band(x, upper, lower), marks)


def _dots(shown: npt.NDArray[np.intp], place: int) -> list[int]:
    """Points that get a dot; those of different methods stand at different places."""
    n = len(shown)
    return sorted({int(shown[(number * n + place * n // 5) // _MARKS % n]) for number in range(_MARKS if n else 0)})


def _scaled(values: Array, ends: tuple[float, float]) -> Array:
    low, high = ends
    return SIZE * (np.asarray(values, float) - low) / (high - low)


def _path(x: Array, y: Array) -> str:
    """Pieces between undefined points."""
    text, pen = [], "M"
    for one, other in zip(x, y, strict=True):
        if np.isfinite(one) and np.isfinite(other):
            text.append(pen + _point(one, other))
            pen = "L"
        else:
            pen = "M"
    return "".join(text)


def _band(x: Array, upper: Array, lower: Array) -> str:
    """An area for each piece without undefined points."""
    defined = np.isfinite(x) & np.isfinite(upper) & np.isfinite(lower)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], defined, [False]]).astype(int)))
    text = ""
    for start, stop in edges.reshape(-1, 2):
        there = [_point(x[i], upper[i]) for i in range(start, stop)]
        back = [_point(x[i], lower[i]) for i in range(stop - 1, start - 1, -1)]
        text += "M" + "L".join(there + back) + "Z"
    return text


def _point(x: float, y: float) -> str:
    return f"{x:.0f} {y:.1f}".replace(".0", "")
