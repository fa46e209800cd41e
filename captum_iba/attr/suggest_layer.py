"""A default layer for convolutional networks, found by the shapes of their feature maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captum_iba._warn import Warner
from captum_iba.attr._model import device_of, evaluation_mode
from captum_iba.errors import InvalidArgumentError

# The paper's layers have an eighth of the input's side; a ninth leaves room for networks without padding.
_COARSEST = 9


def suggest_layer(model: nn.Module, inputs: Tensor | None = None) -> nn.Module:
    """Return a layer that is deep enough to know the object and fine enough to place it.

    It is the last feature map with at least a ninth of the input's side, seen at the level of the model's blocks: for
    torchvision's ResNets ``layer2`` (conv3_4 of the paper for ResNet-50). In a plain chain of convolutions such as VGG
    it is the first convolution at that resolution: conv4_1 as in the paper (``features[17]`` in VGG-16), before its
    ReLU.

    Args:
        model (torch.nn.Module): an image model.
        inputs (Tensor, optional): one batch of the size to be explained. Default: None: one zero image, 3 x 224 x 224.

    Returns:
        torch.nn.Module: a module of the model.

    Raises:
        InvalidArgumentError: the model does not run on the inputs, or has no spatial feature map that fine, as vision
            transformers do not.

    Examples::

        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.MaxPool2d(8), nn.Flatten(), nn.Linear(392, 2))
        >>> suggest_layer(model) is model[0]
        True
    """
    if inputs is None:
        inputs = torch.zeros(1, 3, 224, 224, device=device_of([model]))
    sides = output_sides(model, inputs)
    finest = min(inputs.shape[-2:]) / _COARSEST
    fine = {module for module, side in sides.items() if side >= finest}
    layer = _last_fine_block(model, fine, sides)
    if layer is None:
        raise InvalidArgumentError(
            f"No layer of {type(model).__name__} has a spatial feature map of at least {finest:.0f} positions a side "
            f"for an input of {list(inputs.shape)}. Choose a layer yourself from model.named_modules()."
        )
    return layer


def output_sides(model: nn.Module, inputs: Tensor) -> dict[nn.Module, int]:
    """Smaller side of each module's (N, C, H, W) output, in order of completion; 0 for other outputs."""
    sides: dict[nn.Module, int] = {}

    def note(module: nn.Module, _args: object, output: object) -> None:
        is_map = isinstance(output, Tensor) and output.ndim == 4
        sides.pop(module, None)
        sides[module] = min(output.shape[-2:]) if is_map and isinstance(output, Tensor) else 0

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with torch.no_grad(), evaluation_mode([model], _silent()):
            model(inputs)
    except (RuntimeError, ValueError, IndexError) as error:
        raise InvalidArgumentError(
            f"The model does not run on inputs of shape {list(inputs.shape)}: {error}. Pass a batch that it takes: "
            "suggest_layer(model, inputs)."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return sides


def _silent() -> Warner:
    """A warner that has given the warning about training mode: nothing is computed here that depends on it."""
    warner = Warner()
    warner.given("training")
    return warner


def _last_fine_block(
    container: nn.Module, fine: set[nn.Module], sides: dict[nn.Module, int], only_stages: bool = False
) -> nn.Module | None:
    """Last fine child in order of execution, looking inside children that are not fine themselves.

    Once a fine child is found, only stages (sequences of blocks) further on are looked into, and only for stages: the
    first layer inside a block that halves the resolution is fine too, but it is not a feature map of the network.
    """
    own = set(container.children())
    last: nn.Module | None = None
    for child in (module for module in sides if module in own):
        is_stage = isinstance(child, nn.Sequential)
        if child in fine:
            last = child if is_stage or not only_stages else last
        elif is_stage or (last is None and not only_stages):
            last = _last_fine_block(child, fine, sides, only_stages or last is not None) or last
    if last in own and _is_plain_chain(container):
        at_resolution = [c for c in sides if c in own and isinstance(c, nn.Conv2d) and sides[c] == sides[last]]
        return at_resolution[0] if at_resolution else last
    return last


def _is_plain_chain(model: nn.Module) -> bool:
    """A sequence of single layers, without blocks."""
    return isinstance(model, nn.Sequential) and not any(list(child.children()) for child in model)
