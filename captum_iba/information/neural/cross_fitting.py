"""Cross-fitting: every example is scored by a critic that has not seen it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_iba.information.neural.critic import Critic, Parameters
from captum_iba.information.neural.folds import Folds
from captum_iba.information.neural.scoring import terms_of
from captum_iba.information.neural.training import Objective, Schedule, Trained, train

Pairs = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class CrossFitted:
    """What critics of several problems say of all examples.

    Attributes:
        terms (Tensor): (problems, n), each example's part of the value, by critics that were not trained on it.
        in_sample (Tensor): (problems,), the value on examples that trained the critics.
        slack (Tensor): (problems,), what the closed form loses on average by being fitted to few examples.
        interrupted (bool): whether training was ended by the keyboard.
    """

    terms: Tensor
    in_sample: Tensor
    slack: Tensor
    interrupted: bool


def cross_fit(
    critic: Critic,
    objective: Objective,
    problems: Pairs,
    folds: Folds,
    schedule: Schedule,
    generator: torch.Generator,
    show_progress: bool = False,
) -> CrossFitted:
    """Train a critic for each problem and fold, all in one batch, and score each fold by its own.

    Args:
        critic (Critic): the critics' kind.
        objective (Objective): what they climb and are scored by.
        problems (tuple[Tensor, Tensor]): x (problems, n, dx) and y (problems, n, dy).
        folds (Folds): which rows train, choose and are scored.
        schedule (Schedule): of the training.
        generator (torch.Generator): initial weights and batches.
        show_progress (bool, optional): whether to show a bar of the steps. Default: False.
    """
    fit, validation = rows_of(problems, folds.fit), rows_of(problems, folds.validation)
    trained = train(critic, objective, fit, validation, schedule, generator, show_progress)
    untrained = trained.best_step == 0
    parameters = _refitted(critic, trained, (fit, validation), untrained)
    held_out, in_sample = [], []
    for rows, of_fold, fitted in _each_fold(parameters, folds):
        held_out.append(terms_of(critic, of_fold, *rows_of(problems, rows[None]), objective.terms))
        in_sample.append(terms_of(critic, of_fold, *rows_of(problems, fitted[None]), objective.terms).mean(1))
    used = folds.fit.shape[1] + untrained * folds.validation.shape[1]
    lost = critic.fitted_numbers(problems[0].shape[-1], problems[1].shape[-1]) / (2.0 * used.double())
    slack = lost.view(-1, len(folds.fit)).mean(1)
    return CrossFitted(torch.cat(held_out, 1), torch.stack(in_sample).mean(0), slack, trained.interrupted)


def rows_of(problems: Pairs, rows: Tensor) -> Pairs:
    """Rows (folds, k) of all problems, as (problems x folds, k, d)."""
    x, y = (variable[:, rows.to(variable.device)].flatten(0, 1) for variable in problems)
    return x, y


def _refitted(critic: Critic, trained: Trained, parts: tuple[Pairs, Pairs], untrained: Tensor) -> Parameters:
    """The best states; where that is the start, with the closed form fitted to the validation rows as well."""
    (fit_x, fit_y), (validation_x, validation_y) = parts
    form = critic.closed_form(torch.cat((fit_x, validation_x), 1), torch.cat((fit_y, validation_y), 1))
    refitted = {n: torch.where(untrained[:, None, None], v, trained.parameters[n]) for n, v in form.items()}
    return trained.parameters | refitted


def _each_fold(parameters: Parameters, folds: Folds) -> Iterator[tuple[Tensor, Parameters, Tensor]]:
    """Held-out rows, the critics of all problems that they are for, and as many rows that trained them."""
    n_folds = len(folds.held_out)
    for fold, rows in enumerate(folds.held_out):
        yield rows, {name: value[fold::n_folds] for name, value in parameters.items()}, folds.fit[fold, : len(rows)]
