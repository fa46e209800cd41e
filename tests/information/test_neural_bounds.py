"""Variational bounds against closed forms and their identities."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captum_iba.information.neural import bounds
from captum_iba.information.neural.closed_forms import gaussian_log_ratio


def normal_pairs(n, d, rho, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    return x, rho * x + math.sqrt(1 - rho**2) * noise


def log_ratio_scores(x, y, rho):
    """ln p(y | x) / p(y) of every x against every y, written out from the densities."""
    variance = 1 - rho**2
    residual = ((y[None] - rho * x[:, None]) ** 2 / variance).sum(-1)
    return (-residual + (y**2).sum(-1)) / 2 - x.shape[1] / 2 * math.log(variance)


@st.composite
def score_matrices(draw):
    n = draw(st.integers(2, 6))
    numbers = st.floats(-20, 20, allow_nan=False)
    rows = st.lists(st.lists(numbers, min_size=n, max_size=n), min_size=n, max_size=n)
    return torch.tensor(draw(rows), dtype=torch.float64)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
def test_dv_and_nwj_of_the_log_ratio_are_the_mutual_information(rho):
    x, y = normal_pairs(1500, 2, rho)
    truth = -math.log(1 - rho**2)
    scores = log_ratio_scores(x, y, rho)
    error = float(bounds.dv_terms(scores).std()) / 1500**0.5
    assert abs(float(bounds.dv(scores)) - truth) <= 3 * error + 1e-9
    assert abs(float(bounds.nwj(scores + 1)) - truth) <= 3 * error + 1e-9


def test_infonce_of_the_log_ratio_is_between_the_truth_and_its_cap():
    """Of 50 examples it finds nearly all of .51 nat; of two at most ln 2, however far apart the pairs are."""
    x, y = normal_pairs(50 * 200, 1, 0.8)
    scores = torch.stack([log_ratio_scores(a, b, 0.8) for a, b in zip(x.split(50), y.split(50), strict=True)])
    assert float(bounds.infonce(scores).mean()) == pytest.approx(-0.5 * math.log(0.36), abs=0.05)
    certain = torch.tensor([[50.0, -50.0], [-50.0, 50.0]], dtype=torch.float64)
    assert float(bounds.infonce(certain)) == pytest.approx(math.log(2), abs=1e-12)


@given(score_matrices())
def test_infonce_never_exceeds_ln_n(scores):
    assert float(bounds.infonce(scores)) <= math.log(len(scores)) + 1e-12


@given(score_matrices())
def test_nwj_never_exceeds_dv(scores):
    assert float(bounds.nwj(scores)) <= float(bounds.dv(scores)) + 1e-9


@given(score_matrices())
def test_nwj_with_dvs_own_constant_is_dv(scores):
    best = scores - bounds.log_mean_exp(scores) + 1
    assert float(bounds.nwj(best)) == pytest.approx(float(bounds.dv(scores)), abs=1e-9)


@given(score_matrices(), st.floats(-100, 100))
def test_dv_does_not_change_with_a_constant(scores, constant):
    assert float(bounds.dv(scores + constant)) == pytest.approx(float(bounds.dv(scores)), abs=1e-9)


@given(score_matrices())
def test_smile_is_dv_when_nothing_is_clamped(scores):
    assert float(bounds.smile(scores, tau=20.0)) == pytest.approx(float(bounds.dv(scores)), abs=1e-12)


def test_smile_clamps_products_alone():
    scores = torch.tensor([[3.0, 9.0], [-9.0, 5.0]], dtype=torch.float64)
    clamped = math.log((math.exp(1) + math.exp(-1)) / 2)
    assert float(bounds.smile(scores, tau=1.0)) == pytest.approx(4.0 - clamped, abs=1e-12)


@settings(deadline=None)
@given(score_matrices())
def test_an_examples_terms_average_to_the_bound(scores):
    pairs = [
        (bounds.dv, bounds.dv_terms),
        (bounds.nwj, bounds.nwj_terms),
        (bounds.infonce, bounds.infonce_terms),
        (bounds.js, bounds.js_terms),
        (bounds.smile, bounds.smile_terms),
    ]
    for whole, terms in pairs:
        value = float(whole(scores))
        assert float(terms(scores).mean()) == pytest.approx(value, abs=1e-9 * max(1.0, abs(value)))


def test_the_standard_error_is_the_deviation_of_the_bound_over_repeated_samples():
    """Also for a critic that is wrong by a function of x, where the pairs' own scores alone would mislead."""
    values, errors = [], []
    for seed in range(300):
        x, y = normal_pairs(100, 1, 0.5, seed)
        scores = log_ratio_scores(x, y, 0.5) + 0.5 * x
        terms = bounds.dv_terms(scores)
        values.append(float(terms.mean()))
        errors.append(float(terms.std()) / 10)
    deviation = float(torch.tensor(values).std())
    assert float(torch.tensor(errors).mean()) == pytest.approx(deviation, rel=0.15)
    # the deviation of the pairs' own scores alone, for comparison: it counts the function of x as information
    assert bounds.joint(scores).std() / 10 > 1.2 * deviation


def test_js_is_highest_at_the_log_ratio():
    x, y = normal_pairs(1500, 1, 0.7)
    scores = log_ratio_scores(x, y, 0.7)
    best = float(bounds.js(scores))
    assert all(float(bounds.js(other)) < best for other in (scores * 0.7, scores * 1.4, scores + 0.5, scores - 0.5))


def test_mines_gradient_is_dvs_when_the_moving_mean_is_this_batchs():
    scores = torch.randn(7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    now = bounds.log_mean_exp(scores.detach()).exp()
    of_mine = torch.autograd.grad(bounds.mine(scores, now), scores)[0]
    of_dv = torch.autograd.grad(bounds.dv(scores), scores)[0]
    torch.testing.assert_close(of_mine, of_dv)


def test_matrices_side_by_side_are_matrices_one_by_one():
    scores = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for function in (bounds.dv, bounds.nwj, bounds.infonce, bounds.js, bounds.smile, bounds.dv_terms):
        one_by_one = torch.stack([torch.stack([function(one) for one in row]) for row in scores])
        torch.testing.assert_close(function(scores), one_by_one)


def test_the_gaussian_start_is_the_analytic_log_ratio():
    """The quadratic form of fitted covariances equals the difference of normal log densities, in float64."""
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(200, 5, generator=generator, dtype=torch.float64) @ torch.randn(
        5, 5, generator=generator, dtype=torch.float64
    )
    x, y = both[:, :2], both[:, 2:]
    form = gaussian_log_ratio(x, y)
    found = ((x @ form["W"]) * y).sum(-1) + ((x @ form["A"]) * x).sum(-1) / 2 + ((y @ form["B"]) * y).sum(-1) / 2

    def log_density(rows):
        covariance = rows.T @ rows / len(rows)
        return torch.distributions.MultivariateNormal(torch.zeros(rows.shape[1]).double(), covariance).log_prob(rows)

    torch.testing.assert_close(found + form["c"][0, 0], log_density(both) - log_density(x) - log_density(y))


def test_identical_columns_have_a_finite_start():
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert all(bool(value.isfinite().all()) for value in gaussian_log_ratio(x[:, [0, 0, 1]], x).values())
