"""Laws of PatternAttribution: conservation, chains followed and others refused, targets, no trace left behind."""

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from captum.attr import NoiseTunnel
from safetensors.torch import save_file
from torch import nn

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
        if getattr(module, "running_var", None) is not None:
            module.running_var.abs_().add_(0.5)
    return model.double().eval()


CNN = small_cnn()
DATA = normal(30, 3, 10, 10, seed=1)
WHOLE = PatternAttribution(CNN).fit(DATA).patterns


def test_relevance_is_conserved_without_gates_and_padding():
    """All of the output's value arrives at the input; behind ReLUs, what the open gates let through."""
    model = filled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(36, 3)))
    data = normal(60, 3, 8, 8)
    relevance = PatternAttribution(model).fit(data).attribute(data, target=2)
    torch.testing.assert_close(relevance.sum(dim=(1, 2, 3)), model(data)[:, 2].detach())


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
        lambda m, x: m.relu(m.relu(x)),
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


def adds_to(model):
    return lambda x: model(x) + 1


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
    "addition to the output": (lambda: adds_to(code(lambda m, x: m.relu(x))), "what the model returns is not"),
    "resnet": (lambda: torchvision.models.resnet18().eval().double(), r"'layer1\.0\.relu'.*'layer1\.0\.bn2'"),
    "squeezenet": (lambda: torchvision.models.squeezenet1_0().eval().double(), r"'features\.3\.expand3x3'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_networks_that_are_no_chains_are_refused(name):
    make, words = REFUSED[name]
    function = make()
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
    "number": (lambda m: m.fit(5), errors.InvalidTypeError, "int; wanted an iterable"),
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
