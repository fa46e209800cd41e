"""Laws of the patterns: closed forms, loops in numpy, patches, streaming, folding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from captum_iba.attr.pattern_attribution import PatternAttribution
from tests.attr.test_pattern_attribution import CNN, DATA, WHOLE, filled
from tests.literal import normal


def distracted(n=400, seed=0):
    """x = a s + d eps: a signal and two distractors, one of which the weights know nothing of."""
    signal, *noise = normal(3, n, seed=seed)
    directions = normal(3, 4, seed=seed + 1)
    return sum(value[:, None] * axis for value, axis in zip((signal + 2, *noise), directions, strict=True))


@pytest.mark.parametrize("patterns", ["relu", "linear"])
def test_linear_layer_has_the_closed_form(patterns):
    """A layer without ReLU: a = cov[x, y] / var[y], w a = 1, and attributions w * a * y, with bias in y alone."""
    model, x = filled(nn.Linear(4, 3)), distracted()
    method = PatternAttribution(model).fit(x, patterns=patterns)
    y = model(x).detach().numpy()
    centred = (x - x.mean(dim=0)).numpy()
    covariance = (y - y.mean(axis=0)).T @ centred / len(x)
    wanted = torch.from_numpy(covariance / y.var(axis=0)[:, None])
    (found,) = method.patterns.values()
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close((model.weight * found).sum(dim=1), torch.ones(3).double())
    attributions = method.attribute(x[:5], target=[0, 1, 2, 1, 0])
    for row, target, value in zip(attributions, [0, 1, 2, 1, 0], y, strict=False):
        torch.testing.assert_close(row, (model.weight[target] * wanted[target] * value[target]).detach())


def test_pattern_finds_the_signal_that_the_weight_does_not_point_at():
    """w = (1, -1) cancels the distractor (1, 1); the signal lies along (1, 0)."""
    signal, distractor = normal(2, 20_000)
    x = torch.stack([signal + distractor, distractor], dim=1)
    model = filled(nn.Linear(2, 1))
    model.weight.data = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    (found,) = PatternAttribution(model).fit(x, max_examples=20_000).patterns.values()
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0]]).double(), rtol=0, atol=0.03)


def two_component_by_loops(x, weight, bias):
    """The pattern of each neuron behind a ReLU, one example at a time; a bias is the weight of a constant input."""
    patterns = []
    for w, b in zip(weight, bias, strict=True):
        ys = [sum(w[i] * row[i] for i in range(len(w))) + b for row in x]
        active = [index for index, y in enumerate(ys) if y > 0]
        mean_y = sum(ys) / len(ys)
        extended = [[*row, 1.0] for row in x]
        numerator = []
        for i in range(len(w) + 1):
            mean_x = sum(extended[k][i] for k in active) / len(active)
            mean_xy = sum(extended[k][i] * ys[k] for k in active) / len(active)
            numerator.append(mean_xy - mean_x * mean_y)
        denominator = sum(v * n for v, n in zip([*w, b], numerator, strict=True))
        patterns.append([n / denominator for n in numerator[:-1]])
    return np.array(patterns)


@pytest.mark.parametrize("bias", [True, False])
def test_two_layers_by_loops(bias):
    """Linear, ReLU, linear: patterns and attributions against numpy."""
    model = filled(nn.Sequential(nn.Linear(4, 5, bias=bias), nn.ReLU(), nn.Linear(5, 3, bias=bias)))
    data, x = normal(60, 4, seed=3), normal(4, 4, seed=4)
    method = PatternAttribution(model).fit(data)
    w0, w1 = (model[i].weight.detach().numpy() for i in (0, 2))
    b0, b1 = (model[i].bias.detach().numpy() if bias else np.zeros(len(w)) for i, w in ((0, w0), (2, w1)))
    a0 = two_component_by_loops(data.tolist(), w0, b0)
    hidden = np.maximum(data.numpy() @ w0.T + b0, 0)
    out = hidden @ w1.T + b1
    a1 = ((out - out.mean(0)).T @ (hidden - hidden.mean(0))) / len(data) / out.var(axis=0)[:, None]
    np.testing.assert_allclose(method.patterns["0"], a0, rtol=1e-9)
    np.testing.assert_allclose(method.patterns["2"], a1, rtol=1e-9)
    before = x.numpy() @ w0.T + b0
    output = np.maximum(before, 0) @ w1.T + b1
    for row, target in enumerate([2, 0, 1, 1]):
        relevance = output[row, target] * w1[target] * a1[target]
        relevance = relevance * (before[row] > 0)
        wanted = relevance @ (w0 * a0)
        found = method.attribute(x, target=[2, 0, 1, 1])[row]
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


def test_weights_and_patterns_make_one():
    """w a = 1 for every neuron without bias, behind a ReLU too; with a bias that is active, 1 less its share."""
    for bias in (False, True):
        model = filled(nn.Sequential(nn.Conv2d(3, 8, 3, bias=bias), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3)))
        method = PatternAttribution(model).fit(normal(50, 3, 8, 8))
        products = [(model[i].weight * method.patterns[str(i)]).flatten(1).sum(dim=1) for i in (0, 3)]
        torch.testing.assert_close(products[1], torch.ones(3).double())
        assert torch.allclose(products[0], torch.ones(8).double()) != bias


LAYERS = {
    "1d": (nn.Conv1d, {"kernel_size": 3, "stride": 2, "padding": 1}),
    "2d": (nn.Conv2d, {"kernel_size": (3, 2), "stride": (1, 2), "padding": (2, 0), "dilation": (2, 1)}),
    "2d same": (nn.Conv2d, {"kernel_size": 2, "padding": "same"}),
    "2d reflected": (nn.Conv2d, {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}),
    "2d groups": (nn.Conv2d, {"kernel_size": 3, "padding": 1, "groups": 2}),
    "2d depthwise": (nn.Conv2d, {"kernel_size": 3, "groups": 4, "bias": False}),
    "3d": (nn.Conv3d, {"kernel_size": 2, "stride": 2, "groups": 2}),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("patterns", ["relu", "linear"])
@pytest.mark.parametrize("name", LAYERS)
def test_convolution_is_a_linear_layer_on_patches(name, patterns):
    """Patterns are those of linear layers, one for each group, on the patches taken out one by one."""
    kind, arguments = LAYERS[name]
    axes = int(kind.__name__[-2])
    layer = filled(kind(4, 8, **arguments))
    x = normal(20, 4, *[7] * axes, seed=2)
    found = PatternAttribution(nn.Sequential(layer, nn.ReLU()).eval()).fit(x, patterns=patterns).patterns["0"]
    # a convolution whose filters each pick one place of one channel gives the patches
    size = layer.weight[0, 0].numel()
    picker = kind(4, 4 * size, **(arguments | {"groups": 1, "bias": False})).double()
    picker.weight.data = torch.eye(4 * size).double().reshape(picker.weight.shape)
    patches = picker(x).flatten(2).transpose(1, 2).flatten(0, 1).detach()
    for group, (ours, weight) in enumerate(
        zip(found.chunk(layer.groups), layer.weight.chunk(layer.groups), strict=True)
    ):
        linear = nn.Linear(weight[0].numel(), len(weight)).double().eval()
        linear.weight.data = weight.detach().flatten(1)
        rows = slice(group * len(weight), (group + 1) * len(weight))
        linear.bias.data = layer.bias.detach()[rows] if layer.bias is not None else torch.zeros(len(weight)).double()
        mine = patches.chunk(layer.groups, dim=1)[group]
        method = PatternAttribution(nn.Sequential(linear, nn.ReLU()).eval()).fit(mine, patterns, max_examples=10**6)
        torch.testing.assert_close(ours.flatten(1), method.patterns["0"], rtol=1e-8, atol=1e-8)


@settings(max_examples=10)
@given(st.lists(st.integers(1, 29), max_size=4, unique=True))
def test_streaming_gives_the_same_patterns(cuts):
    """Any split of the data into batches, with labels beside them or not, gives the patterns of the whole."""
    batches = DATA.tensor_split(sorted(cuts))
    split = PatternAttribution(CNN).fit((batch, torch.zeros(len(batch))) for batch in batches).patterns
    for name, pattern in WHOLE.items():
        torch.testing.assert_close(split[name], pattern, rtol=1e-7, atol=1e-9)


def test_max_examples_cuts_the_data():
    for data in (DATA, DATA.split(4)):
        cut = PatternAttribution(CNN).fit(data, max_examples=10).patterns
        torch.testing.assert_close(cut, dict(PatternAttribution(CNN).fit(DATA[:10]).patterns))


def test_batch_normalisation_is_folded():
    """After convolutions and linear layers the pattern is that of the folded layer, and so are attributions."""
    conv, norm, dense, last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4 * 9, 5, bias=False), nn.Linear(5, 3)
    model = filled(
        nn.Sequential(conv, norm, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), dense, nn.BatchNorm1d(5), nn.ReLU(), last)
    )
    folded = nn.Sequential(
        fuse_conv_bn_eval(conv, norm), *model[2:5], fuse_linear_bn_eval(dense, model[6]), nn.ReLU(), last
    ).eval()
    data, x = normal(40, 3, 8, 8), normal(3, 3, 8, 8, seed=5)
    ours, theirs = (PatternAttribution(m).fit(data) for m in (model, folded))
    for mine, other in zip(ours.patterns.values(), theirs.patterns.values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(ours.attribute(x, target=1), theirs.attribute(x, target=1), rtol=1e-8, atol=1e-8)


def test_batch_normalisation_elsewhere_hands_relevance_on():
    """Its neurons have one input each, so that w a = 1: the same relevance as a linear layer that is diagonal."""
    norm = nn.BatchNorm1d(4)
    model = filled(nn.Sequential(norm, nn.Linear(4, 3)))
    x = normal(50, 4)
    diagonal = nn.Linear(4, 4).double()
    diagonal.weight.data = torch.diag(norm.weight * (norm.running_var + norm.eps).rsqrt()).detach()
    diagonal.bias.data = (norm(torch.zeros(1, 4).double()))[0].detach()
    found = PatternAttribution(model).fit(x).attribute(x, target=0)
    method = PatternAttribution(nn.Sequential(diagonal, model[1]).eval())
    # off the diagonal the weights are 0, whatever the pattern
    torch.testing.assert_close(method.fit(x).attribute(x, target=0).sum(dim=1), found.sum(dim=1))


def test_neurons_without_signal_hand_on_nothing():
    """A neuron that is never active, one whose output is constant and one with weight 0 have the pattern 0."""
    model = filled(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    model[0].weight.data = torch.tensor([[1.0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]]).double()
    model[0].bias.data[:] = torch.tensor([0.0, -100.0, 0.0, 3.0])
    x = normal(200, 3)
    x[:, 2] = 1e3  # does not vary
    method = PatternAttribution(model).fit(x)
    assert (method.patterns["0"][1:] == 0).all() and (method.patterns["0"][0] != 0).any()
    assert torch.isfinite(method.attribute(x, target=0)).all()
