"""What the estimates of edges without information look like."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from captum_iba.errors import CaptumIBAWarning
from captum_iba.information.estimator import Estimator
from captum_iba.information.mutual_information import mutual_information_matrix
from captum_iba.information.variables import rank_gaussianize

# columns that one call of an estimator gets: bounds its memory
_COLUMNS_AT_ONCE = 32


def independent_estimates(
    estimator: Estimator, n: int, n_draws: int, generator: torch.Generator, device: torch.device | None = None
) -> Tensor:
    """Estimates for independent columns: the null of every pair of rank-Gaussianised columns of ``n`` examples.

    Such columns hold the same ``n`` numbers in some order, so that the estimates of permuted pairs depend on ``n`` and
    on the estimator alone, and one set of draws serves all pairs. About ``2 sqrt(n_draws)`` columns are drawn and all
    their pairs taken, with the work that an estimator shares between pairs: two pairs with a column in common are
    independent of each other given that column, and their distribution does not depend on it.

    Args:
        estimator (Estimator): one that wants ranked columns.
        n (int): number of examples.
        n_draws (int): how many estimates.
        generator (torch.Generator): on the CPU.
        device (torch.device, optional): where to estimate. Default: None, the CPU.

    Returns:
        Tensor: (n_draws,), nats.
    """
    n_rows = max(int(n_draws**0.5), 1)
    rows = _independent_columns(n, n_rows, generator, device)
    columns = _independent_columns(n, -(-n_draws // n_rows), generator, device)
    parts = [
        estimator.pairwise(some, others, generator).value.flatten()
        for some in _parts(rows)
        for others in _parts(columns)
    ]
    return torch.cat(parts)[:n_draws]


def estimates_against_labels(estimator: Estimator, labels: Tensor, n_draws: int, generator: torch.Generator) -> Tensor:
    """Estimates for a ranked column that is independent of these labels, (n_draws,), nats."""
    columns = _independent_columns(len(labels), n_draws, generator, labels.device)
    parts = [estimator.pairwise(some, labels, generator).value.flatten() for some in _parts(columns)]
    return torch.cat(parts)


def permuted_matrices(
    estimator: Estimator, x: Tensor, y: Tensor, n_draws: int, generator: torch.Generator, seed: int
) -> Tensor:
    """Estimates of all pairs of columns with the rows of y permuted: (n_draws, dx, dy), nats.

    For estimators that take columns as they are, whose null is each pair's own.
    """
    found = []
    for _ in range(n_draws):
        order = torch.randperm(len(y), generator=generator).to(y.device)
        with quiet():
            found.append(mutual_information_matrix(x, y[order], estimator, "nats", seed=seed))
    return torch.stack(found)


@contextmanager
def quiet() -> Iterator[None]:
    """Estimates whose warnings are read from their details, or say nothing about the user's data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CaptumIBAWarning)
        yield


def _independent_columns(n: int, count: int, generator: torch.Generator, device: torch.device | None) -> Tensor:
    """Ranks of nothing but ties are ranks at random."""
    return rank_gaussianize(torch.zeros(n, count, dtype=torch.float64, device=device), generator)


def _parts(columns: Tensor) -> tuple[Tensor, ...]:
    return torch.split(columns, _COLUMNS_AT_ONCE, dim=1)
