"""From what layer methods return to maps, wherever the layer has its channels: feature maps, and tokens of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from captum_iba.attr import tokens_to_map
from captum_iba.attr._channels import resolve_channel_dim
from captum_iba.attr._objective import output_tensor
from captum_iba.bottleneck.containers import find_features
from captum_iba.bottleneck.replay import plain_attention
from captum_iba.errors import InvalidArgumentError, LayerNotExecutedError

ToMap = Callable[[Tensor, Tensor, int], Tensor]


def pop_layout(options: dict[str, Any]) -> ToMap:
    """Take ``grid`` and ``n_prefix`` out of a method's options; see :func:`captum_iba.attr.tokens_to_map`.

    Returns:
        Callable: ``to_map(values, inputs, channel_dim) -> (B, C, h, w)`` for values of a layer on images (B, C, H, W):
        grids have the channels moved to the front, and of (B, T, C) tokens the patches are laid out, without the tokens
        before them.
    """
    layout = {name: options.pop(name) for name in ("grid", "n_prefix") if name in options}

    def to_map(values: Tensor, inputs: Tensor, channel_dim: int) -> Tensor:
        if inputs.ndim == 2 and not layout:  # token ids, whose values are no map
            return values
        if values.ndim != 3 or channel_dim % 3 != 2:
            if layout:
                raise InvalidArgumentError(
                    f"{', '.join(layout)} is for tokens (B, T, C) of images, and the layer gives {list(values.shape)}."
                )
            return values.movedim(channel_dim, 1)
        sizes: Any = {"image_size": tuple(inputs.shape[2:]), **layout}
        return torch.cat([tokens_to_map(channel, **sizes).map for channel in values.unbind(dim=2)], dim=1)

    return to_map


def is_plain_map(layer: nn.Module, features: Tensor) -> bool:
    """Whether features are (B, C, H, W), as methods for feature maps take them."""
    return features.ndim == 4 and _channel_dim(layer, features) == 1


def features_of(model: nn.Module, layer: nn.Module, inputs: Tensor) -> Tensor:
    """The layer's output, without its graph."""
    with torch.no_grad():
        return _run(model, layer, inputs)[0]


def grad_cam(model: nn.Module, layer: nn.Module, inputs: Tensor, target: Tensor, to_map: ToMap) -> Tensor:
    """GradCAM at a layer of any layout: channels weighted by their mean gradient over the map, and added up.

    Returns:
        Tensor: (B, 1, h, w), of either sign.
    """
    features, logits = _run(model, layer, inputs.detach().requires_grad_())
    score = logits.gather(1, target.view(-1, 1)).sum()
    (gradient,) = torch.autograd.grad(score, features, materialize_grads=True)
    axis = _channel_dim(layer, features)
    maps, slopes = (to_map(values.detach(), inputs, axis) for values in (features, gradient))
    if not bool(slopes.any()):
        raise InvalidArgumentError(
            f"The class score does not depend on the positions of the layer ({type(layer).__name__}): the gradient "
            "is 0, as behind the last block of a transformer that is read at its class token. Pass an earlier "
            "gradcam_layer."
        )
    return (slopes.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1, keepdim=True)


def _run(model: nn.Module, layer: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The layer's features, of its last run as in Captum, and the logits."""
    taken: list[Tensor] = []
    name = f"the layer ({type(layer).__name__})"
    handle = layer.register_forward_hook(lambda _module, _args, output: taken.append(find_features(output, name)))
    try:
        with plain_attention():
            logits = output_tensor(model(inputs))
    finally:
        handle.remove()
    if not taken:
        raise LayerNotExecutedError(f"The forward pass did not run {name}. Pass a gradcam_layer that it runs.")
    return taken[-1], logits


def _channel_dim(layer: nn.Module, features: Tensor) -> int:
    try:
        return resolve_channel_dim(features, None, None, layer, [], type(layer).__name__)
    except InvalidArgumentError:  # blocks without telling modules: tokens have their units last, maps come first
        return 2 if features.ndim == 3 else 1
