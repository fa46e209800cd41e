"""The readout bottleneck as a method of a comparison."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captum_iba._processes import alone
from captum_iba.attr import LayerReadoutIBA
from captum_iba.attr._readout_file import layer_of
from captum_iba.attr._readout_fit import SHORT_TRAINING
from captum_iba.comparison.methods import BITS, Context, Explainer, Method, add_method
from captum_iba.errors import InvalidArgumentError, ReadoutFileError

NAME = "LayerReadoutIBA"
_OF_OBJECT = ("readout_layers", "hidden_channels", "sigma", "initial_alpha", "relu", "align_corners")
_OF_FIT = tuple(
    name
    for name in inspect.signature(LayerReadoutIBA.fit).parameters
    if name not in ("self", "train_data", "val_data", "checkpoint", "show_progress", "input_fn", "targets")
)


def _readout(context: Context) -> Explainer:
    options = context.options_of(NAME)
    path = options.pop("path", None)
    of_object = {name: options.pop(name) for name in _OF_OBJECT if name in options}
    of_fit = {name: options.pop(name) for name in _OF_FIT if name in options}
    if options or (path is not None and (of_fit or of_object)):
        raise InvalidArgumentError(
            f"method_options of {NAME}: {', '.join({**options, **of_object, **of_fit})} cannot be used here; wanted "
            f"path alone, a file of LayerReadoutIBA.save; or any of {', '.join((*_OF_OBJECT, *_OF_FIT))}."
        )
    if path is not None:
        method: Any = _loaded(context.model, Path(path))
    else:
        method = LayerReadoutIBA(context.model, context.layer, **of_object)
        _train(method, context, of_fit)
    context.fit_seconds[NAME] = method.history.seconds

    def explain(x: Tensor, _target: Tensor) -> Tensor:
        bits: Tensor = method.attribute(x, internal_batch_size=context.limit)
        return bits

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
    with alone(), torch.enable_grad():
        context.fit(lambda batches: method.estimate(_noted(batches, sizes)))
        chosen: dict[str, Any] = SHORT_TRAINING | {"seed": context.seed} | options
        chosen.setdefault("warmup_steps", len(sizes) * int(chosen["epochs"]) // 2)
        context.fit(lambda batches: method.fit(batches, targets="predictions", show_progress=False, **chosen))


def _noted(batches: Iterable[Tensor], sizes: list[int]) -> Iterator[Tensor]:
    """The batches, with their sizes written down."""
    sizes.clear()
    for batch in batches:
        sizes.append(len(batch))
        yield batch


add_method(
    Method(
        NAME,
        _readout,
        "The readout bottleneck: one pass an image, trained on the calibration data to keep the model's predictions "
        f"({SHORT_TRAINING['epochs']} epochs, learning rate {SHORT_TRAINING['learning_rate']}, beta 10, half of the "
        "steps as warm-up), or loaded. It does not depend on the class.",
        BITS,
        is_fitted=True,
    )
)
