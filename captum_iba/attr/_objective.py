"""The objective: what the bottleneck has to keep up, as one loss a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from captum_iba._captum import ExpansionTypes, TargetType, _expand_target, _select_targets
from captum_iba.errors import InvalidArgumentError, NonFiniteError, NoTensorError, TargetError, TargetIndexError

ObjectiveType = Literal["probability", "log_probability"] | Callable[[Tensor, Any], Tensor] | None


def output_tensor(output: Any) -> Tensor:
    """The tensor of a model's output: itself, or its ``logits``.

    Raises:
        NoTensorError: there is none.
    """
    tensor = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if isinstance(tensor, Tensor):
        return tensor
    raise NoTensorError(
        f"The model returned {type(output).__name__}, wanted a tensor or an object with a tensor .logits. "
        "Pass a function that picks it, such as lambda x: model(x)[0]."
    )


class Objective:
    """One loss a row from the model's output.

    Args:
        objective (str or Callable, optional): see :meth:`LayerIBA.attribute`.
        target: in one of Captum's forms.
        class_dim (int): axis of the classes.

    Raises:
        InvalidArgumentError: an unknown objective.
    """

    def __init__(self, objective: ObjectiveType, target: TargetType, class_dim: int) -> None:
        if objective not in (None, "probability", "log_probability") and not callable(objective):
            raise InvalidArgumentError(
                f"objective={objective!r} is unknown; wanted None (logits), 'probability', 'log_probability' or a "
                "callable (output, target) -> one loss a row."
            )
        self._objective, self._target, self._class_dim = objective, target, class_dim

    def check(self, output: Tensor, n_examples: int) -> None:
        """Try the objective on the model's own output, before any work is done.

        Raises:
            TargetIndexError: the target is no class of the output.
            TargetError: not one value per example.
            NonFiniteError: the model's own output already is NaN or infinite for the target.
        """
        if self._objective is None and output.ndim > 1 and not -output.ndim <= self._class_dim < output.ndim:
            raise InvalidArgumentError(
                f"class_dim={self._class_dim} is no axis of the model's output of shape {list(output.shape)}."
            )
        try:
            values = self(output, 1)
        except (IndexError, RuntimeError) as error:
            if callable(self._objective):
                raise
            raise TargetIndexError(
                f"target={self._target!r} does not fit the model's output of shape {list(output.shape)}: {error}. "
                "Wanted a class index from 0 to the number of classes - 1 for each example"
                + (", or target=None for one value per example." if output.ndim == 1 else ".")
            ) from None
        if values.numel() != n_examples:
            raise TargetError(
                "Target not provided when necessary, cannot take gradient with respect to multiple outputs: "
                f"target={self._target!r} leaves {values.numel()} values of the output {list(output.shape)} for "
                f"{n_examples} examples, wanted one per example. Pass target=class index."
            )
        if not torch.isfinite(values).all():
            raise NonFiniteError(
                f"The objective of target={self._target!r} is NaN or infinite for the undisturbed input. Look at the "
                "model's output, and at whether objective fits it (logits by default)."
            )

    def __call__(self, output: Tensor, copies: int) -> Tensor:
        """Loss of each row.

        Args:
            output (Tensor): ``copies * N`` rows, copy by copy.
            copies (int): how often the N targets are repeated.

        Returns:
            Tensor: (copies * N,), in float32 at least.
        """
        target = _expand_target(self._target, copies, expansion_type=ExpansionTypes.repeat)
        if callable(self._objective):
            return self._objective(output, target).flatten()
        return -self._log_likelihood(output, target).flatten()

    def _log_likelihood(self, output: Tensor, target: TargetType) -> Tensor:
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        if self._objective == "probability":
            return _select_targets(output, target).clamp_min(torch.finfo(output.dtype).tiny).log()
        # one value per example is a log-likelihood already; softmax over a single class would be constant
        if self._objective is None and output.ndim > 1 and output.shape[self._class_dim] > 1 and target is not None:
            output = output.log_softmax(dim=self._class_dim)
        return _select_targets(output, target)

    def probability(self, loss: Tensor) -> Tensor | None:
        """Probability of the target from its loss; None for a loss of the user's own."""
        return None if callable(self._objective) else torch.exp(-loss)
