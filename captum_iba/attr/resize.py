"""Bits per position of a layer, resized to bits per element of the input; the total is kept.

Captum's ``LayerAttribution.interpolate`` resamples values and conserves nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_iba.attr.tokens_to_map import Grid, tokens_to_map
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
        InvalidArgumentError: the number of axes does not fit, or a value is negative.

    Examples::

        >>> import torch
        >>> pixels = resize_bits(torch.rand(2, 1, 7, 7), (30, 33))
        >>> pixels.shape
        torch.Size([2, 1, 30, 33])
    """
    if not isinstance(size, (tuple, list)):
        raise InvalidArgumentError(f"size={size!r}; wanted a tuple, such as (224, 224).")
    if bool((bits < 0).any()):
        raise InvalidArgumentError(
            f"bits has values down to {float(bits.min()):.3g}; wanted none below 0, so that the total can be kept. "
            "For attributions of either sign use captum.attr.LayerAttribution.interpolate."
        )
    n_axes = bits.ndim - 2
    if n_axes not in _MODES or len(size) != n_axes:
        raise InvalidArgumentError(
            f"Cannot resize bits of shape {list(bits.shape)} to {tuple(size)}; wanted (N, 1, ...) with one to three "
            "spatial axes, and as many sizes."
        )
    if tuple(bits.shape[2:]) == tuple(size):
        return bits
    # shrinking axes are averaged over areas first: interpolation would skip positions between the new ones
    smaller = tuple(min(old, new) for old, new in zip(bits.shape[2:], size, strict=True))
    averaged = F.interpolate(bits, size=smaller, mode="area")
    resized = F.interpolate(averaged, size=tuple(size), mode=_MODES[n_axes], align_corners=False)
    axes = tuple(range(1, bits.ndim))
    found, wanted = resized.sum(dim=axes, keepdim=True), bits.sum(dim=axes, keepdim=True)
    # a total of zero stays zero: 0 * (0 / tiny)
    return resized * (wanted / found.clamp_min(torch.finfo(found.dtype).tiny))


def bits_to_input(
    bits: Tensor,
    inputs: Tensor,
    channel_dim: int,
    input_channel_dim: int | None = None,
    grid: Grid | None = None,
    n_prefix: int | None = None,
) -> Tensor:
    """Spread bits per position over the input's elements.

    Spatial maps are resized to the input's grid and shared equally by its channels. Tokens of an image are its patches,
    and those before them, such as the class token, have no place in it: their bits are left out, and
    :func:`tokens_to_map` has them. Tokens of a sequence belong to the input's positions one by one.

    Args:
        bits (Tensor): summed bits, as :meth:`LayerIBA.attribute` returns them.
        inputs (Tensor): (N, C, H, W), (N, H, W, C) or (N, H, W) for maps; (N, T) or (N, T, D) for tokens, or an image
            with channels for those of a vision transformer.
        channel_dim (int): the summed axis of ``bits``.
        input_channel_dim (int, optional): axis of the input's channels. Default: None: 1, as torch has it; where the
            sizes speak for the last axis, an error asks.
        grid (tuple[int, int], optional): rows and columns of an image's patches. Default: None: found, see
            :func:`tokens_to_map`.
        n_prefix (int, optional): number of tokens before the patches. Default: None: found.

    Returns:
        Tensor: of the input's shape.

    Raises:
        InvalidArgumentError: the input has no spatial relation to the features, its layout is ambiguous, the tokens fit
            no grid, or ``grid`` or ``n_prefix`` is given for features that are no patches.

    Examples::

        >>> import torch
        >>> bits_to_input(torch.ones(1, 5, 1), torch.zeros(1, 5, dtype=torch.long), channel_dim=2)
        tensor([[1., 1., 1., 1., 1.]])
        >>> bits_to_input(torch.ones(1, 5, 1), torch.zeros(1, 1, 4, 4), channel_dim=2).sum()
        tensor(4.)
    """
    positions = bits.squeeze(channel_dim)
    is_tokens = bits.ndim == 3 and channel_dim == 2
    if is_tokens and inputs.ndim == 4:
        channels = _input_channels(inputs, positions, input_channel_dim)
        height, width = _spatial_sizes(inputs, channels)
        return _spread(tokens_to_map(bits, grid, n_prefix, (height, width)).map, inputs, channels)
    if grid is not None or n_prefix is not None:
        raise InvalidArgumentError(
            f"grid={grid} and n_prefix={n_prefix} lay the tokens of an image out as patches, but bits of shape "
            f"{list(bits.shape)} for inputs of shape {list(inputs.shape)} are no such tokens. Leave them out."
        )
    n_axes = positions.ndim - 1
    if is_tokens:
        if inputs.ndim not in (2, 3) or inputs.shape[1] != positions.shape[1]:
            raise _no_relation(inputs, positions)
        spread = positions.reshape(*positions.shape, *[1] * (inputs.ndim - 2)) / max(inputs[0, 0].numel(), 1)
        return spread.expand(inputs.shape).contiguous()
    if n_axes == 0 or inputs.ndim not in (n_axes + 1, n_axes + 2):
        raise _no_relation(inputs, positions)
    if inputs.ndim == n_axes + 1:
        return resize_bits(positions.unsqueeze(1), tuple(inputs.shape[1:])).squeeze(1)
    return _spread(positions.unsqueeze(1), inputs, _input_channels(inputs, positions, input_channel_dim))


def _spatial_sizes(inputs: Tensor, channels: int) -> tuple[int, ...]:
    return tuple(size for axis, size in enumerate(inputs.shape) if axis not in (0, channels))


def _spread(maps: Tensor, inputs: Tensor, channels: int) -> Tensor:
    """Maps (N, 1, ...) resized to the input, each position shared equally by its channels."""
    pixels = resize_bits(maps, _spatial_sizes(inputs, channels)) / inputs.shape[channels]
    return pixels.movedim(1, channels).expand(inputs.shape).contiguous()


def _input_channels(inputs: Tensor, positions: Tensor, chosen: int | None) -> int:
    last = inputs.ndim - 1
    if chosen is not None:
        if type(chosen) is not int or chosen % inputs.ndim not in (1, last):
            raise InvalidArgumentError(f"input_channel_dim={chosen!r}; wanted 1 or {last} for {list(inputs.shape)}.")
        return chosen % inputs.ndim
    colours = (1, 3, 4)
    looks_last = inputs.shape[last] in colours and inputs.shape[1] not in colours
    # a sequence as long as the map, with its units behind it
    fits_last = positions.ndim == 2 and inputs.ndim == 3 and inputs.shape[1] == positions.shape[1] != inputs.shape[last]
    if looks_last or fits_last:
        raise InvalidArgumentError(
            f"inputs of shape {list(inputs.shape)} look as if their channels came last, and the bits would go to the "
            "wrong places. Pass input_channel_dim=-1 if they do, input_channel_dim=1 if not."
        )
    return 1


def _no_relation(inputs: Tensor, positions: Tensor) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"inputs of shape {list(inputs.shape)} have no spatial relation to features with positions "
        f"{list(positions.shape[1:])}. Use LayerIBA for the layer's own shape, choose a layer with a spatial grid, "
        "or pass inputs that are no map as additional_forward_args."
    )
