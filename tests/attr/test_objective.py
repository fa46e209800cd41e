"""The objective ``"log_odds"``: what it is, where it is exact, and what the bottleneck makes of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from captum_iba import LayerIBA
from captum_iba._warn import Warner
from captum_iba.attr._objective import Objective, log_odds
from tests.literal import normal


@given(st.integers(2, 6), st.integers(0, 10**6), st.floats(0.1, 20.0))
def test_log_odds_are_those_of_the_softmax(n_classes: int, seed: int, scale: float) -> None:
    """log p - log(1 - p), with slopes to match."""
    logits = (scale * normal(3, n_classes, seed=seed)).requires_grad_()
    p = logits.softmax(dim=1)
    others = torch.stack([p[:, [j for j in range(n_classes) if j != k]].sum(dim=1) for k in range(n_classes)], dim=1)
    torch.testing.assert_close(log_odds(logits, 1), p.log() - others.log(), rtol=1e-9, atol=1e-9)
    assert torch.autograd.gradcheck(lambda z: log_odds(z, 1), logits)


def test_log_odds_do_not_saturate() -> None:
    """Where float32 knows no probability below one, value and slope are what they should be."""
    logits = torch.tensor([[80.0, 0.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    found = log_odds(logits, 1)
    torch.testing.assert_close(found[0, 0], 80 - torch.tensor(2.0).log())
    torch.testing.assert_close(found[1], torch.full((3,), -torch.tensor(2.0).log()))
    (slope,) = torch.autograd.grad(found[0, 0], logits)
    assert slope[0].tolist() == [1.0, -0.5, -0.5]


def loss(output: Tensor, target: object, class_dim: int = 1) -> Tensor:
    return Objective("log_odds", target, class_dim, Warner())(output, 1)


def test_every_form_of_target() -> None:
    """One class, one a row, an index into token logits, and a single logit, which is its own log-odds."""
    logits = normal(4, 3)
    assert torch.equal(loss(logits, 2), -log_odds(logits, 1)[:, 2])
    assert torch.equal(loss(logits, [0, 2, 1, 1]), -log_odds(logits, 1)[range(4), [0, 2, 1, 1]])
    tokens = normal(4, 5, 3)
    assert torch.equal(loss(tokens, (1, 2), class_dim=2), -log_odds(tokens[:, 1], 1)[:, 2])
    assert torch.equal(loss(logits[:, :1], 0), -logits[:, 0])


def test_two_classes_are_the_difference_of_their_logits() -> None:
    """The bits are those of a user's objective that says so, and the probability is the softmax's."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double().eval()
    iba = LayerIBA(model, model[0]).estimate(normal(100, 4))
    x = normal(3, 4, seed=1)
    options = {"target": 1, "return_diagnostics": True, "beta": 0.05}
    bits, record = iba.attribute(x, objective="log_odds", **options)
    wanted, own = iba.attribute(x, objective=lambda z, _: z[:, 0] - z[:, 1], **options)
    torch.testing.assert_close(bits, wanted, rtol=0.0, atol=1e-9)
    assert own.target_probability is None
    plain = iba.attribute(x, **options)[0]
    assert (plain - bits).abs().max() > 1e-2
    with pytest.raises(ValueError, match="'log_odds' or a callable"):
        iba.attribute(x, target=1, objective="odds")
    # nearly open, the network's own probability is what passes
    _, record = iba.attribute(x, objective="log_odds", target=1, beta=0.0, initial_alpha=30.0, return_diagnostics=True)
    torch.testing.assert_close(record.target_probability, model(x).softmax(dim=1)[:, 1].detach(), rtol=0.0, atol=1e-6)
