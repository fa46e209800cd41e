"""Colours, dashes and marks of methods, the same in every figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from captum_iba.comparison._types import Array

# Each stands out from white (LIGHT) or from near black (DARK) by 3 to 1 or more; neighbours differ in hue.
LIGHT = (
    *("#2a80e2", "#cf5604", "#019a46", "#c74c8e", "#0f919c", "#90790f", "#9163d5", "#6b7280"),
    *("#2440a8", "#753c03", "#055c3e", "#8f0046", "#005768", "#535000", "#6b248e"),
    *("#ee0a34", "#20242b", "#e010e0", "#7c9a00", "#5a10e8"),
)
DARK = (
    *("#87bafd", "#fe9a6c", "#56d57b", "#fe8dc5", "#1acfdf", "#d8b501", "#c4a4fe", "#a9b4c2"),
    *("#5278e5", "#bf6501", "#089868", "#cd4a78", "#0d8fa9", "#89840e", "#a25cc8"),
    *("#ff5050", "#f4f6f8", "#ff30f0", "#c0f020", "#8060ff"),
)
# lengths of strokes and gaps
DASHES: tuple[tuple[int, ...], ...] = ((), (9, 4), (3, 3), (12, 3, 3, 3))
# disc, square, triangles, diamond, plus, cross: in matplotlib's letters, and as SVG paths about (0, 0)
MARKS = ("o", "s", "^", "v", "D", "P", "X")
MARK_PATHS = (
    "M-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0-7.2 0Z",
    "M-3.2-3.2h6.4v6.4h-6.4Z",
    "M0-4.4L4.2 3.2H-4.2Z",
    "M0 4.4L4.2-3.2H-4.2Z",
    "M0-4.6L4.6 0L0 4.6L-4.6 0Z",
    "M-1.5-4.4h3v2.9h2.9v3h-2.9v2.9h-3v-2.9h-2.9v-3h2.9Z",
    "M0-2.1L2.3-4.4L4.4-2.3L2.1 0L4.4 2.3L2.3 4.4L0 2.1L-2.3 4.4L-4.4 2.3L-2.1 0L-4.4-2.3L-2.3-4.4Z",
)
IN_FRONT = "LayerIBA"
"""Method whose lines are drawn last and thicker, and whose maps the page opens with."""

_MARKS_A_LINE = 3
_GOLDEN = 0.618034


@dataclass(frozen=True)
class Style:
    """Looks of the method in one place: numbers of its colour, dashes and mark."""

    colour: int
    dashes: int
    mark: int


def style_of(place: int) -> Style:
    """A style that none of the next 100 places has.

    Examples::

        >>> style_of(0), style_of(20)
        (Style(colour=0, dashes=0, mark=0), Style(colour=0, dashes=1, mark=6))
    """
    return Style(place % len(LIGHT), (place + place // len(LIGHT)) % len(DASHES), place % len(MARKS))


def mark_points(x: Sequence[float] | Array, y: Sequence[float] | Array, place: int) -> list[tuple[float, float]]:
    """Points of a line that carry its marks: those of different methods stand apart, so that equal lines show all.

    Examples::

        >>> mark_points([0.0, 3.0, 6.0, 9.0], [1.0, 1.0, 1.0, 2.0], place=0)
        [(0.0, 1.0), (3.0, 1.0), (6.0, 1.0)]
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    shown = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    found: list[tuple[float, float]] = []
    for number in range(_MARKS_A_LINE if len(shown) else 0):
        at = (number + place * _GOLDEN % 1) / _MARKS_A_LINE * (len(shown) - 1)
        one = shown[int(at)]
        other = shown[min(int(at) + 1, len(shown) - 1)]
        part = at % 1 if other == one + 1 else 0.0  # none between pieces
        found.append((float(x[one] + part * (x[other] - x[one])), float(y[one] + part * (y[other] - y[one]))))
    return found
