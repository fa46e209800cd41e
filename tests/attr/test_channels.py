"""Laws of the channel axis: which one is found, and the shape of the attribution that follows from it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from captum_iba import LayerIBA
from captum_iba.errors import InvalidArgumentError

pytestmark = pytest.mark.filterwarnings("ignore:There are no feature statistics", "ignore:sigma=")


class Model(nn.Module):
    """Runs a body and makes two classes of what it returns, whatever its layout."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        output = self.body(x)
        flat = (output if isinstance(output, Tensor) else output[0]).flatten(1)
        return torch.stack([flat.mean(dim=1), flat.square().mean(dim=1)], dim=1)


class ConvBlock(nn.Module):
    """A convolution and its activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class TokenBlock(nn.Module):
    """A linear layer and its activation."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(5, 8), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x))


class SelfAttention(nn.MultiheadAttention):
    """Attention of a sequence to itself."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return super().forward(x, x, x)


@dataclass(frozen=True)
class Case:
    """A body, the shape of its input, the layer inside it ("" is the body), and the attribution's shape."""

    make: Callable[[], nn.Module]
    inputs: tuple[int, ...]
    wanted: tuple[int, ...]
    channel_dim: int = 1
    layer: str = ""


def torchvision_part(module: str, name: str, *args: object) -> nn.Module:
    part = getattr(pytest.importorskip(f"torchvision.models.{module}"), name)
    return part(*args)


def swin_stage() -> nn.Module:
    model = pytest.importorskip("torchvision.models").SwinTransformer([2, 2], 8, [2], [2], [4, 4], num_classes=2)
    return model.features


def bert_layer() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return transformers.BertModel(transformers.BertConfig(**sizes)).encoder.layer[0]


def gpt2_block() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    return transformers.GPT2Model(transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2)).h[0]


def permuted() -> nn.Module:
    ops = pytest.importorskip("torchvision.ops")
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), ops.Permute([0, 2, 3, 1]))


def convnext_block() -> nn.Module:
    return torchvision_part("convnext", "CNBlock", 4, 1.0, 0.0)


FIRST = {
    "conv1d": Case(lambda: nn.Conv1d(3, 4, 3, padding=1), (3, 7), (1, 7)),
    "conv1d, as wide as long": Case(lambda: nn.Conv1d(3, 7, 3, padding=1), (3, 7), (1, 7)),
    "conv2d": Case(lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 6, 7), (1, 6, 7)),
    "conv2d, as wide as the map": Case(lambda: nn.Conv2d(3, 6, 3, padding=1), (3, 6, 6), (1, 6, 6)),
    "conv3d": Case(lambda: nn.Conv3d(3, 4, 3, padding=1), (3, 5, 6, 7), (1, 5, 6, 7)),
    "transposed conv": Case(lambda: nn.ConvTranspose2d(3, 4, 2, 2), (3, 3, 4), (1, 6, 8)),
    "batch norm 1d": Case(lambda: nn.BatchNorm1d(4), (4, 7), (1, 7)),
    "batch norm 2d": Case(lambda: nn.BatchNorm2d(4), (4, 6, 7), (1, 6, 7)),
    "group norm": Case(lambda: nn.GroupNorm(2, 4), (4, 6, 7), (1, 6, 7)),
    "max pooling": Case(lambda: nn.MaxPool2d(2), (4, 8, 6), (1, 4, 3)),
    "adaptive pooling": Case(lambda: nn.AdaptiveAvgPool1d(5), (4, 9), (1, 5)),
    "relu after conv": Case(ConvBlock, (3, 6, 7), (1, 6, 7), layer="act"),
    "relu after conv, in a row": Case(lambda: nn.Sequential(ConvBlock(), nn.ReLU()), (3, 4, 4), (1, 4, 4), layer="1"),
    "basic block": Case(lambda: torchvision_part("resnet", "BasicBlock", 4, 4), (4, 6, 7), (1, 6, 7)),
    "convnext block": Case(convnext_block, (4, 6, 7), (1, 6, 7)),
    "convnext block, as wide as the map": Case(convnext_block, (4, 6, 4), (1, 6, 4)),
}
LAST = {
    "linear on tokens": Case(lambda: nn.Linear(5, 8), (7, 5), (7, 1), 2),
    "linear on tokens, as wide as long": Case(lambda: nn.Linear(5, 8), (8, 5), (8, 1), 2),
    "relu after linear": Case(TokenBlock, (7, 5), (7, 1), 2, "act"),
    "relu after linear, as wide as long": Case(TokenBlock, (8, 5), (8, 1), 2, "act"),
    "token block": Case(TokenBlock, (7, 5), (7, 1), 2),
    "layer norm": Case(lambda: nn.LayerNorm(8), (7, 8), (7, 1), 2),
    "attention": Case(lambda: SelfAttention(8, 2, batch_first=True), (7, 8), (7, 1), 2),
    "lstm": Case(lambda: nn.LSTM(3, 8, batch_first=True), (7, 3), (7, 1), 2),
    "gru, both ways": Case(lambda: nn.GRU(3, 4, batch_first=True, bidirectional=True), (7, 3), (7, 1), 2),
    "encoder layer": Case(lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (7, 8), (7, 1), 2),
    "swin stage": Case(swin_stage, (3, 8, 12), (4, 6, 1), 3, "1"),
    "swin stage, as wide as the map": Case(swin_stage, (3, 16, 16), (8, 8, 1), 3, "1"),
    "permute": Case(permuted, (3, 6, 7), (6, 7, 1), 3, "1"),
    "bert layer": Case(bert_layer, (7, 8), (7, 1), 2),
    "gpt-2 block": Case(gpt2_block, (7, 8), (7, 1), 2),
}
VECTORS = {
    "linear": Case(lambda: nn.Linear(5, 8), (5,), (1,)),
    "relu after linear, vectors": Case(TokenBlock, (5,), (1,), layer="act"),
    "batch norm on vectors": Case(lambda: nn.BatchNorm1d(4), (4,), (1,)),
}
CASES = FIRST | LAST | VECTORS


def built(case: Case) -> tuple[LayerIBA, Tensor]:
    torch.manual_seed(0)
    model = Model(case.make()).eval()
    layer = model.body.get_submodule(case.layer)
    return LayerIBA(model, layer), torch.randn(2, *case.inputs)


@pytest.mark.parametrize("name", CASES)
def test_the_channel_axis_is_found_and_summed(name: str) -> None:
    """The axis follows from the kind of layer, and the attribution is the layer's shape with that axis reduced to 1."""
    case = CASES[name]
    iba, inputs = built(case)
    bits, record = iba.attribute(inputs, 1, n_steps=1, n_samples=1, return_diagnostics=True)
    assert record.channel_dim == case.channel_dim
    assert tuple(bits.shape) == (2, *case.wanted)
    whole = iba.attribute(inputs, 1, n_steps=1, n_samples=1, attr_dim_summation=False)
    assert torch.allclose(whole.sum(dim=case.channel_dim, keepdim=True), bits)
    assert whole.shape[case.channel_dim] > 1


@pytest.mark.parametrize("name", CASES)
def test_estimate_finds_the_same_axis(name: str) -> None:
    """Statistics are per channel of the axis that attribution sums over."""
    case = CASES[name]
    iba, inputs = built(case)
    with pytest.warns(UserWarning, match="rough") if not _is_tokens(case) else _nothing():
        statistics = iba.estimate(inputs).statistics
    assert statistics is not None and statistics.channel_dim == case.channel_dim
    assert statistics.kind == ("channel" if _is_tokens(case) else "feature")
    pooled = statistics.pool().mean
    assert pooled.numel() == pooled.shape[case.channel_dim - 1] > 1


def _is_tokens(case: Case) -> bool:
    return len(case.wanted) == 2 and case.channel_dim == 2


def _nothing() -> AbstractContextManager[object]:
    return nullcontext()


@pytest.mark.parametrize(
    ("chosen", "shape"), [(1, (2, 1, 6, 7)), (2, (2, 4, 1, 7)), (3, (2, 4, 6, 1)), (-1, (2, 4, 6, 1))]
)
def test_the_users_choice_wins(chosen: int, shape: tuple[int, ...]) -> None:
    """channel_dim overrides what the layer's type says; negative axes count from the end."""
    iba, inputs = built(CASES["conv2d"])
    bits, record = iba.attribute(inputs, 1, n_steps=1, n_samples=1, channel_dim=chosen, return_diagnostics=True)
    assert tuple(bits.shape) == shape and record.channel_dim == chosen % 4


def test_the_axis_of_the_statistics_is_kept() -> None:
    """A choice made in estimate holds in attribute."""
    iba, inputs = built(Case(nn.Identity, (4, 6, 7), ()))
    with pytest.raises(InvalidArgumentError, match="channel_dim is ambiguous"):
        iba.attribute(inputs, 1)
    with pytest.warns(UserWarning, match="rough"):
        iba.estimate(inputs, channel_dim=-1)
    assert iba.attribute(inputs, 1, n_steps=1, n_samples=1).shape == (2, 4, 6, 1)


def test_an_axis_that_cannot_be_told_is_not_guessed() -> None:
    """With nothing around that tells, attribution asks for channel_dim instead of choosing."""
    iba, inputs = built(Case(lambda: nn.Sequential(nn.ReLU(), nn.Sigmoid()), (4, 6), (), layer="1"))
    with pytest.raises(InvalidArgumentError, match=r"layer 'body\.1' \(Sigmoid\).*Pass channel_dim=1"):
        iba.attribute(inputs, 1)
    assert iba.attribute(inputs, 1, n_steps=1, n_samples=1, channel_dim=2).shape == (2, 4, 1)
