"""Whether one module with weights is the only way from one layer to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from captum_iba.information._flow_data import FlowData, logits_of, predicting
from captum_iba.information._flow_weights import Link, Weighted

# examples after which no more batches are looked at
_ENOUGH = 256
# values that vary by so many roundings of the largest are still: vectorised code rounds the last rows differently
_ROUNDINGS = 16


def sole_links(
    model: nn.Module, layers: Mapping[str, nn.Module], links: Sequence[Link], data: FlowData
) -> tuple[Link, ...]:
    """Links as they are, without the module where something passes by it, such as a residual connection.

    Its weights then do not say what one layer reads of the other. What a link's module returns is held still, the same
    for all examples: the next layer must then be the same for all examples too.
    """
    return tuple(
        _checked(model, name, layer, link, data) for (name, layer), link in zip(layers.items(), links, strict=True)
    )


def _checked(model: nn.Module, name: str, layer: nn.Module, link: Link, data: FlowData) -> Link:
    module = link.module
    if module is None or module is layer or not _is_bypassed(model, module, layer, data):
        return link
    reason = (
        f"layer {name!r} depends on more than the {type(module).__name__} before it: it varies while that is held "
        "still, as with a residual connection."
    )
    return replace(link, module=None, reason=reason)


def _is_bypassed(model: nn.Module, module: Weighted, layer: nn.Module, data: FlowData) -> bool:
    # by shape, as a module that runs elsewhere too may return others there
    held: dict[torch.Size, Tensor] = {}
    seen: list[Tensor] = []

    def hold(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        first = held.setdefault(output.shape[1:], output[:1].clone())
        return first.expand_as(output).clone()

    def look(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        seen.append(output.detach().clone())

    handles = [module.register_forward_hook(hold), layer.register_forward_hook(look)]
    try:
        with predicting(model):
            for inputs, _ in data:
                logits_of(model, inputs)
                if sum(map(len, seen)) >= _ENOUGH:
                    break
    finally:
        for handle in handles:
            handle.remove()
    rows = torch.cat(seen)
    allowed = _ROUNDINGS * torch.finfo(rows.dtype).eps * rows.abs().max()
    return bool((rows - rows[:1]).abs().max() > allowed)
