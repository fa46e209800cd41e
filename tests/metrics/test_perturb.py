import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from captum_iba.errors import (
    CaptumIBAError,
    CaptumIBAWarning,
    InvalidArgumentError,
    NonFiniteError,
    TargetError,
    TargetIndexError,
)
from captum_iba.metrics import degradation, deletion, insertion, sensitivity_n
from tests.literal import normal, small_cnn

MODEL = small_cnn()
X, MAPS = normal(3, 3, 10, 10), normal(3, 1, 10, 10, seed=1)
RAW = {"output": "logit", "normalizer": "none"}


def removed(baselines, x=X, maps=MAPS, **options):
    """The inputs with everything removed, as a model sees them."""
    seen = []

    def model(x):
        seen.append(x)
        return x.flatten(1).double().sum(dim=1)

    degradation(
        model, x, maps, baselines, **{"n_steps": 2, "tile_size": 1, "max_examples_per_batch": 99, **RAW, **options}
    )
    return seen[0][len(x) :]


def test_baselines():
    """A word, a number, a tensor, a function: what a removed image consists of."""
    mean = X.mean(dim=(2, 3), keepdim=True).expand_as(X)
    own = normal(3, 3, 10, 10, seed=7)
    colour = normal(1, 3, 1, 1, seed=7)
    for baselines, wanted in (
        ("zero", torch.zeros_like(X)),
        ("mean", mean),
        (0.5, torch.full_like(X, 0.5)),
        (2, torch.full_like(X, 2)),
        (own, own),
        (own[:1], own[:1].expand_as(X)),
        (colour, colour.expand_as(X)),
        (lambda x: x.flip(3), X.flip(3)),
        ((own,), own),
    ):
        torch.testing.assert_close(removed(baselines), wanted, rtol=0, atol=0)
    for name, x, maps, wanted in (
        ("vectors", normal(2, 6), normal(2, 6), normal(2, 6).mean(dim=1, keepdim=True)),
        ("tokens", normal(2, 6, 4), normal(2, 6), normal(2, 6, 4).mean(dim=1, keepdim=True)),
        ("signals", normal(2, 6, 4), normal(2, 1, 4), normal(2, 6, 4).mean(dim=2, keepdim=True)),
    ):
        torch.testing.assert_close(removed("mean", x, maps), wanted.expand_as(x), msg=name)


def test_blur_is_in_proportion_to_the_image():
    """A Gaussian of 15 pixels for a longer side of 224, mirrored at the border, channel by channel."""
    x = normal(1, 2, 30, 20)
    sigma = 15 * 30 / 224
    wanted = np.stack([gaussian_filter(image, sigma, mode="mirror", radius=round(2 * sigma)) for image in x[0].numpy()])
    np.testing.assert_allclose(removed("blur", x, normal(1, 1, 30, 20))[0].numpy(), wanted, rtol=0, atol=1e-6)


def test_several_inputs_have_baselines_of_their_own():
    """One for all, or a tuple; a function gets and returns a tuple."""
    x, maps, seen = (normal(2, 3), normal(2, 4, seed=1)), (normal(2, 3), normal(2, 4)), []

    def model(a, b):
        seen.append((a, b))
        return a.sum(dim=1) + b.sum(dim=1)

    for baselines, wanted in (
        (1.5, (1.5, 1.5)),
        ((1.5, torch.full((1, 4), 2.5)), (1.5, 2.5)),
        (lambda xs: (0 * xs[0] + 3, 0 * xs[1] - 3), (3, -3)),
    ):
        degradation(model, x, maps, baselines, n_steps=2, **RAW)
        for part, value in zip(seen.pop(), wanted, strict=True):
            assert bool((part[2:] == value).all())
    with pytest.raises(InvalidArgumentError, match="1 entries for 2 inputs"):
        degradation(model, x, maps, (0.0,), **RAW)


@pytest.mark.parametrize(
    ("baselines", "x", "error", "words"),
    [
        ("black", X, InvalidArgumentError, "baselines='black'"),
        (float("nan"), X, NonFiniteError, "nan"),
        (torch.full((1,), float("inf")), X, NonFiniteError, "baselines contain"),
        ([0.0], X, CaptumIBAError, "baselines is a list"),
        (None, X, CaptumIBAError, "baselines is a NoneType"),
        (True, X, CaptumIBAError, "baselines is a bool"),
        (lambda x: "zero image", X, InvalidArgumentError, "zero image"),
        (torch.zeros(4), X, InvalidArgumentError, r"\[4\] do not broadcast"),
        ("mean", torch.arange(12).view(3, 4), InvalidArgumentError, "no meaning for integers"),
        (0.5, torch.arange(12).view(3, 4), InvalidArgumentError, "wanted an integer"),
        (float("nan"), torch.arange(12).view(3, 4), NonFiniteError, "nan"),
        ("blur", normal(3, 4), InvalidArgumentError, "is for maps"),
    ],
)
def test_bad_baselines(baselines, x, error, words):
    """Baselines that do not fit are named."""
    with pytest.raises(error, match=words):
        removed(baselines, x, MAPS if x.ndim == 4 else normal(3, 4))


@pytest.mark.parametrize(
    "target",
    [
        torch.tensor([2, 0, 1]),
        [2, 0, 1],
        [(2,), (0,), (1,)],
        torch.tensor([2, 0, 1], dtype=torch.int32).long(),
    ],
)
def test_targets_of_each_example(target):
    """A tensor, list or list of tuples gives what the examples give alone, with a number, tuple or tensor of one."""
    whole = degradation(MODEL, X, MAPS, target=target, tile_size=5, max_examples_per_batch=5)
    for i, c in enumerate((2, 0, 1)):
        for single in (c, (c,), torch.tensor(c), torch.tensor([c]), [c], c - 4):
            alone = degradation(MODEL, X[i : i + 1], MAPS[i : i + 1], target=single, tile_size=5)
            torch.testing.assert_close(alone.morf[0], whole.morf[i], rtol=0, atol=1e-12)
    one_for_all = degradation(MODEL, X, MAPS, target=2, tile_size=5)
    torch.testing.assert_close(one_for_all.morf[0], whole.morf[0], rtol=0, atol=1e-12)


def test_targets_in_outputs_of_more_axes():
    """A tuple of indices selects in a map of classes; one value an example needs no target."""

    def dense(x):
        return x.mean(dim=1)[:, None] * torch.arange(1, 4.0).view(3, 1, 1)

    x, options = X[:, :, :4, :4], {"tile_size": 2, **RAW}
    maps = MAPS[:, :, :4, :4]
    one = degradation(dense, x, maps, "zero", target=(2, 1, 3), **options)
    each = degradation(dense, x, maps, "zero", target=[(2, 1, 3), (0, 0, 0), (1, -1, -1)], **options)
    plain = degradation(lambda x: 3 * x.mean(dim=1)[:, 1, 3], x, maps, "zero", **options)
    assert torch.equal(one.morf, plain.morf) and torch.equal(each.morf[0], plain.morf[0])
    torch.testing.assert_close(each.morf[2, 0], 2 * x[2].mean(dim=0)[-1, -1])
    assert one.morf_top1.isnan().all() and plain.morf_top1.isnan().all()
    prob = degradation(dense, x, maps, "zero", target=(2, 1, 3), tile_size=2, normalizer="none")
    torch.testing.assert_close(prob.morf[:, 0], dense(x).softmax(dim=1)[:, 2, 1, 3])


@pytest.mark.parametrize("metric", [degradation, deletion, insertion, sensitivity_n])
@pytest.mark.parametrize(
    ("target", "error"),
    [
        (None, TargetError),
        ("cat", TargetError),
        (1.0, TargetError),
        (np.array([0, 1, 2]), TargetError),
        (torch.zeros(3), TargetError),
        (torch.zeros(3, 1, dtype=torch.long), TargetError),
        (torch.tensor([0, 1]), TargetError),
        (torch.tensor([0, 1, 2, 0]), TargetError),
        ([1], TargetError),
        ([0, 1], TargetError),
        ((1, 2), TargetError),
        ([0.5, 1, 2], TargetError),
        (4, TargetIndexError),
        (-5, TargetIndexError),
        (torch.tensor([0, 9, 1]), TargetIndexError),
        ([0, -1, 1], TargetIndexError),
        ([(0,), (1,), (4,)], TargetIndexError),
    ],
)
def test_bad_targets(metric, target, error):
    """Targets that select no value per example are errors of ours, and of the class that Captum raises."""
    assert issubclass(error, CaptumIBAError)
    with pytest.raises(error):
        metric(MODEL, X, MAPS, target=target, tile_size=5)


def test_bad_models():
    """What a model returns, or is, is named where it cannot be used."""
    for model, words in (
        ("resnet", "forward_func is a str"),
        (lambda x: x.sum(), "one row of output each"),
        (lambda x: MODEL(x)[:1], "one row of output each"),
        (lambda x: {"scores": MODEL(x)}, "returned dict"),
        (lambda x: MODEL(x) * float("nan"), "NaN or infinite"),
        (lambda x: MODEL(x)[:, :1], "output='prob' takes a softmax"),
    ):
        with pytest.raises(CaptumIBAError, match=words):
            degradation(model, X, MAPS, target=0, tile_size=5)
    for rows in (0, 2.5, True, "8"):
        with pytest.raises(InvalidArgumentError, match="max_examples_per_batch"):
            degradation(MODEL, X, MAPS, target=0, tile_size=5, max_examples_per_batch=rows)


def test_additional_arguments():
    """Tensors with one entry an example follow their example; others are passed as they are."""
    scale, shift = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), torch.full((7,), 0.5, dtype=torch.float64)

    def model(x, scale, shift, name):
        assert shift.shape == (7,) and name == "as it is" and len(scale) == len(x)
        return MODEL(x) * scale[:, None] + shift.sum()

    arguments = (scale, shift, "as it is")
    for metric in (degradation, deletion, insertion, sensitivity_n):
        options = {"target": 1, "tile_size": 5, "output": "logit", "max_examples_per_batch": 4}
        found = metric(model, X, MAPS, additional_forward_args=arguments, **options)
        own = metric(MODEL, X, MAPS, **options)
        name = {"degradation": "morf", "sensitivity_n": "drops"}.get(metric.__name__, "values")
        values, plain = getattr(found, name), getattr(own, name)
        offset = 0.0 if name == "drops" else 3.5
        torch.testing.assert_close(values, plain * scale.view(-1, *[1] * (plain.ndim - 1)) + offset, rtol=0, atol=1e-10)


@pytest.mark.parametrize("most", [1, 5, 16])
def test_out_of_memory_halves_the_rows(most):
    """A model that fails above some rows gives the same results, with one warning that names a number that fits."""

    def model(x):
        if len(x) > most:
            raise torch.OutOfMemoryError("out of memory")
        return MODEL(x)

    for metric in (degradation, sensitivity_n):
        options = {"target": 1, "tile_size": 2, "seed": 1}
        wanted = metric(MODEL, X, MAPS, **options)
        with pytest.warns(CaptumIBAWarning, match="did not fit into memory") as caught:
            found = metric(model, X, MAPS, **options)
        assert len(caught) == 1
        assert metric is sensitivity_n or f"={ {1: 1, 5: 4, 16: 16}[most] } to start" in str(caught[0].message)
        torch.testing.assert_close(found.per_sample, wanted.per_sample, rtol=0, atol=1e-10)
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        degradation(model, X, MAPS, target=1, tile_size=5)


def test_training_mode_and_gradients():
    """Evaluated without dropout and put back, without gradients, without touching the weights."""
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(300), nn.Dropout(0.9), nn.Linear(300, 4)).double().train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = {"target": 1, "tile_size": 5}
    with pytest.warns(CaptumIBAWarning, match="training mode") as caught:
        found = degradation(model, X.clone().requires_grad_(), MAPS, **options)
    assert len(caught) == 1 and not found.morf.requires_grad
    assert [module.training for module in model] == [True, False, True, True] and model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(degradation(model.eval(), X, MAPS, **options).morf, found.morf)


class Sentences(nn.Module):
    """Reads tokens (N, T) in order, those that the attention mask shows; what comes first counts most."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(30, 8), nn.Linear(8, 3)

    def forward(self, ids, attention_mask=None, position_ids=None):
        shown = torch.ones_like(ids) if attention_mask is None else attention_mask
        weights = 0.7 ** shown.cumsum(dim=1).double() * shown
        return self.head(torch.tanh((self.embed(ids) * weights[..., None]).sum(dim=1) * 3))


CLS, SEP, PAD, MASK = 0, 1, 2, 3
torch.manual_seed(0)
READER = Sentences().double().eval()
LENGTHS = (6, 3, 4)
IDS = torch.stack(
    [torch.tensor([CLS, *range(10 + i, 10 + i + n), SEP, *[PAD] * (6 - n)]) for i, n in enumerate(LENGTHS)]
)
SHOWN = (IDS != PAD).long()
WORDS = torch.where(IDS >= 10, torch.arange(8), -1)
BITS = normal(3, 8, 1, seed=4)


def read(ids):
    with torch.no_grad():
        return READER(torch.tensor(ids)[None]).softmax(dim=1)[0]


@pytest.mark.parametrize("removal", ["delete", "replace"])
def test_tokens_by_hand(removal):
    """The words leave one by one, or turn into masks; special tokens stay and padding is not seen."""
    result = degradation(
        READER, IDS, BITS, MASK, WORDS, SHOWN, [0, 1, 2], removal=removal, normalizer="none", max_examples_per_batch=4
    )
    for i, n in enumerate(LENGTHS):
        order = sorted(range(1, n + 1), key=lambda t, i=i: float(BITS[i, t]), reverse=True)
        words, curve, hits = IDS[i, : n + 2].tolist(), [], []
        for k in range(n + 1):
            gone = set(order[:k])
            left = [
                MASK if t in gone else word for t, word in enumerate(words) if not (removal == "delete" and t in gone)
            ]
            p = read(left)
            curve.append(float(p[i]))
            hits.append(float(p.argmax() == i))
        counts = (result.fractions[i] * n).round().long()
        assert sorted(set(counts.tolist())) == list(range(n + 1))
        np.testing.assert_allclose(result.morf[i].numpy(), np.array(curve)[counts], rtol=0, atol=1e-12)
        assert result.morf_top1[i].tolist() == np.array(hits)[counts].tolist()
        alone = degradation(
            READER, IDS[i : i + 1], BITS[i : i + 1], MASK, WORDS[i : i + 1], SHOWN[i : i + 1], i, removal=removal,
            normalizer="none",
        )  # fmt: skip
        assert alone.mean == pytest.approx(float(result.per_sample[i]), abs=1e-12)
    assert result.fully_degraded[0] == pytest.approx(
        float(read([CLS, SEP] if removal == "delete" else [CLS, *[MASK] * 6, SEP])[0])
    )
    # texts of different length: the mean curve is read off at common shares
    shares = np.linspace(0, 1, 7)
    wanted = np.mean(
        [np.interp(shares, f, y) for f, y in zip(result.fractions.numpy(), result.lerf.numpy(), strict=True)], axis=0
    )
    np.testing.assert_allclose(result.lerf_curve.numpy(), wanted, atol=1e-12)
    np.testing.assert_allclose(result.x.numpy(), shares)


def test_deletion_cuts_what_has_an_entry_a_token():
    """Attention mask and positions are cut alike, embeddings too; memory and order of rows do not matter."""
    embedded = READER.embed(IDS).detach()
    lengths = set()

    def model(e, shown, positions, temperature):
        if len(e) > 3:
            raise torch.OutOfMemoryError
        assert shown.shape == e.shape[:2] == positions.shape and temperature == 1
        assert bool((positions[:, 1:] > positions[:, :-1]).all())
        lengths.add(e.shape[1])
        weights = 0.7 ** shown.cumsum(dim=1).double() * shown
        return READER.head(torch.tanh((e * weights[..., None]).sum(dim=1) * 3))

    positions = torch.arange(8).repeat(3, 1)
    units = WORDS[..., None]
    options = {"removal": "delete", "normalizer": "none", "target": [0, 1, 2]}
    with pytest.warns(CaptumIBAWarning, match="memory"):
        found = degradation(model, embedded, BITS, "zero", units, (SHOWN, positions, 1), **options)
    wanted = degradation(READER, IDS, BITS, MASK, WORDS, SHOWN, **options)
    torch.testing.assert_close(found.morf, wanted.morf, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.lerf, wanted.lerf, rtol=0, atol=1e-12)
    assert lengths == {2, 3, 4, 5, 6, 7, 8}
    with pytest.raises(InvalidArgumentError, match="leaves nothing of some examples"):
        degradation(READER, IDS, BITS, MASK, None, SHOWN, **options)
    with pytest.raises(InvalidArgumentError, match="cuts tokens out of one input"):
        degradation(READER, (IDS, SHOWN), (BITS, BITS), MASK, (WORDS, WORDS), **options)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_no_numbers(value):
    """NaN and infinity in an input are named before anything runs."""
    x = torch.ones(2, 1, 4, 4)
    x[1, 0, 0, 0] = value
    with pytest.raises(NonFiniteError, match=r"inputs\[0\]"):
        degradation(lambda x: x.flatten(1), x, torch.ones(2, 1, 4, 4), target=0, tile_size=2)
