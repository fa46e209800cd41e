"""How a model is called on an example: its further arguments in order, and the logits in what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn

from captum_iba.attr._objective import output_tensor
from captum_iba.attr._signature import in_order

Additional: TypeAlias = tuple[Any, ...] | None
"""Captum's ``additional_forward_args``."""


def logits_of(model: Callable[..., Any], inputs: Tensor, additional: Additional = None) -> Tensor:
    """A model's logits, be they its output or in it.

    Raises:
        NoTensorError: the output is no tensor and has no ``logits``.
    """
    return output_tensor(model(inputs, *(additional or ())))


def ordered(model: nn.Module, arguments: Mapping[str, Tensor]) -> Additional:
    """Arguments by name in the order of the model's signature, behind its first one.

    Parameters between them keep their defaults. Arguments that the model does not name are left out: on one sentence
    without padding, an attention mask is all ones and says nothing.

    Raises:
        InvalidArgumentError: a parameter before one of them has no default.

    Examples::

        >>> import torch
        >>> class Model(nn.Module):
        ...     def forward(self, input_ids, cache=None, attention_mask=None): ...
        >>> ordered(Model(), {"attention_mask": torch.ones(1, 2), "token_type_ids": torch.zeros(1, 2)})
        (None, tensor([[1., 1.]]))
        >>> ordered(Model(), {}) is None
        True
    """
    return in_order(model, arguments) or None
