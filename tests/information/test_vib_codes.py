import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributions

from captum_iba.information.vib_codes import GaussianCode, Normal, TagCode, Tags

numbers = st.floats(-4, 4)


def double(value):
    return torch.tensor(value, dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_tags(*shape, seed=0, temperature=None):
    scores = 2 * torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)
    return Tags(torch.log_softmax(scores, dim=-1), temperature)


@given(numbers, numbers, numbers, numbers)
def test_gaussian_divergence_is_torchs(mean, log_scale, other_mean, other_log_scale):
    """Between any two Gaussians the closed form agrees with torch.distributions."""
    found = Normal(double(mean), double(log_scale)).divergence(Normal(double(other_mean), double(other_log_scale)))
    wanted = distributions.kl_divergence(
        distributions.Normal(double(mean), double(log_scale).exp()),
        distributions.Normal(double(other_mean), double(other_log_scale).exp()),
    )
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_gaussian_divergence_by_hand():
    """A shift by one deviation is half a nat; half the deviation is ln 2 - 3/8."""
    standard = Normal(double(0.0), double(0.0))
    assert Normal(double(1.0), double(0.0)).divergence(standard).item() == 0.5
    half = Normal(double(0.0), double(0.5).log()).divergence(standard).item()
    assert half == pytest.approx(math.log(2) - 3 / 8, abs=1e-15)


def test_divergences_are_never_negative():
    """In float32, next to agreement, rounding makes neither divergence negative, and agreement is exactly 0."""
    generator = seeded()
    near = 1e-5 * torch.randn(10_000, 1, generator=generator)
    zero = torch.zeros(1)
    assert (Normal(zero, near).divergence(Normal(zero, zero)) >= 0).all()
    scores = torch.randn(10_000, 1, 5, generator=generator)
    tags = Tags(torch.log_softmax(scores, dim=-1))
    moved = Tags(torch.log_softmax(scores + 1e-5 * torch.randn(10_000, 1, 5, generator=generator), dim=-1))
    assert (tags.divergence(moved) >= 0).all()
    assert (tags.divergence(tags) == 0).all() and (Normal(near, near).divergence(Normal(near, near)) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_deviations_are_softplus_down_to_underflow(dtype):
    """ln sigma is ln softplus(rho - 5), and where that underflows it goes on as rho - 5, with gradient 1."""
    rho = torch.tensor([-3.0, 0.0, 4.0, 9.0, -200.0], dtype=dtype, requires_grad=True)
    log_scale = GaussianCode(5, "standard", None).distribution(torch.cat([torch.zeros(5, dtype=dtype), rho])).log_scale
    wanted = torch.nn.functional.softplus(rho[:4] - 5).log()
    torch.testing.assert_close(log_scale[:4], wanted)
    assert log_scale[4].item() == pytest.approx(-205.0, rel=1e-15)
    (gradient,) = torch.autograd.grad(log_scale.sum(), rho)
    assert gradient[4] == 1.0
    (wanted_gradient,) = torch.autograd.grad(wanted.sum(), rho)
    torch.testing.assert_close(gradient[:4], wanted_gradient[:4])


@given(st.integers(2, 6), st.integers(0, 1000))
def test_tag_divergence_is_the_exact_sum(n_tags, seed):
    """The KL of tags agrees with torch.distributions and with the sum of p ln(p / r)."""
    found, prior = random_tags(3, 2, n_tags, seed=seed), random_tags(2, n_tags, seed=seed + 1)
    p, r = found.log_probabilities.exp(), prior.log_probabilities.exp()
    divergence = found.divergence(prior)
    torch.testing.assert_close(divergence, (p * (p / r).log()).sum(-1))
    categorical = distributions.Categorical
    torch.testing.assert_close(divergence, distributions.kl_divergence(categorical(p), categorical(r.expand_as(p))))


def test_one_certain_tag_of_four_is_two_bits():
    """A certain tag under the uniform prior tells ln C, and finite logits beyond underflow do too."""
    code = TagCode(1, 4, "standard", None, 1.0).double()
    certain = code.distribution(double([[1000.0, 0.0, 0.0, 0.0]]))
    assert certain.divergence(code.prior(None)).item() == pytest.approx(math.log(4), abs=1e-12)


def test_tags_are_drawn_with_their_probabilities():
    """Drawn tags are one-hot; their mean is the probabilities within 5 standard errors."""
    tags, n = random_tags(3, 2, 4), 20_000
    draws = tags.draw(n, seeded(), training=False)
    assert draws.shape == (n, 3, 8)
    assert set(draws.unique().tolist()) == {0.0, 1.0} and (draws.reshape(n, 3, 2, 4).sum(-1) == 1).all()
    p = tags.mean()
    assert ((draws.mean(0) - p).abs() <= 5 * (p * (1 - p) / n).sqrt()).all()


def test_cold_relaxed_tags_are_tags():
    """Relaxed tags are probabilities, approach the tags of the same noise as temperature falls, and carry gradients."""
    cold, warm = double(1e-4), double(5.0)
    hard = random_tags(50, 2, 4).draw(2, seeded(), training=False)
    torch.testing.assert_close(random_tags(50, 2, 4, temperature=cold).draw(2, seeded(), training=True), hard)
    tags = random_tags(50, 2, 4, temperature=warm)
    tags.log_probabilities.requires_grad_()
    relaxed = tags.draw(2, seeded(), training=True)
    torch.testing.assert_close(relaxed.reshape(2, 50, 2, 4).sum(-1), torch.ones(2, 50, 2, dtype=torch.float64))
    assert relaxed.max() < 0.99
    relaxed[..., 0].sum().backward()
    assert tags.log_probabilities.grad.abs().sum() > 0


def test_gaussian_draws_have_their_moments():
    """Mean and deviation of draws within 5 standard errors."""
    normal, n = Normal(double([[-1.0, 2.0]]), double([[-1.0, 0.5]])), 20_000
    draws = normal.draw(n, seeded(), training=True)
    assert draws.shape == (n, 1, 2)
    scale = normal.log_scale.exp()
    assert ((draws.mean(0) - normal.mean()).abs() <= 5 * scale / n**0.5).all()
    assert ((draws.std(0) - scale).abs() <= 5 * scale / (2 * n) ** 0.5).all()


def test_best_gaussian_prior_has_the_aggregates_moments():
    """The learned prior's gradient is zero at mean and variance of the codes of all examples, and nothing is lower."""
    code = GaussianCode(3, "learned", None).double()
    found = code.distribution(3 * torch.randn(40, 6, generator=seeded(), dtype=torch.float64))
    variance = found.log_scale.exp().square().mean(0) + found.location.var(0, unbiased=False)
    with torch.no_grad():
        code.prior_mean.copy_(found.location.mean(0))
        code.prior_log_scale.copy_(0.5 * variance.log())
    rate = found.divergence(code.prior(None)).sum(1).mean()
    rate.backward()
    for parameter in code.parameters():
        assert parameter.grad.abs().max() < 1e-12
        with torch.no_grad():
            for step in (-0.1, 0.1):
                parameter += step
                assert found.divergence(code.prior(None)).sum(1).mean() > rate
                parameter -= step


def test_best_tag_prior_makes_the_rate_mutual_information():
    """Softmax weights at the tags' mean probabilities have no gradient; the rate there is H(T) - H(T|X), and any other
    prior's is higher by the KL between the priors.
    """
    code = TagCode(1, 5, "learned", None, 1.0).double()
    found = code.distribution(2 * torch.randn(40, 5, generator=seeded(), dtype=torch.float64))
    p = found.log_probabilities.exp()[:, 0]
    uniform = found.divergence(code.prior(None)).mean().item()
    with torch.no_grad():
        code.prior_logits.copy_(p.mean(0).log())
    rate = found.divergence(code.prior(None)).mean()
    entropy = distributions.Categorical
    information = entropy(p.mean(0)).entropy() - entropy(p).entropy().mean()
    assert rate.item() == pytest.approx(information.item(), abs=1e-12)
    assert uniform - rate.item() == pytest.approx(math.log(5) - entropy(p.mean(0)).entropy().item(), abs=1e-12)
    rate.backward()
    assert code.prior_logits.grad.abs().max() < 1e-12


def test_only_learned_priors_are_parameters():
    """The standard prior is a constant that no optimizer and no file sees; a learned one begins as the standard one."""
    for make in (lambda prior: GaussianCode(2, prior, 3), lambda prior: TagCode(2, 4, prior, 3, 5.0)):
        standard, learned = make("standard"), make("learned")
        assert not list(standard.parameters()) and list(learned.parameters())
        assert set(standard.state_dict()) <= {"temperature"}
        found = standard.distribution(torch.randn(3, standard.n_parameters, generator=seeded()))
        assert (found.divergence(standard.prior(3)) == found.divergence(learned.prior(3))).all()
