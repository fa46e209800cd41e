"""Curves of the page: lines in units of the plot, ticks in per cent of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator

from captum_iba.comparison._palette import DASHES, IN_FRONT, mark_points, style_of
from captum_iba.comparison._types import Array, Curve, MetricInfo, Results

# the plot is SIZE x SIZE units, stretched to the space there is
SIZE = 1000
# more points than can be told apart on a screen are left out
MOST_POINTS = 101
# so many bands of a standard error can be told apart
MOST_BANDS = 4


@dataclass(frozen=True)
class Line:
    """A method's line: SVG paths of the means and of the band of a standard error, marks in per cent of the plot."""

    name: str
    path: str
    band: str
    marks: list[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """A method's lines and their style; one ``in_front`` is drawn last and thicker."""

    name: str
    colour: int
    dashes: str
    mark: int
    in_front: bool
    lines: list[Line]


@dataclass(frozen=True)
class Chart:
    """A metric's figure; ticks are (per cent, text), ``same`` groups of methods whose curves are equal."""

    metric: MetricInfo
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    line_names: list[str]
    series: list[Series]
    same: list[list[str]]


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
        _series(
            results.methods[place].name,
            place,
            [_line(name, curve, x_range, y_range, place) for name in names if name in curve.lines],
        )
        for place, curve in curves.items()
    ]
    same = _equal({results.methods[place].name: curve for place, curve in curves.items()})
    return Chart(metric, _ticks(x_range), _ticks(y_range), names, series, same)


def _series(name: str, place: int, lines: list[Line]) -> Series:
    style = style_of(place)
    return Series(name, style.colour, " ".join(map(str, DASHES[style.dashes])), style.mark, name == IN_FRONT, lines)


def _equal(curves: Mapping[str, Curve]) -> list[list[str]]:
    """Names of curves that lie on each other."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, curve in curves.items():
        lines = tuple((line, (np.round(mean, 9) + 0.0).tobytes()) for line, (mean, _) in curve.lines.items())
        groups.setdefault((curve.x.tobytes(), lines), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


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
    marks = [(round(100 * one / SIZE, 2), round(100 * other / SIZE, 2)) for one, other in mark_points(x, middle, place)]
    return Line(name, _path(x, middle), _band(x, upper, lower), marks)


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
