"""Which layers LayerReadoutIBA reads, and its laws on layers of any kind: maps, tokens, vectors, either side."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from captum_iba.attr import LayerReadoutIBA
from captum_iba.attr._readout_layers import find_readout_layers
from captum_iba.bottleneck.reading import follow
from tests.attr.test_layer_iba import model_of
from tests.attr.test_layer_readout_iba import TRAINING, current, trained
from tests.literal import normal, small_cnn


@pytest.fixture(scope="module")
def cnn():
    return small_cnn()


@pytest.fixture(scope="module")
def readout(cnn):
    return trained(cnn, cnn[2])


@pytest.fixture
def x():
    return normal(4, 3, 10, 10, seed=3)


def without_weights(name):
    """A network's structure: the choice of layers depends on shapes alone."""
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        return getattr(models, name)(weights=None).eval()


@pytest.mark.parametrize(
    ("name", "layer", "wanted"),
    [
        ("resnet50", "layer1", ["layer1", "layer2", "layer3", "layer4", "fc"]),
        ("resnet18", "layer1", ["layer1", "layer2", "layer3", "layer4", "fc"]),
        ("vgg16", "features.10", ["features.10", "features.17", "features.24", "features.28", "classifier.6"]),
    ],
)
@pytest.mark.parametrize("size", [64, 224])
def test_auto_reads_the_papers_layers(name, layer, wanted, size):
    """In ResNet and VGG-16 the layers found are those of the paper's Table 4, whatever the size of the input."""
    model = without_weights(name)
    finished = follow([model], lambda: model(torch.zeros(1, 3, size, size, device="meta")))
    found = find_readout_layers("auto", model.get_submodule(layer), [model], finished)
    names = {module: name for name, module in model.named_modules()}
    assert [names[module] for module in found] == wanted


def test_layers_are_named_or_passed(readout, cnn, x):
    """Dotted names, modules and the model itself say the same as each other, and here as "auto"."""
    wanted = readout.attribute(x)
    assert list(readout.statistics) == ["2", "5", "8"]
    for layers in (["2", "5", "8"], [cnn[2], cnn[5], cnn[8]], ("2", cnn[5], "8")):
        assert torch.equal(trained(cnn, cnn[2], readout_layers=layers).attribute(x), wanted)
    for output in ("", cnn):
        found = trained(cnn, cnn[2], readout_layers=["2", "5", output])
        assert list(found.statistics) == ["2", "5", ""]
        torch.testing.assert_close(found.attribute(x), wanted, rtol=0, atol=1e-9)


def test_the_bottlenecks_own_layer_need_not_be_read(cnn, x):
    """The mask may come from other layers alone; the bottleneck's statistics are there all the same, first."""
    readout = trained(cnn, cnn[2], readout_layers=["5"])
    assert list(readout.statistics) == ["2 (not read)", "5"]
    again = LayerReadoutIBA(cnn, cnn[2], statistics=readout.statistics)
    assert list(again.statistics) == ["2 (not read)", "5"]
    assert current(readout).network.first[0].shape == (8, 8) and len(current(readout).network.first) == 1
    assert readout.attribute(x).shape == (4, 1, 10, 10)


# kinds of layers


class Tokens(nn.Module):
    """Linear over tokens, then a recurrent layer that returns (output, (h, c))."""

    def __init__(self):
        super().__init__()
        self.embed, self.lstm = nn.Linear(2, 3), nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.lstm(self.embed(x).tanh())[0].mean(dim=1))


class ChannelsLast(nn.Module):
    """Maps (N, H, W, C) at first, (N, C, H, W) later."""

    def __init__(self):
        super().__init__()
        self.enter, self.conv, self.head = nn.Linear(2, 3), nn.Conv2d(3, 4, 3, stride=2), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.conv(self.enter(x).tanh().permute(0, 3, 1, 2)).amax(dim=(2, 3)))


def convolutions(n_axes, size):
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[n_axes - 1]
    after = ((size - 3) // 2 + 1) ** n_axes
    return nn.Sequential(
        kind(2, 3, 3, padding=1), nn.ReLU(inplace=True), kind(3, 4, 3, stride=2), nn.Flatten(), nn.Linear(4 * after, 3)
    )


def vectors():
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(inplace=True), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def averaged():
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 5), nn.Tanh(), nn.Linear(5, 3))


# model, layer, shape of an example, shape of its map, what is read, arguments
KINDS = {
    "conv1d": (lambda: convolutions(1, 7), "0", (2, 7), (1, 7), ["0", "2", "4"], {}),
    "conv2d": (lambda: convolutions(2, 5), "0", (2, 5, 5), (1, 5, 5), ["0", "2", "4"], {}),
    "conv3d": (lambda: convolutions(3, 5), "0", (2, 5, 5, 5), (1, 5, 5, 5), ["0", "2", "4"], {}),
    "vector": (vectors, "0", (3,), (1,), ["0", "2", "4"], {}),
    "vector, maps averaged": (averaged, "2", (2, 6, 6), (1,), ["2", "0", "4"], {"readout_layers": ["0", "2", "4"]}),
    "tokens": (Tokens, "embed", (6, 2), (6, 1), ["embed", "lstm", "head"], {}),
    "lstm": (Tokens, "lstm", (6, 2), (6, 1), ["lstm", "head"], {}),
    "channels last": (
        ChannelsLast,
        "enter",
        (5, 7, 2),
        (5, 7, 1),
        ["enter", "conv", "head"],
        {"readout_layers": ["enter", "conv", "head"]},
    ),
}


@functools.cache
def of_kind(kind):
    make, layer, shape, *_, kwargs = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
        for parameter in model.parameters():
            parameter.data.mul_(2)
    model = model.double().eval()
    return trained(model, model.get_submodule(layer), lambda n: normal(n, *shape, seed=4), **kwargs)


@pytest.mark.parametrize("kind", KINDS)
def test_laws_hold_for_any_kind_of_layer(kind):
    """Bits are finite and never negative, batch equals singles, sums agree; training moved the objective down."""
    readout, (_, _, shape, summed, read, _) = of_kind(kind), KINDS[kind]
    x = normal(3, *shape, seed=5)
    bits, full = readout.attribute(x), readout.attribute(x, attr_dim_summation=False)
    assert sorted(readout.statistics) == sorted(read)
    assert bits.shape == (3, *summed) and bits.is_contiguous() and not bits.requires_grad
    assert torch.isfinite(full).all() and (full >= 0).all() and full.std() > 0
    axis = current(readout).channel_dim
    torch.testing.assert_close(full.sum(dim=axis, keepdim=True), bits, rtol=0, atol=1e-9)
    last = readout.attribute(x[-1:], attr_dim_summation=False)
    torch.testing.assert_close(full[-1:], last, rtol=0, atol=1e-9)
    _, record = readout.attribute(x, target=[0, 1, 2], return_diagnostics=True)
    assert record.mask.shape == full.shape and record.channel_dim == axis
    training = readout.history.training
    assert training[-1].objective < training[0].objective


@settings(max_examples=40)
@given(
    kind=st.sampled_from(["vector", "tokens", "conv1d", "conv2d", "conv3d"]),
    n=st.integers(1, 3),
    width=st.integers(1, 4),
    sizes=st.lists(st.integers(1, 5), min_size=3, max_size=3),
)
@pytest.mark.filterwarnings("ignore:sigma=")
def test_laws_hold_for_any_shape(kind, n, width, sizes):
    """For any shape: bits are finite and not negative, batch equals singles, both sums agree."""
    model, layer, shape, summed = model_of(kind, width, sizes)
    calibration = normal(30, *shape, seed=4)
    readout = LayerReadoutIBA(model, layer, hidden_channels=(3, 4), initial_alpha=0.0).estimate(calibration)
    readout.fit([calibration], targets="predictions", epochs=3, learning_rate=0.1, show_progress=False)
    x = normal(n, *shape, seed=5)
    bits, full = readout.attribute(x), readout.attribute(x, attr_dim_summation=False)
    assert bits.shape == (n, *summed) and full.shape == (n, *readout.statistics[next(iter(readout.statistics))].shape)
    assert torch.isfinite(full).all() and (full >= 0).all() and full.max() > 0
    torch.testing.assert_close(bits.flatten(1).sum(dim=1), full.flatten(1).sum(dim=1))
    torch.testing.assert_close(readout.attribute(x[-1:]), bits[-1:], rtol=0, atol=1e-9)


def test_channels_last_equals_channels_first(readout, x):
    """The same network with its channels moved to the last axis, same statistics and weights: the same map, moved."""

    class Moved(nn.Module):
        def __init__(self):
            super().__init__()
            plain = small_cnn(inplace=False)
            self.head, self.moved, self.tail = plain[:3], nn.Identity(), plain[3:]

        def forward(self, x):
            return self.tail(self.moved(self.head(x).movedim(1, -1)).movedim(-1, 1))

    model, layers = Moved().eval(), ["moved", "tail.5", "tail.8"]
    other = LayerReadoutIBA(model, model.moved, readout_layers=layers, hidden_channels=(8, 8))
    other.estimate(normal(160, 3, 10, 10, seed=9))
    assert [other.statistics[name].channel_dim for name in layers] == [3, 1, 1]
    other.fit([(x, torch.tensor([0, 1, 2, 3]))], epochs=1, show_progress=False)
    current(other).network.load_state_dict(current(readout).network.state_dict())
    found, wanted = (each.attribute(x, attr_dim_summation=False) for each in (other, readout))
    torch.testing.assert_close(found.movedim(-1, 1), wanted, rtol=0, atol=1e-9)
    assert other.attribute(x).shape == (4, 10, 10, 1)


def test_input_side_equals_output_side_of_the_module_before(readout, cnn, x):
    """The bottleneck at a layer's input is the one at its predecessor's output, reading the same layers."""
    model = small_cnn(inplace=False)
    other = LayerReadoutIBA(model, model[3], readout_layers=["2", "5", "8"], hidden_channels=(8, 8))
    calibration = normal(160, 3, 10, 10, seed=9)
    other.estimate(calibration, attribute_to_layer_input=True)
    assert list(other.statistics) == ["3 (input)", "2", "5", "8"]
    arguments = {"targets": "predictions", "attribute_to_layer_input": True, **TRAINING}
    other.fit(calibration.split(20), **arguments)
    found, wanted = other.attribute(x, attribute_to_layer_input=True), readout.attribute(x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


# language models


def bert():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=20, num_labels=3, initializer_range=0.5, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.BertForSequenceClassification(config).double().eval()


def sentences(n, seed=0):
    ids = torch.randint(3, 20, (n, 6), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_bert_with_batches_of_keyword_arguments():
    """Mappings with labels train a readout of hidden states and logits; the map is one number a token."""
    model = bert()
    layer = model.bert.encoder.layer[1]
    readout = LayerReadoutIBA(model, layer, hidden_channels=(8, 8)).estimate([sentences(40)])
    assert next(iter(readout.statistics)) == "bert.encoder.layer.1"
    data = [sentences(8, seed) | {"labels": torch.arange(8) % 3} for seed in range(4)]
    readout.fit(data, data, epochs=2, learning_rate=1e-2, show_progress=False)
    assert readout.history.validation[-1].objective < readout.history.validation[0].objective
    inputs = sentences(3, 9)
    ids, mask = inputs.values()
    bits = readout.attribute(ids, additional_forward_args=(mask,))
    assert bits.shape == (3, 6, 1) and (bits > 0).all()
    alone = readout.attribute(ids[1:2], additional_forward_args=(mask[1:2],))
    torch.testing.assert_close(bits[1:2], alone, rtol=0, atol=1e-9)
    short = readout.attribute(ids[:, :4], additional_forward_args=(mask[:, :4],))  # per-channel statistics fit
    assert short.shape == (3, 4, 1)


def test_the_batches_of_fit_serve_estimate_too():
    """Labels in a mapping are no inputs: the features of hidden states and logits are those without them."""
    model = bert()
    layer = model.bert.encoder.layer[1]
    wanted = LayerReadoutIBA(model, layer).estimate([sentences(40)]).statistics
    found = LayerReadoutIBA(model, layer).estimate([sentences(40) | {"labels": torch.arange(40) % 3}]).statistics
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name].mean, statistics.mean) for name, statistics in wanted.items())
