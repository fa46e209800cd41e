"""Where GradCAM is put when the user does not say it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captum_iba.attr import tokens_to_map
from captum_iba.attr._channels import resolve_channel_dim
from captum_iba.attr._objective import output_tensor
from captum_iba.bottleneck.replay import plain_attention
from captum_iba.errors import InvalidArgumentError


def last_feature_map(model: nn.Module, example: Tensor) -> nn.Module:
    """The last module whose output is a spatial map of features rather than of classes: where GradCAM is put.

    Of a vision transformer, it is the last block whose patches the class score depends on: what the last block makes of
    the patches is not read by a head on the class token.

    Args:
        model (nn.Module): in evaluation mode.
        example (Tensor): (1, C, H, W).

    Raises:
        InvalidArgumentError: no module gives a map with more than one position.
    """
    with torch.no_grad():
        outputs, logits = _outputs(model, example)
    n_classes = logits.shape[1] if logits.ndim == 2 else -1
    maps = [m for m, out in outputs.items() if out.ndim == 4 and min(out.shape[2:]) > 1 and out.shape[1] != n_classes]
    tokens = [module for module, output in outputs.items() if _gives_patches(module, output, example)]
    if tokens:
        tokens = _with_influence(tokens, model, example)
    found = [blocks[-1] for blocks in (_outermost(maps), _outermost(tokens)) if blocks]
    if not found:
        raise InvalidArgumentError(
            f"No module of {type(model).__name__} gives a spatial feature map; pass gradcam_layer, and choose methods "
            "that suit the model."
        )
    return max(found, key=list(outputs).index)


def _outputs(model: nn.Module, example: Tensor) -> tuple[dict[nn.Module, Tensor], Tensor]:
    """What each module returned last, in order of completion, and the logits."""
    outputs: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, _inputs: object, output: object) -> None:
        # blocks of transformers 4 return their tokens in a tuple
        is_wrapped = isinstance(output, tuple) and output and isinstance(output[0], Tensor) and output[0].ndim == 3
        first = output[0] if is_wrapped else output  # type: ignore[index]
        if isinstance(first, Tensor):
            outputs.pop(module, None)
            outputs[module] = first

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with plain_attention():
            logits = output_tensor(model(example))
    finally:
        for handle in handles:
            handle.remove()
    return outputs, logits


def _outermost(modules: list[nn.Module]) -> list[nn.Module]:
    return [m for m in modules if not any(m in other.modules() for other in modules if other is not m)]


def _gives_patches(module: nn.Module, output: Tensor, example: Tensor) -> bool:
    """Whether a block gives one token a patch of the image, (N, T, C), be there others before them.

    Single layers do not count: the rows of a map that was flattened for a linear layer look like tokens.
    """
    is_block = any(True for _ in module.children())
    if not is_block or output.ndim != 3 or len(output) != len(example) or not output.is_floating_point():
        return False
    try:
        tokens_to_map(output, image_size=(example.shape[2], example.shape[3]))
        return resolve_channel_dim(output, None, None, module, [], type(module).__name__) == 2
    except InvalidArgumentError:
        return False


def _with_influence(modules: list[nn.Module], model: nn.Module, example: Tensor) -> list[nn.Module]:
    """Those on whose patches the highest class's score depends."""
    with torch.enable_grad():
        outputs, logits = _outputs(model, example.detach().clone().requires_grad_())
        score = logits.flatten(1).amax()
        found = []
        for module in modules:
            try:
                (slope,) = torch.autograd.grad(score, outputs[module], retain_graph=True, materialize_grads=True)
            except RuntimeError:  # overwritten by the next module
                continue
            if bool(tokens_to_map(slope.abs(), image_size=(example.shape[2], example.shape[3])).map.any()):
                found.append(module)
    return found
