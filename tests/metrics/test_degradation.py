import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import trapezoid

from captum_iba.errors import CaptumIBAError, CaptumIBAWarning, InvalidArgumentError
from captum_iba.metrics import Degradation, degradation
from tests.literal import normal, small_cnn

PAPER_COUNTS = {n_units: [0] + [round(j * n_units / 99) + 1 for j in range(99)] for n_units in (256, 784)}


def wave(x):
    """One value a row, of any shape, in which every element counts and none adds up simply."""
    weights = torch.arange(x[0].numel(), dtype=x.dtype).sin()
    return torch.tanh(x.flatten(1) @ weights) + (x.flatten(1) * weights.cos()).square().mean(dim=1)


def brute_force(model, x, attributions, target, side, descending):
    """Curve (K + 1,) and hits (K + 1,) of one image (C, H, W), tiles replaced by its mean colour one by one."""
    corners = [(i, j) for i in range(0, x.shape[1], side) for j in range(0, x.shape[2], side)]
    scores = [float(attributions[..., i : i + side, j : j + side].sum()) for i, j in corners]
    image, curve, hits = x.clone(), [], []
    for step in [None, *sorted(range(len(corners)), key=scores.__getitem__, reverse=descending)]:
        if step is not None:
            i, j = corners[step]
            image[:, i : i + side, j : j + side] = x.mean(dim=(1, 2))[:, None, None]
        with torch.no_grad():
            p = model(image[None]).softmax(dim=1)[0]
        curve.append(float(p[target]))
        hits.append(float(p.argmax() == target))
    return np.array(curve), np.array(hits)


def test_equals_removal_by_hand():
    """Mean colour, softmax and tiles: both curves, their accuracies, t1, b and the score equal plain loops."""
    model, x, maps = small_cnn(), normal(3, 3, 10, 10), normal(3, 1, 10, 10, seed=1)
    target = [0, 3, 2]
    result = degradation(model, x, maps, target=target, tile_size=2)
    areas, full, top1 = [], [], []
    for i, c in enumerate(target):
        morf, morf_hits = brute_force(model, x[i], maps[i], c, 2, descending=True)
        lerf, lerf_hits = brute_force(model, x[i], maps[i], c, 2, descending=False)
        for found, wanted in (
            (result.morf[i], morf),
            (result.lerf[i], lerf),
            (result.morf_top1[i], morf_hits),
            (result.lerf_top1[i], lerf_hits),
        ):
            np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-12)
        areas.append(trapezoid(lerf - morf, np.linspace(0, 1, 26)))
        full.append(morf[-1])
        with torch.no_grad():
            top1.append(float(model(x[i : i + 1]).softmax(dim=1).max()))
    t1, b = np.mean(top1), np.mean(full)
    assert result.normalizer == pytest.approx((t1, b), abs=1e-12)
    np.testing.assert_allclose(result.per_sample.numpy(), np.array(areas) / (t1 - b), rtol=0, atol=1e-11)
    np.testing.assert_allclose(result.area.numpy(), areas, rtol=0, atol=1e-12)
    assert float(torch.trapezoid(result.curve, result.x)) == pytest.approx(result.mean, abs=1e-12)
    assert result.curve.numpy() == pytest.approx(((result.lerf - result.morf).mean(dim=0) / (t1 - b)).numpy())


def test_linear_model_closed_form():
    """With contributions as the map and nothing as baseline, morf_k is what is left after the k largest."""
    x, weights = normal(4, 12), normal(12, seed=1)
    result = degradation(lambda x: x @ weights, x, x * weights, 0.0, output="logit", normalizer="none")
    ordered = (x * weights).sort(dim=1, descending=True).values
    for k in range(13):
        torch.testing.assert_close(result.morf[:, k], ordered[:, k:].sum(dim=1), rtol=0, atol=1e-12)
        torch.testing.assert_close(result.lerf[:, k], ordered[:, : 12 - k].sum(dim=1), rtol=0, atol=1e-12)


@given(st.integers(2, 8), st.integers(4, 8), st.integers(1, 2), st.floats(-3, 3), st.integers(0, 9))
def test_constant_maps_score_exactly_zero(height, width, side, value, seed):
    """All tiles tie, also unequal ones at the border and maps that were resized."""
    x = normal(2, 2, height, width)
    for maps in (torch.full((2, 1, height, width), value), torch.full((2, 3, 2), value, dtype=torch.float64)):
        options = {"output": "logit", "normalizer": "none", "tile_size": side, "seed": seed}
        assert degradation(wave, x, maps, **options).per_sample.tolist() == [0.0, 0.0]


@given(st.integers(2, 7), st.integers(4, 7), st.integers(1, 2), st.integers(1, 4), st.integers(0, 99))
def test_opposite_maps_score_the_opposite(height, width, side, levels, seed):
    """D(-a) = -D(a) exactly, with many ties and without; and it is not zero for all."""
    x = normal(2, 2, height, width, seed=seed)
    options = {"output": "logit", "normalizer": "none", "tile_size": side}
    generator = torch.Generator().manual_seed(seed)
    ties = torch.randint(0, levels, (2, 1, height, width), generator=generator).double()
    for maps in (ties, normal(2, 1, height, width, seed=seed + 1)):
        forth, back = (degradation(wave, x, a, **options).per_sample for a in (maps, -maps))
        assert torch.equal(forth, -back)
    assert bool((forth != 0).all())


def test_increasing_affine_maps_change_nothing():
    """Neither scale nor offset of a map counts."""
    model, x, maps = small_cnn(), normal(3, 3, 10, 10), normal(3, 1, 10, 10, seed=1)
    for side in (2, 3):  # with and without a remainder
        one, other = (degradation(model, x, a, target=1, tile_size=side) for a in (maps, 2 * maps + 3))
        assert torch.equal(one.morf, other.morf) and torch.equal(one.lerf, other.lerf)


def test_random_maps_score_zero_on_average():
    """Over many random maps the mean is zero within four standard errors, which are small against single scores."""
    x = normal(1, 2, 6, 6).expand(1500, -1, -1, -1)
    result = degradation(
        wave,
        x,
        normal(1500, 1, 6, 6, seed=3),
        output="logit",
        normalizer="none",
        tile_size=3,
        max_examples_per_batch=512,
    )
    assert abs(result.mean) < 4 * result.stderr
    assert result.stderr < 0.03 * float(result.per_sample.abs().max())


def test_a_batch_equals_its_examples():
    """No example depends on the others, nor on the number of rows at once."""
    model, x, maps = small_cnn(), normal(4, 3, 10, 10), normal(4, 1, 5, 5, seed=1).round(decimals=0)
    whole = degradation(model, x, maps, target=[0, 1, 2, 3], tile_size=2, normalizer=(0.9, 0.1))
    for rows in (1, 7, 1000):
        for i in range(4):
            part = degradation(
                model, x[i : i + 1], maps[i : i + 1], target=i, tile_size=2, normalizer=(0.9, 0.1),
                max_examples_per_batch=rows,
            )  # fmt: skip
            for name in ("per_sample", "morf", "lerf", "morf_top1", "top1", "fully_degraded"):
                torch.testing.assert_close(getattr(part, name)[0], getattr(whole, name)[i], rtol=0, atol=1e-13)


def test_ties_score_the_mean_over_all_orders():
    """Four equal tiles among six: many draws come to the mean over all 24 orders, and one draw is one of them."""
    x, maps = normal(1, 6), torch.tensor([[2.0, 1, 1, 1, 1, 0]])
    model = lambda x: wave(x)  # noqa: E731
    scores = []
    for order in itertools.permutations(range(1, 5)):
        ranked = maps.clone()
        ranked[0, list(order)] += torch.tensor([0.1, 0.2, 0.3, 0.4])
        scores.append(degradation(model, x, ranked, 0.0, output="logit", normalizer="none").mean)
    # the same random order for both curves: the reverse of an order is one of the 24 too
    options = {"output": "logit", "normalizer": "none"}
    drawn = [degradation(model, x, maps, 0.0, seed=seed, **options).mean for seed in range(400)]
    many = degradation(model, x, maps, 0.0, n_tie_draws=400, **options)
    error = np.std(drawn) / 20
    assert error > 0
    assert abs(np.mean(drawn) - np.mean(scores)) < 4 * error
    assert abs(many.mean - np.mean(scores)) < 4 * error


def test_seeds_repeat_and_leave_the_global_generator_alone():
    """The same seed gives the same order of ties; torch's own state stays."""
    x, maps = normal(1, 2, 8, 8), torch.zeros(1, 1, 8, 8)
    options = {"output": "logit", "normalizer": "none", "tile_size": 1}
    before = torch.get_rng_state()
    one, same, other = (degradation(wave, x, maps, seed=seed, **options).morf for seed in (3, 3, 4))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("side", "n_units"), [(16, 256), (28, 784)])
def test_points_of_the_paper(side, n_units):
    """100 points after tile 0, 1, 4, 6 ... with the mean of the points; the end is never among them."""
    assert PAPER_COUNTS[256][:5] == [0, 1, 4, 6, 9] and PAPER_COUNTS[256][-1] == 254
    assert PAPER_COUNTS[784][:4] == [0, 1, 9, 17] and PAPER_COUNTS[784][-1] == 777
    x, maps = normal(1, 1, side, side), normal(1, 1, side, side, seed=1)
    options = {"output": "logit", "normalizer": "none", "tile_size": 1, "max_examples_per_batch": 512}
    paper = degradation(wave, x, maps, points="paper", **options)
    counts = (paper.fractions[0] * n_units).round().long().tolist()
    assert counts == PAPER_COUNTS[n_units]
    every = degradation(wave, x, maps, **options)
    assert torch.equal(paper.morf[0], every.morf[0][counts]) and torch.equal(paper.lerf[0], every.lerf[0][counts])
    assert paper.mean == pytest.approx(float((paper.lerf - paper.morf).mean()), abs=1e-15)


@pytest.mark.parametrize("n_steps", [2, 3, 8, 25, 26, 99])
def test_fewer_steps_are_points_of_the_whole_curve(n_steps):
    """Even counts with both ends, at most one a tile, and the trapezoid over the counts there are."""
    x, maps = normal(2, 3, 10, 10), normal(2, 1, 10, 10, seed=1)
    options = {"target": 1, "tile_size": 2, "normalizer": "none"}
    part, every = (degradation(small_cnn(), x, maps, n_steps=n, **options) for n in (n_steps, None))
    counts = (part.fractions[0] * 25).round().long()
    assert counts.tolist() == [round(25 * j / (min(n_steps, 26) - 1)) for j in range(min(n_steps, 26))]
    torch.testing.assert_close(part.lerf, every.lerf[:, counts], rtol=0, atol=1e-13)
    wanted = trapezoid((part.lerf - part.morf).numpy(), counts.numpy() / 25, axis=1)
    np.testing.assert_allclose(part.per_sample.numpy(), wanted, atol=1e-14)


def test_normalizers():
    """None is the batch's own t1 and b; a pair scales and shifts the curves; "none" leaves all as it is."""
    model, x, maps = small_cnn(), normal(3, 3, 10, 10), normal(3, 1, 10, 10, seed=1)
    raw, own, given_ = (
        degradation(model, x, maps, target=1, tile_size=5, normalizer=n) for n in ("none", None, (0.8, 0.3))
    )
    with torch.no_grad():
        t1 = float(model(x).softmax(dim=1).amax(dim=1).mean())
        b = float(model(x.mean(dim=(2, 3), keepdim=True).expand_as(x)).softmax(dim=1)[:, 1].mean())
    assert own.normalizer == pytest.approx((t1, b), abs=1e-14)
    torch.testing.assert_close(own.per_sample, raw.per_sample / (t1 - b))
    torch.testing.assert_close(given_.per_sample, raw.per_sample / 0.5)
    torch.testing.assert_close(given_.morf_curve, (raw.morf.mean(dim=0) - 0.3) / 0.5)
    assert torch.equal(raw.morf_curve, raw.morf.mean(dim=0))
    assert float(own.lerf_curve[-1]) == pytest.approx(0, abs=1e-14)
    assert torch.equal(raw.area, own.area) and torch.equal(raw.area, raw.per_sample)


def test_a_baseline_that_is_more_certain_than_the_images():
    """t1 not above b: curves, NaN scores and a warning; the summary refuses."""
    model, x, maps = small_cnn(), normal(2, 3, 10, 10), normal(2, 1, 10, 10, seed=1)
    loud = 50 * normal(20, 3, 10, 10, seed=5)
    with torch.no_grad():
        most, classes = model(loud).softmax(dim=1).max(dim=1)
    certain, target = loud[most.argmax()], int(classes[most.argmax()])
    metric = Degradation(model, tile_size=5, baselines=certain)
    with pytest.warns(CaptumIBAWarning, match="is not above the target's mean value"):
        result = metric.evaluate(x, maps, target=target)
    assert result.per_sample.isnan().all() and not result.morf.isnan().any() and not result.area.isnan().any()
    with pytest.warns(CaptumIBAWarning), pytest.raises(InvalidArgumentError, match="wanted t1 > b"):
        metric.summary()


def test_probabilities_taken_for_logits_are_noticed():
    """A softmax twice is warned about; output="logit" takes the probabilities as they are, without a word."""
    model, x, maps = small_cnn(), normal(2, 3, 10, 10), normal(2, 1, 10, 10, seed=1)
    twice = torch.nn.Sequential(model, torch.nn.Softmax(dim=1)).eval()
    with pytest.warns(CaptumIBAWarning, match="seems to return probabilities"):
        degradation(twice, x, maps, target=1, tile_size=5)
    one, other = (
        degradation(m, x, maps, target=1, tile_size=5, output=o) for m, o in ((model, "prob"), (twice, "logit"))
    )
    torch.testing.assert_close(one.per_sample, other.per_sample)
    logits = degradation(model, x, maps, target=1, tile_size=5, output=lambda y: 2 * y, normalizer="none")
    plain = degradation(model, x, maps, target=1, tile_size=5, output="logit", normalizer="none")
    torch.testing.assert_close(logits.per_sample, 2 * plain.per_sample)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.booleans())
def test_the_summary_scales_over_all_batches(sizes, given_normalizer):
    """t1 and b of all examples, or those given, whatever the batches' own were."""
    model, total = small_cnn(), sum(sizes)
    x, maps = normal(total, 3, 10, 10), normal(total, 1, 10, 10, seed=1)
    options = {"tile_size": 5, "normalizer": (0.7, 0.2) if given_normalizer else None}
    metric = Degradation(model, **options)
    for part, a in zip(x.split(sizes), maps.split(sizes), strict=True):
        metric.evaluate(part, a, target=1)
    whole = degradation(model, x, maps, target=1, **options)
    torch.testing.assert_close(metric.summary().per_sample, whole.per_sample, rtol=0, atol=1e-12)
    assert metric.summary().normalizer == pytest.approx(whole.normalizer)


@pytest.mark.parametrize("removable", [0, 1])
def test_examples_with_fewer_than_two_units(removable):
    """All orders of them are one: they have no score, do not enter t1 and b, and do not end a run of batches."""
    x, maps = normal(3, 6).abs(), normal(3, 6, seed=1)
    units = torch.arange(6).repeat(3, 1)
    units[1, removable:] = -1
    options = {"output": "logit"}
    with pytest.warns(CaptumIBAWarning, match="undefined for 1 of 3 .*fewer than two units"):
        result = degradation(lambda x: x.sum(dim=1), x, maps, 0.0, units, **options)
    others = degradation(lambda x: x.sum(dim=1), x[::2], maps[::2], 0.0, units[::2], **options)
    assert result.per_sample.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(result.valid, others.per_sample)
    torch.testing.assert_close(result.curve, others.curve)
    metric = Degradation(lambda x: x.sum(dim=1), baselines=0.0, **options)
    with pytest.warns(CaptumIBAWarning, match="undefined for all 1"):
        for i in range(3):
            metric.evaluate(x[i : i + 1], maps[i : i + 1], units[i : i + 1])
    with pytest.warns(CaptumIBAWarning, match="undefined for 1 of 3"):
        summary = metric.summary()
    torch.testing.assert_close(summary.per_sample, result.per_sample, equal_nan=True)
    torch.testing.assert_close(summary.morf_curve, result.morf_curve)
    with pytest.raises(InvalidArgumentError, match="undefined for all 1 examples"):
        degradation(lambda x: x.sum(dim=1), x[1:2], maps[1:2], 0.0, units[1:2], **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_steps": "10"}, "n_steps='10'"),
        ({"n_steps": 1}, "n_steps=1"),
        ({"n_steps": 5, "points": "paper"}, "has no meaning"),
        ({"points": "odd"}, "points='odd'"),
        ({"n_tie_draws": 0}, "n_tie_draws=0"),
        ({"removal": "cut"}, "removal='cut'"),
        ({"removal": "delete"}, "cuts tokens out of one input"),
        ({"normalizer": 0.5}, "normalizer=0.5"),
        ({"normalizer": (1.0, math.nan)}, "normalizer"),
        ({"normalizer": ("a", "b")}, "normalizer"),
        ({"seed": "a"}, "seed='a'"),
        ({"output": "probability"}, "output='probability'"),
        ({"output": lambda y: 3}, "output made int"),
        ({"output": lambda y: y[:1]}, "output made shape"),
    ],
)
def test_bad_options(options, words):
    """Wrong options are named."""
    with pytest.raises(CaptumIBAError, match=words):
        degradation(small_cnn(), normal(2, 3, 10, 10), normal(2, 1, 10, 10), target=1, **{"tile_size": 5, **options})
