"""Laws of the readout bottleneck as a method: loaded or trained, its row is the readout itself."""

import math
import re
import sqlite3

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from captum_iba import LayerReadoutIBA
from captum_iba.comparison import Method, compare
from captum_iba.comparison.context import Context
from captum_iba.comparison.methods import BITS, find_methods
from captum_iba.comparison.readout_method import NAME
from captum_iba.errors import InvalidArgumentError
from tests.attr.test_bad_input import state_of
from tests.comparison.comparison_cases import (
    Canvases,
    assert_same_results,
    quick,
    toy,
    toy_cnn,
    toy_images,
    toy_options,
)

pytestmark = pytest.mark.filterwarnings("ignore:Through the trained bottleneck")
BATCHES = [toy_images(4, seed=1), toy_images(20, seed=2), toy_images(12, seed=3)]
IMAGES = toy_images(3)
LAYER, SEED = "3", 3
QUICK = {"epochs": 2, "hidden_channels": (4, 5)}
OF_OBJECT = ("readout_layers", "hidden_channels", "sigma", "initial_alpha", "relu", "align_corners")


class Calibration:
    summary = "a few images"

    def __call__(self):
        return BATCHES


def built(options, model=None, **given):
    """The method's function for the third layer of the toy network."""
    model = model or toy_cnn()
    (method,) = find_methods([NAME])
    layer = model.get_submodule(given.pop("layer", LAYER))
    context = Context(model, IMAGES[:1], Calibration(), layer=layer, seed=SEED, options={NAME: options}, **given)
    return method.build(context)


def described():
    """The training's numbers as the description of the method has them."""
    (method,) = find_methods([NAME])
    pattern = r"\((\d+) epochs, learning rate (\S+), beta (\S+), half of the steps as warm-up\)"
    epochs, learning_rate, beta = re.search(pattern, method.description).groups()
    return {"epochs": int(epochs), "learning_rate": float(learning_rate), "beta": float(beta)}


def by_hand(options, batches=BATCHES, estimated=None, seed=SEED):
    """LayerReadoutIBA trained with nothing of the comparison but the numbers that its description has."""
    model = toy_cnn()
    of_object = {name: value for name, value in options.items() if name in OF_OBJECT}
    of_fit = described() | {"seed": seed, "show_progress": False}
    of_fit |= {name: value for name, value in options.items() if name not in OF_OBJECT}
    steps = of_fit["epochs"] * len(batches)
    of_fit.setdefault("warmup_steps", min(steps, of_fit.get("max_steps", steps)) // 2)
    readout = LayerReadoutIBA(model, model.get_submodule(LAYER), **of_object)
    readout.estimate(estimated or batches)
    readout.fit(batches, targets="predictions", **of_fit)
    return readout


def run(options=QUICK, methods=(NAME, "Random"), n=3, model=None, **further):
    """A comparison of the toy network's third layer."""
    given = {"calibration": BATCHES, "layer": LAYER, "method_options": {NAME: options}, "seed": SEED} | further
    return compare(
        model or toy_cnn(), (IMAGES[:n], [0, 1, 2][:n]), methods, ["degradation 8x8"], **toy_options(**given)
    )


def fits(monkeypatch):
    """A list that grows with each training."""
    seen, fit = [], LayerReadoutIBA.fit
    monkeypatch.setattr(LayerReadoutIBA, "fit", lambda *given, **named: (seen.append(1), fit(*given, **named))[1])
    return seen


@pytest.fixture(scope="module")
def trained():
    return by_hand(QUICK)


@pytest.fixture
def file(tmp_path, trained):
    trained.save(tmp_path / "readout.safetensors")
    return tmp_path / "readout.safetensors"


@pytest.mark.parametrize("layer", [LAYER, "0"])
def test_a_file_gives_the_readouts_own_maps(file, trained, layer, monkeypatch):
    """By path nothing is trained, and the maps are the readout's, bit for bit, wherever the other methods look."""
    trainings = fits(monkeypatch)
    wanted = trained.attribute(IMAGES)
    for path in (file, str(file)):
        assert torch.equal(built({"path": path}, layer=layer)(IMAGES, torch.tensor([0, 1, 2])), wanted)
    own = Method("own", lambda context: lambda x, y: trained.attribute(x), unit=BITS)
    scores = run({"path": file}, [NAME, own], layer=layer).results.scores
    assert np.array_equal(scores[NAME]["degradation 8x8"], scores["own"]["degradation 8x8"]) and not trainings


def test_a_readout_that_is_loaded_needs_no_calibration(file):
    """Where the only fitted method is loaded, the calibration data are not read, and none are missed."""

    class Unread:
        def __iter__(self):
            raise AssertionError("read in vain")

    report = run({"path": file}, calibration=Unread())
    assert_same_results(run({"path": file}, calibration=None).results, report.results)


def own_objective(output, target):
    return -output.gather(1, target[:, None])[:, 0]


VALUES = {
    "readout_layers": ("3", "6"),
    "hidden_channels": (3, 6),
    "sigma": 0.5,
    "initial_alpha": 3.0,
    "relu": True,
    "align_corners": True,
    "epochs": 3,
    "learning_rate": 1e-2,
    "beta": 0.1,
    "max_steps": 4,
    "warmup_steps": 1,
    "objective": own_objective,
    "class_dim": -1,
    "seed": 9,
    "checkpoint_every": 1,
    "mixed_precision": True,
}


@pytest.mark.parametrize("name", VALUES)
def test_trained_in_compare_is_trained_by_hand(name):
    """With the same option, seed and calibration the maps are those of estimate, fit and attribute, bit for bit."""
    options = QUICK | {name: VALUES[name]}
    wanted = by_hand(options).attribute(IMAGES)
    assert torch.equal(built(options)(IMAGES, torch.tensor([0, 1, 2])), wanted)


def test_training_has_the_documented_defaults():
    """Without options it is the training that its description tells, with the comparison's seed."""
    maps = built({})(IMAGES, torch.zeros(3, dtype=torch.long))
    assert torch.equal(maps, by_hand({}).attribute(IMAGES))
    assert not torch.equal(maps, by_hand({}, seed=SEED + 1).attribute(IMAGES))


def test_modes_and_neighbours_change_nothing(trained):
    """Without gradients, for other targets, and whatever else is compared before it, the row is the same."""
    alone = run(methods=[NAME]).results.scores[NAME]["degradation 8x8"]
    with torch.no_grad():
        among = run(methods=["Random", "LayerIBA", NAME, "Saliency"]).results.scores[NAME]["degradation 8x8"]
    explain = built(QUICK)
    first, second = (explain(IMAGES, torch.tensor(targets)) for targets in ([0, 1, 2], [2, 2, 0]))
    assert np.array_equal(alone, among) and torch.equal(first, second) and torch.equal(first, trained.attribute(IMAGES))


def test_the_refusal_names_every_option():
    """What can be chosen is said where something cannot be, and this test's table holds all of it."""
    with pytest.raises(InvalidArgumentError) as caught:
        built({"no such": 1})
    assert set(re.search(r"any of (.*)\.$", str(caught.value))[1].split(", ")) == set(VALUES)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"learning_rte": 1}, "learning_rte"),
        ({"targets": "labels"}, "targets"),
        ({"checkpoint": "x"}, "checkpoint"),
        ({"path": None, "epochs": 2}, "epochs"),
        ({"path": None, "hidden_channels": (3, 3)}, "hidden_channels"),
        ({"path": None, "train_data": 1}, "train_data"),
    ],
)
def test_options_that_do_not_go_are_refused_by_name(options, named, file, monkeypatch):
    """Unknown ones, and those of a training beside a file: the row's reason names them, and nothing is trained."""
    trainings = fits(monkeypatch)
    options = {name: file if name == "path" else value for name, value in options.items()}
    stopped, other = run(options).results.methods
    assert stopped.reason.startswith(f"method_options of {NAME}: {named} cannot be used here; wanted path alone")
    assert other.reason == "" and not trainings


OTHERS = {
    "no such layer": (lambda: toy(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 196, 3)), "readout of layer '3'"),
    "another width": (
        lambda: toy(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(5 * 64, 3),
        ),
        "of another network",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_a_file_for_another_network_is_a_row_with_its_reason(case, file):
    """Nothing is explained with it, and the other methods have their scores."""
    make, said = OTHERS[case]
    report = run({"path": file}, model=make(), layer="0")
    stopped, other = report.results.methods
    assert said in stopped.reason and stopped.n_failed == 3 and stopped.fit_seconds is None
    assert f"{NAME} could not run: " in str(report) and other.reason == ""
    assert np.isnan(report.results.scores[NAME]["degradation 8x8"]).all()


@pytest.mark.parametrize("what", ["missing", "damaged", "other tensors", "statistics alone"])
def test_a_file_that_cannot_be_used_is_a_row_with_its_reason(what, file, tmp_path):
    """The reason names the file, or what is missing in it."""
    path = tmp_path / "used"
    if what == "damaged":
        path.write_bytes(file.read_bytes()[:1000])
    elif what == "other tensors":
        save_file({"weight": torch.ones(2)}, path)
    elif what == "statistics alone":
        model = toy_cnn()
        LayerReadoutIBA(model, model[3]).estimate(BATCHES).save(path)
    stopped, other = run({"path": path}).results.methods
    assert ("no trained network" if what == "statistics alone" else str(path)) in stopped.reason
    assert other.reason == ""


def test_training_time_is_told(file, trained):
    """It is the history's, in the results, the notes and the data frame; what is not trained has none."""
    report = run({"path": file})
    own, other = report.results.methods
    assert own.fit_seconds == trained.history.seconds > 0 and other.fit_seconds is None
    frame = report.to_dataframe()["training seconds", ""]
    assert frame[NAME] == own.fit_seconds and math.isnan(frame["Random"])
    for text in (str(report), report.to_markdown()):
        (note,) = [line for line in text.splitlines() if f"training {NAME} took" in line]
        seconds = re.search(rf"training {NAME} took (\S+) s, which is not in its seconds an image$", note)[1]
        assert float(seconds) == pytest.approx(own.fit_seconds, rel=0.01)


def test_training_time_is_that_of_the_one_training(monkeypatch):
    """Trained once for all examples: each stored record has the history's seconds."""
    histories, fit = [], LayerReadoutIBA.fit
    monkeypatch.setattr(LayerReadoutIBA, "fit", lambda *a, **b: histories.append(fit(*a, **b).history) or a[0])
    (info, _) = run().results.methods
    assert [history.seconds for history in histories] == [info.fit_seconds]


def test_a_finished_comparison_is_not_trained_again(tmp_path, monkeypatch):
    """What is stored, the time of the training too, is read and told as it was."""
    path, trainings = tmp_path / "results.db", fits(monkeypatch)
    first = run(store=path)
    again = run(store=path)
    assert len(trainings) == 1 and again.results.methods[0] == first.results.methods[0]
    assert_same_results(again.results, first.results)
    with sqlite3.connect(path) as store:
        found = dict(store.execute("SELECT method, fit_seconds FROM results").fetchall())
        assert found == {NAME: first.results.methods[0].fit_seconds, "Random": None}
        store.execute("UPDATE results SET fit_seconds = 77.0 WHERE fit_seconds IS NOT NULL")
    assert f"training {NAME} took 77.0 s" in str(run(store=path))


def test_a_resumed_comparison_ends_as_if_never_interrupted(tmp_path):
    """The readout that is trained anew for the rest is the same one."""
    options = {"method_options": {NAME: QUICK}, "metrics": ["degradation 14x14", "bounding box"]}
    whole = quick(Canvases(3), [NAME, "Random"], **options).results
    path, loaded = tmp_path / "results.db", []

    class Stops(Canvases):
        def load(self, index):
            loaded.append(index)
            if len(loaded) == 3:  # once for its shape, then two examples
                raise KeyboardInterrupt
            return super().load(index)

    with pytest.raises(KeyboardInterrupt):
        quick(Stops(3), [NAME, "Random"], store=path, **options)
    rest = Canvases(3)
    assert_same_results(quick(rest, [NAME, "Random"], store=path, **options).results, whole)
    assert rest.loaded == [0, 1, 2] and whole.methods[0].reason == "" and len(whole.maps[NAME]) == 3


def test_a_changed_file_is_refused_on_resume(file, tmp_path):
    """The same path with other content is another configuration; the same content, written anew, is not."""
    path, content = tmp_path / "results.db", file.read_bytes()
    first = run({"path": file}, store=path)
    file.write_bytes(content)
    assert_same_results(run({"path": file}, store=path).results, first.results)
    by_hand(QUICK | {"seed": 1}).save(file)
    with pytest.raises(InvalidArgumentError, match=r"method_options.*readout\.safetensors"):
        run({"path": file}, store=path)


def test_other_options_are_refused_on_resume(tmp_path):
    """A store belongs to one training."""
    run(store=tmp_path / "results.db")
    with pytest.raises(InvalidArgumentError, match="method_options"):
        run(QUICK | {"epochs": 1}, store=tmp_path / "results.db")


@pytest.mark.filterwarnings("ignore:1 modules are in training mode")
@pytest.mark.parametrize("loaded", [True, False])
def test_the_model_is_left_alone(loaded, file):
    """Weights, gradients, flags, hooks and the global generators are as they were, in evaluation mode or not."""
    model = toy_cnn()
    model[1].train()
    model[0].weight.requires_grad_(False)
    before = state_of(model)
    (info,) = run({"path": file} if loaded else QUICK, [NAME], model=model).results.methods
    assert info.reason == "" and state_of(model) == before


@pytest.mark.parametrize(("room", "rows"), [(19, 16), (5, 4), (1, 1)])
@pytest.mark.parametrize("where", ["both", "training"])
def test_out_of_memory_it_is_trained_on_smaller_batches(room, rows, where, monkeypatch):
    """Batches are halved until memory suffices, for the statistics, or for the training alone, which needs more; the
    training is that on the smaller ones from its start."""
    model, seen, trainings = toy_cnn(), [], fits(monkeypatch)

    def refuse(_module, inputs):
        if where == "training" and not trainings:
            return
        seen.append(len(inputs[0]))
        if seen[-1] > room:
            raise torch.OutOfMemoryError(f"no room for {seen[-1]} rows")

    handle = model[3].register_forward_pre_hook(refuse)
    explain = built(QUICK, model, rows=16)
    handle.remove()
    pieces = [piece for batch in BATCHES for piece in torch.split(batch, rows)]
    wanted = by_hand(QUICK, pieces, estimated=BATCHES if where == "training" else pieces).attribute(IMAGES)
    assert torch.equal(explain(IMAGES, torch.tensor([0, 1, 2])), wanted)
    assert max(seen) > room >= seen[-1]


def test_no_memory_to_train_is_a_reason(monkeypatch):
    """What no batch size can feed is a row with its reason, and the others keep their rows."""

    def fail(*_given, **_named):
        raise torch.OutOfMemoryError("more, please")

    monkeypatch.setattr(LayerReadoutIBA, "fit", fail)
    stopped, other = run(max_examples_per_batch=4).results.methods
    assert stopped.reason == "OutOfMemoryError: more, please" and other.reason == ""
