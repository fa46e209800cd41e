"""A model's arguments by name, in the order of its signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from captum_iba.errors import InvalidArgumentError

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def parameters_of(forward_func: Callable[..., Any]) -> list[inspect.Parameter]:
    """What a model takes by position, in order."""
    function = forward_func.forward if isinstance(forward_func, nn.Module) else forward_func
    return [each for each in inspect.signature(function).parameters.values() if each.kind in _POSITIONAL]


def in_order(forward_func: Callable[..., Any], arguments: Mapping[str, Any]) -> tuple[Any, ...]:
    """Arguments behind the first one, up to the last that is given; those between keep their defaults.

    Arguments that the model does not name are left out.

    Raises:
        InvalidArgumentError: one that is not given has no default.

    Examples::

        >>> def model(input_ids, cache=None, attention_mask=None): ...
        >>> in_order(model, {"attention_mask": 1, "token_type_ids": 0})
        (None, 1)
    """
    parameters = parameters_of(forward_func)[1:]
    last = max((place for place, each in enumerate(parameters) if each.name in arguments), default=-1)
    found = []
    for parameter in parameters[: last + 1]:
        if parameter.name not in arguments and parameter.default is inspect.Parameter.empty:
            name = getattr(forward_func, "__name__", type(forward_func).__name__)
            raise InvalidArgumentError(
                f"{name} wants {parameter.name!r} before {parameters[last].name!r}, and there are "
                f"{', '.join(arguments)} only. Wrap the model in a module that takes the first input and these."
            )
        found.append(arguments.get(parameter.name, parameter.default))
    return tuple(found)
