"""Pictures that keep their unit: heat maps in bits per pixel, texts in bits per token, series in bits per step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from captum_iba._series_pictures import plot_time_series
from captum_iba._text_pictures import layers_to_html, plot_layers
from captum_iba.attr.resize import resize_bits
from captum_iba.errors import InvalidArgumentError, InvalidTypeError

__all__ = ["Heatmap", "layers_to_html", "plot_attributions", "plot_layers", "plot_time_series", "to_heatmap"]

# perceptually uniform, and told apart by the colour-blind and in print
COLORMAP = "viridis"
_CELL_INCHES = 2.6


@dataclass(frozen=True)
class Heatmap:
    """One column of a figure.

    Attributes:
        values (Tensor): (N, 1, H, W); several channels are summed.
        unit (str): label of the colour bar, for bits ``"bits per pixel"``.
    """

    values: Tensor
    unit: str


def to_heatmap(bits: Tensor, size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Bits of a layer as Captum's ``visualize_image_attr`` takes them.

    Args:
        bits (Tensor): (N, 1, h, w), as :meth:`LayerIBA.attribute` returns them.
        size (tuple[int, int]): (H, W) of the image.

    Returns:
        numpy.ndarray: (N, H, W, 1), bits per pixel, each example's total kept.

    Examples::

        >>> import torch
        >>> from captum.attr import visualization as viz
        >>> heatmap = to_heatmap(torch.rand(1, 1, 4, 4), (8, 8))
        >>> figure, _ = viz.visualize_image_attr(heatmap[0], None, "heat_map", "positive", use_pyplot=False)
    """
    resized: npt.NDArray[np.float64] = resize_bits(bits.detach().double().cpu(), size).permute(0, 2, 3, 1).numpy()
    return resized


def plot_attributions(
    images: Tensor,
    maps: Mapping[str, Heatmap],
    titles: Sequence[str] | None = None,
    boxes: Tensor | None = None,
) -> Figure:
    """Draw images and their heat maps side by side, one example a row.

    Args:
        images (Tensor): (N, 1 or 3, H, W), values from 0 to 1, not normalised.
        maps (Mapping[str, Heatmap]): heat maps by the heading of their column.
        titles (Sequence[str], optional): one for each example. Default: None.
        boxes (Tensor, optional): (N, 4), half-open pixel boxes x0, y0, x1, y1, drawn on image and maps. Default: None.

    Returns:
        matplotlib.figure.Figure: drawn without pyplot; ``figure.savefig(path)`` writes it.

    Raises:
        InvalidArgumentError: images that are not (N, 1 or 3, H, W) with values from 0 to 1, maps of another size, or
            another number of titles.
        InvalidTypeError: a map that is no Heatmap.

    Examples::

        >>> import torch
        >>> heatmap = Heatmap(torch.rand(2, 1, 8, 8), "bits per pixel")
        >>> figure = plot_attributions(torch.rand(2, 3, 8, 8), {"IBA": heatmap})
        >>> len(figure.axes)  # two images, two maps, two colour bars
        6
    """
    maps = {name: _one_channel(name, heatmap) for name, heatmap in maps.items()}
    _assert_images(images, maps)
    if titles is not None and len(titles) != len(images):
        raise InvalidArgumentError(f"titles has {len(titles)} entries for {len(images)} images; wanted as many.")
    n_rows, n_columns = len(images), 1 + len(maps)
    figure = Figure(figsize=(_CELL_INCHES * (n_columns + 0.3 * len(maps)), _CELL_INCHES * n_rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    for row in range(n_rows):
        _draw_image(axes[row, 0], images[row])
        axes[row, 0].set_title("" if titles is None else titles[row], fontsize=9)
        for column, (name, heatmap) in enumerate(maps.items(), start=1):
            _draw_map(figure, axes[row, column], heatmap, row)
            axes[row, column].set_title(name, fontsize=9)
        for axis in axes[row]:
            axis.set_axis_off()
            if boxes is not None:
                _draw_box(axis, boxes[row])
    return figure


def _one_channel(name: str, heatmap: Heatmap) -> Heatmap:
    if not isinstance(heatmap, Heatmap):
        raise InvalidTypeError(
            f"maps[{name!r}] is a {type(heatmap).__name__}; wrap it: Heatmap(values, 'bits per pixel')."
        )
    return Heatmap(
        heatmap.values.sum(dim=1, keepdim=True) if heatmap.values.ndim == 4 else heatmap.values, heatmap.unit
    )


def _assert_images(images: Tensor, maps: Mapping[str, Heatmap]) -> None:
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise InvalidArgumentError(f"images has shape {list(images.shape)}; wanted (N, 1 or 3, H, W).")
    if float(images.min()) < -0.01 or float(images.max()) > 1.01:
        raise InvalidArgumentError(
            f"images has values from {float(images.min()):.3g} to {float(images.max()):.3g}; wanted 0 to 1. Undo the "
            "normalisation first: images * std + mean."
        )
    for name, heatmap in maps.items():
        wanted = (images.shape[0], 1, *images.shape[2:])
        if tuple(heatmap.values.shape) != wanted:
            raise InvalidArgumentError(
                f"maps[{name!r}] has shape {list(heatmap.values.shape)}; wanted {list(wanted)}. Use resize_bits."
            )


def _draw_image(axis: Axes, image: Tensor) -> None:
    pixels = image.detach().clamp(0, 1).permute(1, 2, 0).float().cpu().numpy()
    axis.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1)


def _draw_map(figure: Figure, axis: Axes, heatmap: Heatmap, row: int) -> None:
    values = heatmap.values[row, 0].detach().float().cpu().numpy()
    low, high = min(0.0, float(values.min())), float(values.max())
    # a map of zeros is drawn as nothing, not as the middle of the scale
    drawn: Any = axis.imshow(values, cmap=COLORMAP, vmin=low, vmax=high if high > low else low + 1.0)
    bar = figure.colorbar(drawn, ax=axis, fraction=0.046, pad=0.03)
    bar.set_label(heatmap.unit, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _draw_box(axis: Axes, box: Tensor) -> None:
    x0, y0, x1, y1 = (float(value) for value in box)
    # pixel i spans i - 0.5 to i + 0.5
    axis.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor="white", linewidth=2.5))
    axis.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor="black", linewidth=1.0))
