"""Attention rollout as a method of a comparison."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_iba.attr import AttentionRollout
from captum_iba.comparison._arguments import Additional
from captum_iba.comparison._layer_maps import pop_layout
from captum_iba.comparison.context import Context
from captum_iba.comparison.methods import Explainer, Method, add_method

NAME = "AttentionRollout"


def _rollout(context: Context) -> Explainer:
    method: Any = AttentionRollout(context.model)
    options = context.options_of(NAME)
    to_map = pop_layout(options)

    def explain(x: Tensor, y: Tensor, additional_forward_args: Additional = None) -> Tensor:
        values = method.attribute(x, target=y, additional_forward_args=additional_forward_args, **options)
        return to_map(values, x, 2)

    explain(
        context.example, torch.zeros(len(context.example)), context.additional_forward_args
    )  # models without attention are found out here
    return explain


add_method(
    Method(
        NAME,
        _rollout,
        "Attention weights, mean over the heads and half identity, multiplied over the layers; the row of the first "
        "token, the class token of encoders (decoders: position=-1). "
        "It does not depend on the class.",
    )
)
