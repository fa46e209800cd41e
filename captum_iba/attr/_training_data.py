"""Batches to train on: inputs, targets, this process's rows, and an order that repeats."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data.distributed import DistributedSampler

from captum_iba._processes import from_all, rank, world_size
from captum_iba._random_state import OwnRandomState
from captum_iba.attr._calibration import (
    LABEL_KEYS,
    InputFn,
    arguments_of,
    as_batches,
    forward_call,
    length_of,
    on_device,
)
from captum_iba.bottleneck.containers import leaves_in, map_tensors
from captum_iba.bottleneck.noise import derived_seed
from captum_iba.errors import InvalidArgumentError, InvalidTypeError, MismatchedArgumentsError, NonFiniteError

Targets = Literal["labels", "predictions"] | Callable[[Any], Tensor]


def stream_seed(seed: int, stream: str, index: int) -> int:
    """A seed for one purpose: streams share no numbers."""
    number = {"order": 0, "training noise": 1, "validation noise": 2}[stream]
    return derived_seed(seed, number, index)


@dataclass(frozen=True)
class Batch:
    """This process's rows of one batch.

    Attributes:
        call (Callable): runs the forward pass on them.
        targets (Tensor or None): (n,); None where the model's predictions are the targets.
        n (int): rows; at least one runs, even where none counts.
        counted (int): rows that count: all, or none where the batch has fewer rows than there are processes.
        offset (int): rows of the processes before this one.
        n_global (int): rows of all processes.
    """

    call: Callable[[], Any]
    targets: Tensor | None
    n: int
    counted: int
    offset: int
    n_global: int


class Batches:
    """Reads a user's data.

    Args:
        data (Iterable): batches, see :meth:`LayerReadoutIBA.fit`.
        forward_func (Callable): the model.
        input_fn (Callable, optional): as in :meth:`LayerIBA.estimate`.
        targets ("labels", "predictions" or Callable): where the targets are.
        device (torch.device, optional): of the model.
        name (str): the argument's name, for messages.
    """

    def __init__(
        self,
        data: Any,
        forward_func: Callable[..., Any],
        input_fn: InputFn | None,
        targets: Targets,
        device: torch.device | None,
        name: str,
    ) -> None:
        if targets not in ("labels", "predictions") and not callable(targets):
            raise InvalidArgumentError(
                f"targets={targets!r}; wanted 'labels', 'predictions' or a function batch -> class indices (N,)."
            )
        as_batches(data, name)
        self._data, self._forward_func, self._input_fn = data, forward_func, input_fn
        self._targets, self._device, self._name = targets, device, name

    def __len__(self) -> int:
        """Batches of an epoch, where the data know; else 0."""
        return length_of(self._data) or 0

    def generator_states(self) -> list[Tensor]:
        """States of the loader's own generators, from which it draws the order of an epoch."""
        return [generator.get_state() for generator in self._generators()]

    def set_generator_states(self, states: Sequence[Tensor]) -> None:
        """Let the loader draw from these states on, if it has as many generators."""
        generators = self._generators()
        if len(generators) == len(states):
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)

    def _generators(self) -> list[torch.Generator]:
        sampler, batch_sampler = getattr(self._data, "sampler", None), getattr(self._data, "batch_sampler", None)
        owners = (self._data, sampler, batch_sampler, getattr(batch_sampler, "sampler", None))
        found = [getattr(owner, "generator", None) for owner in owners]
        unique = {id(generator): generator for generator in found if isinstance(generator, torch.Generator)}
        return list(unique.values())

    def epoch(self, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, always in the same order for the same seed and data.

        Args:
            seed (int): of the training.
            epoch (int): its number.
            skip (int, optional): batches to leave out at the start, which were trained on before. Default: 0.
        """
        set_epoch = getattr(getattr(self._data, "sampler", None), "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)
        own = OwnRandomState(stream_seed(seed, "order", epoch))
        with own.entered():
            source = iter(as_batches(self._data, self._name))
        n = 0
        while True:
            with own.entered():
                batch = next(source, _END)
            if batch is _END:
                break
            n += 1
            if n > skip:
                yield self._read(batch)
        if n <= skip and (n < skip or n == 0):
            raise InvalidArgumentError(
                f"{self._name} has {n} batches in epoch {epoch}, wanted {f'at least {skip}' if skip else 'some'}. A "
                "generator can be used only once: pass a list of batches or a DataLoader; and a checkpoint goes with "
                "the data it was made on."
            )

    def _read(self, batch: Any) -> Batch:
        targets = self._targets_of(batch)
        inputs, additional = arguments_of(batch, self._input_fn, with_labels=False)
        tensors = [leaf for leaf in leaves_in(inputs) if isinstance(leaf, Tensor)]
        if not tensors or tensors[0].ndim == 0 or len(tensors[0]) == 0:
            raise InvalidArgumentError(f"{self._name} yields a batch without examples; wanted at least one.")
        n = len(tensors[0])
        self._assert_sound(tensors, targets, n)
        rows, counted, offset, n_global = self._own_rows(n)
        own = map_tensors(lambda t: t[rows] if t.ndim and len(t) == n else t, (inputs, additional, targets))
        inputs, additional, targets = on_device(own, self._device)
        call = forward_call(self._forward_func, inputs, additional)
        return Batch(call, targets, rows.stop - rows.start, counted, offset, n_global)

    def _own_rows(self, n: int) -> tuple[slice, int, int, int]:
        if world_size() == 1:
            return slice(0, n), n, 0, n
        if isinstance(getattr(self._data, "sampler", None), DistributedSampler):
            counts = from_all(n)  # each process has a batch of its own
            return slice(0, n), n, sum(counts[: rank()]), sum(counts)
        edges = [n * process // world_size() for process in range(world_size() + 1)]
        start, stop = edges[rank()], edges[rank() + 1]
        if start == stop:
            return slice(0, 1), 0, 0, n
        return slice(start, stop), stop - start, start, n

    def _targets_of(self, batch: Any) -> Tensor | None:
        if self._targets == "predictions":
            return None
        found: Any
        if callable(self._targets):
            found = self._targets(batch)
        elif isinstance(batch, Mapping):
            found = next((batch[key] for key in LABEL_KEYS if key in batch), None)
        else:
            found = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
        if isinstance(found, (list, tuple, np.ndarray)):
            with torch.device("cpu"):
                found = torch.as_tensor(np.asarray(found))
        if not isinstance(found, Tensor):
            raise InvalidTypeError(
                f"{self._name} has no labels: found {type(found).__name__} in a {type(batch).__name__}. Wanted batches "
                "(inputs, labels) or mappings with 'labels', and val_data as the second argument; or pass "
                "targets='predictions', or a function batch -> labels."
            )
        targets: Tensor = found
        return targets

    def _assert_sound(self, tensors: list[Tensor], targets: Tensor | None, n: int) -> None:
        if targets is not None and (targets.ndim == 0 or len(targets) != n):
            raise MismatchedArgumentsError(
                f"{self._name} has {n} inputs and targets of shape {list(targets.shape)} in a batch; wanted one each."
            )
        for tensor in tensors:
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise NonFiniteError(f"{self._name} holds NaN or infinity. Clean the data, e.g. with torch.nan_to_num.")


_END = object()
