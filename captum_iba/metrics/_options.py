"""Options of the metrics' classes: checked when an object is made, and compared when results are joined."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from captum_iba.errors import InvalidTypeError

# how the work is done, which processes may choose differently
_WITHOUT_EFFECT = ("max_examples_per_batch", "show_progress")


def bound_options(
    function: Callable[..., Any], evaluate: Callable[..., Any], fixed: Mapping[str, object], options: Mapping[str, Any]
) -> dict[str, object]:
    """All options of a metric that decide its values, those with a default too.

    Args:
        function (Callable): the metric.
        evaluate (Callable): the class's method, whose arguments are the batch's.
        fixed (Mapping[str, object]): arguments that the class has under their own names.
        options (Mapping[str, Any]): what the user chose.

    Raises:
        InvalidTypeError: an option that the metric does not have, or that belongs to ``evaluate``.

    Examples::

        >>> def metric(model, inputs, scale=1.0, show_progress=False): ...
        >>> def evaluate(self, inputs): ...
        >>> bound_options(metric, evaluate, {"model": abs}, {})
        {'scale': 1.0}
    """
    of_batch = list(inspect.signature(evaluate).parameters)[1:]
    misplaced = [name for name in options if name in of_batch]
    if misplaced:
        raise InvalidTypeError(
            f"{', '.join(misplaced)} belongs to a batch of examples; pass it to evaluate({', '.join(of_batch)})."
        )
    signature = inspect.signature(function)
    needed = [name for name in of_batch if signature.parameters[name].default is inspect.Parameter.empty]
    try:
        bound = signature.bind(**dict.fromkeys(needed), **fixed, **options)
    except TypeError as error:
        known = _known(signature, of_batch)
        raise InvalidTypeError(f"{function.__name__}: {error}. Its options are {known}.") from error
    bound.apply_defaults()
    left_out = {*of_batch, *fixed, *_WITHOUT_EFFECT}
    return {name: value for name, value in bound.arguments.items() if name not in left_out}


def _known(signature: inspect.Signature, of_batch: list[str]) -> str:
    return ", ".join(
        name
        for name, parameter in signature.parameters.items()
        if name not in of_batch and parameter.default is not inspect.Parameter.empty
    )


def described(value: object) -> str:
    """Words that are equal for equal values, in other processes too.

    Examples::

        >>> described(0.5), described((torch.zeros(2), "mean"))
        ('0.5', "(tensor [2] torch.float32 af5570f5, 'mean')")
    """
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return f"tensor {list(value.shape)} {value.dtype} {hashlib.sha256(content).hexdigest()[:8]}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(described, value))})"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))  # functions have no name but an address


def difference(mine: Mapping[str, str], other: Mapping[str, str]) -> str:
    """The first option in which two objects differ, in words; empty where there is none."""
    for name in mine:
        if mine[name] != other[name]:
            return f"{name}={mine[name]} and {name}={other[name]}"
    return ""
