"""The most examples of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from captum_iba.errors import InvalidArgumentError, InvalidTypeError

T = TypeVar("T")


def assert_limit(limit: object) -> None:
    """Refuse what is no number of examples.

    Raises:
        InvalidTypeError: neither an integer nor None.
        InvalidArgumentError: below 1.
    """
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool)):
        raise InvalidTypeError(f"limit is a {type(limit).__name__}; wanted an int or None.")
    if limit is not None and limit < 1:
        raise InvalidArgumentError(f"limit={limit}; wanted at least 1, or None for all.")


def spread(examples: Sequence[T], limit: int | None) -> tuple[T, ...]:
    """At most so many, spread evenly.

    Examples::

        >>> spread("abcdef", 3), spread("ab", None)
        (('a', 'c', 'e'), ('a', 'b'))
    """
    if limit is None or limit >= len(examples):
        return tuple(examples)
    return tuple(examples[i * len(examples) // limit] for i in range(limit))
