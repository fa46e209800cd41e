"""One law over many architectures: replaying the prefix gives the bits that the whole model gives at each step."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_iba import LayerIBA
from captum_iba.attr import IBADiagnostics
from captum_iba.bottleneck.replay import run_with
from captum_iba.bottleneck.tail import Tail

REPLAY, EXPANDED, WHOLE = "replay", "replay expanded", "whole model"
SHORT = {"n_steps": 3, "n_samples": 2}
Parts = tuple[Callable[..., Any], nn.Module]


class Small(nn.Module):
    """Convolutions around ``layer``; subclasses wire them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer, self.last = (nn.Conv2d(c, 4, 3, padding=1) for c in (3, 4, 4))
        self.relu = nn.ReLU()
        self.classify = nn.Linear(4, 3)

    def head(self, x: Tensor) -> Tensor:
        return self.classify(self.last(x).amax(dim=(2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.layer(self.first(x))))


class UNet(Small):
    """The skip passes the layer by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.relu(self.first(x))
        low = self.layer(F.max_pool2d(skip, 2))
        return self.head(torch.cat([skip, F.interpolate(low, scale_factor=2)], dim=1))


class SharedReLU(Small):
    """One activation module runs before and after the layer."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.layer(self.relu(self.first(x)))))


class Functional(Small):
    """Code without modules on both sides of the layer, some of it in place."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x - x.mean(dim=(1, 2, 3), keepdim=True))
        x.mul_(1.5)
        x = self.layer(F.gelu(x)).flatten(2)
        side = int(x.shape[-1] ** 0.5)
        return self.head(torch.tanh(x.reshape(len(x), -1, side, side)))


class InPlaceReLU(Small):
    """The layer's successor overwrites the layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)


class Counting(nn.Module):
    """Keeps a running count of its calls, and what it returned last."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.kept = torch.tanh(x)
        return self.kept


class Counted(Small):
    """A module with state before the layer, and a counter in the model's own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.calls = Counting(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(self.count(x))


class Tapped(Small):
    """A module before the layer keeps its output, and code after the layer reads it there."""

    def __init__(self) -> None:
        super().__init__()
        self.tap = Counting()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.tap(self.first(x))) * self.tap.kept)


class SkipInPlace(Small):
    """The recorded skip connection is changed in place after the layer."""

    def forward(self, x: Tensor) -> Tensor:
        skip = self.first(x)
        skip += self.layer(skip)
        return self.head(skip)


class ChangingOrder(Small):
    """Modules before the layer take turns; from the seventh call on, in another order."""

    def __init__(self, since: int = 0) -> None:
        super().__init__()
        self.other, self.calls, self.since = nn.Conv2d(3, 4, 1), 0, since

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        order = [self.first, self.other]
        if self.calls > self.since and self.calls % 2:
            order.reverse()
        found = {module: module(x) for module in order}
        return self.head(self.relu(self.layer(found[self.first] - found[self.other])))


class Recurrent(nn.Module):
    """The layer returns (output, (h, c))."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.layer = nn.Linear(3, 4), nn.LSTM(4, 5, batch_first=True)
        self.read, self.classify = nn.GRU(5, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.layer(self.enter(x))
        return self.classify(self.read(hidden)[0][:, -1])


class Encoder(nn.Module):
    """torch's own encoder, which without gradient runs fused kernels that call no submodules."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder, self.classify = nn.TransformerEncoder(block, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.encoder(x)[:, 0])


def images(n: int, size: int = 32) -> tuple[Tensor, ...]:
    return (torch.randn(n, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(n)),)


def sequences(n: int, width: int = 3) -> tuple[Tensor, ...]:
    return (torch.randn(n, 6, width, dtype=torch.float64, generator=torch.Generator().manual_seed(n)),)


def token_ids(n: int) -> tuple[Tensor, ...]:
    return (torch.randint(3, 20, (n, 6), generator=torch.Generator().manual_seed(n)),)


def padding_masks(n: int) -> tuple[Tensor, ...]:
    mask = torch.ones(n, 6, dtype=torch.long)
    mask[-1, 4:] = 0
    return (mask,)


def ready(model: nn.Module, layer: str = "layer") -> Parts:
    model = model.double().eval()
    return model, model.get_submodule(layer)


def vision(name: str, layer: str, **kwargs: Any) -> Parts:
    return ready(pytest.importorskip("torchvision.models").__dict__[name](num_classes=3, **kwargs), layer)


def vgg11() -> Parts:
    model, _ = vision("vgg11", "features.8", init_weights=False)
    model.avgpool, model.classifier = (
        nn.Identity(),
        nn.Linear(512, 3),
    )  # the original's hundred million weights are slow
    return ready(model, "features.8")


def vit() -> Parts:
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 3, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16}
    model, layer = vision("VisionTransformer", "encoder.layers.encoder_layer_1", **sizes)
    nn.init.normal_(model.heads.head.weight)  # torchvision starts with zeros, which pass nothing on
    return model, layer


def swin() -> Parts:
    sizes = {"patch_size": [4, 4], "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": [4, 4]}
    return vision("SwinTransformer", "features.1", **sizes)


def bert() -> Parts:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=20, num_labels=3, initializer_range=0.5, **sizes)
    return ready(transformers.BertForSequenceClassification(config), "bert.encoder.layer.1")


def gpt2() -> Parts:
    transformers = pytest.importorskip("transformers")
    sizes = {"n_embd": 8, "n_layer": 3, "n_head": 2, "n_positions": 16}
    config = transformers.GPT2Config(vocab_size=20, num_labels=3, pad_token_id=0, initializer_range=0.5, **sizes)
    return ready(transformers.GPT2ForSequenceClassification(config), "transformer.h.1")


def around(wrap: Callable[[nn.Module], Callable[..., Any]]) -> Parts:
    model, layer = ready(Small())
    return wrap(model), layer


@dataclass(frozen=True)
class Case:
    """An architecture; ``modes`` are the ways expected for one example and for two."""

    parts: Callable[[], Parts]
    modes: tuple[str, str]
    inputs: Callable[[int], tuple[Tensor, ...]] = images
    additional: Callable[[int], tuple[Tensor, ...]] | None = None


BOTH = (REPLAY, REPLAY)
SKIP = (EXPANDED, EXPANDED)
ADDED = (REPLAY, EXPANDED)  # one row of an additive skip broadcasts over all copies, two do not
CASES = {
    "resnet18": Case(lambda: vision("resnet18", "layer2"), BOTH),
    "resnet18 inside a block": Case(lambda: vision("resnet18", "layer2.1.conv1"), ADDED),
    "vgg11": Case(vgg11, BOTH),
    "densenet121 block": Case(lambda: vision("densenet121", "features.denseblock2"), BOTH),
    "densenet121 inside a block": Case(lambda: vision("densenet121", "features.denseblock2.denselayer5.conv1"), SKIP),
    "inception_v3": Case(
        lambda: vision("inception_v3", "Mixed_5c", init_weights=False, aux_logits=True), BOTH, lambda n: images(n, 75)
    ),
    "mobilenet_v2 inside a block": Case(lambda: vision("mobilenet_v2", "features.5.conv.1"), ADDED),
    "vit": Case(vit, BOTH),
    "swin": Case(swin, BOTH),
    "bert": Case(bert, BOTH, token_ids),
    "bert with mask": Case(bert, ADDED, token_ids, padding_masks),
    "gpt2 picks rows": Case(gpt2, SKIP, token_ids),
    "lstm": Case(lambda: ready(Recurrent()), BOTH, sequences),
    "transformer encoder block": Case(lambda: ready(Encoder(), "encoder.layers.1"), BOTH, lambda n: sequences(n, 8)),
    "transformer encoder, inside a block": Case(
        lambda: ready(Encoder(), "encoder.layers.1.linear1"), ADDED, lambda n: sequences(n, 8)
    ),
    "u-net": Case(lambda: ready(UNet()), SKIP),
    "one relu before and after": Case(lambda: ready(SharedReLU()), BOTH),
    "functional code": Case(lambda: ready(Functional()), BOTH),
    "in-place relu": Case(lambda: ready(InPlaceReLU()), BOTH),
    "counter": Case(lambda: ready(Counted()), BOTH),
    "tensor kept for later": Case(lambda: ready(Tapped()), ADDED),
    "skip changed in place": Case(lambda: ready(SkipInPlace()), SKIP),
    "lambda": Case(lambda: around(lambda model: lambda x: model(x)), BOTH),
    "lambda with code": Case(lambda: around(lambda model: lambda x: 3.0 * model(x.flip(-1))), BOTH),
    "bound method": Case(lambda: around(lambda model: model.forward), BOTH),
    "partial": Case(lambda: around(lambda model: functools.partial(model)), BOTH),
    "partial of a function": Case(lambda: around(lambda model: functools.partial(lambda f, x: f(x), model)), BOTH),
    "model out of sight": Case(lambda: around(lambda model: lambda x, box=(model,): box[0](x)), BOTH),
}


@contextmanager
def whole_model(tail: Tail, z: Tensor, copies: int) -> Iterator[Tensor]:
    """The slow way, without any replay: what all others are compared with."""
    tail._mode = WHOLE
    with run_with(tail._site, lambda: tail._call_for(copies), z) as output:
        yield tail._to_tensor(output)


@functools.cache
def calibrated(name: str) -> LayerIBA:
    """The method on a network with fixed random weights; the network is the same for all tests of a case."""
    case = CASES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        function, layer = case.parts()
    # attribution alone takes the mask: the statistics may be any
    inputs = case.inputs(6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LayerIBA(function, layer).estimate([(inputs,)], per="channel")


def attribute(name: str, n: int, **kwargs: Any) -> tuple[Tensor, IBADiagnostics]:
    case = CASES[name]
    additional = case.additional(n) if case.additional is not None else None
    return explain(calibrated(name), case.inputs(n), additional, **kwargs)


def explain(
    iba: LayerIBA, inputs: tuple[Tensor, ...], additional: tuple[Tensor, ...] | None = None, **kwargs: Any
) -> tuple[Tensor, IBADiagnostics]:
    target = torch.arange(len(inputs[0])) % 3
    arguments = SHORT | {"attr_dim_summation": False} | kwargs
    return iba.attribute(inputs, target, additional, return_diagnostics=True, **arguments)


def far_apart(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape and found.dtype == torch.float64
    return float((found - wanted).abs().max())


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("error:What comes before")
def test_replay_gives_the_bits_of_the_whole_model(name: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replay, expanded replay and the whole model give the same bits, objective and probability."""
    bits, record = attribute(name, n)
    unweighted, _ = attribute(name, n, beta=0.0)
    monkeypatch.setattr(Tail, "run", whole_model)
    wanted, reference = attribute(name, n)
    assert reference.forward_mode == WHOLE
    assert record.forward_mode == CASES[name].modes[n - 1]
    assert far_apart(bits, wanted) < 1e-9
    assert far_apart(record.objective, reference.objective) < 1e-9
    assert far_apart(record.target_probability, reference.target_probability) < 1e-9
    # the masks moved, both by the information and by the output
    assert far_apart(unweighted, wanted) > 1e-3 and float(unweighted.sub(unweighted.mean()).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["u-net", "gpt2 picks rows", "bert with mask", "tensor kept for later", "lstm"])
@pytest.mark.filterwarnings("error:What comes before")
def test_uneven_parts_give_the_bits_of_all_copies_at_once(name: str) -> None:
    """Copies run in parts of unequal size give the bits of one run with all copies."""
    bits, _ = attribute(name, 2, n_samples=3)
    parts, record = attribute(name, 2, n_samples=3, internal_batch_size=4)
    assert far_apart(parts, bits) < 1e-9
    assert record.forward_mode == CASES[name].modes[1]


@pytest.mark.parametrize("name", ["resnet18", "vit", "swin", "bert", "gpt2 picks rows", "lstm", "u-net"])
def test_a_batch_gives_the_bits_of_its_examples_alone(name: str) -> None:
    """Each example of a batch gets the bits it gets alone."""
    iba, inputs = calibrated(name), CASES[name].inputs(2)[0]
    together = iba.attribute(inputs, torch.tensor([2, 1]), **SHORT)
    alone = [iba.attribute(inputs[i : i + 1], target, **SHORT) for i, target in enumerate((2, 1))]
    assert far_apart(together, torch.cat(alone)) < 1e-9
    assert far_apart(alone[0], alone[1]) > 1e-3  # the rows are told apart


def test_a_masked_batch_gives_the_bits_of_its_examples_alone() -> None:
    """Rows of additional_forward_args stay with their examples."""
    iba, inputs, mask = calibrated("bert with mask"), token_ids(2)[0], padding_masks(2)[0]
    together = iba.attribute(inputs, [0, 1], (mask,), **SHORT)
    alone = [iba.attribute(inputs[i : i + 1], i, (mask[i : i + 1],), **SHORT) for i in range(2)]
    swapped = iba.attribute(inputs, [0, 1], (mask.flip(0),), **SHORT)
    assert far_apart(together, torch.cat(alone)) < 1e-9 < 1e-3 < far_apart(together, swapped)


@pytest.mark.parametrize("since", [0, 2, 4])
def test_changing_order_falls_back_to_the_whole_model(since: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that takes another way now and then is run as a whole, with one warning and the same bits."""
    torch.manual_seed(0)
    model, layer = ready(ChangingOrder(since))
    iba = LayerIBA(model, layer)
    iba._state.warner.given(("statistics", layer, False))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bits, record = explain(iba, images(2))
    assert [str(w.message).startswith("What comes before") for w in caught] == [True]
    assert "'layer'" in str(caught[0].message) and record.forward_mode == WHOLE
    monkeypatch.setattr(Tail, "run", whole_model)
    assert far_apart(bits, explain(iba, images(2))[0]) < 1e-9


def test_the_prefix_runs_once() -> None:
    """A module before the layer is called for the recording and not at each step."""
    iba = calibrated("counter")
    model = iba.forward_func
    before, own = float(model.count.calls), model.calls
    attribute("counter", 2)
    assert float(model.count.calls) == before + 1 and model.calls > own + SHORT["n_steps"]


def test_fused_attention_kernels_are_allowed_again() -> None:
    """The switch for torch's fused kernels is what it was, whether the call succeeds or not."""
    iba = calibrated("transformer encoder block")
    iba.attribute(*sequences(2, 8), [0, 1], **SHORT)
    with pytest.raises(IndexError):
        iba.attribute(*sequences(2, 8), 99, **SHORT)
    assert torch.backends.mha.get_fastpath_enabled()
