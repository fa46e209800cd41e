"""What the results of a comparison depend on, so that a resumed run can tell whether it is the same one."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from pathlib import Path

import captum
import torch
from torch import Tensor, nn

from captum_iba.bottleneck.statistics import FeatureStatistics
from captum_iba.comparison._runner import Plan
from captum_iba.comparison.context import Context
from captum_iba.comparison.dataset import ExampleSet
from captum_iba.comparison.methods import Method
from captum_iba.errors import CaptumIBAError
from captum_iba.metrics._options import described


def describe(plan: Plan, examples: ExampleSet, n_pictures: int, name: str | None, watched: bool) -> dict[str, object]:
    """All that the results depend on, fit for JSON.

    Args:
        plan (Plan): what is run.
        examples (ExampleSet): the data.
        n_pictures (int): examples whose pictures are kept.
        name (str, optional): of the model.
        watched (bool): the results are stored, so that data have to be recognised, which may mean reading them all.
    """
    context = plan.context
    names = {module: name for name, module in context.model.named_modules()}
    by_statistics = [*plan.methods, *plan.columns]
    is_fitted = any(getattr(part, "needs_statistics", False) for part in by_statistics)
    # what is loaded from a file needs no calibration
    loaded = {name for name, options in context.options.items() if "path" in options}
    is_calibrated = is_fitted or any(method.is_fitted and method.name not in loaded for method in plan.methods)
    return {
        "model": name or type(context.model).__name__,
        "weights": _digest(context.model.state_dict().values()),
        "layer": _or_reason(lambda: names[context.layer]),
        **_of_kind(context, examples, names),
        "statistics": _or_reason(lambda: _summary(context.statistics)) if is_fitted else "not needed",
        "calibration": _or_reason(lambda: context.calibration.summary) if is_calibrated else "not needed",
        "methods": [_method(method) for method in plan.methods],
        "method_options": {name: {k: _option(v) for k, v in o.items()} for name, o in context.options.items()},
        "metrics": [_column(column) for column in plan.columns],
        "categories": None if plan.categories is None else _digest(plan.categories),
        "examples": len(examples.keys),
        "data": dict(examples.fingerprint) if watched else None,
        "n_pictures": n_pictures,
        "seed": context.seed,
        "versions": versions(),
    }


def shown(configuration: Mapping[str, object]) -> dict[str, object]:
    """The configuration as the report shows it."""
    return {name: value for name, value in configuration.items() if name not in ("versions", "data")}


def versions() -> dict[str, str]:
    """Versions of what computes the results."""
    from captum_iba import __version__

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "captum": captum.__version__,
        "captum_iba": __version__,
    }


def _of_kind(context: Context, examples: ExampleSet, names: Mapping[nn.Module, str]) -> dict[str, object]:
    """What only images need, or only texts, whose baseline belongs to the data."""
    if context.example.is_floating_point():
        return {"gradcam_layer": _or_reason(lambda: names[context.gradcam_layer]), "baselines": context.baselines}
    token = getattr(getattr(examples, "encode", None), "baseline_token", None)
    return {"embedding": _or_reason(lambda: names[context.embedding]), "baseline_token": token}


def _method(method: Method) -> str:
    """Name, description, and a digest of the code of a user's function."""
    watched = "" if method.source is None else f" [{hashlib.sha256(_function(method.source).encode()).hexdigest()[:8]}]"
    return f"{method.name}: {method.description}{watched}"


def _function(function: object) -> str:
    """A function by its code and defaults, a partial by its parts, another callable by its class's code."""
    if isinstance(function, functools.partial):
        return repr([_function(function.func), _text(function.args), _text(function.keywords)])
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    if code is None:
        called = type(function).__call__ if callable(function) else None
        return "" if getattr(called, "__code__", None) is None else _function(called)
    defaults = _text(getattr(function, "__defaults__", None)) + _text(getattr(function, "__kwdefaults__", None))
    return _constant(code) + defaults


def _constant(value: object) -> str:
    """A constant of code as text that does not depend on the process: sets have an order of their own in each."""
    if isinstance(value, types.CodeType):
        return repr([value.co_code, value.co_names, [_constant(constant) for constant in value.co_consts]])
    if isinstance(value, frozenset):
        return repr(sorted(_constant(item) for item in value))
    return repr([_constant(item) for item in value]) if isinstance(value, tuple) else _text(value)


def _option(value: object) -> str:
    """An argument of a method; a file by its content too, which may change between two runs."""
    if isinstance(value, (str, os.PathLike)) and Path(value).is_file():
        return f"{described(value)} [{hashlib.sha256(Path(value).read_bytes()).hexdigest()[:8]}]"
    return described(value)


def _column(column: object) -> str:
    """A metric with its settings."""
    return _text(column) if is_dataclass(column) else f"{_text(column)} {_text(vars(column))}"


def _or_reason(find: Callable[[], str]) -> str:
    try:
        return find()
    except CaptumIBAError as error:
        return f"none: {error}"


def _summary(statistics: FeatureStatistics) -> str:
    """Equal for equal data, whatever their order and batches, which change the last digits of each feature."""
    mean, deviation = float(statistics.mean.mean()), float(statistics.std.mean())
    return f"{statistics.n_samples} examples, mean {mean:.4g}, deviation {deviation:.4g}"


def _text(value: object) -> str:
    """What it is, without its place in memory, which another process does not share."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _digest(tensors: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        if not isinstance(tensor, Tensor):  # a module's extra state
            digest.update(_text(tensor).encode())
            continue
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
