"""Log-ratios in closed form, fitted to data: where critics start."""

from __future__ import annotations

import torch
from torch import Tensor

# Least eigenvalue of a covariance of variables with deviation 1, so that identical columns have an inverse.
_RIDGE = 1e-3


def gaussian_log_ratio(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Log-ratio ln p(x, y) / (p(x) p(y)) = x'Wy + x'Ax/2 + y'By/2 + c of a Gaussian with the covariance of data.

    With S the covariance of both and P its inverse: W = -P_xy, A = S_xx^-1 - P_xx, B = S_yy^-1 - P_yy and
    c = (ln |S_xx| + ln |S_yy| - ln |S|) / 2. Means are taken to be 0.

    Args:
        x (Tensor): (..., n, dx).
        y (Tensor): (..., n, dy).

    Returns:
        dict: float64, ``"W"`` (..., dx, dy), ``"A"`` (..., dx, dx), ``"B"`` (..., dy, dy), ``"c"`` (..., 1, 1).
    """
    both, dx = torch.cat((x, y), -1).double(), x.shape[-1]
    covariance = _regular(both.mT @ both / both.shape[-2])
    of_x, of_y = covariance[..., :dx, :dx], covariance[..., dx:, dx:]
    precision = torch.linalg.inv(covariance)
    level = of_x.logdet() + of_y.logdet() - covariance.logdet()
    return {
        "W": -precision[..., :dx, dx:],
        "A": torch.linalg.inv(of_x) - precision[..., :dx, :dx],
        "B": torch.linalg.inv(of_y) - precision[..., dx:, dx:],
        "c": level[..., None, None] / 2,
    }


def linear_discriminant(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Logits x'w + b of Gaussian classes that share a covariance S: x'S^-1 m_c - m_c'S^-1 m_c / 2.

    Args:
        x (Tensor): (..., n, dx).
        y (Tensor): (..., n, classes), one-hot.

    Returns:
        dict: float64, ``"w"`` (..., dx, classes), ``"b"`` (..., 1, classes), and ``"log_shares"`` (..., 1, classes) of
            the classes, with half an example added to each: one that is missing here may occur elsewhere.
    """
    x, y = x.double(), y.double()
    counts = y.sum(-2)
    means = (y.mT @ x) / counts.clamp(min=1)[..., None]
    within = x - y @ means
    weights = torch.linalg.inv(_regular(within.mT @ within / x.shape[-2])) @ means.mT
    log_shares = ((counts + 0.5) / (counts + 0.5).sum(-1, keepdim=True)).log()
    return {"w": weights, "b": -(means.mT * weights).sum(-2, keepdim=True) / 2, "log_shares": log_shares[..., None, :]}


def _regular(covariance: Tensor) -> Tensor:
    """The covariance, with as much added to its diagonal as lifts its least eigenvalue to the ridge."""
    least = torch.linalg.eigvalsh(covariance)[..., :1, None]
    lift: Tensor = (_RIDGE - least).clamp(min=0)
    return covariance + lift * torch.eye(covariance.shape[-1]).to(covariance)
