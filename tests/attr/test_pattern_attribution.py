"""Laws of PatternAttribution: closed forms, loops in numpy, streaming, folding, conservation, refusal."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from captum.attr import NoiseTunnel
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from captum_iba import errors
from captum_iba.attr.pattern_attribution import PatternAttribution
from captum_iba.demo.model import DigitsNet
from tests.attr.test_bad_input import state_of
from tests.literal import normal, small_cnn


def filled(model, seed=0):
    """Float64 weights and statistics from a generator of their own, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
        tensor.data = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    for module in model.modules():
        if hasattr(module, "running_var"):
            module.running_var.abs_().add_(0.5)
    return model.double().eval()


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


@pytest.mark.parametrize("patterns", ["relu", "linear"])
@pytest.mark.parametrize("name", LAYERS)
def test_convolution_is_a_linear_layer_on_patches(name, patterns):
    """Patterns are those of linear layers, one for each group, on the patches taken out one by one."""
    kind, arguments = LAYERS[name]
    axes = int(kind.__name__[-2])
    layer = filled(kind(4, 8, **arguments))
    x = normal(20, 4, *[7] * axes, seed=2)
    found = PatternAttribution(nn.Sequential(layer, nn.ReLU())).fit(x, patterns=patterns).patterns["0"]
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
        method = PatternAttribution(nn.Sequential(linear, nn.ReLU())).fit(mine, patterns, max_examples=10**6)
        torch.testing.assert_close(ours.flatten(1), method.patterns["0"], rtol=1e-8, atol=1e-8)


CNN = small_cnn()
DATA = normal(30, 3, 10, 10, seed=1)
WHOLE = PatternAttribution(CNN).fit(DATA).patterns


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


def test_relevance_is_conserved_without_gates_and_padding():
    """All of the output's value arrives at the input; behind ReLUs, what the open gates let through."""
    model = filled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(36, 3)))
    data = normal(60, 3, 8, 8)
    relevance = PatternAttribution(model).fit(data).attribute(data, target=2)
    torch.testing.assert_close(relevance.sum(dim=(1, 2, 3)), model(data)[:, 2].detach())


def test_neurons_without_signal_hand_on_nothing():
    """A neuron that is never active, one whose output is constant and one with weight 0 have the pattern 0."""
    model = filled(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    model[0].weight.data[1:] = torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [0, 0, 0]])
    model[0].bias.data[:] = torch.tensor([0.0, -100.0, 0.0, 3.0])
    x = normal(200, 3)
    x[:, 2] = 1e3  # does not vary
    method = PatternAttribution(model).fit(x)
    assert (method.patterns["0"][1:] == 0).all() and (method.patterns["0"][0] != 0).any()
    assert torch.isfinite(method.attribute(x, target=0)).all()


@pytest.mark.parametrize("name", ["vgg11", "vgg11_bn", "vgg16", "alexnet"])
def test_torchvision_models(name):
    torch.manual_seed(0)
    model, x = torchvision.models.get_model(name, weights=None).eval(), torch.randn(2, 3, 64, 64)
    found = PatternAttribution(model).fit(x).attribute(x, target=torch.tensor([1, 2]))
    assert found.shape == x.shape and torch.isfinite(found).all() and found.any() and not found.requires_grad


def test_the_demo_network_and_a_function_around_it():
    model, x = DigitsNet().eval(), torch.randn(4, 1, 64, 64)
    plain = PatternAttribution(model).fit(x).attribute(x, target=3)
    assert plain.any()
    assert torch.equal(PatternAttribution(lambda images: model(images)).fit(x).attribute(x, target=3), plain)


class Code(nn.Module):
    """A convolution and a head, with ``between`` in code."""

    def __init__(self, between):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.between, self.head = between, nn.LazyLinear(3)

    def forward(self, x, extra=None):
        y = self.between(self, self.norm(self.conv(x)))
        return self.head(y.flatten(1)) if extra is None else self.head(y.flatten(1)) + extra


def code(between):
    model = Code(between)
    model.eval()(IMAGES.float())
    return filled(model)


IMAGES = normal(6, 3, 8, 8)


@pytest.mark.parametrize(
    "between",
    [
        lambda m, x: m.relu(x),
        lambda m, x: m.relu(x).contiguous().view(len(x), -1),
        lambda m, x: F.dropout(m.relu(x), training=m.training),
        lambda m, x: m.relu(m.conv(m.relu(x)[:, :3])) if False else m.relu(m.relu(x)),
    ],
)
def test_chains_in_code_are_followed(between):
    """In-place modules, flattening in any words, a module that runs twice."""
    model = code(between)
    x = IMAGES.clone()
    wanted = PatternAttribution(nn.Sequential(model.conv, model.norm, nn.ReLU(), nn.Flatten(), model.head).eval()).fit(
        IMAGES
    )
    method = PatternAttribution(model).fit(x)
    torch.testing.assert_close(method.attribute(x, target=1), wanted.attribute(IMAGES, target=1))
    assert torch.equal(x, IMAGES)


REFUSED = {
    "relu in code": (lambda: code(lambda _m, x: F.relu(x)), "what 'head' .*Linear.* is not what 'norm'.*torch.relu"),
    "relu in place": (lambda: code(lambda _m, x: x.relu_()), "'head'.*'norm'"),
    "skip": (lambda: code(lambda m, x: m.relu(x) + x), "'head'.*'relu'.*residual or branching"),
    "factor": (lambda: code(lambda m, x: m.relu(2 * x)), "'relu'.*'norm'"),
    "pooling in code": (lambda: code(lambda m, x: m.relu(x).mean((2, 3))), "'head'.*'relu'"),
    "GELU": (lambda: filled(nn.Sequential(nn.Conv2d(3, 2, 3), nn.GELU())), r"'1' \(GELU\) has no rule"),
    "batch statistics": (
        lambda: filled(nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2, track_running_stats=False))),
        "track_running_stats=True",
    ),
    "indices": (lambda: filled(nn.Sequential(nn.MaxPool2d(2, return_indices=True))), "return_indices=False"),
    "nothing to learn": (lambda: nn.Sequential(nn.ReLU(), nn.Flatten()).eval(), "No convolution or linear layer"),
    "skip to the output": (lambda: code(lambda m, x: m.relu(x)).forward, "what the model returns is not"),
    "resnet": (lambda: torchvision.models.resnet18(weights=None).double().eval(), r"'layer1\.0\.relu'.*'layer1\.0\.bn2'"),
    "squeezenet": (lambda: torchvision.models.squeezenet1_0(weights=None).double().eval(), r"'features\.3\.expand3x3'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_networks_that_are_no_chains_are_refused(name):
    make, words = REFUSED[name]
    function = make()
    if name == "skip to the output":
        function = lambda x, inner=function: inner(x, torch.ones(3).double())  # noqa: E731
    x = normal(2, 3, 64, 64) if name in ("resnet", "squeezenet") else IMAGES
    with pytest.raises(errors.UnsupportedModelError, match=words):
        PatternAttribution(function).fit(x)


def test_hidden_modules_are_refused():
    with pytest.raises(errors.UnsupportedModelError, match="hides its modules"):
        PatternAttribution(torch.relu).fit(IMAGES)
    with pytest.raises(errors.InvalidTypeError, match="str; wanted a module"):
        PatternAttribution("model")


def test_every_call_measures_the_chain():
    """A network that is a chain for the data of fit, and not for the input."""
    model = code(lambda m, x: m.relu(x) if x.shape[0] > 2 else F.softplus(x))
    method = PatternAttribution(model).fit(IMAGES)
    with pytest.raises(errors.UnsupportedModelError, match="not a chain"):
        method.attribute(IMAGES[:2], target=0)


def test_two_runs_of_one_layer_have_a_pattern_each():
    layer = nn.Linear(4, 4)
    model = filled(nn.Sequential(layer, nn.ReLU(), layer))
    apart = nn.Sequential(layer, nn.ReLU(), nn.Linear(4, 4).double()).eval()
    apart[2].load_state_dict(layer.state_dict())
    x = normal(40, 4)
    method, wanted = PatternAttribution(model).fit(x), PatternAttribution(apart).fit(x)
    assert sorted(method.patterns) == ["0", "0#2"]
    assert torch.equal(method.attribute(x, target=1), wanted.attribute(x, target=1))


def test_all_forms_of_target():
    """Captum's forms agree with one another, also for outputs with further axes and for one value per example."""
    x = IMAGES
    method = PatternAttribution(CNN).fit(DATA)
    x = DATA[:4]
    whole = torch.stack([method.attribute(x, target=index) for index in range(4)])
    picked = torch.stack([whole[target, row] for row, target in enumerate([2, 0, 3, 1])])
    for target in ([2, 0, 3, 1], torch.tensor([2, 0, 3, 1]), [(2,), (0,), (3,), (1,)]):
        assert torch.equal(method.attribute(x, target=target), picked)
    for target in (torch.tensor(2), torch.tensor([2]), (2,), -2):
        assert torch.equal(method.attribute(x, target=target), whole[2])
    maps = filled(nn.Sequential(nn.Conv2d(3, 4, 3)))
    found = PatternAttribution(maps).fit(IMAGES).attribute(IMAGES, target=(1, 2, 3))
    assert found[..., 2:5, 3:6].any() and not found[..., :2, :].any() and not found[..., 5:, :].any()
    single = filled(nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)))
    assert PatternAttribution(single).fit(normal(9, 3)).attribute(normal(4, 3)).shape == (4, 3)


def test_tuples_and_additional_arguments():
    """A tuple for a tuple; arguments that take no part are handed on, and others refused."""
    model = code(lambda m, x: m.relu(x))
    method = PatternAttribution(model).fit(IMAGES)
    wanted = method.attribute(IMAGES, 1)
    (found,) = method.attribute((IMAGES,), 1, additional_forward_args=(torch.zeros(3).double(),))
    assert torch.equal(found, wanted)
    with pytest.raises(errors.UnsupportedModelError, match="what the model returns"):
        method.attribute(IMAGES, 1, additional_forward_args=torch.ones(3))
    with pytest.raises(errors.InvalidArgumentError, match="2 tensors"):
        method.attribute((IMAGES, IMAGES), 1)


def test_the_model_stays_as_it_is():
    """Flags, hooks, weights, gradients, random state; the result is that of evaluation mode, and needs no gradient."""
    model = small_cnn()
    model.append(nn.Dropout())
    method = PatternAttribution(model.eval()).fit(DATA)
    wanted = method.attribute(DATA, target=1)
    model.train()[1].eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    seen = []
    model[2].register_forward_hook(lambda *_: seen.append(1))
    before, inputs = state_of(model), DATA.clone()
    for context, needs_gradient in itertools.product((torch.no_grad, torch.enable_grad, torch.inference_mode), (0, 1)):
        with context(), pytest.warns(errors.CaptumIBAWarning, match="training mode"):
            x = (inputs.clone() if context is torch.inference_mode else inputs).requires_grad_(bool(needs_gradient))
            other = PatternAttribution(model).fit(x)
            assert torch.equal(other.attribute(x, target=1), wanted)
    assert seen and state_of(model) == before and torch.equal(inputs, DATA) and inputs.grad is None


def test_single_precision_and_half_follow_the_model():
    double = PatternAttribution(small_cnn()).fit(DATA)
    single = PatternAttribution(small_cnn().float()).fit(DATA.float())
    for name, pattern in double.patterns.items():
        assert single.patterns[name].dtype == torch.float32
        torch.testing.assert_close(single.patterns[name].double(), pattern, rtol=1e-2, atol=1e-3)
    half = PatternAttribution(small_cnn().bfloat16()).fit(DATA.bfloat16())
    assert half.attribute(DATA.bfloat16(), target=1).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not")
def test_noise_tunnel():
    method = PatternAttribution(CNN).fit(DATA)
    plain = method.attribute(DATA[:2], target=[0, 1])
    found = NoiseTunnel(method).attribute(DATA[:2], nt_samples=3, stdevs=1e-9, target=[0, 1])
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-6)


def test_patterns_can_be_kept(tmp_path: Path):
    """Saved and read patterns are the same bit by bit."""
    path = tmp_path / "patterns.safetensors"
    method = PatternAttribution(CNN).fit(DATA)
    method.save(path)
    again = PatternAttribution(CNN).load(path)
    assert all(torch.equal(again.patterns[name], pattern) for name, pattern in method.patterns.items())
    assert torch.equal(again.attribute(DATA, target=1), method.attribute(DATA, target=1))
    with pytest.raises(errors.StatisticsError, match=r"another model.*'Linear' wants .*\[3, 4\].*Call fit"):
        PatternAttribution(nn.Linear(4, 3).eval()).load(path).attribute(torch.ones(2, 4), target=0)


def test_files_that_hold_no_patterns(tmp_path: Path):
    method = PatternAttribution(CNN)
    path = tmp_path / "file.safetensors"
    with pytest.raises(errors.MissingFileError, match="Write one"):
        method.load(path)
    path.write_text("{}")
    with pytest.raises(errors.StatisticsFileError, match=r"file\.safetensors.*Run fit"):
        method.load(path)
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(errors.StatisticsFileError, match=r"'weight'.*captum_iba\.patterns"):
        method.load(path)
    with pytest.raises(errors.MissingFileError, match="folder"):
        PatternAttribution(CNN).fit(DATA).save(tmp_path / "none" / "file")


BAD = {
    "before fit": (lambda m: PatternAttribution(CNN).attribute(DATA), errors.StatisticsError, "Call fit"),
    "nothing to save": (lambda m: PatternAttribution(CNN).save("x"), errors.StatisticsError, "Call fit"),
    "no data": (lambda m: m.fit([]), errors.StatisticsError, "found 0"),
    "one example": (lambda m: m.fit(DATA[:1]), errors.StatisticsError, "found 1"),
    "kind": (lambda m: m.fit(DATA, "max"), errors.InvalidArgumentError, "patterns='max'"),
    "max_examples": (lambda m: m.fit(DATA, max_examples=1), errors.InvalidArgumentError, "max_examples=1"),
    "text": (lambda m: m.fit(["a"]), errors.InvalidTypeError, "str"),
    "mapping": (lambda m: m.fit([{"x": DATA}]), errors.InvalidTypeError, "dict"),
    "two inputs": (lambda m: m.fit([((DATA, DATA), 0)]), errors.InvalidTypeError, "single input"),
    "NaN in the data": (lambda m: m.fit(DATA * float("nan")), errors.NonFiniteError, "isfinite"),
    "NaN in the input": (lambda m: m.attribute(DATA * float("nan"), 1), errors.NonFiniteError, r"inputs\[0\]"),
    "empty batch": (lambda m: m.attribute(DATA[:0], 1), errors.InvalidArgumentError, "empty"),
    "target missing": (lambda m: m.attribute(DATA), errors.TargetError, "Pass target"),
    "target too large": (lambda m: m.attribute(DATA, 4), errors.TargetIndexError, "target=4"),
    "targets too large": (lambda m: m.attribute(DATA, [4] * 30), errors.TargetIndexError, "from 0 to"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    """The class and words of each error; the patterns from before stay."""
    call, error, words = BAD[name]
    method, before = PatternAttribution(CNN).fit(DATA), state_of(CNN)
    with pytest.raises(error, match=words) as caught:
        call(method)
    assert type(caught.value) is error
    assert state_of(CNN) == before
    assert all(torch.equal(method.patterns[layer], pattern) for layer, pattern in WHOLE.items())
