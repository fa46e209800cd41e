"""What every metric asks of heat maps: finite values, and the size that it compares at."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_iba.errors import InvalidArgumentError, NonFiniteError

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def assert_finite_maps(attributions: Tensor) -> None:
    """Refuse maps with NaN or infinity.

    Raises:
        NonFiniteError: there is one.
    """
    if not torch.isfinite(attributions).all():
        rows = (~torch.isfinite(attributions)).flatten(1).any(dim=1).nonzero().flatten().tolist()
        raise NonFiniteError(
            f"attributions contain NaN or infinity for examples {rows[:10]}. Look at the method that made them."
        )


def resized(maps: Tensor, size: tuple[int, ...], average: bool = False) -> Tensor:
    """Maps of another size, linearly interpolated; what is constant stays so to the last bit.

    Args:
        maps (Tensor): (N, C, ...), with one to three axes of positions.
        size (tuple[int, ...]): their new sizes.
        average (bool, optional): along axes that shrink, average over areas first. Default: False.

    Raises:
        InvalidArgumentError: more axes of positions.

    Examples::

        >>> resized(torch.tensor([[[[0.0, 4.0]]]]), (1, 4)).tolist()
        [[[[0.0, 1.0, 3.0, 4.0]]]]
    """
    if maps.ndim - 2 not in _MODES:
        raise InvalidArgumentError(f"maps have shape {list(maps.shape)}; wanted one to three spatial axes.")
    # interpolation rounds what it adds up, which would break the ties of a constant map
    lowest = maps.flatten(2).amin(dim=2).view(*maps.shape[:2], *[1] * (maps.ndim - 2))
    above = maps - lowest
    if average:
        shrunk = tuple(min(have, want) for have, want in zip(maps.shape[2:], size, strict=True))
        above = F.interpolate(above, shrunk, mode="area")
    return lowest + F.interpolate(above, size, mode=_MODES[maps.ndim - 2], align_corners=False)
