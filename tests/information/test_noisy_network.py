import math

import pytest
import torch
from torch import nn

from captum_iba.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    LayerNotExecutedError,
    NonFiniteError,
    NoTensorError,
)
from captum_iba.information import noisy_network_information
from captum_iba.information.noise_channel import SamplePropagation


def linear_chain(*gains):
    """Scalars that are multiplied, with a place for noise after each."""
    layers = []
    for gain in gains:
        linear = nn.Linear(1, 1, bias=False).double()
        nn.init.constant_(linear.weight, gain)
        layers += [linear, nn.Identity()]
    return nn.Sequential(*layers)


def normal(n, d=1, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_linear_chain():
    """T_l = g_l T_{l-1} + noise of a normal X is jointly normal: 1/2 ln(1 + signal variance / noise variance) each."""
    noise_var, gains = 0.1, (1.0, 0.8, 0.7)
    found = noisy_network_information(
        linear_chain(*gains), ["1", "3", "5"], normal(2000), noise_var, n_inputs=32, n_passes=400, unit="nats"
    )
    signal, noise = 1.0, 0.0
    for gain, estimate in zip(gains, found.values(), strict=True):
        signal, noise = signal * gain**2, noise * gain**2 + noise_var
        exact = 0.5 * math.log(1 + signal / noise)
        assert float(estimate.value) == pytest.approx(exact, abs=0.06)
        assert abs(float(estimate.value) - exact) < 3 * float(estimate.standard_error) + 0.03
    values = [float(estimate.value) for estimate in found.values()]
    assert values == sorted(values, reverse=True)  # data processing


def test_first_layer_is_sample_propagation():
    """Before any noise is passed on, it is the noise channel's estimate: h(T | X) is the noise's own entropy."""
    x = normal(1000)
    (found,) = noisy_network_information(linear_chain(1.0), ["1"], x, 0.1, n_draws=5, unit="nats").values()
    channel = SamplePropagation(0.1).estimate(x, x, torch.Generator().manual_seed(3))
    assert float(found.value) == pytest.approx(float(channel.value), abs=0.02)
    assert float(found.standard_error) == pytest.approx(float(channel.standard_error), rel=0.1)
    assert float(found.cap) == pytest.approx(math.log(1000))


def test_too_few_passes_are_said():
    """Noise that spreads far wider than the next layer's needs many passes; the estimate says that it is too high."""
    found = noisy_network_information(linear_chain(1.0, 1e4), ["1", "3"], normal(100), 0.1, n_inputs=4, n_passes=8)
    assert found["1"].warnings == ()
    assert "raise n_passes" in found["3"].warnings[0]


def test_state_and_randomness():
    """The seed decides; the model and the global random state are left as they were."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Tanh())
    before = torch.random.get_rng_state()
    options = {"n_inputs": 3, "n_passes": 8, "noise_var": 0.1}
    x = normal(50, 2).float()
    first, second, other = (
        float(noisy_network_information(model, ["2"], x, seed=seed, **options)["2"].value) for seed in (1, 1, 2)
    )
    assert first == second != other
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(module.training and not module._forward_hooks for module in model.modules())


class Pair(nn.Module):
    """A tuple, to which no noise can be added."""

    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"noise_var": 0}, InvalidArgumentError, "noise_var=0"),
        ({"n_passes": 1}, InvalidArgumentError, "n_passes=1"),
        ({"n_inputs": 1}, InvalidArgumentError, "n_inputs=1"),
        ({"unit": "bans"}, InvalidArgumentError, "unit="),
        ({"x": torch.ones(1, 2)}, InvalidArgumentError, "at least two inputs"),
        ({"x": [1]}, InvalidTypeError, "x is a list"),
        ({"x": torch.ones(5, 2).index_fill(0, torch.tensor(3), math.nan)}, NonFiniteError, "infinity for input 3"),
        ({"layers": ["7"]}, LayerNotExecutedError, "is no layer"),
        ({"layers": ["1"]}, NoTensorError, "to which no noise can be added"),
    ],
)
def test_mistakes(change, error, message):
    """What cannot be used is named, and no hook is left."""
    model = nn.Sequential(nn.Linear(2, 2), Pair())
    with pytest.raises(error, match=message):
        noisy_network_information(**{"model": model, "layers": ["0"], "x": torch.ones(5, 2), **change})
    assert all(not module._forward_hooks for module in model.modules())
