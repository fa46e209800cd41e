"""Critics: functions of a pair (x, y), many of them side by side, that start at a closed form.

Parameters are tensors whose first axis counts critics, so that one batched product serves all of them. A critic's score
is a scalar product of something computed from x and something computed from y: n^2 scores for 2n passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import silu

from captum_iba.information.neural.closed_forms import gaussian_log_ratio, linear_discriminant

Parameters: TypeAlias = dict[str, Tensor]

# Parameters of the closed form, whose right values are nearly known: they move slowly.
SLOW = "start_"
_N_LAYERS = 3


class Critic(Protocol):
    """Critics side by side."""

    def start(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Parameters:
        """Parameters of networks that are 0 beside the closed form that fits x (C, n, dx) and y (C, n, dy)."""

    def closed_form(self, x: Tensor, y: Tensor) -> Parameters:
        """The parameters of the closed form alone; none if it is switched off."""

    def embed(self, parameters: Parameters, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """What x (C, n, dx) and y (C, m, dy) are in the space where a scalar product is a score, (C, n or m, r)."""

    def fitted_numbers(self, dx: int, dy: int) -> int:
        """How many numbers of the closed form couple x and y: each costs 1/(2n) nats on average."""


def scores(critic: Critic, parameters: Parameters, x: Tensor, y: Tensor) -> Tensor:
    """Each x against each y, (C, n, m)."""
    left, right = critic.embed(parameters, x, y)
    return left @ right.mT


@dataclass(frozen=True)
class Quadratic:
    """Scalar product of two networks plus a quadratic form that starts as the log-ratio of a Gaussian.

    T(x, y) = g(x)'h(y) + a(x) + b(y) + x'Wy + x'Ax/2 + y'By/2 + c, where h, a and b start at 0. Any map of x alone and
    of y alone that makes both Gaussian is within its reach.

    Args:
        hidden (int): width of the two hidden layers of each network.
        rank (int): outputs of g and h.
        gaussian (bool, optional): whether the quadratic form starts at the Gaussian log-ratio, or at 0. Default: True.
    """

    hidden: int
    rank: int
    gaussian: bool = True

    def start(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Parameters:
        """Networks whose product is 0 beside the quadratic form."""
        widths = (self.hidden, self.hidden, self.rank + 1)
        g = _networks("g", (x.shape[-1], *widths), len(x), generator)
        h = _networks("h", (y.shape[-1], *widths), len(x), generator)
        g["g2w"][..., -1:] = 0  # a
        h["h2w"].zero_()
        networks = {name: value.to(x) for name, value in (g | h).items()}
        return networks | self.closed_form(x, y)

    def closed_form(self, x: Tensor, y: Tensor) -> Parameters:
        """W, A, B and c."""
        scale = 1.0 if self.gaussian else 0.0
        return {SLOW + name: (value * scale).to(x) for name, value in gaussian_log_ratio(x, y).items()}

    def embed(self, parameters: Parameters, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The terms of T side by side."""
        g, h = _run("g", parameters, x), _run("h", parameters, y)
        a = g[..., -1:] + _half_form(x, parameters[SLOW + "A"])
        b = h[..., -1:] + _half_form(y, parameters[SLOW + "B"]) + parameters[SLOW + "c"]
        left = torch.cat((g[..., :-1], x @ parameters[SLOW + "W"], a, torch.ones_like(a)), -1)
        right = torch.cat((h[..., :-1], y, torch.ones_like(b), b), -1)
        return left, right

    def fitted_numbers(self, dx: int, dy: int) -> int:
        """Those of W, from which and the marginals the others follow."""
        return dx * dy if self.gaussian else 0


@dataclass(frozen=True)
class Classifier:
    """Log-odds of a class given x over its share: l_y(x) - ln sum_c p_c exp l_c(x), with y a one-hot class.

    Its mean exponential over the classes is 1 for every x, as that of the log-ratio itself is. The logits l are a
    network that starts at 0 plus a linear function that starts at Fisher's discriminant.

    Args:
        hidden (int): width of the two hidden layers.
        discriminant (bool, optional): whether the linear part starts at the discriminant, or at 0. Default: True.
    """

    hidden: int
    discriminant: bool = True

    def start(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Parameters:
        """A network whose outputs are 0 beside the discriminant."""
        networks = _networks("g", (x.shape[-1], self.hidden, self.hidden, y.shape[-1]), len(x), generator)
        networks["g2w"].zero_()
        return {name: value.to(x) for name, value in networks.items()} | self.closed_form(x, y)

    def closed_form(self, x: Tensor, y: Tensor) -> Parameters:
        """Weights and offsets of the discriminant, and the classes' shares."""
        scale = 1.0 if self.discriminant else 0.0
        form = linear_discriminant(x, y)
        linear = {SLOW + name: (form[name] * scale).to(x) for name in ("w", "b")}
        return linear | {"log_shares": form["log_shares"].to(x)}

    def embed(self, parameters: Parameters, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """All classes' log-odds, of which the one-hot y picks one."""
        logits = _run("g", parameters, x) + x @ parameters[SLOW + "w"] + parameters[SLOW + "b"]
        return logits - (logits + parameters["log_shares"].detach()).logsumexp(-1, keepdim=True), y

    def fitted_numbers(self, dx: int, dy: int) -> int:
        """The discriminant's weights; one class is told by the others."""
        return dx * (dy - 1) if self.discriminant else 0


def _half_form(x: Tensor, matrix: Tensor) -> Tensor:
    return ((x @ matrix) * x).sum(-1, keepdim=True) / 2


def _with_norm(x: Tensor) -> Tensor:
    """The columns and the logarithm of their mean square, which many links depend on and a network is slow to learn.

    The logarithm keeps examples far out from scores far out.
    """
    return torch.cat((x, x.square().mean(-1, keepdim=True).log1p()), -1)


def _networks(name: str, widths: tuple[int, ...], n_critics: int, generator: torch.Generator) -> Parameters:
    """Weights uniform within one over the root of the inputs; the same for all critics, which differ by their data."""
    parameters = {}
    widths = (widths[0] + 1, *widths[1:])  # the norm
    for layer in range(_N_LAYERS):
        n_in, n_out = widths[layer], widths[layer + 1]
        weight, bias = ((torch.rand(n, n_out, generator=generator) * 2 - 1) / math.sqrt(n_in) for n in (n_in, 1))
        if layer == _N_LAYERS - 1:
            bias.zero_()
        parameters[f"{name}{layer}w"] = weight.expand(n_critics, -1, -1).clone()
        parameters[f"{name}{layer}b"] = bias.expand(n_critics, -1, -1).clone()
    return parameters


def _run(name: str, parameters: Parameters, x: Tensor) -> Tensor:
    x = _with_norm(x)
    for layer in range(_N_LAYERS):
        x = silu(x) if layer else x
        x = torch.baddbmm(parameters[f"{name}{layer}b"], x, parameters[f"{name}{layer}w"])
    return x
