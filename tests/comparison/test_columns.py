"""Laws of the columns of a comparison: each is the metric called directly on the data set as a whole."""

import captum.metrics
import numpy as np
import pytest
import torch
from torch import nn

from captum_iba.comparison import MetricInfo, compare
from captum_iba.comparison.columns import find_columns
from captum_iba.demo import LAYER, load_canvases, load_model
from captum_iba.errors import CaptumIBAError, InvalidArgumentError, InvalidTypeError
from captum_iba.metrics import (
    Degradation,
    bounding_box_ratio,
    boxes_to_mask,
    deletion,
    insertion,
    sensitivity_n,
    sufficiency,
)
from tests.comparison.comparison_cases import (
    Canvases,
    calibration,
    quick,
    statistics,
    toy,
    toy_cnn,
    toy_images,
    toy_options,
    weighted,
)

CANVASES = load_canvases("test", 4)
IMAGES, TARGETS = CANVASES.images, CANVASES.labels
SEED = 2


def bright(x, _y):
    """The image, a map of the input's size."""
    return x


def coarse(x, _y):
    """A map of another size, with many ties."""
    return torch.nn.functional.avg_pool2d(x, 8).relu()


def compared(metrics, methods=None, **options):
    given = {"layer": LAYER, "statistics": statistics(), "seed": SEED} | options
    return compare(load_model(), CANVASES, methods or {"bright": bright, "coarse": coarse}, metrics, **given)


@pytest.mark.parametrize(("tile", "n_steps"), [(8, 6), (14, None)])
def test_degradation_is_that_of_the_whole_data_set(tile, n_steps):
    """Examples come one by one, yet scores and curves are scaled by t1 and b over all of them."""
    name, model = f"degradation {tile}x{tile}", load_model()
    report = compared([name], n_steps=n_steps)
    for method, maps in (("bright", bright(IMAGES, 0)), ("coarse", coarse(IMAGES, 0))):
        metric = Degradation(model, tile_size=tile, n_steps=n_steps, seed=SEED)
        for part in ([0, 1, 2], [3]):
            metric.evaluate(IMAGES[part], maps[part], target=TARGETS[part])
        wanted = metric.summary()
        np.testing.assert_allclose(report.results.scores[method][name], wanted.per_sample, rtol=0, atol=1e-6)
        curve = report.results.curves[method][name]
        np.testing.assert_allclose(curve.x, wanted.x, rtol=0, atol=1e-12)
        for line, values in (("most relevant first", wanted.morf), ("least relevant first", wanted.lerf)):
            scaled = wanted.scaled(values)
            np.testing.assert_allclose(curve.lines[line][0], scaled.mean(dim=0), rtol=0, atol=1e-6)
            np.testing.assert_allclose(curve.lines[line][1], scaled.std(dim=0) / 2, rtol=0, atol=1e-6)
        assert report.mean(method, name) == pytest.approx(wanted.mean, abs=1e-6)
        assert report.stderr(method, name) == pytest.approx(wanted.stderr, abs=1e-6)


def masks():
    return torch.stack([boxes_to_mask(box[None], (64, 64)) for box in CANVASES.boxes])


def direct(name, maps):
    """Scores and curve of a metric, called directly."""
    model, options = load_model(), {"target": TARGETS, "seed": SEED}
    if name == "bounding box":
        return bounding_box_ratio(maps, masks()).per_sample, None
    if name == "sensitivity-n":
        found = sensitivity_n(model, IMAGES, maps, tile_size=8, n_perturb_samples=7, **options)
        return found.per_sample, (found.n, found.correlations)
    if name == "sufficiency":
        found = sufficiency(model, IMAGES, maps, model.stage2, statistics(), **options)
        return found.per_sample, (found.settings, found.probability)
    found = (insertion if name == "insertion" else deletion)(model, IMAGES, maps, n_steps=50, **options)
    return found.per_sample, (found.fractions[0], found.values)


@pytest.mark.parametrize("name", ["bounding box", "sensitivity-n", "sufficiency", "insertion", "deletion"])
def test_a_column_is_the_metric_called_directly(name):
    """Scores, curve and its standard errors are those of one call for all examples."""
    report = compared([name], n_perturb_samples=7)
    for method, maps in (("bright", bright(IMAGES, 0)), ("coarse", coarse(IMAGES, 0))):
        scores, lines = direct(name, maps)
        np.testing.assert_allclose(report.results.scores[method][name], scores, rtol=0, atol=2e-6)
        if lines is None:
            assert name not in report.results.curves[method]
            continue
        curve = report.results.curves[method][name]
        mean, error = next(iter(curve.lines.values()))
        np.testing.assert_allclose(curve.x, lines[0], rtol=0, atol=1e-12)
        np.testing.assert_allclose(mean, lines[1].mean(dim=0), rtol=0, atol=2e-6)
        np.testing.assert_allclose(error, lines[1].std(dim=0) / 2, rtol=0, atol=2e-6)


def infidelity(model, image, target, values):
    """By its definition: squared error of attribution times noise, best scaled, as a prediction of the fall."""
    torch.manual_seed(SEED)
    noise = torch.randn(20, 1, 64, 64) * 0.1 * float(image.max() - image.min())
    predicted = (noise * values).sum(dim=(1, 2, 3))
    with torch.no_grad():
        fall = model(image[None])[0, target] - model(image - noise)[:, target]
    scale = (predicted * fall).mean() / predicted.square().mean()
    return float((scale * predicted - fall).square().mean())


def sensitivity_max(image, target, explain):
    """By its definition: the largest relative change of the map under three uniform changes of the image."""
    torch.manual_seed(SEED)
    noise = torch.empty(3, *image.shape).uniform_(-0.02, 0.02)
    values = explain(image[None], target[None])
    moved = [explain(image[None] + change, target[None]) - values for change in noise]
    return max(float(change.norm() / values.norm()) for change in moved)


def test_captums_metrics_with_the_seed_of_the_comparison():
    """Infidelity and sensitivity, which Captum computes, are those of their definitions for the same noise."""
    model = load_model()
    gradient = captum.attr.Saliency(model)
    methods = {"bright": bright, "gradient": lambda x, y: gradient.attribute(x.requires_grad_(), target=y).detach()}
    report = compared(["infidelity", "sensitivity max"], methods)
    for i, (image, target) in enumerate(zip(IMAGES, TARGETS, strict=True)):
        for method, explain in methods.items():
            scores = report.results.scores[method]
            with torch.random.fork_rng():
                values = explain(image[None].clone(), target[None])
                assert scores["infidelity"][i] == pytest.approx(infidelity(model, image, target, values), rel=1e-3)
                assert scores["sensitivity max"][i] == pytest.approx(sensitivity_max(image, target, explain), rel=1e-3)
    assert [info.higher_is_better for info in report.results.metrics] == [False, False]


def rows_of(methods, metrics, n=1):
    model, seen = load_model(), []
    model.head.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    options = {"layer": LAYER, "statistics": statistics(), "n_perturb_samples": 5, "n_steps": 4}
    compare(model, Canvases(n), methods, metrics, **options)
    return sum(seen)


def test_sensitivity_n_runs_the_model_once_an_image():
    """Methods share what the sets do to the output; degradation has to run for each."""
    names = {f"method {i}": bright for i in range(5)}
    one, five = {"method 0": bright}, names
    for n in (1, 2):
        assert rows_of(five, ["sensitivity-n"], n) == rows_of(one, ["sensitivity-n"], n)
    without = rows_of(one, ["bounding box"])
    assert rows_of(one, ["sensitivity-n"]) - without == 1 + 5 * len(sensitivity_sizes())
    assert rows_of(five, ["degradation 14x14"]) - without == 5 * (rows_of(one, ["degradation 14x14"]) - without) > 0


def sensitivity_sizes():
    with torch.no_grad():
        return sensitivity_n(load_model(), IMAGES[:1], IMAGES[:1], tile_size=8, n_perturb_samples=5, target=0).n


def test_bounding_box_needs_a_mask_and_only_boxes_has_nothing_else():
    """Where a metric does not apply there is no value, and the others are what they are without that example."""
    mixed = quick(Canvases(4, only_boxes=(1,), without_boxes=(2,)), methods=["Saliency"])
    plain = quick(Canvases(4), methods=["Saliency"]).results.scores["Saliency"]
    for name, values in mixed.results.scores["Saliency"].items():
        missing = [2] if name == "bounding box" else [1]
        assert np.flatnonzero(np.isnan(values)).tolist() == missing
        if name != "degradation 14x14":  # which is scaled by all examples
            there = ~np.isnan(values)
            assert np.array_equal(values[there], plain[name][there])
    model, three = load_model(), [0, 2, 3]
    metric = Degradation(model, tile_size=14, n_steps=4)
    maps = captum.attr.Saliency(model).attribute(IMAGES[three].requires_grad_(), target=TARGETS[three]).detach()
    metric.evaluate(IMAGES[three], maps, target=TARGETS[three])
    found = mixed.results.scores["Saliency"]["degradation 14x14"][three]
    np.testing.assert_allclose(found, metric.summary().per_sample, rtol=0, atol=1e-6)


def test_no_scale_no_score():
    """Where the degraded images score as high as the intact ones, degradation has neither scores nor curves."""
    model = toy(nn.Flatten(), nn.Linear(256, 3))
    for parameter in model.parameters():
        parameter.data.zero_()
    report = compare(model, (toy_images(3), [0, 1, 2]), {"bright": bright}, ["degradation 8x8"], **toy_options())
    assert np.isnan(report.results.scores["bright"]["degradation 8x8"]).all() and report.results.curves["bright"] == {}


def test_without_a_layer_sufficiency_says_why():
    """A model on which no layer suggests itself is compared in all that needs none."""
    model = weighted(nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.ReLU(), nn.Linear(8, 3)))
    report = compare(model, (toy_images(3), [0, 1, 2]), ["Saliency"], ["sensitivity-n", "sufficiency"], **toy_options())
    scores = report.results.scores["Saliency"]
    assert np.isfinite(scores["sensitivity-n"]).all() and np.isnan(scores["sufficiency"]).all()
    by_name = {info.name: info.description for info in report.results.metrics}
    assert "could not be computed: No layer of Sequential has a spatial feature map" in by_name["sufficiency"]
    assert "could not be computed" not in by_name["sensitivity-n"]


def test_a_metric_that_fails_takes_nothing_with_it():
    """A method that cannot explain a changed image has no sensitivity, but all its other scores."""
    x = toy_images(2)

    def moody(inputs, _target):
        if not any(torch.equal(inputs[0], image) for image in x):
            raise KeyError("who is this?")
        return inputs

    report = compare(toy_cnn(), (x, [0, 1]), {"moody": moody, "bright": bright}, ["sensitivity max", "degradation 8x8"],
                     **toy_options())  # fmt: skip
    scores = report.results.scores
    assert np.isnan(scores["moody"]["sensitivity max"]).all() and np.isfinite(scores["bright"]["sensitivity max"]).all()
    assert np.array_equal(scores["moody"]["degradation 8x8"], scores["bright"]["degradation 8x8"])
    assert report.results.methods[0].reason == "" and report.results.methods[0].n_failed == 0


class Brightest:
    """A metric of one's own."""

    needs_boxes = False
    info = MetricInfo("brightest", "The largest value of the map.", None)

    def measure(self, state, maps, explain):
        return {"score": float(maps.max()) + state.rows}

    def gather(self, records):
        return np.array([record["score"] for record in records]), None


def test_a_column_of_ones_own():
    """An object with info, measure and gather is a metric beside the named ones; without direction it has no rank."""
    report = compared([Brightest(), "bounding box"], max_examples_per_batch=5)
    np.testing.assert_allclose(report.results.scores["bright"]["brightest"], IMAGES.amax(dim=(1, 2, 3)) + 5)
    assert np.isnan(report.results.rank("bright", "brightest")) and not np.isnan(
        report.results.rank("bright", "bounding box")
    )


def test_names_of_the_metrics():
    """ "paper" are the paper's and sufficiency, "all" Captum's and insertion and deletion as well."""
    paper = [column.info.name for column in find_columns("paper", None, 100)]
    assert paper == ["degradation 8x8", "degradation 14x14", "bounding box", "sensitivity-n", "sufficiency"]
    every = [column.info.name for column in find_columns("all", None, 100)]
    assert every == [*paper, "insertion", "deletion", "infidelity", "sensitivity max"]
    for name in every:
        assert [column.info.name for column in find_columns(name, None, 100)] == [name]


@pytest.mark.parametrize(
    ("metrics", "numbers", "error", "said"),
    [
        ("degradation", (None, 100), InvalidArgumentError, "no metric 'degradation'; known are degradation 8x8"),
        (["deletion", "deletion"], (None, 100), InvalidArgumentError, "each once"),
        ([], (None, 100), InvalidArgumentError, "at least one"),
        (7, (None, 100), InvalidTypeError, "metrics is a int"),
        ([7], (None, 100), InvalidTypeError, "A metric is a int"),
        ("paper", (1, 100), InvalidArgumentError, "n_steps=1"),
        ("paper", (2.5, 100), InvalidArgumentError, "n_steps=2.5"),
        ("paper", (None, 1), InvalidArgumentError, "n_perturb_samples=1"),
    ],
)
def test_a_wrong_metric_is_refused_with_advice(metrics, numbers, error, said):
    """Before anything is computed the message says what was found and what is known."""
    with pytest.raises(error, match=said) as caught:
        compare(toy_cnn(), (toy_images(1), [0]), {"bright": bright}, metrics, n_steps=numbers[0],
                n_perturb_samples=numbers[1], calibration=calibration())  # fmt: skip
    assert isinstance(caught.value, CaptumIBAError)
