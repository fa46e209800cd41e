"""Colours and dashes of methods, the same in every figure."""

from __future__ import annotations

# Each stands out from white (LIGHT) or from near black (DARK) by 3 to 1 or more; neighbours differ in hue.
LIGHT = (
    *("#2a80e2", "#cf5604", "#019a46", "#c74c8e", "#0f919c", "#90790f", "#9163d5", "#6b7280"),
    *("#2440a8", "#753c03", "#055c3e", "#8f0046", "#005768", "#535000", "#6b248e"),
)
DARK = (
    *("#87bafd", "#fe9a6c", "#56d57b", "#fe8dc5", "#1acfdf", "#d8b501", "#c4a4fe", "#a9b4c2"),
    *("#5278e5", "#bf6501", "#089868", "#cd4a78", "#0d8fa9", "#89840e", "#a25cc8"),
)
# lengths of strokes and gaps; the numbers of colours and dashes share no divisor, so that few pairs repeat
DASHES: tuple[tuple[int, ...], ...] = ((), (9, 4), (3, 3), (12, 3, 3, 3))
