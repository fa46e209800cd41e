"""Runs a model on inputs with units removed, in batches of any size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from captum_iba._captum import (
    TargetType,
    _format_additional_forward_args,
    _run_forward,
)
from captum_iba._warn import Warner
from captum_iba.attr._model import evaluation_mode, find_modules
from captum_iba.errors import InvalidArgumentError, InvalidTypeError, NonFiniteError
from captum_iba.metrics._output import Output, OutputType, Row
from captum_iba.metrics._rows import RowLimit, default_rows, rows_of_arguments
from captum_iba.metrics._units import Tensors, as_tuple

__all__ = ["Removal", "Rows", "as_inputs", "default_rows"]

_LOOKAHEAD = 1024


def as_inputs(inputs: Tensors) -> tuple[Tensor, ...]:
    """Inputs as a tuple of tensors with one row per example.

    Raises:
        InvalidTypeError: an entry is no tensor.
        InvalidArgumentError: there are none, or they hold no or unequal numbers of examples.
        NonFiniteError: NaN or infinity.
    """
    tensors = as_tuple(inputs, "inputs")
    for index, tensor in enumerate(tensors):
        if tensor.ndim < 2 or tensor.shape[0] == 0 or tensor.shape[0] != tensors[0].shape[0]:
            raise InvalidArgumentError(
                f"inputs[{index}] has shape {list(tensor.shape)}; wanted (N, ...) with the same N of at least 1 "
                "everywhere."
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise NonFiniteError(f"inputs[{index}] contains NaN or infinity. Clean the data, e.g. torch.nan_to_num.")
    if not tensors:
        raise InvalidArgumentError("inputs is empty; wanted a tensor, or a tuple of at least one.")
    return tuple(tensor.detach() for tensor in tensors)


class Rows:
    """A model's outputs for copies of the examples from which units are removed.

    Args:
        forward_func (Callable): the model, which returns logits unless ``output`` says otherwise.
        inputs (tuple[Tensor, ...]): each (N, ...).
        additional_forward_args (Any): as in Captum.
        target: as in Captum.
        output: see :class:`Output`.
        max_examples_per_batch (int, optional): most rows in one forward pass.
        progress (str, optional): name of a progress bar over the rows; None for none.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        inputs: tuple[Tensor, ...],
        additional_forward_args: object | None,
        target: TargetType,
        output: OutputType,
        max_examples_per_batch: int | None,
        progress: str | None = None,
    ) -> None:
        if not callable(forward_func):
            raise InvalidTypeError(f"forward_func is a {type(forward_func).__name__}; wanted a module or a function.")
        self._warner = Warner()
        self._limit = RowLimit(max_examples_per_batch, inputs[0], self._warner)
        self._forward_func, self.inputs = forward_func, inputs
        self._additional = _format_additional_forward_args(additional_forward_args)
        self._read = Output(output, target, self.n_examples, self._warner)
        self._progress = progress

    @property
    def n_examples(self) -> int:
        """Number of examples."""
        return len(self.inputs[0])

    def intact(self) -> Row:
        """Values for the examples as they are."""
        return self.run(torch.arange(self.n_examples, device=self.inputs[0].device), self.inputs_of)

    def inputs_of(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The inputs of these examples."""
        return tuple(x[rows] for x in self.inputs)

    def run(self, examples: Tensor, build: Callable[[Tensor], tuple[Tensor, ...]]) -> Row:
        """Values of jobs, each a changed copy of one example.

        Args:
            examples (Tensor): (J,), the example of each job.
            build (Callable): ``build(jobs) -> inputs`` of these jobs, one row each.
        """

        def forward(part: Tensor) -> Row:
            return self._call(build(part), self._additional_of(examples[part]), examples[part])

        return self._collect(examples, forward)

    def run_cut(self, examples: Tensor, kept: Callable[[Tensor], Tensor]) -> Row:
        """Values of jobs from which positions along axis 1 are cut out.

        Rows of equal length run together, so that nothing has to be padded. Additional arguments with one entry a
        position, such as an attention mask, are cut alike.

        Args:
            examples (Tensor): (J,), the example of each job.
            kept (Callable): ``kept(jobs) -> (len(jobs), T)``, bool.
        """
        jobs = torch.arange(len(examples), device=examples.device)
        lengths = torch.cat([kept(part).sum(dim=1) for part in torch.split(jobs, _LOOKAHEAD)])
        if int(lengths.min()) == 0:
            raise InvalidArgumentError(
                "removal='delete' leaves nothing of some examples. Mark what must stay, such as special tokens, with "
                "negative numbers in feature_mask, or use removal='replace'."
            )
        order = lengths.argsort(stable=True)
        lengths = lengths[order]

        def forward(part: Tensor) -> Row:
            pieces = []
            for length in sorted(set(lengths[part].tolist())):
                equal = order[part[lengths[part] == length]]
                pieces.append(self._call_cut(examples[equal], kept(equal), length))
            return _joined(pieces)

        found, back = self._collect(examples, forward), order.argsort()
        return Row(found.value[back], found.best[back], found.rank[back])

    def _call_cut(self, rows: Tensor, kept: Tensor, length: int) -> Row:
        positions = self.inputs[0].shape[1]

        def cut(tensor: Tensor) -> Tensor:
            return tensor[kept].reshape(len(tensor), length, *tensor.shape[2:])

        additional = tuple(
            cut(a) if isinstance(a, Tensor) and a.ndim > 1 and a.shape[:2] == (len(rows), positions) else a
            for a in self._additional_of(rows) or ()
        )
        return self._call(tuple(cut(x) for x in self.inputs_of(rows)), additional or None, rows)

    def _collect(self, examples: Tensor, forward: Callable[[Tensor], Row]) -> Row:
        jobs, pieces = torch.arange(len(examples), device=examples.device), list[Row]()
        bar = tqdm(total=len(examples), desc=self._progress, disable=self._progress is None, unit="row")
        modules = find_modules(self._forward_func)

        def first(rows: int) -> Row:
            return forward(jobs[:rows])

        with torch.no_grad(), evaluation_mode(modules, self._warner), bar:
            while len(jobs):
                pieces.append(self._limit.attempt(first, len(jobs)))
                done = len(pieces[-1].value)
                jobs = jobs[done:]
                bar.update(done)
        self._limit.report()
        return _joined(pieces)

    def _call(self, inputs: tuple[Tensor, ...], additional: Any, rows: Tensor) -> Row:
        return self._read(_run_forward(self._forward_func, inputs, None, additional), rows)

    def _additional_of(self, rows: Tensor) -> tuple[Any, ...] | None:
        return rows_of_arguments(self._additional, rows, self.n_examples)


def _joined(pieces: list[Row]) -> Row:
    return Row(*(torch.cat([getattr(piece, name) for piece in pieces]) for name in ("value", "best", "rank")))


class Removal:
    """Takes units out of the inputs, row by row.

    Args:
        rows (Rows): the model and the examples.
        index (tuple[Tensor, ...]): for each input the number of each position's unit, -1 where none is removed.
        baselines (tuple[Tensor, ...], optional): what replaces them; None to cut them out.
    """

    def __init__(self, rows: Rows, index: tuple[Tensor, ...], baselines: tuple[Tensor, ...] | None) -> None:
        self._rows, self._baselines = rows, baselines
        # position -1 is kept always: a last, constant column of the units' masks
        self._index = index
        self._runs = [_runs(numbers[0]) for numbers in index]
        if baselines is None:
            self._assert_can_cut()

    def intact(self) -> Row:
        """Values for the examples as they are."""
        return self._rows.intact()

    def run(self, examples: Tensor, kept: Callable[[Tensor], Tensor]) -> Row:
        """Values of jobs; ``kept(jobs)`` is bool, (len(jobs), K): the units that stay."""
        if self._baselines is None:
            return self._rows.run_cut(examples, lambda jobs: self._spread(kept(jobs), examples[jobs], 0).flatten(1))
        return self._rows.run(examples, lambda jobs: self._replaced(kept(jobs), examples[jobs]))

    def _replaced(self, kept: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        assert self._baselines is not None
        return tuple(
            _mixed(x, baseline, self._spread(kept, rows, number), rows)
            for number, (x, baseline) in enumerate(zip(self._rows.inputs, self._baselines, strict=True))
        )

    def _spread(self, kept: Tensor, rows: Tensor, number: int) -> Tensor:
        """The units' masks over positions, broadcastable to the input."""
        index = self._index[number]
        padded = torch.cat([kept, torch.ones_like(kept[:, :1])], dim=1)
        if index.shape[0] == 1:
            units, length = self._runs[number]
            # picking each run once and stretching it is many times faster than picking each position
            spread = padded[:, units].unsqueeze(2).expand(-1, -1, length)
            return spread.reshape(len(kept), *index.shape[1:])
        own = torch.where(index < 0, kept.shape[1], index)[rows]
        return padded.gather(1, own.flatten(1)).view(len(kept), *index.shape[1:])

    def _assert_can_cut(self) -> None:
        for x, index in zip(self._rows.inputs, self._index, strict=True):
            positions = x.shape[1]
            if index.shape[1] != positions or index[0, :].numel() != positions or len(self._rows.inputs) > 1:
                raise InvalidArgumentError(
                    "removal='delete' cuts tokens out of one input (N, T) or (N, T, D); found "
                    f"{len(self._rows.inputs)} inputs, one of shape {list(x.shape)}. Use removal='replace'."
                )


def _runs(index: Tensor) -> tuple[Tensor, int]:
    """Units of the runs of one length that make up the positions in order, and that length."""
    flat = index.flatten()
    lengths = torch.unique_consecutive(flat, return_counts=True)[1]
    length = math.gcd(*lengths.tolist())
    return flat[::length], length


def _mixed(x: Tensor, baseline: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
    """Rows of x where the mask is set, and of the baseline elsewhere.

    Rows of one example come together, and are read where they lie. Multiplying by 0 and 1 is exact for finite numbers
    and three times faster than choosing.
    """
    if not x.is_floating_point():
        return torch.where(mask, x[rows], baseline[rows])
    mixed = torch.empty((len(rows), *x.shape[1:]), dtype=x.dtype, device=x.device)
    weight = mask.to(x.dtype)
    start = 0
    for example, count in zip(*(t.tolist() for t in torch.unique_consecutive(rows, return_counts=True)), strict=True):
        piece = slice(start, start + count)
        torch.mul(x[example], weight[piece], out=mixed[piece])
        mixed[piece].addcmul_(baseline[example], 1 - weight[piece])
        start += count
    return mixed
