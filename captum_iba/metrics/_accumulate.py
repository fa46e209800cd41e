"""What the metrics' classes share: results gathered over batches and processes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Generic, Self, TypeVar, cast

import torch.distributed
from torch import Tensor

from captum_iba._warn import Warner
from captum_iba.errors import InvalidArgumentError, InvalidTypeError
from captum_iba.metrics._options import described, difference
from captum_iba.metrics._result import UndefinedResultError

R = TypeVar("R")


class Accumulator(Generic[R]):
    """Keeps each batch's result, as Captum's ``AttackComparator`` does with evaluate, summary and reset.

    Values are kept per example rather than as means of batches, so that batches of unequal size count rightly.

    Args:
        settings (Mapping[str, object], optional): options that decide the values: only objects with equal ones can be
            joined. Default: None.
    """

    def __init__(self, settings: Mapping[str, object] | None = None) -> None:
        self._results: list[R] = []
        self._settings = dict(settings or {})

    def reset(self) -> None:
        """Forget what was evaluated."""
        self._results = []

    def merge(self, other: Self) -> Self:
        """Add what another object evaluated, behind what this one did; returns self.

        Tensors and functions among the options count as equal if their values and names are. How the work is done,
        as ``max_examples_per_batch`` and ``show_progress`` say, may differ.

        Raises:
            InvalidTypeError: an object of another class.
            InvalidArgumentError: one with other options.
        """
        if type(other) is not type(self):
            raise InvalidTypeError(
                f"A {type(other).__name__} cannot be merged into a {type(self).__name__}; wanted one of that class."
            )
        self._assert_like(*other._identity())
        self._results = [*self._results, *other._results]
        return self

    def gather(self) -> Self:
        """A new object with the results of all processes of torch.distributed, in order of their ranks, on each.

        This one stays as it is, so that it can go on and be gathered again. The results of all processes are on the
        CPU. Without an initialised process group the new object holds this one's results.

        Raises:
            InvalidTypeError, InvalidArgumentError: on all processes, where two differ in class or options; see
                :meth:`merge`.
        """
        gathered = copy.copy(self)
        gathered._results = list(self._results)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            of_ranks: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(of_ranks, (self._identity(), on_cpu(self._results)))
            for identity, _ in of_ranks:
                self._assert_like(*identity)
            gathered._results = [result for _, results in of_ranks for result in results]
        return gathered

    def _identity(self) -> tuple[str, dict[str, str]]:
        """The class's name, and the options in words."""
        return type(self).__name__, {name: described(value) for name, value in self._settings.items()}

    def _assert_like(self, kind: str, settings: Mapping[str, str]) -> None:
        own_kind, own_settings = self._identity()
        if kind != own_kind:
            raise InvalidTypeError(f"Results of a {kind} and a {own_kind} cannot be joined; wanted one class.")
        found = difference(own_settings, settings)
        if found:
            raise InvalidArgumentError(f"Results of {kind} with {found} cannot be joined; wanted the same options.")

    def _add_defined(self, evaluate: Callable[[], R]) -> R:
        """Keep a batch's result; a batch in which no example has a value must not end the run."""
        try:
            return self._add(evaluate())
        except UndefinedResultError as error:
            Warner().once("undefined", str(error))
            return self._add(cast(R, error.result))

    def _add(self, result: R) -> R:
        self._results.append(result)
        return result

    def _all(self) -> list[R]:
        if not self._results:
            raise InvalidArgumentError("There is nothing to summarise; call evaluate(...) first.")
        return self._results


def on_cpu(value: Any) -> Any:
    """The same with all tensors on the CPU, in dataclasses, tuples, lists and dicts of any depth.

    Examples::

        >>> on_cpu({"maps": (torch.zeros(1, device="cpu"), 3)})
        {'maps': (tensor([0.]), 3)}
    """
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.init]
        return dataclasses.replace(value, **{name: on_cpu(getattr(value, name)) for name in names})
    if isinstance(value, (tuple, list)):
        return type(value)(map(on_cpu, value))
    if isinstance(value, dict):
        return {key: on_cpu(entry) for key, entry in value.items()}
    return value
