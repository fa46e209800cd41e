"""Laws of the demo network, its shipped weights and its training."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from captum_iba.demo import LAYER, DigitsNet, load_canvases, load_model
from captum_iba.demo import train as training
from captum_iba.demo.model import WEIGHTS
from captum_iba.errors import InvalidArgumentError

SHIPPED = files("captum_iba.demo").joinpath(WEIGHTS)


def equal_states(left: nn.Module, right: nn.Module) -> bool:
    """Tell whether two networks have the same weights, bit by bit."""
    one, other = left.state_dict(), right.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def feature_map(model: nn.Module, layer: str, images: Tensor) -> Tensor:
    """Run the model and return the output of one layer."""
    found: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, args, output: found.append(output))
    model(images)
    handle.remove()
    return found[0]


def test_shipped_network_reads_held_out_canvases() -> None:
    pytest.importorskip("sklearn")
    # Other canvases than those whose accuracy the weights file quotes.
    assert training.accuracy(load_model(), load_canvases("test", 500, seed=1)) >= 0.95


def test_shipped_network_looks_at_the_digit_and_not_at_the_clutter() -> None:
    pytest.importorskip("sklearn")
    canvases = load_canvases("test", 200, seed=2)
    inside = torch.zeros(200, 1, 64, 64, dtype=torch.bool)
    for index, (x0, y0, x1, y1) in enumerate(canvases.boxes.tolist()):
        inside[index, 0, y0:y1, x0:x1] = True
    background = canvases.images.median()
    model = load_model()

    def share_right(images: Tensor) -> float:
        with torch.no_grad():
            return int((model(images).argmax(dim=1) == canvases.labels).sum()) / len(canvases)

    assert share_right(canvases.images.where(inside, background)) > 0.9
    assert share_right(canvases.images.where(~inside, background)) < 0.3


def test_shipped_file_is_small_and_described() -> None:
    assert len(SHIPPED.read_bytes()) < 1_000_000
    with safe_open(str(SHIPPED), framework="pt") as weights:
        notes = weights.metadata()
    assert set(notes) == {"steps", "seed", "accuracy"}
    assert float(notes["accuracy"]) >= 0.95


def test_loaded_network_is_ready_for_use() -> None:
    state = torch.random.get_rng_state()
    model = load_model()
    assert torch.equal(state, torch.random.get_rng_state())
    assert not any(module.training for module in model.modules())
    for parameter in model.parameters():
        assert (parameter.dtype, parameter.device.type, parameter.requires_grad) == (torch.float32, "cpu", True)
    assert sum(parameter.numel() for parameter in model.parameters()) <= 200_000


def test_loaded_networks_share_nothing() -> None:
    first, second = load_model(), load_model()
    assert equal_states(first, second)
    with torch.no_grad():
        first.head.bias.add_(1)
    assert not torch.equal(first.head.bias, second.head.bias)
    assert equal_states(second, load_model())


@pytest.mark.parametrize(("layer", "side"), [("stage1", 32), ("stage2", 16), ("stage3", 8)])
def test_feature_maps_are_aligned_with_the_pixels(layer: str, side: int) -> None:
    model = DigitsNet().eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 0.1)  # Nothing cancels, so that every pixel in reach has a gradient.
    images = torch.ones(1, 1, 64, 64, requires_grad=True)
    features = feature_map(model, layer, images)
    assert features.shape[2:] == (side, side)
    middle = side // 2
    (gradient,) = torch.autograd.grad(features[0, 0, middle, middle], images)
    for axis in (2, 3):
        profile = gradient[0, 0].sum(dim=3 - axis)
        place = (profile * torch.arange(64)).sum() / profile.sum()
        assert place.item() == pytest.approx((middle + 0.5) * 64 / side - 0.5, abs=0.01)


def test_layer_has_a_16x16_grid() -> None:
    assert feature_map(load_model(), LAYER, torch.zeros(3, 1, 64, 64)).shape == (3, 32, 16, 16)


def test_examples_do_not_influence_each_other() -> None:
    images = torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    model = load_model()
    torch.testing.assert_close(model(images)[2:3], model(images[2:3]))


def test_training_is_reproducible_and_leaves_the_random_state_alone() -> None:
    pytest.importorskip("sklearn")
    state = torch.random.get_rng_state()
    first = training.train(steps=2, seed=0)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(123)
    assert equal_states(first, training.train(steps=2, seed=0))
    assert not equal_states(first, training.train(steps=2, seed=1))
    assert not first.training


@pytest.mark.parametrize(
    ("steps", "seed", "message"), [(1, 0, "steps is 1, .* between 2 and"), (5, -1, "seed is -1, .* at least 0")]
)
def test_training_refuses_bad_arguments(steps: int, seed: int, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        training.train(steps=steps, seed=seed)


def test_written_weights_are_those_of_the_network(tmp_path: Path) -> None:
    output = tmp_path / "net.safetensors"
    output.write_text("old")
    training.write_weights(load_model(), output, {"steps": "3"})
    assert list(tmp_path.iterdir()) == [output]
    with safe_open(str(output), framework="pt") as weights:
        assert weights.metadata() == {"steps": "3"}
    other = DigitsNet()
    other.load_state_dict(load_file(output))
    assert equal_states(other, load_model())


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*paths: object) -> None:
        raise OSError("disk full")

    output = tmp_path / "net.safetensors"
    output.write_text("old")
    monkeypatch.setattr("captum_iba._files.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        training.write_weights(load_model(), output, {})
    assert [path.name for path in tmp_path.iterdir()] == [output.name]
    assert output.read_text() == "old"


def test_command_line_trains_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    output = tmp_path / "net.safetensors"
    training.main(["--steps", "2", "--seed", "4", "--output", str(output)])
    with safe_open(str(output), framework="pt") as weights:
        notes = weights.metadata()
    assert (notes["steps"], notes["seed"]) == ("2", "4")
    assert f"held-out accuracy: {float(notes['accuracy']):.1%}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--steps", "1"], "steps is 1"), (["--seed", "-1"], "seed is -1"), (["--output", "none/w"], "no folder none")],
)
def test_command_line_refuses_bad_arguments(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        training.main(arguments)
    assert words in capsys.readouterr().err
