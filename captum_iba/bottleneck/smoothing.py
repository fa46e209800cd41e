"""Gaussian smoothing of the mask.

Strided layers ignore positions, and an unsmoothed mask would overfit to the grid they leave. Smoothing *during* the
optimisation averages the gradient too; it is not the same as blurring the finished map (Schulz et al. 2020, eq. 7).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_iba._warn import Warner


def gaussian_kernel(sigma: float, max_radius: int | None = None) -> Tensor:
    """Return a Gaussian window that sums to one.

    Args:
        sigma (float): standard deviation in positions. The window has ``2 * round(2 * sigma) + 1`` entries, the
            published choice.
        max_radius (int, optional): upper limit of the radius. Default: None.

    Returns:
        Tensor: float64 of shape (2 * radius + 1,).

    Examples::

        >>> gaussian_kernel(1.0).shape, round(float(gaussian_kernel(1.0).sum()), 12)
        (torch.Size([5]), 1.0)
    """
    radius = round(2 * sigma)
    if max_radius is not None:
        radius = min(radius, max_radius)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64, device="cpu")
    # sigma = 0 leaves the centre alone; 0/0 would be NaN
    window = torch.exp(-0.5 * (offsets / sigma) ** 2) if radius else torch.ones(1, dtype=torch.float64, device="cpu")
    return window / window.sum()


class GaussianBlur:
    """Depthwise, separable Gaussian blur over the spatial axes of a feature map, with reflection at the borders.

    Args:
        sigma (float): standard deviation in positions; 0 switches the blur off.
        spatial_shape (tuple[int, ...]): sizes of the one to three spatial axes. An axis shorter than the window gets
            a shorter window, and a warning says so.
        warner (Warner, optional): remembers the warnings given. Default: None, one of its own.

    Examples::

        >>> blur = GaussianBlur(1.0, (6, 6))
        >>> blur(torch.ones(1, 2, 6, 6)).sub(1).abs().max() < 1e-6
        tensor(True)
    """

    def __init__(self, sigma: float, spatial_shape: tuple[int, ...], warner: Warner | None = None) -> None:
        self.kernels = [gaussian_kernel(sigma, max_radius=size - 1) for size in spatial_shape]
        wanted = 2 * round(2 * sigma) + 1
        if any(len(kernel) < wanted for kernel in self.kernels):
            (Warner() if warner is None else warner).once(
                ("sigma", spatial_shape),
                f"sigma={sigma} needs a window of {wanted} positions, more than the feature map's {spatial_shape} "
                "can reflect; the window is shortened. Pass a smaller sigma to choose it yourself.",
            )

    @property
    def is_identity(self) -> bool:
        """Whether the blur changes nothing."""
        return all(len(kernel) == 1 for kernel in self.kernels)

    def __call__(self, x: Tensor) -> Tensor:
        """Blur (N, C, ...) along the spatial axes."""
        if self.is_identity:
            return x
        n_axes = len(self.kernels)
        convolve = (F.conv1d, F.conv2d, F.conv3d)[n_axes - 1]
        for axis, kernel in enumerate(self.kernels):
            radius = len(kernel) // 2
            if radius == 0:
                continue
            padding = [0, 0] * n_axes
            # F.pad counts axes from the last one
            padding[2 * (n_axes - 1 - axis)] = padding[2 * (n_axes - 1 - axis) + 1] = radius
            shape = [1] * n_axes
            shape[axis] = len(kernel)
            weight = kernel.to(x).view(1, 1, *shape).expand(x.shape[1], 1, *shape)
            x = convolve(F.pad(x, padding, mode="reflect"), weight, groups=x.shape[1])
        return x
