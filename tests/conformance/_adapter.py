"""What these tests share: entries (model, layer, arguments), a method that calibrates itself, and a before/after check.

Captum's generic suites construct ``algorithm(model, layer)`` and call ``attribute(**args)``, without a step for
calibration. The adapter calibrates on its first call; later calls of the same instance keep these statistics.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.util
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from captum.attr import NoiseTunnel
from captum.log import log_usage
from torch import Tensor, nn

from captum_iba import LayerIBA
from captum_iba.attr import LayerReadoutIBA

SEED = 1234
BAD_TARGET = (9999,) * 20
_ALL_STOCK_NAMES = (
    "conv_layer_single_target",
    "basic_layer_in_place",
    "basic_layer_multi_output",
    "basic_layer_multi_input",
    "basic_layer_multiple_target",
    "basic_layer_tensor_multiple_target",
    "basic_layer_multiple_tuple_target",
)
# captum 0.8 ships no entries; the entries of our own run there all the same
HAS_STOCK = importlib.util.find_spec("captum.testing") is not None
STOCK_NAMES = _ALL_STOCK_NAMES if HAS_STOCK else ()
STOCK_PER_EXAMPLE = STOCK_NAMES[-3:]
QUICK = {"n_steps": 5, "n_samples": 3, "beta": 0.1}


class AutoFitLayerIBA(LayerIBA):
    """LayerIBA that takes the statistics of its first call's inputs."""

    @log_usage()
    def attribute(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Calibrate if that has not happened yet, then attribute."""
        if self.statistics is None:
            self.estimate(
                [None],
                input_fn=lambda _: (inputs, kwargs.get("additional_forward_args")),
                attribute_to_layer_input=kwargs.get("attribute_to_layer_input", False),
            )
        return LayerIBA.attribute.__wrapped__(self, inputs, *args, **kwargs)


def total(output: Tensor, _target: Any) -> Tensor:
    """A loss of each row for outputs of any shape."""
    return output.flatten(1).square().sum(dim=1)


class FittedLayerReadoutIBA(LayerReadoutIBA):
    """LayerReadoutIBA that is trained on what it is calibrated on, and takes LayerIBA's numbers without using them."""

    def __init__(self, forward_func: Any, layer: Any, device_ids: Any = None, **kwargs: Any) -> None:
        super().__init__(forward_func, layer, device_ids, **{"hidden_channels": (6, 6)} | kwargs)

    n_rows = 0

    def estimate(self, data: Any, **kwargs: Any) -> FittedLayerReadoutIBA:
        """Statistics, then a few steps."""
        super().estimate(data, **kwargs)
        at_input = kwargs.get("attribute_to_layer_input", False)
        batches = [data] if isinstance(data, Tensor) else data
        self.fit(
            batches,
            epochs=4,
            learning_rate=0.05,
            beta=0.1,
            targets=lambda batch: torch.zeros(self.n_rows if batch is None else len(batch)),
            objective=total,
            show_progress=False,
            input_fn=kwargs.get("input_fn"),
            attribute_to_layer_input=at_input,
        )
        return self

    @log_usage()
    def attribute(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """As LayerReadoutIBA, but for steps and beta."""
        kwargs = {key: value for key, value in kwargs.items() if key not in ("n_steps", "beta")}
        return LayerReadoutIBA.attribute.__wrapped__(self, inputs, *args, **kwargs)


class AutoFitLayerReadoutIBA(FittedLayerReadoutIBA):
    """The same, calibrated and trained on its first call's inputs."""

    @log_usage()
    def attribute(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Calibrate and train if that has not happened yet, then attribute."""
        if self.statistics is None:
            rows = inputs[0] if isinstance(inputs, tuple) else inputs
            self.n_rows = len(rows)
            self.estimate(
                [None],
                input_fn=lambda _: (inputs, kwargs.get("additional_forward_args")),
                attribute_to_layer_input=kwargs.get("attribute_to_layer_input", False),
            )
        return FittedLayerReadoutIBA.attribute.__wrapped__(self, inputs, *args, **kwargs)


AUTO_FIT = {"LayerIBA": AutoFitLayerIBA, "LayerReadoutIBA": AutoFitLayerReadoutIBA}


@dataclass
class Entry:
    """One line of a test table; ``other`` is a second target that fits the model."""

    name: str
    model: nn.Module
    layer: str
    args: dict[str, Any]
    other: Any = None
    noise_tunnel: bool = False
    kind: str = "LayerIBA"

    def __post_init__(self) -> None:
        self.algorithm = type(f"AutoFit_{self.name}", (AUTO_FIT[self.kind],), {})

    def fresh(self) -> Entry:
        """A copy that a test may change."""
        model, args = copy.deepcopy(self.model), copy.deepcopy(self.args)
        return Entry(self.name, model, self.layer, args, self.other, self.noise_tunnel, self.kind)

    def of(self, kind: str) -> Entry:
        """The same for another method."""
        return dataclasses.replace(self, kind=kind)

    def method(self) -> Any:
        """The method for the model as it is now."""
        layer_iba = self.algorithm(self.model, self.model.get_submodule(self.layer))
        return NoiseTunnel(layer_iba) if self.noise_tunnel else layer_iba


def reseed() -> None:
    """Bring the global generators to the same state."""
    random.seed(SEED)
    torch.manual_seed(SEED)


class Residual(nn.Module):
    """A skip connection past the layer and a reshape by the input's batch size: the prefix needs as many rows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.stem(x).relu()
        return self.head((hidden + self.branch(hidden)).relu().reshape(x.shape[0], 6))


class Pair(nn.Module):
    """Returns a tuple, as attention modules do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.linear(x), None


class TupleLayer(nn.Module):
    """A layer in the middle gives ``(Tensor, None)``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pair, self.head = nn.Linear(3, 6), Pair(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pair(self.stem(x).relu())[0].relu())


class TwoInputs(nn.Module):
    """Two inputs, one further tensor with a row per example, and one number."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 6)), nn.Linear(6, 3)

    def forward(self, x: Tensor, y: Tensor, shift: Tensor, factor: float) -> Tensor:
        return self.head(factor * self.body(x - y).relu() + shift)


class Cube(nn.Module):
    """Output (N, 2, 2, 2), for index tuples as targets."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(3, 6), nn.ReLU()), nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)).reshape(-1, 2, 2, 2)


def _sharp(model: nn.Module) -> nn.Module:
    """Double precision and large weights, so that the decision depends on the input."""
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.5)
    return model


def _points(n: int = 4) -> Tensor:
    return torch.randn(n, 3, dtype=torch.float64)


def _linear() -> nn.Module:
    return _sharp(nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 3)))


def _conv() -> nn.Module:
    return _sharp(
        nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 5, 3),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(5 * 4 * 4, 3),
        )
    )


def _images(n: int = 4) -> Tensor:
    return torch.randn(n, 1, 8, 8, dtype=torch.float64)


def _moody() -> nn.Module:
    """Batch normalisation and dropout, some in training mode, some parameters frozen, some with a gradient."""
    model = _sharp(
        nn.Sequential(
            nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)
        )
    )
    model[1].train()
    model[3].train()
    model[0].weight.requires_grad_(False)
    model[4].weight.grad = torch.randn_like(model[4].weight)
    return model


_REAL: dict[str, Callable[[], Entry]] = {
    "linear": lambda: Entry(
        "linear", _linear(), "1", {"inputs": _points(), "target": [0, 1, 1, 0], **QUICK}, other=[2, 0, 2, 1]
    ),
    "linear_full_shape": lambda: Entry(
        "linear_full_shape",
        _linear(),
        "0",
        {"inputs": _points(), "target": torch.tensor([2, 1, 0, 2]), "attr_dim_summation": False, **QUICK},
        other=torch.tensor([0, 2, 1, 1]),
    ),
    "layer_input": lambda: Entry(
        "layer_input",
        _linear(),
        "2",
        {"inputs": _points(), "target": [2, 0, 1, 1], "attribute_to_layer_input": True, **QUICK},
        other=[1, 2, 0, 0],
    ),
    "conv": lambda: Entry(
        "conv", _conv(), "2", {"inputs": _images(), "target": torch.tensor([0, 2, 1, 2]), **QUICK}, other=[1, 0, 2, 0]
    ),
    "conv_one_class": lambda: Entry(
        "conv_one_class", _conv(), "0", {"inputs": _images(2), "target": 1, **QUICK}, other=2
    ),
    "tuple_layer": lambda: Entry(
        "tuple_layer", _sharp(TupleLayer()), "pair", {"inputs": _points(), "target": [0, 2, 0, 0], **QUICK}, other=1
    ),
    "multi_input": lambda: Entry(
        "multi_input",
        _sharp(TwoInputs()),
        "body.1",
        {
            "inputs": (_points(5), _points(5)),
            "additional_forward_args": (torch.randn(5, 6, dtype=torch.float64), 1.5),
            "target": torch.tensor([0, 1, 1, 1, 0]),
            **QUICK,
        },
        other=2,
    ),
    "tuple_targets": lambda: Entry(
        "tuple_targets",
        _sharp(Cube()),
        "body.1",
        {"inputs": _points(), "target": [(1, 0, 0), (0, 1, 1), (1, 1, 1), (0, 0, 0)], **QUICK},
        other=(1, 1, 0),
    ),
    "residual": lambda: Entry(
        "residual", _sharp(Residual()), "branch", {"inputs": _points(), "target": [0, 2, 2, 0], **QUICK}, other=1
    ),
    "moody": lambda: Entry("moody", _moody(), "4", {"inputs": _points(), "target": [0, 2, 0, 0], **QUICK}, other=1),
    "noise_tunnel": lambda: Entry(
        "noise_tunnel",
        _conv(),
        "2",
        {"inputs": _images(), "target": [0, 2, 1, 2], "nt_samples": 4, "stdevs": 0.0, **QUICK},
        other=[1, 0, 2, 0],
        noise_tunnel=True,
    ),
}
REAL_NAMES = tuple(_REAL)
REAL_PER_EXAMPLE = tuple(name for name in REAL_NAMES if name != "conv_one_class")


@functools.cache
def _stock() -> dict[str, Entry]:
    from captum.attr import LayerGradCam
    from captum.testing.attr.helpers.test_config import config

    return {
        line["name"]: Entry(line["name"], line["model"], line["layer"], line["attribute_args"])
        for line in config
        if "layer" in line and LayerGradCam in line["algorithms"]
    }


def stock_entries() -> dict[str, Entry]:
    """Captum's own entries that contain LayerGradCam; none where this Captum ships none."""
    return _stock() if HAS_STOCK else {}


def find_entry(name: str, kind: str = "LayerIBA") -> Entry:
    """The entry of that name, in a copy of its own; the seed is the same at each call."""
    if name not in _REAL:
        return stock_entries()[name].fresh().of(kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return _REAL[name]().of(kind)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def hook_tables(module: nn.Module) -> dict[str, list[Any]]:
    """Every table of hooks that a module has, keyword tables included."""
    return {
        key: list(value.items()) for key, value in vars(module).items() if "hook" in key and hasattr(value, "items")
    }


def assert_no_hooks(model: nn.Module) -> None:
    """No module of the model has a hook of any kind, or a ``forward`` of its own."""
    left = [(name, key) for name, m in model.named_modules() for key, table in hook_tables(m).items() if table]
    assert left == []
    assert [name for name, module in model.named_modules() if "forward" in vars(module)] == []


class Snapshot:
    """Modules and tensors before a call, to be compared with afterwards."""

    def __init__(self, model: nn.Module, args: Any = ()) -> None:
        self._modules = [(m, self._module(m)) for m in model.modules()]
        tensors = [*model.parameters(), *model.buffers(), *_tensors(args)]
        self._tensors = [(t, t.detach().clone(), t._version, t.requires_grad) for t in tensors]
        self._grads = [(t, t.grad, None if t.grad is None else t.grad.clone()) for t in tensors if t.is_leaf]
        self._fastpath = torch.backends.mha.get_fastpath_enabled()
        self._grad_mode = torch.is_grad_enabled()

    @staticmethod
    def _module(module: nn.Module) -> tuple[Any, ...]:
        members = {key: id(v) for key, v in vars(module).items() if key not in ("calls", "blows_at", "blows_with")}
        held = [(key, id(value)) for key, value in (*module._parameters.items(), *module._buffers.items())]
        return members, held, module.training, hook_tables(module), vars(module).get("forward")

    def assert_unchanged(self) -> None:
        """Everything is the same object and, bit for bit, the same value."""
        for module, before in self._modules:
            assert self._module(module) == before
        for tensor, value, version, requires_grad in self._tensors:
            assert torch.equal(tensor, value)
            assert (tensor._version, tensor.requires_grad) == (version, requires_grad)
        for tensor, grad, value in self._grads:
            assert tensor.grad is grad
            assert grad is None or torch.equal(grad, value)
        assert torch.backends.mha.get_fastpath_enabled() == self._fastpath
        assert torch.is_grad_enabled() == self._grad_mode
