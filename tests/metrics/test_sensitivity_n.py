import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_iba.errors import CaptumIBAError, CaptumIBAWarning, InvalidArgumentError
from captum_iba.metrics import SensitivityN, log_spaced, sensitivity_n
from captum_iba.metrics.sensitivity_n import pearson
from tests.literal import normal, small_cnn

# round(exp(linspace(log 1, log 0.8K, 16))) of the published code, duplicates dropped
TILES = [1, 2, 4, 6, 9, 13, 20, 31, 48, 73, 113, 173, 266, 408, 627]
PIXELS = [1, 2, 4, 8, 17, 34, 69, 141, 285, 578, 1172, 2377, 4818, 9767, 19801, 40141]


def test_sizes_of_the_paper():
    """16 log-spaced sizes up to 80 %, each once, also for few units."""
    assert log_spaced(784) == TILES and log_spaced(50176) == PIXELS
    assert log_spaced(1) == [1] and log_spaced(2) == [1, 2] and log_spaced(5) == [1, 2, 3, 4]
    x = normal(1, 20)
    assert sensitivity_n(lambda x: x.sum(dim=1), x, x).n.tolist() == log_spaced(20)


@given(st.integers(2, 12), st.integers(0, 99), st.floats(0.01, 100), st.floats(-5, 5))
def test_exact_contributions_of_a_linear_model(n_units, seed, scale, offset):
    """They correlate with 1 for every n below K, their opposites with -1, whatever the scale and offset."""
    x, weights = normal(3, n_units, seed=seed), normal(n_units, seed=seed + 1)
    for maps, wanted in ((x * weights, 1.0), (-x * weights, -1.0), (scale * x * weights + offset, 1.0)):
        result = sensitivity_n(lambda x: x @ weights + 3, x, maps, n=range(1, n_units))
        np.testing.assert_allclose(result.correlations.numpy(), wanted, rtol=0, atol=1e-6)
        assert result.mean == pytest.approx(wanted, abs=1e-6)


def test_groups_of_unequal_size_add_up():
    """The sets' attribution is a sum over their elements: exact contributions stay exact in groups of any size."""
    x, weights = normal(2, 3, 5, 5), normal(3, 5, 5, seed=1)
    groups = torch.tensor([0, 1, 1, 2, 2, 2, 3, 3, 3, 3, *[4] * 5, *[5] * 10]).view(1, 1, 5, 5)

    def model(x):
        return (x * weights).sum(dim=(1, 2, 3))

    for options in ({"feature_mask": groups}, {"tile_size": 2}):
        result = sensitivity_n(model, x, x * weights, n=[1, 3], **options)
        np.testing.assert_allclose(result.correlations.numpy(), 1, rtol=0, atol=1e-10)


def test_random_maps_score_zero_on_average():
    """The mean over many random maps is zero within four standard errors."""
    x = normal(1, 30).expand(600, -1)
    result = sensitivity_n(lambda x: torch.tanh(x).sum(dim=1), x, normal(600, 30, seed=2), n=6, n_perturb_samples=20)
    assert abs(result.mean) < 4 * result.stderr
    assert result.stderr < 0.02


def test_equals_correlations_by_hand():
    """Given sets, removed one by one from a convolutional network: numpy's correlation, per example and pooled."""
    model, x, maps = small_cnn(), normal(3, 3, 10, 10), normal(3, 1, 10, 10, seed=1)
    target = [1, 0, 2]
    generator = torch.Generator().manual_seed(0)
    sets = [torch.stack([torch.randperm(25, generator=generator)[:n] for _ in range(9)]) for n in (2, 7)]
    own = [torch.stack([s, s.flip(0), (s + 1) % 25]) for s in sets]
    for given_sets in (sets, own):
        result = sensitivity_n(model, x, maps, None, "mean", None, None, target, tile_size=2, index_sets=given_sets)
        pooled = sensitivity_n(
            model, x, maps, None, "mean", None, None, target, tile_size=2, index_sets=given_sets, pool="pooled"
        )
        assert result.n.tolist() == [2, 7]
        for p, chosen in enumerate(given_sets):
            sums, drops = np.zeros((3, 9)), np.zeros((3, 9))
            for i in range(3):
                for m in range(9):
                    image = x[i].clone()
                    for unit in (chosen[m] if chosen.ndim == 2 else chosen[i, m]).tolist():
                        rows, columns = (slice(2 * at, 2 * at + 2) for at in divmod(unit, 5))
                        image[:, rows, columns] = x[i].mean(dim=(1, 2))[:, None, None]
                        sums[i, m] += float(maps[i, 0, rows, columns].sum())
                    with torch.no_grad():
                        drops[i, m] = float((model(x[i : i + 1]) - model(image[None]))[0, target[i]])
                assert float(result.correlations[i, p]) == pytest.approx(np.corrcoef(sums[i], drops[i])[0, 1], abs=1e-9)
            np.testing.assert_allclose(result.drops[:, p].numpy(), drops, rtol=0, atol=1e-9)
            np.testing.assert_allclose(result.sums[:, p].numpy(), sums, rtol=0, atol=1e-12)
            wanted = np.corrcoef(sums.ravel(), drops.ravel())[0, 1]
            assert float(pooled.curve[p]) == pytest.approx(wanted, abs=1e-9)
        assert result.mean == pytest.approx(float(result.correlations.mean()))
        assert pooled.mean == pytest.approx(float(pooled.curve.mean()))
        assert math.isnan(pooled.stderr)
        assert torch.equal(pooled.correlations, result.correlations)


@given(st.integers(2, 40), st.data())
def test_sets_have_n_different_units_and_are_the_same_for_all(n_units, data):
    """With powers of two as the map, the sums are the sets: n bits each, alike for all examples, new for each n."""
    n = data.draw(st.integers(1, n_units - 1))
    x, powers = normal(3, n_units), 2.0 ** torch.arange(n_units, dtype=torch.float64).expand(3, -1)
    result = sensitivity_n(lambda x: x.sum(dim=1), x, powers, n=n, n_perturb_samples=30, seed=n)
    assert all(int(value).bit_count() == n for value in result.sums.flatten().tolist())
    assert torch.equal(result.sums[0], result.sums[1]) and torch.equal(result.sums[0], result.sums[2])


def test_the_sets_of_one_size_do_not_depend_on_the_others():
    """Nor on the batch, nor on units that other examples have; seeds change them."""
    x, powers = normal(3, 20), 2.0 ** torch.arange(20, dtype=torch.float64).expand(3, -1)

    def sums(n, rows=slice(None), seed=0, mask=None, p=0):
        mask = None if mask is None else mask[rows]
        return sensitivity_n(lambda x: x.sum(dim=1), x[rows], powers[rows], n, "zero", mask, seed=seed).sums[:, p]

    alone = sums([5])
    assert torch.equal(sums([2, 5, 9], p=1), alone) and torch.equal(sums([5], slice(1, 2))[0], alone[1])
    assert not torch.equal(sums([5], seed=1), alone)
    fewer = sums([4])[0].long()
    assert not torch.equal(alone[0].long() & fewer, fewer)  # sets of four are no parts of the sets of five
    mask = torch.arange(20).repeat(3, 1)
    mask[1, 12:] = -1
    together = sums([5], mask=mask)
    for i in range(3):
        assert torch.equal(sums([5], slice(i, i + 1), mask=mask)[0], together[i])
    assert torch.equal(together[0], alone[0])


def test_undefined_correlations_are_left_out_and_counted():
    """A constant map, an output that does not change and n = K: NaN, never zero, with the number of examples."""
    x, maps = normal(3, 43), normal(3, 43, seed=1)
    maps[1] = 0.1
    with pytest.warns(CaptumIBAWarning, match="sensitivity-n is undefined for 1 of 3"):
        result = sensitivity_n(lambda x: x.sum(dim=1), x, maps, n=[17, 43])
    assert result.correlations.isnan().tolist() == [[False, True], [True, True], [False, True]]
    assert result.n_valid == 2 and result.mean == pytest.approx(float(result.correlations[[0, 2], 0].mean()))
    assert torch.equal(result.per_sample[[0, 2]], result.correlations[[0, 2], 0])
    for model, n in ((lambda x: x.sum(dim=1), 43), (lambda x: 0 * x.sum(dim=1) + 3.3, 2)):
        with pytest.raises(InvalidArgumentError, match="undefined for all 3 examples"):
            sensitivity_n(model, x, normal(3, 43, seed=1), n=n)


def test_rounding_is_not_correlated():
    """A spread of the size of rounding is none, and an output that ignores its input has no correlation."""
    layer = torch.nn.Linear(40, 40).eval()
    torch.nn.init.zeros_(layer.weight)
    with pytest.raises(InvalidArgumentError, match="undefined for all"):
        sensitivity_n(layer, torch.randn(3, 40), torch.randn(3, 40), n=[1, 7], target=1, max_examples_per_batch=7)
    noise, other = normal(3, 50), normal(3, 50, seed=1)
    assert pearson(1 + 1e-14 * noise, other).isnan().all() and pearson(other, 1e5 + 1e-9 * noise).isnan().all()
    wanted = np.corrcoef(noise[1], other[1])[0, 1]
    assert float(pearson(1 + 1e-6 * noise, 1e9 * other)[1]) == pytest.approx(wanted, abs=1e-6)


def test_output_is_the_logit_unless_asked():
    """The default adds up in the logits; probabilities give another answer."""
    model, x, maps = small_cnn(), normal(2, 3, 10, 10), normal(2, 1, 10, 10, seed=1)
    options = {"n": 3, "target": 1, "tile_size": 2}
    plain, logit, prob = (
        sensitivity_n(model, x, maps, **options, **o) for o in ({}, {"output": "logit"}, {"output": "prob"})
    )
    assert torch.equal(plain.correlations, logit.correlations)
    assert not torch.allclose(plain.correlations, prob.correlations, atol=1e-3)


def test_a_batch_equals_its_examples():
    """No example depends on the others, nor on the number of rows at once."""
    model, x, maps = small_cnn(), normal(3, 3, 10, 10), normal(3, 1, 10, 10, seed=1)
    options = {"n": [2, 9], "tile_size": 2, "n_perturb_samples": 20}
    whole = sensitivity_n(model, x, maps, target=[0, 1, 2], **options)
    for i in range(3):
        part = sensitivity_n(model, x[i : i + 1], maps[i : i + 1], target=i, max_examples_per_batch=3 + i, **options)
        torch.testing.assert_close(part.correlations[0], whole.correlations[i], rtol=0, atol=1e-10)


def test_examples_with_too_few_units():
    """They are undefined where n is above their number of units, and the pooled correlation counts them elsewhere."""
    x, maps = normal(2, 8), normal(2, 8, seed=1)
    mask = torch.arange(8).repeat(2, 1)
    mask[1, 4:] = -1
    result = sensitivity_n(lambda x: torch.tanh(x).sum(dim=1), x, maps, [2, 6], "zero", mask, pool="pooled")
    assert result.correlations.isnan().tolist() == [[False, False], [False, True]]
    for p, rows in ((0, slice(None)), (1, slice(1))):
        wanted = np.corrcoef(result.sums[rows, p].flatten(), result.drops[rows, p].flatten())[0, 1]
        assert float(result.pooled[p]) == pytest.approx(wanted, abs=1e-12)


def test_the_summary_needs_the_same_sizes():
    """Batches of different inputs have different default sizes, which cannot be joined."""
    metric = SensitivityN(lambda x: x.sum(dim=1))
    for n_units in (10, 40):
        metric.evaluate(normal(2, n_units), normal(2, n_units))
    with pytest.raises(InvalidArgumentError, match="Batches have different sets"):
        metric.summary()


def test_a_batch_without_value_does_not_end_the_run():
    """It counts as undefined; only a run without any value is refused."""
    x, maps = normal(3, 6), normal(3, 6, seed=1)
    maps[1] = 0
    metric = SensitivityN(lambda x: x.sum(dim=1), n=2)
    for i in range(3):
        if i == 1:
            with pytest.warns(CaptumIBAWarning, match="undefined for all 1"):
                metric.evaluate(x[i : i + 1], maps[i : i + 1])
        else:
            metric.evaluate(x[i : i + 1], maps[i : i + 1])
    with pytest.warns(CaptumIBAWarning, match="undefined for 1 of 3"):
        assert metric.summary().n_valid == 2
    metric.reset()
    with pytest.warns(CaptumIBAWarning):
        metric.evaluate(x[1:2], maps[1:2])
    with pytest.raises(InvalidArgumentError, match="undefined for all 1"):
        metric.summary()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n": 3.5}, "n=3.5"),
        ({"n": "12"}, "n='12'"),
        ({"n": np.int64(2)}, "sizes of sets"),
        ({"n": []}, "sizes of sets"),
        ({"n": [0, 1]}, "sizes of sets"),
        ({"n": [9, 10]}, "n=9 is more than the 8 units"),
        ({"n_perturb_samples": 1}, "n_perturb_samples=1"),
        ({"pool": "mean"}, "pool='mean'"),
        ({"index_sets": []}, "index_sets is empty"),
        ({"index_sets": [[[1, 2], [0, 3]]]}, "wanted an integer tensor"),
        ({"index_sets": [torch.zeros(4, 0, dtype=torch.long)]}, "wanted an integer tensor"),
        ({"index_sets": [torch.tensor([[1, 1], [2, 3]])]}, "twice in one set"),
        ({"index_sets": [torch.tensor([[1, 8], [2, 3]])]}, "from 0 to 7"),
        ({"index_sets": [torch.tensor([[-1, 2], [2, 3]])]}, "from 0 to 7"),
        ({"index_sets": [torch.tensor([[1, 2]])]}, "M at least 2"),
        ({"index_sets": [torch.tensor([[1.0, 2], [2, 3]])]}, "from 0 to 7"),
        ({"seed": None}, "seed=None"),
        ({"target": 0}, "target"),
    ],
)
def test_bad_options(options, words):
    """Wrong options are named."""
    with pytest.raises(CaptumIBAError, match=words):
        sensitivity_n(lambda x: x.sum(dim=1), normal(2, 8), normal(2, 8), **{"n": 2, **options})


def test_short_texts_score_alone_as_beside_long_ones():
    """Sizes that an example is too short for are left out of its score, whatever the batch around it."""
    x, maps = normal(2, 6, seed=1), normal(2, 6, seed=2)
    mask = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 2, -1, -1, -1]])
    weights = normal(6, seed=3)

    def model(x):
        return (x * weights).sum(dim=1) + x[:, 0] * x[:, 1]

    options = {"n": [1, 2, 3, 4, 5], "baselines": 0.0, "n_perturb_samples": 20}
    together = sensitivity_n(model, x, maps, feature_mask=mask, **options)
    alone = sensitivity_n(model, x[1:], maps[1:], feature_mask=mask[1:], **options)
    torch.testing.assert_close(alone.correlations[0], together.correlations[1], rtol=0, atol=1e-12, equal_nan=True)
    assert alone.correlations[0].isnan().tolist() == [False, False, True, True, True]
    metric = SensitivityN(model, **options)
    metric.evaluate(x[:1], maps[:1], feature_mask=mask[:1])
    metric.evaluate(x[1:], maps[1:], feature_mask=mask[1:])
    torch.testing.assert_close(metric.summary().per_sample, together.per_sample, rtol=0, atol=1e-12)
