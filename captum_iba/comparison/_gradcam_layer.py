"""Where GradCAM is put when the user does not say it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captum_iba.errors import InvalidArgumentError


def last_feature_map(model: nn.Module, example: Tensor) -> nn.Module:
    """The last module whose output is a spatial map of features rather than of classes: where GradCAM is put.

    Args:
        model (nn.Module): in evaluation mode.
        example (Tensor): (1, C, H, W).

    Raises:
        InvalidArgumentError: no module gives a map with more than one position.
    """
    outputs: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            outputs.pop(module, None)
            outputs[module] = output

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with torch.no_grad():
            logits = model(example)
    finally:
        for handle in handles:
            handle.remove()
    n_classes = logits.shape[1] if isinstance(logits, Tensor) and logits.ndim == 2 else -1
    maps = [m for m, out in outputs.items() if out.ndim == 4 and min(out.shape[2:]) > 1 and out.shape[1] != n_classes]
    blocks = [m for m in maps if not any(m in other.modules() for other in maps if other is not m)]
    if not blocks:
        raise InvalidArgumentError(
            f"No module of {type(model).__name__} gives a spatial feature map; pass gradcam_layer, and choose methods "
            "that suit the model."
        )
    return blocks[-1]
