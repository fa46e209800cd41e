"""A comparison as figures for a paper: means and curves, and a grid of heat maps."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image

from captum_iba.comparison._html_photos import methods_with_maps, photo_size
from captum_iba.comparison._palette import DASHES, LIGHT
from captum_iba.comparison._text import heading_text, number_text, probability_text
from captum_iba.comparison._types import Array, Curve, ExampleInfo, HeatMap, MetricInfo, Results
from captum_iba.errors import InvalidArgumentError
from captum_iba.visualization import COLORMAP

_CELL_INCHES = 1.9
_PANEL_INCHES = (4.6, 3.4)
_MOST_COLUMNS = 3


def plot_results(results: Results) -> Figure:
    """Draw every metric's means with standard errors, and every curve with the band of its standard error.

    Args:
        results (Results): a comparison of M methods in K metrics.

    Returns:
        matplotlib.figure.Figure: K panels of means, then a panel for each metric with curves; the methods that ran keep
        their colour and dash throughout. Drawn without pyplot; ``figure.savefig(path)`` writes it.

    Raises:
        InvalidArgumentError: no metric, or no method that ran.

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
        raise InvalidArgumentError(
            f"There are {len(results.metrics)} metrics and {len(ran)} methods that ran; wanted one of each or more."
        )
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
        names = [results.methods[place].name for place in ran]
        handles = [Line2D([], [], color=_colour(place), linewidth=1.8, dashes=_dashes(place)) for place in ran]
        figure.legend(handles, names, loc="outside lower center", ncols=min(7, len(ran)), fontsize=8, handlelength=3)
    return figure


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
    axis.set_yticks(range(len(ran)), [results.methods[place].name for place in ran], fontsize=8)
    axis.set_ylim(len(ran) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.3)
    axis.set_title(heading_text(metric), fontsize=10)
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
        _draw_curve(axis, curve, line_names, place)
    if len(line_names) > 1:
        handles = [Line2D([], [], color="black", **_line_style(number)) for number in range(len(line_names))]
        axis.legend(handles, line_names, fontsize=7)
    axis.set_title(metric.name, fontsize=10)
    axis.set_xlabel(metric.x_label, fontsize=8)
    axis.set_ylabel(metric.y_label, fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)


def _draw_curve(axis: Axes, curve: Curve, line_names: list[str], place: int) -> None:
    for number, name in enumerate(line_names):
        if name not in curve.lines:
            continue
        mean, error = curve.lines[name]
        axis.fill_between(curve.x, mean - error, mean + error, color=_colour(place), alpha=0.12, linewidth=0)
        axis.plot(curve.x, mean, color=_colour(place), dashes=_dashes(place), **_line_style(number))


def _colour(place: int) -> str:
    return LIGHT[place % len(LIGHT)]


def _dashes(place: int) -> tuple[float, ...]:
    """In widths of the line; a solid line has a dash and no gap."""
    return tuple(length / 2 for length in DASHES[place % len(DASHES)]) or (1.0, 0.0)


def _line_style(number: int) -> dict[str, Any]:
    """The first line of a curve is thick; further ones are thin, with marks."""
    if number == 0:
        return {"linewidth": 1.8}
    return {"linewidth": 0.9, "marker": "os^v"[(number - 1) % 4], "markersize": 3.5, "markevery": 0.12}


def plot_maps(results: Results, n: int = 8) -> Figure:
    """Draw photos and every method's heat map of them, a photo a row.

    Args:
        results (Results): a comparison with photos and maps.
        n (int, optional): the most photos. Default: 8.

    Returns:
        matplotlib.figure.Figure: the first n photos, with the boxes drawn on them and on the maps; each map's colour
        bar carries the method's unit. Drawn without pyplot; ``figure.savefig(path)`` writes it.

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
        >>> [axis.get_title() for axis in figure.axes][1], figure.axes[-1].get_ylabel()
        ('IBA', 'bits per pixel')
    """
    examples = [example for example in results.examples if example.photo]
    if n < 1 or not examples:
        raise InvalidArgumentError(f"n={n} of {len(examples)} photos; wanted at least one, and photos that were kept.")
    examples, methods = examples[:n], methods_with_maps(results)
    size = (_CELL_INCHES * (1 + 1.3 * len(methods)), 1.2 * _CELL_INCHES * len(examples))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(examples), 1 + len(methods), squeeze=False)
    for row, example in zip(axes, examples, strict=True):
        _draw_photo(row[0], example)
        for axis, info in zip(row[1:], methods, strict=True):
            axis.set_title(info.name, fontsize=8)
            _draw_map(figure, axis, results.maps[info.name].get(example.key), photo_size(example), info.unit)
        for axis in row:
            axis.set_axis_off()
            for box in np.zeros((0, 4)) if example.boxes is None else example.boxes:
                _draw_box(axis, box)
    return figure


def _draw_photo(axis: Axes, example: ExampleInfo) -> None:
    photo_size(example)  # refuses what cannot be read
    axis.imshow(np.asarray(Image.open(io.BytesIO(example.photo)).convert("RGB")))
    # a $ would start mathematics
    title = f"{example.key}\n{example.target}, p = {probability_text(example.probability)}".replace("$", r"\$")
    axis.set_title(title, fontsize=7, wrap=True)


def _draw_map(figure: Figure, axis: Axes, heatmap: HeatMap | None, size: tuple[int, int], unit: str) -> None:
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
    bar = figure.colorbar(drawn, ax=axis, fraction=0.046, pad=0.03, ticks=[heatmap.low, high])
    bar.ax.set_yticklabels([number_text(heatmap.low, 2), number_text(high, 2)], fontsize=6)
    bar.set_label(unit, fontsize=6)


def _draw_box(axis: Axes, box: Array) -> None:
    x0, y0, x1, y1 = (float(value) for value in box)
    for colour, width in (("white", 2.5), ("black", 1.0)):
        patch = Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=width)
        axis.add_patch(patch)
