"""Laws of the methods of a comparison: the registry, and each method against Captum called directly."""

import copy
import zlib

import captum.attr
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captum_iba import LayerIBA
from captum_iba.attr.pattern_attribution import PatternAttribution
from captum_iba.comparison import Method, compare, register_method, registered_methods, unregister_method
from captum_iba.comparison.lrp import prepare_lrp
from captum_iba.comparison.methods import PAPER, find_methods
from captum_iba.demo import load_canvases, load_model
from captum_iba.errors import CaptumIBAError, InvalidArgumentError, InvalidTypeError
from tests.attr.test_bad_input import state_of
from tests.comparison.comparison_cases import calibration, context, statistics, toy, toy_images, toy_options, weighted

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor 0 did not", "ignore:Setting .*hooks")
CANVASES = load_canvases("test", 3)
IMAGES, TARGETS = CANVASES.images, CANVASES.labels
MEAN = IMAGES.mean(dim=(2, 3), keepdim=True).expand_as(IMAGES)
SEED = 3


def built(name, model=None, **options):
    model = model or load_model()
    (method,) = find_methods([name])
    return method.build(context(model, IMAGES[:1], seed=SEED, **options))


def integrated(model, x, y):
    """The mean gradient at 50 points from the mean colour, without its start, to the image."""
    total = torch.zeros_like(x)
    for step in range(1, 51):
        point = (MEAN + step / 50 * (x - MEAN)).requires_grad_()
        total += torch.autograd.grad(model(point).gather(1, y[:, None]).sum(), point)[0]
    return (total / 50).abs()


def smooth(model, x, y):
    """Captum's NoiseTunnel, image by image, with noise of the image's own seed."""
    maps = []
    for image, label in zip(x.split(1), y.split(1), strict=True):
        torch.manual_seed(zlib.crc32(image.numpy().tobytes(), SEED))
        tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(model))
        spread = 0.15 * float(image.max() - image.min())
        maps.append(tunnel.attribute(image, target=label, nt_samples=50, stdevs=spread, abs=False).abs())
    return torch.cat(maps)


def shuffled(_model, x, _y):
    """The ranks from -1 to 1 in an order that the image's seed draws."""
    order = [torch.Generator().manual_seed(zlib.crc32(image.numpy().tobytes(), SEED)) for image in x]
    ranks = torch.linspace(-1, 1, 64 * 64)
    return torch.stack([ranks[torch.randperm(64 * 64, generator=g)].view(1, 64, 64) for g in order])


def occlusion(side):
    def explain(model, x, y):
        window = (1, side, side)
        return captum.attr.Occlusion(model).attribute(x, window, strides=window, target=y, baselines=MEAN)

    return explain


def bits(model, x, y):
    return LayerIBA(model, model.stage2, statistics=statistics()).attribute(x, target=y, seed=SEED)


DIRECT = {
    "LayerIBA": bits,
    "Random": shuffled,
    "Gradient": lambda m, x, y: captum.attr.Saliency(m).attribute(x, target=y, abs=False),
    "Saliency": lambda m, x, y: captum.attr.Saliency(m).attribute(x, target=y),
    "InputXGradient": lambda m, x, y: captum.attr.InputXGradient(m).attribute(x, target=y),
    "IntegratedGradients": integrated,
    "SmoothGrad": smooth,
    "GuidedBackprop": lambda m, x, y: captum.attr.GuidedBackprop(m).attribute(x, target=y).abs(),
    "Deconvolution": lambda m, x, y: captum.attr.Deconvolution(m).attribute(x, target=y).abs(),
    "LayerGradCam": lambda m, x, y: captum.attr.LayerGradCam(m, m.stage4).attribute(x, target=y).relu(),
    "GuidedGradCam": lambda m, x, y: (
        captum.attr.GuidedGradCam(m, m.stage4).attribute(x, target=y, interpolate_mode="bilinear").abs()
    ),
    "Occlusion-8x8": occlusion(8),
    "Occlusion-14x14": occlusion(14),
    "DeepLift": lambda m, x, y: captum.attr.DeepLift(m).attribute(x, MEAN, target=y),
    "LRP": lambda m, x, y: captum.attr.LRP(prepare_lrp(m, x, epsilon=5.0)).attribute(x, target=y),
    "PatternAttribution": lambda m, x, y: PatternAttribution(m).fit(calibration()).attribute(x, target=y),
}


def test_every_method_of_the_paper_is_known():
    """The list of the paper and the table of this test name the same methods, all of them registered."""
    assert set(PAPER) == set(DIRECT) and set(PAPER) <= set(registered_methods())


@pytest.mark.parametrize("name", PAPER)
def test_a_method_is_captum_called_directly(name):
    """Each map is that of a direct call with the documented parameters, of the input's or the layer's size."""
    found = built(name)(IMAGES, TARGETS)
    model = load_model()
    with torch.random.fork_rng():
        wanted = DIRECT[name](model, IMAGES.clone(), TARGETS).detach()
    assert found.shape == wanted.shape
    assert found.shape[2:] == {"LayerIBA": (16, 16), "LayerGradCam": (8, 8)}.get(name, (64, 64))
    torch.testing.assert_close(found.detach(), wanted, rtol=1e-4, atol=2e-5 * float(wanted.abs().max()))


def test_three_channels_are_reduced_as_documented():
    """Largest absolute value over the channels, mean of signed gradients, sum of shares."""
    model = toy(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    y, leaf = torch.tensor([2, 0]), x.clone().requires_grad_()
    gradient = torch.autograd.grad(model(leaf).gather(1, y[:, None]).sum(), leaf)[0]
    wanted = {
        "Saliency": gradient.abs().amax(dim=1, keepdim=True),
        "Gradient": gradient.mean(dim=1, keepdim=True),
        "InputXGradient": (x * gradient).sum(dim=1, keepdim=True),
    }
    for name, values in wanted.items():
        (method,) = find_methods(name)
        torch.testing.assert_close(method.build(context(model, x[:1], layer=model[0]))(x, y), values)


@pytest.mark.parametrize("name", PAPER)
def test_a_map_depends_on_its_own_example_alone(name):
    """Alone, in a batch, in another order, and for another state of the global generators the map is the same."""
    explain = built(name)
    together = explain(IMAGES, TARGETS).detach()
    with torch.random.fork_rng():
        torch.manual_seed(99)
        backwards = explain(IMAGES.flip(0), TARGETS.flip(0)).detach().flip(0)
        alone = torch.cat([explain(x[None], y[None]).detach() for x, y in zip(IMAGES, TARGETS, strict=True)])
    for maps in (backwards, alone):
        torch.testing.assert_close(maps, together, rtol=1e-3, atol=1e-4 * float(together.abs().max()))


@pytest.mark.parametrize("name", PAPER)
def test_a_method_leaves_no_trace(name):
    """Weights, gradients, flags, hooks, the inputs and the global generators are as they were."""
    model, x, y = load_model(), IMAGES[:1].clone(), TARGETS[:1].clone()
    before, numpy = state_of(model), np.random.get_state()
    explain = built(name, model)
    explain(x, y), explain(x, y)
    assert state_of(model) == before and all(map(np.array_equal, np.random.get_state(), numpy))
    assert torch.equal(x, IMAGES[:1]) and torch.equal(y, TARGETS[:1]) and not x.requires_grad and x.grad is None


@pytest.mark.parametrize("name", PAPER)
def test_no_more_rows_than_allowed(name):
    """At most context.rows rows go through the model at once, and methods with more to do use all of them."""
    model, seen = load_model(), []
    model.head.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    explain = built(name, model, rows=5)
    seen.clear()
    explain(IMAGES[:1], TARGETS[:1])
    many = {"LayerIBA", "IntegratedGradients", "SmoothGrad", "Occlusion-8x8", "Occlusion-14x14"}
    most = 0 if name == "Random" else 5 if name in many else 2 if name == "DeepLift" else 1
    assert max(seen, default=0) == most, seen


def test_options_reach_the_method_and_replace_the_defaults():
    """Further arguments are those of Captum's attribute, of PatternAttribution's fit, and LRP's epsilon."""
    x, y, model = IMAGES[:1], TARGETS[:1], load_model()
    cases = {
        "Saliency": ({"abs": False}, captum.attr.Saliency(model).attribute(x, target=y).abs()),
        "LayerGradCam": (
            {"relu_attributions": False},
            captum.attr.LayerGradCam(model, model.stage4).attribute(x, target=y),
        ),
        "LayerIBA": (
            {"beta": 1.0, "seed": 8},
            LayerIBA(model, model.stage2, statistics=statistics()).attribute(x, target=y, beta=1.0, seed=8),
        ),
        "LRP": ({"epsilon": 1.0}, captum.attr.LRP(prepare_lrp(model, x, epsilon=1.0)).attribute(x, target=y)),
        "PatternAttribution": (
            {"patterns": "linear"},
            PatternAttribution(model).fit(calibration(), patterns="linear").attribute(x, target=y),
        ),
        "Occlusion-8x8": (
            {"baselines": 0.0},
            captum.attr.Occlusion(model).attribute(x, (1, 8, 8), strides=(1, 8, 8), target=y),
        ),
    }
    for name, (options, wanted) in cases.items():
        found = built(name, options={name: options})(x, y)
        atol = 1e-5 * float(wanted.detach().abs().max())
        torch.testing.assert_close(found.detach(), wanted.detach(), rtol=1e-4, atol=atol)


class Functional(nn.Module):
    """Convolutions with an activation in code; with a skip connection, or one ReLU in two places."""

    def __init__(self, activation, skip=False):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.act, self.head, self.skip = activation, nn.Linear(4, 3), skip

    def forward(self, x):
        x = self.act(self.first(x))
        x = self.act(self.second(x)) + (x if self.skip else 0)
        return self.head(x.mean(dim=(2, 3)))


ON_RELUS = {"GuidedBackprop", "Deconvolution", "GuidedGradCam"}
CANNOT = {
    "functional relu": (lambda: Functional(torch.relu), ON_RELUS | {"DeepLift", "LRP", "PatternAttribution"}),
    "GELU": (lambda: Functional(nn.GELU()), ON_RELUS | {"DeepLift", "LRP", "PatternAttribution"}),
    "one ReLU twice": (lambda: Functional(nn.ReLU()), {"DeepLift", "LRP", "PatternAttribution"}),
    "skip connection": (lambda: Functional(nn.ReLU(), skip=True), {"DeepLift", "LRP", "PatternAttribution"}),
    "no maps": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 9), nn.ReLU(), nn.Linear(9, 3)),
        {"LayerIBA", "LayerGradCam", "GuidedGradCam"},
    ),
}


@pytest.mark.parametrize("case", CANNOT)
def test_what_cannot_run_is_a_row_with_its_reason(case):
    """No method is dropped, none that cannot be right runs, and the others have their scores."""
    make, cannot = CANNOT[case]
    options = toy_options(layer=None if case == "no maps" else "first")
    report = compare(weighted(make()), (toy_images(2), [0, 2]), PAPER, ["degradation 8x8"], **options)
    assert [info.name for info in report.results.methods] == list(PAPER)
    assert {info.name for info in report.results.methods if info.reason} == cannot
    for info in report.results.methods:
        undefined = np.isnan(report.results.scores[info.name]["degradation 8x8"])
        assert info.n_failed == (2 if info.reason else 0) and undefined.all() == bool(info.reason)
        assert not info.reason or f"{info.name} could not run: " in str(report)


def test_a_function_and_an_object_are_methods():
    """Functions come by name, Method objects as they are, both beside registered names."""

    def own(x, _y):
        """The brightness."""
        return x

    (method,) = find_methods({"own": own})
    assert (method.name, method.description) == ("own", "The brightness.") and method.build(None) is own
    mine = Method("mine", lambda context: own, unit="bits per pixel")
    assert [m.name for m in find_methods([mine, "Random"])] == ["mine", "Random"] and find_methods([mine])[0] is mine


def test_register_and_unregister():
    """A registered method belongs to "all" and not to "paper"; taken out, it is unknown."""
    assert [m.name for m in find_methods("paper")] == list(PAPER)
    method = register_method("own", lambda context: lambda x, y: x, "mine", "grey")
    try:
        assert find_methods("own") == [method] and "own" in [m.name for m in find_methods("all")]
        assert "own" not in [m.name for m in find_methods("paper")] and registered_methods()[-1] == "own"
        assert register_method("own", lambda context: None).build is not method.build
        assert registered_methods().count("own") == 1
    finally:
        unregister_method("own")
    for act in (lambda: unregister_method("own"), lambda: find_methods("own")):
        with pytest.raises(InvalidArgumentError, match="no method 'own'"):
            act()


@pytest.mark.parametrize(
    ("methods", "error", "said"),
    [
        ("Gradcam", InvalidArgumentError, r"Did you mean 'LayerGradCam'\? Known are .*LRP.*register_method"),
        (["Random", "random"], InvalidArgumentError, r"no method 'random'\. Did you mean 'Random'\?"),
        (["Random", "Random"], InvalidArgumentError, "each once"),
        ([], InvalidArgumentError, "at least one"),
        ({}, InvalidArgumentError, "at least one"),
        ([3], InvalidTypeError, "is a int; wanted its name"),
        (3, InvalidTypeError, "methods is a int"),
        ({"own": 3}, InvalidTypeError, r"methods\['own'\] is a int"),
        ({3: len}, InvalidTypeError, "name is a int"),
    ],
)
def test_a_wrong_method_is_refused_with_advice(methods, error, said):
    """The message says what was found and what is known."""
    with pytest.raises(error, match=said) as caught:
        find_methods(methods)
    assert isinstance(caught.value, CaptumIBAError)


@pytest.mark.parametrize(("name", "build"), [("own", 3), (3, len)])
def test_a_wrong_registration_is_refused(name, build):
    """Neither a builder that cannot be called nor a name that is no string enters the registry."""
    before = registered_methods()
    with pytest.raises(InvalidTypeError):
        register_method(name, build)
    assert registered_methods() == before


def test_backward_hooks_bear_activations_in_place():
    """On a model whose activations overwrite their input the maps are those of the same model without."""
    model = load_model()
    in_place = copy.deepcopy(model)
    for module in in_place.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    for name in ("GuidedBackprop", "DeepLift", "LayerGradCam", "LRP"):
        found, wanted = (built(name, m)(IMAGES[:1], TARGETS[:1]) for m in (in_place, model))
        torch.testing.assert_close(found, wanted)
    assert all(m.inplace for m in in_place.modules() if isinstance(m, nn.ReLU))
    assert F.relu(torch.tensor(-1.0)) == 0
