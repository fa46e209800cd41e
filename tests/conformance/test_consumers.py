"""What Captum builds on attribution methods works on LayerIBA, IBA and LayerReadoutIBA, and gives what it should."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerAttribution, NoiseTunnel
from captum.attr import visualization as viz
from captum.concept import TCAV, Concept
from captum.concept._utils.classifier import Classifier
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor, nn
from torch.utils.data import DataLoader

from captum_iba import IBA, LayerIBA
from captum_iba.errors import DeviceError
from tests.conformance._adapter import QUICK, FittedLayerReadoutIBA

PER_SAMPLE = pytest.mark.parametrize("kind", [LayerIBA, IBA])
METHODS = pytest.mark.parametrize("kind", [LayerIBA, IBA, FittedLayerReadoutIBA])


def images(n: int = 4, channels: int = 2) -> Tensor:
    return torch.randn(n, channels, 8, 8, dtype=torch.float64)


@pytest.fixture
def model() -> nn.Sequential:
    """Two convolutions, the second of half the input's size, and a decision that depends on the input."""
    first, second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 5, 2, stride=2)
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(80, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.5)
    return model.double().eval()


@pytest.fixture
def x(model: nn.Sequential) -> Tensor:
    """Inputs, drawn after the model."""
    return images()


@pytest.fixture
def iba(model: nn.Sequential, x: Tensor) -> IBA:
    """Calibrated at the second convolution."""
    return IBA(model, model[2]).estimate(images(50))


# NoiseTunnel


@METHODS
@pytest.mark.parametrize("target", [1, [0, 1, 2, 1], torch.tensor([0, 1, 2, 1])])
def test_noise_tunnel_without_noise_equals_the_plain_call(
    kind: type, target: Any, model: nn.Sequential, x: Tensor
) -> None:
    """The mean over samples that are all the input itself is the plain map."""
    method = kind(model, model[2]).estimate(images(50))
    plain = method.attribute(x, target=target, **QUICK)
    smooth = NoiseTunnel(method).attribute(x, target=target, stdevs=0.0, nt_samples=4, **QUICK)
    torch.testing.assert_close(smooth, plain, rtol=0.0, atol=1e-10)
    assert plain.flatten(1).std(dim=1).min() > 1e-3


@METHODS
def test_noise_tunnel_is_the_mean_over_noisy_inputs(kind: type, model: nn.Sequential, x: Tensor) -> None:
    """With noise the result is the mean of the maps of the noisy inputs, which are recorded on their way in."""
    seen: list[Tensor] = []

    class Recorder(kind):  # type: ignore[misc, valid-type]
        def attribute(self, inputs: Tensor, **kwargs: Any) -> Tensor:
            seen.append(inputs)
            return kind.attribute(self, inputs, **kwargs)

        attribute.__wrapped__ = attribute  # type: ignore[attr-defined]

    method = Recorder(model, model[2]).estimate(images(50))
    smooth = NoiseTunnel(method).attribute(x[:2], target=[0, 2], stdevs=0.5, nt_samples=4, **QUICK)
    noisy = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    by_hand = [
        kind.attribute(method, noisy[4 * i : 4 * i + 4], target=target, **QUICK).mean(dim=0)
        for i, target in enumerate([0, 2])
    ]
    torch.testing.assert_close(smooth, torch.stack(by_hand), rtol=0.0, atol=1e-10)
    assert not torch.allclose(noisy[0], noisy[1])


@METHODS
def test_no_grad_around_the_call_changes_nothing(kind: type, model: nn.Sequential, x: Tensor) -> None:
    """Under torch.no_grad the map is, bit for bit, that of a call outside."""
    method = kind(model, model[2]).estimate(images(50))
    plain = method.attribute(x, target=1, **QUICK)
    with torch.no_grad():
        assert torch.equal(method.attribute(x, target=1, **QUICK), plain)


# TCAV


class MeanDifference(Classifier):
    """The simplest linear classifier of two concepts: the difference of their means."""

    def __init__(self) -> None:
        self._weights = torch.zeros(0)

    def train_and_eval(self, dataloader: DataLoader, **kwargs: Any) -> None:
        pairs = list(dataloader)
        values, labels = torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])
        difference = values[labels == 0].mean(dim=0) - values[labels == 1].mean(dim=0)
        self._weights = torch.stack([difference, -difference])

    def weights(self) -> Tensor:
        return self._weights

    def classes(self) -> list[int]:
        return [0, 1]


def test_tcav_runs_and_keeps_the_statistics_of_each_layer(tmp_path: Path, model: nn.Sequential, x: Tensor) -> None:
    """TCAV reassigns ``layer`` on the live object; each layer keeps its statistics, and scores follow from its map."""
    concepts = [Concept(i, f"concept{i}", DataLoader(list(images(6) + 2.0 * i), batch_size=3)) for i in range(2)]
    iba, kept = LayerIBA(model, None), {}
    for layer in ("0", "2"):
        iba.layer = model.get_submodule(layer)
        kept[layer] = iba.estimate(images(50)).statistics
    iba.layer = None
    tcav = TCAV(
        model, layers=["0", "2"], classifier=MeanDifference(), layer_attr_method=iba, save_path=str(tmp_path / "cav")
    )
    scores = tcav.interpret(x, [concepts], target=1, attr_dim_summation=False, **QUICK)["0-1"]
    assert iba.layer is model[2]
    for layer in ("0", "2"):
        iba.layer = model.get_submodule(layer)
        assert iba.statistics is kept[layer]
        direction = tcav.cavs["0-1"][layer].stats["weights"].float()
        bits = iba.attribute(x, target=1, attr_dim_summation=False, **QUICK).flatten(1).float()
        torch.testing.assert_close(scores[layer]["magnitude"], (bits @ direction.T).mean(dim=0), rtol=1e-4, atol=1e-6)
    assert kept["0"].mean.shape != kept["2"].mean.shape


# copies


@PER_SAMPLE
def test_a_copy_with_another_function_leaves_the_original_alone(kind: type, model: nn.Sequential, x: Tensor) -> None:
    """Reassigning forward_func on a shallow copy changes what the copy explains, and nothing of the original."""
    method = kind(model, model[2]).estimate(images(50))
    plain = method.attribute(x, target=1, **QUICK)
    other = copy.copy(method)
    other.forward_func = lambda inputs: -model(inputs)
    changed = other.attribute(x, target=1, **QUICK)
    assert method.forward_func is model
    assert torch.equal(method.attribute(x, target=1, **QUICK), plain)
    assert (changed - plain).abs().max() > 0.01 * plain.max()


@PER_SAMPLE
def test_a_copy_and_its_original_share_statistics(kind: type, model: nn.Sequential) -> None:
    """Whichever of the two is calibrated, before or after copying, both have the new statistics."""
    method = kind(model, model[2])
    other = copy.copy(method)
    assert method.statistics is None
    first = method.estimate(images(20)).statistics
    assert first is not None
    assert other.statistics is first
    second = other.estimate(images(20)).statistics
    assert second is not first
    assert method.statistics is second


def test_a_copy_with_another_layer_has_statistics_of_its_own(model: nn.Sequential) -> None:
    """Statistics belong to a layer: a copy moved to another layer has none until it is calibrated."""
    iba = LayerIBA(model, model[2]).estimate(images(20))
    other, kept = copy.copy(iba), iba.statistics
    other.layer = model[0]
    assert other.statistics is None
    other.estimate(images(20))
    assert other.statistics is not None
    assert iba.statistics is kept


def test_a_copy_of_a_readout_shares_what_was_estimated_and_trained(model: nn.Sequential, x: Tensor) -> None:
    """Whichever is calibrated and trained, before or after copying, both have it; another function stays apart."""
    method = FittedLayerReadoutIBA(model, model[2])
    other = copy.copy(method)
    method.estimate(images(20))
    assert other.statistics == method.statistics != {}
    assert other.history is method.history
    plain = method.attribute(x)
    assert torch.equal(other.attribute(x), plain)
    other.forward_func = lambda inputs: model(inputs + 1.0)
    assert method.forward_func is model
    assert not torch.allclose(other.attribute(x), plain, rtol=0.01)
    assert torch.equal(method.attribute(x), plain)
    other.layer = model[0]
    assert other.statistics is None and method.statistics is not None


def test_tcav_takes_a_readout_for_each_layer(tmp_path: Path, model: nn.Sequential, x: Tensor) -> None:
    """TCAV reassigns ``layer`` on the live object; each layer keeps its network, and scores follow from its map."""
    concepts = [Concept(i, f"concept{i}", DataLoader(list(images(6) + 2.0 * i), batch_size=3)) for i in range(2)]
    readout, kept = FittedLayerReadoutIBA(model, None), {}
    for layer in ("0", "2"):
        readout.layer = model.get_submodule(layer)
        kept[layer] = readout.estimate(images(50)).attribute(x, attr_dim_summation=False)
    readout.layer = None
    tcav = TCAV(
        model, layers=["0", "2"], classifier=MeanDifference(), layer_attr_method=readout, save_path=str(tmp_path / "c")
    )
    scores = tcav.interpret(x, [concepts], target=1, attr_dim_summation=False)["0-1"]
    for layer, bits in kept.items():
        direction = tcav.cavs["0-1"][layer].stats["weights"].float()
        wanted = (bits.flatten(1).float() @ direction.T).mean(dim=0)
        torch.testing.assert_close(scores[layer]["magnitude"], wanted, rtol=1e-4, atol=1e-6)
        assert wanted.abs().max() > 1e-3


# metrics


def subtract_fixed_noise(inputs: Any) -> tuple[Any, Any]:
    """Perturbation that depends on the number of rows alone."""
    tensor = inputs[0] if isinstance(inputs, tuple) else inputs
    noise = 0.3 * torch.randn(tensor.shape, dtype=tensor.dtype, generator=torch.Generator().manual_seed(1))
    return ((noise,), (tensor - noise,)) if isinstance(inputs, tuple) else (noise, tensor - noise)


def test_infidelity_takes_the_maps(model: nn.Sequential, iba: IBA, x: Tensor) -> None:
    """Normalised infidelity is finite per example, free of the map's unit, and tells one map from another."""
    bits = iba.attribute(x, target=1, **QUICK)

    def score(attributions: Tensor) -> Tensor:
        return infidelity(model, subtract_fixed_noise, x, attributions, target=1, n_perturb_samples=5, normalize=True)

    assert score(bits).shape == (len(x),)
    assert torch.isfinite(score(bits)).all()
    torch.testing.assert_close(score(3.0 * bits), score(bits), rtol=1e-6, atol=1e-9)
    assert (score(bits) - score(torch.ones_like(bits))).abs().max() > 1e-3


@pytest.mark.parametrize("n", [1, 4])
def test_sensitivity_max_equals_a_loop(iba: IBA, x: Tensor, n: int) -> None:
    """Captum's maximum sensitivity is the largest relative change of the map, one perturbed example at a time."""
    n_samples, radius = 3, 0.2
    pattern = torch.randn(n_samples, *x.shape[1:], dtype=x.dtype)

    def perturb(inputs: Any, perturb_radius: float) -> Any:
        tensor = inputs[0] if isinstance(inputs, tuple) else inputs
        shifted = tensor + perturb_radius * pattern.repeat(len(tensor) // n_samples, 1, 1, 1)
        return (shifted,)

    found = sensitivity_max(
        iba.attribute,
        x[:n],
        perturb_func=perturb,
        perturb_radius=radius,
        n_perturb_samples=n_samples,
        target=1,
        **QUICK,
    )
    wanted = []
    for example in x[:n].unsqueeze(1):
        plain = iba.attribute(example, target=1, **QUICK)
        moved = [iba.attribute(example + radius * p, target=1, **QUICK) for p in pattern]
        wanted.append(max(torch.linalg.norm(m - plain) / torch.linalg.norm(plain) for m in moved))
    torch.testing.assert_close(found, torch.stack(wanted), rtol=0.0, atol=1e-5)
    assert found.min() > 1e-3


# plots and sizes


def test_captum_draws_the_map(iba: IBA, x: Tensor) -> None:
    """Captum draws the sum of the bits over the channels, cut at the value where 95 % of the total is reached."""
    bits = iba.attribute(x, target=1, **QUICK)[0].permute(1, 2, 0).numpy()
    figure, axis = viz.visualize_image_attr(
        bits, None, method="heat_map", sign="positive", outlier_perc=5, use_pyplot=False
    )
    drawn = np.asarray(axis.images[0].get_array())
    figure.clear()
    total = bits.sum(axis=2)
    in_order = np.sort(total, axis=None)
    unit = in_order[np.searchsorted(in_order.cumsum(), 0.95 * total.sum())]
    np.testing.assert_allclose(drawn, np.minimum(total / unit, 1.0), rtol=0.0, atol=1e-6)
    assert drawn.std() > 0.05


@pytest.mark.parametrize("kind", [LayerIBA, FittedLayerReadoutIBA])
def test_captum_interpolates_the_map(kind: type, model: nn.Sequential, x: Tensor) -> None:
    """Captum's nearest interpolation to twice the size repeats each position's bits."""
    method = kind(model, model[2]).estimate(images(50))
    bits = method.attribute(x, target=1, **QUICK)
    assert bits.shape == (4, 1, 4, 4)
    wanted = bits.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert torch.equal(LayerAttribution.interpolate(bits, (8, 8)), wanted)
    assert torch.equal(method.interpolate(bits, (8, 8)), wanted)


# parallel and compiled models


def wrappings(model: nn.Module) -> Iterator[tuple[Callable[..., Tensor], list[int] | None]]:
    """The ways to hand over a data-parallel model on a host with one device."""
    parallel = nn.DataParallel(model)
    parallel.device_ids = []  # what a host without CUDA has
    model.cpu()
    yield parallel, None
    yield parallel, []
    yield parallel.forward, None


@METHODS
def test_data_parallel_on_one_device_equals_the_plain_model(kind: type, model: nn.Sequential, x: Tensor) -> None:
    """The wrapped model, whole or as a bound forward, gives bit for bit the map of the model itself."""
    data = images(50)
    plain = kind(model, model[2]).estimate(data).attribute(x, target=1, **QUICK)
    for forward_func, ids in wrappings(model):
        method = kind(forward_func, model[2], device_ids=ids).estimate(data)
        assert torch.equal(method.attribute(x, target=1, **QUICK), plain)


@METHODS
def test_several_devices_are_refused(kind: type, model: nn.Sequential, x: Tensor) -> None:
    """Two device ids, the constructor's or the wrapper's own, are a DeviceError in both estimate and attribute."""
    parallel = nn.DataParallel(model)
    parallel.device_ids = [0, 1]
    for method in (
        kind(model, model[2], device_ids=[0, 1]),
        kind(parallel, model[2]),
        kind(parallel.forward, model[2]),
    ):
        with pytest.raises(DeviceError):
            method.estimate(x)
        with pytest.raises(DeviceError):
            method.attribute(x, target=1)
        assert method.statistics is None


@METHODS
@pytest.mark.parametrize("compiled_first", [True, False])
def test_a_compiled_model_equals_the_eager_one(
    kind: type, compiled_first: bool, model: nn.Sequential, x: Tensor
) -> None:
    """Whether compilation happens before or during the call, the map and later outputs are those of the eager model."""
    data = images(50)
    wanted = kind(model, model[2]).estimate(data).attribute(x, target=1, **QUICK)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager")
    if compiled_first:
        compiled(x)
    method = kind(compiled, model[2]).estimate(data)
    torch.testing.assert_close(method.attribute(x, target=1, **QUICK), wanted, rtol=0.0, atol=1e-10)
    torch.testing.assert_close(compiled(x), model(x), rtol=0.0, atol=1e-12)
    assert wanted.flatten(1).std(dim=1).min() > 1e-3
