"""Laws of the readout network and of reading features: the same numbers as the literal forms, and no trace."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from captum_iba.attr._readout import ReadoutSettings
from captum_iba.bottleneck.information import Reference
from captum_iba.bottleneck.reading import follow, read, watch
from captum_iba.bottleneck.readout import (
    ReadoutNetwork,
    assert_readable,
    channels_second,
    noisy_features,
    pointwise,
)
from captum_iba.bottleneck.replay import Site
from captum_iba.errors import (
    IntegerFeaturesError,
    LayerNotExecutedError,
    LayerReusedError,
    NoTensorError,
    UnsupportedModelError,
)
from tests.literal import normal

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def conv(x, weight, bias):
    """A convolution of size one over (N, C, *positions), by torch's own convolutions."""
    n_axes = x.ndim - 2
    if n_axes == 0:
        return torch.einsum("nc,oc->no", x, weight) + bias
    function = (F.conv1d, F.conv2d, F.conv3d)[n_axes - 1]
    return function(x, weight.reshape(*weight.shape, *[1] * n_axes), bias)


def literal(network, sources, size, align_corners):
    """The paper's form: resize all, concatenate over channels, three convolutions of size one."""
    resized = []
    for source in sources:
        if not size:
            source = source.flatten(2).mean(dim=2) if source.ndim > 2 else source
        elif source.ndim == 2:
            source = source.reshape(*source.shape, *[1] * len(size)).expand(*source.shape, *size)
        elif tuple(source.shape[2:]) != tuple(size):
            source = F.interpolate(source, size, mode=MODES[len(size)], align_corners=align_corners)
        resized.append(source)
    x = torch.cat(resized, dim=1)
    x = conv(x, torch.cat(list(network.first), dim=1), network.first_bias).relu()
    x = conv(x, network.second.weight, network.second.bias).relu()
    return conv(x, network.third.weight, network.third.bias)


def random_network(channels, out, widths=(7, 6), align_corners=False, seed=0):
    """With weights of size one everywhere, so that each part of the network shows."""
    network = ReadoutNetwork(channels, out, widths, align_corners=align_corners).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return network


def shape_of_source(draw, size):
    """Positions of one source: on a grid of its own, a vector, or a map to be averaged."""
    kind = draw(st.sampled_from(["map", "same", "vector"]))
    if kind == "vector":
        return ()
    if kind == "same" or not size:
        return size if size else draw(st.sampled_from([(), (3,), (2, 4), (2, 1, 3)]))
    return tuple(draw(st.lists(st.integers(1, 6), min_size=len(size), max_size=len(size))))


@st.composite
def cases(draw):
    size = tuple(draw(st.lists(st.integers(1, 6), min_size=0, max_size=3)))
    channels = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    shapes = [shape_of_source(draw, size) for _ in channels]
    return draw(st.integers(1, 3)), channels, shapes, size, draw(st.booleans())


@settings(max_examples=150)
@given(cases())
def test_equals_the_literal_form(case):
    """Convolving at native size and resizing afterwards is resizing, concatenating and convolving, to 1e-12."""
    n, channels, shapes, size, align_corners = case
    network = random_network(channels, 3, align_corners=align_corners)
    sources = [normal(n, c, *shape, seed=i) for i, (c, shape) in enumerate(zip(channels, shapes, strict=True))]
    found = network(sources, size)
    wanted = literal(network, sources, size, align_corners).expand(n, 3, *size)
    assert found.shape == (n, 3, *size)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("align_corners", [False, True])
def test_gradients_equal_those_of_the_literal_form(align_corners):
    """Training the pieces of the first weight is training the whole one."""
    network = random_network([3, 4, 5], 2, align_corners=align_corners)
    sources = [normal(2, 3, 6, 5), normal(2, 4, 2, 3), normal(2, 5)]
    target = normal(2, 2, 6, 5, seed=3)
    gradients = []
    for alpha in (network(sources, (6, 5)), literal(network, sources, (6, 5), align_corners)):
        gradients.append(torch.autograd.grad((alpha - target).square().sum(), list(network.parameters())))
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_align_corners_is_not_the_same_resize():
    """The two forms of the resize differ, so that the test of each means something."""
    sources = [normal(1, 2, 3, 3)]
    corners, centres = (random_network([2], 2, align_corners=a)(sources, (6, 6)) for a in (True, False))
    assert (corners - centres).abs().max() > 0.1


def test_tokens_are_not_resized():
    """Over tokens the network is one linear function at each: permuting tokens permutes the result."""
    network = random_network([3, 4], 2)
    tokens, vector, order = normal(2, 3, 7), normal(2, 4, seed=1), torch.tensor([3, 1, 6, 0, 5, 2, 4])
    found = network([tokens, vector], (7,))
    torch.testing.assert_close(network([tokens[:, :, order], vector], (7,)), found[:, :, order], rtol=0, atol=1e-12)
    alone = network([tokens[:, :, 2], vector], ())
    torch.testing.assert_close(found[:, :, 2], alone, rtol=0, atol=1e-12)


def test_vectors_alone_say_the_same_at_each_position():
    """Where only vectors are read the mask is one value a channel."""
    found = random_network([4], 3)([normal(2, 4)], (3, 5))
    assert torch.equal(found, found[:, :, :1, :1].expand(2, 3, 3, 5))
    assert found.flatten().std() > 0.1


@pytest.mark.parametrize("initial_alpha", [5.0, -2.0, 0.0])
def test_starts_close_to_initial_alpha(initial_alpha):
    """A fresh network says initial_alpha everywhere, up to its small last weights, and not exactly."""
    torch.manual_seed(0)
    alpha = ReadoutNetwork([30, 20], 6, (16, 16), initial_alpha)([torch.randn(4, 30, 5, 5), torch.randn(4, 20)], (5, 5))
    distance = (alpha - initial_alpha).abs().max()
    assert 0 < distance < 0.01


def test_first_weights_are_those_of_one_whole_layer():
    """The pieces are initialised as the whole weight: from the fan-in of all channels together."""
    torch.manual_seed(3)
    network = ReadoutNetwork([3, 50], 2, (400, 4))
    torch.manual_seed(3)
    whole = nn.Linear(53, 400)
    assert torch.equal(torch.cat(list(network.first), dim=1), whole.weight)
    assert torch.equal(network.first_bias, whole.bias)


@pytest.mark.parametrize(("channels", "out"), [([256, 512, 1024, 2048, 1000], 256), ([1], 1), ([3], 5)])
def test_number_of_parameters_of_the_published_widths(channels, out):
    """c_in -> c_in // 2 -> 2 c_out -> c_out, each with a bias."""
    total = sum(channels)
    wide, narrow = ReadoutSettings(hidden_channels="published").widths(total, out)
    assert (wide, narrow) == (max(1, total // 2), 2 * out)
    with torch.device("meta"):
        network = ReadoutNetwork(channels, out, (wide, narrow))
    wanted = (total + 1) * wide + (wide + 1) * narrow + (narrow + 1) * out
    assert sum(parameter.numel() for parameter in network.parameters()) == wanted


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 3, 2, 3, 2)])
def test_pointwise_is_a_linear_layer_at_each_position(shape):
    """The same function of the channels at every position, on any number of axes."""
    x, weight, bias = normal(*shape), normal(5, 3, seed=1), normal(5, seed=2)
    wanted = F.linear(x.movedim(1, -1), weight, bias).movedim(-1, 1)
    torch.testing.assert_close(pointwise(x, weight, bias), wanted, rtol=0, atol=1e-12)


def test_channels_second_moves_the_axis():
    """Channels of any axis come second, and all else keeps its order."""
    x = normal(2, 3, 4, 5)
    assert torch.equal(channels_second(x, 3), x.permute(0, 3, 1, 2))
    assert channels_second(x, 1) is x


@pytest.mark.parametrize(
    ("shape", "channel_dim", "is_grid", "positions"),
    [
        ((2, 5, 7), 2, False, (4,)),  # tokens of another number
        ((2, 3, 4, 4), 1, True, (4,)),  # a map for a bottleneck on a line
        ((2, 3, 7), 1, True, (4, 4)),
        ((2, 3, 2, 2, 2, 2), 1, True, (3, 3, 3, 3)),  # no resize over four axes
    ],
)
def test_what_cannot_be_resized_is_refused(shape, channel_dim, is_grid, positions):
    """Features that have no counterpart at the bottleneck's positions are an error that names both."""
    with pytest.raises(UnsupportedModelError, match=r"^here has features at .*the bottleneck lies at .*readout_layers"):
        assert_readable(shape, channel_dim, "here", is_grid, positions)


def test_noisy_features_are_the_papers():
    """Z = lambda R + (1 - lambda) (mu + s eps), and nats by the closed form; features that never vary are mu and 0."""
    alpha, features, eps = normal(2, 3), normal(2, 3, seed=1), normal(2, 3, seed=2)
    reference = Reference(
        torch.tensor([[0.5, -1.0, 2.0]]).double(),
        torch.tensor([[2.0, 0.5, 1.0]]).double(),
        torch.tensor([[1, 1, 0]]) > 0,
    )
    r = torch.where(reference.active, (features - reference.mean) / reference.scale, 0.0)
    z, nats = noisy_features(alpha, features, r, reference, eps, None, torch.relu)
    lam = torch.sigmoid(alpha)
    wanted = torch.where(
        reference.active, lam * features + (1 - lam) * (reference.mean + reference.scale * eps), reference.mean
    )
    torch.testing.assert_close(z, wanted.clamp_min(0), rtol=0, atol=1e-12)
    by_hand = -0.5 * (1 + ((1 - lam) ** 2).log() - (lam * r) ** 2 - (1 - lam) ** 2) * reference.active
    torch.testing.assert_close(nats, by_hand, rtol=0, atol=1e-12)


# reading


class Chain(nn.Module):
    """Counts the runs of its modules."""

    def __init__(self, inplace=False):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2)
        self.relu, self.same, self.unused = nn.ReLU(inplace=inplace), nn.Identity(), nn.Linear(1, 1)
        self.ran = []
        for name, module in self.named_children():
            module.register_forward_hook(lambda *_, name=name: self.ran.append(name))

    def forward(self, x):
        return self.same(self.three(self.relu(self.two(self.relu(self.one(x))))))


@pytest.fixture
def chain():
    torch.manual_seed(0)
    return Chain().double()


def site(model, name, at_input=False):
    return Site(model.get_submodule(name), name, at_input)


def hooks_of(model):
    return [len(value) for m in model.modules() for key, value in vars(m).items() if "hook" in key and value]


def test_read_equals_the_users_hooks(chain):
    """Features are what a forward hook sees, in the order of the sites, and those of an input what a pre-hook sees."""
    x, seen = normal(6, 3), {}
    for name in ("one", "two", "three"):
        chain.get_submodule(name).register_forward_hook(
            lambda _m, args, out, name=name: seen.update({name: (args, out)})
        )
    sites = [site(chain, "three"), site(chain, "one"), site(chain, "three", at_input=True)]
    reading = read(sites, lambda: chain(x), to_the_end=True)
    for found, wanted in zip(reading.features, (seen["three"][1], seen["one"][1], seen["three"][0][0]), strict=True):
        assert torch.equal(found, wanted)
        assert not found.requires_grad
    assert torch.equal(reading.output, chain(x))


def test_read_stops_at_the_last_site(chain):
    """Modules after the last of the sites do not run, and there is no output; with to_the_end they do."""
    reading = read([site(chain, "two"), site(chain, "one")], lambda: chain(normal(2, 3)))
    assert "three" not in chain.ran and "one" in chain.ran
    assert reading.output is None
    assert read([site(chain, "two")], lambda: chain(normal(2, 3)), to_the_end=True).output is not None
    assert "three" in chain.ran


def test_in_place_successors_do_not_change_what_was_read():
    """An in-place ReLU after a layer works on the model's tensor, not on what was read."""
    torch.manual_seed(0)
    model, x = Chain(inplace=True).double(), normal(6, 3)
    (found,) = read([site(model, "one")], lambda: model(x), to_the_end=True).features
    assert torch.equal(found, model.one(x))
    assert (found < 0).any()


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("unused", LayerNotExecutedError, "did not run unused"),
        ("relu", LayerReusedError, "relu ran more than once"),
    ],
)
def test_sites_run_exactly_once(chain, name, error, words):
    """A site that never runs, or twice, is an error that names it, and no hook stays."""
    before = hooks_of(chain)
    with pytest.raises(error, match=words):
        read([site(chain, "one"), site(chain, name)], lambda: chain(normal(2, 3)), to_the_end=True)
    assert hooks_of(chain) == before


@pytest.mark.parametrize(
    ("value", "error"), [("text", NoTensorError), (torch.ones(2, dtype=torch.long), IntegerFeaturesError)]
)
def test_sites_have_features(chain, value, error):
    """A layer without floating-point features is refused, and no hook stays."""
    chain.same.forward = lambda _x: value
    before = hooks_of(chain)
    with pytest.raises(error, match="same"):
        read([site(chain, "same")], lambda: chain(normal(2, 3)))
    assert hooks_of(chain) == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_hooks_are_removed_after_errors(chain, error):
    """What the model raises comes through, from read and from follow, and leaves no hook."""
    own = error("own")

    def fails(_x):
        raise own

    chain.two.forward = fails
    before = hooks_of(chain)
    for call in (
        lambda: read([site(chain, "one"), site(chain, "three")], lambda: chain(normal(2, 3))),
        lambda: follow([chain], lambda: chain(normal(2, 3))),
    ):
        with pytest.raises(error) as caught:
            call()
        assert caught.value is own
    assert hooks_of(chain) == before
    assert torch.is_grad_enabled() and torch.backends.mha.get_fastpath_enabled()


def test_read_swallows_no_stop_of_an_outer_reading(chain):
    """Several sites of one pass may be watched from inside another pass; both see the same."""
    with watch([site(chain, "one")]) as outer:
        inner = read([site(chain, "two")], lambda: chain(normal(2, 3)), to_the_end=True).features
    assert torch.equal(chain.two(outer[site(chain, "one")].relu()), inner[0])


def test_follow_names_modules_in_the_order_in_which_they_finish(chain):
    """Inner modules before outer ones, a reused one as often as it runs, and the makers of the output are marked."""
    finished = follow([chain, chain.two], lambda: chain(normal(2, 3)))
    names = {module: name for name, module in chain.named_modules()}
    assert [names[entry.module] for entry in finished] == ["one", "relu", "two", "relu", "three", "same", ""]
    assert [entry.is_output for entry in finished] == [False] * 4 + [True] * 3
    assert [tuple(entry.shape) for entry in finished] == [(2, 4), (2, 4), (2, 5), (2, 5), (2, 2), (2, 2), (2, 2)]


def test_follow_notes_what_has_no_features(chain):
    """Modules that return no floating-point tensor are noted without a shape."""
    chain.same.forward = lambda x: x.argmax(dim=1)
    assert [entry.shape for entry in follow([chain], lambda: chain(normal(2, 3)))][-2:] == [None, None]


def test_follow_marks_no_module_where_the_function_makes_the_output(chain):
    """An output that the function computes itself is no module's."""
    finished = follow([chain], lambda: chain(normal(2, 3)) * 2)
    assert not any(entry.is_output for entry in finished)
    assert math.prod(finished[-1].shape) == 4
