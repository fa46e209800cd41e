"""Attention rollout as a method of a comparison."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_iba.attr import AttentionRollout
from captum_iba.comparison._layer_maps import pop_layout
from captum_iba.comparison.methods import Context, Explainer, Method, add_method

NAME = "AttentionRollout"


def _rollout(context: Context) -> Explainer:
    method: Any = AttentionRollout(context.model)
    options = context.options_of(NAME)
    to_map = pop_layout(options)

    def explain(x: Tensor, y: Tensor) -> Tensor:
        return to_map(method.attribute(x, target=y, **options), x, 2)

    explain(context.example, torch.zeros(len(context.example)))  # models without attention are found out here
    return explain


add_method(
    Method(
        NAME,
        _rollout,
        "Attention weights, mean over the heads and half identity, multiplied over the layers; the class token's row. "
        "It does not depend on the class.",
    )
)
