"""Models, attributions and spies for the tests of parameter randomisation."""

import itertools

import torch
from torch import nn

from tests.literal import normal

IMAGES = normal(3, 3, 10, 10)


class Everything(nn.Module):
    """Children are defined in another order than they run in."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 7)
        self.unused = nn.Linear(2, 7)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.class_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.positions = nn.Parameter(torch.zeros(1, 17, 8))
        self.prompts = nn.ParameterList([torch.zeros(8), torch.zeros(8)])
        self.shared = nn.Linear(8, 8)
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.shared.weight
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 2, stride=2), nn.BatchNorm2d(8), nn.GroupNorm(2, 8))
        self.plain = nn.BatchNorm2d(8, affine=False)
        self.register_buffer("scale", torch.full((), 0.5))
        self.register_buffer("secret", torch.tensor([float("nan"), -0.0, 3.0]), persistent=False)
        self.register_buffer("ids", torch.arange(17).expand(2, -1))  # cannot be written to

    def forward(self, x):
        x = self.plain(self.stem(x)).flatten(2).mT * self.scale
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.positions + self.prompts[1]
        x = self.tied(torch.tanh(self.shared(torch.tanh(self.shared(x)))))
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.norm(x)[:, 0])


ORDER = ["head", "norm", "attention", "tied", "shared", "plain", "stem.2", "stem.1", "stem.0"]
ORDER += ["prompts.1", "prompts.0", "positions", "class_token", "unused"]


def trained(model, seed=0):
    """Values as training might leave them: no parameter is constant."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 + 0.5 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model.eval()


def tensors_of(model):
    """Copies of parameters, under all their names, and of buffers."""
    everything = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in everything}


def bits(tensor):
    return tensor.detach().contiguous().numpy().tobytes()


def edges(model, inputs, target):
    """A map that does not look at the model."""
    return inputs.diff(dim=3, append=inputs[..., :1]).abs().sum(1)


def gradient(model, inputs, target):
    inputs = inputs.detach().clone().requires_grad_()
    (maps,) = torch.autograd.grad(model(inputs)[:, target].sum(), inputs)
    return maps


class Spy:
    """An attribution that keeps what the model held at each call."""

    def __init__(self, function=edges):
        self.seen, self._function = [], function

    def __call__(self, model, inputs, target):
        self.seen.append(tensors_of(model))
        return self._function(model, inputs, target)


def at_call(number, action, otherwise=edges):
    """An attribution that does something else at one of its calls; 0 is the trained model's."""
    counter = itertools.count()

    def attribute(model, inputs, target):
        return (action if next(counter) == number else otherwise)(model, inputs, target)

    return attribute


def one(a, b):
    return torch.ones(len(a))
