import copy
import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from captum_iba.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    LayerNotExecutedError,
    MismatchedArgumentsError,
    NonFiniteError,
)
from captum_iba.information import VariationalBottleneck

IN, K, N, T = 5, 3, 4, 6
KINDS = {
    "standard": {},
    "learned": {"prior": "learned"},
    "positions": {"prior": "learned", "n_positions": T},
    "tags": {"tags": 4},
    "tags, positions": {"tags": 4, "prior": "learned", "n_positions": T},
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


def make(seed=0, **arguments):
    """In float64, with all parameters drawn anew, the prior's too."""
    bottleneck = VariationalBottleneck(IN, K, **arguments).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in bottleneck.parameters():
            parameter.normal_(generator=generator)
    return bottleneck


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(n=N, seed=1):
    return rand(n, T, IN, seed=seed)


def mask_of(lengths):
    return torch.arange(T) < torch.tensor(lengths)[:, None]


@every_kind
def test_rate_is_the_mean_information_of_an_example(kind):
    """kl is one number a token and code, not negative; the rate adds codes and tokens up and averages examples."""
    bottleneck = make(**kind)
    code = bottleneck(tokens())
    assert bottleneck.kl.shape == (N, T, K) and (bottleneck.kl > 0).all()
    assert code.shape == (N, T, bottleneck.out_features) and bottleneck.rate.shape == ()
    torch.testing.assert_close(bottleneck.rate, bottleneck.kl.sum() / N)


def test_closed_form():
    """The formula of Alemi et al. on the encoder's own output, in bits."""
    bottleneck, x = make(), rand(N, IN)
    bottleneck(x)
    assert bottleneck.encoder.out_features == 2 * K  # a diagonal covariance
    mean, rho = bottleneck.encoder(x).chunk(2, dim=1)
    sigma = torch.nn.functional.softplus(rho - 5)
    nats = (mean**2 + sigma**2 - 1) / 2 - sigma.log()
    torch.testing.assert_close(bottleneck.kl, nats / math.log(2))


@every_kind
def test_bits_are_nats_over_ln_2(kind):
    """The unit changes nothing but the scale."""
    bits, nats = make(**kind), make(unit="nats", **kind)
    torch.testing.assert_close(bits.eval()(tokens()), nats.eval()(tokens()))
    torch.testing.assert_close(bits.kl * math.log(2), nats.kl)


@every_kind
def test_evaluation_gives_the_mean_and_draws_nothing(kind):
    """In evaluation two calls agree bit for bit and leave the global random state alone; draws average to the mean."""
    bottleneck, before = make(**kind).eval(), torch.random.get_rng_state()
    code = bottleneck(tokens())
    assert torch.equal(code, bottleneck(tokens())) and torch.equal(before, torch.random.get_rng_state())
    bottleneck.generator, n = torch.Generator().manual_seed(0), 4000
    with bottleneck.sampling(n):
        draws = bottleneck(tokens())
    assert draws.shape == (n, *code.shape)
    tolerance = 5 * draws.std(0) / n**0.5 + 1e-2  # a rare tag may never be drawn
    assert ((draws.mean(0) - code).abs() <= tolerance).all()


@every_kind
def test_batch_equals_single_calls(kind):
    """An example's code and information do not depend on the batch."""
    bottleneck, x = make(**kind).eval(), tokens()
    code = bottleneck(x)
    kl = bottleneck.kl
    for i in range(N):
        torch.testing.assert_close(bottleneck(x[i : i + 1])[0], code[i], rtol=0, atol=1e-12)
        torch.testing.assert_close(bottleneck.kl[0], kl[i], rtol=0, atol=1e-12)


@every_kind
def test_randomness(kind):
    """Draws follow torch's global seed as dropout does; with a generator they follow that and touch nothing else."""
    bottleneck, x = make(**kind), tokens()

    def drawn(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return bottleneck(x)

    assert torch.equal(drawn(0), drawn(0)) and not torch.equal(drawn(0), drawn(1))
    before = torch.random.get_rng_state()
    bottleneck.generator = torch.Generator().manual_seed(3)
    first, second = bottleneck(x), bottleneck(x)
    bottleneck.generator.manual_seed(3)
    assert torch.equal(first, bottleneck(x)) and not torch.equal(first, second)
    assert torch.equal(before, torch.random.get_rng_state())


def test_axis_of_draws():
    """Several draws in training, and draws that are asked for, have a leading axis; asking ends with its block."""
    x = rand(N, IN)
    assert make()(x).shape == (N, K) and make(n_samples=7)(x).shape == (7, N, K)
    bottleneck = make(n_samples=7).eval()
    assert bottleneck(x).shape == (N, K)
    with bottleneck.sampling(1):
        assert bottleneck(x).shape == (1, N, K)
        with bottleneck.sampling(2):
            assert bottleneck(x).shape == (2, N, K)
        with pytest.raises(MismatchedArgumentsError), bottleneck.sampling(2):
            bottleneck(x[0])
        assert bottleneck.train()(x).shape == (1, N, K)
    assert bottleneck(x).shape == (7, N, K) and bottleneck.kl.shape == (N, K)


@every_kind
@settings(max_examples=20)
@given(lengths=st.lists(st.integers(1, T), min_size=N, max_size=N))
def test_padding_is_as_nothing(kind, lengths):
    """Padding of NaN changes nothing: each sentence has the code and the information that it has alone, 0 behind it;
    the rate counts real tokens only; no gradient reaches padding.
    """
    bottleneck, real = make(**kind).eval(), mask_of(lengths)
    x = tokens().masked_fill(~real[..., None], float("nan")).requires_grad_()
    code = bottleneck(x, mask=real.long())
    kl, rate = bottleneck.kl, bottleneck.rate
    (rate + code.sum()).backward()
    assert (x.grad[~real] == 0).all() and (x.grad[real] != 0).any(-1).all()
    assert (code[~real] == 0).all() and (kl[~real] == 0).all()
    for i, length in enumerate(lengths):
        torch.testing.assert_close(bottleneck(x[i : i + 1, :length])[0], code[i, :length])
        torch.testing.assert_close(bottleneck.kl[0], kl[i, :length])
    torch.testing.assert_close(rate, kl[real].sum() / N)
    with bottleneck.sampling(2):
        assert (bottleneck(x, mask=real)[:, ~real] == 0).all()


@pytest.mark.parametrize("tags", [None, 4])
def test_a_prior_for_each_position(tags):
    """Each position is measured against its own prior: as a bottleneck that has this prior alone."""
    bottleneck, x = make(prior="learned", n_positions=T, tags=tags), tokens()
    bottleneck(x)
    kl = bottleneck.kl
    for position in range(T):
        single = make(prior="learned", tags=tags)
        one = {name: value[position] if "prior" in name else value for name, value in bottleneck.state_dict().items()}
        single.load_state_dict(one)
        single(x[:, position])
        torch.testing.assert_close(single.kl, kl[:, position])


@pytest.mark.parametrize("tags", [None, 4])
def test_type_prior(tags):
    """Beyond the type there is no information when both encoders agree, and some when they do not; with gradients for
    both, and none at padding.
    """
    bottleneck, x, real = make(type_features=IN, tags=tags), tokens(), mask_of([6, 3, 1, 2])
    bottleneck(x, real, types=tokens(seed=2))
    assert (bottleneck.type_kl[real] > 0).all() and (bottleneck.type_kl[~real] == 0).all()
    bottleneck.type_kl.sum().backward()
    for encoder in (bottleneck.encoder, bottleneck.type_encoder):
        assert encoder.weight.grad.abs().sum() > 0
    bottleneck.type_encoder.load_state_dict(bottleneck.encoder.state_dict())
    bottleneck(x, types=x)
    assert (bottleneck.type_kl == 0).all() and (bottleneck.kl > 0).all()


@every_kind
def test_files_and_copies(kind):
    """State dict, pickle, deep copy and averaged weights, made while informations with a graph are at hand, all give
    the same code and information; the prior and an annealed temperature are among what is saved.
    """
    bottleneck, x = make(**kind), tokens()
    if bottleneck.tags:
        bottleneck.anneal(0.5)
    bottleneck(x)
    file, whole = io.BytesIO(), io.BytesIO()
    torch.save(bottleneck.state_dict(), file)
    torch.save(bottleneck, whole)
    loaded = make(seed=9, **kind)
    loaded.load_state_dict(torch.load(io.BytesIO(file.getvalue())))
    averaged = AveragedModel(bottleneck, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    averaged.update_parameters(bottleneck)
    pickled = torch.load(io.BytesIO(whole.getvalue()), weights_only=False)
    for other in (loaded, pickled, copy.deepcopy(bottleneck), averaged.module):
        assert torch.equal(other.eval()(x), bottleneck.eval()(x)) and torch.equal(other.kl, bottleneck.kl)
        if bottleneck.tags:
            assert other.code.temperature == bottleneck.code.temperature


@pytest.mark.parametrize("tags", [None, 4])
def test_type_prior_begins_as_the_prior(tags):
    """Untrained, the second encoder is the standard prior, whatever the type: all information is beyond it."""
    bottleneck = VariationalBottleneck(IN, K, tags=tags, type_features=2).double()
    bottleneck(tokens(), types=rand(N, T, 2))
    torch.testing.assert_close(bottleneck.type_kl, bottleneck.kl, rtol=1e-6, atol=1e-6)


def test_temperature_falls_by_equal_factors():
    """From the first to the last, through their geometric mean."""
    bottleneck = make(tags=4, temperature=(8.0, 0.5))
    assert bottleneck.code.temperature == 8.0
    assert [bottleneck.anneal(share) for share in (0.0, 0.5, 1.0)] == pytest.approx([8.0, 2.0, 0.5])
    assert bottleneck.code.temperature == 0.5


def test_gradients_reach_everything():
    """Prediction and information train encoder, prior and what comes before."""
    bottleneck, x = make(prior="learned"), rand(N, IN).requires_grad_()
    (bottleneck(x).sum() + bottleneck.rate).backward()
    for name, parameter in bottleneck.named_parameters():
        assert (parameter.grad != 0).all(), name
    assert (x.grad != 0).all()


def test_reparametrised_gradient_is_exact():
    """With the noise held still, autograd's gradients are those of finite differences."""
    bottleneck = make(generator=torch.Generator())

    def run(x):
        bottleneck.generator.manual_seed(0)
        return bottleneck(x), bottleneck.rate

    assert torch.autograd.gradcheck(run, (rand(2, IN).requires_grad_(),))


@pytest.mark.parametrize("kind", [{}, {"tags": 4}])
def test_low_precision(kind):
    """Under autocast, and in a model of bfloat16, the code has the model's precision, the information float32's."""
    bottleneck, x = VariationalBottleneck(IN, K, **kind), rand(N, IN).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bottleneck(x).dtype == torch.bfloat16 and bottleneck.kl.dtype == torch.float32
        assert torch.equal(bottleneck.eval()(x.bfloat16()), bottleneck(x))  # autocast makes them one
        with pytest.raises(InvalidTypeError, match="torch.float64"):  # but of this
            bottleneck(x.double())
    assert bottleneck.bfloat16()(x.bfloat16()).dtype == torch.bfloat16 and bottleneck.kl.dtype == torch.float32


def test_nothing_was_measured_yet():
    """Informations belong to a forward pass; without one they are an error, not zero."""
    bottleneck = make()
    for name in ("kl", "rate", "type_kl"):
        with pytest.raises(LayerNotExecutedError):
            getattr(bottleneck, name)
    bottleneck(rand(N, IN))
    with pytest.raises(LayerNotExecutedError, match="types"):
        _ = bottleneck.type_kl


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"in_features": 0}, "in_features=0"),
        ({"bottleneck_size": 2.5}, "bottleneck_size=2.5"),
        ({"n_samples": 0}, "n_samples=0"),
        ({"prior": "normal"}, "prior='normal'"),
        ({"tags": 1}, "tags=1"),
        ({"tags": 4, "temperature": 1.0}, "temperature=1.0"),
        ({"tags": 4, "temperature": (1.0, 0.0)}, "temperature=0.0"),
        ({"n_positions": 3}, "learned"),
        ({"type_features": -1}, "type_features=-1"),
        ({"unit": "bytes"}, "unit"),
    ],
)
def test_settings_out_of_range(arguments, match):
    """Names the argument and what was found."""
    with pytest.raises(InvalidArgumentError, match=match):
        VariationalBottleneck(**({"in_features": IN, "bottleneck_size": K} | arguments))


@pytest.mark.parametrize(
    ("kind", "x", "more", "error", "match"),
    [
        ({}, torch.ones(N, IN, dtype=torch.long), {}, InvalidTypeError, "floating point"),
        ({}, rand(N, IN + 1), {}, MismatchedArgumentsError, "x has shape .4, 6.; wanted"),
        ({}, rand(IN), {}, MismatchedArgumentsError, "x has shape"),
        ({}, rand(0, IN), {}, MismatchedArgumentsError, "at least one"),
        ({}, tokens(), {"mask": torch.ones(N, T + 1).bool()}, MismatchedArgumentsError, "mask has shape"),
        ({}, tokens(), {"mask": torch.zeros(N, T)}, InvalidTypeError, "mask is torch.float32"),
        ({}, tokens(), {"types": tokens()}, MismatchedArgumentsError, "type_features=None"),
        ({"type_features": 2}, tokens(), {}, MismatchedArgumentsError, "not given"),
        ({"type_features": 2}, tokens(), {"types": rand(N, 2)}, MismatchedArgumentsError, "types has shape"),
        (KINDS["positions"], rand(N, T + 1, IN), {}, MismatchedArgumentsError, "at most 6"),
        (KINDS["positions"], rand(N, IN), {}, MismatchedArgumentsError, "at most 6"),
        ({}, rand(N, IN) * float("nan"), {}, NonFiniteError, "NaN or infinite"),
        ({}, rand(N, IN).float(), {}, InvalidTypeError, "x is torch.float32 .* weights are torch.float64"),
        ({"type_features": 2}, tokens(), {"types": rand(N, T, 2).half()}, InvalidTypeError, "types is torch.float16"),
    ],
)
def test_what_does_not_fit_is_refused(kind, x, more, error, match):
    """Before torch does, and with what was found."""
    with pytest.raises(error, match=match):
        make(**kind)(x, **more)


def test_only_tags_are_annealed():
    """A Gaussian code has no temperature, and progress is a share."""
    with pytest.raises(InvalidArgumentError, match="tags"):
        make().anneal(0.5)
    with pytest.raises(InvalidArgumentError, match="progress"):
        make(tags=4).anneal(1.5)


def test_inside_of_a_model():
    """In a Sequential, draws that are asked for from outside pass through the layers behind."""
    model = nn.Sequential(nn.Linear(IN, IN), VariationalBottleneck(IN, K), nn.Linear(K, 2)).double().eval()
    with model[1].sampling(12):
        assert model(rand(N, IN)).shape == (12, N, 2)
    assert "n_samples=1" in repr(model)
