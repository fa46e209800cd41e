import functools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from captum_iba.errors import CaptumIBAError, InvalidArgumentError, MismatchedArgumentsError, TargetIndexError
from captum_iba.information import VIBLoss, mean_probabilities

N, C, T, K, S = 6, 4, 3, 2, 5
LN2 = math.log(2)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classes(*shape, seed=0):
    return torch.randint(C, shape, generator=torch.Generator().manual_seed(seed))


KL = rand(N, T, K, seed=1).square()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("target", [classes(N), torch.softmax(rand(N, C, seed=3), 1)], ids=["classes", "probabilities"])
def test_without_weights_it_is_cross_entropy(target, reduction):
    """beta = 0 leaves torch's loss, for every reduction and both kinds of target."""
    logits = rand(N, C)
    found = VIBLoss(0.0, reduction=reduction)(logits, target, KL)
    torch.testing.assert_close(found, F.cross_entropy(logits, target, reduction=reduction))


@given(st.floats(0, 10), st.floats(0, 10))
def test_weights_multiply_an_examples_nats(beta, gamma):
    """Each example adds beta times all its information, of all codes and positions, and gamma times that of types."""
    logits, target, type_kl = rand(N, C), classes(N), rand(N, T, K, seed=2).square()
    found = VIBLoss(beta, gamma, reduction="none")(logits, target, KL, type_kl)
    wanted = F.cross_entropy(logits, target, reduction="none") + LN2 * (
        beta * KL.sum((1, 2)) + gamma * type_kl.sum((1, 2))
    )
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(VIBLoss(beta, gamma)(logits, target, KL, type_kl), wanted.mean())


def test_beta_does_not_depend_on_the_unit():
    """Information in nats with unit="nats" gives the loss of the same information in bits."""
    logits, target = rand(N, C), classes(N)
    in_nats = VIBLoss(0.3, 0.2, unit="nats")(logits, target, KL * LN2, KL * LN2)
    torch.testing.assert_close(in_nats, VIBLoss(0.3, 0.2)(logits, target, KL, KL))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    ("positions", "loss"),
    [((), None), ((T,), None), ((), functools.partial(F.multi_margin_loss, reduction="none"))],
    ids=["classes", "tokens", "own loss"],
)
def test_draws_are_averaged_in_the_loss(positions, loss, reduction):
    """With an axis of draws the objective is the mean of the objectives of the single draws."""
    logits, target = rand(S, N, C, *positions), classes(N, *positions)
    objective = VIBLoss(0.1, loss=loss, reduction=reduction)
    each = torch.stack([objective(one, target, KL) for one in logits])
    torch.testing.assert_close(objective(logits, target, KL), each.mean(0))


def test_draws_of_floating_point_targets():
    """The same for regression, where prediction and target have equal shapes."""
    objective = VIBLoss(0.1, loss=functools.partial(F.mse_loss, reduction="none"))
    predictions, target = rand(S, N, 2), rand(N, 2, seed=4)
    each = torch.stack([objective(one, target, KL) for one in predictions])
    torch.testing.assert_close(objective(predictions, target, KL), each.mean())
    torch.testing.assert_close(each[0], F.mse_loss(predictions[0], target) + 0.1 * LN2 * KL.sum() / (2 * N))


def test_means_are_over_the_targets_that_count():
    """Ignored targets add no loss, also beside padding, and the sum is divided by the number of the others."""
    logits, target = rand(N, C, T), classes(N, T)
    target[:, 2] = -100
    found = VIBLoss(0.5)(logits, target, KL)
    wanted = F.cross_entropy(logits, target, reduction="sum") + 0.5 * LN2 * KL.sum()
    torch.testing.assert_close(found, wanted / (2 * N))
    own = torch.where(target == -100, 1, target)
    renamed = VIBLoss(0.5, ignore_index=1)(logits, own, KL)
    assert math.isfinite(renamed) and renamed != found


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_small_integers_are_the_classes_they_say(dtype):
    """Of 200 classes the 156th counts, although -100 in 8 bits without a sign is 156."""
    n_classes = 200 if dtype != torch.int8 else 100
    logits, target = rand(3, n_classes), torch.tensor([0, 156 % n_classes, 7])
    found = VIBLoss(0.0)(logits, target.to(dtype), KL[:3])
    torch.testing.assert_close(found, F.cross_entropy(logits, target))
    if dtype == torch.uint8:
        with pytest.raises(TargetIndexError, match="holds 156"):
            VIBLoss(0.0)(rand(3, C), target.to(dtype), KL[:3])


def test_gradients():
    """The gradient of the objective with respect to the information is beta, in nats, over the number of examples."""
    kl = KL.clone().requires_grad_()
    VIBLoss(0.3)(rand(N, C), classes(N), kl).backward()
    torch.testing.assert_close(kl.grad, torch.full_like(KL, 0.3 * LN2 / N))


def test_probabilities_are_averaged():
    """The mean of the softmax over draws, at any position, and its logarithm; not the softmax of the mean."""
    logits = 5 * rand(S, N, C, T)
    found = mean_probabilities(logits)
    torch.testing.assert_close(found, sum(torch.softmax(one, dim=1) for one in logits) / S)
    torch.testing.assert_close(found.sum(1), torch.ones(N, T, dtype=torch.float64))
    torch.testing.assert_close(mean_probabilities(logits, log=True), found.log())
    assert not torch.allclose(found, torch.softmax(logits.mean(0), dim=1), atol=0.01)


def test_logarithms_keep_gradients_where_probabilities_are_certain():
    """At logits of 50, where probabilities round to 1, the logarithm still has the gradient of the error."""
    logits = torch.tensor([[[50.0, 0.0]], [[50.0, 0.0]]], requires_grad=True)
    mean_probabilities(logits, log=True)[0, 0].backward()
    assert (logits.grad[:, 0, 1] < 0).all()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"beta": -1.0}, "beta=-1.0"),
        ({"beta": float("nan")}, "beta"),
        ({"beta": 1.0, "gamma": -0.5}, "gamma=-0.5"),
        ({"beta": 1.0, "reduction": "batchmean"}, "reduction"),
        ({"beta": 1.0, "unit": "bytes"}, "unit"),
        ({"beta": 1.0, "loss": "mse"}, "loss='mse'"),
    ],
)
def test_settings_out_of_range(arguments, match):
    """Names the argument and what was found."""
    with pytest.raises(InvalidArgumentError, match=match):
        VIBLoss(**arguments)


@pytest.mark.parametrize(
    ("logits", "target", "kl", "error", "match"),
    [
        (rand(N, C), classes(N), KL.sum((1, 2)).mean(), MismatchedArgumentsError, r"kl has shape \(\)"),
        (rand(N, C), classes(N), KL[:2], MismatchedArgumentsError, "kl has shape"),
        (rand(N, C), classes(N - 1), KL[1:], MismatchedArgumentsError, "logits have shape"),
        (rand(N, C, T), classes(N, T - 1), KL, MismatchedArgumentsError, "wanted .6, 3."),
        (rand(S, N, C, T, 2), classes(N), KL, MismatchedArgumentsError, "logits have shape"),
        (rand(N, C), classes(N) + C, KL, TargetIndexError, "from 0 to 3"),
        (rand(N, C), classes(N) - 1 - C, KL, TargetIndexError, "from 0 to 3"),
        (rand(N, C), torch.full((N,), -100), KL, InvalidArgumentError, "No target counts"),
    ],
)
def test_what_does_not_fit_is_refused(logits, target, kl, error, match):
    """Before torch does, and with what was found."""
    with pytest.raises(error, match=match):
        VIBLoss(0.1)(logits, target, kl)


def test_types_are_needed_for_gamma():
    """A weight of nothing is no silent zero."""
    with pytest.raises(MismatchedArgumentsError, match="type_kl"):
        VIBLoss(0.1, gamma=0.1)(rand(N, C), classes(N), KL)


def test_own_losses_must_not_be_reduced():
    """A reduced loss could not be averaged over draws and examples."""
    with pytest.raises(MismatchedArgumentsError, match="reduction"):
        VIBLoss(0.1, loss=F.mse_loss)(rand(N, 2), rand(N, 2), KL)


def test_one_draw_has_no_probabilities_to_average():
    """Else examples would be averaged in silence."""
    with pytest.raises(CaptumIBAError, match="sampling"):
        mean_probabilities(rand(N, C))
