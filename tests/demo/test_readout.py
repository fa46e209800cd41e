"""Laws of the demo's readout: the file that comes with the package, and how it is trained."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from captum_iba import LayerReadoutIBA, resize_bits
from captum_iba.attr._readout_file import layer_of
from captum_iba.demo import LAYER, load_canvases, load_model, load_readout, train_readout
from captum_iba.demo.readout import PATH
from captum_iba.demo.run import report, run_demo, share_inside
from captum_iba.errors import MissingFileError
from tests.attr.test_bad_input import state_of

pytest.importorskip("sklearn")
pytestmark = pytest.mark.filterwarnings("ignore:Through the trained bottleneck")
SMALL = {"_CALIBRATION": 40, "_TRAINING": 150, "_HELD_OUT": 30}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few canvases: three steps an epoch."""
    for name, number in SMALL.items():
        monkeypatch.setattr(train_readout, name, number)


def quick_train(**options: object) -> LayerReadoutIBA:
    return train_readout.train(show_progress=False, hidden_channels=(8, 8), **options)  # type: ignore[arg-type]


def network_of(readout: LayerReadoutIBA, path: Path) -> dict[str, torch.Tensor]:
    """Weights of the readout network, by way of a file."""
    readout.save(path)
    return {name: tensor for name, tensor in load_file(path).items() if name.startswith("network.")}


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_packaged_file_is_small_and_as_it_is_trained() -> None:
    """Less than 1 MB, at the demo's layer, with the widths, epochs and batches of train_readout, and no optimiser."""
    assert len(PATH.read_bytes()) < 1_000_000 and layer_of(PATH) == LAYER
    with safe_open(str(PATH), framework="pt") as found:
        content = json.loads(found.metadata()["content"])
        assert not [name for name in found.keys() if name.startswith("optimizer")]  # noqa: SIM118
    assert tuple(content["widths"]) == tuple(train_readout.HIDDEN)
    history = load_readout().history
    steps = train_readout.EPOCHS * -(-train_readout._TRAINING // train_readout._BATCH)
    assert [each.step for each in history.training] == list(range(steps))
    assert history.validation[-1].step == steps and history.validation[-1].n == train_readout._HELD_OUT
    assert load_readout().statistics[LAYER].n_samples == train_readout._CALIBRATION  # type: ignore[index]


def test_packaged_file_is_of_the_packaged_network() -> None:
    """Its last measure is that of evaluate on the same held-out canvases now, up to the rounding of processors."""
    held_out = train_readout.Batches("test", train_readout._HELD_OUT, train_readout._HELD_OUT_SEED, shuffled=False)
    readout = load_readout()
    found, written = readout.evaluate(held_out, beta=train_readout.BETA), readout.history.validation[-1]
    assert (found.n, found.accuracy, found.model_accuracy) == (written.n, written.accuracy, written.model_accuracy)
    assert found.loss == pytest.approx(written.loss, rel=1e-2)  # most of it comes from a few canvases
    assert found.bits == pytest.approx(written.bits, rel=1e-3)
    assert found.objective == pytest.approx(written.objective, rel=1e-3)


def test_the_decision_passes_the_bottleneck() -> None:
    """On canvases of neither training, at least 85 % of the model's accuracy is left, with a tenth of the information
    that the bottleneck lets through before its training."""
    canvases = load_canvases("test", 300, seed=5)
    readout = load_readout()
    found = readout.evaluate([(canvases.images, canvases.labels)])
    assert found.model_accuracy > 0.9 and found.accuracy >= 0.85 * found.model_accuracy  # type: ignore[operator]
    assert found.bits < 0.1 * readout.history.validation[0].bits


def test_the_demo_shows_the_readout_and_it_finds_the_digit(tmp_path: Path) -> None:
    """Its line in the demo is the share of its own maps, which is above both of LayerGradCam's."""
    result = run_demo(tmp_path, show_progress=False)
    canvases = load_canvases("test", 100)
    maps = resize_bits(load_readout().attribute(canvases.images), (64, 64))  # type: ignore[arg-type]
    share = result.inside["LayerReadoutIBA"]
    assert torch.equal(share, share_inside(maps, canvases.boxes))
    gradcam = {name: float(values.mean()) for name, values in result.inside.items() if "GradCam" in name}
    assert len(gradcam) == 2 and all(float(share.mean()) > other for other in gradcam.values())
    assert re.search(rf"^  LayerReadoutIBA +{float(share.mean()):.3f} ", report(result), re.M)


def test_loading_leaves_the_model_alone_and_shares_nothing() -> None:
    """The model given is the one explained; a fresh one is loaded for each readout."""
    model = load_model()
    before = state_of(model)
    images = load_canvases("test", 2).images
    readout = load_readout(model)
    bits = readout.attribute(images)
    assert readout.forward_func is model and readout.layer is model.get_submodule(LAYER) and state_of(model) == before
    first, second = load_readout(), load_readout()
    assert first.forward_func is not second.forward_func
    assert all(torch.equal(bits, other.attribute(images)) for other in (first, second))  # type: ignore[arg-type]


def test_a_missing_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error has the path that was looked at."""
    monkeypatch.setattr("captum_iba.demo.readout.PATH", tmp_path / "none.safetensors")
    with pytest.raises(MissingFileError, match=r"none\.safetensors"):
        load_readout()


@pytest.mark.usefixtures("small")
def test_training_is_reproducible_and_leaves_the_random_state_alone(tmp_path: Path) -> None:
    """The same arguments give the same weights whatever was drawn before, and another seed gives others."""
    state = torch.random.get_rng_state()
    first = network_of(quick_train(max_steps=4), tmp_path / "first")
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(123)
    assert equal(first, network_of(quick_train(max_steps=4), tmp_path / "again"))
    assert not equal(first, network_of(quick_train(max_steps=4, seed=1), tmp_path / "other"))


@pytest.mark.usefixtures("small")
def test_training_lowers_the_held_out_objective() -> None:
    """From the first measure to the last, each epoch."""
    objectives = [each.objective for each in quick_train(epochs=4).history.validation]
    assert len(objectives) == 5 and objectives == sorted(objectives, reverse=True) and len(set(objectives)) == 5


@pytest.mark.usefixtures("small")
def test_training_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """Stopped within an epoch, whose order is drawn, it ends with the weights of an uninterrupted training."""
    path = tmp_path / "checkpoint"
    quick_train(epochs=2, max_steps=2, checkpoint=path)
    found = network_of(quick_train(epochs=2, checkpoint=path), tmp_path / "found")
    assert equal(found, network_of(quick_train(epochs=2), tmp_path / "whole"))


def test_batches_are_the_canvases() -> None:
    """Each pass has every canvas once with its label, the last batch what is left; shuffled ones in another order."""
    canvases = load_canvases("train", 70, seed=4)
    ordered, shuffled = (train_readout.Batches("train", 70, 4, shuffled=each) for each in (False, True))
    assert len(ordered) == len(list(ordered)) == 2 and [len(labels) for _, labels in shuffled] == [64, 6]
    images, labels = (torch.cat(parts) for parts in zip(*ordered, strict=True))
    assert torch.equal(images, canvases.images) and torch.equal(labels, canvases.labels)
    passes = []
    for _ in range(2):
        images, labels = (torch.cat(parts) for parts in zip(*shuffled, strict=True))
        places = [int((canvases.images == image).flatten(1).all(dim=1).nonzero()) for image in images]
        assert sorted(places) == list(range(70)) and torch.equal(labels, canvases.labels[places])
        passes.append(places)
    assert passes[0] != passes[1]


@pytest.mark.usefixtures("small")
def test_command_line_trains_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file has the widths, the printed measures are the first and the last of its history, and it loads."""
    output = tmp_path / "readout.safetensors"
    train_readout.main(["--epochs", "1", "--seed", "4", "--output", str(output)])
    printed = capsys.readouterr().out.splitlines()
    model = load_model()
    readout = LayerReadoutIBA(model, model.get_submodule(LAYER)).load(output)
    first, last = readout.history.validation
    assert (first.step, last.step, last.n) == (0, 3, 30)
    for line, measures in zip(printed, (first, last), strict=False):
        assert line.startswith(f"after {measures.step} steps, 30 held-out canvases: loss {measures.loss:.3f}, ")
        assert f"{measures.bits:.0f} bits, accuracy {measures.accuracy:.3f} " in line
    assert printed[-1] == f"readout written to {output}"
    wanted = train_readout.train(epochs=1, seed=4, show_progress=False)
    assert equal(network_of(readout, tmp_path / "a"), network_of(wanted, tmp_path / "b"))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epochs", "0"], "epochs=0"),
        (["--seed", "-1"], "seed=-1"),
        (["--output", "none/readout"], "no folder none"),
    ],
)
def test_command_line_refuses_bad_arguments(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2 and what is wrong; no file is written."""
    output = ["--output", str(tmp_path / "readout")] if "--output" not in arguments else []
    with pytest.raises(SystemExit) as stop:
        train_readout.main([*arguments, *output])
    assert stop.value.code == 2 and words in capsys.readouterr().err and not list(tmp_path.iterdir())
