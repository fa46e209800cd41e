import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from captum_iba.errors import InvalidArgumentError, InvalidTypeError
from captum_iba.information.gaussian_bottleneck import gaussian_information_bottleneck

correlations = st.floats(-0.99, 0.99)
betas = st.floats(0.01, 1.5)


def rate_and_relevance(rho, snr):
    """Informations, in nats, of x plus noise whose variance is 1 / snr of that of x."""
    return 0.5 * math.log1p(snr), -0.5 * math.log1p(-(rho**2) * snr / (1 + snr))


@given(correlations, betas)
def test_no_noisy_copy_is_better(rho, beta):
    """A numerical search over the noise of the copy finds no lower objective, and the same informations."""

    def objective(log_snr):
        rate, relevance = rate_and_relevance(rho, math.exp(log_snr))
        return beta * rate - relevance

    found = gaussian_information_bottleneck(rho, beta, unit="nats")
    best = minimize_scalar(objective, bounds=(-30, 15), method="bounded", options={"xatol": 1e-9})
    own = float(beta * found.i_xz - found.i_zy)
    assert own == pytest.approx(best.fun, abs=1e-6)
    rate, relevance = rate_and_relevance(rho, math.expm1(2 * float(found.i_xz)))
    assert float(found.i_zy) == pytest.approx(relevance, abs=1e-9)
    assert rate == pytest.approx(float(found.i_xz), abs=1e-9)


@pytest.mark.parametrize(
    ("beta", "nats"), [(0.02, 2.2336), (0.1, 1.3863), (0.3, 0.7113), (0.5, 0.2877), (0.6, 0.0849), (0.7, 0.0)]
)
def test_known_values(beta, nats):
    """Values worked out by hand for a correlation of 0.8."""
    assert float(gaussian_information_bottleneck(0.8, beta, unit="nats").i_xz) == pytest.approx(nats, abs=5e-5)


@given(st.lists(correlations, min_size=1, max_size=5), betas)
def test_a_vector_is_the_sum_of_its_components(rhos, beta):
    """Canonical directions add up."""
    together = gaussian_information_bottleneck(rhos, beta)
    each = [gaussian_information_bottleneck(rho, beta) for rho in rhos]
    for name in ("i_xz", "i_zy", "n_components"):
        assert getattr(together, name).item() == pytest.approx(sum(float(getattr(one, name)) for one in each))


@given(correlations, st.lists(betas, min_size=2, max_size=6))
def test_dearer_rates_are_lower(rho, weights):
    """Both informations fall with beta, the relevant one never exceeds the rate or I(X;Y), and 0 comes at rho^2."""
    weights = torch.tensor(sorted(weights), dtype=torch.float64)
    found = gaussian_information_bottleneck(rho, weights, unit="nats")
    assert found.i_xz.shape == weights.shape
    assert (found.i_xz.diff() <= 1e-12).all() and (found.i_zy.diff() <= 1e-12).all()
    assert (found.i_zy <= found.i_xz + 1e-12).all()
    assert (found.i_zy <= -0.5 * math.log1p(-(rho**2)) + 1e-12).all()
    assert ((found.i_xz == 0) == (weights >= rho * rho)).all()


def test_units_and_shapes():
    """Bits are nats over ln 2, and the result has the shape of beta."""
    weights = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    bits = gaussian_information_bottleneck([0.9, 0.5], weights)
    nats = gaussian_information_bottleneck([0.9, 0.5], weights, unit="nats")
    assert bits.i_xz.shape == bits.n_components.shape == (2, 2) and bits.i_xz.dtype == torch.float64
    torch.testing.assert_close(bits.i_xz * math.log(2), nats.i_xz)
    torch.testing.assert_close(bits.i_zy * math.log(2), nats.i_zy)


@pytest.mark.parametrize(
    ("rho", "beta", "error", "match"),
    [
        (1.0, 0.1, InvalidArgumentError, "infinite information"),
        (-1.2, 0.1, InvalidArgumentError, "between -1 and 1"),
        (float("nan"), 0.1, InvalidArgumentError, "finite"),
        ([], 0.1, InvalidArgumentError, "shape"),
        ([[0.1]], 0.1, InvalidArgumentError, "shape"),
        (0.5, 0.0, InvalidArgumentError, "above 0"),
        (0.5, [0.1, -1.0], InvalidArgumentError, "above 0"),
        (0.5, "much", InvalidTypeError, "beta"),
    ],
)
def test_what_has_no_optimum_is_refused(rho, beta, error, match):
    """Infinite information, no price, and what is no number."""
    with pytest.raises(error, match=match):
        gaussian_information_bottleneck(rho, beta)


def test_unknown_unit():
    """Bits or nats."""
    with pytest.raises(InvalidArgumentError, match="bits"):
        gaussian_information_bottleneck(0.5, 0.1, unit="bytes")
