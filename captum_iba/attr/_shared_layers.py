"""Further layers that share the bottleneck's mask: where they run, and whether the mask fits them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from captum_iba.attr._forward import Forward
from captum_iba.attr._layout import positions_of
from captum_iba.bottleneck.reading import read
from captum_iba.bottleneck.replay import Site
from captum_iba.bottleneck.tail import Tail
from captum_iba.errors import InvalidArgumentError, InvalidTypeError


def assert_shared_layers(layers: Any) -> None:
    """Refuse what is no sequence of modules.

    Raises:
        InvalidTypeError: it is not.
    """
    is_sequence = isinstance(layers, (Sequence, nn.ModuleList))
    if not is_sequence or not all(isinstance(layer, nn.Module) for layer in layers):
        raise InvalidTypeError(
            f"shared_layers is {type(layers).__name__}; wanted a list of modules behind layer, such as "
            "list(model.bert.encoder.layer[2:5])."
        )


def read_behind(site: Site, others: Sequence[Site], tail: Tail, forward: Forward) -> dict[Site, Tensor]:
    """Features of further layers, which must run after the bottleneck's.

    Raises:
        InvalidArgumentError: one of them runs before it, or is it.
        LayerNotExecutedError, LayerReusedError: one runs never, or more than once.
    """
    before = {inner for module in tail.modules_before for inner in module.modules()}
    for other in others:
        if other.layer is site.layer or other.layer in before or other.layer in set(site.layer.modules()):
            raise InvalidArgumentError(
                f"{other.name} does not run after {site.name}; wanted shared_layers behind the bottleneck, which sits "
                "at the first of the range."
            )
    return dict(zip(others, read(others, lambda: forward(1)).features, strict=True))


def assert_same_positions(values: Tensor, features: Tensor, channel_dim: int, name: str, own_name: str) -> None:
    """Refuse features with other positions than the bottleneck's.

    Raises:
        InvalidArgumentError: they differ.
    """
    fits = values.ndim == features.ndim and len(values) == len(features)
    if not fits or positions_of(values.shape[1:], channel_dim) != positions_of(features.shape[1:], channel_dim):
        raise InvalidArgumentError(
            f"{name} has features of shape {list(values.shape)} and {own_name} of {list(features.shape)}; "
            "shared_layers must have the same positions."
        )
