"""Laws of the suggested layer: the network's last fine feature map, found without touching the network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_iba import LayerIBA, suggest_layer
from captum_iba.errors import InvalidArgumentError


class OwnNet(nn.Module):
    """A network of its own making, with functional code and attributes in another order than they run in."""

    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Linear(16, 3)
        self.coarse = nn.Conv2d(16, 16, 3, stride=4, padding=1)
        self.fine = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.dropout = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fine(F.max_pool2d(self.stem(x), 2)))
        return self.classify(self.dropout(self.coarse(x).mean(dim=(2, 3))))


def name_of(model: nn.Module, layer: nn.Module) -> str:
    (name,) = [name for name, module in model.named_modules() if module is layer]
    return name


def without_weights(name: str) -> nn.Module:
    """The network's structure: the suggestion depends on shapes alone, and these need no numbers."""
    models = pytest.importorskip("torchvision.models")
    # a RegNet computes its widths with tensors, which must have values
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        model: nn.Module = getattr(models, name)()
    return model.to("meta").eval()


PUBLISHED = {
    "resnet18": "layer2",
    "resnet50": "layer2",
    "vgg16": "features.17",
    "vgg16_bn": "features.24",
    "squeezenet1_0": "features.10",
    "densenet121": "features.denseblock2",
    "mobilenet_v2": "features.6",
    "regnet_y_400mf": "trunk_output.block2",
}


@pytest.mark.parametrize(("name", "layer"), PUBLISHED.items())
def test_known_networks(name: str, layer: str) -> None:
    """In known networks the layer is the published one, or its like."""
    model = without_weights(name)
    assert name_of(model, suggest_layer(model)) == layer


@pytest.mark.parametrize(("size", "layer"), [((224, 224), "fine"), ((64, 64), "fine"), ((64, 96), "fine")])
def test_own_network(size: tuple[int, int], layer: str) -> None:
    """A network of no known family gets its last map with a ninth of the input's side, at any size of input."""
    model = OwnNet().eval()
    assert name_of(model, suggest_layer(model, torch.zeros(1, 3, *size))) == layer


def test_default_input_is_one_image_of_the_usual_size() -> None:
    """Without inputs the suggestion is that for one 3 x 224 x 224 image."""
    model, shapes = OwnNet().eval(), []
    model.register_forward_pre_hook(lambda _module, args: shapes.append(tuple(args[0].shape)))
    assert suggest_layer(model) is suggest_layer(model, torch.zeros(1, 3, 224, 224))
    assert shapes == [(1, 3, 224, 224)] * 2


def test_resolution_is_relative_to_the_input() -> None:
    """The side asked for is a ninth of the input's: where no stride follows, the last map is chosen."""
    convolutions = [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 4, 1), nn.Conv2d(4, 4, 3, 4, 1)]
    model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(4 * 16, 2)).eval()
    assert name_of(model, suggest_layer(model, torch.zeros(1, 3, 64, 64))) == "1"


@pytest.mark.parametrize("name", ["vit_b_16", "vit_b_32"])
def test_networks_without_fine_maps_are_refused(name: str) -> None:
    """A network of tokens has no such layer, and the error says so."""
    with pytest.raises(InvalidArgumentError, match=r"VisionTransformer.*\[1, 3, 224, 224\].*Choose a layer yourself"):
        suggest_layer(without_weights(name))


class Failing(OwnNet):
    """Raises at its end."""

    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        raise OSError("own")


@pytest.mark.parametrize("kind", [OwnNet, Failing])
def test_the_network_is_left_as_it_was(kind: type[OwnNet]) -> None:
    """Modes, buffers, hooks and gradients are untouched, also where the forward pass fails."""
    model = kind().train()
    model.dropout.eval()
    buffers = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    if kind is Failing:
        with pytest.raises(OSError, match="^own$"):
            suggest_layer(model)
    else:
        suggest_layer(model)
    assert [m.training for m in model.modules()] == [m is not model.dropout for m in model.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())
    assert all(torch.equal(tensor, buffers[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.filterwarnings("ignore:There are no feature statistics")
def test_the_suggestion_can_be_explained() -> None:
    """The layer runs once and has a map of bits for each example."""
    model, inputs = OwnNet().eval(), torch.randn(2, 3, 64, 64)
    bits = LayerIBA(model, suggest_layer(model, inputs)).attribute(inputs, 1, n_steps=2, n_samples=1)
    assert bits.shape == (2, 1, 8, 8) and bool((bits.sum(dim=(1, 2, 3)) > 0).all())


def test_a_model_of_another_input_is_asked_for_a_batch() -> None:
    """A grey model does not run on the probe; the message says how to pass one that fits."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 256, 2))
    with pytest.raises(InvalidArgumentError, match=r"suggest_layer\(model, inputs\)"):
        suggest_layer(model)
    assert suggest_layer(model, torch.zeros(1, 1, 16, 16)) is model[0]
