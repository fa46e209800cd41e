import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captum_iba.errors import CaptumIBAWarning, InvalidArgumentError, InvalidTypeError
from captum_iba.information import BottleneckCurve, information_bottleneck


def binary_entropy(p):
    return -sum(q * math.log2(q) for q in (p, 1 - p) if q > 0)


def inverse_entropy(bits):
    low, high = 0.0, 0.5
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if binary_entropy(middle) < bits else (low, middle)
    return low


def symmetric_channel(p):
    return torch.tensor([[1 - p, p], [p, 1 - p]], dtype=torch.float64) / 2


def random_joint(n_x, n_y, seed=0, power=4):
    return torch.rand(n_x, n_y, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** power


@pytest.mark.parametrize("p", [0.05, 0.1, 0.25])
def test_binary_symmetric_channel(p):
    """The curve is Mrs. Gerber's: I(T;Y) = 1 - h(a * p) with I(X;T) = 1 - h(a), * the binary convolution."""
    curve = information_bottleneck(symmetric_channel(p), [1.5, 2, 5, 6, 20])
    for i_xt, i_ty in zip(curve.i_xt.tolist(), curve.i_ty.tolist(), strict=True):
        a = inverse_entropy(1 - i_xt)
        assert i_ty == pytest.approx(1 - binary_entropy(a * (1 - p) + (1 - a) * p), abs=1e-8)
    assert bool(curve.converged.all())


@pytest.mark.parametrize("p", [0.1, 0.25])
def test_binary_symmetric_channel_begins_at_its_slope(p):
    """T holds nothing up to beta = 1 / (1 - 2p)^2, the inverse of the channel's contraction, and something beyond."""
    start = 1 / (1 - 2 * p) ** 2
    curve = information_bottleneck(symmetric_channel(p), [0.9 * start, 1.1 * start])
    assert float(curve.i_xt[0]) == pytest.approx(0, abs=1e-9)
    assert float(curve.i_xt[1]) > 0.05


def test_the_point_at_beta_has_the_lowest_objective():
    """On Mrs. Gerber's curve, found by a fine grid over a, no point has a lower I(X;T) - beta I(T;Y)."""
    p, beta = 0.1, 2.5
    curve = information_bottleneck(symmetric_channel(p), [beta])
    grid = [
        1 - binary_entropy(a) - beta * (1 - binary_entropy(a * (1 - p) + (1 - a) * p))
        for a in torch.linspace(0, 0.5, 20001, dtype=torch.float64).tolist()
    ]
    assert float(curve.i_xt[0] - beta * curve.i_ty[0]) == pytest.approx(min(grid), abs=1e-7)


def test_y_determined_by_x():
    """The curve is the line I(T;Y) = I(X;T) up to H(Y): nothing below beta = 1, T = Y above."""
    joint = torch.zeros(12, 3, dtype=torch.float64)
    joint[torch.arange(12), torch.tensor([0] * 6 + [1] * 4 + [2] * 2)] = 1 / 12
    entropy = -sum(p * math.log2(p) for p in (6 / 12, 4 / 12, 2 / 12))
    curve = information_bottleneck(joint, [0.5, 0.9, 1.1, 2, 50])
    assert curve.i_ty.tolist() == pytest.approx([0, 0, entropy, entropy, entropy], abs=1e-9)
    assert curve.i_xt.tolist() == pytest.approx(curve.i_ty.tolist(), abs=1e-9)
    assert curve.i_xy == pytest.approx(entropy)


@given(st.integers(2, 7), st.integers(2, 4), st.integers(0, 1000))
@settings(max_examples=8)
@pytest.mark.filterwarnings("ignore:The iterations did not come to rest")
def test_shape_of_the_curve(n_x, n_y, seed):
    """Monotone and concave; no more about Y than about X, than I(X;Y), than the slope 1/beta allows."""
    betas = torch.logspace(0, 2, 6)
    curve = information_bottleneck(random_joint(n_x, n_y, seed), betas, tolerance=1e-6, n_restarts=1)
    x, y = curve.i_xt, curve.i_ty
    assert (x.diff() >= -1e-9).all() and (y.diff() >= -1e-9).all()
    assert (y <= x + 1e-9).all() and (y <= curve.i_xy + 1e-9).all()
    # beta is the inverse slope: each point lies below the tangents at all others
    assert (y[:, None] <= y + (x[:, None] - x) / betas + 1e-7).all()


def test_large_beta_keeps_all_about_y():
    """In the limit T is a sufficient statistic: I(T;Y) = I(X;Y), though X has values that it does not tell apart."""
    joint = random_joint(4, 3)
    joint = torch.cat([joint, joint * 0.3])  # each p(y | x) twice
    curve = information_bottleneck(joint, [1e4], unit="nats")
    assert float(curve.i_ty[0]) == pytest.approx(curve.i_xy, abs=1e-6)
    assert curve.encoders.shape == (1, 8, 4)
    assert torch.equal(curve.encoders[:, :4], curve.encoders[:, 4:])
    assert float(curve.i_xt[0]) < float(torch.special.entr(joint.sum(1) / joint.sum()).sum()) - 0.3


def test_encoders_give_the_informations():
    """Both informations follow from the encoders that are returned and p_xy."""
    joint = random_joint(6, 3)
    curve = information_bottleneck(joint, [2, 5, 20], n_values=3, unit="nats")
    p = joint / joint.sum()
    assert torch.allclose(curve.encoders.sum(dim=-1), torch.ones(3, 6, dtype=torch.float64))

    def information(table):
        outer = table.sum(1, keepdim=True) * table.sum(0)
        return float(torch.where(table > 0, table * (table / outer).log(), 0.0).sum())

    for encoder, i_xt, i_ty in zip(curve.encoders, curve.i_xt, curve.i_ty, strict=True):
        assert float(i_xt) == pytest.approx(information(p.sum(1)[:, None] * encoder), abs=1e-12)
        assert float(i_ty) == pytest.approx(information(encoder.T @ p), abs=1e-12)


def test_the_fixed_point():
    """At rest, p(t | x) is proportional to p(t) exp(-beta KL[p(y | x) || p(y | t)])."""
    joint, beta = random_joint(5, 3), 6.0
    curve = information_bottleneck(joint, [beta])
    encoder, p = curve.encoders[0], joint / joint.sum()
    p_t, p_y_x = p.sum(1) @ encoder, p / p.sum(1, keepdim=True)
    p_y_t = (encoder.T @ p) / p_t[:, None]
    divergence = (p_y_x[:, None] * (p_y_x[:, None] / p_y_t).log()).sum(-1)
    again = p_t * (-beta * divergence).exp()
    used = p_t > 1e-12
    assert torch.allclose((again / again[:, used].sum(1, keepdim=True))[:, used], encoder[:, used], atol=1e-8)


def test_rows_without_mass_and_units():
    """Values of X that never occur change nothing; bits are nats / ln 2; betas are sorted."""
    joint = random_joint(4, 3)
    more = torch.cat([joint[:2], torch.zeros(1, 3), joint[2:]])
    bits, nats = (information_bottleneck(j, [10, 3], unit=u) for j, u in ((more, "bits"), (joint, "nats")))
    assert torch.allclose(bits.i_xt * math.log(2), nats.i_xt, atol=1e-7)
    assert torch.allclose(bits.to("nats").i_ty, nats.i_ty, atol=1e-7)
    assert bits.betas.tolist() == [3, 10] and bits.to("bits") is bits
    assert isinstance(bits, BottleneckCurve)


def test_no_rest_is_said():
    """Too few steps: a warning names the betas, and converged is False there."""
    with pytest.warns(CaptumIBAWarning, match="did not come to rest within n_iter=2"):
        curve = information_bottleneck(random_joint(5, 3), [5.0], n_iter=2, n_restarts=0)
    assert curve.converged.tolist() == [False]


def test_global_random_state_is_left_alone():
    """Random starts come from the seed."""
    before = torch.random.get_rng_state()
    first, second = (information_bottleneck(random_joint(5, 3), [4.0], seed=3) for _ in range(2))
    assert torch.equal(first.encoders, second.encoders)
    assert torch.equal(before, torch.random.get_rng_state())


def test_one_beta_is_a_curve_of_one_point():
    """A number is a list of it."""
    one, listed = (information_bottleneck(random_joint(3, 3), betas) for betas in (4, [4.0]))
    assert torch.equal(one.i_xt, listed.i_xt) and torch.equal(one.betas, listed.betas)


@pytest.mark.parametrize(
    ("p_xy", "betas", "message"),
    [
        ([[1.0]], [1], "p_xy is a list"),
        (torch.ones(3), [1], "wanted \\(n_x, n_y\\)"),
        (torch.tensor([[1.0, -1.0]]), [1], "none negative"),
        (torch.zeros(2, 2), [1], "sum above 0"),
        (torch.full((2, 2), math.nan), [1], "none negative"),
        (torch.ones(2, 2), [], "betas is empty"),
        (torch.ones(2, 2), None, "betas is a NoneType"),
        (torch.ones(2, 2), True, "beta=True"),
        (torch.ones(2, 2), [-1], "beta=-1"),
    ],
)
def test_mistakes(p_xy, betas, message):
    """What cannot be used is named."""
    with pytest.raises((InvalidArgumentError, InvalidTypeError), match=message):
        information_bottleneck(p_xy, betas)
