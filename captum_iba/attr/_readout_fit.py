"""LayerReadoutIBA.fit: its arguments, checked, and the way to the trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captum_iba._numbers import assert_beta, assert_integer, assert_learning_rate, is_integer
from captum_iba._processes import process_group
from captum_iba._warn import Warner
from captum_iba.attr._calibration import InputFn
from captum_iba.attr._model import device_of, reachable
from captum_iba.attr._objective import ObjectiveType
from captum_iba.attr._readout import Readout
from captum_iba.attr._readout_checkpoint import Position
from captum_iba.attr._readout_format import weights_digest
from captum_iba.attr._readout_layers import names_of
from captum_iba.attr._training import Schedule, Trainer, evaluate
from captum_iba.attr._training_data import Batches, Targets
from captum_iba.attr._training_step import Pass
from captum_iba.attr.training_history import Measures
from captum_iba.errors import InvalidArgumentError

SHORT_TRAINING = {"epochs": 20, "learning_rate": 2e-3}
"""For some hundred photos at hand, where the paper has a million and days: far fewer steps, so larger ones, and half of
them as warm-up."""


@dataclass(frozen=True)
class FitArguments:
    """The numbers of :meth:`LayerReadoutIBA.fit`, under the same names.

    Raises:
        InvalidArgumentError: one is out of range.
    """

    beta: float
    targets: Targets
    seed: int
    class_dim: int
    objective: ObjectiveType
    epochs: int = 1
    learning_rate: float = 1e-5
    max_steps: int | None = None
    warmup_steps: int = 0
    checkpoint_every: int = 1
    mixed_precision: bool | None = False

    def __post_init__(self) -> None:
        assert_beta(self.beta)
        assert_learning_rate(self.learning_rate)
        for name in ("epochs", "checkpoint_every"):
            assert_integer(name, getattr(self, name))
        if self.max_steps is not None:
            assert_integer("max_steps", self.max_steps)
        assert_integer("warmup_steps", self.warmup_steps, least=0)
        if not is_integer(self.seed, least=0) or self.seed >= 2**63:
            raise InvalidArgumentError(f"seed={self.seed!r}; wanted an integer from 0 to 2**63 - 1.")
        if not isinstance(self.class_dim, Integral) or isinstance(self.class_dim, bool) or self.class_dim == 0:
            raise InvalidArgumentError(f"class_dim={self.class_dim!r}; wanted an axis of the output, not the batch's.")
        # plain numbers, which can be written to a file
        for name in ("epochs", "max_steps", "warmup_steps", "seed", "checkpoint_every", "class_dim"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else int(value))
        if self.mixed_precision not in (None, True, False):
            raise InvalidArgumentError(f"mixed_precision={self.mixed_precision!r}; wanted True, False or None.")

    def autocast(self, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
        """Context for the model's own passes."""
        enabled = self.mixed_precision
        if enabled is None:
            enabled = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return lambda: torch.autocast(device.type, torch.bfloat16, enabled=bool(enabled))


def fit_readout(
    readout: Readout,
    forward_func: Callable[..., Any],
    modules: list[nn.Module],
    data: tuple[Iterable[Any], Iterable[Any] | None],
    arguments: FitArguments,
    *,
    input_fn: InputFn | None,
    checkpoint: Path | None,
    show_progress: bool,
    warner: Warner,
    when_ready: Callable[[], object],
) -> None:
    """Train the readout in place.

    Args:
        readout (Readout): with statistics.
        forward_func (Callable): the model.
        modules (list[nn.Module]): modules that it runs.
        data (tuple): train_data and val_data.
        arguments (FitArguments): the numbers.
        input_fn (Callable, optional): as in :meth:`LayerReadoutIBA.fit`.
        checkpoint (Path, optional): as there.
        show_progress (bool): as there.
        warner (Warner): remembers the warnings given.
        when_ready (Callable): called as soon as the readout has learned something.
    """
    like = _like(readout, modules)
    names = names_of(modules)
    train_data, val_data = (
        None if each is None else Batches(each, forward_func, input_fn, arguments.targets, like.device, name)
        for each, name in zip(data, ("train_data", "val_data"), strict=True)
    )
    assert train_data is not None
    schedule = Schedule(
        epochs=arguments.epochs,
        max_steps=arguments.max_steps,
        learning_rate=float(arguments.learning_rate),
        beta=float(arguments.beta),
        warmup_steps=arguments.warmup_steps,
        seed=arguments.seed,
        checkpoint=checkpoint,
        checkpoint_every=arguments.checkpoint_every,
        show_progress=show_progress,
    )
    configuration = _configuration(readout, arguments, names)
    with process_group(like.device.type), torch.autocast(like.device.type, enabled=False):
        run = _make_pass(readout, modules, arguments, like, warner)
        trainer = Trainer(readout, run, schedule, configuration, names, train_data, val_data, like, when_ready)
        trainer.prepare()
        trainer.run()


def evaluate_readout(
    readout: Readout,
    forward_func: Callable[..., Any],
    modules: list[nn.Module],
    data: Iterable[Any],
    arguments: FitArguments,
    *,
    input_fn: InputFn | None,
    warner: Warner,
) -> Measures:
    """Means over a data set, see :meth:`LayerReadoutIBA.evaluate`."""
    like = _like(readout, modules)
    batches = Batches(data, forward_func, input_fn, arguments.targets, like.device, "data")
    assert readout.network is not None
    network = readout.network.to(like.device)
    with process_group(like.device.type), torch.autocast(like.device.type, enabled=False):
        run = _make_pass(readout, modules, arguments, like, warner)
        return evaluate(run, batches, network, float(arguments.beta), arguments.seed, Position())


def _make_pass(
    readout: Readout, modules: list[nn.Module], arguments: FitArguments, like: Tensor, warner: Warner
) -> Pass:
    autocast = arguments.autocast(like.device)
    return Pass(readout, modules, arguments.objective, arguments.class_dim, autocast, warner)


def _like(readout: Readout, modules: list[nn.Module]) -> Tensor:
    """Device of the model, and the precision that the network is trained in."""
    to_search = reachable(modules, readout.site.layer)
    dtypes = [p.dtype for module in to_search for p in module.parameters() if p.is_floating_point()]
    dtype = torch.promote_types(dtypes[0], torch.float32) if dtypes else torch.float32
    return torch.empty(0, dtype=dtype, device=device_of(to_search) or torch.device("cpu"))


def _configuration(readout: Readout, arguments: FitArguments, names: dict[nn.Module, str]) -> dict[str, Any]:
    """What a training must agree in with its checkpoint."""
    return {
        "layer": names.get(readout.site.layer),
        "attribute_to_layer_input": readout.site.at_input,
        "readout_layers": [names.get(source.layer) for source in readout.sources],
        **asdict(readout.settings),
        "learning_rate": float(arguments.learning_rate),
        "beta": float(arguments.beta),
        "warmup_steps": arguments.warmup_steps,
        "targets": _described(arguments.targets),
        "objective": _described(arguments.objective),
        "class_dim": arguments.class_dim,
        "seed": arguments.seed,
        "mixed_precision": arguments.mixed_precision,
        "weights of the model": weights_digest(names),
    }


def _described(value: object) -> str | None:
    """A choice by its name, or a function by its."""
    return (
        value if value is None or isinstance(value, str) else str(getattr(value, "__qualname__", type(value).__name__))
    )
