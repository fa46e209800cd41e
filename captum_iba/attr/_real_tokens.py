"""One example's part of tables over padded batches."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from captum_iba.errors import InvalidArgumentError


def bits_of_example(bits: Tensor, position_mask: Tensor, index: Any) -> Tensor:
    """(R, real tokens) of (R, N, L), without padding.

    Raises:
        InvalidArgumentError: there is no such example.
    """
    n = len(position_mask)
    if not isinstance(index, int) or not -n <= index < n:
        raise InvalidArgumentError(f"index={index!r}; wanted an example from 0 to {n - 1}.")
    return bits[:, index, position_mask[index]]
