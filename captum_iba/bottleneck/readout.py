"""The network of the readout bottleneck: it reads features of several layers and predicts the mask.

Three convolutions of size one over the concatenated features (Schulz et al. 2020, section 3.2 and Table 4). A
convolution of size one and a linear resize commute, so the first one is applied to each layer's features at their own
size, and its results are resized and added: the same numbers, without the large concatenation at the finest size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_iba.bottleneck.information import Reference, information, make_mask, signal_and_noise_scale
from captum_iba.errors import UnsupportedModelError

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
# The last weights start this much smaller, so that training starts at an open bottleneck everywhere (paper code).
_LAST_SCALE = 1e-3


class ReadoutNetwork(nn.Module):
    r"""Predicts the bottleneck's parameters alpha from normalised features.

    Args:
        in_channels (Sequence[int]): channels of each layer that is read.
        out_channels (int): channels of the bottleneck's layer.
        hidden_channels (tuple[int, int]): widths between the three convolutions.
        initial_alpha (float, optional): where training starts. Default: 5.0 (paper), 99.3 % signal.
        align_corners (bool, optional): of the resize, see :func:`torch.nn.functional.interpolate`. Default: False.

    Shape:
        - sources: each (N, C_i, ...), channels second, with the bottleneck's number of axes of positions, or (N, C_i).
        - Output: alpha, (N, out_channels, \*positions).

    Examples::

        >>> network = ReadoutNetwork([3, 10], 4, (8, 8))
        >>> network([torch.randn(2, 3, 7, 7), torch.randn(2, 10)], (14, 14)).shape
        torch.Size([2, 4, 14, 14])
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        hidden_channels: tuple[int, int],
        initial_alpha: float = 5.0,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        wide, narrow = hidden_channels
        self.align_corners = align_corners
        # one layer's weight in pieces, initialised as the whole would be
        first = nn.Linear(sum(in_channels), wide)
        pieces = torch.split(first.weight.detach(), list(in_channels), dim=1)
        self.first = nn.ParameterList(nn.Parameter(piece.clone()) for piece in pieces)
        self.first_bias = nn.Parameter(first.bias.detach().clone())
        self.second = nn.Linear(wide, narrow)
        self.third = nn.Linear(narrow, out_channels)
        with torch.no_grad():
            self.third.weight.mul_(_LAST_SCALE)
            self.third.bias.fill_(initial_alpha)

    def forward(self, sources: Sequence[Tensor], positions: Sequence[int]) -> Tensor:
        """Alpha at the bottleneck's positions."""
        size = tuple(positions)
        x: Tensor | None = None
        for source, weight in zip(sources, self.first, strict=True):
            # a resize keeps constants, so the bias may come with any one of them
            part = self._resize(pointwise(_pooled(source, size), weight, self.first_bias if x is None else None), size)
            x = part if x is None else x + part
        assert x is not None
        x = pointwise(x.relu(), self.second.weight, self.second.bias).relu_()
        alpha = pointwise(x, self.third.weight, self.third.bias)
        # vectors alone say the same at each position
        return alpha.expand(*alpha.shape[:2], *size)

    def _resize(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        if x.ndim == 2 or math.prod(x.shape[2:]) == 1:
            return x.view(*x.shape[:2], *[1] * len(size))
        if tuple(x.shape[2:]) == size:
            return x
        return F.interpolate(x, size, mode=_MODES[len(size)], align_corners=self.align_corners)


def _pooled(source: Tensor, size: tuple[int, ...]) -> Tensor:
    """The mean over positions, where the bottleneck has none."""
    return source.flatten(2).mean(dim=2) if not size and source.ndim > 2 else source


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same linear layer at every position of (N, C, ...)."""
    if x.ndim == 2:
        return F.linear(x, weight, bias)
    return F.conv1d(x.flatten(2), weight.unsqueeze(2), bias).view(len(x), -1, *x.shape[2:])


def assert_readable(shape: Sequence[int], channel_dim: int, name: str, is_grid: bool, positions: Sequence[int]) -> None:
    """Refuse features that cannot be brought to the bottleneck's positions.

    Args:
        shape (Sequence[int]): of the features that are read, (N, ...).
        channel_dim (int): their axis of channels.
        name (str): of their layer.
        is_grid (bool): positions lie on a grid, between whose points one can interpolate; tokens do not.
        positions (Sequence[int]): sizes of the bottleneck's axes of positions.

    Raises:
        UnsupportedModelError: another number of axes, or tokens of another number.
    """
    own = [size for axis, size in enumerate(shape) if axis not in (0, channel_dim)]
    if math.prod(own) == 1 or not positions or own == list(positions):
        return
    if len(own) != len(positions) or not is_grid or len(own) not in _MODES:
        raise UnsupportedModelError(
            f"{name} has features at {_sizes(own)}, and the bottleneck lies at {_sizes(positions)}; one cannot be "
            "resized to the other. Pass readout_layers with as many axes of positions as the bottleneck's layer, and "
            "as many tokens."
        )


def _sizes(positions: Sequence[int]) -> str:
    return " x ".join(map(str, positions)) + " positions" if positions else "no positions"


def channels_second(features: Tensor, channel_dim: int) -> Tensor:
    """(N, C, ...) from features with channels on any axis."""
    return features if channel_dim == 1 else features.movedim(channel_dim, 1)


def noisy_features(
    alpha: Tensor,
    features: Tensor,
    normalized: Tensor,
    reference: Reference,
    eps: Tensor,
    blur: Callable[[Tensor], Tensor] | None,
    after: Callable[[Tensor], Tensor] = lambda z: z,
) -> tuple[Tensor, Tensor]:
    """Noisy features and information of one draw of noise for each example.

    Args:
        alpha (Tensor): the mask's parameters, of the features' shape.
        features (Tensor): R, (N, ...), in the working precision.
        normalized (Tensor): (R - mean) / scale, see :func:`normalize`.
        reference (Reference): distribution of the noise.
        eps (Tensor): standard normal noise of the features' shape.
        blur (Callable, optional): smoothing of the mask.
        after (Callable, optional): applied to Z; whatever it does, the information stays an upper bound. Default:
            nothing.

    Returns:
        tuple[Tensor, Tensor]: Z, and each element's information in nats.
    """
    mask = make_mask(alpha, blur)
    nats = information(mask, normalized, reference)
    mean, deviation = signal_and_noise_scale(mask, features, reference)
    return after(torch.addcmul(mean, deviation, eps)), nats
