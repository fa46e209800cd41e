"""Invertible maps of single variables, under which mutual information stays what it is."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def normal_cdf(x: Tensor) -> Tensor:
    """Each value's probability under the standard normal distribution: uniform margins."""
    probability: Tensor = torch.special.ndtr(x)
    return probability


def half_cube(x: Tensor) -> Tensor:
    """Long tails: x |x|^(1/2)."""
    return x * x.abs().sqrt()


def asinh(x: Tensor) -> Tensor:
    """Short tails."""
    return x.asinh()


def wiggly_x(x: Tensor) -> Tensor:
    """Monotone with waves, for the first variable; its slope is at least 1 - .4 - .34 - .099 > 0."""
    return x + 0.4 * x.sin() + 0.2 * (1.7 * x + 1).sin() + 0.03 * (3.3 * x - 2.5).sin()


def wiggly_y(y: Tensor) -> Tensor:
    """Monotone with waves, for the second variable; its slope is at least 1 - .16 - .221 - .086 > 0."""
    return y - 0.4 * (0.4 * y).sin() + 0.17 * (1.3 * y + 3.5).sin() + 0.02 * (4.3 * y - 2.5).sin()


def swiss_roll(u: Tensor) -> Tensor:
    """A number between 0 and 1 rolled up in the plane: (n, 1) -> (n, 2)."""
    angle = 1.5 * math.pi * (1 + 2 * u)
    return torch.cat([angle * angle.cos(), angle * angle.sin()], dim=1) / 21


def spiral(x: Tensor, first: int) -> Tensor:
    """Two neighbouring columns turned by an angle that grows with the whole row's length: (n, d >= 2) -> (n, d).

    Args:
        x (Tensor): (n, d).
        first (int): the first of both columns.
    """
    angle = x.square().sum(dim=1) / x.shape[1]
    cos, sin = angle.cos(), angle.sin()
    a, b = x[:, first], x[:, first + 1]
    turned = x.clone()
    turned[:, first], turned[:, first + 1] = cos * a - sin * b, sin * a + cos * b
    return turned
