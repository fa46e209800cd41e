"""Bits per position of a layer, resized to bits per element of the input; the total is kept.

Captum's ``LayerAttribution.interpolate`` resamples values and conserves nothing.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from captum_iba.errors import InvalidArgumentError

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def resize_bits(bits: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize a map of bits per position to bits per pixel, keeping each example's total.

    Bilinear with ``align_corners=False``, divided by the gain in area, then rescaled: the total is exact for whole
    factors and off by up to 1e-3 otherwise.

    Args:
        bits (Tensor): (N, 1, h, w), or with one or three spatial axes.
        size (tuple[int, ...]): (H, W).

    Returns:
        Tensor: (N, 1, H, W).

    Raises:
        InvalidArgumentError: the number of axes does not fit.

    Examples::

        >>> import torch
        >>> pixels = resize_bits(torch.rand(2, 1, 7, 7), (30, 33))
        >>> pixels.shape
        torch.Size([2, 1, 30, 33])
    """
    n_axes = bits.ndim - 2
    if n_axes not in _MODES or len(size) != n_axes:
        raise InvalidArgumentError(
            f"Cannot resize bits of shape {list(bits.shape)} to {tuple(size)}; wanted (N, 1, ...) with one to three "
            "spatial axes, and as many sizes."
        )
    if tuple(bits.shape[2:]) == tuple(size):
        return bits
    resized = F.interpolate(bits, size=tuple(size), mode=_MODES[n_axes], align_corners=False)
    axes = tuple(range(1, bits.ndim))
    found, wanted = resized.sum(dim=axes, keepdim=True), bits.sum(dim=axes, keepdim=True)
    # a total of zero stays zero: 0 * (0 / tiny)
    return resized * (wanted / found.clamp_min(1e-30))


def bits_to_input(bits: Tensor, inputs: Tensor, channel_dim: int) -> Tensor:
    """Spread bits per position over the input's elements.

    Spatial maps are resized to the input's grid and shared equally by its channels. Tokens belong to the input's
    positions one by one.

    Args:
        bits (Tensor): summed bits, as :meth:`LayerIBA.attribute` returns them.
        inputs (Tensor): (N, C, H, W) or (N, H, W) for maps; (N, T) or (N, T, D) for tokens.
        channel_dim (int): the summed axis of ``bits``.

    Returns:
        Tensor: of the input's shape.

    Raises:
        InvalidArgumentError: the input has no spatial relation to the features.

    Examples::

        >>> import torch
        >>> bits_to_input(torch.ones(1, 5, 1), torch.zeros(1, 5, dtype=torch.long), channel_dim=2)
        tensor([[1., 1., 1., 1., 1.]])
    """
    positions = bits.squeeze(channel_dim)
    n_axes = positions.ndim - 1
    if bits.ndim == 3 and channel_dim == 2 and inputs.ndim >= 2 and inputs.shape[1] == positions.shape[1]:
        spread = positions.reshape(*positions.shape, *[1] * (inputs.ndim - 2)) / max(inputs[0, 0].numel(), 1)
        return spread.expand(inputs.shape).contiguous()
    is_token_map = bits.ndim == 3 and channel_dim == 2
    if n_axes == 0 or is_token_map or inputs.ndim not in (n_axes + 1, n_axes + 2):
        raise InvalidArgumentError(
            f"inputs of shape {list(inputs.shape)} have no spatial relation to features with positions "
            f"{list(positions.shape[1:])}. Use LayerIBA for the layer's own shape, choose a layer with a spatial grid, "
            "or pass inputs that are no map as additional_forward_args."
        )
    has_channels = inputs.ndim == n_axes + 2
    size = tuple(inputs.shape[2:] if has_channels else inputs.shape[1:])
    pixels = resize_bits(positions.unsqueeze(1), size)
    if not has_channels:
        return pixels.squeeze(1)
    return (pixels / inputs.shape[1]).expand(inputs.shape).contiguous()
