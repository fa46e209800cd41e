"""Explains a model stage after stage and compares the maps with those of the first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from captum_iba.bottleneck.containers import leaves_in
from captum_iba.errors import InvalidArgumentError, InvalidTypeError, NonFiniteError
from captum_iba.metrics._maps import assert_finite_maps
from captum_iba.metrics._randomize import cuda_devices, seed_global
from captum_iba.metrics._similarity import SimilarityFunc, comparable_maps
from captum_iba.metrics._stages import Stage, default_stages, named_stages, recorded_starts

Inputs: TypeAlias = Tensor | tuple[Tensor, ...]
AttributeFunc: TypeAlias = Callable[[nn.Module, Any, Any], Tensor]

ORIGINAL = "original"
# parts of the keys that random numbers are drawn from; 0 is for the weights
_ATTRIBUTION, _REFERENCE = 1, 2


class Cascade:
    """The maps of one model on one batch, and their similarities.

    Args:
        model (Module): the model, in evaluation mode.
        inputs (Tensor or tuple[Tensor, ...]): (N, ...) each.
        target: handed on to the attribution functions.
        compare (Callable): similarity of two batches of maps.
        seed (int): of the global generators at each attribution.

    Attributes:
        columns (list[Tensor]): (N,) similarities to the trained model's maps, for each stage so far.
        failures (dict[str, str]): why values are missing, by stage.
        reference (Tensor or None): (N,), of ``reference_func``.
        devices (list[int]): CUDA devices in use.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, target: Any, compare: SimilarityFunc, seed: int) -> None:
        self._tensors = _as_tuple(inputs)
        self._model, self._inputs, self._target, self._compare, self._seed = model, inputs, target, compare, seed
        self.devices = cuda_devices(*model.parameters(), *model.buffers(), *self._tensors)
        self.columns: list[Tensor] = []
        self.failures: dict[str, str] = {}
        self.reference: Tensor | None = None

    def plan(self, names: Sequence[str] | None) -> list[Stage]:
        """The stages; the trained model runs once."""
        root: nn.Module = getattr(self._model, "_orig_mod", self._model)  # inside torch.compile's wrapper
        with recorded_starts(root) as starts:
            self._assert_finite_output(ORIGINAL)
        stages = default_stages(root, starts) if names is None else named_stages(root, names)
        if not stages:
            raise InvalidArgumentError(f"The model ({type(self._model).__name__}) has no parameters to randomise.")
        return stages

    def start(self, attribute_func: AttributeFunc, reference_func: AttributeFunc | None) -> None:
        """Explain the trained model; errors are the caller's."""
        self._original = self._maps(attribute_func, _ATTRIBUTION)
        assert_finite_maps(self._original)
        self.columns.append(self._noted(ORIGINAL, self._compare(self._original, self._original)))
        if reference_func is not None:
            other = self._maps(reference_func, _REFERENCE)
            assert_finite_maps(other)
            self.reference = self._compare(self._original, self._like_original(other))

    def stage(self, name: str, attribute_func: AttributeFunc) -> None:
        """Explain the randomised model; where that fails there is no value.

        Lack of memory and interrupts are no property of the attribution, and end the run.
        """
        self._assert_finite_output(name)
        try:
            returned = self._call(attribute_func, _ATTRIBUTION)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the attribution is the caller's, and may fail in any way on a random model
            self.failures[name] = f"{type(error).__name__}: {error}"
            self.columns.append(torch.full_like(self.columns[0], float("nan")))
            return
        maps = self._like_original(comparable_maps(returned, self._tensors))
        finite = torch.isfinite(maps).flatten(1).all(dim=1)
        values = self._compare(self._original, torch.where(finite.view(-1, *[1] * (maps.ndim - 1)), maps, 0.0))
        self.columns.append(self._noted(name, values.masked_fill(~finite.cpu(), float("nan"))))

    def _noted(self, name: str, values: Tensor) -> Tensor:
        if values.isnan().any():
            rows = values.isnan().nonzero().flatten().tolist()
            self.failures[name] = f"NaN in the maps, or an undefined similarity, for examples {rows[:10]}"
        return values

    def _call(self, function: AttributeFunc, key: int) -> object:
        seed_global(self.devices, self._seed, key)
        return function(self._model, self._inputs, self._target)

    def _maps(self, function: AttributeFunc, key: int) -> Tensor:
        return comparable_maps(self._call(function, key), self._tensors)

    def _like_original(self, maps: Tensor) -> Tensor:
        if maps.shape != self._original.shape:
            raise InvalidArgumentError(
                f"attributions changed their shape from {list(self._original.shape)} on the trained model to "
                f"{list(maps.shape)}. Return maps of one shape."
            )
        return maps

    def _assert_finite_output(self, stage: str) -> None:
        with torch.no_grad():
            tensors = [leaf for leaf in leaves_in(self._model(*self._tensors)) if isinstance(leaf, Tensor)]
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
            raise NonFiniteError(
                f"The model's output contains NaN or infinity at stage {stage!r}. "
                + (
                    "Look at its inputs and weights."
                    if stage == ORIGINAL
                    else "Pass method='permute', which keeps the weights' scale, or recalibration_data."
                )
            )


def _as_tuple(inputs: Inputs) -> tuple[Tensor, ...]:
    tensors = inputs if isinstance(inputs, tuple) else (inputs,)
    if not tensors or not all(isinstance(tensor, Tensor) and tensor.ndim for tensor in tensors):
        raise InvalidTypeError(
            f"inputs is a {type(inputs).__name__}; wanted a Tensor with one entry for each example, or a tuple of them."
        )
    return tensors
