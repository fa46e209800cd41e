"""Which layers the readout network reads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Literal

import torch
from torch import nn

from captum_iba.attr._channels import resolve_channel_dim
from captum_iba.bottleneck.reading import Finished
from captum_iba.bottleneck.replay import Site
from captum_iba.errors import InvalidArgumentError, InvalidTypeError, LayerNotExecutedError

ReadoutLayers = Literal["auto"] | Sequence[nn.Module | str]
# The paper reads four layers of features, and the logits.
_N_FEATURE_LAYERS = 4


def names_of(modules: Sequence[nn.Module]) -> dict[nn.Module, str]:
    """Dotted names of all modules; of several roots' with the root's number in front. A single root is ``""``."""
    names: dict[nn.Module, str] = {}
    for index, root in enumerate(modules):
        for name, module in root.named_modules():
            full = name if len(modules) == 1 else ".".join(filter(None, (str(index), name)))
            names.setdefault(module, full)
    return names


def site_of(module: nn.Module, names: dict[nn.Module, str]) -> Site:
    """A module's output as a place to read."""
    return Site(module, shown(names.get(module), module))


def shown(name: str | None, module: nn.Module) -> str:
    """A module in messages."""
    kind = type(module).__name__
    return (
        f"the layer ({kind})"
        if name is None
        else f"layer {name!r} ({kind})"
        if name
        else f"the model's output ({kind})"
    )


def assert_readout_layers(readout_layers: Any) -> None:
    """Refuse what can be no choice of layers, whatever the model.

    Raises:
        InvalidTypeError: neither ``"auto"`` nor a sequence of modules and names.
        InvalidArgumentError: an empty sequence.
    """
    if isinstance(readout_layers, str) and readout_layers == "auto":
        return
    is_sequence = isinstance(readout_layers, Sequence) and not isinstance(readout_layers, (str, nn.Module))
    if not is_sequence or not all(isinstance(entry, (str, nn.Module)) for entry in readout_layers):
        raise InvalidTypeError(
            f"readout_layers is {readout_layers!r}; wanted 'auto', or a list of modules of the model or their dotted "
            "names."
        )
    if not readout_layers:
        raise InvalidArgumentError("readout_layers is empty; wanted at least one layer to read, or 'auto'.")


def assert_visible(readout_layers: ReadoutLayers, modules: Sequence[nn.Module]) -> None:
    """Refuse ``"auto"`` where the forward function hides its modules.

    Raises:
        InvalidArgumentError: it does.
    """
    if isinstance(readout_layers, str) and not modules:
        raise InvalidArgumentError(
            "readout_layers='auto' needs to see the model's modules, which forward_func hides. Pass the nn.Module "
            "itself as forward_func, or a list of modules as readout_layers."
        )


def find_readout_layers(
    readout_layers: ReadoutLayers, layer: nn.Module, modules: Sequence[nn.Module], finished: list[Finished]
) -> list[nn.Module]:
    """The layers that are read.

    Args:
        readout_layers ("auto" or Sequence): the user's choice.
        layer (nn.Module): of the bottleneck.
        modules (Sequence[nn.Module]): roots that the forward function runs.
        finished (list[Finished]): a forward pass, for ``"auto"``.

    Raises:
        InvalidArgumentError: a layer that is named twice or that the model does not have.
    """
    if not isinstance(readout_layers, str):
        return _chosen(readout_layers, modules)
    return _paper_set(finished, layer, modules)


def _chosen(readout_layers: Sequence[nn.Module | str], modules: Sequence[nn.Module]) -> list[nn.Module]:
    by_name = {name: module for module, name in names_of(modules).items()}
    found: list[nn.Module] = []
    for entry in readout_layers:
        module = by_name.get(entry) if isinstance(entry, str) else entry
        is_known = module is not None and (not modules or module in by_name.values())
        if module is None or not is_known or module in found:
            what = repr(entry) if isinstance(entry, str) else type(entry).__name__
            children = [name for name in by_name if name and "." not in name]
            problem = "is there twice" if module in found else "is not part of the model"
            raise InvalidArgumentError(
                f"readout_layers: {what} {problem}; wanted modules of the model, each once. Its children are "
                f"{children}, and dotted names reach further in."
            )
        found.append(module)
    return found


def _paper_set(finished: list[Finished], layer: nn.Module, modules: Sequence[nn.Module]) -> list[nn.Module]:
    """The first layer with weights of each resolution from the bottleneck on, the last one, and the logits.

    For torchvision's ResNet-50 and ``layer1`` these are layer1 to layer4 and fc; for VGG-16 and ``features[10]`` they
    are features 10, 17, 24, 28 and classifier 6: the paper's Table 4. Where fewer than four are found, as in a
    transformer, whose layers are all of one size, others are added at even distances.
    """
    order = [entry.module for entry in finished]
    if layer not in order:
        raise LayerNotExecutedError(
            f"The forward pass did not run layer ({type(layer).__name__}). Pass a layer that belongs to the model and "
            "that its forward uses: one of dict(model.named_modules()).values()."
        )
    blocks = _blocks_from(finished, layer, modules)
    sizes = [size for _, size in blocks]
    indices = {sizes.index(size) for size in sizes} | {len(blocks) - 1}
    if len(indices) < _N_FEATURE_LAYERS:
        steps = _N_FEATURE_LAYERS - 1
        indices |= {round(step * (len(blocks) - 1) / steps) for step in range(steps + 1)}
    chosen = [blocks[index][0] for index in sorted(indices)]
    returned = [entry.module for entry in finished if entry.is_output]
    is_vector = any(entry.is_output and entry.shape is not None and len(entry.shape) == 2 for entry in finished)
    if is_vector and not set(returned) & set(chosen):
        chosen.append(returned[0])
    return chosen


def _blocks_from(
    finished: list[Finished], layer: nn.Module, modules: Sequence[nn.Module]
) -> list[tuple[nn.Module, tuple[int, ...]]]:
    """The layer and the blocks after it, at its own level and those above, with the sizes of their positions."""
    order = [entry.module for entry in finished]
    start = order.index(layer)
    shape = finished[start].shape
    own = _positions(finished[start], order[:start]) if shape is not None else None
    if shape is None or own is None:
        return [(layer, ())]
    siblings = set(_siblings(layer, modules))
    blocks = [(layer, own)]
    for index in range(start + 1, len(finished)):
        entry = finished[index]
        has_weights = any(True for _ in entry.module.parameters())
        if entry.module not in siblings or not has_weights or order.count(entry.module) > 1 or entry.shape is None:
            continue
        if len(entry.shape) != len(shape) or entry.shape[0] != shape[0]:
            continue
        positions = _positions(entry, order[:index])
        # a single position is the logits', or an average's
        if positions is not None and (math.prod(positions) > 1 or math.prod(own) == 1):
            blocks.append((entry.module, positions))
    return blocks


def _positions(entry: Finished, before: list[nn.Module]) -> tuple[int, ...] | None:
    """Sizes of the axes of positions; None where there is no telling which axis holds the channels."""
    assert entry.shape is not None
    features = torch.empty(entry.shape, device="meta")
    with suppress(InvalidArgumentError):
        channel_dim = resolve_channel_dim(features, None, None, entry.module, before, type(entry.module).__name__)
        return tuple(size for axis, size in enumerate(entry.shape) if axis not in (0, channel_dim))
    return None


def _siblings(layer: nn.Module, modules: Sequence[nn.Module]) -> Iterator[nn.Module]:
    """Children of the layer's parents at all levels, but for those parents themselves."""
    for root in modules:
        around = [m for m in root.modules() if m is not layer and any(inner is layer for inner in m.modules())]
        for parent in around:
            yield from (child for child in parent.children() if child not in around)
