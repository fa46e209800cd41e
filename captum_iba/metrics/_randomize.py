"""New weights for a model, and the model's own state put back afterwards."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from captum_iba.errors import InvalidArgumentError
from captum_iba.metrics._stages import Stage, Unit

Method: TypeAlias = Literal["reset", "permute"]

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_INITIALISERS = ("reset_parameters", "_reset_parameters")


@contextmanager
def preserved(model: nn.Module, devices: Sequence[int]) -> Iterator[None]:
    """Put the model's whole state and torch's global random state back, bit for bit, however the block ends.

    Parameters and all buffers, their identity, flags and gradients count. Inside, gradients are None.

    Args:
        model (Module): the model.
        devices (Sequence[int]): CUDA devices in use.
    """
    state = _State(model)
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    with torch.random.fork_rng(devices):
        try:
            for parameter, _ in gradients:
                parameter.grad = None
            yield
        finally:
            state.restore()
            for parameter, gradient in gradients:
                parameter.grad = gradient


class Randomizer:
    """Gives the parameters of stage after stage new values, each parameter once.

    Args:
        method (str): ``"reset"`` or ``"permute"``.
        seed (int): of all stages.
        devices (Sequence[int]): CUDA devices in use.
    """

    def __init__(self, method: Method, seed: int, devices: Sequence[int]) -> None:
        self._method, self._seed, self._devices = method, seed, devices
        self._reached: set[nn.Parameter] = set()
        self._norms: list[nn.Module] = []

    def randomize(self, stage: Stage, index: int) -> None:
        """New values for what no stage before has reached; the stage's random numbers depend on its index alone."""
        seed_global(self._devices, self._seed, 0, index)
        for unit in stage.units:
            wanted = set(unit.parameters) - self._reached
            own = {name: p for name, p in unit.module.named_parameters(recurse=False) if p in wanted}
            with torch.no_grad():
                self._renew(unit, own)
            self._reached |= wanted

    def recalibrate(self, calls: Iterable[Callable[[], Any]]) -> None:
        """Estimate the running statistics of the batch norms reached so far anew, from forward passes.

        Raises:
            InvalidArgumentError: there is none.
        """
        norms = [norm for norm in self._norms if isinstance(norm, _BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # mean over the batches
                norm.training = True
            with torch.no_grad():
                n_batches = len([call() is None for call in calls]) if norms else 1
            if n_batches == 0:
                raise InvalidArgumentError("recalibration_data holds no batch. Pass some, or None to keep the reset.")
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.training, norm.momentum = False, momentum

    def _renew(self, unit: Unit, parameters: dict[str, nn.Parameter]) -> None:
        if self._method == "permute" or isinstance(unit.module, _NORMS):
            for parameter in parameters.values():
                _permute(parameter)
        else:
            _initialise(unit.module, parameters)
        if unit.statistics and unit.module not in self._norms:
            unit.module.reset_running_stats()  # type: ignore[operator]
            self._norms.append(unit.module)


def seed_global(devices: Sequence[int], *key: int) -> None:
    """Seed torch's global generators from a key, on the CPU and on these devices only."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    torch.default_generator.manual_seed(seed)
    for device in devices:
        torch.cuda.default_generators[device].manual_seed(seed)


def cuda_devices(*tensors: Tensor) -> list[int]:
    """Indices of the CUDA devices that tensors are on."""
    return sorted({tensor.device.index for tensor in tensors if tensor.is_cuda})


def _initialise(module: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    """Values of the module's own initialiser; where it has none or leaves a parameter alone, normal ones.

    What else the initialiser changes, such as children's parameters, is put back.
    """
    drawn: dict[str, Tensor] = {}
    initialiser = _initialiser_of(module)
    if parameters and initialiser is not None:
        state = _State(module)
        initialiser()
        drawn = {name: _value(tensor) for name in parameters if (tensor := module._parameters[name]) is not None}
        state.restore()
    for name, parameter in parameters.items():
        if name in drawn and not _same_bits(drawn[name], parameter):
            parameter.copy_(drawn[name])
        elif parameter.is_floating_point():
            _draw_normal(parameter)
        else:
            _permute(parameter)


def _initialiser_of(module: nn.Module) -> Callable[[], object] | None:
    for name in _INITIALISERS:
        function: Callable[..., object] | None = getattr(module, name, None)
        if callable(function) and _needs_nothing(function):
            return function
    return None


def _needs_nothing(function: Callable[..., object]) -> bool:
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    return True


def _draw_normal(parameter: Tensor) -> None:
    """Normal values with the parameter's own mean and deviation; a constant one stays."""
    values = parameter.double()
    noise = torch.randn(parameter.shape, dtype=torch.float64, device="cpu")
    parameter.copy_(values.mean() + values.std(correction=0) * noise.to(parameter.device))


def _permute(parameter: Tensor) -> None:
    order = torch.randperm(parameter.numel(), device="cpu").to(parameter.device)
    parameter.copy_(parameter.flatten()[order].view(parameter.shape))


class _State:
    """Parameters, buffers and training flags of a module and all inside it."""

    def __init__(self, root: nn.Module) -> None:
        self._modules = [(m, m.training, dict(m._parameters), dict(m._buffers)) for m in root.modules()]
        own = [t for _, _, parameters, buffers in self._modules for t in (*parameters.values(), *buffers.values())]
        self._values = {tensor: (_value(tensor), tensor.requires_grad) for tensor in own if tensor is not None}

    def restore(self) -> None:
        """Put everything back; tensors that did not change are not written to."""
        for module, training, parameters, buffers in self._modules:
            module.training = training
            _refill(module._parameters, parameters)
            _refill(module._buffers, buffers)
        with torch.no_grad():
            for tensor, (value, requires_grad) in self._values.items():
                if not _same_bits(tensor, value):
                    tensor.copy_(value)
                if tensor.requires_grad != requires_grad:
                    tensor.requires_grad_(requires_grad)


def _refill(table: dict[str, Any], saved: dict[str, Any]) -> None:
    table.clear()
    table.update(saved)


def _value(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal to the last bit, which tells -0 from 0 and NaN from NaN; False for layouts that have no plain bits."""
    if a.shape != b.shape or a.dtype != b.dtype or a.layout is not torch.strided or a.is_quantized:
        return False
    bits = [tensor.detach().resolve_conj().reshape(-1).contiguous().view(torch.uint8) for tensor in (a, b)]
    return torch.equal(*bits)
