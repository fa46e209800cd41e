"""Laws of a comparison: data of any kind, methods that fail, too little memory, and what the report holds."""

import itertools
import random
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from torchvision.transforms._presets import ImageClassification

from captum_iba import LayerIBA
from captum_iba.comparison import PhotoFolder, TensorExamples, compare
from captum_iba.demo import load_canvases, load_model
from captum_iba.errors import CaptumIBAError, CaptumIBAWarning, InvalidArgumentError, InvalidTypeError
from captum_iba.photos import Classifier
from tests.attr.test_bad_input import state_of
from tests.comparison.comparison_cases import (
    CHEAP,
    Canvases,
    assert_same_results,
    calibration,
    quick,
    statistics,
    toy,
    toy_cnn,
    toy_images,
    toy_options,
)

TILES = "degradation 8x8"
LABELS = [0, 2, 1]


def bright(x, _y):
    return x


def toy_run(methods, metrics=(TILES,), images=None, model=None, targets=LABELS, **options):
    images = toy_images(3) if images is None else images
    return compare(model or toy_cnn(), (images, targets), methods, list(metrics), **toy_options(**options))


class Pairs(Dataset):
    """Items of a torch data set."""

    def __init__(self, *columns):
        self.columns = columns

    def __len__(self):
        return len(self.columns[0])

    def __getitem__(self, index):
        return tuple(column[index] for column in self.columns)


def test_the_kind_of_data_set_does_not_matter():
    """Tensors, torch data sets, and sets of examples give the same scores and curves."""
    x, masks = toy_images(3), torch.zeros(3, 16, 16)
    masks[:, 2:9, 3:7] = 1
    y = torch.tensor(LABELS)
    forms = [
        (x, y, masks), TensorDataset(x, y, masks), Pairs(x, LABELS, masks), TensorExamples(x, y, masks),
        TensorExamples(x, y, boxes=[[[3, 2, 7, 9]]] * 3),
    ]  # fmt: skip
    metrics = [TILES, "bounding box", "sensitivity-n"]
    reports = [compare(toy_cnn(), form, ["Saliency", "Random"], metrics, **toy_options()) for form in forms]
    for report, method, metric in itertools.product(reports[1:], ("Saliency", "Random"), metrics):
        wanted = reports[0].results.scores[method][metric]
        assert np.isfinite(wanted).all() and np.array_equal(report.results.scores[method][metric], wanted)


def test_a_folder_of_photos(tmp_path):
    """Photos below a folder are compared; one that is torn is listed with its reason."""
    for i, (name, shape) in enumerate((("ant/0.png", "ant"), ("bee/1.png", "bee"), ("bee/2.png", "bee"))):
        (tmp_path / shape).mkdir(exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "bee/torn.png").write_bytes((tmp_path / "bee/2.png").read_bytes()[:100])
    preset = ImageClassification(crop_size=16, resize_size=20)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preset.mean, preset.std))
    model = toy(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 2))
    classifier = Classifier("small", model, preset, ["ant", "bee"], mean, std)
    folder = PhotoFolder(tmp_path, classifier, "folder")
    report = compare(model, folder, ["Saliency"], [TILES], categories=["ant", "bee"], **_own_statistics(model))
    assert [(e.key, e.target) for e in report.results.examples] == [
        ("ant/0.png", "ant"), ("bee/1.png", "bee"), ("bee/2.png", "bee"),
    ]  # fmt: skip
    assert report.results.skipped.keys() == {"bee/torn.png"} and "torn.png" in report.results.skipped["bee/torn.png"]
    inputs = torch.stack([folder.load(i).inputs for i in range(3)])
    wanted = compare(model, (inputs, [0, 1, 1]), ["Saliency"], [TILES], **_own_statistics(model))
    assert np.array_equal(report.results.scores["Saliency"][TILES], wanted.results.scores["Saliency"][TILES])


def _own_statistics(model):
    data = torch.randn(20, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return {"layer": "0", "statistics": LayerIBA(model, model[0]).estimate(data).statistics}


def test_what_cannot_be_read_is_listed_and_not_counted():
    """Scores, curves and maps are those of the others alone."""
    report = quick(Canvases(4, unreadable=(1, 3)), methods=["Saliency", "Random"])
    assert report.results.skipped == {"canvas 1": "canvas 1: a torn file", "canvas 3": "canvas 3: a torn file"}
    assert [example.key for example in report.results.examples] == ["canvas 0", "canvas 2"]
    canvases = load_canvases("test", 3)
    own = TensorExamples(canvases.images[::2], canvases.labels[::2], boxes=canvases.boxes[::2, None].float())
    wanted = quick(own, methods=["Saliency", "Random"])
    for method, by_metric in wanted.results.scores.items():
        for metric, values in by_metric.items():
            assert np.array_equal(report.results.scores[method][metric], values)
        assert report.results.maps[method].keys() == {"canvas 0", "canvas 2"}
    assert "over 2 examples" in str(report)


def test_nothing_that_can_be_read_is_an_error():
    """The reason of the last one is given."""
    with pytest.raises(InvalidArgumentError, match="No example of the data set can be read: canvas 1: a torn file"):
        quick(Canvases(2, unreadable=(0, 1)))


def raising(x, _y):
    raise KeyError("no\nsuch | thing")


FAILURES = {
    "raises": (raising, r"KeyError: 'no\\nsuch \| thing'"),
    "nan": (lambda x, y: x * float("nan"), "has NaN or infinity"),
    "infinite": (lambda x, y: x / 0, "has NaN or infinity"),
    "shape": (lambda x, y: x[0, 0], r"returned \[16, 16\]; wanted maps"),
    "rows": (lambda x, y: torch.cat([x, x]), r"returned \[2, 1, 16, 16\]"),
    "empty": (lambda x, y: x[..., :0], r"returned \[1, 1, 16, 0\]"),
    "nothing": (lambda x, y: None, "returned NoneType"),
    "array": (lambda x, y: x.numpy(), "returned ndarray"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_method_that_fails_is_a_row_with_its_reason(case):
    """It has no scores, and those of the others are what they are without it."""
    function, said = FAILURES[case]
    report = toy_run({"bright": bright, "bad": function})
    info = report.results.methods[1]
    assert (info.name, info.n_failed) == ("bad", 3) and np.isnan(info.seconds)
    assert np.isnan(report.results.scores["bad"][TILES]).all() and report.results.curves["bad"] == {}
    assert re.search(said, info.reason) and "bad could not run: " in str(report)
    alone = toy_run({"bright": bright})
    assert np.array_equal(report.results.scores["bright"][TILES], alone.results.scores["bright"][TILES])


def test_a_method_that_fails_on_one_example_keeps_the_others():
    """n_failed counts, there is no reason, and only that example is without a value."""
    x = toy_images(3)
    report = toy_run(
        {"shy": lambda image, y: raising(x, y) if torch.equal(image[0], x[1]) else image, "bright": bright}
    )
    info, scores = report.results.methods[0], report.results.scores
    assert (info.reason, info.n_failed) == ("", 1) and info.seconds >= 0
    assert np.isnan(scores["shy"][TILES]).tolist() == [False, True, False]
    difference, _, n = report.paired("shy", "bright", TILES)
    assert n == 2 and "shy failed on 1 of 3 examples: " in str(report)
    assert difference == np.nanmean(scores["shy"][TILES] - scores["bright"][TILES])


def test_methods_cannot_spoil_each_other():
    """One that writes into its input or draws from the global generators changes neither the next nor the generators,
    and gives the same again, whatever state they are in."""

    def spoils(x, y):
        noise = torch.rand_like(x) + np.random.rand() + random.random()
        x.zero_()
        y += 1
        return noise

    def state():
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    metrics, model = ("sensitivity-n", "sensitivity max"), toy_cnn()
    before = state()
    first = toy_run({"spoils": spoils, "bright": bright}, metrics, model=model)
    assert state() == before
    torch.rand(1), random.random(), np.random.rand()
    second = toy_run({"spoils": spoils, "bright": bright}, metrics, model=model)
    assert_same_results(second.results, first.results)
    alone = toy_run({"bright": bright}, metrics, model=model).results.scores["bright"]
    assert all(np.array_equal(first.results.scores["bright"][name], alone[name]) for name in metrics)


def test_a_comparison_leaves_the_model_as_it_was():
    """Modes, hooks, weights, gradients; also where the caller has gradients switched off."""
    model = toy_cnn().train()
    model[0].eval()
    model[3].weight.requires_grad_(False)
    before = state_of(model)
    with pytest.warns(CaptumIBAWarning, match="training mode"):
        found = toy_run("paper", model=model, layer="3")
    assert state_of(model) == before
    assert [info.name for info in found.results.methods if info.reason] == []
    with torch.no_grad():
        assert_same_results(toy_run("paper", layer="3").results, found.results)


def scarce(k):
    """The demo's network in double precision, whose first and last part have memory for k rows."""
    model = load_model().double()

    def refuse(_module, inputs):
        if len(inputs[0]) > k:
            raise torch.OutOfMemoryError(f"no room for {len(inputs[0])} rows")

    for module in (model.stage1, model.head):
        module.register_forward_pre_hook(refuse)
    return model


def in_little_memory(k, methods=(*CHEAP, "SmoothGrad", "IntegratedGradients", "Occlusion-14x14", "PatternAttribution")):
    canvases = load_canvases("test", 1)
    data = TensorExamples(canvases.images.double(), canvases.labels, boxes=canvases.boxes[:, None].float())
    metrics = ["degradation 14x14", "bounding box", "sensitivity-n", "sufficiency"]
    return quick(data, methods, metrics, scarce(k), calibration=[calibration().double()], max_examples_per_batch=16)


def test_little_memory_changes_nothing_but_the_time():
    """What runs out of memory runs again with fewer rows, and one warning says which number does."""
    with pytest.warns(CaptumIBAWarning) as caught:
        found = in_little_memory(3)
    said = [str(w.message) for w in caught if "Memory" in str(w.message) or "fit into" in str(w.message)]
    assert said == ["Memory ran out; going on with 2 rows at once. Pass max_examples_per_batch=2 to start with it."]
    wanted = in_little_memory(10_000)
    assert all(info.reason == "" for info in wanted.results.methods)
    assert_same_results(found.results, wanted.results, atol=1e-6)


def test_no_memory_at_all_is_a_reason_and_no_crash():
    """Where not one row fits, every method is a row with its reason, be it the method or a metric that needs one."""
    found = in_little_memory(0)
    for info in found.results.methods:
        assert "no room for 1 rows" in info.reason and info.n_failed == 1
    assert "no room for 1 rows" in found.results.configuration["statistics"]
    without = quick(Canvases(1), ["Random", "Saliency"], ["bounding box"], scarce(0), statistics=statistics())
    assert [info.reason == "" for info in without.results.methods] == [True, False]
    assert np.isfinite(without.results.scores["Random"]["bounding box"]).all()


def test_one_hungry_method_does_not_slow_the_others():
    """What no number of rows can feed is a reason, and the others keep their rows."""

    def hungry(_x, _y):
        raise torch.OutOfMemoryError("more, please")

    seen, model = [], load_model()
    model.head.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    options = {"max_examples_per_batch": 16, "statistics": statistics(), "n_perturb_samples": 40}
    report = quick(Canvases(2), {"hungry": hungry, "bright": bright}, ["sensitivity-n"], model, **options)
    assert report.results.methods[0].reason == "OutOfMemoryError: more, please" and max(seen) == 16


def test_a_target_beyond_the_classes_names_its_example():
    """Labels of another data set are found out at the first example that shows it."""
    with pytest.raises(InvalidArgumentError, match=r"Example '2' has the target 3, but the model has 3 classes"):
        toy_run({"bright": bright}, targets=[0, 1, 3])


class Ragged:
    """Images of different sizes."""

    keys = ("even", "odd")
    fingerprint = {"class": "Ragged"}  # noqa: RUF012

    def load(self, index):
        side = 16 + 2 * index
        return TensorExamples(torch.zeros(1, 1, side, side), [0], keys=[self.keys[index]]).load(0)


ARGUMENTS = {
    "model": (lambda: compare(torch.relu, (toy_images(1), [0])), InvalidTypeError, "model is a builtin_function"),
    "seed": (lambda: toy_run("Random", seed=-1), InvalidArgumentError, "seed=-1"),
    "rows": (lambda: toy_run("Random", max_examples_per_batch=0), InvalidArgumentError, "max_examples_per_batch=0"),
    "pictures": (lambda: toy_run("Random", n_pictures=1.5), InvalidArgumentError, "n_pictures=1.5"),
    "layer": (lambda: toy_run("Random", layer="conv"), InvalidArgumentError, "layer='conv' is not in the model"),
    "foreign layer": (lambda: toy_run("Random", gradcam_layer=nn.ReLU()), InvalidArgumentError, "gradcam_layer='ReLU'"),
    "statistics": (lambda: toy_run("Random", statistics=3), InvalidTypeError, "statistics is a int"),
    "categories": (lambda: toy_run("Random", categories="ab"), InvalidArgumentError, "2 categories for 3 classes"),
    "options": (
        lambda: toy_run("Random", method_options={"LayerIBA": {}}), InvalidArgumentError, "'LayerIBA', which is not",
    ),
    "option": (lambda: toy_run("Random", method_options={"Random": 3}), InvalidTypeError, "arguments by method"),
    "output": (lambda: toy_run("Random", model=toy(nn.Conv2d(1, 3, 3))), InvalidArgumentError, "wanted logits"),
    "input": (
        lambda: toy_run("Random", images=torch.zeros(3, 2, 16, 16)), InvalidArgumentError,
        r"does not run on the first example, torch.float32 \[1, 2, 16, 16\]",
    ),
    "ragged": (
        lambda: compare(toy_cnn(), Ragged(), "Random", TILES, **toy_options()), InvalidArgumentError,
        r"does not run on example 'odd' of shape \[1, 18, 18\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_wrong_argument_is_refused_with_what_was_found(name):
    """Each has its class and a message that names it."""
    call, error, said = ARGUMENTS[name]
    with pytest.raises(error, match=said) as caught:
        call()
    assert isinstance(caught.value, CaptumIBAError)


def test_options_that_nobody_takes_are_a_reason():
    """An argument for a method without any is not passed over in silence."""
    report = toy_run(["Random", "Saliency"], method_options={"Random": {"seed": 3}, "Saliency": {"size": 3}})
    reasons = [info.reason for info in report.results.methods]
    assert reasons[0] == "method_options has seed for Random, which takes no arguments."
    assert "TypeError" in reasons[1] and "size" in reasons[1]


def test_statistics_of_the_compared_images_come_with_a_warning():
    """Without calibration data they are those of the images themselves, which is said."""
    with pytest.warns(CaptumIBAWarning, match="come from the compared images themselves"):
        found = toy_run(["LayerIBA"], calibration=None, layer="3")
    model = toy_cnn()
    own = LayerIBA(model, model[3]).estimate(toy_images(3)).statistics
    wanted = toy_run(["LayerIBA"], calibration=None, layer="3", statistics=own)
    np.testing.assert_allclose(found.results.scores["LayerIBA"][TILES], wanted.results.scores["LayerIBA"][TILES])
    assert found.results.configuration["statistics"] == wanted.results.configuration["statistics"]


def test_the_progress_counts_maps(capfd, tmp_path):
    """One step for each method of each example, unreadable ones among them; a resumed run starts where it was."""
    for _ in range(2):
        quick(Canvases(3, unreadable=(1,)), ["Saliency", "Random"], ["bounding box"], store=tmp_path / "results.db",
              statistics=statistics(), show_progress=True)  # fmt: skip
        said = capfd.readouterr().err
        assert "compare: 100%" in said and "6/6" in said
    quick(Canvases(1), ["Random"], ["bounding box"], statistics=statistics())
    assert capfd.readouterr().err == ""
