"""What a variational bottleneck sends: Gaussian numbers or tags, with their distributions, priors and divergences."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, Self, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Prior: TypeAlias = Literal["standard", "learned"]

# An untrained encoder has deviations of about softplus(-5) = 0.0067 and so begins with an open bottleneck (Alemi et
# al. 2017, section 4.1).
_RHO_OFFSET = 5.0
# Below this, softplus is the exponential function to the last digit; its logarithm would underflow.
_LINEAR_BELOW = -30.0


class Distribution(ABC):
    """A distribution for each example, position and code; independent of each other."""

    @abstractmethod
    def divergence(self, other: Self) -> Tensor:
        """KL[self || other] of each code, (..., K), in nats, exact and never negative."""

    @abstractmethod
    def mean(self) -> Tensor:
        """Expectation of a draw, (..., out_features)."""

    @abstractmethod
    def draw(self, n_samples: int, generator: torch.Generator | None, training: bool) -> Tensor:
        """Differentiable draws, (n_samples, ..., out_features)."""


@dataclass(frozen=True)
class Normal(Distribution):
    """N(location, exp(log_scale)^2), both (..., K) or shapes that broadcast."""

    location: Tensor
    log_scale: Tensor

    def divergence(self, other: Self) -> Tensor:
        """ln(v/sigma) + (sigma^2 + (mu-m)^2) / (2 v^2) - 1/2, without the cancellation near 0."""
        shift = (self.location - other.location) * torch.exp(-other.log_scale)
        log_ratio = self.log_scale - other.log_scale
        # rounding leaves -1e-11 where the two agree
        return (0.5 * (torch.expm1(2 * log_ratio) - 2 * log_ratio + shift.square())).clamp_min(0.0)

    def mean(self) -> Tensor:
        """Locations."""
        return self.location

    def draw(self, n_samples: int, generator: torch.Generator | None, training: bool) -> Tensor:
        """Location plus scaled noise, in training and after."""
        noise = _filled(n_samples, self.location, generator, "normal_")
        return self.location + self.log_scale.exp() * noise


@dataclass(frozen=True)
class Tags(Distribution):
    """One of C tags: log-probabilities (..., K, C); a draw is a one-hot vector, in training a relaxed one."""

    log_probabilities: Tensor
    temperature: Tensor | None = None

    def divergence(self, other: Self) -> Tensor:
        """Sum over the tags of p ln(p / r), exact: no draw is involved."""
        log_ratio = self.log_probabilities - other.log_probabilities
        return (self.log_probabilities.exp() * log_ratio).sum(dim=-1).clamp_min(0.0)

    def mean(self) -> Tensor:
        """Probabilities, the tags of all codes side by side."""
        return self.log_probabilities.exp().flatten(-2)

    def draw(self, n_samples: int, generator: torch.Generator | None, training: bool) -> Tensor:
        """In training Gumbel-softmax at the temperature, else tags."""
        gumbel = -_filled(n_samples, self.log_probabilities, generator, "exponential_").log()
        scores = self.log_probabilities + gumbel
        if training and self.temperature is not None:
            return torch.softmax(scores / self.temperature, dim=-1).flatten(-2)
        return F.one_hot(scores.argmax(dim=-1), scores.shape[-1]).to(scores).flatten(-2)


class Code(nn.Module, ABC):
    """Turns an encoder's numbers into distributions and holds the prior.

    Attributes:
        n_parameters (int): numbers that the encoder gives.
        out_features (int): numbers that the decoder gets.
    """

    n_parameters: int
    out_features: int

    @abstractmethod
    def distribution(self, parameters: Tensor) -> Distribution:
        """From (..., n_parameters)."""

    @abstractmethod
    def standard_parameters(self) -> Tensor:
        """Numbers of an encoder, (n_parameters,), that give the standard prior."""

    @abstractmethod
    def prior(self, length: int | None) -> Distribution:
        """The prior; of the first ``length`` positions if it has one for each."""


class GaussianCode(Code):
    """K independent Gaussian numbers."""

    prior_mean: Tensor
    prior_log_scale: Tensor

    def __init__(self, size: int, prior: Prior, n_positions: int | None) -> None:
        super().__init__()
        self.n_parameters, self.out_features = 2 * size, size
        shape = (size,) if n_positions is None else (n_positions, size)
        for name in ("prior_mean", "prior_log_scale"):
            _hold(self, name, torch.zeros(shape), prior)

    def distribution(self, parameters: Tensor) -> Normal:
        """Locations, then rho with the deviations softplus(rho - 5)."""
        location, rho = parameters.chunk(2, dim=-1)
        return Normal(location, _log_softplus(rho - _RHO_OFFSET))

    def standard_parameters(self) -> Tensor:
        """Locations 0 and deviations softplus(rho - 5) of 1."""
        return torch.tensor([0.0, _RHO_OFFSET + math.log(math.e - 1)]).repeat_interleave(self.out_features)

    def prior(self, length: int | None) -> Normal:
        """N(m, v^2); the standard one has m = 0, v = 1."""
        return Normal(self.prior_mean[:length], self.prior_log_scale[:length])


class TagCode(Code):
    """K independent tags, each one of ``tags``, with the temperature of their relaxation."""

    prior_logits: Tensor
    temperature: Tensor

    def __init__(self, size: int, tags: int, prior: Prior, n_positions: int | None, temperature: float) -> None:
        super().__init__()
        self.n_parameters = self.out_features = size * tags
        self._size = size
        shape = (size, tags) if n_positions is None else (n_positions, size, tags)
        _hold(self, "prior_logits", torch.zeros(shape), prior)
        self.register_buffer("temperature", torch.tensor(temperature))  # an annealed one is saved with the weights

    def distribution(self, parameters: Tensor) -> Tags:
        """Softmax of each code's scores."""
        scores = parameters.reshape(*parameters.shape[:-1], self._size, -1)
        return Tags(torch.log_softmax(scores, dim=-1), self.temperature)

    def standard_parameters(self) -> Tensor:
        """Equal scores."""
        return torch.zeros(self.n_parameters)

    def prior(self, length: int | None) -> Tags:
        """Softmax of weights; the standard one is uniform."""
        return Tags(torch.log_softmax(self.prior_logits[:length], dim=-1))


def _hold(module: nn.Module, name: str, start: Tensor, prior: Prior) -> None:
    if prior == "learned":
        module.register_parameter(name, nn.Parameter(start))
    else:  # a constant, which needs no place in a file
        module.register_buffer(name, start, persistent=False)


def _log_softplus(value: Tensor) -> Tensor:
    bounded = value.clamp_min(_LINEAR_BELOW)
    return F.softplus(bounded).log() + (value - bounded)


def _filled(n_samples: int, like: Tensor, generator: torch.Generator | None, method: str) -> Tensor:
    device = like.device if generator is None else generator.device
    numbers = torch.empty((n_samples, *like.shape), dtype=like.dtype, device=device)
    drawn: Tensor = getattr(numbers, method)(generator=generator)
    return drawn.to(like.device)
