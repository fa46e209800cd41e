"""Checks of numbers that users pass."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from captum_iba.errors import InvalidArgumentError, InvalidTypeError

# Beyond this, squares of gradients overflow in Adam's float32.
_LARGEST = 1e12


def is_integer(value: Any, least: int) -> bool:
    """Whether this is an integer, and large enough."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def assert_integer(name: str, value: Any, least: int = 1) -> None:
    """Refuse all else.

    Raises:
        InvalidArgumentError: no integer, or too small.
    """
    if not is_integer(value, least):
        raise InvalidArgumentError(f"{name}={value!r}; wanted an integer of at least {least}.")


def assert_number(name: str, value: Any, in_range: Callable[[float], bool], wanted: str) -> None:
    """Refuse what is no finite number, or out of range.

    Raises:
        InvalidArgumentError: it is not.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not in_range(value):
        raise InvalidArgumentError(f"{name}={value!r}; wanted a finite number {wanted}.")


def assert_beta(beta: Any) -> None:
    """Refuse a beta that is no weight."""
    assert_number("beta", beta, lambda value: 0 <= value <= _LARGEST, f"of at least 0, at most {_LARGEST:.0e}")


def assert_learning_rate(learning_rate: Any) -> None:
    """Refuse a learning rate that Adam cannot use."""
    assert_number("learning_rate", learning_rate, lambda value: 0 < value <= _LARGEST, f"above 0, to {_LARGEST:.0e}")


def assert_initial_alpha(initial_alpha: Any) -> None:
    """Refuse a start whose sigmoid means nothing."""
    assert_number("initial_alpha", initial_alpha, lambda value: abs(value) <= 1e4, "from -1e4 to 1e4")


def as_path(value: Any) -> Path:
    """A path from what a user passed as one.

    Raises:
        InvalidTypeError: no path.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise InvalidTypeError(f"The path is a {type(value).__name__}; wanted a string or a pathlib.Path.")
    return Path(value)


def assert_sigma(sigma: Any) -> None:
    """Refuse a smoothing that is neither off nor wide enough to do something."""
    if sigma is not None:
        wanted = "of at least 0: 0 (off) or more than 0.25 (a window of at least three positions), or None"
        assert_number("sigma", sigma, lambda value: value == 0 or round(2 * value) >= 1, wanted)
