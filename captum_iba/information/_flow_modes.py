"""How much information an edge carries: three definitions."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

Mode: TypeAlias = Literal["pairwise", "mifs", "poster"]
MODES = ("pairwise", "mifs", "poster")


def above(estimates: Tensor, null_quantile: Tensor) -> Tensor:
    """Estimates that exceed their null; 0 in place of the others."""
    return torch.where(estimates > null_quantile, estimates, 0.0)


def mifs(relevance: Tensor, redundancy: Tensor, redundancy_weight: float) -> Tensor:
    """Relevance without what the other units say as well, after Battiti (1994).

    ``I(X_i; Q_k) - beta mean over j != i of I(X_i; X_j)``, 0 where that is negative. The mean runs over all other
    units, so that the order of the units does not matter.

    Args:
        relevance (Tensor): (a, b), information of the edges.
        redundancy (Tensor): (a, a), information among the units that they start from; the diagonal is not read.
        redundancy_weight (float): beta.

    Returns:
        Tensor: (a, b), not negative.
    """
    others = redundancy - torch.diag(redundancy.diagonal())
    mean = others.sum(dim=1) / max(len(redundancy) - 1, 1)
    return (relevance - redundancy_weight * mean.unsqueeze(1)).clamp_min(0.0)


def poster(joint: Tensor, redundancy: Tensor, redundancy_weight: float) -> Tensor:
    """Equation 2 of the poster on Neural Information Flow, literally.

    ``I(X; Q_k) - beta sum over j < i of I(X_i; X_j)``. The first term does not know the unit i, the second not the unit
    k: a difference of a number for each column and one for each row, with negative entries, that depends on the order
    of the units.

    Args:
        joint (Tensor): (b,), information of all units together about each unit of the next layer.
        redundancy (Tensor): (a, a).
        redundancy_weight (float): beta.

    Returns:
        Tensor: (a, b), of rank 2 at most.
    """
    before = torch.tril(redundancy, diagonal=-1).sum(dim=1)
    return joint.unsqueeze(0) - redundancy_weight * before.unsqueeze(1)
