"""How many rows go through a model at once, and fewer where memory does not suffice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from captum_iba._warn import Warner
from captum_iba.errors import InvalidArgumentError

T = TypeVar("T")

# About four photos of 224 pixels at once: more fall out of a CPU's caches (convolutions then take up to three times as
# long per row), while small inputs need more rows to make up for each call. A GPU wants work for all its units.
_CPU_ELEMENTS, _CPU_ROWS, _GPU_ROWS = 4 * 3 * 224 * 224, (4, 64), 128


def default_rows(inputs: Tensor) -> int:
    """Rows in one forward pass where the user names no number.

    Examples::

        >>> default_rows(torch.zeros(1, 3, 224, 224)), default_rows(torch.zeros(1, 1, 64, 64))
        (4, 64)
    """
    if inputs.device.type != "cpu":
        return _GPU_ROWS
    fewest, most = _CPU_ROWS
    return min(most, max(fewest, _CPU_ELEMENTS // max(1, inputs[0].numel())))


class RowLimit:
    """Most rows in one forward pass, halved where memory does not suffice.

    Args:
        max_examples_per_batch (int, optional): the user's number; None for :func:`default_rows`.
        inputs (Tensor): (N, ...).
        warner (Warner): gives the warning, once.

    Raises:
        InvalidArgumentError: no integer of at least 1.

    Examples::

        >>> RowLimit(8, torch.zeros(3, 2), Warner()).attempt(lambda rows: rows, at_most=3)
        3
    """

    def __init__(self, max_examples_per_batch: int | None, inputs: Tensor, warner: Warner) -> None:
        chosen = max_examples_per_batch
        if chosen is not None and (isinstance(chosen, bool) or not isinstance(chosen, int) or chosen < 1):
            raise InvalidArgumentError(f"max_examples_per_batch={chosen!r}; wanted an integer of at least 1, or None.")
        self._rows = chosen or default_rows(inputs)
        self._too_many: int | None = None
        self._warner = warner

    def attempt(self, run: Callable[[int], T], at_most: int) -> T:
        """Call ``run(rows)`` with as many rows as memory suffices for.

        Args:
            run (Callable): runs the model on so many rows at once.
            at_most (int): rows that there are to run.

        Raises:
            torch.OutOfMemoryError: not even for one row.
        """
        while True:
            rows = min(self._rows, at_most)
            try:
                return run(rows)
            except torch.OutOfMemoryError:
                if rows == 1:  # nothing is left to halve
                    raise
            self._too_many, self._rows = self._too_many or rows, rows // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def report(self) -> None:
        """Warn if memory did not suffice."""
        if self._too_many is not None:
            self._warner.once(
                "memory",
                f"{self._too_many} rows at once did not fit into memory, {self._rows} did. Pass max_examples_per_batch="
                f"{self._rows} to start with it.",
            )


def rows_of_arguments(additional: tuple[Any, ...] | None, rows: Tensor, n_examples: int) -> tuple[Any, ...] | None:
    """The additional arguments of these examples: tensors with a row for each are cut, others stay."""
    if additional is None:
        return None
    return tuple(
        a[rows.to(a.device)] if isinstance(a, Tensor) and a.ndim > 0 and len(a) == n_examples else a for a in additional
    )
