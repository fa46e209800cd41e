"""What a forward function consists of: its modules, their mode, their names."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from captum_iba._evaluation import evaluation, in_training
from captum_iba._warn import Warner
from captum_iba.bottleneck.replay import Site
from captum_iba.errors import DeviceError, InvalidTypeError, LayerNotExecutedError


def unwrap_parallel(forward_func: Callable[..., Any], device_ids: Sequence[int] | None) -> Callable[..., Any]:
    """Return the module inside DataParallel or DistributedDataParallel.

    A bottleneck lives on one device. On one device the wrappers only call the module they wrap.

    Args:
        forward_func (Callable): the forward function.
        device_ids (Sequence[int], optional): devices that the user named; empty and None mean no choice.

    Returns:
        Callable: the module inside, or forward_func itself.

    Raises:
        DeviceError: the model is replicated over several devices.
    """
    ids = list(device_ids or getattr(forward_func, "device_ids", None) or [])
    if isinstance(getattr(forward_func, "__self__", None), nn.DataParallel):  # a bound dp.forward
        forward_func = forward_func.__self__  # type: ignore[attr-defined]
        ids = ids or list(forward_func.device_ids)  # type: ignore[attr-defined]
    if len(ids) > 1:
        raise DeviceError(
            f"The model runs on several devices (device_ids={ids}), and a bottleneck on one replica would not see the "
            "others. Pass model.module, and split the data over processes to use several devices."
        )
    if isinstance(forward_func, (nn.DataParallel, DistributedDataParallel)):
        inner: Callable[..., Any] = forward_func.module
        return inner
    return forward_func


def find_modules(forward_func: Callable[..., Any]) -> list[nn.Module]:
    """Find the modules that a forward function runs: itself, or those it is bound to, closes over or names.

    Args:
        forward_func (Callable): module, bound method, partial, function or callable object.

    Returns:
        list[nn.Module]: the outermost modules found; empty if there are none.
    """
    if isinstance(forward_func, nn.Module):
        return [forward_func]
    found = list(dict.fromkeys(value for value in _values_of(forward_func) if isinstance(value, nn.Module)))
    inner = {module for outer in found for module in outer.modules() if module is not outer}
    return [module for module in found if module not in inner]


def reachable(modules: Sequence[nn.Module], layer: nn.Module) -> list[nn.Module]:
    """The modules found, and the layer where it is in none of them: all whose mode can be switched."""
    is_inside = any(inner is layer for module in modules for inner in module.modules())
    return [*modules] if is_inside else [*modules, layer]


def _values_of(function: Any) -> list[Any]:
    """Objects within reach of a callable that is no module."""
    values: list[Any] = []
    if isinstance(function, functools.partial):
        values += [function.func, *function.args, *function.keywords.values()]
    bound = getattr(function, "__self__", None)
    values.append(bound)
    for owner in (bound, function):
        values += list(getattr(owner, "__dict__", {}).values())
    function = getattr(function, "__func__", function)
    for cell in getattr(function, "__closure__", None) or ():
        try:
            values.append(cell.cell_contents)
        except ValueError:  # a variable that is not bound yet
            continue
    code = getattr(function, "__code__", None)
    if code is not None:
        values += [function.__globals__[name] for name in code.co_names if name in function.__globals__]
    # one level down: a partial of a bound method, a closure over a method
    values += [getattr(value, "__self__", None) for value in values if not isinstance(value, nn.Module)]
    return values


def locate(forward_func: Callable[..., Any], layer: Any, at_input: bool) -> tuple[Site, list[nn.Module]]:
    """Check the layer and find the modules that run with it.

    Args:
        forward_func (Callable): the forward function.
        layer (Any): what the user passed as layer.
        at_input (bool): at the layer's input.

    Returns:
        tuple[Site, list[nn.Module]]: the site, and the modules that the forward function runs; the layer alone, where
        the function hides them.

    Raises:
        InvalidTypeError: the layer is not one module, forward_func cannot be called, or one of them is TorchScript.
        LayerNotExecutedError: forward_func is a module that does not contain the layer.
    """
    _assert_types(forward_func, layer)
    modules = find_modules(forward_func)
    name = name_of(layer, modules)
    if isinstance(forward_func, nn.Module) and name is None:
        names = [child for child, _ in forward_func.named_children()]
        raise LayerNotExecutedError(
            f"layer ({type(layer).__name__}) is not part of the model ({type(forward_func).__name__}), so the forward "
            f"pass cannot run it. Pass a module of this very model; its children are {names}."
        )
    known = f"the layer ({type(layer).__name__})" if name is None else f"layer {name!r} ({type(layer).__name__})"
    return Site(layer, known, at_input), modules


def _assert_types(forward_func: Any, layer: Any) -> None:
    if not callable(forward_func):
        raise InvalidTypeError(f"forward_func is a {type(forward_func).__name__}; wanted a module or a function.")
    if not isinstance(layer, nn.Module):
        raise InvalidTypeError(
            f"layer must be one torch.nn.Module, found {type(layer).__name__}. "
            + (
                "Create one object for each layer."
                if isinstance(layer, (list, tuple))
                else "Pass a module such as model.layer2, or dict(model.named_modules())['layer2']."
            )
        )
    if any(isinstance(thing, torch.jit.ScriptModule) for thing in (forward_func, layer)):
        raise InvalidTypeError(
            "TorchScript modules keep no Python hooks, so no bottleneck can be put into them. Pass the original "
            "nn.Module; its state dict fits."
        )


def name_of(layer: nn.Module, modules: Sequence[nn.Module]) -> str | None:
    """Dotted name of a layer within the first of these modules that holds it; None where none does."""
    for root in modules:
        for name, module in root.named_modules():
            if module is layer:
                return name or "<the model itself>"
    return None


@contextmanager
def evaluation_mode(modules: Sequence[nn.Module], warner: Warner) -> Iterator[None]:
    """Run in evaluation mode, and put every module's own flag back.

    Args:
        modules (Sequence[nn.Module]): roots; all their descendants count.
        warner (Warner): remembers that the warning was given.
    """
    training = in_training(modules)
    if training:
        warner.once(
            "training",
            f"{len(training)} modules are in training mode (the first is {type(training[0]).__name__}). They run in "
            "evaluation mode here, without dropout and with fixed batch statistics, and are put back afterwards. Call "
            "model.eval() to choose this yourself.",
        )
    with evaluation(*modules):
        yield


@contextmanager
def frozen_parameters(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Let no parameter of these modules ask for a gradient, and put each one's flag back.

    Nobody computes these gradients here, but autograd would keep what they need: the inputs of all linear layers.
    """
    asking = [p for p in dict.fromkeys(p for root in modules for p in root.parameters()) if p.requires_grad]
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


_locks: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_locks_guard = threading.Lock()


@contextmanager
def exclusive(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Keep other threads' calls off these modules; hooks and replaced forwards belong to one call at a time."""
    with _locks_guard:
        locks = [_locks.setdefault(module, threading.RLock()) for module in sorted(modules, key=id)]
    with ExitStack() as stack:
        for lock in locks:
            stack.enter_context(lock)
        yield


def device_of(modules: Sequence[nn.Module]) -> torch.device | None:
    """Device of the first parameter or buffer, None where there is none."""
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            return tensor.device
    return None
