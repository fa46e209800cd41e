"""From a model's output to one value a row: the target's probability or logit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from captum_iba._captum import TargetType, _select_targets
from captum_iba._warn import Warner
from captum_iba.attr._objective import output_tensor
from captum_iba.errors import InvalidArgumentError, NonFiniteError, TargetError, TargetIndexError

OutputType: TypeAlias = Literal["prob", "logit"] | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """What is read from each row of an output.

    Attributes:
        value (Tensor): (R,), float64, of the target.
        best (Tensor): (R,), float64, largest value of any class; the value itself where there are no classes.
        rank (Tensor): (R,), float64: how many classes are above the target, plus 1, ties counting half; NaN where the
            output has no single axis of classes.
    """

    value: Tensor
    best: Tensor
    rank: Tensor


class Output:
    """Reads the target's value from outputs.

    Args:
        output (str or Callable): ``"prob"``, softmax over axis 1; ``"logit"``, the output as it is; or a callable
            applied to the output.
        target: in one of Captum's forms.

    Raises:
        InvalidArgumentError: an unknown output.
    """

    def __init__(self, output: OutputType, target: TargetType) -> None:
        if output not in ("prob", "logit") and not callable(output):
            raise InvalidArgumentError(f"output={output!r}; wanted 'prob', 'logit' or a callable.")
        self._output, self._target = output, target
        self._warner = Warner()

    def __call__(self, raw: Any, rows: Tensor) -> Row:
        """Read the rows of an output; ``rows`` says which example each belongs to."""
        tensor = output_tensor(raw)
        if tensor.ndim == 0 or tensor.shape[0] != len(rows):
            raise TargetError(
                f"forward_func returned shape {list(tensor.shape)} for {len(rows)} rows; wanted one row of output each."
            )
        values = self._transformed(tensor)
        if not torch.isfinite(values).all():
            raise NonFiniteError(
                "The model's output became NaN or infinite on inputs with removed parts. Choose another baseline."
            )
        return self._read(values, rows)

    def _transformed(self, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        if callable(self._output):
            return self._output(tensor).double()
        if self._output == "logit" or (tensor.ndim == 1 and self._target is None):
            return tensor.double()
        if tensor.ndim < 2 or tensor.shape[1] == 1:
            raise InvalidArgumentError(
                f"output='prob' takes a softmax over axis 1, but the output has shape {list(tensor.shape)}. Pass "
                "output='logit' for the output as it is, or output=torch.sigmoid."
            )
        wide = tensor.double()
        total = wide.sum(dim=1)
        if bool((wide >= 0).all()) and bool(((total - 1).abs() < 1e-3).all()):
            self._warner.once(
                "softmax",
                "forward_func seems to return probabilities (no value is negative and each row sums to 1); a second "
                "softmax would flatten them. Pass output='logit' to take them as they are.",
            )
        return wide.softmax(dim=1)

    def _read(self, values: Tensor, rows: Tensor) -> Row:
        target = rows_of_target(self._target, rows)
        try:
            chosen: Tensor = _select_targets(values, target)
        except (IndexError, RuntimeError) as error:
            raise TargetIndexError(
                f"target does not fit an output of shape {list(values.shape)}: {error}. Pass classes of the output."
            ) from error
        if chosen.numel() != len(rows):
            raise TargetError(
                "Target not provided when necessary, or it selects more than one value: found "
                f"{list(chosen.shape)} for {len(rows)} rows; wanted one value a row."
            )
        chosen = chosen.reshape(-1)
        best = values.flatten(1).amax(dim=1) if values.ndim > 1 else chosen
        if values.ndim != 2:
            return Row(chosen, best, torch.full_like(chosen, float("nan")))
        above = (values > chosen[:, None]).sum(dim=1) + ((values == chosen[:, None]).sum(dim=1) - 1) / 2
        return Row(chosen, best, above.double() + 1)


def rows_of_target(target: TargetType, rows: Tensor) -> TargetType:
    """The targets of rows that are copies of examples."""
    if isinstance(target, Tensor) and target.numel() > 1:
        return target.to(rows.device)[rows]
    if isinstance(target, list) and len(target) > 1:
        return [target[row] for row in rows.tolist()]
    return target
