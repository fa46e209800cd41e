"""Photos and heat maps as a comparison keeps them for its report."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_iba.attr import resize_bits
from captum_iba.comparison._types import BITS, HeatMap

_LONGEST = 112
_QUALITY = 85


def to_jpeg(display: Tensor) -> bytes:
    """JPEG of an image (1 or 3, H, W) with values from 0 to 1."""
    from PIL import Image

    pixels = (display.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB").save(
        buffer, "JPEG", quality=_QUALITY
    )
    return buffer.getvalue()


def to_heat_map(maps: Tensor, unit: str, size: tuple[int, int]) -> HeatMap:
    """One map (1, C, h, w) quantised to 256 levels, at most 112 positions a side.

    Bits per position become bits per pixel of an image of ``size``; the others keep their values.
    """
    values = maps.detach().double().cpu().sum(dim=1, keepdim=True)
    if unit == BITS:
        values = resize_bits(values, size)
    longest = max(values.shape[2:])
    if longest > _LONGEST:
        smaller = tuple(max(1, round(side * _LONGEST / longest)) for side in values.shape[2:])
        values = F.interpolate(values, smaller, mode="area")
    return quantised(values[0, 0])


def quantised(values: Tensor, levels: type[np.unsignedinteger[Any]] = np.uint8) -> HeatMap:
    """Values (h, w) as levels, zero always on the scale."""
    grid = values.detach().double().cpu().numpy()
    low, high = min(0.0, float(grid.min())), float(grid.max())
    scale = np.iinfo(levels).max / (high - low) if high > low else 0.0
    return HeatMap(np.round((grid - low) * scale).astype(levels), low, high)
