"""The objective: what the bottleneck has to keep up, as one loss a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from captum_iba._captum import ExpansionTypes, TargetType, _expand_target, _select_targets
from captum_iba._warn import Warner
from captum_iba.errors import (
    CaptumIBAError,
    InvalidArgumentError,
    NonFiniteError,
    NoTensorError,
    TargetError,
    TargetIndexError,
)

ObjectiveType = Literal["probability", "log_probability", "log_odds"] | Callable[[Tensor, Any], Tensor] | None
_NAMES = (None, "probability", "log_probability", "log_odds")


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
        warner (Warner): remembers the warnings given.

    Raises:
        InvalidArgumentError: an unknown objective.
    """

    def __init__(self, objective: ObjectiveType, target: TargetType, class_dim: int, warner: Warner) -> None:
        if not callable(objective) and objective not in _NAMES:
            raise InvalidArgumentError(
                f"objective={objective!r} is unknown; wanted None (logits), 'probability', 'log_probability', "
                "'log_odds' or a callable (output, target) -> one loss a row."
            )
        self._objective, self._target, self._class_dim = objective, target, class_dim
        self._warner = warner

    def check(self, output: Tensor, n_examples: int) -> None:
        """Try the objective on the model's own output, before any work is done.

        Raises:
            TargetIndexError: the target is no class of the output.
            TargetError: not one value per example.
            InvalidArgumentError: class_dim is no axis of the output.
            NonFiniteError: the model's own output already is NaN or infinite for the target.
        """
        if self._takes_softmax(output) and not -output.ndim < self._class_dim < output.ndim:
            raise InvalidArgumentError(
                f"class_dim={self._class_dim} is no axis of the model's output of shape {list(output.shape)}."
            )
        if not callable(self._objective):
            self._assert_classes_exist(output)
            self._assert_plausible(output)
        try:
            values = self(output, 1)
        except (IndexError, RuntimeError) as error:
            if callable(self._objective) or isinstance(error, CaptumIBAError):
                raise
            raise TargetIndexError(self._mismatch(output, str(error))) from None
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

    def _assert_plausible(self, output: Tensor) -> None:
        """Probabilities lie between 0 and 1, log-probabilities below 0, and logits do not sum to one."""
        low, high = float(output.min()), float(output.max())
        wrong = {"probability": low < -1e-4 or high > 1 + 1e-3, "log_probability": high > 1e-3}
        if isinstance(self._objective, str) and wrong.get(self._objective, False):
            wanted = "values from 0 to 1" if self._objective == "probability" else "values of at most 0"
            raise InvalidArgumentError(
                f"objective={self._objective!r}, but the model's output has values from {low:.3g} to {high:.3g}; "
                f"wanted {wanted}. Leave objective out for logits."
            )
        if self._takes_softmax(output) and output.shape[self._class_dim] > 1 and low >= 0:
            sums = output.float().sum(dim=self._class_dim)
            if bool(((sums - 1).abs() < 1e-3).all()):
                self._warner.once(
                    "softmax",
                    "The model's outputs lie between 0 and 1 and sum to 1 over the classes. It seems to end in "
                    "softmax; log-softmax is applied to that. Pass objective='probability' to take them as they are.",
                )

    def _assert_classes_exist(self, output: Tensor) -> None:
        """Compare indices with sizes: on CUDA an index out of range would end the process's use of the device."""
        target = self._target
        one_for_all = isinstance(target, (int, tuple)) or (isinstance(target, Tensor) and target.numel() == 1)
        targets = target.flatten().tolist() if isinstance(target, Tensor) else target
        for index in targets if isinstance(targets, list) else [targets]:
            # Captum counts a single target from the end if it is negative, and gathers a target per example
            lowest = -1 if one_for_all else 0
            places = index if isinstance(index, tuple) else (index,)
            if len(places) >= output.ndim:
                continue  # more indices than axes, which Captum says better
            for axis, place in enumerate(places, start=1):
                size = output.shape[axis]
                if isinstance(place, int) and not lowest * size <= place < size:
                    raise TargetIndexError(self._mismatch(output, f"index {place} of axis {axis}, of size {size}"))

    def _mismatch(self, output: Tensor, reason: str) -> str:
        hint = ", or target=None for one value per example." if output.ndim == 1 else "."
        return (
            f"target={self._target!r} does not fit the model's output of shape {list(output.shape)}: {reason}. Wanted "
            f"a class index from 0 to the number of classes - 1 for each example{hint}"
        )

    def __call__(self, output: Tensor, copies: int) -> Tensor:
        """Loss of each row.

        Args:
            output (Tensor): ``copies * N`` rows, copy by copy.
            copies (int): how often the N targets are repeated.

        Returns:
            Tensor: (copies * N,), in float32 at least.

        Raises:
            InvalidArgumentError: the user's objective does not return one loss a row.
        """
        target = _expand_target(self._target, copies, expansion_type=ExpansionTypes.repeat)
        if not callable(self._objective):
            return -self._log_likelihood(output, target).flatten()
        losses = self._objective(output, target)
        if not isinstance(losses, Tensor) or losses.ndim == 0 or losses.numel() != output.shape[0]:
            found = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise InvalidArgumentError(
                f"objective returned {found} for an output of {output.shape[0]} rows; wanted one loss a row, such as "
                "that of torch.nn.functional.cross_entropy(..., reduction='none')."
            )
        return losses.flatten()

    def _takes_softmax(self, output: Tensor) -> bool:
        # one value per example is a log-likelihood already
        return self._objective in (None, "log_odds") and output.ndim > 1 and self._target is not None

    def _log_likelihood(self, output: Tensor, target: TargetType) -> Tensor:
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        if self._objective == "probability":
            return _select_targets(output, target).clamp_min(torch.finfo(output.dtype).tiny).log()
        # softmax over a single class would be constant; its logit is the log-odds already
        if self._takes_softmax(output) and output.shape[self._class_dim] > 1:
            scale = log_odds if self._objective == "log_odds" else torch.log_softmax
            output = scale(output, self._class_dim)
        return _select_targets(output, target)

    def probability(self, loss: Tensor) -> Tensor | None:
        """Probability of the target from its loss; None where the loss is not that of a probability."""
        if self._objective == "log_odds":
            return torch.sigmoid(-loss)
        is_likelihood = not callable(self._objective) and bool((loss >= -1e-6).all())
        return torch.exp(-loss).clamp_max(1.0) if is_likelihood else None


def log_odds(logits: Tensor, dim: int) -> Tensor:
    r"""Each class's logit less the logsumexp of all others, :math:`\log p_c - \log(1 - p_c)`.

    Exact where a class is all but certain, and where log-softmax has no slope left.

    Args:
        logits (Tensor): with at least two classes.
        dim (int): axis of the classes.

    Returns:
        Tensor: of the logits' shape.

    Examples::

        >>> log_odds(torch.tensor([[60.0, 0.0]]), 1).tolist()
        [[60.0, -60.0]]
    """
    highest, place = logits.detach().max(dim=dim, keepdim=True)
    powers = (logits - highest).exp()
    # without the highest class the sum is made anew; elsewhere it holds a 1 that no difference cancels
    rest = logits.scatter(dim, place, float("-inf")).logsumexp(dim=dim, keepdim=True)
    is_highest = torch.zeros_like(logits, dtype=torch.bool).scatter(dim, place, True)
    others = (powers.sum(dim=dim, keepdim=True) - powers.masked_fill(is_highest, 0.0)).log() + highest
    return logits - torch.where(is_highest, rest, others)
