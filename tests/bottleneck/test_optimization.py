import math
from contextlib import nullcontext

import pytest
import torch
from scipy.optimize import minimize_scalar

from captum_iba.bottleneck.information import Reference, kl_divergence, make_mask
from captum_iba.bottleneck.noise import Noise
from captum_iba.bottleneck.optimization import Settings, optimize, sample_loss
from captum_iba.errors import GradientModeError, NonFiniteError
from tests.literal import normal


def standard_reference(*shape):
    """Noise of mean 0 and deviation 1 for features (N, *shape)."""
    return Reference(
        torch.zeros(1, *shape, dtype=torch.float64),
        torch.ones(1, *shape, dtype=torch.float64),
        torch.ones(1, *shape, dtype=torch.bool),
    )


def run(features, loss, seed=0, **settings):
    shape = tuple(features.shape[1:])
    chosen = Settings(**settings)

    def in_context(z, copies):
        return nullcontext(loss(z, copies))

    return optimize(features, standard_reference(*shape), in_context, chosen, Noise(shape, features, seed))


def no_preference(z, copies):
    return 0.0 * z.flatten(1).sum(dim=1)


@pytest.mark.parametrize(
    ("n_steps", "alpha"), list(enumerate([4.00, 3.00, 2.00, 1.00, 0.02, -0.93, -1.80, -2.58, -3.28, -3.90], start=1))
)
def test_course_of_a_feature_nobody_needs(n_steps, alpha):
    """Without any gradient from the objective alpha falls as Adam makes it fall, to a floor of 6.0e-4 nats."""
    solved = run(torch.ones(1, 3, dtype=torch.float64), no_preference, n_steps=n_steps)
    assert torch.logit(solved.mask.lam).flatten().tolist() == pytest.approx([alpha] * 3, abs=0.02)
    if n_steps == 10:
        assert float(solved.bits[0, 0]) * math.log(2) == pytest.approx(6.0e-4, rel=0.02)


def test_course_does_not_depend_on_beta():
    """Adam divides the size of the gradient out: where only information pulls, beta does not matter."""
    weak, strong = (run(torch.ones(1, 3, dtype=torch.float64), no_preference, beta=beta) for beta in (0.1, 1000.0))
    torch.testing.assert_close(weak.bits, strong.bits, rtol=1e-4, atol=0)


def test_optimal_mask_of_a_linear_model_with_squared_error():
    """For loss w^2 (z - r)^2 each element's best lambda solves one equation; the optimisation finds it."""
    weights = torch.tensor([0.3, 1.0, 2.0, 5.0], dtype=torch.float64)
    features = torch.tensor([[0.5, -1.0, 1.5, 0.2]], dtype=torch.float64)
    beta = 10.0

    def loss(z, copies):
        return (weights * (z - features.repeat(copies, 1))).square().sum(dim=1)

    solved = run(features, loss, beta=beta, n_steps=600, n_samples=400, learning_rate=0.05, initial_alpha=1.0)

    def expected_loss(alpha, weight, r):
        mask = make_mask(torch.tensor(alpha, dtype=torch.float64))
        nats = float(kl_divergence(mask, torch.tensor(r, dtype=torch.float64)))
        return weight**2 * float(mask.omega) ** 2 * (r**2 + 1) + beta / 4 * nats

    for weight, r, found in zip(weights.tolist(), features[0].tolist(), solved.mask.lam[0].tolist(), strict=True):
        best = minimize_scalar(expected_loss, bounds=(-15, 15), args=(weight, r), method="bounded").x
        assert found == pytest.approx(1 / (1 + math.exp(-best)), abs=0.02)


def test_examples_share_nothing_but_the_noise():
    """A batch equals its examples one by one, to rounding."""
    features, weights = normal(5, 3, 4), normal(3, 4, seed=1)

    def loss(z, copies):
        return (z * weights).flatten(1).sum(dim=1).sigmoid()

    together = run(features, loss)
    for i in range(5):
        alone = run(features[i : i + 1], loss)
        torch.testing.assert_close(together.bits[i : i + 1], alone.bits, rtol=0, atol=1e-12)
        torch.testing.assert_close(together.objective[:, i : i + 1], alone.objective, rtol=0, atol=1e-12)


@pytest.mark.parametrize("copies_per_run", [1, 3, 4, 10])
def test_chunks_change_nothing(copies_per_run):
    """Running the copies in chunks accumulates the same gradient, also where the last chunk is smaller."""
    features, weights = normal(2, 3, 4), normal(3, 4, seed=1)

    def loss(z, copies):
        assert len(z) == 2 * copies
        return (z * weights).flatten(1).sum(dim=1).square()

    whole = run(features, loss)
    chunked = run(features, loss, copies_per_run=copies_per_run)
    torch.testing.assert_close(chunked.bits, whole.bits, rtol=0, atol=1e-10)


def test_seed_decides_and_global_state_stays():
    """The same seed gives the same bits, another seed others; torch's global generator is untouched."""
    features, weights = normal(2, 3, 4), normal(3, 4, seed=1)

    def loss(z, copies):
        return (z * weights).flatten(1).sum(dim=1).square()

    state = torch.get_rng_state()
    first, again, other = (run(features, loss, seed=seed).bits for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("width", [1, 5, 14, 16])
def test_longer_sequences_share_their_noise(width):
    """Drawn by position, a longer sequence gets the same noise at the positions it shares with a shorter one."""
    like = torch.empty(0)
    short = Noise((4, width), like, seed=0, by_position=True).draw(3)
    long = Noise((9, width), like, seed=0, by_position=True).draw(3)
    assert short.shape == (3, 4, width)
    assert torch.equal(short, long[:, :4])
    assert len(short.unique()) == short.numel()


def test_noise_is_standard_normal():
    """Both ways of drawing give mean 0 and variance 1."""
    for by_position in (False, True):
        drawn = Noise((50, 40), torch.empty(0, dtype=torch.float64), 0, by_position).draw(50)
        assert abs(float(drawn.mean())) < 4 / math.sqrt(drawn.numel())
        assert abs(float(drawn.var()) - 1) < 4 * math.sqrt(2 / drawn.numel())


def test_loss_that_ignores_the_features():
    """An objective without a gradient is an error, not a zero map."""
    with pytest.raises(GradientModeError, match="does not depend on the layer"):
        run(normal(1, 3), lambda z, copies: torch.ones(len(z)))


def test_loss_that_turns_nan():
    """A NaN of the model is reported in the step it appears."""
    with pytest.raises(NonFiniteError, match="objective"):
        run(normal(1, 3), lambda z, copies: (z.sum(dim=1) - 1e9).sqrt())


def test_what_is_below_the_bound_hardly_matters():
    """Closing elements of D nats in all moves every mean probability by no more than Pinsker and Bretagnolle-Huber say.

    Replacing part S of Z by pure noise changes the distribution of Z by the divergence D of that part alone, since Z
    is independent given the input.
    """
    features, weights = normal(1, 6), normal(6, 3, seed=2)
    reference = standard_reference(6)

    def probabilities(mask):
        def minus_p(z, copies):
            return nullcontext(-(z @ weights).softmax(dim=1)[:, 0])

        noise = Noise((6,), features, seed=5)
        return -sample_loss(features, reference, mask, minus_p, noise, Settings(n_samples=200_000)).mean()

    alpha = torch.tensor([[-2.5, -2.0, 1.0, 2.0, -1.5, 0.5]], dtype=torch.float64)
    for part in ([0], [0, 1], [0, 1, 4], [5]):
        closed = alpha.clone()
        closed[0, part] = -800.0
        nats = float(kl_divergence(make_mask(alpha), features)[0, part].sum())
        bound = min(math.sqrt(nats / 2), math.sqrt(1 - math.exp(-nats)))
        change = abs(float(probabilities(make_mask(alpha)) - probabilities(make_mask(closed))))
        assert change <= bound + 0.005
        assert change > 0
