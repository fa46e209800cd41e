import gc
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from captum_iba import FeatureStatistics, LayerIBA
from captum_iba.errors import InvalidTypeError, StatisticsError
from tests.literal import literal_iba, normal, small_cnn


@pytest.fixture(scope="module")
def cnn():
    return small_cnn()


@pytest.fixture(scope="module")
def calibrated(cnn):
    return LayerIBA(cnn, cnn[2]).estimate(normal(1200, 3, 10, 10, seed=9))


@pytest.mark.parametrize("index", [0, 2, 5])
@pytest.mark.parametrize("settings_", [{}, {"beta": 1.0, "sigma": 0.0}, {"n_steps": 3, "n_samples": 4, "seed": 7}])
def test_equals_the_literal_implementation(cnn, index, settings_):
    """Same noise, same parameters, float64: the bits are those of the paper's plain loop, to 1e-9 bits."""
    layer = cnn[index]
    iba = LayerIBA(cnn, layer).estimate(normal(1200, 3, 10, 10, seed=9))
    statistics = iba.statistics
    for i, x in enumerate(normal(2, 3, 10, 10, seed=index).split(1)):
        found = iba.attribute(x, target=i, attr_dim_summation=False, **settings_)
        wanted = literal_iba(cnn, layer, x, i, statistics.mean, statistics.std, **settings_)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def test_batch_of_eight_equals_eight_singles(calibrated):
    """Each example has its own mask; the batch around it does not matter."""
    x, targets = normal(8, 3, 10, 10, seed=3), [0, 1, 2, 3, 3, 2, 1, 0]
    together = calibrated.attribute(x, target=targets)
    alone = torch.cat([calibrated.attribute(x[i : i + 1], target=targets[i]) for i in range(8)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)


class Tokens(nn.Module):
    """A linear layer over tokens, (N, T, D)."""

    def __init__(self, width):
        super().__init__()
        self.layer, self.head = nn.Linear(2, width), nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.layer(x).tanh()).mean(dim=1)


def model_of(kind, width, sizes):
    """A small model with random weights, its layer, the shape of its inputs and of its summed attribution."""
    generator = torch.Generator().manual_seed(1)
    if kind == "tokens":
        model = Tokens(width)
        layer, inputs, summed = model.layer, (sizes[0], 2), (sizes[0], 1)
    else:
        n_axes = {"vector": 0, "conv1d": 1, "conv2d": 2, "conv3d": 3}[kind]
        first = nn.Linear(2, width) if n_axes == 0 else (nn.Conv1d, nn.Conv2d, nn.Conv3d)[n_axes - 1](2, width, 1)
        positions = tuple(sizes[:n_axes])
        model = nn.Sequential(first, nn.Tanh(), nn.Flatten(), nn.Linear(width * math.prod(positions), 3))
        layer, inputs, summed = first, (2, *positions), (1, *positions)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model.double().eval(), layer, inputs, summed


@settings(max_examples=60)
@given(
    kind=st.sampled_from(["vector", "tokens", "conv1d", "conv2d", "conv3d"]),
    n=st.integers(1, 3),
    width=st.integers(1, 4),
    sizes=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    n_samples=st.integers(1, 3),
    target=st.integers(0, 2),
)
@pytest.mark.filterwarnings("ignore:sigma=")
def test_laws_hold_for_any_shape(kind, n, width, sizes, n_samples, target):
    """For any shape: bits are finite and not negative, batch equals singles, both sums agree, results repeat."""
    model, layer, shape, summed = model_of(kind, width, sizes)
    iba = LayerIBA(model, layer).estimate(normal(50, *shape, seed=4))
    x = normal(n, *shape, seed=5)
    keywords = {"target": target, "n_samples": n_samples, "n_steps": 3}
    bits = iba.attribute(x, **keywords)
    full = iba.attribute(x, attr_dim_summation=False, **keywords)
    assert bits.shape == (n, *summed)
    assert torch.isfinite(full).all()
    assert (full >= 0).all()
    assert bits.is_contiguous()
    assert not bits.requires_grad
    torch.testing.assert_close(bits.flatten(1).sum(dim=1), full.flatten(1).sum(dim=1))
    assert torch.equal(full, iba.attribute(x, attr_dim_summation=False, **keywords))
    last = iba.attribute(x[-1:], attr_dim_summation=False, **keywords)
    torch.testing.assert_close(full[-1:], last, rtol=0, atol=1e-9)


def test_map_is_about_the_target(calibrated):
    """The map is not constant and another target gives another one."""
    x = normal(2, 3, 10, 10, seed=3)
    first, second = (calibrated.attribute(x, target=t) for t in (0, 1))
    assert first.std() > 0.01
    assert not torch.allclose(first, second, atol=0.1)


def test_more_beta_fewer_bits(calibrated):
    """The information falls as its weight rises."""
    x = normal(2, 3, 10, 10, seed=3)
    totals = [calibrated.attribute(x, target=0, beta=beta, n_steps=30).sum() for beta in (0.01, 0.1, 1.0, 10.0, 100.0)]
    assert all(high > low for high, low in zip(totals, totals[1:], strict=False))


def test_open_bottleneck_is_the_model(calibrated, cnn):
    """Opened, what reaches the output is the model's own probability."""
    x = normal(3, 3, 10, 10, seed=3)
    with torch.no_grad():
        own = cnn(x).softmax(dim=1)[:, 1]
    _, record = calibrated.attribute(
        x, target=1, beta=0.0, n_steps=1, learning_rate=1e-9, initial_alpha=60.0, return_diagnostics=True
    )
    torch.testing.assert_close(record.target_probability, own, rtol=1e-9, atol=1e-9)


def test_closed_bottleneck_has_zero_bits(calibrated):
    """Closed completely, nothing passes."""
    bits = calibrated.attribute(normal(2, 3, 10, 10), target=1, n_steps=1, initial_alpha=-800.0, learning_rate=1e-9)
    assert not bits.any()


def test_diagnostics_agree_with_the_bits(calibrated):
    """The record's totals are the map's, and its course starts at five nats an element of unit variance."""
    x = normal(3, 3, 10, 10, seed=3)
    bits, record = calibrated.attribute(x, target=1, return_diagnostics=True)
    torch.testing.assert_close(record.total_bits, bits.flatten(1).sum(dim=1))
    assert record.objective.shape == record.information.shape == (10, 3)
    assert (record.information.diff(dim=0) < 0).all()
    assert record.channel_dim == 1
    assert record.forward_mode == "replay"
    _, longer = calibrated.attribute(x, target=1, n_steps=11, return_diagnostics=True)
    torch.testing.assert_close(longer.information[10], record.total_bits)


@pytest.mark.parametrize("internal_batch_size", [2, 3, 7, 100])
def test_internal_batch_size_changes_only_memory(calibrated, internal_batch_size):
    """Fewer rows at once give the same bits."""
    x = normal(2, 3, 10, 10, seed=3)
    wanted = calibrated.attribute(x, target=1)
    found = calibrated.attribute(x, target=1, internal_batch_size=internal_batch_size)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def test_internal_batch_size_below_the_batch_warns(calibrated):
    """It cannot fall below the number of examples, as in Captum, and says so."""
    with pytest.warns(UserWarning, match="internal_batch_size=1 is below the 2 examples"):
        calibrated.attribute(normal(2, 3, 10, 10), target=1, internal_batch_size=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_other_dtypes_follow_float64(calibrated, cnn, dtype):
    """Half-precision models give finite bits close to float64's, computed in float32."""
    model = small_cnn().to(dtype)
    iba = LayerIBA(model, model[2], statistics=calibrated.statistics)
    x = normal(2, 3, 10, 10, seed=3).to(dtype)
    bits = iba.attribute(x, target=1, n_steps=6)
    wanted = calibrated.attribute(x.double(), target=1, n_steps=6)
    assert bits.dtype == torch.float32
    correlation = torch.corrcoef(torch.stack([bits.double().flatten(), wanted.flatten()]))[0, 1]
    assert correlation > (0.98 if dtype != torch.float32 else 0.99999)


def test_under_no_grad_with_frozen_parameters(calibrated):
    """Neither no_grad around the call nor frozen parameters change a bit."""
    x = normal(1, 3, 10, 10, seed=3)
    wanted = calibrated.attribute(x, target=1)
    frozen = small_cnn().requires_grad_(False)
    with torch.no_grad():
        found = LayerIBA(frozen, frozen[2], statistics=calibrated.statistics).attribute(x, target=1)
    assert torch.equal(found, wanted)


def test_inplace_relu_after_the_layer(calibrated):
    """An in-place successor sees and changes its own copy of the features only."""
    x = normal(1, 3, 10, 10, seed=3)
    plain = small_cnn(inplace=False)
    wanted = LayerIBA(plain, plain[2], statistics=calibrated.statistics).attribute(x, target=1)
    assert torch.equal(calibrated.attribute(x, target=1), wanted)


def test_training_mode_is_put_back_exactly():
    """Training modules are warned about once, run in evaluation mode, and get their own flags back."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 64, 3))
    model.train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    iba = LayerIBA(model, model[0])
    x = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="in training mode") as caught:
        iba.estimate(torch.cat([x] * 3))
        first = iba.attribute(x, target=0)
    assert sum("in training mode" in str(w.message) for w in caught) == 1
    assert flags == [module.training for module in model.modules()]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model.eval()
    assert torch.equal(first, iba.attribute(x, target=0))


def test_without_statistics_each_example_stands_in_for_itself(cnn):
    """The one-liner works, says once that the bits are then no bound, and batch still equals single."""
    iba = LayerIBA(cnn, cnn[2])
    x = normal(3, 3, 10, 10, seed=3)
    with pytest.warns(UserWarning, match=r"no feature statistics .* estimate") as caught:
        together = iba.attribute(x, target=1)
        alone = torch.cat([iba.attribute(x[i : i + 1], target=1) for i in range(3)])
    assert len(caught) == 1
    assert iba.statistics is None
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)


def test_constant_features_without_statistics_name_estimate():
    """Where an example's features are constant, the stand-in fails and names estimate."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(18, 2)).eval()
    with pytest.raises(StatisticsError, match="estimate"), pytest.warns(UserWarning, match="no feature statistics"):
        LayerIBA(model, model[0]).attribute(torch.zeros(1, 1, 3, 3), target=0)


def test_features_far_from_the_statistics_are_warned_about(calibrated, cnn):
    """Inputs of another scale than the calibration data are noticed."""
    iba = LayerIBA(cnn, cnn[2], statistics=calibrated.statistics)
    with pytest.warns(UserWarning, match="standard deviations from the statistics"):
        iba.attribute(100 * normal(1, 3, 10, 10), target=1)


def test_objectives_agree(calibrated, cnn):
    """Logits, probabilities, log-probabilities, a scalar log-likelihood and a callable loss are the same objective."""
    x = normal(2, 3, 10, 10, seed=3)
    wanted = calibrated.attribute(x, target=1)

    class Ending(nn.Module):
        def __init__(self, end):
            super().__init__()
            self.body, self.end = cnn, end

        def forward(self, x):
            return self.end(self.body(x))

    def bits(end, **keywords):
        return LayerIBA(Ending(end).eval(), cnn[2], statistics=calibrated.statistics).attribute(x, **keywords)

    def loss(output, target):
        return nn.functional.cross_entropy(output, torch.full((len(output),), target), reduction="none")

    def log_likelihood(output):
        return output.log_softmax(dim=1)[:, 1]

    found = [
        bits(nn.Softmax(dim=1), target=1, objective="probability"),
        bits(nn.LogSoftmax(dim=1), target=1, objective="log_probability"),
        bits(log_likelihood),
        bits(lambda output: log_likelihood(output)[:, None]),
        bits(nn.Identity(), target=1, objective=loss),
        bits(
            lambda output: output.reshape(-1, 2, 2).repeat(1, 1, 1),
            target=(1,),
            objective=lambda o, _t: loss(o.flatten(1), 1),
        ),
        bits(lambda output: output[:, None, :], target=(0, 1), class_dim=2),
    ]
    for other in found:
        torch.testing.assert_close(other, wanted, rtol=0, atol=1e-9)


def test_input_side_equals_output_side_of_the_module_before(calibrated, cnn):
    """The bottleneck at a layer's input is the one at its predecessor's output."""
    x = normal(2, 3, 10, 10, seed=3)
    wanted = calibrated.attribute(x, target=1)
    model = small_cnn(inplace=False)
    iba = LayerIBA(model, model[3])
    iba.estimate(normal(1200, 3, 10, 10, seed=9), attribute_to_layer_input=True)
    torch.testing.assert_close(iba.statistics.mean, calibrated.statistics.mean)
    found = iba.attribute(x, target=1, attribute_to_layer_input=True)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def test_statistics_belong_to_layer_and_side(calibrated, cnn, tmp_path):
    """Reassigning the layer hides other layers' statistics and brings them back."""
    iba = LayerIBA(cnn, cnn[2], statistics=calibrated.statistics)
    iba.layer = cnn[5]
    assert iba.statistics is None
    with pytest.raises(StatisticsError, match="no statistics to save"):
        iba.save_statistics(tmp_path / "none.safetensors")
    iba.layer = cnn[2]
    assert iba.statistics is calibrated.statistics
    iba.save_statistics(tmp_path / "some.safetensors")
    loaded = LayerIBA(cnn, cnn[2]).load_statistics(tmp_path / "some.safetensors")
    assert isinstance(loaded.statistics, FeatureStatistics)
    x = normal(1, 3, 10, 10)
    assert torch.equal(loaded.attribute(x, target=1), calibrated.attribute(x, target=1))


def test_dead_neurons_do_not_poison_the_map(cnn):
    """A layer with dead and constant channels gives finite bits, none of them on these channels."""
    model = small_cnn()
    with torch.no_grad():
        model[2].weight[:2] = 0
        model[2].bias[0], model[2].bias[1] = -1.0, 3.0
    iba = LayerIBA(model, model[2]).estimate(normal(1200, 3, 10, 10, seed=9))
    bits, record = iba.attribute(normal(2, 3, 10, 10), target=1, attr_dim_summation=False, return_diagnostics=True)
    assert torch.isfinite(bits).all()
    assert not bits[:, :2].any()
    assert record.inactive_share == pytest.approx(2 / 8)
    assert LayerIBA(model, model[2]).get_name() == "Layer IBA"


def test_progress_only_on_request(calibrated, capsys):
    """A bar over the steps appears on request, and nothing otherwise."""
    x = normal(1, 3, 10, 10)
    calibrated.attribute(x, target=1)
    assert capsys.readouterr().err == ""
    calibrated.attribute(x, target=1, show_progress=True)
    assert "Layer IBA attribution" in capsys.readouterr().err


def test_a_hundred_calls_leave_memory_where_it_was(calibrated):
    """No tensor of a call outlives it."""

    def tensors():
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    x = normal(1, 3, 10, 10)
    calibrated.attribute(x, target=1, n_steps=1, n_samples=1)
    before = tensors()
    for seed in range(100):
        calibrated.attribute(x, target=1, n_steps=1, n_samples=1, seed=seed)
    assert tensors() == before


def test_autocast_reaches_the_model_and_nothing_else(calibrated):
    """Under autocast the model runs in bfloat16 and the information stays in float32; the bits hardly change."""
    model = small_cnn().float()
    iba = LayerIBA(model, model[2], statistics=calibrated.statistics)
    x = normal(2, 3, 10, 10, seed=3).float()
    wanted = iba.attribute(x, target=1, n_steps=6)
    dtypes = []
    handle = model[5].register_forward_hook(lambda _m, _i, output: dtypes.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = iba.attribute(x, target=1, n_steps=6)
    handle.remove()
    assert set(dtypes) == {torch.bfloat16}
    assert found.dtype == torch.float32
    assert torch.corrcoef(torch.stack([found.flatten(), wanted.flatten()]))[0, 1] > 0.98


def test_statistics_of_another_type_are_refused(cnn):
    """A path or a tuple is no FeatureStatistics; the message names load_statistics."""
    with pytest.raises(InvalidTypeError, match="found str.*load_statistics"):
        LayerIBA(cnn, cnn[2], statistics="layer.safetensors")


def test_large_batches_run_in_parts_on_the_cpu(calibrated, cnn):
    """By default no more than 40 rows go through the model at once on the CPU, and no part changes the bits."""
    rows = []
    handle = cnn[5].register_forward_hook(lambda _m, _i, output: rows.append(len(output)))
    x = normal(8, 3, 10, 10, seed=3)
    found = calibrated.attribute(x, target=1, n_steps=2)
    handle.remove()
    assert max(rows) == 40
    whole = calibrated.attribute(x, target=1, n_steps=2, internal_batch_size=1000)
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-9)
