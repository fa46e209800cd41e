"""The graph of an information flow as a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from captum_iba._numbers import assert_integer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from captum_iba.information.information_flow import InformationFlow

# Okabe and Ito's colours, which the colour-blind tell apart; grey for units in no large community
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442")
_GREY = "#888888"
# edges below this share of the widest are not drawn
_LEAST_SHARE = 0.02
_WIDEST, _LARGEST, _SMALLEST = 4.5, 420.0, 28.0

Node = tuple[int, int]


def plot_flow(flow: InformationFlow, with_communities: bool, max_units: int) -> Figure:
    """See :meth:`InformationFlow.plot`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    assert_integer("max_units", max_units)
    colours = _colours(flow) if with_communities else {}
    places = _places(flow, max_units)
    tallest = max(sum(node[0] == layer for node in places) for layer in range(len(flow.layers)))
    figure = Figure(figsize=(2.2 * len(flow.layers) + 1.2, max(3.2, 0.34 * tallest + 1.2)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    _draw_edges(axes, flow, places, colours)
    _draw_units(axes, flow, places, colours)
    _label(axes, flow, places, colours, max_units)
    return figure


def _colours(flow: InformationFlow) -> dict[Node, str]:
    ranked = enumerate(flow.communities())
    return {node: _COLOURS[rank] if rank < len(_COLOURS) else _GREY for rank, nodes in ranked for node in nodes}


def _places(flow: InformationFlow, max_units: int) -> dict[Node, tuple[float, float]]:
    """Each drawn unit's place: layers from left to right, units from the top, centred."""
    places = {}
    for layer, values in enumerate(flow.node_flow):
        strongest = values.abs().argsort(descending=True, stable=True)[:max_units].sort().values.tolist()
        for row, unit in enumerate(strongest):
            places[layer, unit] = (float(layer), (len(strongest) - 1) / 2 - row)
    return places


def _draw_edges(axes: Axes, flow: InformationFlow, places: dict[Node, Any], colours: dict[Node, str]) -> None:
    from matplotlib.collections import LineCollection

    for layer, matrix in enumerate(flow.edges):
        most = float(matrix.abs().max())
        lines, widths, shades = [], [], []
        for unit, after in matrix.nonzero().tolist():
            start, end = (layer, unit), (layer + 1, after)
            share = abs(float(matrix[unit, after])) / most
            if start in places and end in places and share >= _LEAST_SHARE:
                same = colours.get(start) == colours.get(end)
                lines.append([places[start], places[end]])
                widths.append(_WIDEST * share)
                shades.append(colours.get(start, _GREY) if same else _GREY)
        axes.add_collection(LineCollection(lines, linewidths=widths, colors=shades, alpha=0.55, zorder=1))


def _draw_units(axes: Axes, flow: InformationFlow, places: dict[Node, Any], colours: dict[Node, str]) -> None:
    for layer, values in enumerate(flow.node_flow):
        most = max(float(values.abs().max()), 1e-300)
        for unit, kind in enumerate(flow.units[layer]):
            if (layer, unit) not in places:
                continue
            x, y = places[layer, unit]
            size = _SMALLEST + (_LARGEST - _SMALLEST) * abs(float(values[unit])) / most
            colour = colours.get((layer, unit), _GREY)
            face = colour if kind == "informative" else "white"
            axes.scatter(x, y, s=size, c=face, edgecolors=colour, linewidths=1.2, zorder=2)
            if kind == "constant":
                axes.scatter(x, y, s=size, c="black", marker="x", linewidths=1.0, zorder=3)


def _label(axes: Axes, flow: InformationFlow, places: dict[Node, Any], colours: dict[Node, str], most: int) -> None:
    top = max(y for _, y in places.values()) + 0.9
    for layer, name in enumerate(flow.layers):
        drawn, total = sum(node[0] == layer for node in places), len(flow.units[layer])
        count = f"{total} units" if drawn == total else f"{drawn} of {total} units"
        unit = "" if flow.weighted else f" {flow.unit}"
        is_last = layer == len(flow.edges)
        widest = "" if is_last else f"\nwidest edge {float(flow.edges[layer].abs().max()):.2g}{unit}"
        axes.text(layer, top, f"{name}\n{count}{widest}", ha="center", va="bottom", fontsize=8)
    for side, layer, shift in (("right", 0, -0.16), ("left", len(flow.layers) - 1, 0.16)):
        for node, (x, y) in places.items():
            if node[0] == layer:
                axes.text(x + shift, y, str(node[1]), ha=side, va="center", fontsize=7)
    n_communities = len(set(colours.values()) - {_GREY})
    said = [f"{n_communities} communities by colour"] if n_communities else []
    said += ["hollow: no flow above the null", "crossed: constant"]
    axes.set_xlabel("; ".join(said), fontsize=7)
    axes.set_xlim(-0.5, len(flow.layers) - 0.5)
    axes.set_ylim(-top, top + 1.6)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
