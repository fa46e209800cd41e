import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_iba.errors import CaptumIBAWarning, InvalidArgumentError
from captum_iba.information import Gaussian, mutual_information
from captum_iba.information.benchmark import get_tasks

GENERATOR = torch.Generator()


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000))
def test_it_is_the_formula_of_determinants(dx, dy, seed):
    """Uncorrected: 1/2 (ln|S_x| + ln|S_y| - ln|S|) of the sample's covariance."""
    z = torch.randn(50, dx + dy, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    z = z @ torch.randn(dx + dy, dx + dy, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    covariance = z.T.cov()
    expected = covariance[:dx, :dx].logdet() + covariance[dx:, dx:].logdet() - covariance.logdet()
    found = Gaussian(correction=False).estimate(z[:, :dx], z[:, dx:], GENERATOR)
    assert float(found.value) == pytest.approx(0.5 * float(expected), abs=1e-8)


def test_the_correction_removes_the_bias_of_few_examples():
    """Over many draws of 20 examples of two independent three-dimensional variables, the mean is 0 with it."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(800, 20, 6, generator=generator, dtype=torch.float64)
    for correction, is_zero in ((True, True), (False, False)):
        values = torch.stack([Gaussian(correction).estimate(z[:, :3], z[:, 3:], GENERATOR).value for z in draws])
        error = float(values.std()) / len(values) ** 0.5
        assert (abs(float(values.mean())) < 3 * error) == is_zero


def test_blind_to_linear_maps_and_to_copies_of_columns():
    """Invertible mixtures of x's columns, and columns that repeat others, change nothing."""
    task = get_tasks("2-pair 3v3")[0]
    x, y = task.sample(500)
    value = Gaussian().estimate(x, y, GENERATOR).value
    mixed = x @ torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 100 + 7
    assert torch.allclose(Gaussian().estimate(mixed, y, GENERATOR).value, value, atol=1e-9)
    assert torch.allclose(Gaussian().estimate(torch.cat([x, x + 1], dim=1), y, GENERATOR).value, value, atol=1e-9)


@pytest.mark.parametrize("name", ["normal 5v5 rho=.9", "dense 25v25", "half-cube 3v3", "wiggly 1v1"])
def test_exact_where_the_copula_is_normal(name):
    """Whatever the margins, the ranked estimate agrees with the closed form within three standard errors."""
    (task,) = get_tasks(name)
    found = mutual_information(*task.sample(5000), "gaussian", "nats", return_details=True)
    assert abs(float(found.value) - task.information) < 3 * float(found.standard_error)


def test_error_bars_are_the_scatter_of_estimates():
    """The standard error is the deviation over draws, and |rho| / sqrt(n) for a pair."""
    (task,) = get_tasks("normal 1v1 rho=.75")
    found = [Gaussian().estimate(*task.sample(400, seed), GENERATOR) for seed in range(200)]
    errors = torch.stack([one.standard_error for one in found])
    assert float(errors.mean()) == pytest.approx(0.75 / 20, rel=0.05)
    assert float(torch.stack([one.value for one in found]).std()) == pytest.approx(0.75 / 20, rel=0.2)


def test_pairs_of_columns_equal_single_estimates():
    """One matrix of correlations holds all pairs."""
    x, y = get_tasks("2-pair 3v3")[0].sample(300)
    table = Gaussian().pairwise(x, y, GENERATOR)
    for i in range(3):
        for j in range(3):
            one = Gaussian().estimate(x[:, i : i + 1], y[:, j : j + 1], GENERATOR)
            assert torch.allclose(table.value[i, j], one.value, atol=1e-10)
            assert float(table.standard_error[i, j]) == pytest.approx(float(one.standard_error), rel=0.2, abs=0.01)


def test_what_is_determined_is_said_to_be():
    """y a combination of x's columns: a large finite value, and a warning that the true one may be infinite."""
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.warns(CaptumIBAWarning, match="may be anything above"):
        value = mutual_information(x, x.sum(dim=1), "gaussian", transform="none")
    assert math.isfinite(value)
    assert value > 15


@pytest.mark.parametrize(("n", "dx", "dy"), [(10, 6, 6), (8, 20, 2), (4, 1, 2)])
def test_fewer_examples_than_a_covariance_needs(n, dx, dy):
    """An error, in place of a value that any noise would give."""
    z = torch.randn(n, dx + dy, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.raises(InvalidArgumentError, match="a covariance needs more than"):
        mutual_information(z[:, :dx], z[:, dx:], "gaussian")


def test_few_examples_are_warned_of():
    """Fewer than five a column."""
    z = torch.randn(40, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.warns(CaptumIBAWarning, match="Take at least 60"):
        mutual_information(z[:, :6], z[:, 6:], "gaussian")


def test_numbers_whose_squares_overflow():
    """A factor changes nothing, however large."""
    x, y = get_tasks("dense 2v2")[0].sample(300)
    value = mutual_information(x, y, "gaussian", transform="none")
    assert torch.allclose(mutual_information(1e200 * x, 1e-200 * y, "gaussian", transform="none"), value)
