"""The information bottleneck curve of a joint distribution: the most about Y that so many bits of X can hold."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from captum_iba._numbers import assert_integer, assert_number
from captum_iba.errors import CaptumIBAWarning, InvalidArgumentError, InvalidTypeError
from captum_iba.information.estimate import BITS_PER_NAT, Unit, assert_unit
from captum_iba.information.generators import generator_of

# The random start of a restart, in nats of its logits.
_START_SPREAD = 3.0
# How often solutions of neighbouring betas are tried in each other's place.
_ROUNDS = 3


@dataclass(frozen=True)
class BottleneckCurve:
    """Points of the information bottleneck curve, by rising beta.

    Attributes:
        betas (Tensor): (B,).
        i_xt (Tensor): (B,), information of T about X, in ``unit``.
        i_ty (Tensor): (B,), information of T about Y, in ``unit``.
        encoders (Tensor): (B, n_x, n_t), p(t | x).
        converged (Tensor): (B,), bool: the iterations came to rest. Near a beta at which T gains a value they are slow.
        i_xy (float): information of X about Y, which no T exceeds, in ``unit``.
        unit (str): ``"bits"`` or ``"nats"``.
    """

    betas: Tensor
    i_xt: Tensor
    i_ty: Tensor
    encoders: Tensor
    converged: Tensor
    i_xy: float
    unit: Unit = "nats"

    def to(self, unit: Unit) -> BottleneckCurve:
        """The same curve in another unit."""
        assert_unit(unit)
        if unit == self.unit:
            return self
        factor = BITS_PER_NAT if unit == "bits" else 1 / BITS_PER_NAT
        return replace(self, i_xt=self.i_xt * factor, i_ty=self.i_ty * factor, i_xy=self.i_xy * factor, unit=unit)


def information_bottleneck(
    p_xy: Tensor,
    betas: float | Sequence[float] | Tensor,
    n_values: int | None = None,
    n_restarts: int = 4,
    n_iter: int = 5000,
    tolerance: float = 1e-10,
    unit: Unit = "bits",
    seed: int = 0,
    show_progress: bool = False,
) -> BottleneckCurve:
    r"""Minimise I(X;T) - beta I(T;Y) over p(t | x) for each beta, by the iterations of Blahut and Arimoto.

    Tishby, Pereira and Bialek 1999, "The information bottleneck method", section 3:
    ``p(t | x) ~ p(t) exp(-beta KL[p(y | x) || p(y | t)])``, with p(t) and p(y | t) of the encoder before. Each step
    lowers the objective, whose minima are local. So beta is lowered from the largest, where T = X is a good start, from
    one solution to the next; at each beta random starts compete with it; and at the end each beta takes the best of all
    solutions found, which makes the curve monotone and concave. Values of X with the same p(y | x) are one value
    here: T needs nothing more of X (Y's sufficient statistic).

    Args:
        p_xy (Tensor): (n_x, n_y), the joint distribution; rows and columns without mass are allowed. Counts are
            normalised.
        betas (float, Sequence[float] or Tensor): one or (B,), at least 0; 0 and 1 or less give T without information.
        n_values (int, optional): number of values of T. Default: None, as many as X has different p(y | x), which
            suffices for the beta of any point of the curve.
        n_restarts (int, optional): random starts at each beta beside the solution at the beta before. Default: 4.
        n_iter (int, optional): at most so many steps each. Default: 5000.
        tolerance (float, optional): at rest when no p(t | x) moves by more in a step. Default: 1e-10.
        unit (str, optional): ``"bits"`` or ``"nats"``. Default: ``"bits"``.
        seed (int, optional): of the random starts. Default: 0.
        show_progress (bool, optional): a bar over the betas. Default: False.

    Returns:
        BottleneckCurve: sorted by beta. Warns when iterations did not come to rest.

    Raises:
        InvalidTypeError: p_xy is no tensor, or betas are no numbers.
        InvalidArgumentError: no joint distribution, or an argument that cannot be used.

    Examples::

        >>> import torch
        >>> p_xy = torch.tensor([[0.45, 0.05], [0.05, 0.45]])  # two fair bits that differ in one case of ten
        >>> curve = information_bottleneck(p_xy, [1.0, 2.0, 100.0])
        >>> [f"{value:.2f}" for value in curve.i_ty]  # nothing, some, all of I(X;Y)
        ['0.00', '0.41', '0.53']
    """
    assert_unit(unit)
    joint = _as_joint(p_xy)
    ordered = _as_betas(betas)
    for name, value, least in (("n_restarts", n_restarts, 0), ("n_iter", n_iter, 1), ("seed", seed, 0)):
        assert_integer(name, value, least)
    assert_number("tolerance", tolerance, lambda value: value > 0, "above 0")
    merged, place = _merged(joint)
    n_values = len(merged) if n_values is None else n_values
    assert_integer("n_values", n_values)
    problem = _Problem(merged, n_iter, tolerance)
    generator = generator_of(seed)
    solutions, rests = _annealed(problem, ordered, n_values, n_restarts, generator, show_progress)
    solutions, rests = _exchanged(problem, ordered, solutions, rests)
    if not bool(rests.all()):
        moving = [round(beta, 4) for beta in ordered[~rests].tolist()]
        warnings.warn(
            f"The iterations did not come to rest within n_iter={n_iter} at beta {moving[:5]}; their points lie on or "
            "below the curve. Raise n_iter, or the tolerance.",
            CaptumIBAWarning,
            stacklevel=2,
        )
    i_xt, i_ty = problem.informations(solutions)
    limit = float(problem.limit)
    return BottleneckCurve(ordered, i_xt, i_ty, solutions[:, place], rests, limit).to(unit)


class _Problem:
    """A joint distribution, and steps of encoders (S, n_x, n_t) on it."""

    def __init__(self, joint: Tensor, n_iter: int, tolerance: float) -> None:
        self.p_x = joint.sum(dim=1)
        self.p_y_x = joint / self.p_x[:, None]
        self.p_y = joint.sum(dim=0)
        self._joint, self._n_iter, self._tolerance = joint, n_iter, tolerance
        self._entropies = torch.special.entr(self.p_y_x).sum(dim=1)
        self.limit = _information(joint)

    def informations(self, encoders: Tensor) -> tuple[Tensor, Tensor]:
        """I(X;T) and I(T;Y) of each encoder, in nats."""
        i_xt = _information(self.p_x[:, None] * encoders)
        return i_xt, _information(encoders.mT @ self._joint)

    def objective(self, encoders: Tensor, betas: Tensor) -> Tensor:
        """I(X;T) - beta I(T;Y) of each encoder."""
        i_xt, i_ty = self.informations(encoders)
        return i_xt - betas * i_ty

    def at_rest(self, encoders: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
        """Encoders after steps until all are at rest, and which of them are."""
        moved = torch.full_like(betas, torch.inf)
        for _ in range(self._n_iter):
            after = self._step(encoders, betas)
            moved = (after - encoders).abs().amax(dim=(1, 2))
            encoders = after
            if bool((moved <= self._tolerance).all()):
                break
        return encoders, moved <= self._tolerance

    def _step(self, encoders: Tensor, betas: Tensor) -> Tensor:
        p_t = self.p_x @ encoders
        p_ty = encoders.mT @ self._joint
        # KL[p(y|x) || p(y|t)] = -H(Y|x) - sum_y p(y|x) ln p(y|t); infinite where t never goes with a y that x does
        log_p_y_t = (p_ty / p_t[..., None]).nan_to_num(0.0).log()
        crossed = torch.where(self.p_y_x[:, None] > 0, self.p_y_x[:, None] * log_p_y_t[:, None], 0.0).sum(dim=-1)
        logits = p_t.log()[:, None] + betas[:, None, None] * (crossed + self._entropies[:, None])
        # with beta 0, 0 times infinity: no distance counts
        logits = torch.where(betas[:, None, None] > 0, logits, p_t.log()[:, None])
        return logits.softmax(dim=-1)


def _annealed(
    problem: _Problem, betas: Tensor, n_values: int, n_restarts: int, generator: torch.Generator, show_progress: bool
) -> tuple[Tensor, Tensor]:
    """A solution for each beta, from the largest down, each from the one before and from random starts."""
    from tqdm.auto import tqdm

    n_x = len(problem.p_x)
    start = torch.eye(n_x, n_values, dtype=torch.float64)
    start[n_values:, n_values - 1] = 1.0
    # a solution at each beta, and one that an encoder in which values never mix does not come to
    nothing = torch.full((1, n_x, n_values), 1 / n_values, dtype=torch.float64)
    found = []
    for beta in tqdm(betas.flip(0), desc="Information bottleneck", disable=not show_progress):
        logits = _START_SPREAD * torch.randn(n_restarts, n_x, n_values, generator=generator, dtype=torch.float64)
        starts = torch.cat([start[None], nothing, logits.softmax(dim=-1).to(start)])
        repeated = beta.expand(len(starts))
        ends, rests = problem.at_rest(starts, repeated)
        best = int(problem.objective(ends, repeated).argmin())
        start = ends[best]
        found.append((start, rests[best]))
    found.reverse()
    return torch.stack([one for one, _ in found]), torch.stack([rest for _, rest in found])


def _exchanged(problem: _Problem, betas: Tensor, solutions: Tensor, rests: Tensor) -> tuple[Tensor, Tensor]:
    """For each beta the best of all solutions, let go on from there; until each beta keeps its own."""
    for _ in range(_ROUNDS):
        best = _best_of_all(problem, betas, solutions)
        if bool((best == torch.arange(len(betas))).all()):
            return solutions, rests
        solutions, rests = problem.at_rest(solutions[best], betas)
    best = _best_of_all(problem, betas, solutions)
    return solutions[best], rests[best]


def _best_of_all(problem: _Problem, betas: Tensor, solutions: Tensor) -> Tensor:
    """Which solution has the lowest objective at each beta; its own where others are no better."""
    i_xt, i_ty = problem.informations(solutions)
    objectives = i_xt - betas[:, None] * i_ty  # (beta, solution)
    best = objectives.argmin(dim=1)
    lowest = objectives.gather(1, best[:, None])[:, 0]
    own = objectives.diagonal()
    return torch.where(own <= lowest + 1e-13, torch.arange(len(betas)), best)


def _information(joint: Tensor) -> Tensor:
    """Mutual information of tables (..., a, b), in nats."""
    entropies = [torch.special.entr(joint.sum(dim=d)).sum(dim=-1) for d in (-1, -2)]
    informations: Tensor = entropies[0] + entropies[1] - torch.special.entr(joint).sum(dim=(-1, -2))
    return informations.clamp_min(0.0)


def _merged(joint: Tensor) -> tuple[Tensor, Tensor]:
    """The table with one row for all x with the same p(y | x), and the row of each x; x without mass join the first."""
    p_x = joint.sum(dim=1)
    present = p_x > 0
    # equal up to rounding is equal
    conditionals = (joint[present] / p_x[present, None]).round(decimals=13)
    place_of_present = torch.unique(conditionals, dim=0, return_inverse=True)[1]
    merged = joint.new_zeros(int(place_of_present.max()) + 1, joint.shape[1])
    merged.index_add_(0, place_of_present, joint[present])
    place = torch.zeros(len(joint), dtype=torch.long)
    place[present] = place_of_present
    return merged, place


def _as_joint(p_xy: Any) -> Tensor:
    if not isinstance(p_xy, Tensor):
        raise InvalidTypeError(f"p_xy is a {type(p_xy).__name__}; wanted a tensor (torch.as_tensor makes one).")
    if p_xy.ndim != 2 or p_xy.is_complex():
        raise InvalidArgumentError(f"p_xy has shape {tuple(p_xy.shape)}; wanted (n_x, n_y), real.")
    joint = p_xy.detach().double().cpu()
    total = float(joint.sum())
    if not bool((joint >= 0).all()) or not 0 < total < torch.inf:
        raise InvalidArgumentError(
            f"p_xy has entries from {float(joint.min()):.3g} to {float(joint.max()):.3g} and sum {total:.3g}; wanted "
            "probabilities or counts, none negative, with a sum above 0."
        )
    return joint / total


def _as_betas(betas: Any) -> Tensor:
    if isinstance(betas, Tensor):
        values = betas.flatten().tolist()
    elif isinstance(betas, (Real, Iterable)):
        values = [betas] if isinstance(betas, Real) else list(betas)
    else:
        raise InvalidTypeError(f"betas is a {type(betas).__name__}; wanted a number, or several such as [1.0, 5.0].")
    if not values:
        raise InvalidArgumentError("betas is empty; wanted at least one.")
    for value in values:
        assert_number("beta", value, lambda number: 0 <= number <= 1e12, "from 0 to 1e12")
    return torch.tensor(sorted(float(value) for value in values), dtype=torch.float64)
