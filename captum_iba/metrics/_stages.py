"""In which order the parameters of a model are randomised."""

from __future__ import annotations

import difflib
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from captum_iba.bottleneck.replay import plain_attention
from captum_iba.errors import InvalidArgumentError, InvalidTypeError


@dataclass(frozen=True)
class Unit:
    """Parameters that get new values together.

    Attributes:
        module (Module): owns them; its initialiser applies.
        parameters (tuple[Parameter, ...]): some or all of its own, without those of its children.
        statistics (bool): the module's running statistics are reset too.
    """

    module: nn.Module
    parameters: tuple[nn.Parameter, ...]
    statistics: bool = False


@dataclass(frozen=True)
class Stage:
    """One step of the cascade.

    Attributes:
        name (str): dotted name of a module or a parameter.
        units (tuple[Unit, ...]): in the order in which they get new values.
    """

    name: str
    units: tuple[Unit, ...]


@contextmanager
def recorded_starts(model: nn.Module) -> Iterator[Mapping[nn.Module, int]]:
    """Record when each module starts for the last time in the forward passes inside.

    Yields:
        Mapping[Module, int]: growing numbers, for the modules that ran.
    """
    starts: dict[nn.Module, int] = {}
    counter = itertools.count()

    def note(module: nn.Module, *_: Any) -> None:
        starts[module] = next(counter)

    # the module is bound here, as the replicas of parallel wrappers carry the hooks along
    handles = [module.register_forward_pre_hook(functools.partial(note, module)) for module in model.modules()]
    try:
        with plain_attention(), _uncompiled():
            yield starts
    finally:
        for handle in handles:
            handle.remove()


def _uncompiled() -> AbstractContextManager[Any]:
    """Compiled models run as written, so that hooks need not be compiled; torch 2.5 cannot do that."""
    set_stance = getattr(torch.compiler, "set_stance", None)
    return nullcontext() if set_stance is None else set_stance("force_eager")


def default_stages(model: nn.Module, starts: Mapping[nn.Module, int]) -> list[Stage]:
    """From the output to the input: the modules that own parameters, in reverse order of execution.

    A module that ran several times counts at its last run. A parameter of a module with children, such as a class
    token, is a stage of its own and counts at that module's start, behind all that runs inside. What never ran comes
    last. Of tied parameters only the first stage is listed.

    Args:
        model (Module): the model.
        starts (Mapping[Module, int]): as recorded.
    """
    attentions = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    inside = {inner for attention in attentions for inner in attention.modules() if inner is not attention}
    found = [
        (starts.get(_runner(model, name), -1), stage)
        for name, module in model.named_modules()
        if module not in inside
        for stage in _stages_of(name, module)
    ]
    order = sorted(range(len(found)), key=lambda i: (found[i][0], i), reverse=True)
    return _without_repetition([found[i][1] for i in order])


def named_stages(model: nn.Module, names: Sequence[str]) -> list[Stage]:
    """Stages that the user names: modules with all that they contain, or parameters.

    Raises:
        InvalidTypeError: not a sequence of strings.
        InvalidArgumentError: none, an unknown name, one that is given twice, or a module without parameters.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise InvalidTypeError(f"stages={names!r}; wanted a list of dotted names of modules or parameters.")
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if not names or twice:
        raise InvalidArgumentError(
            f"stages names {twice} more than once."
            if twice
            else "stages is empty; name a module, or pass None for all."
        )
    return [_named_stage(model, name) for name in names]


def _named_stage(model: nn.Module, name: str) -> Stage:
    modules = {inner: module for inner, module in model.named_modules(remove_duplicate=False) if inner}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if name in parameters:
        owner = model.get_submodule(name.rpartition(".")[0])
        return Stage(name, (Unit(owner, (parameters[name],)),))
    if name not in modules:
        known = [*modules, *parameters]
        near = difflib.get_close_matches(name, known, n=5, cutoff=0.5) or known[:5]
        raise InvalidArgumentError(f"stages names {name!r}, which the model does not have. Near it are {near}.")
    units = _units_within(modules[name])
    if not units:
        raise InvalidArgumentError(
            f"stages names {name!r}, a {type(modules[name]).__name__} without parameters. Name a module that has some."
        )
    return Stage(name, units)


def _stages_of(name: str, module: nn.Module) -> Iterable[Stage]:
    """One stage for a leaf or an attention, one for each own parameter of a module with children."""
    is_leaf = next(module.children(), None) is None and _can_run(module)
    if is_leaf or isinstance(module, nn.MultiheadAttention):  # which uses its projection's weights, but never runs it
        units = _units_within(module)
        return [Stage(name or type(module).__name__, units)] if units else []
    own = module.named_parameters(name, recurse=False)
    return [Stage(full_name, (Unit(module, (parameter,)),)) for full_name, parameter in own]


def _units_within(module: nn.Module) -> tuple[Unit, ...]:
    units = (Unit(m, tuple(m.parameters(recurse=False)), has_statistics(m)) for m in module.modules())
    return tuple(unit for unit in units if unit.parameters or unit.statistics)


def has_statistics(module: nn.Module) -> bool:
    """Whether it is a norm layer of torch that keeps running statistics."""
    return isinstance(module, _NormBase) and module.running_mean is not None


def _runner(model: nn.Module, name: str) -> nn.Module:
    """The module, or for a mere list of modules or parameters the one around it that uses them."""
    module = model.get_submodule(name)
    return module if name == "" or _can_run(module) else _runner(model, name.rpartition(".")[0])


def _can_run(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward


def _without_repetition(stages: Iterable[Stage]) -> list[Stage]:
    """Leave out stages that would reach nothing new."""
    reached: set[int] = set()
    kept = []
    for stage in stages:
        own = {id(thing) for unit in stage.units for thing in (*unit.parameters, *[unit.module] * unit.statistics)}
        if own - reached:
            kept.append(stage)
        reached |= own
    return kept
