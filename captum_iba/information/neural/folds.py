"""Which examples train a critic, choose its state and are scored by it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Of the examples outside the held-out fold, one in eight validates; of few, up to 64 as long as that is one in three.
_VALIDATES, _ENOUGH, _AT_MOST = 8, 64, 3


@dataclass(frozen=True)
class Folds:
    """Row numbers for cross-fitting.

    Attributes:
        held_out (tuple[Tensor, ...]): one for each fold; together each row once.
        fit (Tensor): (folds, n_fit), rows that train the fold's critic. Of the same number in all folds: where folds
            are unequal, a larger training part leaves a row out.
        validation (Tensor): (folds, n_validation), rows that choose among the critic's states.
    """

    held_out: tuple[Tensor, ...]
    fit: Tensor
    validation: Tensor


def split(n: int, n_folds: int, generator: torch.Generator) -> Folds:
    """Folds of shuffled rows.

    Args:
        n (int): number of rows.
        n_folds (int): number of folds.
        generator (torch.Generator): shuffles.
    """
    held_out = torch.randperm(n, generator=generator).tensor_split(n_folds)
    rest = [torch.cat([part for other, part in enumerate(held_out) if other != fold]) for fold in range(n_folds)]
    n_rest = min(len(rows) for rows in rest)
    shuffled = torch.stack([rows[torch.randperm(len(rows), generator=generator)[:n_rest]] for rows in rest])
    n_validation = max(n_rest // _VALIDATES, min(n_rest // _AT_MOST, _ENOUGH))
    return Folds(held_out, shuffled[:, n_validation:], shuffled[:, :n_validation])
