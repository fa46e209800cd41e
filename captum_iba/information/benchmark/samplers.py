"""Pairs of variables whose mutual information has a closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


def gaussian(covariance: Tensor, dx: int, n: int, generator: torch.Generator) -> Pair:
    """Jointly normal; the first dx coordinates are x."""
    z = _normal(n, len(covariance), generator) @ torch.linalg.cholesky(covariance).T
    return z[:, :dx], z[:, dx:]


def gaussian_information(covariance: Tensor, dx: int) -> float:
    """1/2 (ln|S_x| + ln|S_y| - ln|S|), in nats."""
    x, y = covariance[:dx, :dx], covariance[dx:, dx:]
    return float(0.5 * (x.logdet() + y.logdet() - covariance.logdet()))


def paired(d: int, rho: float, n_pairs: int | None = None) -> Tensor:
    """Covariance of two d-dimensional variables whose first coordinates correlate pairwise, all others being noise."""
    covariance = torch.eye(2 * d, dtype=torch.float64)
    for i in range(d if n_pairs is None else n_pairs):
        covariance[i, d + i] = covariance[d + i, i] = rho
    return covariance


def dense(d: int, rho: float = 0.5) -> Tensor:
    """Covariance of two d-dimensional variables, all of whose coordinates correlate alike."""
    return torch.full((2 * d, 2 * d), rho, dtype=torch.float64).fill_diagonal_(1.0)


def student(d: int, dof: int, n: int, generator: torch.Generator) -> Pair:
    """Student's t distribution of 2 d coordinates without correlation: they share their scale alone."""
    z = _normal(n, 2 * d, generator)
    chi_square = _normal(n, dof, generator).square().sum(dim=1, keepdim=True)
    z = z / (chi_square / dof).sqrt()
    return z[:, :d], z[:, d:]


def student_information(d: int, dof: int) -> float:
    """Twice the entropy of d coordinates less the one of 2 d, in nats."""
    return 2 * _student_entropy(d, dof) - _student_entropy(2 * d, dof)


def _student_entropy(k: int, dof: int) -> float:
    half, all_ = torch.tensor([dof / 2, (dof + k) / 2], dtype=torch.float64)
    log_norm = half.lgamma() - all_.lgamma() + k / 2 * math.log(dof * math.pi)
    return float(log_norm + all_ * (all_.digamma() - half.digamma()))


def additive(noise: float, n: int, generator: torch.Generator) -> Pair:
    """X uniform on (0, 1), and X plus noise uniform on (-noise, noise)."""
    x, u = torch.rand(2, n, 1, generator=generator, dtype=torch.float64)
    return x, x + noise * (2 * u - 1)


def additive_information(noise: float) -> float:
    """In nats."""
    return noise - math.log(2 * noise) if noise <= 0.5 else 1 / (4 * noise)


def noise_channel(d: int, noise_var: float, n: int, generator: torch.Generator) -> Pair:
    """X standard normal, and X plus normal noise."""
    x = _normal(n, d, generator)
    return x, x + noise_var**0.5 * _normal(n, d, generator)


def xor(n: int, generator: torch.Generator) -> Pair:
    """Two fair bits, and whether they differ: nothing in one of them, all in both. Labels."""
    bits = torch.randint(2, (n, 2), generator=generator)
    return bits, bits.sum(dim=1) % 2


def table(shares: Tensor, n: int, generator: torch.Generator) -> Pair:
    """Labels with joint probabilities of a table."""
    cells = torch.multinomial(shares.flatten(), n, replacement=True, generator=generator)
    return cells // shares.shape[1], cells % shares.shape[1]


def table_information(shares: Tensor) -> float:
    """In nats."""
    independent = shares.sum(dim=1, keepdim=True) * shares.sum(dim=0)
    return float((shares * (shares / independent).log()).nan_to_num(0.0).sum())


def _normal(n: int, d: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, d, generator=generator, dtype=torch.float64)
