"""Texts for a paper: tokens coloured by each method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from captum_iba.comparison._html_photos import methods_with_maps
from captum_iba.comparison._html_texts import strengths_of, values_of
from captum_iba.comparison._text import number_text, plain_figure_text, probability_text
from captum_iba.comparison._types import ExampleInfo, MethodInfo, Results
from captum_iba.errors import InvalidArgumentError

_ABOVE, _BELOW = (0.90, 0.47, 0.0), (0.16, 0.43, 0.90)
_SIZE, _LINE_INCHES, _NAME_INCHES, _WIDTH_INCHES = 8, 0.2, 2.6, 12.0
# of the monospaced font, whose characters are all as wide
_CHARACTER_INCHES = 0.602 * _SIZE / 72


def plot_texts(results: Results, n: int = 8) -> Figure:
    """Draw texts, a line for each method, whose colour says what each token counts.

    Args:
        results (Results): a comparison with tokens and maps.
        n (int, optional): the most texts. Default: 8.

    Returns:
        matplotlib.figure.Figure: orange is above zero, blue below; each line has its own scale, whose ends stand beside
        the method's name, and whose strongest colour is the largest value of a token that is not special.
        Drawn without pyplot; ``figure.savefig(path)`` writes it.

    Raises:
        InvalidArgumentError: n below 1, or no tokens kept.

    Examples::

        >>> import numpy as np
        >>> from captum_iba.comparison._types import HeatMap
        >>> heatmap = HeatMap(np.array([[0, 255, 100]], dtype=np.uint8), 0.0, 1.5)
        >>> examples = [ExampleInfo("a", "good", "good", 0.9, tokens=("so", "warm", "!"), special=(False,) * 3)]
        >>> methods = [MethodInfo("IBA", "", "bits per token")]
        >>> figure = plot_texts(Results(methods, [], examples, {}, {}, {"IBA": {"a": heatmap}}, kind="text"))
        >>> [text.get_text() for text in figure.texts]
        ['a: target good, p = 0.900, predicted good', 'IBA, 0 to 1.5 bits per token', 'so', 'warm', '!']
    """
    examples = [example for example in results.examples if example.tokens]
    if n < 1 or not examples:
        raise InvalidArgumentError(f"n={n} of {len(examples)} texts; wanted at least one, and tokens that were kept.")
    methods = methods_with_maps(results)
    rows: list[tuple[ExampleInfo, MethodInfo | None, list[tuple[float, int]], int]] = []
    for example in examples[:n]:
        places, height = _places(example.tokens)
        rows.append((example, None, [], 2))
        rows += [(example, info, places, height) for info in methods]
    total = _LINE_INCHES * (1 + sum(height for *_, height in rows))
    figure = Figure(figsize=(_WIDTH_INCHES, total))
    FigureCanvasAgg(figure)
    top = total - _LINE_INCHES
    for example, info, places, height in rows:
        if info is None:
            probability = probability_text(example.probability)
            about = f"target {example.target}, p = {probability}, predicted {example.predicted}"
            _write(figure, f"{example.key}: {about}", 0.1, top - _LINE_INCHES, weight="bold")
        else:
            _draw_line(figure, results, example, info, places, top)
        top -= _LINE_INCHES * height
    return figure


def _places(tokens: Sequence[str]) -> tuple[list[tuple[float, int]], int]:
    """Inches from the left and line of each token, and the number of lines."""
    places, x, line = [], _NAME_INCHES, 0
    for token in tokens:
        width = (len(token) + 1.5) * _CHARACTER_INCHES
        if x + width > _WIDTH_INCHES - 0.1 and x > _NAME_INCHES:
            x, line = _NAME_INCHES, line + 1
        places.append((x, line))
        x += width
    return places, line + 1


def _draw_line(
    figure: Figure,
    results: Results,
    example: ExampleInfo,
    info: MethodInfo,
    places: list[tuple[float, int]],
    top: float,
) -> None:
    heatmap = results.maps[info.name].get(example.key)
    scale = "no map"
    strengths = [0.0] * len(example.tokens)
    if heatmap is not None:
        scale = f"{number_text(heatmap.low, 2)} to {number_text(heatmap.high, 2)} {info.unit.partition(',')[0]}"
        strengths = strengths_of(values_of(heatmap), example.special).tolist()
    _write(figure, f"{info.name}, {scale}", 0.1, top, size=5.5)
    for token, strength, (x, line) in zip(example.tokens, strengths, places, strict=True):
        colour = (*(_ABOVE if strength >= 0 else _BELOW), 0.6 * abs(strength))
        box = {"facecolor": colour, "edgecolor": "none", "boxstyle": "square,pad=0.15"}
        _write(figure, token, x, top - line * _LINE_INCHES, family="monospace", bbox=box)


def _write(figure: Figure, text: str, x: float, y: float, size: float = _SIZE, **options: Any) -> None:
    width, height = figure.get_size_inches()
    figure.text(x / width, y / height, plain_figure_text(text), fontsize=size, va="center", **options)
