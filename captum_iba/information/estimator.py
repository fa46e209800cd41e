"""What an estimator is, and the names of those that come with the package."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from captum_iba.errors import InvalidArgumentError, InvalidTypeError
from captum_iba.information.estimate import Estimate

_NAMED: dict[str, type[Estimator]] = {}


class Estimator(ABC):
    """A way to estimate mutual information, with its settings; subclasses are frozen dataclasses.

    Estimators get what :func:`~captum_iba.information.mutual_information` has checked and prepared, and return nats.
    Variables are float64 (n, d), finite, without constant columns; or labels: int64 (n,), each at least 0. An
    estimator that takes labels on one side gets them second.

    Class attributes:
        ranked (bool): columns are to be rank-Gaussianised first, which leaves mutual information as it is.
        takes_labels (str): ``"none"``, ``"one"`` of the two variables, or ``"both"`` may be labels.
        at_least (int): number of examples that it needs.
    """

    ranked: ClassVar[bool] = False
    takes_labels: ClassVar[str] = "none"
    at_least: ClassVar[int] = 4

    def __init_subclass__(cls, name: str = "", **kwargs: Any) -> None:
        """Register a subclass under its name."""
        super().__init_subclass__(**kwargs)
        if name:
            _NAMED[name] = cls

    @abstractmethod
    def estimate(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Estimate:
        """Mutual information of x and y, in nats.

        Args:
            x (Tensor): (n, dx), or labels (n,).
            y (Tensor): (n, dy), or labels (n,).
            generator (torch.Generator): on the CPU; the only source of randomness.
        """

    def pairwise(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Estimate:
        """Mutual information of each column of x with each column of y, (dx, dy), in nats.

        Estimators that can share work between the pairs do so; this one goes from pair to pair.
        """
        rows = [[self.estimate(a, b, generator) for b in columns_of(y)] for a in columns_of(x)]
        return stacked(rows)


def columns_of(variable: Tensor) -> list[Tensor]:
    """Each column as a variable of its own, (n, 1); labels are one."""
    return [variable] if variable.ndim == 1 else list(variable.T[:, :, None])


def stacked(rows: list[list[Estimate]]) -> Estimate:
    """Single estimates as one of all pairs."""
    first = rows[0][0]

    def table(name: str) -> Any:
        if getattr(first, name) is None:
            return None
        return torch.stack([torch.stack([getattr(one, name) for one in row]) for row in rows])

    names = ("value", "standard_error", "cap", "slack", "in_sample", "held_out")
    met = dict.fromkeys(text for row in rows for one in row for text in one.warnings)
    return Estimate(n=first.n, estimator=first.estimator, warnings=tuple(met), **{name: table(name) for name in names})


def names() -> list[str]:
    """The names that ``estimator=`` takes, beside ``"auto"``."""
    return sorted(_NAMED)


def as_estimator(value: Any) -> Estimator:
    """An estimator from its name, or the object itself.

    Raises:
        InvalidArgumentError: no estimator has this name.
        InvalidTypeError: neither a name nor an estimator.
    """
    if isinstance(value, Estimator):
        return value
    if not isinstance(value, str):
        found = value.__name__ + " itself" if isinstance(value, type) else type(value).__name__
        raise InvalidTypeError(f"estimator is a {found}; wanted a name or an estimator such as KSG(k=5).")
    if value not in _NAMED:
        raise InvalidArgumentError(f'estimator={value!r}; wanted one of "auto", {", ".join(map(repr, names()))}.')
    return _NAMED[value]()
