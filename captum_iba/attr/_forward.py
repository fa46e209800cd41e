"""The forward pass of one call, on inputs repeated as often as there are noisy copies."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from captum_iba._captum import (
    ExpansionTypes,
    _expand_additional_forward_args,
    _format_additional_forward_args,
    _format_tensor_into_tuples,
    _run_forward,
)
from captum_iba.attr._positions import padding_of
from captum_iba.errors import (
    CaptumIBAError,
    GradientModeError,
    InvalidArgumentError,
    InvalidTypeError,
    MismatchedArgumentsError,
    NonFiniteError,
)


class Forward:
    """Runs the forward function on a call's inputs.

    Args:
        forward_func (Callable): the forward function.
        inputs, additional_forward_args: as in Captum.
        needs_gradient (bool, optional): refuse torch.inference_mode. Default: True.

    Raises:
        CaptumIBAError: inputs that cannot be explained.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        inputs: Tensor | tuple[Tensor, ...],
        additional_forward_args: object | None,
        needs_gradient: bool = True,
    ) -> None:
        self._forward_func = forward_func
        self._inputs: tuple[Tensor, ...] = _format_tensor_into_tuples(inputs)
        self._additional = _format_additional_forward_args(additional_forward_args)
        if needs_gradient and torch.is_inference_mode_enabled():
            raise GradientModeError(
                "Gradients are needed, and torch.inference_mode rules them out. Call this outside of it; "
                "torch.no_grad is no hindrance."
            )
        _assert_inputs(self._inputs)
        self.n_examples = self._inputs[0].shape[0]
        self.device_type = self._inputs[0].device.type
        # the user's autocast is for the model; everything else runs in full precision
        self._autocast = torch.autocast(
            self.device_type,
            dtype=torch.get_autocast_dtype(self.device_type),
            enabled=torch.is_autocast_enabled(self.device_type),
        )

    @property
    def padding(self) -> Tensor | None:
        """The model's own attention mask (N, T) among the arguments, by its name; None where there is none."""
        return padding_of(self._forward_func, self._inputs, self._additional)

    def __call__(self, copies: int) -> Any:
        """Run on ``copies * N`` rows, copy by copy."""
        inputs, additional = self._inputs, self._additional
        if copies > 1:
            inputs = tuple(torch.cat([tensor] * copies) for tensor in inputs)
            additional = _expand_additional_forward_args(additional, copies, expansion_type=ExpansionTypes.repeat)
        with self._autocast:
            return _run_forward(self._forward_func, inputs, None, additional)

    def parts(self, rows: int) -> Iterator[Forward]:
        """The same call for parts of the batch, of at most so many rows."""
        for start in range(0, self.n_examples, rows):
            part = slice(start, start + rows)
            inputs = tuple(tensor[part] for tensor in self._inputs)
            additional = self._additional
            if additional is not None:
                additional = tuple(value[part] if self._is_per_example(value) else value for value in additional)
            yield Forward(self._forward_func, inputs, additional, needs_gradient=False)

    def _is_per_example(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.ndim > 0 and len(value) == self.n_examples

    def explain(self, error: Exception) -> None:
        """Raise an error of ours if the arguments explain the model's; return if they do not."""
        if isinstance(error, CaptumIBAError):
            return
        if isinstance(error, TypeError):
            self._explain_signature(error)
        for index, argument in enumerate(self._additional or ()):
            if isinstance(argument, Tensor) and argument.ndim > 0 and argument.shape[0] != self.n_examples:
                raise MismatchedArgumentsError(
                    f"additional_forward_args[{index}] has shape {list(argument.shape)} but inputs hold "
                    f"{self.n_examples} examples, and the model fails with: {error}. Give it one row per example."
                ) from error

    def _explain_signature(self, error: TypeError) -> None:
        function = self._forward_func.forward if isinstance(self._forward_func, nn.Module) else self._forward_func
        try:
            inspect.signature(function).bind(*self._inputs, *(self._additional or ()))
        except TypeError as mismatch:
            raise InvalidTypeError(
                f"additional_forward_args does not fit the model: with {len(self._inputs)} inputs and "
                f"{len(self._additional or ())} additional_forward_args, {mismatch}. Pass the model's further "
                "arguments in order."
            ) from error
        except ValueError:  # a built-in without a signature
            return


def _assert_inputs(inputs: tuple[Tensor, ...]) -> None:
    if not inputs:
        raise InvalidArgumentError(f"inputs is empty ({inputs!r}); wanted a tensor, or a tuple of at least one.")
    for index, tensor in enumerate(inputs):
        if not isinstance(tensor, Tensor):
            raise InvalidTypeError(f"inputs[{index}] is a {type(tensor).__name__}; wanted a tensor.")
        if tensor.ndim == 0 or tensor.shape[0] == 0:
            raise InvalidArgumentError(
                f"inputs[{index}] has shape {list(tensor.shape)}: an empty batch. Wanted at least one example."
            )
        if tensor.shape[0] != inputs[0].shape[0]:
            raise InvalidArgumentError(
                f"inputs[{index}] holds {tensor.shape[0]} examples and inputs[0] {inputs[0].shape[0]}; wanted as many."
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise NonFiniteError(f"inputs[{index}] contains NaN or infinity. Clean the data, e.g. torch.nan_to_num.")
