"""Folds, critics and their training."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_iba.information.neural import bounds, cross_fitting, training
from captum_iba.information.neural.critic import Classifier, Quadratic, scores
from captum_iba.information.neural.folds import split
from captum_iba.information.neural.scoring import terms_of
from captum_iba.information.neural.training import Objective, Schedule, Trained, train

DV = Objective(bounds.dv, bounds.dv_terms)


def data(n=80, dx=2, dy=1, n_critics=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n_critics, n, dx, generator=generator)
    return x, x[..., :dy] + torch.randn(n_critics, n, dy, generator=generator)


@given(st.integers(32, 300), st.integers(2, 8), st.integers(0, 10))
def test_held_out_folds_partition_the_rows_and_each_folds_parts_are_disjoint(n, n_folds, seed):
    folds = split(n, n_folds, torch.Generator().manual_seed(seed))
    assert sorted(torch.cat(folds.held_out).tolist()) == list(range(n))
    for held_out, fit, validation in zip(folds.held_out, folds.fit, folds.validation, strict=True):
        together = torch.cat((held_out, fit, validation)).tolist()
        assert len(set(together)) == len(together) and n - len(together) <= 1
        assert len(validation) >= 2 and len(fit) >= len(validation)


@pytest.mark.parametrize("critic", [Quadratic(8, 3), Quadratic(8, 3, gaussian=False), Classifier(8)])
def test_scores_are_those_of_each_critic_and_pair_alone(critic):
    x, y = data(n=9, n_critics=2)
    if isinstance(critic, Classifier):
        y = torch.nn.functional.one_hot((y[..., 0] > 0).long(), 2).float()
    generator = torch.Generator().manual_seed(1)
    start = critic.start(x, y, generator)
    parameters = {name: torch.randn(value.shape, generator=generator) for name, value in start.items()}
    found = scores(critic, parameters, x, y)
    for c in range(2):
        own = {name: value[c : c + 1] for name, value in parameters.items()}
        alone = [[scores(critic, own, x[c, i][None, None], y[c, j][None, None]) for j in range(9)] for i in range(9)]
        torch.testing.assert_close(
            found[c].flatten(), torch.stack([one.flatten() for row in alone for one in row])[:, 0]
        )


def test_networks_are_0_at_the_start():
    x, y = data(dx=3, dy=2)
    start = Quadratic(8, 4).start(x, y, torch.Generator().manual_seed(0))
    form = {name.removeprefix("start_"): value[0] for name, value in start.items() if name.startswith("start_")}
    a, b = x[0], y[0]
    halves = ((a @ form["A"]) * a).sum(-1)[:, None] / 2 + ((b @ form["B"]) * b).sum(-1) / 2
    torch.testing.assert_close(scores(Quadratic(8, 4), start, x, y)[0], a @ form["W"] @ b.T + halves + form["c"])
    zero = Quadratic(8, 4, gaussian=False)
    assert not scores(zero, zero.start(x, y, torch.Generator().manual_seed(0)), x, y).any()


def test_a_classifiers_mean_exponential_over_the_classes_is_1_for_each_x():
    x, _ = data(n=60)
    y = torch.nn.functional.one_hot(torch.arange(60) % 3, 3).float()[None]
    critic = Classifier(8)
    start = critic.start(x, y, torch.Generator().manual_seed(0))
    start["g2w"] = torch.randn(start["g2w"].shape, generator=torch.Generator().manual_seed(1))
    log_odds = scores(critic, start, x, torch.eye(3)[None])
    torch.testing.assert_close(log_odds.exp().mean(-1), torch.ones(1, 60))


def test_terms_of_many_critics_in_portions_are_those_at_once(monkeypatch):
    x, y = data(n=20, n_critics=5)
    critic = Quadratic(4, 2)
    start = critic.start(x, y, torch.Generator().manual_seed(0))
    at_once = terms_of(critic, start, x, y, bounds.dv_terms)
    monkeypatch.setattr("captum_iba.information.neural.scoring._AT_ONCE", 800)
    torch.testing.assert_close(terms_of(critic, start, x, y, bounds.dv_terms), at_once)


def test_blocks_of_rows_are_scored_among_themselves(monkeypatch):
    x, y = data(n=20)
    critic = Quadratic(4, 2)
    start = critic.start(x, y, torch.Generator().manual_seed(0))
    halves = [bounds.dv_terms(scores(critic, start, x[:, rows], y[:, rows])) for rows in (slice(10), slice(10, 20))]
    monkeypatch.setattr("captum_iba.information.neural.scoring.BLOCK", 10)
    torch.testing.assert_close(terms_of(critic, start, x, y, bounds.dv_terms), torch.cat(halves, 1))


def test_no_critic_scores_a_row_that_trained_or_chose_it(monkeypatch):
    x, y = data(n=90, n_critics=3)
    seen, scored = [], []
    own_train, own_terms_of = cross_fitting.train, cross_fitting.terms_of

    def spy_on_training(critic, objective, fit, validation, *more):
        seen.append(torch.cat((fit[0], validation[0]), 1))
        return own_train(critic, objective, fit, validation, *more)

    def spy_on_scoring(critic, parameters, a, b, terms):
        scored.append(a)
        return own_terms_of(critic, parameters, a, b, terms)

    monkeypatch.setattr(cross_fitting, "train", spy_on_training)
    monkeypatch.setattr(cross_fitting, "terms_of", spy_on_scoring)
    generator = torch.Generator().manual_seed(0)
    folds = split(90, 4, generator)
    cross_fitting.cross_fit(Quadratic(4, 2), DV, (x, y), folds, Schedule(3, 16, 1e-3), generator)
    of_training = seen[0].unflatten(0, (3, 4))
    for fold in range(4):
        held_out = scored[2 * fold]
        for problem in range(3):
            rows = {tuple(row) for row in of_training[problem, fold].tolist()}
            assert rows.isdisjoint(map(tuple, held_out[problem].tolist()))
            assert {tuple(row) for row in scored[2 * fold + 1][problem].tolist()} <= rows


def test_what_is_held_out_does_not_change_the_critic_that_scores_it():
    """Every number of a held-out fold may change: only its own terms, and the other folds' critics, change."""
    x, y = data(n=64)
    folds = split(64, 4, torch.Generator().manual_seed(0))
    changed = y.clone()
    changed[:, folds.held_out[0]] = 0.0
    fits = [cross_fitting.rows_of((x, values), folds.fit) for values in (y, changed)]
    validations = [cross_fitting.rows_of((x, values), folds.validation) for values in (y, changed)]
    first, second = (
        train(Quadratic(4, 2), DV, fit, validation, Schedule(60, 16, 1e-3), torch.Generator().manual_seed(1))
        for fit, validation in zip(fits, validations, strict=True)
    )
    for name, value in first.parameters.items():
        assert torch.equal(value[0], second.parameters[name][0])
    assert not torch.equal(first.parameters["start_W"][1], second.parameters["start_W"][1])


def test_the_best_state_is_kept_and_a_lucky_one_is_not():
    start = {"w": torch.zeros(3, 1, 1)}
    states = Trained(start, torch.zeros(3, 100))
    noise = torch.randn(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = (noise - noise.mean()) / noise.std()
    states.n_steps = 50
    # standard error .1: the first gains 3 of them, the second 1, the third loses
    assert states.keep_better({"w": torch.ones(3, 1, 1)}, torch.stack((noise + 0.3, noise + 0.1, noise - 1)))
    assert states.best_step.tolist() == [50, 0, 0] and states.parameters["w"].flatten().tolist() == [1, 0, 0]
    states.n_steps = 100
    assert not states.keep_better({"w": torch.full((3, 1, 1), 2.0)}, torch.stack((noise + 0.25, noise, noise)))
    assert states.parameters["w"].flatten().tolist() == [1, 0, 0]


def test_training_finds_a_link_that_the_start_does_not_see():
    """y is x squared with noise: uncorrelated, so that the Gaussian start is worth nothing."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2000, 1, generator=generator)
    y = x**2 - 1 + 0.3 * torch.randn(1, 2000, 1, generator=generator)
    train_rows, others = (x[:, :1500], y[:, :1500]), (x[:, 1500:], y[:, 1500:])
    critic = Quadratic(32, 8)
    trained = train(critic, DV, train_rows, others, Schedule(200, 128, 3e-3), generator)
    start = critic.start(*train_rows, torch.Generator().manual_seed(0))
    before, after = (bounds.dv(scores(critic, p, *others)) for p in (start, trained.parameters))
    assert float(before) < 0.05 and float(after) > 0.5


def test_an_interruption_keeps_the_best_until_then(monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(training, "_steps", interrupted)
    x, y = data()
    critic = Quadratic(4, 2)
    trained = train(critic, DV, (x, y), (x, y), Schedule(10, 16, 1e-3), torch.Generator().manual_seed(0))
    start = critic.start(x, y, torch.Generator().manual_seed(0))
    assert trained.interrupted and all(torch.equal(trained.parameters[name], start[name]) for name in start)
