"""Estimators by trained critics."""

import math
import random

import numpy as np
import pytest
import torch

from captum_iba.errors import InvalidArgumentError
from captum_iba.information.neural import DV, JS, MINE, NWJ, SMILE, InfoNCE, Neural, cross_fitting

ALL = (Neural, DV, MINE, NWJ, InfoNCE, JS, SMILE)
BRIEF = {"n_steps": 20, "batch_size": 64}


def normal_pairs(n, d, rho, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    return x, rho * x + math.sqrt(1 - rho**2) * noise


def estimated(estimator, x, y, seed=0):
    return estimator.estimate(x, y, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ALL)
def test_normal_variables(kind):
    """3/2 ln(4/3) nats, within two standard errors."""
    x, y = normal_pairs(1000, 3, 0.5)
    found = estimated(kind(**BRIEF), x, y)
    low, high = found.interval
    assert float(low) < -1.5 * math.log(0.75) < float(high)
    assert float(found.standard_error) < 0.04
    assert found.unit == "nats" and found.n == 1000 and found.value.dtype == torch.float64


@pytest.mark.parametrize("seed", range(3))
def test_independent_variables_give_0(seed):
    x, _ = normal_pairs(1000, 3, 0.0, seed)
    y, _ = normal_pairs(1000, 3, 0.0, seed + 100)
    found = estimated(Neural(**BRIEF), x, y, seed)
    low, high = found.interval
    assert float(found.value) == 0.0 and float(low) <= 0.0 <= float(high)
    assert -0.03 < float(found.held_out) <= 0.0 < float(found.in_sample)


def test_few_independent_examples_give_next_to_0():
    """Of 150 examples and with full training, on the mean over columns: overfitted states are not chosen."""
    x, y = normal_pairs(150, 3, 0.0)
    found = Neural().pairwise(x, y, torch.Generator().manual_seed(0))
    assert float(found.value.mean()) < 0.005
    assert -0.03 < float(found.held_out.mean()) < 0.0


def test_a_link_without_correlation_is_found():
    """y = x^2 + noise: the Gaussian start finds nothing, training what there is."""
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 2000, 1, generator=generator, dtype=torch.float64)
    found = estimated(Neural(n_steps=400), x, x**2 + noise)
    assert float(estimated(Neural(n_steps=0), x, x**2 + noise).value) < 0.02
    truth = information_of_square(1.0)
    assert truth - 0.2 < float(found.value) < truth + 2 * float(found.standard_error)


def information_of_square(noise):
    """I(X; X^2 + noise) = h(Y) - h(noise), nats, for a standard normal X, by numerical integration."""
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    weight = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) * (x[1] - x[0])
    y = torch.linspace(-3, 40, 6001, dtype=torch.float64)
    density = torch.exp(-((y[:, None] - x**2) ** 2) / (2 * noise**2)) @ weight / math.sqrt(2 * math.pi) / noise
    entropy = -torch.special.xlogy(density, density).sum() * (y[1] - y[0])
    return float(entropy) - 0.5 * math.log(2 * math.pi * math.e * noise**2)


def test_labels_of_a_mixture():
    """Three normal classes at distance 2 with shares 1/2, 1/4, 1/4, against the integral of the mixture's density."""
    shares, centres = torch.tensor([0.5, 0.25, 0.25]).double(), torch.tensor([-2.0, 0.0, 2.0]).double()
    generator = torch.Generator().manual_seed(0)
    labels = torch.multinomial(shares.float(), 4000, replacement=True, generator=generator)
    x = (centres[labels] + torch.randn(4000, generator=generator, dtype=torch.float64))[:, None]
    grid = torch.linspace(-10, 10, 20001, dtype=torch.float64)
    density = torch.exp(-((grid[:, None] - centres) ** 2) / 2) / math.sqrt(2 * math.pi) @ shares
    truth = float(-torch.special.xlogy(density, density).sum() * (grid[1] - grid[0])) - 0.5 * math.log(
        2 * math.pi * math.e
    )
    found = estimated(Neural(**BRIEF), x, labels)
    low, high = found.interval
    assert float(low) < truth < float(high) and abs(float(found.value) - truth) < 0.05
    exchanged = estimated(Neural(**BRIEF), labels, x)
    assert float(exchanged.value) == float(found.value)


def test_labels_names_have_no_meaning():
    x, y = normal_pairs(400, 2, 0.6)
    labels = (y[:, 0] > 0).long()
    assert torch.equal(
        estimated(Neural(**BRIEF), x, labels).value, estimated(Neural(**BRIEF), x, labels * 41 + 7).value
    )


def test_a_class_met_once_does_no_harm():
    x, y = normal_pairs(200, 1, 0.6)
    labels = (y[:, 0] > 0).long()
    labels[17] = 2
    assert bool(estimated(Neural(**BRIEF), x, labels).value.isfinite())


@pytest.mark.parametrize("labels", [False, True])
def test_pairwise_gives_each_pair_what_it_gets_alone(labels, monkeypatch):
    monkeypatch.setattr("captum_iba.information.neural.estimators._AT_ONCE", 2 * 4 * 64**2)
    x, y = normal_pairs(200, 3, 0.7)
    y = (y[:, 0] > 0).long() if labels else torch.cat((y[:, :1] ** 2, x[:, :1] + y[:, 1:2]), 1)
    estimator = Neural(**BRIEF)
    found = estimator.pairwise(x, y, torch.Generator().manual_seed(0))
    ys = [y] if labels else y.split(1, 1)
    for i, a in enumerate(x.split(1, 1)):
        for j, b in enumerate(ys):
            alone = estimated(estimator, a, b)
            for name in ("value", "standard_error", "held_out", "in_sample", "slack", "cap"):
                torch.testing.assert_close(getattr(found, name)[i, j], getattr(alone, name), rtol=0, atol=1e-4)
    assert found.value.shape == (3, len(ys))


@pytest.mark.parametrize("kind", [Neural, MINE])
def test_the_same_seed_gives_the_same_value_and_another_one_another(kind):
    x, y = normal_pairs(300, 2, 0.5)
    first, again, other = (estimated(kind(**BRIEF), x, y, seed).held_out for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("dy", [2, 3])
def test_x_and_y_may_be_exchanged(dy):
    x, y = normal_pairs(300, 3, 0.5)
    x, y = x[:, :2], y[:, :dy]
    assert torch.equal(estimated(Neural(**BRIEF), x, y).held_out, estimated(Neural(**BRIEF), y, x).held_out)
    table = Neural(**BRIEF).pairwise(x, y, torch.Generator().manual_seed(0)).held_out
    torch.testing.assert_close(Neural(**BRIEF).pairwise(y, x, torch.Generator().manual_seed(0)).held_out.T, table)


def test_scale_and_place_of_columns_have_no_meaning():
    x, y = normal_pairs(300, 2, 0.5)
    found = estimated(Neural(**BRIEF), x, y).held_out
    torch.testing.assert_close(estimated(Neural(**BRIEF), x * 1000 + 5, y / 100).held_out, found, rtol=0, atol=1e-3)


def test_global_random_states_stay():
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    x, y = normal_pairs(100, 1, 0.5)
    estimated(Neural(n_steps=5), x, y)
    assert torch.equal(torch.random.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()


def test_training_works_where_gradients_are_switched_off():
    x, y = normal_pairs(100, 1, 0.5)
    with torch.no_grad():
        found = estimated(Neural(**BRIEF), x, y)
    assert torch.equal(found.held_out, estimated(Neural(**BRIEF), x, y).held_out)


def test_caps():
    """InfoNCE cannot find more than ln of a fold's size; the others have no cap."""
    x, _ = normal_pairs(200, 1, 0.5)
    found = estimated(InfoNCE(n_steps=0), x, x)
    assert float(found.cap) == pytest.approx(math.log(50)) and float(found.value) <= math.log(50)
    assert math.isinf(float(estimated(Neural(n_steps=0), x, x.roll(1, 0)).cap))


def test_slack_is_what_the_fitted_start_loses():
    """dx dy / (2 n_train): on the mean over independent draws, the held-out value is as far below 0."""
    pairs = [(normal_pairs(200, 3, 0.0, seed)[0], normal_pairs(200, 3, 0.0, seed + 500)[0]) for seed in range(60)]
    found = [estimated(Neural(n_steps=0), x, y) for x, y in pairs]
    slack = float(found[0].slack)
    assert slack == pytest.approx(9 / (2 * 150))
    assert float(torch.stack([one.held_out for one in found]).mean()) == pytest.approx(-slack, rel=0.35)
    assert float(estimated(Neural(n_steps=0, start="zero"), *pairs[0]).slack) == 0.0


def test_in_sample_optimism_is_told():
    x, y = normal_pairs(120, 5, 0.0)
    found = estimated(Neural(n_steps=0), x, y)
    assert float(found.in_sample) > float(found.held_out) + 0.1
    assert any("on the examples that trained them" in text for text in found.warnings)
    calm = estimated(Neural(n_steps=0), *normal_pairs(2000, 1, 0.5))
    assert calm.warnings == ()


def test_too_few_examples_are_told():
    assert any("too few" in text for text in estimated(Neural(n_steps=0), *normal_pairs(60, 1, 0.5)).warnings)
    assert any("too few" in text for text in estimated(Neural(n_steps=0), *normal_pairs(150, 8, 0.5)).warnings)


def test_smile_says_that_it_is_no_bound():
    assert "no bound" in estimated(SMILE(n_steps=0), *normal_pairs(200, 1, 0.5)).warnings[0]


def test_an_interruption_still_gives_the_estimate(monkeypatch):
    own = cross_fitting.train
    lengths = []

    def interrupted_once(critic, objective, fit, validation, schedule, generator, show_progress):
        lengths.append(schedule.n_steps)
        trained = own(critic, objective, fit, validation, schedule, generator, show_progress)
        trained.interrupted = len(lengths) == 1
        return trained

    monkeypatch.setattr(cross_fitting, "train", interrupted_once)
    monkeypatch.setattr("captum_iba.information.neural.estimators._AT_ONCE", 1)
    x, y = normal_pairs(100, 2, 0.5)
    found = Neural(n_steps=5).pairwise(x, y[:, :1], torch.Generator().manual_seed(0))
    assert lengths == [5, 0] and any("keyboard" in text for text in found.warnings)
    assert bool(found.value.isfinite().all())


def test_progress_is_shown_when_asked(capsys):
    x, y = normal_pairs(100, 1, 0.5)
    estimated(Neural(n_steps=3), x, y)
    assert capsys.readouterr().err == ""
    estimated(Neural(n_steps=3, show_progress=True), x, y)
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"n_folds": 1}, "n_folds=1"),
        ({"n_steps": -1}, "n_steps=-1"),
        ({"hidden": 0}, "hidden=0"),
        ({"batch_size": 1}, "batch_size=1"),
        ({"learning_rate": 0}, "learning_rate=0"),
        ({"start": "random"}, "start='random'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, part):
    with pytest.raises(InvalidArgumentError, match=part):
        Neural(**settings)


def test_tau_and_folds_are_checked():
    with pytest.raises(InvalidArgumentError, match="tau=0"):
        SMILE(tau=0)
    with pytest.raises(InvalidArgumentError, match="40 examples in 20 folds"):
        estimated(Neural(n_folds=20), *normal_pairs(40, 1, 0.5))
