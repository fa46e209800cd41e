"""Structural similarity of heat maps, and the normalisation that it is taken after."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_iba.errors import InvalidArgumentError

WINDOW = 5
_TO_SAMPLE_COVARIANCE = WINDOW**2 / (WINDOW**2 - 1)
# Wang et al. 2004: (K1 L)^2 and (K2 L)^2 for the range L = 1
_C1, _C2 = 0.01**2, 0.03**2


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean structural similarity of each pair of maps over uniform 5x5 windows that lie inside.

    Args:
        a (Tensor): (N, H, W), values in [0, 1]: the range is 1 for every map, whatever it spans.
        b (Tensor): the same shape.

    Returns:
        Tensor: (N,), float64; exactly 1 for equal maps.

    Raises:
        InvalidArgumentError: shapes that differ, or maps that a window does not fit into.

    Reference:
        Wang et al. 2004, with sample covariances.

    Examples::

        >>> ramp = torch.linspace(0, 1, 64).view(1, 8, 8)
        >>> float(ssim(ramp, ramp))
        1.0
    """
    if a.shape != b.shape or a.ndim != 3 or min(a.shape[1:]) < WINDOW:
        raise InvalidArgumentError(
            f"ssim got maps of shape {list(a.shape)} and {list(b.shape)}; wanted (N, H, W) for both, of at least "
            f"{WINDOW}x{WINDOW} pixels. Use similarity='spearman' for vectors, tokens and smaller maps."
        )
    a, b = a.double(), b.double()
    mean_a, mean_b = _window_mean(a), _window_mean(b)
    var_a, var_b, cov = _covariance(a, a), _covariance(b, b), _covariance(a, b)
    above = (2 * mean_a * mean_b + _C1) * (2 * cov + _C2)
    below = (mean_a * mean_a + mean_b * mean_b + _C1) * (var_a + var_b + _C2)
    return (above / below).flatten(1).mean(dim=1)


def normalize_maps(maps: Tensor) -> Tensor:
    """Clamp each map to its own 1st and 99th percentile and rescale it to [0, 1].

    Args:
        maps (Tensor): (N, ...), finite.

    Returns:
        Tensor: float64; zeros where nothing is left between the percentiles, as in a constant map.

    Examples::

        >>> normalize_maps(torch.tensor([[-2.0, 0.0, 2.0], [3.0, 3.0, 3.0]])).tolist()
        [[0.0, 0.5, 1.0], [0.0, 0.0, 0.0]]
    """
    flat = maps.double().flatten(1)
    ordered = flat.sort(dim=1).values
    low, high = _quantile(ordered, 0.01), _quantile(ordered, 0.99)
    spread = high - low
    scaled = (flat.clamp(low, high) - low) / torch.where(spread > 0, spread, torch.ones_like(spread))
    return scaled.view(maps.shape)


def _covariance(a: Tensor, b: Tensor) -> Tensor:
    """Sample covariance in each window; a shift changes nothing in it but the rounding, which C2 would magnify."""
    a, b = a - a.mean(dim=(1, 2), keepdim=True), b - b.mean(dim=(1, 2), keepdim=True)
    return _TO_SAMPLE_COVARIANCE * (_window_mean(a * b) - _window_mean(a) * _window_mean(b))


def _window_mean(maps: Tensor) -> Tensor:
    return F.avg_pool2d(maps[:, None], WINDOW, stride=1)[:, 0]


def _quantile(ordered: Tensor, q: float) -> Tensor:
    """Linearly interpolated quantile of sorted rows, (N, 1); torch.quantile refuses large batches."""
    position = q * (ordered.shape[1] - 1)
    left = int(position)
    right = min(left + 1, ordered.shape[1] - 1)
    return torch.lerp(ordered[:, left : left + 1], ordered[:, right : right + 1], position - left)
