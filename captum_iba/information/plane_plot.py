"""The picture of an information plane."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_iba.errors import InvalidTypeError
from captum_iba.information.estimate import Unit
from captum_iba.information.information_bottleneck import BottleneckCurve, information_bottleneck

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from captum_iba.information.plane_result import InformationPlaneResult

# perceptually uniform, and told apart by the colour-blind and in print
COLORMAP = "viridis"
MARKERS = "osD^vP*Xp<>"
_N_BETAS = 60


def plot_plane(result: InformationPlaneResult, limit: Any = None) -> Figure:
    """Draw a path for each layer, with its own marker and the steps as colour.

    Args:
        result (InformationPlaneResult): what to draw; error bars are two standard errors.
        limit (BottleneckCurve or Tensor, optional): curve to draw in, or p_xy. Default: None.

    Returns:
        matplotlib.figure.Figure: drawn without pyplot.

    Raises:
        InvalidTypeError: limit is neither.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import SymLogNorm
    from matplotlib.figure import Figure

    curve = None if limit is None else _as_curve(limit, result.unit)
    figure = Figure(figsize=(7.0, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    low, high = min(result.step), max(result.step)
    # steps are usually spread evenly over their logarithm
    norm = SymLogNorm(linthresh=max(1.0, abs(low)), vmin=low, vmax=high if high > low else low + 1)
    drawn: Any = None
    for number, layer in enumerate(result.layers):
        drawn = _draw_path(axis, result, layer, MARKERS[number % len(MARKERS)], norm)
    if curve is not None:
        _draw_limit(axis, curve, max(result.i_xt))
    figure.colorbar(drawn, ax=axis, label="step")
    axis.set_xlabel(f"I(X;T), {result.unit}")
    axis.set_ylabel(f"I(T;Y), {result.unit}")
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=min(0.0, *result.i_ty))
    axis.set_title(_title(result), fontsize=9)
    axis.legend(fontsize=8, loc="best")
    return figure


def _draw_path(axis: Axes, result: InformationPlaneResult, layer: str, marker: str, norm: Any) -> Any:
    places = result.path(layer)
    columns = (result.i_xt, result.i_ty, result.i_xt_se, result.i_ty_se, result.step)
    x, y, x_error, y_error, steps = ([column[place] for place in places] for column in columns)
    x_bars, y_bars = ([2 * error for error in errors] for errors in (x_error, y_error))
    axis.errorbar(x, y, xerr=x_bars, yerr=y_bars, color="0.75", linewidth=0.8, elinewidth=0.5, zorder=1)
    drawn = axis.scatter(x, y, c=steps, cmap=COLORMAP, norm=norm, marker=marker, s=26, zorder=2)
    # a legend in grey: the colour is the step's
    axis.plot([], [], color="0.4", marker=marker, markersize=5, linewidth=0.8, label=layer)
    return drawn


def _draw_limit(axis: Axes, curve: BottleneckCurve, right: float) -> None:
    """The curve from the origin, and on at its height: more about X never hurts."""
    x = [0.0, *curve.i_xt.tolist(), max(right, float(curve.i_xt.max()))]
    y = [0.0, *curve.i_ty.tolist(), float(curve.i_ty.max())]
    axis.plot(x, y, color="black", linestyle="--", linewidth=1.0, label="IB limit", zorder=0)


def _as_curve(limit: Any, unit: Unit) -> BottleneckCurve:
    if isinstance(limit, Tensor):
        limit = information_bottleneck(limit, torch.logspace(-0.1, 3, _N_BETAS))
    if not isinstance(limit, BottleneckCurve):
        raise InvalidTypeError(
            f"limit is a {type(limit).__name__}; wanted what information_bottleneck returns, or a tensor p_xy."
        )
    return limit.to(unit)


def _title(result: InformationPlaneResult) -> str:
    runs = max(result.n_runs)
    bars = f"mean of {runs} runs" if result.error_bars == "runs" else "one run"
    return f"{result.estimator}; {bars}, bars: 2 standard errors over {result.error_bars}"
