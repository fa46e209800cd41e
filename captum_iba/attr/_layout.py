"""How a layer's features lie: on a grid, as tokens, or as a vector; and the smoothing that suits them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from captum_iba._warn import Warner
from captum_iba.bottleneck.replay import Site
from captum_iba.bottleneck.smoothing import GaussianBlur
from captum_iba.errors import InvalidArgumentError

# More than one normalised feature in a hundred beyond ten deviations: not the data the statistics came from.
_FAR, _FAR_SHARE = 10.0, 0.01


def is_token_layer(shape: Sequence[int], channel_dim: int) -> bool:
    """Whether one example's features, of this shape, are (tokens, channels)."""
    return len(shape) == 2 and channel_dim == 2


def positions_of(shape: Sequence[int], channel_dim: int) -> tuple[int, ...]:
    """Sizes of the axes of positions of one example's features."""
    return tuple(size for axis, size in enumerate(shape, start=1) if axis != channel_dim)


def make_blur(
    sigma: float | None, shape: Sequence[int], channel_dim: int, layer_name: str, warner: Warner
) -> Callable[[Tensor], Tensor] | None:
    """Smoothing of the mask.

    Args:
        sigma (float, optional): in positions; None is 1.0 on grids and off on tokens and vectors.
        shape (Sequence[int]): of one example's features.
        channel_dim (int): axis of the channels, counted with the batch axis.
        layer_name (str): for messages.
        warner (Warner): remembers the warnings given.

    Raises:
        InvalidArgumentError: more than three axes of positions.
    """
    sizes = positions_of(shape, channel_dim)
    is_grid = len(sizes) in (1, 2, 3) and not is_token_layer(shape, channel_dim) and max(sizes) > 1
    sigma = sigma if sigma is not None else (1.0 if is_grid else 0.0)
    if sigma == 0:
        return None
    if len(sizes) not in (1, 2, 3):
        raise InvalidArgumentError(
            f"sigma={sigma} smooths over one to three axes of positions, but {layer_name} has {len(sizes)} in "
            f"{['N', *shape]}. Pass sigma=None or 0."
        )
    blur = GaussianBlur(float(sigma), sizes, warner)
    if channel_dim == 1:
        return blur
    return lambda x: blur(x.movedim(channel_dim, 1)).movedim(1, channel_dim)


def count_far(normalized: Tensor) -> int:
    """How many features lie far from the statistics' mean."""
    low, high = (float(extreme) for extreme in normalized.aminmax())
    if max(-low, high) <= _FAR:  # the usual case, without a copy
        return 0
    return int((normalized.abs() > _FAR).sum())


def warn_if_far(n_far: int, n: int, site: Site, warner: Warner) -> None:
    """Warn once if many features lie far from the statistics' mean."""
    if n_far > _FAR_SHARE * n:
        warner.once(
            ("far", site.layer, site.at_input),
            f"{100 * n_far / n:.0f} % of the features of {site.name} lie more than {_FAR:.0f} standard "
            "deviations from the statistics' mean, so the bits will be very high. Check that data and input "
            "scaling are those of estimate, and that they are of this layer and model.",
        )
