"""Texts of the page: tokens coloured by each method."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from captum_iba.comparison._html_photos import methods_with_maps
from captum_iba.comparison._text import number_text, probability_text
from captum_iba.comparison._types import Array, ExampleInfo, HeatMap, MethodInfo, Results

STEPS = 10
"""Steps of colour either side of nothing."""

# of all texts under all methods: about 8 MB
_MOST_CELLS = 150_000


@dataclass(frozen=True)
class Token:
    """One token of a line: ``style`` is ``p`` or ``n`` with the step of its colour, and ``s`` where it is special."""

    text: str
    style: str
    value: str


@dataclass(frozen=True)
class Line:
    """A text under one method; ``scale`` is empty without a map."""

    place: int
    name: str
    scale: str
    tokens: list[Token]


@dataclass(frozen=True)
class Text:
    """One text, with a line for each method."""

    title: str
    target: str
    predicted: str
    probability: str
    lines: list[Line]


def texts(results: Results) -> list[Text]:
    """Texts whose tokens were kept: as many, from the first, as a page of about 8 MB has room for."""
    methods, found, cells = methods_with_maps(results), list[Text](), 0
    for example in results.examples:
        if not example.tokens:
            continue
        cells += len(example.tokens) * len(methods)
        if found and cells > _MOST_CELLS:
            break
        lines = [_line(place, info, example, results) for place, info in enumerate(methods)]
        probability = probability_text(example.probability)
        found.append(Text(example.key, example.target, example.predicted, probability, lines))
    return found


def _line(place: int, info: MethodInfo, example: ExampleInfo, results: Results) -> Line:
    heatmap = results.maps[info.name].get(example.key)
    if heatmap is None:
        plain = zip(example.tokens, example.special, strict=True)
        return Line(place, info.name, "", [Token(text, "s" if special else "", "") for text, special in plain])
    values = values_of(heatmap)
    strengths = strengths_of(values, example.special)
    tokens = [
        Token(text, _style(strength, special), number_text(value, 3))
        for text, value, strength, special in zip(example.tokens, values, strengths, example.special, strict=True)
    ]
    ends = f"{number_text(heatmap.low, 3)} to {number_text(heatmap.high, 3)}"
    return Line(place, info.name, f"{ends} {info.unit}", tokens)


def values_of(heatmap: HeatMap) -> Array:
    """The values of a text's map, (T,)."""
    top = np.iinfo(heatmap.levels.dtype).max
    found: Array = heatmap.low + heatmap.levels[0] / float(top) * (heatmap.high - heatmap.low)
    return found


def strengths_of(values: Array, special: tuple[bool, ...]) -> Array:
    """Values from -1 to 1: 1 is the largest of the tokens that are not special, beyond which special ones may lie.

    Examples::

        >>> strengths_of(np.array([8.0, 2.0, -1.0]), (True, False, False)).tolist()
        [1.0, 1.0, -0.5]
    """
    own = np.abs(values[~np.array(special, dtype=bool)])
    largest = float(own.max()) if len(own) else 0.0
    return np.clip(values / largest, -1.0, 1.0) if largest > 0 else np.zeros_like(values)


def _style(strength: float, special: bool) -> str:
    step = round(STEPS * abs(strength))
    colour = f"{'n' if strength < 0 else 'p'}{step}" if step else ""
    return f"s {colour}".strip() if special else colour
