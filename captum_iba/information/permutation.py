"""What an estimator finds where there is nothing to be found."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_iba.information.estimator import Estimator

# An estimate above this quantile of the null has less than one chance in twenty to be one of independent variables.
NULL_QUANTILE = 0.95


def permutation_estimates(
    estimator: Estimator, x: Tensor, y: Tensor, n_permutations: int, generator: torch.Generator
) -> Tensor:
    """Estimates of pairs whose y are exchanged at random, so that their true information is 0.

    Args:
        estimator (Estimator): with its settings.
        x (Tensor): prepared as the estimator wants it, (n, dx) or labels (n,).
        y (Tensor): likewise.
        n_permutations (int): how often.
        generator (torch.Generator): on the CPU.

    Returns:
        Tensor: (n_permutations,), nats, as the estimator returns them: also below 0.
    """
    found = []
    for _ in range(n_permutations):
        order = torch.randperm(len(y), generator=generator).to(y.device)
        found.append(estimator.estimate(x, y[order], generator).value)
    return torch.stack(found)
