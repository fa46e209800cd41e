"""Time series above their bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from captum_iba.attr.resize import resize_bits
from captum_iba.errors import InvalidArgumentError

_ROW_INCHES, _WIDTH_INCHES = 1.8, 7.5
# light to dark on white, so that lines remain visible, and told apart by the colour-blind
_COLORMAP = "Blues"


def plot_time_series(
    series: Tensor,
    bits: Tensor,
    titles: Sequence[str] | None = None,
    channels: Sequence[str] | None = None,
    unit: str = "bits per step",
) -> Figure:
    """Draw time series over their bits, one example a row.

    Args:
        series (Tensor): (N, C, T), a line for each channel.
        bits (Tensor): (N, 1 or C', t), as :meth:`LayerIBA.attribute` returns them; channels are summed. Where a layer
            has fewer positions than the series has steps, :func:`captum_iba.resize_bits` spreads them.
        titles (Sequence[str], optional): one for each example. Default: None.
        channels (Sequence[str], optional): names of the lines. Default: None, no legend.
        unit (str, optional): of the colour bar. Default: ``"bits per step"``.

    Returns:
        matplotlib.figure.Figure: drawn without pyplot; ``figure.savefig(path)`` writes it.

    Raises:
        InvalidArgumentError: shapes that do not fit, or another number of titles or names.

    Examples::

        >>> import torch
        >>> figure = plot_time_series(torch.randn(2, 3, 40), torch.rand(2, 1, 10))
        >>> len(figure.axes)  # two examples, two colour bars
        4
    """
    _assert_series(series, bits)
    for name, given, wanted in (("titles", titles, len(series)), ("channels", channels, series.shape[1])):
        if given is not None and len(given) != wanted:
            raise InvalidArgumentError(f"{name} has {len(given)} entries; wanted {wanted}.")
    lines = series.detach().double().cpu()
    spread = resize_bits(bits.detach().double().cpu().sum(dim=1, keepdim=True), (series.shape[2],))
    figure = Figure(figsize=(_WIDTH_INCHES, 0.5 + _ROW_INCHES * len(series)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(series), 1, squeeze=False, sharex=True)[:, 0]
    for row, axis in enumerate(axes):
        low, high = float(lines[row].min()), float(lines[row].max())
        margin = 0.05 * (high - low) or 0.5
        extent = (-0.5, series.shape[2] - 0.5, low - margin, high + margin)
        strip: Any = axis.imshow(spread[row].numpy(), _COLORMAP, vmin=0.0, aspect="auto", extent=extent)
        for channel, values in enumerate(lines[row]):
            axis.plot(values.numpy(), linewidth=1.0, label=None if channels is None else channels[channel])
        axis.set_title("" if titles is None else titles[row], fontsize=9)
        figure.colorbar(strip, ax=axis, pad=0.02).set_label(unit)
    axes[-1].set_xlabel("step")
    if channels is not None:
        axes[0].legend(fontsize=8)
    return figure


def _assert_series(series: Tensor, bits: Tensor) -> None:
    if series.ndim != 3 or series.numel() == 0:
        raise InvalidArgumentError(f"series has shape {list(series.shape)}; wanted (N, channels, steps).")
    if bits.ndim != 3 or len(bits) != len(series) or bits.shape[2] == 0:
        raise InvalidArgumentError(
            f"bits has shape {list(bits.shape)}; wanted ({len(series)}, 1, steps), as LayerIBA returns them for a "
            "layer of features (N, C, steps)."
        )
    if not bool(torch.isfinite(bits).all()) or float(bits.min()) < 0:
        raise InvalidArgumentError("bits has negative values, NaN or infinity; wanted information, at least 0.")
