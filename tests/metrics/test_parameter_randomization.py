"""The values: similarities, what is missing, and the summary over batches."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity
from torch import nn

from captum_iba.errors import CaptumIBAWarning, InvalidArgumentError, InvalidTypeError, NonFiniteError, StatisticsError
from captum_iba.metrics._ssim import normalize_maps, ssim
from captum_iba.metrics.parameter_randomization import (
    ParameterRandomization,
    ParameterRandomizationResult,
    parameter_randomization,
)
from tests.literal import normal, small_cnn
from tests.metrics.randomized_models import IMAGES, ORDER, Everything, Spy, at_call, edges, gradient, trained


def test_the_whole_curve_by_hand():
    """Two linear layers: weights as the model held them, the chain rule by hand, and scikit-image's similarity."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.Tanh(), nn.Linear(6, 3)).double().eval()
    inputs, spy = normal(4, 1, 6, 8), Spy(gradient)
    result = parameter_randomization(model, spy, inputs, target=2)
    assert result.stages == ("original", "3", "1")
    first, last = ("1.weight", "1.bias"), ("3.weight", "3.bias")
    assert [[torch.equal(seen[k], spy.seen[0][k]) for k in (*first, *last)] for seen in spy.seen] == [
        [True, True, True, True],
        [True, True, False, False],
        [False, False, False, False],
    ]
    assert all(torch.equal(spy.seen[1][k], spy.seen[2][k]) for k in last)

    def map_by_hand(seen, x):
        hidden = np.tanh(seen["1.weight"].numpy() @ x.flatten().numpy() + seen["1.bias"].numpy())
        slope = (seen["3.weight"][2].numpy() * (1 - hidden**2)) @ seen["1.weight"].numpy()
        low, high = np.percentile(slope, [1, 99])
        return ((np.clip(slope, low, high) - low) / (high - low)).reshape(6, 8)

    for row, x in zip(result.similarities, inputs, strict=True):
        maps = [map_by_hand(seen, x) for seen in spy.seen]
        wanted = [structural_similarity(maps[0], map_, win_size=5, data_range=1) for map_ in maps]
        np.testing.assert_allclose(row.numpy(), wanted, rtol=0, atol=1e-9)
    torch.testing.assert_close(result.per_sample, result.similarities[:, 1:].mean(dim=1))
    torch.testing.assert_close(result.curve, result.similarities.mean(dim=0))
    torch.testing.assert_close(result.curve_stderr, result.similarities.std(dim=0) / 4**0.5)


@pytest.mark.parametrize("similarity", ["ssim", "spearman"])
@pytest.mark.parametrize("method", ["reset", "permute"])
def test_the_trained_model_is_its_own_equal(similarity, method):
    """The first column is exactly 1, the others are not: the gradient depends on the model."""
    result = parameter_randomization(small_cnn(), gradient, IMAGES, 1, similarity=similarity, method=method)
    assert result.similarities[:, 0].tolist() == [1.0] * 3
    assert (result.similarities[:, 1:] < 1).all()
    assert result.stages == ("original", "8", "5", "2", "0")


@pytest.mark.parametrize("similarity", ["ssim", "spearman", lambda a, b: (a == b).flatten(1).double().mean(1)])
@pytest.mark.parametrize("method", ["reset", "permute"])
def test_a_map_that_ignores_the_model_never_changes(similarity, method):
    """A filter of the image scores 1 at all stages."""
    result = parameter_randomization(trained(Everything()), edges, normal(2, 1, 8, 8).float(), method=method)
    assert result.stages == ("original", *ORDER)
    assert torch.equal(result.similarities, torch.ones(2, 1 + len(ORDER), dtype=torch.float64))


def test_constant_maps_have_a_similarity():
    """A randomised model without any attribution is compared as zeros, and nothing is missing."""
    black = at_call(2, lambda m, x, t: torch.full((len(x), 10, 10), 0.3))
    result = parameter_randomization(small_cnn(), black, IMAGES)
    original = normalize_maps(edges(None, IMAGES, None))
    assert torch.equal(result.similarities[:, 2], ssim(original, torch.zeros_like(original)))
    assert result.failures == {} and not result.similarities.isnan().any()


def test_rank_correlation_of_a_constant_map_is_missing():
    """It is undefined, said once, and left out of the means."""
    black = at_call(2, lambda m, x, t: edges(m, x, t) * torch.tensor([0.0, 1.0, 1.0]).view(3, 1, 1))
    with pytest.warns(CaptumIBAWarning, match="no value for 1 of 15 pairs .*first at stage '5'.*examples \\[0\\]"):
        result = parameter_randomization(small_cnn(), black, IMAGES, similarity="spearman")
    wanted = torch.ones(3, 5, dtype=torch.float64)
    wanted[0, 2] = float("nan")
    torch.testing.assert_close(result.similarities, wanted, rtol=0, atol=0, equal_nan=True)
    assert result.curve.tolist() == [1.0] * 5 and result.per_sample.tolist() == [1.0] * 3


@pytest.mark.parametrize(
    "error", [StatisticsError, RuntimeError, AssertionError, ZeroDivisionError, TypeError, np.linalg.LinAlgError]
)
def test_a_failing_attribution_leaves_a_gap(error):
    """At a randomised stage: NaN there, the reason kept, one warning; the other stages count."""

    def broken(model, inputs, target):
        raise error("no features left")

    with pytest.warns(CaptumIBAWarning) as warned:
        result = parameter_randomization(small_cnn(), at_call(3, broken), IMAGES)
    assert len(warned) == 1 and "3 of 15 pairs" in str(warned[0].message)
    assert result.failures == {"2": f"{error.__name__}: no features left"}
    assert result.similarities.isnan().tolist() == [[False, False, False, True, False]] * 3
    assert result.per_sample.tolist() == [1.0] * 3 and result.curve_stderr.isnan().tolist() == [
        *[False] * 3,
        True,
        False,
    ]
    with pytest.raises(error, match="no features left"):
        parameter_randomization(small_cnn(), at_call(0, broken), IMAGES)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("stage", [0, 3])
def test_lack_of_memory_and_interrupts_end_the_run(error, stage):
    """They say nothing about the attribution."""

    def broken(model, inputs, target):
        raise error("enough")

    with pytest.raises(error, match="enough"):
        parameter_randomization(small_cnn(), at_call(stage, broken), IMAGES)


def test_nan_in_single_maps_leaves_gaps():
    """On a randomised model for these examples, on the trained model an error."""

    def spoiled(model, inputs, target):
        maps = edges(model, inputs, target).clone()
        maps[1, 2, 3] = float("inf")
        return maps

    with pytest.warns(CaptumIBAWarning, match="1 of 15 pairs"):
        result = parameter_randomization(small_cnn(), at_call(1, spoiled), IMAGES)
    assert result.similarities.isnan().nonzero().tolist() == [[1, 1]]
    assert list(result.failures) == ["8"]
    with pytest.raises(NonFiniteError, match=r"NaN or infinity for examples \[1\]"):
        parameter_randomization(small_cnn(), spoiled, IMAGES)


def test_no_value_at_all_is_an_error():
    """Where each stage fails, the reason of the first is told."""
    counter = itertools.count()

    def only_once(model, inputs, target):
        if next(counter):
            raise RuntimeError("worn out")
        return edges(model, inputs, target)

    with pytest.raises(InvalidArgumentError, match=r"undefined for all 3 examples.*'8': RuntimeError: worn out"):
        parameter_randomization(small_cnn(), only_once, IMAGES)


def test_a_batch_without_value_does_not_end_the_run():
    """It counts as undefined, with its failures; only a run without any value is refused."""

    def picky(model, inputs, target):
        if target == 1 and not torch.equal(model[8].weight, trained_head):
            raise RuntimeError("not this one")
        return edges(model, inputs, target)

    model = small_cnn()
    trained_head = model[8].weight.detach().clone()
    metric = ParameterRandomization(model, picky)
    for part, target in ((IMAGES[:1], 0), (IMAGES[1:2], 1), (IMAGES[2:], 0)):
        if target:
            with pytest.warns(CaptumIBAWarning, match="undefined for all 1 examples.*not this one"):
                batch = metric.evaluate(part, target)
            assert batch.n_valid == 0 and list(batch.failures) == ["8", "5", "2", "0"]
        else:
            metric.evaluate(part, target)
    with pytest.warns(CaptumIBAWarning, match="no value for 4 of 15 pairs"):
        summary = metric.summary()
    assert summary.per_sample.isnan().tolist() == [False, True, False] and summary.mean == 1.0
    metric.reset()
    with pytest.warns(CaptumIBAWarning):
        metric.evaluate(IMAGES[1:2], 1)
    with pytest.raises(InvalidArgumentError, match="undefined for all 1"):
        metric.summary()


def test_sign_invariance():
    """A map that only flips its sign counts as unchanged, if that is asked for."""
    flipped = at_call(1, lambda m, x, t: -edges(m, x, t))
    result = parameter_randomization(small_cnn(), flipped, IMAGES, sign_invariant=True)
    torch.testing.assert_close(result.similarities, torch.ones(3, 5, dtype=torch.float64), rtol=0, atol=1e-12)
    flipped = at_call(1, lambda m, x, t: -edges(m, x, t))
    assert (parameter_randomization(small_cnn(), flipped, IMAGES).similarities[:, 1] < 0).all()


def test_the_seed_decides():
    """The same seed, the same values, whatever the global state; another seed, other ones."""
    torch.manual_seed(1)
    first = parameter_randomization(small_cnn(), gradient, IMAGES, 0, seed=4).similarities
    torch.manual_seed(2)
    assert torch.equal(parameter_randomization(small_cnn(), gradient, IMAGES, 0, seed=4).similarities, first)
    other = parameter_randomization(small_cnn(), gradient, IMAGES, 0, seed=5).similarities
    assert not torch.isclose(other[:, 1:], first[:, 1:]).any()


def test_noise_is_the_same_at_every_stage():
    """Methods that draw from torch's global generator do not lose similarity by that; the reference says how much."""

    def noise(model, inputs, target):
        return torch.rand(len(inputs), 10, 10)

    result = parameter_randomization(small_cnn(), noise, IMAGES, reference_func=noise)
    assert torch.equal(result.similarities, torch.ones(3, 5, dtype=torch.float64))
    assert (result.reference.abs() < 0.5).all()
    assert parameter_randomization(small_cnn(), edges, IMAGES).reference is None
    reference = parameter_randomization(small_cnn(), edges, IMAGES, reference_func=gradient, target=1).reference
    maps = (edges(None, IMAGES, 1), gradient(small_cnn(), IMAGES, 1).sum(1))
    torch.testing.assert_close(reference, ssim(*map(normalize_maps, maps)), rtol=0, atol=1e-12)


def test_tokens_and_several_inputs():
    """Maps over tokens are compared by rank; a tuple of inputs is the model's arguments, and the attribution's."""

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(9, 6), nn.Linear(6, 2)

        def forward(self, ids, weights):
            return self.head((self.embedding(ids) * weights[..., None]).sum(1))

    def contribution(model, inputs, target):
        ids, weights = inputs
        return (model.embedding(ids) @ model.head.weight[target]) * weights

    model, inputs = Pair().eval(), (torch.arange(14).view(2, 7) % 9, torch.rand(2, 7))
    result = parameter_randomization(model, contribution, inputs, 1, similarity="spearman")
    assert result.stages == ("original", "head", "embedding") and result.similarities[:, 0].tolist() == [1.0, 1.0]
    with pytest.raises(InvalidArgumentError, match=r"\[2, 7\].*similarity='spearman'"):
        parameter_randomization(model, contribution, inputs, 1)


def test_maps_must_keep_their_shape():
    """Maps of different models are comparable only if they have one shape."""
    vectors = at_call(1, lambda m, x, t: x[:, :3], lambda m, x, t: x)
    with pytest.raises(InvalidArgumentError, match=r"from \[2, 4\].*to \[2, 3\]"):
        parameter_randomization(nn.Linear(4, 2).eval(), vectors, normal(2, 4).float(), similarity="spearman")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"model": lambda x: x}, InvalidTypeError, "model is a function"),
        ({"model": nn.ReLU().eval()}, InvalidArgumentError, "has no parameters to randomise"),
        ({"method": "xavier"}, InvalidArgumentError, "method='xavier'; wanted 'reset' or 'permute'"),
        ({"similarity": "psnr"}, InvalidArgumentError, "similarity='psnr'"),
        ({"seed": -1}, InvalidArgumentError, "seed=-1; wanted an integer"),
        ({"inputs": [IMAGES]}, InvalidTypeError, "inputs is a list"),
        ({"inputs": torch.tensor(1.0)}, InvalidTypeError, "one entry for each example"),
    ],
)
def test_bad_arguments(changes, error, words):
    """What was found and what was wanted."""
    arguments = {"model": small_cnn(), "attribute_func": edges, "inputs": IMAGES, **changes}
    with pytest.raises(error, match=words):
        parameter_randomization(**arguments)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=3))
@settings(max_examples=10)
def test_any_split_gives_the_same_summary(sizes):
    """Every batch sees the same random models, so batches of any sizes and merged halves make up the whole."""
    model, inputs = small_cnn(), normal(sum(sizes), 3, 10, 10, seed=3)
    options = {"seed": 3, "reference_func": edges}
    whole = parameter_randomization(model, gradient, inputs, 2, **options)
    metric, other = (ParameterRandomization(model, gradient, **options) for _ in range(2))
    parts = inputs.split(sizes)
    for part in parts[:-1]:
        metric.evaluate(part, 2)
    other.evaluate(parts[-1], 2)
    found = metric.merge(other).summary()
    for field in ("per_sample", "similarities", "reference", "curve", "curve_stderr"):
        torch.testing.assert_close(getattr(found, field), getattr(whole, field), rtol=0, atol=1e-9, equal_nan=True)
    assert found.stages == whole.stages and found.mean == pytest.approx(whole.mean)
    metric.reset()
    with pytest.raises(InvalidArgumentError, match="nothing to summarise"):
        metric.summary()


def test_summary_of_unlike_results():
    """Other stages cannot be joined; failures are, and a reference is only there if all batches have one."""
    model = small_cnn()
    metric, named = ParameterRandomization(model, edges), ParameterRandomization(model, edges, stages=["5"])
    metric.evaluate(IMAGES)
    named.evaluate(IMAGES)
    with pytest.raises(InvalidArgumentError, match=r"stages=None and stages=\('5'\)"):
        metric.merge(named)
    metric._results += named._results  # as of models with other layers
    with pytest.raises(InvalidArgumentError, match=r"\('original', '5'\).*\('original', '8', '5', '2', '0'\)"):
        metric.summary()
    metric.reset()
    nan, ones = torch.full((1, 2), float("nan")), torch.ones(1, 2)
    metric._results = [
        ParameterRandomizationResult(ones[:, 0], ones, ("original", "fc"), ones[:, 0]),
        ParameterRandomizationResult(nan[:, 0], nan, ("original", "fc"), None, {"fc": "first"}),
        ParameterRandomizationResult(nan[:, 0], nan, ("original", "fc"), None, {"fc": "second"}),
    ]
    with pytest.warns(CaptumIBAWarning, match="no value for 4 of 6 pairs .*stage 'fc': first"):
        summary = metric.summary()
    assert summary.failures == {"fc": "first"} and summary.reference is None and summary.n_valid == 1
    assert ParameterRandomization.higher_is_better is False


def test_unknown_options_are_refused_at_once():
    """Not only when the first batch comes."""
    with pytest.raises(TypeError, match="sead"):
        ParameterRandomization(small_cnn(), edges, sead=3)


def test_curve_leaves_missing_values_out():
    """Mean and sample deviation over the defined values of each column."""
    values = normal(5, 3)
    values[0, 1] = values[2, 1] = float("nan")
    values[1:, 2] = float("nan")
    result = ParameterRandomizationResult(values[:, 0], values, ("original", "a", "b"))
    rest = values[[1, 3, 4], 1]
    torch.testing.assert_close(result.curve, torch.stack([values[:, 0].mean(), rest.mean(), values[0, 2]]))
    torch.testing.assert_close(
        result.curve_stderr,
        torch.stack([values[:, 0].std() / 5**0.5, rest.std() / 3**0.5, torch.tensor(float("nan")).double()]),
        equal_nan=True,
    )


def test_progress_is_shown_if_asked_for(capsys):
    """A bar over the stages, and silence otherwise."""
    parameter_randomization(small_cnn(), edges, IMAGES)
    assert capsys.readouterr().err == ""
    parameter_randomization(small_cnn(), edges, IMAGES, show_progress=True)
    assert "4/4" in capsys.readouterr().err
