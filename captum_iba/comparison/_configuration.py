"""What the results of a comparison depend on, so that a resumed run can tell whether it is the same one."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Callable, Iterable, Mapping

import captum
import torch
from torch import Tensor

from captum_iba.bottleneck.statistics import FeatureStatistics
from captum_iba.comparison._runner import Plan
from captum_iba.comparison.dataset import ExampleSet
from captum_iba.comparison.methods import Method
from captum_iba.errors import CaptumIBAError


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
    is_calibrated = is_fitted or any(method.is_fitted for method in plan.methods)
    return {
        "model": name or type(context.model).__name__,
        "weights": _digest(context.model.state_dict().values()),
        "layer": _or_reason(lambda: names[context.layer]),
        "gradcam_layer": _or_reason(lambda: names[context.gradcam_layer]),
        "statistics": _or_reason(lambda: _summary(context.statistics)) if is_fitted else "not needed",
        "calibration": _or_reason(lambda: context.calibration.summary) if is_calibrated else "not needed",
        "methods": [_method(method) for method in plan.methods],
        "method_options": {name: {k: _text(v) for k, v in o.items()} for name, o in context.options.items()},
        "metrics": [_text(column) for column in plan.columns],
        "categories": None if plan.categories is None else _digest(plan.categories),
        "examples": len(examples.keys),
        "data": dict(examples.fingerprint) if watched else None,
        "n_pictures": n_pictures,
        "baselines": context.baselines,
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


def _method(method: Method) -> str:
    """Name, description, and a digest of the code of a user's function."""
    code = getattr(method.source, "__code__", None)
    watched = "" if code is None else f" [{hashlib.sha256(_code(code)).hexdigest()[:8]}]"
    return f"{method.name}: {method.description}{watched}"


def _code(code: object) -> bytes:
    constants = getattr(code, "co_consts", ())
    inner = b"".join(_code(c) if hasattr(c, "co_code") else _text(c).encode() for c in constants)
    names = repr(getattr(code, "co_names", ())).encode()
    own: bytes = getattr(code, "co_code", b"")
    return own + names + inner


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
