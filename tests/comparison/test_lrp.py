"""Laws of LRP on the prepared copy: conservation, the epsilon rule by loops, refusal where Captum would be wrong."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from captum.attr import LRP
from captum.attr._utils.custom_modules import Addition_Module
from torch import nn

from captum_iba.comparison.lrp import prepare_lrp
from captum_iba.demo.model import DigitsNet
from captum_iba.errors import InvalidArgumentError, InvalidTypeError, UnsupportedModelError
from tests.attr.test_bad_input import state_of
from tests.literal import normal

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor 0 did not", "ignore:Setting forward, backward hooks")
IMAGES = normal(2, 3, 8, 8)
TINY = 1e-12


def ready(model, *inputs, seed=0):
    """Float64 weights from a generator of their own, in evaluation mode."""
    model.double().eval()
    model(*(inputs or (IMAGES,)))  # makes the lazy layers
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def conv(inputs=4, outputs=4, **kwargs):
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False, **kwargs)


def linear():
    return nn.LazyLinear(3, bias=False)


class Branches(nn.Module):
    """Two bias-free convolutions of one tensor, joined by ``join(self, one, two, x)``."""

    def __init__(self, join, same_relu=False):
        super().__init__()
        self.first, self.one, self.two = conv(3), conv(), conv()
        self.relu, self.relu_one = nn.ReLU(), nn.ReLU()
        self.relu_two = self.relu_one if same_relu else nn.ReLU()
        self.add, self.head, self.join = Addition_Module(), linear(), join

    def forward(self, x):
        x = self.relu(self.first(x))
        one, two = self.one(x), self.two(x)
        return self.head(self.join(self, self.relu_one(one), self.relu_two(two), x).flatten(1))


SHARED = nn.ReLU()
CONSERVING = {
    "chain": lambda: nn.Sequential(conv(3), nn.ReLU(), conv(), nn.ReLU(), nn.Flatten(), linear()),
    "in place": lambda: nn.Sequential(conv(3), nn.ReLU(inplace=True), nn.Flatten(), linear()),
    "max pooling": lambda: nn.Sequential(conv(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), linear()),
    "average pooling": lambda: nn.Sequential(
        conv(3), nn.ReLU(), nn.AvgPool2d(2), conv(), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), linear()
    ),
    "shapes": lambda: nn.Sequential(
        nn.Identity(), nn.Flatten(), nn.Unflatten(1, (3, 8, 8)), conv(3), nn.ReLU(), nn.PixelUnshuffle(2),
        nn.ChannelShuffle(2), nn.Flatten(), linear(),
    ),
    "dropouts": lambda: nn.Sequential(
        conv(3), nn.ReLU(), nn.Dropout2d(inplace=True), nn.Dropout(), nn.Flatten(), nn.AlphaDropout(), linear()
    ),
    "batch norm": lambda: nn.Sequential(
        conv(3), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(256, affine=False), linear()
    ),
    "one ReLU twice": lambda: nn.Sequential(conv(3), SHARED, conv(), SHARED, nn.Flatten(), linear()),
    "one ReLU under two names": lambda: nn.Sequential(
        nn.Sequential(conv(3), SHARED), nn.Sequential(conv(), SHARED), nn.Flatten(), linear()
    ),
    "one ReLU in two branches": lambda: Branches(lambda _m, one, two, _x: torch.cat([one, two], dim=1), same_relu=True),
    "two activations of one tensor": lambda: Branches(
        lambda m, one, _two, _x: torch.cat([m.relu(one), m.relu_two(one)], dim=1)
    ),
    "tanh": lambda: nn.Sequential(conv(3), nn.Tanh(), nn.Flatten(), linear()),
    "groups": lambda: nn.Sequential(conv(3), nn.ReLU(), conv(groups=2), nn.ReLU(), nn.Flatten(), linear()),
    "one layer": lambda: nn.Sequential(nn.Flatten(), linear()),
    "concatenation": lambda: Branches(lambda _m, one, two, _x: torch.cat([one, two], dim=1)),
    "pooling function": lambda: Branches(lambda _m, one, two, _x: F.max_pool2d(torch.cat([one, two], dim=1), 2)),
    "addition module": lambda: Branches(lambda m, one, two, _x: m.add(one, two)),
    "skip through the addition module": lambda: Branches(lambda m, one, _two, x: m.add(one, x)),
    "one branch unused": lambda: Branches(lambda _m, one, _two, _x: one),
}  # fmt: skip
REFUSED = {
    "skip": (lambda: Branches(lambda _m, one, _two, x: one + x), "skip connection .* in the code of the model"),
    "skip in place": (lambda: Branches(lambda _m, one, _two, x: one.add_(x)), "skip connection"),
    "relu in code": (lambda: Branches(lambda _m, one, _two, _x: one.sub(1).relu()), "the function Relu"),
    "gate": (lambda: Branches(lambda _m, one, two, _x: one * two), "a product"),
    "average in code": (lambda: Branches(lambda _m, one, _two, _x: one.mean((2, 3))), "an average"),
    "dense connection": (
        lambda: Branches(lambda _m, one, _two, x: torch.cat([one, x], dim=1)),
        r"one tensor is read by .*'one' \(Conv2d\)",
    ),
    "one layer twice": (lambda: nn.Sequential(conv(3), *[conv()] * 2, nn.Flatten(), linear()), r"'1' .* runs 2 times"),
    "GELU": (lambda: nn.Sequential(conv(3), nn.GELU(), nn.Flatten(), linear()), r"no rule for '1' \(GELU\)"),
    "layer norm": (lambda: nn.Sequential(conv(3), nn.LayerNorm(8), nn.Flatten(), linear()), r"'1' \(LayerNorm\)"),
    "no running statistics": (
        lambda: nn.Sequential(conv(3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten(), linear()),
        "track_running_stats=True",
    ),
}


@pytest.mark.parametrize("name", CONSERVING)
def test_relevance_is_conserved(name):
    """Without biases and with a vanishing epsilon, the relevance of the input sums to the output."""
    model = ready(CONSERVING[name]())
    for target in (0, 2):
        relevance = LRP(prepare_lrp(model, IMAGES, epsilon=TINY)).attribute(IMAGES, target=target)
        torch.testing.assert_close(relevance.sum(dim=(1, 2, 3)), model(IMAGES)[:, target], rtol=1e-3, atol=1e-6)


def captum_loses(model):
    """Most that the relevance which Captum gives without preparation misses of the output."""
    relevance = LRP(copy.deepcopy(model)).attribute(IMAGES, target=1)
    return (relevance.sum(dim=(1, 2, 3)) - model(IMAGES)[:, 1]).abs().max()


@pytest.mark.parametrize("name", REFUSED)
def test_models_on_which_captum_would_be_wrong_are_refused(name):
    make, words = REFUSED[name]
    model = ready(make())
    before = state_of(model)
    with pytest.raises(UnsupportedModelError, match=words):
        prepare_lrp(model, IMAGES)
    assert state_of(model) == before


@pytest.mark.parametrize("name", ["skip", "gate", "dense connection"])
def test_refusal_is_what_captum_does(name):
    """Captum runs on these without an error, and relevance is lost or made."""
    assert captum_loses(ready(REFUSED[name][0]())) > 0.01


@pytest.mark.parametrize("name", ["one ReLU in two branches", "addition module"])
def test_activations_are_right_where_captum_is_not(name):
    """Captum's own hooks confuse the branches of these, which the copy conserves above."""
    assert captum_loses(ready(CONSERVING[name]())) > 0.01


def test_epsilon_rule_by_loops():
    """A two-layer network with biases: R_i = sum_j x_i w_ji R_j / (z_j + epsilon sign z_j)."""
    model = ready(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), normal(3, 4))
    x = normal(3, 4, seed=1)
    found = LRP(prepare_lrp(model, x)).attribute(x, target=1)

    def back(layer, value, relevance):
        value = value.detach()
        result = [0.0] * len(value)
        for j, z in enumerate(layer(value).tolist()):
            for i in range(len(value)):
                share = value[i] * layer.weight[j, i].item() / (z + 5.0 * (1 if z >= 0 else -1))
                result[i] += float(share) * relevance[j]
        return result

    for row, relevance in zip(x, found, strict=True):
        hidden = model[1](model[0](row))
        wanted = back(model[0], row, back(model[2], hidden, [0.0, model(row)[1].item()]))
        torch.testing.assert_close(relevance, torch.tensor(wanted, dtype=torch.float64))


def test_rules_stay_for_any_number_of_calls():
    """Captum deletes rules after each call; here the second call, and one after a failure, give the same."""
    model = ready(CONSERVING["shapes"]())
    method = LRP(prepare_lrp(model, IMAGES))
    first = method.attribute(IMAGES, target=1)
    with pytest.raises(IndexError):
        method.attribute(IMAGES, target=9)
    assert torch.equal(method.attribute(IMAGES, target=1), first)
    assert torch.equal(LRP(copy.deepcopy(method.model)).attribute(IMAGES, target=1), first)
    assert not torch.equal(LRP(prepare_lrp(model, IMAGES, epsilon=1.0)).attribute(IMAGES, target=1), first)


def test_modules_that_reshape_are_as_functions():
    """A Flatten module changes nothing against flattening in code."""
    model = ready(nn.Sequential(conv(3), nn.ReLU(), nn.Flatten(), nn.Dropout(), linear()))

    class InCode(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu, self.head = model[0], model[1], model[4]

        def forward(self, x):
            return self.head(torch.flatten(self.relu(self.conv(x)), 1))

    found = [LRP(prepare_lrp(m, IMAGES)).attribute(IMAGES, target=1) for m in (model, InCode())]
    assert torch.equal(*found)


def test_a_single_layer_is_a_model():
    model, x = ready(nn.Linear(4, 3, bias=False), normal(2, 4)), normal(2, 4)
    relevance = LRP(prepare_lrp(model, x, epsilon=TINY)).attribute(x, target=0)
    torch.testing.assert_close(relevance, x * model.weight[0])


@pytest.mark.parametrize("name", ["vgg11", "vgg11_bn", "alexnet", "squeezenet1_0"])
def test_torchvision_models(name):
    torch.manual_seed(0)
    model, x = torchvision.models.get_model(name, weights=None), torch.randn(1, 3, 64, 64)
    relevance = LRP(prepare_lrp(model, x)).attribute(x, target=int(model.eval()(x).argmax()))
    assert relevance.shape == x.shape and torch.isfinite(relevance).all() and relevance.any()


def test_the_demo_network():
    x = torch.randn(2, 1, 64, 64)
    assert LRP(prepare_lrp(DigitsNet(), x)).attribute(x, target=[1, 2]).any()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (torchvision.models.resnet18(weights=None), r"skip connection .*'layer1\.0' \(BasicBlock\).* and 5 more"),
        (torchvision.models.googlenet(weights=None, init_weights=False), "the function Relu .*BasicConv2d"),
        (torchvision.models.densenet121(weights=None), "average.*Relu .*DenseNet"),
        (torchvision.models.VisionTransformer(64, 16, 1, 2, 16, 32), r"no rule for '.*' \(LayerNorm\)"),
    ],
)
def test_torchvision_models_that_are_refused(model, words):
    with pytest.raises(UnsupportedModelError, match=words):
        prepare_lrp(model, torch.randn(1, 3, 64, 64))


def test_the_model_stays_as_it_is():
    """Tensors, flags, hooks, attributes and classes, though Captum leaves traces on what it explains."""
    model = ready(CONSERVING["dropouts"]()).train()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[1].register_forward_hook(lambda *_: None)
    before, kinds = state_of(model), [type(module) for module in model.modules()]
    with torch.no_grad():
        LRP(prepare_lrp(model, IMAGES)).attribute(IMAGES, target=0)
    assert state_of(model) == before
    assert [type(module) for module in model.modules()] == kinds


@pytest.mark.parametrize("epsilon", [0, -1.0, float("nan"), float("inf"), "5"])
def test_epsilon_out_of_range(epsilon):
    with pytest.raises(InvalidArgumentError, match="epsilon=.*above 0"):
        prepare_lrp(nn.Linear(2, 2), torch.ones(1, 2), epsilon)


def test_a_function_is_refused():
    with pytest.raises(InvalidTypeError, match=r"function; wanted a torch\.nn\.Module"):
        prepare_lrp(lambda x: x, torch.ones(1, 2))
