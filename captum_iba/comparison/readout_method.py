"""The readout bottleneck as a method of a comparison."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captum_iba._numbers import is_integer
from captum_iba._processes import alone
from captum_iba.attr import LayerReadoutIBA
from captum_iba.attr._readout_file import layer_of
from captum_iba.attr._readout_fit import SHORT_TRAINING
from captum_iba.comparison._calibration_batches import Batches
from captum_iba.comparison._layer_maps import pop_layout
from captum_iba.comparison._types import BITS
from captum_iba.comparison.context import Context
from captum_iba.comparison.methods import Explainer, Method, add_method
from captum_iba.errors import InvalidArgumentError, InvalidTypeError, ReadoutFileError

NAME = "LayerReadoutIBA"
_OF_OBJECT = ("readout_layers", "hidden_channels", "sigma", "initial_alpha", "relu", "align_corners")
_OF_FIT = tuple(
    name
    for name in inspect.signature(LayerReadoutIBA.fit).parameters
    if name
    not in (
        "self",
        "train_data",
        "val_data",
        "checkpoint",
        "show_progress",
        "input_fn",
        "targets",
        "attribute_to_layer_input",
    )
)


def _readout(context: Context) -> Explainer:
    options = context.options_of(NAME)
    to_map = pop_layout(options)
    path = options.pop("path", None)
    of_object = {name: options.pop(name) for name in _OF_OBJECT if name in options}
    of_fit = {name: options.pop(name) for name in _OF_FIT if name in options}
    if options or (path is not None and (of_fit or of_object)):
        raise InvalidArgumentError(
            f"method_options of {NAME}: {', '.join({**options, **of_object, **of_fit})} cannot be used here; wanted "
            f"path alone, a file of LayerReadoutIBA.save; or any of {', '.join((*_OF_OBJECT, *_OF_FIT))}."
        )
    if path is not None and not isinstance(path, (str, os.PathLike)):
        raise InvalidTypeError(f"method_options of {NAME}: path is a {type(path).__name__}; wanted a file's path.")
    if path is not None:
        method: Any = _loaded(context.model, Path(path))
    else:
        method = LayerReadoutIBA(context.model, context.layer, **of_object)
        _train(method, context, of_fit)
    context.fit_seconds[NAME] = method.history.seconds

    def explain(x: Tensor, _target: Tensor) -> Tensor:
        bits: Tensor = method.attribute(x, internal_batch_size=context.limit)
        return to_map(bits, x, method.channel_dim())

    return explain


def _loaded(model: nn.Module, path: Path) -> LayerReadoutIBA:
    """A readout at the layer that it was trained for, whatever the other methods' layer is."""
    name = layer_of(path)
    layer = dict(model.named_modules()).get(name)
    if layer is None:
        raise ReadoutFileError(f"{str(path)!r} is a readout of layer {name!r}, which {type(model).__name__} has not.")
    return LayerReadoutIBA(model, layer).load(path)


def _train(method: LayerReadoutIBA, context: Context, options: dict[str, Any]) -> None:
    """Statistics and training on the calibration data, whose targets are what the model says of them."""
    sizes: list[int] = []
    chosen: dict[str, Any] = SHORT_TRAINING | {"seed": context.seed} | options

    def fit(batches: Batches) -> None:
        warmup = {"warmup_steps": _half_of_the_steps(sizes, batches.most, chosen)} | chosen
        method.fit(batches, targets="predictions", show_progress=False, **warmup)

    with alone(), torch.enable_grad():
        context.fit(lambda batches: method.estimate(_noted(batches, sizes)))
        context.fit(fit)


def _noted(batches: Iterable[Tensor], sizes: list[int]) -> Iterator[Tensor]:
    """The batches, with their sizes written down."""
    sizes.clear()
    for batch in batches:
        sizes.append(len(batch))
        yield batch


def _half_of_the_steps(sizes: Sequence[int], most: int | None, options: Mapping[str, Any]) -> int:
    n_batches = len(sizes) if most is None else sum(-(-size // most) for size in sizes)
    epochs: Any = options["epochs"]
    max_steps: Any = options.get("max_steps")
    if not is_integer(epochs, 1):  # is refused with the right words later
        return 0
    steps = n_batches * int(epochs)
    return (min(steps, int(max_steps)) if is_integer(max_steps, 1) else steps) // 2


add_method(
    Method(
        NAME,
        _readout,
        "The readout bottleneck: one pass an image, trained on the calibration data to keep the model's predictions "
        f"({SHORT_TRAINING['epochs']} epochs, learning rate {SHORT_TRAINING['learning_rate']}, beta 10, half of the "
        "steps as warm-up), or loaded. It does not depend on the class.",
        BITS,
        is_fitted=True,
        kinds=("image",),
    )
)
