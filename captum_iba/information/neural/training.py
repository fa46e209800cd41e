"""Training of critics side by side, each kept at the state that does best on its validation rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_iba.information.neural import bounds
from captum_iba.information.neural.critic import SLOW, Critic, Parameters, scores
from captum_iba.information.neural.scoring import Signal, terms_of

# The closed form's parameters learn at this share of the rate.
_SLOWLY = 0.1
# High enough to keep scores of examples far out from growing.
_WEIGHT_DECAY = 0.05
# Rate of the moving average of the parameters, which is what is validated and kept.
_AVERAGE = 0.02
# Rate of MINE's moving average of the mean exponential.
_MOVING_MEAN = 0.01
# Standard errors by which a state must do better than the start.
MARGIN = 2.0


@dataclass(frozen=True)
class Objective:
    """How a critic is trained and told good from bad; all functions take scores (C, n, n).

    Attributes:
        signal (Callable): what training climbs, (C,).
        terms (Callable): each example's part of the reported value, (C, n), in float64.
        selection (Callable or None, optional): each example's part of what a state is chosen by, on rows that do not
            train. Default: None, what is reported.
        has_moving_mean (bool, optional): whether the signal takes MINE's moving mean as well. Default: False.
    """

    signal: Callable[..., Tensor]
    terms: Signal
    selection: Signal | None = None
    has_moving_mean: bool = False


@dataclass(frozen=True)
class Schedule:
    """How long and how fast critics train.

    Attributes:
        n_steps (int): at most so many steps.
        batch_size (int): examples a step; each is paired with all others.
        learning_rate (float): AdamW's.
        patience (int, optional): steps without a better state of any critic after which training ends. Default: 500.
        check_every (int, optional): steps between validations. Default: 50.
    """

    n_steps: int
    batch_size: int
    learning_rate: float
    patience: int = 500
    check_every: int = 50


class Trained:
    """Critics at the best of their states.

    A state must do better than those before, and better than the start by twice the standard error of the difference
    on the same rows: with few rows, the luckiest of many overfitted states looks better than a start that is right.

    Args:
        start (dict): the first state of C critics.
        validation (Tensor): each validation row's part of its value, (C, n).

    Attributes:
        parameters (dict): the best states.
        best_step (Tensor): steps after which they were met, (C,).
        n_steps (int): steps trained.
        interrupted (bool): whether the keyboard ended training.
    """

    def __init__(self, start: Parameters, validation: Tensor) -> None:
        self.parameters = {name: value.clone() for name, value in start.items()}
        self.best_step = torch.zeros(len(validation), dtype=torch.long, device=validation.device)
        self.n_steps = 0
        self.interrupted = False
        self._of_start = validation
        self._gain = validation.new_zeros(len(validation))

    def keep_better(self, parameters: Parameters, validation: Tensor) -> bool:
        """Take over the states that do better; whether there were any."""
        gains = validation - self._of_start
        gain, error = gains.mean(-1), gains.std(-1) / gains.shape[-1] ** 0.5
        better = (gain > self._gain) & (gain > MARGIN * error)
        for name, best in self.parameters.items():
            best[better] = parameters[name][better]
        self._gain = torch.where(better, gain, self._gain)
        self.best_step[better] = self.n_steps
        return bool(better.any())


def train(
    critic: Critic,
    objective: Objective,
    fit: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    schedule: Schedule,
    generator: torch.Generator,
    show_progress: bool = False,
) -> Trained:
    """Train critics from their closed form; that start is one of the states to choose from.

    Args:
        critic (Critic): its kind.
        objective (Objective): what is climbed and what chooses.
        fit (tuple[Tensor, Tensor]): x (C, n, dx) and y (C, n, dy) that train.
        validation (tuple[Tensor, Tensor]): those that choose.
        schedule (Schedule): length and rate.
        generator (torch.Generator): on the CPU; initial weights and batches.
        show_progress (bool, optional): whether to show a bar of the steps. Default: False.
    """
    start = critic.start(*fit, generator)
    selection = objective.selection or objective.terms
    best = Trained(start, terms_of(critic, start, *validation, selection))
    steps = _steps(critic, objective, start, fit, schedule, generator)
    last_gain = 0
    with _bar(schedule.n_steps, show_progress) as bar:
        try:
            for best.n_steps, averaged in enumerate(steps, 1):
                bar.update()
                if best.n_steps % schedule.check_every == 0:
                    terms = terms_of(critic, averaged, *validation, selection)
                    last_gain = best.n_steps if best.keep_better(averaged, terms) else last_gain
                    if best.n_steps - last_gain >= schedule.patience:
                        break
        except KeyboardInterrupt:
            best.interrupted = True
    return best


def _steps(
    critic: Critic,
    objective: Objective,
    start: Parameters,
    fit: tuple[Tensor, Tensor],
    schedule: Schedule,
    generator: torch.Generator,
) -> Iterator[Parameters]:
    """The moving average of the parameters after each step."""
    parameters = {name: value.clone().requires_grad_() for name, value in start.items()}
    averaged = {name: value.clone() for name, value in start.items()}
    optimizer = _optimizer(parameters, schedule.learning_rate)
    signal = _signal(objective)
    n = fit[0].shape[1]
    for _ in range(schedule.n_steps):
        batch = fit
        if n > schedule.batch_size:
            rows = torch.randperm(n, generator=generator)[: schedule.batch_size].to(fit[0].device)
            batch = fit[0][:, rows], fit[1][:, rows]
        with torch.enable_grad():
            # A critic's gradient depends on its own value alone, so that the sum serves all.
            loss = -signal(scores(critic, parameters, *batch)).sum()
            grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for value, grad in zip(parameters.values(), grads, strict=True):
            value.grad = grad
        optimizer.step()
        with torch.no_grad():
            for name, value in parameters.items():
                averaged[name].lerp_(value, _AVERAGE)
        yield averaged


def _optimizer(parameters: Parameters, learning_rate: float) -> torch.optim.Optimizer:
    slow = [value for name, value in parameters.items() if name.startswith(SLOW)]
    fast = [value for name, value in parameters.items() if not name.startswith(SLOW)]
    groups = [
        {"params": fast, "weight_decay": _WEIGHT_DECAY},
        {"params": slow, "lr": learning_rate * _SLOWLY, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate)


def _signal(objective: Objective) -> Signal:
    if not objective.has_moving_mean:
        return objective.signal
    moving: list[Tensor] = []

    def with_moving_mean(pairs: Tensor) -> Tensor:
        now = bounds.log_mean_exp(pairs.detach()).exp()
        moving[:] = [now if not moving else moving[0].lerp(now, _MOVING_MEAN)]
        return objective.signal(pairs, moving[0])

    return with_moving_mean


@contextmanager
def _bar(total: int, show: bool) -> Iterator[Any]:
    from tqdm.auto import tqdm

    with tqdm(total=total, desc="Critics", disable=not show, unit="step") as bar:
        yield bar
