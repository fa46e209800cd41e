import pytest
import torch
from captum.metrics import infidelity, sensitivity_max
from torch import nn

from captum_iba import IBA, LayerIBA, LayerReadoutIBA, resize_bits
from captum_iba.errors import InvalidArgumentError, InvalidTypeError, NotTrainedError
from tests.literal import normal, small_cnn


@pytest.fixture(scope="module")
def cnn():
    return small_cnn()


@pytest.fixture(scope="module")
def iba(cnn):
    return IBA(cnn, cnn[2]).estimate(normal(1200, 3, 10, 10, seed=9))


def test_is_the_layers_map_resized(iba, cnn):
    """The attribution is LayerIBA's, on the input's grid, and carries the same bits in all."""
    x = normal(2, 3, 10, 10, seed=3)
    layer = LayerIBA(cnn, cnn[2], statistics=iba.statistics).attribute(x, target=1)
    found = iba.attribute(x, target=1)
    assert found.shape == x.shape
    torch.testing.assert_close(found.sum(dim=1, keepdim=True), resize_bits(layer, (10, 10)))
    torch.testing.assert_close(found.flatten(1).sum(1), layer.flatten(1).sum(1))
    assert iba.get_name() == "IBA"


def test_tuple_in_tuple_out(iba):
    """A tuple of inputs gives a tuple of attributions."""
    x = normal(1, 3, 10, 10)
    (found,) = iba.attribute((x,), target=1)
    assert torch.equal(found, iba.attribute(x, target=1))


def test_several_inputs_share_the_bits():
    """Two images of one scene get half of the bits each."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = small_cnn()

        def forward(self, left, right):
            return self.body(left + right)

    model = Both().eval()
    method = IBA(model, model.body[2])
    pairs = [((normal(600, 3, 10, 10, seed=1), normal(600, 3, 10, 10, seed=2)), None)] * 2
    method.estimate(pairs)
    x = (normal(2, 3, 10, 10, seed=3), normal(2, 3, 10, 10, seed=4))
    left, right = method.attribute(x, target=1)
    bits = method.layer_iba.attribute(x, target=1)
    assert torch.equal(left, right)
    torch.testing.assert_close((left + right).sum(), bits.sum())


def test_statistics_travel_by_file(iba, cnn, tmp_path):
    """Saved by one object, loaded by another: the same attributions."""
    iba.save_statistics(tmp_path / "layer.safetensors")
    other = IBA(cnn, cnn[2]).load_statistics(tmp_path / "layer.safetensors")
    x = normal(1, 3, 10, 10)
    assert torch.equal(other.attribute(x, target=1), iba.attribute(x, target=1))


def test_reassigned_forward_function_counts(iba, cnn):
    """Consumers reassign forward_func and layer; the next call uses them, and the statistics stay shared."""
    seen = []

    def spy(x):
        seen.append(len(x))
        return cnn(x)

    other = IBA(cnn, cnn[2], statistics=iba.statistics)
    other.forward_func = spy
    other.attribute(normal(1, 3, 10, 10), target=1, n_steps=1)
    assert seen
    other.layer = cnn[5]
    assert other.statistics is None


def test_vectors_have_no_place_on_the_input():
    """A linear layer's bits belong to no element of the input."""
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    method = IBA(model, model[0]).estimate(torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(InvalidArgumentError, match="no spatial relation"):
        method.attribute(torch.ones(2, 3), target=0)


def test_arguments_that_would_change_the_shape_are_refused(iba):
    """The shape is the input's; asking for another says which method to use."""
    with pytest.raises(InvalidArgumentError, match="attr_dim_summation.*the layer method's"):
        iba.attribute(normal(1, 3, 10, 10), target=1, attr_dim_summation=False)


@pytest.fixture(scope="module")
def readout(cnn):
    """A trained readout of the same layer, which lets some of the information through."""
    x = normal(64, 3, 10, 10, seed=9)
    method = LayerReadoutIBA(cnn, cnn[2], hidden_channels=(6, 6)).estimate(x)
    return method.fit([x[:32], x[32:]], epochs=5, learning_rate=1e-2, targets="predictions", show_progress=False)


def test_a_readouts_map_is_resized(readout, cnn):
    """With method=readout the bits are LayerReadoutIBA's on the input's grid, their total kept, for any target."""
    x, iba = normal(2, 3, 10, 10, seed=3), IBA(cnn, cnn[2], method=readout)
    bits = readout.attribute(x)
    assert bits.sum() > 0
    for target in (None, 1, torch.tensor([0, 3])):
        found = iba.attribute(x, target=target)
        assert found.shape == x.shape and torch.equal(found[:, 0], found[:, 2])
        torch.testing.assert_close(found.sum(dim=1, keepdim=True), resize_bits(bits, (10, 10)))
        torch.testing.assert_close(found.flatten(1).sum(1), bits.flatten(1).sum(1))
    assert all(torch.equal(a, b) for a, b in zip(iba.attribute((x,), target=1), (found,), strict=True))


def test_a_readout_at_a_coarser_layer_keeps_its_total(cnn):
    """From 5 x 5 positions to 10 x 10 pixels, at the layer's input or output, rows at once or one by one."""
    x, data = normal(3, 3, 10, 10, seed=3), normal(40, 3, 10, 10, seed=9)
    for at_input in (False, True):
        method = LayerReadoutIBA(cnn, cnn[5], hidden_channels=(6, 6))
        method.estimate(data, attribute_to_layer_input=at_input)
        options = {"targets": "predictions", "epochs": 1, "show_progress": False}
        method.fit([data], attribute_to_layer_input=at_input, **options)
        bits = method.attribute(x, attribute_to_layer_input=at_input)
        found = IBA(cnn, cnn[5], method=method).attribute(
            x, attribute_to_layer_input=at_input, internal_batch_size=1 + at_input
        )
        assert bits.shape[2:] == (5, 5)
        torch.testing.assert_close(found.sum(dim=1, keepdim=True), resize_bits(bits, (10, 10)))
        torch.testing.assert_close(found.flatten(1).sum(1), bits.flatten(1).sum(1))


def test_metrics_take_a_readout(readout, cnn):
    """infidelity and sensitivity_max of IBA are those of a function that resizes the readout's bits by hand."""
    x, iba = normal(2, 3, 10, 10, seed=3), IBA(cnn, cnn[2], method=readout)

    def by_hand(inputs, **_target):
        if isinstance(inputs, tuple):  # in and out, as Captum asks for
            return (by_hand(*inputs),)
        return resize_bits(readout.attribute(inputs), (10, 10)).expand_as(inputs) / 3

    def perturb(inputs):
        noise = 0.1 * normal(*inputs.shape, seed=len(inputs))
        return noise, inputs - noise

    found, wanted = (
        infidelity(cnn, perturb, x, f(x, target=1), target=1, normalize=True) for f in (iba.attribute, by_hand)
    )
    torch.testing.assert_close(found, wanted)
    results = []
    for explain in (iba.attribute, by_hand):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            results.append(sensitivity_max(explain, x, target=1, n_perturb_samples=3, perturb_radius=0.1))
    torch.testing.assert_close(*results)
    assert (results[0] > 0).all() and torch.isfinite(found).all()


def test_a_method_given_is_the_one_behind(readout, cnn):
    """A LayerIBA or readout keeps what it has learned, shared both ways; estimate goes to it, and so does its name."""
    iba = IBA(cnn, cnn[2], method=readout)
    assert isinstance(iba.layer_iba, LayerReadoutIBA) and iba.layer_iba is not readout
    assert iba.statistics.keys() == readout.statistics.keys() and next(iter(iba.statistics)) == "2"
    layer = LayerIBA(cnn, cnn[2])
    per_sample = IBA(cnn, cnn[2], method=layer).estimate(normal(50, 3, 10, 10, seed=9))
    assert layer.statistics is not None and per_sample.statistics is layer.statistics
    fresh = LayerReadoutIBA(cnn, cnn[2])
    with pytest.raises(NotTrainedError, match="fit"):
        IBA(cnn, cnn[2], method=fresh).estimate(normal(50, 3, 10, 10, seed=9)).attribute(normal(1, 3, 10, 10))
    assert fresh.statistics["2"].n_samples == 50
    with pytest.raises(NotTrainedError, match="'5'"):
        IBA(cnn, cnn[5], method=readout).attribute(normal(1, 3, 10, 10))


def test_what_does_not_go_with_a_method_is_refused(readout, iba, cnn, tmp_path):
    """Statistics beside a method, another kind of method, and files of statistics where a network belongs to them."""
    with pytest.raises(InvalidArgumentError, match="statistics and method are both there"):
        IBA(cnn, cnn[2], statistics=iba.statistics, method=readout)
    for wrong in (iba, LayerIBA):
        with pytest.raises(InvalidTypeError, match="wanted a LayerIBA or a LayerReadoutIBA"):
            IBA(cnn, cnn[2], method=wrong)
    path = tmp_path / "layer.safetensors"
    iba.save_statistics(path)
    content = path.read_bytes()
    method = IBA(cnn, cnn[2], method=readout)
    for act in (method.save_statistics, method.load_statistics):
        with pytest.raises(InvalidTypeError, match="its network too: use its save and load"):
            act(path)
    assert path.read_bytes() == content
    for name in ("return_diagnostics", "attr_dim_summation"):
        with pytest.raises(InvalidArgumentError, match=name):
            method.attribute(normal(1, 3, 10, 10), **{name: True})
