"""Laws of reading a model's graph: which nonlinearities act, whichever way they are written."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from captum.attr import GuidedBackprop, Saliency
from torch import nn

from captum_iba.comparison._graph import assert_deep_lift_modules, assert_relu_modules, functional_activations
from captum_iba.errors import InvalidArgumentError, NoTensorError, UnsupportedModelError
from tests.attr.test_bad_input import state_of

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Code(nn.Module):
    """A convolution, ``act`` in code, and a head; with a ReLU module that ``act`` may use."""

    def __init__(self, act):
        super().__init__()
        self.conv, self.relu, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Linear(4, 3)
        self.act = act

    def forward(self, x):
        return self.head(self.act(self, self.conv(x)).mean(dim=(2, 3)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(3, 1, batch_first=True)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return self.attention(tokens, tokens, tokens)[0].mean(dim=1)


def net(*middle):
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *middle, nn.Flatten(), nn.LazyLinear(3))


SHARED = nn.ReLU()
RIGHT = {
    "modules": lambda: net(nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True)),
    "one module twice": lambda: net(SHARED, nn.Conv2d(4, 4, 1), SHARED),
    "first module in place": lambda: nn.Sequential(nn.ReLU(inplace=True), net(nn.ReLU())),
    "batch norm": lambda: net(nn.BatchNorm2d(4), nn.ReLU()),
    "group norm": lambda: net(nn.GroupNorm(2, 4), nn.ReLU()),
    "max pooling": lambda: net(nn.ReLU(), nn.MaxPool2d(2)),
    "average pooling": lambda: net(nn.AvgPool2d(2), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
    "dropout": lambda: net(nn.ReLU(inplace=True), nn.Dropout(), nn.Dropout2d()),
    "upsampling": lambda: net(nn.Upsample(scale_factor=2, mode="bilinear"), nn.ReLU()),
    "skip": lambda: Code(lambda m, x: x + m.relu(x)),
    "skip in place": lambda: Code(lambda m, x: m.relu(x).add_(x)),
    "concatenation": lambda: Code(lambda m, x: torch.cat([x[:, :2], m.relu(x)[:, 2:]], dim=1)),
    "factor": lambda: Code(lambda m, x: m.relu(2 * x / 3 - 1)),
    "no activation": lambda: Code(lambda _m, x: x),
}
WRONG = {
    "functional relu": (lambda: Code(lambda _m, x: F.relu(x)), ["Relu in the model (Code)"]),
    "relu in place": (lambda: Code(lambda _m, x: x.relu_()), ["Relu in the model (Code)"]),
    "relu within a module": (
        lambda: nn.Sequential(Code(lambda m, x: m.relu(x).relu()), nn.ReLU()),
        ["Relu in '0' (Code)"],
    ),
    "GELU": (lambda: net(nn.GELU()), ["Gelu in '1' (GELU)"]),
    "SiLU": (lambda: net(nn.SiLU()), ["Silu in '1' (SiLU)"]),
    "two": (lambda: net(nn.Tanh(), nn.ReLU(), nn.Sigmoid()), ["Tanh in '1' (Tanh)", "Sigmoid in '3' (Sigmoid)"]),
    "one, twice": (lambda: net(*[nn.Tanh()] * 2), ["Tanh in '1' (Tanh)"]),
    "leaky": (lambda: net(nn.LeakyReLU()), ["LeakyRelu in '1' (LeakyReLU)"]),
    "ReLU6": (lambda: net(nn.ReLU6()), ["Hardtanh in '1' (ReLU6)"]),
    "clamp": (lambda: Code(lambda _m, x: x.clamp(min=0)), ["Clamp in the model (Code)"]),
    "where": (lambda: Code(lambda _m, x: torch.where(x > 0, x, 0.1 * x)), ["Where in the model (Code)"]),
    "square": (lambda: Code(lambda _m, x: x * x), ["Mul in the model (Code)"]),
    "softmax at the end": (lambda: net(nn.ReLU(), nn.Flatten(), nn.Softmax(dim=1)), ["Softmax in '3' (Softmax)"]),
}


@pytest.mark.parametrize("name", RIGHT)
def test_relu_modules_are_accepted(name):
    """Modules in every arrangement, with linear operations, pooling and normalisation around them."""
    model = RIGHT[name]()
    model(IMAGES)  # makes the lazy layers
    assert functional_activations(model, IMAGES) == []
    assert_relu_modules(model, IMAGES)


@pytest.mark.parametrize("name", WRONG)
def test_other_nonlinearities_are_named(name):
    """Each is named once, with the module in whose code it stands."""
    make, names = WRONG[name]
    model = make()
    model(IMAGES)
    found = functional_activations(model, IMAGES)
    assert [entry for entry in found if entry in names] == names
    if name != "softmax at the end":
        assert found == names
    with pytest.raises(UnsupportedModelError, match=r"nn\.ReLU modules act: \w+ in .*Put nn\.ReLU"):
        assert_relu_modules(model, IMAGES)


def test_attention_is_named():
    assert any("attention" in entry for entry in functional_activations(Attention(), IMAGES))


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "alexnet", "squeezenet1_0", "regnet_x_400mf"])
def test_torchvision_models_with_relu_modules(name):
    assert_relu_modules(torchvision.models.get_model(name, weights=None), torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("name", "word"), [("mobilenet_v3_small", "Hardswish"), ("efficientnet_b0", "Silu"), ("googlenet", "Relu")]
)
def test_torchvision_models_with_others(name, word):
    model = torchvision.models.get_model(name, weights=None, **({"init_weights": False} if name == "googlenet" else {}))
    with pytest.raises(UnsupportedModelError, match=rf"{word} in '.*and \d+ more"):
        assert_relu_modules(model, torch.randn(1, 3, 64, 64))


@pytest.mark.filterwarnings("ignore:Setting backward hooks", "ignore:Input Tensor 0 did not")
@pytest.mark.parametrize("is_module", [True, False])
def test_refusal_is_what_captum_does(is_module):
    """GuidedBackprop differs from the gradient on ReLU modules, and is the gradient on the function."""
    torch.manual_seed(0)
    model = Code(lambda m, x: m.relu(x) if is_module else F.relu(x)).eval()
    with torch.no_grad():
        model.head.weight -= 0.3
    gradient = Saliency(model).attribute(IMAGES, target=0, abs=False)
    assert torch.equal(GuidedBackprop(model).attribute(IMAGES, target=0), gradient) != is_module


def test_the_model_stays_as_it_is():
    """Also in training mode, with frozen weights, gradients, under no_grad, and after a refusal."""
    model = net(nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(), nn.GELU())
    model(IMAGES)
    model[0].weight.requires_grad_(False)
    model[0].register_forward_hook(lambda *_: None)
    model(IMAGES).sum().backward()
    inputs, before = IMAGES.clone(), state_of(model)
    for context in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        with context(), pytest.raises(UnsupportedModelError):
            assert_relu_modules(model, inputs)
    assert state_of(model) == before
    assert torch.equal(inputs, IMAGES) and not inputs.requires_grad and inputs.grad is None


def test_inputs_and_outputs_that_have_no_graph():
    with pytest.raises(InvalidArgumentError, match=r"torch\.int64.*floating-point"):
        functional_activations(nn.Embedding(3, 2), torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(UnsupportedModelError, match="does not depend on the inputs"):
        functional_activations(Code(lambda _m, x: x.detach()), IMAGES)
    with pytest.raises(NoTensorError, match="wanted a tensor"):
        functional_activations(Attention().attention, (IMAGES.flatten(2).transpose(1, 2),) * 3)


def test_several_inputs():
    """Tensors that carry no gradient go along."""

    class Two(nn.Module):
        def forward(self, x, y, index):
            return (x.relu() + y)[:, index[0]]

    x = torch.randn(3, 4)
    assert functional_activations(Two(), (x, x, torch.tensor([1, 2, 3]))) == ["Relu in the model (Two)"]


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.LayerNorm([4, 8, 8]), nn.InstanceNorm2d(4)])
def test_deep_lift_has_no_rule_for_norms_of_the_example(norm):
    """They divide by a deviation of the example's own, of which the gradient is no share of the output."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), norm, nn.ReLU(), nn.Flatten(), nn.Linear(256, 2)).eval()
    with pytest.raises(UnsupportedModelError, match=f"'1' .{type(norm).__name__}"):
        assert_deep_lift_modules(model, torch.randn(1, 3, 8, 8))


def test_deep_lift_takes_what_captum_has_rules_for():
    """Batch normalisation in evaluation mode is linear; sigmoids and their kin have a rule."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1), nn.ELU(),
        nn.Flatten(), nn.Linear(36, 2),
    ).eval()  # fmt: skip
    assert_deep_lift_modules(model, torch.randn(1, 3, 8, 8))
