import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal
from torch.distributions import kl_divergence as torch_kl

from captum_iba.bottleneck.information import (
    Reference,
    example_reference,
    floor_scale,
    information,
    kl_divergence,
    make_mask,
    normalize,
    signal_and_noise_scale,
)
from captum_iba.bottleneck.smoothing import GaussianBlur
from captum_iba.errors import NonFiniteError, StatisticsError
from tests.literal import normal

GOLDEN = [
    (5.0, 0.0, 4.506737745615865),
    (5.0, 1.0, 5.000067291818328),
    (0.0, 0.0, 0.3181471805599453),
    (0.0, 1.0, 0.4431471805599453),
    (-5.0, 0.0, 4.489469158e-05),
    (-5.0, 1.0, 6.729181833e-05),
]


def tensor(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


@pytest.mark.parametrize(("alpha", "r2", "nats"), GOLDEN)
def test_golden_values(alpha, r2, nats):
    """The information of one element agrees with values computed by hand."""
    found = kl_divergence(make_mask(tensor(alpha)), tensor(math.sqrt(r2)))
    assert float(found) == pytest.approx(nats, rel=1e-9)


@given(st.floats(-6, 6), st.floats(-8, 8), st.floats(-3, 3), st.floats(0.1, 5))
def test_information_is_the_divergence_of_the_two_normals(alpha, r, mean, std):
    """The closed form equals torch.distributions' divergence of N(lam R + omega mu, omega s) from N(mu, s)."""
    features = mean + std * tensor(r)
    mask = make_mask(tensor(alpha))
    through = Normal(mask.lam * features + mask.omega * mean, mask.omega * std)
    wanted = torch_kl(through, Normal(tensor(mean), tensor(std)))
    found = kl_divergence(mask, tensor(r))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


@given(st.floats(-12, 12), st.floats(-8, 8))
def test_float32_agrees_with_float64(alpha, r):
    """Half-precision models compute information in float32; it is right to 1e-5 where naive forms lose everything."""
    alpha32, r32 = tensor(alpha, dtype=torch.float32), tensor(r, dtype=torch.float32)
    found = kl_divergence(make_mask(alpha32), r32)
    wanted = kl_divergence(make_mask(alpha32.double()), r32.double())
    torch.testing.assert_close(found.double(), wanted, rtol=2e-5, atol=1e-30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("blurred", [False, True])
def test_both_ends_are_finite(dtype, blurred):
    """Fully open and fully closed masks give finite information and gradients, never negative bits."""
    alpha = torch.tensor([-300.0, -30.0, 17.0, 30.0, 300.0], dtype=dtype).view(-1, 1, 1, 1).repeat(1, 2, 4, 4)
    alpha.requires_grad_()
    mask = make_mask(alpha, GaussianBlur(1.0, (4, 4)) if blurred else None)
    nats = kl_divergence(mask, torch.ones_like(alpha))
    (grad,) = torch.autograd.grad(nats.sum(), alpha)
    assert torch.isfinite(nats).all()
    assert torch.isfinite(grad).all()
    assert (nats >= 0).all()
    # 1 - lambda would have rounded to zero at alpha = 17 in float32
    torch.testing.assert_close(nats[2, 0, 0, 0].double(), tensor(17.0)[0], rtol=1e-6, atol=1e-6)


@given(st.floats(-9, 9), st.floats(-4, 4))
def test_gradient_matches_finite_differences(alpha, r):
    """The hand-written derivative of the cancelling term is the derivative."""
    point = tensor(alpha).requires_grad_()
    (slope,) = torch.autograd.grad(kl_divergence(make_mask(point), tensor(r)).sum(), point)
    step = 1e-4
    high, low = (kl_divergence(make_mask(tensor(alpha + d)), tensor(r)) for d in (step, -step))
    torch.testing.assert_close(slope, (high - low) / (2 * step), rtol=1e-5, atol=1e-9)


@given(st.floats(-0.02, 0.02))
def test_series_meets_the_closed_form(offset):
    """The series for nearly closed masks continues the closed form without a step."""
    lam = tensor(0.02 + offset)
    mask = make_mask(torch.log(lam.clamp_min(1e-12)) - torch.log1p(-lam))
    exact = (mask.lam**2 * sum(mask.lam**j / (j + 2) for j in range(40))).clamp_min(0)
    torch.testing.assert_close(kl_divergence(mask, tensor(0.0)) - 0.5 * mask.lam**2, exact, rtol=1e-10, atol=1e-20)


def test_lambda_one_is_the_signal_and_lambda_zero_is_the_noise():
    """Opened, the bottleneck is the identity on features that vary; closed, it has the layer's mean and deviation."""
    features, mean, scale = normal(2, 3, 4), normal(1, 3, 4, seed=1), normal(1, 3, 4, seed=2).abs() + 0.1
    reference = Reference(mean, scale, torch.ones(1, 3, 4, dtype=torch.bool))
    opened, quiet = signal_and_noise_scale(make_mask(torch.full_like(features, 800.0)), features, reference)
    assert torch.equal(opened, features)
    assert not quiet.any()
    closed, loud = signal_and_noise_scale(make_mask(torch.full_like(features, -800.0)), features, reference)
    assert torch.equal(closed, mean.expand_as(features))
    assert torch.equal(loud, scale.expand_as(features))


def test_inactive_features_transmit_nothing():
    """A feature that never varies is set to its mean, without noise, and counts zero bits, NaN or not."""
    reference = Reference(tensor(7.0, 0.0), tensor(1.0, 1.0), torch.tensor([False, True]))
    features = tensor(9.0, 2.0)[None]
    mask = make_mask(torch.zeros(1, 2, dtype=torch.float64))
    nats = information(mask, normalize(features, reference), reference)
    mean, deviation = signal_and_noise_scale(mask, features, reference)
    assert nats[0, 0] == 0
    assert nats[0, 1] > 0
    assert mean[0, 0] == 7.0
    assert deviation[0, 0] == 0


def test_floor_is_relative():
    """Scaling the layer scales the floor: deviations a hundredth of the typical one are lifted to it."""
    std = tensor(1.0, 1.0, 1e-4, 0.0)
    scale, active = floor_scale(torch.zeros(4, dtype=torch.float64), std)
    large, same = floor_scale(torch.zeros(4, dtype=torch.float64), 1000 * std)
    typical = math.sqrt(2 / 3)
    assert float(scale[2]) == pytest.approx(0.01 * typical, rel=1e-6)
    assert active.tolist() == [True, True, True, False]
    assert torch.equal(active, same)
    torch.testing.assert_close(large[:3], 1000 * scale[:3])


def test_constant_nonzero_channel_is_inactive():
    """A large constant with rounding noise is no variation."""
    _, active = floor_scale(tensor(1000.0, 0.0), tensor(1e-4, 1.0))
    assert active.tolist() == [False, True]


def test_example_reference_is_the_examples_own():
    """Without statistics each example gets its own mean and deviation per channel, whatever stands beside it."""
    features = normal(3, 4, 5, 6)
    reference = example_reference(features, channel_dim=1)
    torch.testing.assert_close(reference.mean[1, 2, 0, 0], features[1, 2].mean())
    torch.testing.assert_close(reference.scale[1, 2, 0, 0], features[1, 2].std())
    alone = example_reference(features[1:2], channel_dim=1)
    torch.testing.assert_close(alone.scale, reference.scale[1:2])


def test_example_reference_pools_a_single_position():
    """With one position the features of the example are pooled."""
    features = normal(2, 9)
    reference = example_reference(features, channel_dim=1)
    torch.testing.assert_close(reference.mean.flatten(), features.mean(dim=1))
    torch.testing.assert_close(reference.scale.flatten(), features.std(dim=1))


def test_constant_example_is_an_error():
    """Where nothing varies there is no scale to measure bits in."""
    with pytest.raises(StatisticsError, match="estimate"):
        example_reference(torch.cat([normal(1, 4, 3), torch.ones(1, 4, 3, dtype=torch.float64)]), channel_dim=1)


def test_nan_features_are_an_error():
    """NaN never reaches the bits."""
    reference = Reference(tensor(0.0), tensor(1.0), torch.tensor([True]))
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        normalize(tensor(float("nan")), reference)


@pytest.mark.parametrize(
    ("lam", "information", "bound", "as_printed"),
    [(0.3, 0.08431, 0.14667, 0.05697), (0.7, 0.93161, 0.99397, 0.90427)],
)
def test_what_the_mean_divergence_exceeds_the_information_by(lam, information, bound, as_printed):
    """I[R; Z] = E KL[P(Z|R) || Q] - KL[P(Z) || Q] for a normal R, where all terms have closed forms; with the last
    divergence turned round, as the paper's eq. 4 prints it, the two sides differ."""
    r = torch.randn(400_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = make_mask(torch.full((1,), math.log(lam / (1 - lam)), dtype=torch.float64))
    mean_divergence = float(kl_divergence(mask, r).mean())
    variance = lam**2 + (1 - lam) ** 2  # of Z, whose mean is 0
    to_q, from_q = 0.5 * (variance - 1 - math.log(variance)), 0.5 * (1 / variance - 1 + math.log(variance))
    exact = 0.5 * math.log(variance / (1 - lam) ** 2)
    assert exact == pytest.approx(information, abs=5e-6)
    assert mean_divergence == pytest.approx(bound, abs=1e-3)
    assert mean_divergence - to_q == pytest.approx(exact, abs=1e-3)
    assert bound - from_q == pytest.approx(as_printed, abs=5e-5)
