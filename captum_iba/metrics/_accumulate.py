"""What the metrics' classes share: results gathered over batches and processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Self, TypeVar, cast

import torch.distributed

from captum_iba._warn import Warner
from captum_iba.errors import InvalidArgumentError
from captum_iba.metrics._result import UndefinedResultError

R = TypeVar("R")


class Accumulator(Generic[R]):
    """Keeps each batch's result, as Captum's ``AttackComparator`` does with evaluate, summary and reset.

    Values are kept per example rather than as means of batches, so that batches of unequal size count rightly.
    """

    def __init__(self) -> None:
        self._results: list[R] = []

    def reset(self) -> None:
        """Forget what was evaluated."""
        self._results = []

    def merge(self, other: Self) -> Self:
        """Add what another object evaluated, behind what this one did; returns self."""
        self._results = [*self._results, *other._results]
        return self

    def gather(self) -> Self:
        """Collect the results of all processes of torch.distributed, in order of their ranks, on every one of them.

        Without an initialised process group nothing changes.
        """
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            of_ranks: list[list[R]] = [[] for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather_object(of_ranks, self._results)
            self._results = [result for results in of_ranks for result in results]
        return self

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
