"""The data of an information flow: examples in batches, with or without labels, run through a model as it predicts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from captum_iba._evaluation import evaluation
from captum_iba._numbers import assert_integer
from captum_iba._random_state import OwnRandomState
from captum_iba.errors import CaptumIBAError, InvalidArgumentError, InvalidTypeError, MismatchedArgumentsError

# a tensor of inputs, (inputs, labels), or an iterable of such batches
DataType: TypeAlias = Tensor | tuple[Tensor, Tensor] | Iterable[Any]
Batch: TypeAlias = tuple[Tensor, Tensor | None]


class FlowData:
    """Examples that can be gone through several times.

    Args:
        data (Tensor, tuple[Tensor, Tensor] or Iterable): inputs; (inputs, labels); or batches that are one or the
            other, such as a DataLoader's.
        internal_batch_size (int, optional): examples of one forward pass, where data is not in batches already.
            Default: None, all.
        seed (int): for loaders that shuffle.

    Raises:
        InvalidTypeError: something else.
        MismatchedArgumentsError: another number of labels than inputs.
        InvalidArgumentError: a batch size that is none.
    """

    def __init__(self, data: DataType, internal_batch_size: int | None = None, seed: int = 0) -> None:
        if internal_batch_size is not None:
            assert_integer("internal_batch_size", internal_batch_size)
        self._size, self._seed = internal_batch_size, seed
        self._whole = isinstance(data, (Tensor, tuple))
        if not self._whole and not hasattr(data, "__iter__"):
            raise InvalidTypeError(f"data is a {type(data).__name__}; wanted a tensor, (inputs, labels) or a loader.")
        # an iterator would be empty the second time
        self._data: Any = list(data) if isinstance(data, Iterator) else data

    def __iter__(self) -> Iterator[Batch]:
        """Batches of inputs and labels (None without)."""
        if self._whole:
            inputs, labels = _as_batch(self._data)
            size = self._size or max(len(inputs), 1)
            for start in range(0, len(inputs), size):
                rows = slice(start, start + size)
                yield inputs[rows], None if labels is None else labels[rows]
            return
        state = OwnRandomState(self._seed)
        with state.entered():
            batches = iter(self._data)
        while True:
            with state.entered():
                batch = next(batches, None)
            if batch is None:
                return
            yield _as_batch(batch)


def _as_batch(batch: Any) -> Batch:
    inputs, labels = batch, None
    if isinstance(batch, (tuple, list)):
        if not 1 <= len(batch) <= 2:
            raise InvalidTypeError(f"data holds {len(batch)} things together; wanted inputs, or inputs and labels.")
        inputs, labels = batch[0], batch[1] if len(batch) == 2 else None
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or inputs.ndim < 2:
        found = f"of {inputs.dtype} {list(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
        raise InvalidTypeError(f"The inputs are {found}; wanted a floating-point tensor (n, features, ...).")
    if labels is None:
        return inputs, None
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex() or labels.ndim != 1:
        found = f"of {labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise InvalidTypeError(f"The labels are {found}; wanted a tensor (n,) of integers.")
    if len(labels) != len(inputs):
        raise MismatchedArgumentsError(f"There are {len(labels)} labels for {len(inputs)} inputs; wanted one each.")
    return inputs, labels.long()


@contextmanager
def predicting(model: nn.Module) -> Iterator[None]:
    """Run a model in evaluation mode and without gradients; afterwards each module has the mode that it had."""
    with evaluation(model), torch.no_grad():
        yield


def device_of(model: nn.Module) -> torch.device | None:
    """Where a model's first parameter or buffer lies."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return None


def logits_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """The model's output.

    Raises:
        InvalidArgumentError: it is not one row of class scores per example.
        MismatchedArgumentsError: it fails on inputs of another dtype than its weights.
    """
    try:
        output = model(inputs.to(device_of(model)))
    except CaptumIBAError:
        raise
    except RuntimeError as error:
        # only now: a model may take other dtypes than its weights' and convert them
        weights = next((p.dtype for p in model.parameters() if p.is_floating_point()), inputs.dtype)
        if inputs.dtype == weights:
            raise
        raise MismatchedArgumentsError(
            f"The inputs are {inputs.dtype}, the model's weights {weights}, and the model failed ({error}); pass "
            f"inputs.to({weights}), or convert the model."
        ) from error
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(inputs):
        found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InvalidArgumentError(f"The model returns {found} for {len(inputs)} examples; wanted logits (n, classes).")
    return output
