"""Scores of rows by the critics that have not seen them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from captum_iba.information.neural.critic import Critic, Parameters, scores

Signal: TypeAlias = Callable[[Tensor], Tensor]

# Rows are scored against each other in blocks of at most so many: cost grows with n, not with its square.
BLOCK = 4096
# Scores at once, of all critics.
_AT_ONCE = 2**24


@torch.no_grad()
def terms_of(critic: Critic, parameters: Parameters, x: Tensor, y: Tensor, terms: Signal) -> Tensor:
    """Each row's part of a value, (C, n), float64, among all rows of its block.

    Args:
        critic (Critic): the critics' kind.
        parameters (dict): of C critics.
        x (Tensor): (C, n, dx).
        y (Tensor): (C, n, dy).
        terms (Callable): the parts from scores (C, n, n).
    """
    n_blocks = blocks(x.shape[1])
    return torch.cat(
        [
            _of_block(critic, parameters, a, b, terms)
            for a, b in zip(x.tensor_split(n_blocks, 1), y.tensor_split(n_blocks, 1), strict=True)
        ],
        dim=1,
    )


def blocks(n: int) -> int:
    """Number of blocks of n rows."""
    return -(-n // BLOCK)


def _of_block(critic: Critic, parameters: Parameters, x: Tensor, y: Tensor, terms: Signal) -> Tensor:
    at_once = max(1, _AT_ONCE // x.shape[1] ** 2)
    parts = []
    for first in range(0, len(x), at_once):
        some = slice(first, first + at_once)
        parts.append(terms(scores(critic, {k: v[some] for k, v in parameters.items()}, x[some], y[some])))
    return torch.cat(parts)
