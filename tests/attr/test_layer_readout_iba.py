"""Laws of LayerReadoutIBA.attribute: its map is the trained network's, for any kind of layer, at one forward pass."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captum_iba.attr import LayerReadoutIBA
from captum_iba.errors import NotTrainedError, TargetError, TargetIndexError
from tests.literal import blur_matrix, normal, small_cnn

TRAINING = {"epochs": 4, "learning_rate": 0.02, "beta": 1.0, "show_progress": False}


def trained(model, layer, inputs=None, per="auto", **kwargs):
    """A network of small width, trained until its mask depends on the features."""
    calibration = normal(160, 3, 10, 10, seed=9) if inputs is None else inputs(160)
    readout = LayerReadoutIBA(model, layer, **{"hidden_channels": (8, 8)} | kwargs).estimate(calibration, per=per)
    batches = calibration.split(20) if isinstance(calibration, torch.Tensor) else [calibration]
    return readout.fit(batches, targets="predictions", **TRAINING)


def current(readout, at_input=False):
    return readout._state.readouts[readout.layer, at_input]


@pytest.fixture(scope="module")
def cnn():
    return small_cnn()


@pytest.fixture(scope="module")
def readout(cnn):
    return trained(cnn, cnn[2])


@pytest.fixture
def x():
    return normal(4, 3, 10, 10, seed=3)


def by_hand(readout, model, x, align_corners=False):
    """Features, lambda and bits of each element, from the trained weights and naive formulas, on 2-D maps."""
    network, found = current(readout).network, {}
    statistics = readout.statistics
    with torch.no_grad():
        for name in statistics:
            found[name] = model[: int(name) + 1](x)
    size, normalized = found["2"].shape[2:], {}
    for name, r in found.items():
        mean, std = statistics[name].mean, statistics[name].std
        floor = 0.01 * std[std > 0].square().mean().sqrt()
        normalized[name] = torch.where(std > 1e-9, (r - mean) / std.clamp_min(floor), 0.0)
    maps = [r if r.ndim == 4 else r[:, :, None, None] for r in normalized.values()]
    resized = [
        r.expand(-1, -1, *size)
        if r.shape[2] == 1
        else F.interpolate(r, size, mode="bilinear", align_corners=align_corners)
        for r in maps
    ]
    h = torch.einsum("nchw,oc->nohw", torch.cat(resized, dim=1), torch.cat(list(network.first), dim=1))
    h = (h + network.first_bias[:, None, None]).relu()
    for layer in (network.second, network.third):
        h = torch.einsum("nchw,oc->nohw", h.relu(), layer.weight) + layer.bias[:, None, None]
    down, across = (blur_matrix(1.0, side) for side in size)
    lam = down @ torch.sigmoid(h) @ across.T
    nats = -0.5 * (1 + ((1 - lam) ** 2).log() - (lam * normalized["2"]) ** 2 - (1 - lam) ** 2)
    return found["2"], lam, nats.masked_fill(statistics["2"].std <= 1e-9, 0.0) / math.log(2)


@pytest.mark.parametrize("align_corners", [False, True])
def test_the_map_is_the_networks(cnn, x, align_corners):
    """Bits are the paper's formula at sigmoid of the trained network's output, blurred; diagnostics show the mask."""
    readout = trained(cnn, cnn[2], align_corners=align_corners)
    _, lam, wanted = by_hand(readout, small_cnn(inplace=False), x, align_corners)
    found, record = readout.attribute(x, target=1, attr_dim_summation=False, return_diagnostics=True)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    torch.testing.assert_close(record.mask, lam, rtol=0, atol=1e-12)
    assert lam.std() > 0.01  # a mask that has learned something


def test_a_batch_equals_its_examples_alone(readout, x):
    """Each example's mask comes from its own features; the batch and its division do not matter."""
    together = readout.attribute(x, attr_dim_summation=False)
    alone = torch.cat([readout.attribute(one, attr_dim_summation=False) for one in x.split(1)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)
    for rows in (1, 2, 3, 100):
        parts = readout.attribute(x, attr_dim_summation=False, internal_batch_size=rows)
        torch.testing.assert_close(parts, together, rtol=0, atol=1e-9)
    assert (together[0] - together[1]).abs().max() > 0.01


def test_internal_batch_size_is_the_most_rows_at_once(readout, cnn, x):
    """No forward pass for the map has more rows, and each row runs once."""
    rows = []
    handle = cnn[0].register_forward_hook(lambda _m, _i, output: rows.append(len(output)))
    readout.attribute(x, internal_batch_size=3)
    handle.remove()
    assert rows == [3, 1]


def test_the_target_is_checked_and_changes_nothing(readout, cnn, x):
    """Any target, in any form, gives the map that no target gives; one that does not exist is an error."""
    wanted = readout.attribute(x)
    for target in (0, 3, [0, 1, 2, 3], torch.tensor([3, 2, 1, 0]), (1,)):
        assert torch.equal(readout.attribute(x, target=target), wanted)
    for target in (4, -5, [0, 0, 0, 4], torch.tensor(7)):
        with pytest.raises(TargetIndexError, match="does not fit the model's output"):
            readout.attribute(x, target=target, internal_batch_size=3)
    with pytest.raises(TargetError, match="leaves 16 values"):
        readout.attribute(x, return_diagnostics=True)


def test_the_map_takes_one_forward_pass_as_far_as_needed(cnn, x):
    """Modules after the last layer that is read do not run, and those before run once."""
    readout, ran = trained(cnn, cnn[2], readout_layers=["2", "0"]), []
    handles = [m.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, m in enumerate(cnn)]
    readout.attribute(x)
    assert ran == [0, 1, 2]
    ran.clear()
    readout.attribute(x, target=1)
    assert ran == list(range(9))
    for handle in handles:
        handle.remove()


def test_estimate_takes_one_pass_over_the_data(cnn):
    """Each batch runs once for all layers, but for the first, which runs once more to find the layers."""
    rows = []
    handle = cnn[0].register_forward_hook(lambda _m, _i, output: rows.append(len(output)))
    data = normal(1200, 3, 10, 10, seed=9)
    statistics = LayerReadoutIBA(cnn, cnn[2]).estimate(data.split(400)).statistics
    handle.remove()
    assert rows == [400] * 4
    assert {name: s.n_samples for name, s in statistics.items()} == dict.fromkeys(("2", "5", "8"), 1200)
    plain, features = small_cnn(inplace=False), {}
    with torch.no_grad():
        for name in statistics:
            features[name] = plain[: int(name) + 1](data)
    for name, values in features.items():
        torch.testing.assert_close(statistics[name].mean, values.mean(dim=0), rtol=0, atol=1e-10)
        torch.testing.assert_close(statistics[name].std, values.std(dim=0), rtol=0, atol=1e-10)


# diagnostics


@pytest.mark.parametrize("relu", [False, True])
def test_diagnostics_equal_copies_run_by_hand(relu, x):
    """The record's objective and probability are the means over noisy copies run through the whole model by hand."""
    model = small_cnn(inplace=False)
    model[3] = nn.Tanh().eval()  # a ReLU would hide the clamp
    readout = trained(model, model[2], relu=relu)
    bits, record = readout.attribute(x, target=[0, 1, 2, 3], return_diagnostics=True, n_samples=3, seed=5)
    r, lam, _ = by_hand(readout, model, x)
    statistics = readout.statistics["2"]
    std = statistics.std.clamp_min(0.01 * statistics.std.square().mean().sqrt())
    draws = torch.randn((3, *r.shape[1:]), generator=torch.Generator().manual_seed(5), dtype=torch.float32).double()
    losses = []
    for eps in draws:
        z = lam * r + (1 - lam) * (statistics.mean + std * eps)
        with torch.no_grad():
            logits = model[3:](z.relu() if relu else z)
        losses.append(F.cross_entropy(logits, torch.arange(4), reduction="none"))
    losses = torch.stack(losses)
    assert record.objective.shape == record.information.shape == (1, 4)
    torch.testing.assert_close(record.objective[0], losses.mean(dim=0), rtol=0, atol=1e-9)
    torch.testing.assert_close(record.target_probability, losses.neg().exp().mean(dim=0), rtol=0, atol=1e-9)
    torch.testing.assert_close(record.information[0], bits.flatten(1).sum(dim=1))
    torch.testing.assert_close(record.total_bits, bits.flatten(1).sum(dim=1))
    assert record.channel_dim == 1 and record.forward_mode == "replay" and record.inactive_share == 0.0


def test_dead_neurons_give_zero_bits_and_no_nan(x):
    """Channels that never vary, zero or not, in the bottleneck or among what is read, are finite and free of bits."""
    model = small_cnn()
    with torch.no_grad():
        for layer in (model[2], model[5]):
            layer.weight[:2] = 0
            layer.bias[0], layer.bias[1] = -1.0, 3.0
    readout = trained(model, model[2])
    bits, record = readout.attribute(x, target=1, attr_dim_summation=False, return_diagnostics=True)
    assert torch.isfinite(bits).all() and not bits[:, :2].any() and (bits[:, 2:] > 0).all()
    assert record.inactive_share == pytest.approx(2 / 8)
    assert torch.isfinite(record.target_probability).all()
    assert all(math.isfinite(m.objective) for m in readout.history.training)


# state


def test_statistics_of_another_object_serve(cnn, readout, x):
    """Given to the constructor, statistics replace estimate: training then gives the very same map."""
    other = LayerReadoutIBA(cnn, cnn[2], statistics=readout.statistics, hidden_channels=(8, 8))
    assert other.statistics == readout.statistics
    other.fit(normal(160, 3, 10, 10, seed=9).split(20), targets="predictions", **TRAINING)
    assert torch.equal(other.attribute(x), readout.attribute(x))


def test_a_second_estimate_keeps_the_trained_network(cnn, x):
    """Statistics are state of their own: renewed with the same data nothing changes, with others the map does."""
    readout = trained(cnn, cnn[2])
    first, network, history = readout.attribute(x), current(readout).network, readout.history
    readout.estimate(normal(160, 3, 10, 10, seed=9))
    assert torch.equal(readout.attribute(x), first)
    readout.estimate(3 * normal(160, 3, 10, 10, seed=8))
    assert current(readout).network is network and readout.history is history
    assert not torch.allclose(readout.attribute(x), first, rtol=0.1)


def test_trained_networks_belong_to_layer_and_side(cnn, x):
    """Reassigning the layer hides the network and brings it back; the two sides of a layer are apart."""
    readout = trained(cnn, cnn[2])
    wanted = readout.attribute(x)
    with pytest.raises(NotTrainedError, match="input of layer '2'"):
        readout.attribute(x, attribute_to_layer_input=True)
    readout.layer = cnn[5]
    assert readout.statistics is None and readout.history.training == []
    with pytest.raises(NotTrainedError, match="output of layer '5'"):
        readout.attribute(x)
    readout.layer = cnn[2]
    assert torch.equal(readout.attribute(x), wanted)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_changes_no_bit(readout, x, mode):
    """Under no_grad and inference_mode the map is the same, and later calls are unharmed."""
    bits = readout.attribute(x)
    with mode():
        assert torch.equal(readout.attribute(x, target=1), bits)
    assert torch.equal(readout.attribute(x), bits) and not bits.requires_grad
    assert readout.get_name() == "Layer Readout IBA"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_changes_no_record(readout, x, mode):
    """The diagnostics are the same under no_grad and inference_mode too."""
    _, record = readout.attribute(x, target=1, return_diagnostics=True)
    with mode():
        _, inside = readout.attribute(x, target=1, return_diagnostics=True)
        assert torch.equal(inside.target_probability, record.target_probability)
        assert torch.equal(inside.mask, record.mask) and inside.forward_mode == record.forward_mode


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 0.99999), (torch.bfloat16, 0.98)])
def test_other_dtypes_follow_float64(readout, x, dtype, least):
    """A half-precision model with the same weights and statistics gives nearly the same map, in float32."""
    model = small_cnn().to(dtype)
    other = LayerReadoutIBA(model, model[2], statistics=readout.statistics, hidden_channels=(8, 8))
    other.fit([(x.to(dtype), torch.tensor([0, 1, 2, 3]))], epochs=1, show_progress=False)
    network = current(other).network
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    network.load_state_dict(current(readout).network.state_dict())
    bits, wanted = other.attribute(x.to(dtype)), readout.attribute(x)
    assert bits.dtype == torch.float32
    assert torch.corrcoef(torch.stack([bits.double().flatten(), wanted.flatten()]))[0, 1] > least
