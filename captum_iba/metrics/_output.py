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
        n_examples (int): number of examples that the target is for.
        warner (Warner, optional): remembers the warnings given. Default: None, one of its own.

    Raises:
        InvalidArgumentError: an unknown output.
        TargetError: the target has none of Captum's forms.
    """

    def __init__(self, output: OutputType, target: TargetType, n_examples: int, warner: Warner | None = None) -> None:
        if not callable(output) and output not in ("prob", "logit"):
            raise InvalidArgumentError(f"output={output!r}; wanted 'prob', 'logit' or a callable.")
        _assert_form(target, n_examples)
        self._output, self._target = output, target
        self._warner = Warner() if warner is None else warner

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
            made = self._output(tensor)
            if not isinstance(made, Tensor) or made.ndim == 0 or len(made) != len(tensor):
                found = f"shape {list(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
                raise InvalidArgumentError(
                    f"output made {found} of the model's output of shape {list(tensor.shape)}; wanted a tensor of as "
                    "many rows."
                )
            return made.double()
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
        _assert_selects(self._target, list(values.shape))
        chosen: Tensor = _select_targets(values, rows_of_target(self._target, rows))
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
    if isinstance(target, list):
        return [target[row] for row in rows.tolist()]
    return target


def _assert_form(target: Any, n_examples: int) -> None:
    """Refuse what is none of Captum's forms, or is for another number of examples."""
    entries = target if isinstance(target, list) else [target]
    if isinstance(target, Tensor):
        fits = not target.is_floating_point() and (target.numel() == 1 or target.shape == (n_examples,))
        found = f"a tensor of shape {list(target.shape)} and type {target.dtype}"
    else:
        places = [place for entry in entries for place in (entry if isinstance(entry, tuple) else (entry,))]
        fits = target is None or all(isinstance(place, int) for place in places)
        fits = fits and (not isinstance(target, list) or len(target) == n_examples)
        found = f"a list of {len(target)}" if isinstance(target, list) else repr(target)
    if not fits:
        raise TargetError(
            f"target is {found} for {n_examples} examples; wanted a class index, a tuple of indices, an integer tensor "
            "or list with one for each example, or None."
        )


def _assert_selects(target: Any, shape: list[int]) -> None:
    """Compare indices with sizes: on CUDA an index out of range would end the process's use of the device."""
    per_example = isinstance(target, list) or (isinstance(target, Tensor) and target.numel() > 1)
    entries = target.flatten().tolist() if isinstance(target, Tensor) else target if per_example else [target]
    for entry in set(entries) - {None}:
        places = entry if isinstance(entry, tuple) else (entry,)
        gathered = per_example and not isinstance(entry, tuple)
        if len(places) >= len(shape) or (gathered and len(shape) != 2):
            raise TargetError(
                f"target {entry!r} has an index too many, or too few, for an output of shape {shape}"
                + ("; wanted target=None for one value an example." if len(shape) == 1 else ".")
            )
        for size, place in zip(shape[1:], places, strict=False):
            if not (0 if gathered else -size) <= place < size:
                raise TargetIndexError(
                    f"target {entry!r} does not fit an output of shape {shape}; wanted indices below {size}."
                )
