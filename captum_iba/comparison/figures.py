"""A comparison as figures for a paper: means and curves, and a grid of heat maps."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image

from captum_iba.comparison._html_photos import methods_with_maps, photo_size
from captum_iba.comparison._palette import DASHES, IN_FRONT, LIGHT, MARKS, mark_points, style_of
from captum_iba.comparison._text import (
    heading_text,
    names_text,
    number_text,
    plain_figure_text,
    probability_text,
    stopped_lines,
)
from captum_iba.comparison._types import Array, Curve, ExampleInfo, HeatMap, MethodInfo, MetricInfo, Results
from captum_iba.errors import InvalidArgumentError
from captum_iba.visualization import COLORMAP

# of maps: with six and the photo in a row, 18 inches
_CELL_INCHES, _BAR_INCHES, _ROW_GAP, _TITLE_INCHES = 1.95, 0.62, 0.4, 0.35
_MOST_MAPS = 6
_PANEL_INCHES = (4.6, 3.4)
_MOST_COLUMNS = 3
_MOST_BANDS = 5


def plot_results(results: Results) -> Figure:
    """Draw every metric's means with standard errors, and every curve.

    With at most five methods, a curve has the band of its standard error. Marks of different methods stand at different
    places, so that curves that lie on each other show the marks of each.

    Args:
        results (Results): a comparison of M methods in K metrics.

    Returns:
        matplotlib.figure.Figure: K panels of means, then a panel for each metric with curves; the methods that ran keep
        their colour, dash and mark throughout. Without metrics or methods that ran, a text says why. Drawn without
        pyplot; ``figure.savefig(path)`` writes it.

    Examples::

        >>> from captum_iba.comparison._types import ExampleInfo, MethodInfo
        >>> scores = {"IBA": {"insertion": np.array([0.5, 0.7])}}
        >>> curves = {"IBA": {"insertion": Curve(np.arange(3.0), {"mean": (np.ones(3), np.zeros(3))})}}
        >>> examples = [ExampleInfo("a", "cat", "cat", 0.9), ExampleInfo("b", "dog", "dog", 0.8)]
        >>> methods, metrics = [MethodInfo("IBA", "", "bits per pixel")], [MetricInfo("insertion", "...")]
        >>> figure = plot_results(Results(methods, metrics, examples, scores, curves, {}))
        >>> [axis.get_title() for axis in figure.axes]
        ['insertion ↑', 'insertion']
    """
    ran = [place for place, info in enumerate(results.methods) if not info.reason]
    if not ran or not results.metrics:
        return _reasons(results)
    with_curves = [
        metric
        for metric in results.metrics
        if any(metric.name in results.curves.get(results.methods[place].name, {}) for place in ran)
    ]
    figure, axes = _panels(len(results.metrics) + len(with_curves), len(ran))
    for axis, metric in zip(axes, results.metrics, strict=False):
        _draw_means(axis, results, metric, ran)
    for axis, metric in zip(axes[len(results.metrics) :], with_curves, strict=True):
        _draw_curves(axis, results, metric, ran)
    if with_curves:
        _draw_legend(figure, results, ran)
    return figure


def _reasons(results: Results) -> Figure:
    """A figure without panels."""
    lines = stopped_lines(results) or ["There are no methods."]
    lines = ["There are no metrics."] if not results.metrics and not results.methods else ["Nothing to draw.", *lines]
    figure = Figure(figsize=(2 * _PANEL_INCHES[0], 0.5 + 0.4 * len(lines)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("\n".join(plain_figure_text(_shortened(line, 130)) for line in lines), fontsize=8)
    return figure


def _draw_legend(figure: Figure, results: Results, ran: list[int]) -> None:
    handles = [
        Line2D([], [], marker=_mark(place), markersize=5, **_line_style(results.methods[place].name, 0, place))
        for place in ran
    ]
    names = [plain_figure_text(results.methods[place].name) for place in ran]
    title = (
        None
        if len(ran) <= _MOST_BANDS
        else f"Standard errors of the curves are drawn for at most {_MOST_BANDS} methods."
    )
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=min(6, len(ran)),
        fontsize=8,
        handlelength=4,
        title=title,
        title_fontsize=8,
    )


def _panels(number: int, n_methods: int) -> tuple[Figure, list[Axes]]:
    columns = min(number, _MOST_COLUMNS)
    rows = math.ceil(number / columns)
    width, height = _PANEL_INCHES
    size = (width * columns, max(height, 0.25 * n_methods + 1.2) * rows)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for empty in axes[number:]:
        empty.remove()
    return figure, axes[:number]


def _draw_means(axis: Axes, results: Results, metric: MetricInfo, ran: list[int]) -> None:
    for row, place in enumerate(ran):
        name = results.methods[place].name
        mean, error = results.mean(name, metric.name), results.stderr(name, metric.name)
        axis.errorbar(
            [mean], [row], xerr=[0.0 if math.isnan(error) else error], fmt="o", capsize=3, color=_colour(place)
        )
        if math.isnan(mean):
            axis.text(0.02, row, "– no value", transform=axis.get_yaxis_transform(), va="center", fontsize=8)
    axis.set_yticks(range(len(ran)), [plain_figure_text(results.methods[place].name) for place in ran], fontsize=8)
    axis.set_ylim(len(ran) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.3)
    axis.set_title(plain_figure_text(heading_text(metric)), fontsize=10)
    axis.set_xlabel("mean ± standard error", fontsize=8)
    axis.tick_params(labelsize=8)


def _draw_curves(axis: Axes, results: Results, metric: MetricInfo, ran: list[int]) -> None:
    curves = {
        place: curve
        for place in ran
        if (curve := results.curves.get(results.methods[place].name, {}).get(metric.name)) is not None
    }
    line_names = list(dict.fromkeys(name for curve in curves.values() for name in curve.lines))
    for place, curve in curves.items():
        _draw_curve(axis, results.methods[place].name, curve, line_names, place, banded=len(ran) <= _MOST_BANDS)
    if len(line_names) > 1:
        handles = [
            Line2D([], [], **{**_line_style("", number, 0), **_mark_style(number, 0), "color": "black"})
            for number in range(len(line_names))
        ]
        axis.legend(handles, line_names, fontsize=7)
    axis.set_title(plain_figure_text(metric.name), fontsize=10)
    axis.set_xlabel(metric.x_label, fontsize=8)
    axis.set_ylabel(metric.y_label, fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)


def _draw_curve(axis: Axes, method: str, curve: Curve, line_names: list[str], place: int, banded: bool) -> None:
    for number, name in enumerate(line_names):
        if name not in curve.lines:
            continue
        mean, error = curve.lines[name]
        if banded:
            axis.fill_between(curve.x, mean - error, mean + error, color=_colour(place), alpha=0.12, linewidth=0)
        axis.plot(curve.x, mean, **_line_style(method, number, place))
        points = np.array(mark_points(curve.x, mean, place)).reshape(-1, 2)
        # above the lines of all methods
        axis.plot(points[:, 0], points[:, 1], linestyle="none", zorder=3, **_mark_style(number, place))


def _colour(place: int) -> str:
    return LIGHT[style_of(place).colour]


def _mark(place: int) -> str:
    return MARKS[style_of(place).mark]


def _line_style(method: str, number: int, place: int) -> dict[str, Any]:
    """The first line of a curve is thick, further ones are thin; dashes are in widths of the line."""
    dashes = tuple(length / 2 for length in DASHES[style_of(place).dashes]) or (1.0, 0.0)
    width = (1.6 if number == 0 else 0.8) * (2 if method == IN_FRONT else 1)
    return {"color": _colour(place), "dashes": dashes, "linewidth": width, "zorder": 2.5 if method == IN_FRONT else 2}


def _mark_style(number: int, place: int) -> dict[str, Any]:
    """Marks are filled on the first line of a curve, hollow on further ones."""
    own = _colour(place)
    face, edge = (own, "white") if number == 0 else ("white", own)
    return {
        "marker": _mark(place),
        "markersize": 5.5,
        "color": own,
        "markerfacecolor": face,
        "markeredgecolor": edge,
        "markeredgewidth": 0.5 if number == 0 else 1.0,
    }


def plot_maps(results: Results, n: int = 8) -> Figure:
    r"""Draw photos, each followed by every method's heat map of it, at most six in a row.

    Args:
        results (Results): a comparison with photos and maps.
        n (int, optional): the most photos. Default: 8.

    Returns:
        matplotlib.figure.Figure: the first n photos, with the boxes drawn on them and on the maps; each map has its
        colour bar, and the figure's title names the methods' units. Drawn without pyplot; ``figure.savefig(path)``
        writes it.

    Raises:
        InvalidArgumentError: n below 1, no photo kept, or one that cannot be read.

    Examples::

        >>> from captum_iba.comparison._types import MethodInfo
        >>> jpeg = io.BytesIO()
        >>> Image.new("RGB", (8, 8)).save(jpeg, "JPEG")
        >>> heatmap = HeatMap(np.arange(4, dtype=np.uint8).reshape(2, 2), 0.0, 1.5)
        >>> examples = [ExampleInfo("a", "cat", "cat", 0.9, jpeg.getvalue())]
        >>> methods = [MethodInfo("IBA", "", "bits per pixel")]
        >>> figure = plot_maps(Results(methods, [], examples, {}, {}, {"IBA": {"a": heatmap}}))
        >>> [axis.get_title() for axis in figure.axes], figure.get_suptitle()
        (['a\ncat, p = 0.900', 'IBA'], 'Colour bars: bits per pixel')
    """
    examples = [example for example in results.examples if example.photo]
    if n < 1 or not examples:
        raise InvalidArgumentError(f"n={n} of {len(examples)} photos; wanted at least one, and photos that were kept.")
    examples, methods = examples[:n], methods_with_maps(results)
    columns, rows = 1 + min(len(methods), _MOST_MAPS), max(1, math.ceil(len(methods) / _MOST_MAPS))
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = _grid(figure, [photo_size(example) for example in examples for _ in range(rows)], columns)
    for number, example in enumerate(examples):
        own = axes[number * rows : (number + 1) * rows]
        _draw_photo(own[0][0], example)
        cells = [axis for row in own for axis in row[1:]]
        for axis, info in zip(cells, methods, strict=False):
            axis.set_title(plain_figure_text(_shortened(info.name, 34)), fontsize=8)
            _draw_map(axis, results.maps[info.name].get(example.key), photo_size(example))
        for axis in [own[0][0], *cells[: len(methods)]]:
            axis.set_axis_off()
            for box in np.zeros((0, 4)) if example.boxes is None else example.boxes:
                _draw_box(axis, box)
        for axis in [*(row[0] for row in own[1:]), *cells[len(methods) :]]:
            axis.remove()
    width, height = figure.get_size_inches()
    figure.suptitle(
        plain_figure_text(_shortened(_units(methods), int(14 * width))),
        fontsize=9,
        x=0.02,
        y=1 - 0.1 / height,
        ha="left",
        va="top",
    )
    return figure


def _grid(figure: Figure, sizes: list[tuple[int, int]], columns: int) -> list[list[Axes]]:
    """Cells of one width, and as high as the photo of their row; fixes the figure's size."""
    heights = [min(2.0, max(0.4, height / width)) * _CELL_INCHES for width, height in sizes]
    total = _TITLE_INCHES + sum(height + _ROW_GAP for height in heights)
    width = columns * (_CELL_INCHES + _BAR_INCHES)
    figure.set_size_inches(width, total)
    top, rows = total - _TITLE_INCHES, []
    for height in heights:
        top -= height + _ROW_GAP
        rows.append(
            [
                figure.add_axes(
                    (
                        (0.1 + column * (_CELL_INCHES + _BAR_INCHES)) / width,
                        (top + 0.05) / total,
                        _CELL_INCHES / width,
                        height / total,
                    )
                )
                for column in range(columns)
            ]
        )
    return rows


def _units(methods: Sequence[MethodInfo]) -> str:
    """What the colour bars measure, each unit once."""
    units: dict[str, list[str]] = {}
    for info in methods:
        units.setdefault(info.unit, []).append(info.name)
    names = [info.name for info in methods]
    parts = [
        unit if len(units) == 1 else f"{unit} ({names_text(own, names, 'all')})" for unit, own in units.items() if unit
    ]
    return f"Colour bars: {'; '.join(parts)}" if parts else ""


def _draw_photo(axis: Axes, example: ExampleInfo) -> None:
    axis.imshow(np.asarray(Image.open(io.BytesIO(example.photo)).convert("RGB")), aspect="equal")
    lines = (example.key, f"{example.target}, p = {probability_text(example.probability)}")
    axis.set_title("\n".join(plain_figure_text(_shortened(line, 34)) for line in lines), fontsize=7)


def _shortened(text: str, most: int) -> str:
    """Text of at most so many characters, its middle left out.

    Examples::

        >>> _shortened("photo_12.jpg", 12), _shortened("a/long/photo_12.jpg", 12)
        ('photo_12.jpg', 'a/lon…12.jpg')
    """
    return text if len(text) <= most else f"{text[: (most - 1) // 2]}…{text[len(text) - most // 2 :]}"


def _draw_map(axis: Axes, heatmap: HeatMap | None, size: tuple[int, int]) -> None:
    width, height = size
    if heatmap is None:
        axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), aspect="equal")
        axis.text(0.5, 0.5, "no map", ha="center", va="center", transform=axis.transAxes, fontsize=8)
        return
    values = heatmap.low + heatmap.levels / 255.0 * (heatmap.high - heatmap.low)
    # over the photo's pixels, each of which spans i - 0.5 to i + 0.5
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    high = heatmap.high if heatmap.high > heatmap.low else heatmap.low + 1.0
    drawn = axis.imshow(values, cmap=COLORMAP, vmin=heatmap.low, vmax=high, extent=extent)
    bar = axis.inset_axes((1.02, 0, 0.05, 1))
    ticks = [number_text(heatmap.low, 2), number_text(high, 2)]
    axis.figure.colorbar(drawn, cax=bar, ticks=[heatmap.low, high]).ax.set_yticklabels(ticks, fontsize=6)


def _draw_box(axis: Axes, box: Array) -> None:
    x0, y0, x1, y1 = (float(value) for value in box)
    for colour, width in (("white", 2.5), ("black", 1.0)):
        patch = Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=width)
        axis.add_patch(patch)
