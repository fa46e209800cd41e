import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captum_iba.information.gaussian_bottleneck import gaussian_information_bottleneck
from captum_iba.information.vib import VariationalBottleneck
from captum_iba.information.vib_loss import VIBLoss


@pytest.fixture(autouse=True)
def _own_random_state():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def half_squared_error(prediction, target, variance):
    """Negative logarithm of a Gaussian decoder's density, but for a constant."""
    return 0.5 * (prediction - target).square().squeeze(1) / variance


def learned_information(rho, beta, prior, steps=1000):
    """Rate, in nats, of a linear encoder for scalars of correlation rho; the decoder's variance is the optimal one."""
    bottleneck, decoder = VariationalBottleneck(1, 1, prior, unit="nats"), nn.Linear(1, 1)
    exact = gaussian_information_bottleneck(rho, beta, unit="nats")
    variance = (1 - rho**2) / (1 - beta) if exact.n_components else 1.0
    objective = VIBLoss(beta, loss=functools.partial(half_squared_error, variance=variance), unit="nats")
    optimizer = torch.optim.Adam([*bottleneck.parameters(), *decoder.parameters()], 3e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x, noise = torch.randn(2, 512, 1)
        optimizer.zero_grad()
        objective(decoder(bottleneck(x)), rho * x + (1 - rho**2) ** 0.5 * noise, bottleneck.kl).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        bottleneck(torch.randn(100_000, 1))
    return float(bottleneck.rate), float(exact.i_xz)


@pytest.mark.parametrize(("beta", "prior"), [(0.1, "learned"), (0.4, "standard"), (0.7, "standard")])
def test_training_reaches_the_exact_bottleneck(beta, prior):
    """A linear bottleneck trained on Gaussian scalars of correlation 0.8 ends at the exact information, within 0.02
    nat: the prior is exact at the optimum. At beta = 0.7, above 0.8 squared, it collapses to nothing.
    """
    rate, exact = learned_information(0.8, beta, prior)
    assert rate == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("tags", [None, 8])
@pytest.mark.parametrize("is_context", [False, True], ids=["type", "context"])
def test_the_type_prior_removes_what_the_label_does_not_need(tags, is_context):
    """Tokens hold the bit of their type and one of their context. Where the label is the type's bit, gamma removes all
    information beyond the type at no cost in accuracy, while the bit of the type stays in the code; where the label is
    the context's bit, one bit beyond the type stays, as the label needs it.
    """
    bottleneck = VariationalBottleneck(2, 1 if tags else 2, "learned", tags, n_samples=3, type_features=1)
    decoder, steps = nn.Linear(bottleneck.out_features, 2), 400
    objective = VIBLoss(beta=0.05, gamma=0.05)
    optimizer = torch.optim.Adam([*bottleneck.parameters(), *decoder.parameters()], 3e-2)
    for step in range(steps):
        if tags:
            bottleneck.anneal(step / steps)
        bits = torch.randint(2, (256, 2))
        x = 2.0 * bits - 1
        optimizer.zero_grad()
        logits = decoder(bottleneck(x, types=x[:, :1]))
        objective(logits, bits[:, int(is_context)], bottleneck.kl, bottleneck.type_kl).backward()
        optimizer.step()
    bits = torch.randint(2, (2000, 2))
    x = 2.0 * bits - 1
    with torch.no_grad(), bottleneck.eval().sampling(1):
        predicted = decoder(bottleneck(x, types=x[:, :1]))[0].argmax(1)
    assert (predicted == bits[:, int(is_context)]).float().mean() > 0.97
    beyond_type = float(bottleneck.type_kl.sum(1).mean())
    assert beyond_type > 0.85 if is_context else beyond_type < 0.05
    assert bottleneck.rate > 0.85


def test_several_draws_make_gradients_less_noisy():
    """The gradient of 16 draws varies with a sixteenth of the variance of that of one, within a factor of 2."""

    def gradients(n_samples):
        torch.manual_seed(0)
        bottleneck, decoder, x = VariationalBottleneck(3, 2, n_samples=n_samples), nn.Linear(2, 2), torch.randn(1, 3)
        with torch.no_grad():
            bottleneck.encoder.bias.fill_(5.0)  # a deviation of softplus(0)
        found = []
        for _ in range(400):
            loss = VIBLoss(0.1)(decoder(bottleneck(x)), torch.tensor([1]), bottleneck.kl)
            found.append(torch.autograd.grad(loss, bottleneck.encoder.weight)[0])
        return torch.stack(found).var(0).sum()

    assert 8 < gradients(1) / gradients(16) < 32


def test_classes_collapse_at_one():
    """No code is worth its bits above beta = 1: with classes to tell apart, the information goes to zero."""
    bottleneck, decoder = VariationalBottleneck(4, 4), nn.Linear(4, 4)
    optimizer = torch.optim.Adam([*bottleneck.parameters(), *decoder.parameters()], 3e-2)
    for _ in range(400):
        target = torch.randint(4, (256,))
        optimizer.zero_grad()
        logits = decoder(bottleneck(F.one_hot(target, 4).float()))
        VIBLoss(2.0)(logits, target, bottleneck.kl).backward()
        optimizer.step()
    assert bottleneck.rate < 0.02
