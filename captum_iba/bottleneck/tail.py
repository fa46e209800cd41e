"""The model from the layer on, for many noisy copies of a batch, in the cheapest way that is proven right.

Three ways, tried in this order; each is checked at every call before it is used:

1. the recorded prefix of the N examples, and copies * N rows from the layer on;
2. the prefix recorded on inputs expanded to copies * N rows (skip connections past the layer, models that read the
   batch size from their input);
3. the whole model on expanded inputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from captum_iba.bottleneck.replay import Recording, ReplayFailed, Site, run_with
from captum_iba.errors import MismatchedArgumentsError

CallFor = Callable[[int], Any]


class Tail:
    """Maps replaced features of ``copies * N`` rows to the model's output.

    Rows are ordered copy by copy (row ``k * N + i`` is copy k of example i), which is Captum's
    ``ExpansionTypes.repeat``.

    Args:
        site (Site): the layer and its side.
        call_for (Callable): ``call_for(copies)`` runs the forward pass on inputs repeated that many times.
        roots (Sequence[nn.Module]): modules whose descendants may be replayed.
        to_tensor (Callable): turns what the model returns into its output tensor.

    Examples::

        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> x = torch.ones(4, 2)
        >>> tail = Tail(Site(model[0], "0"), lambda n: model(x.repeat(n, 1)), [model], lambda output: output)
        >>> tail(torch.zeros(12, 3), copies=3).shape, tail.mode
        (torch.Size([12, 1]), 'replay')
    """

    def __init__(
        self, site: Site, call_for: CallFor, roots: Sequence[nn.Module], to_tensor: Callable[[Any], Tensor]
    ) -> None:
        self._site, self._call_for, self._to_tensor = site, call_for, to_tensor
        self._recording = Recording.make(site, lambda: call_for(1), roots)
        self._expanded: dict[int, Recording] = {}
        self._roots = roots
        self.features = self._recording.features
        self.output = to_tensor(self._recording.output)
        self._mode: str | None = None

    @property
    def modules_before(self) -> list[nn.Module]:
        """Outermost modules that finished before the layer, in order."""
        return self._recording.modules_before

    @property
    def mode(self) -> str | None:
        """``"replay"``, ``"replay expanded"`` or ``"whole model"``; None before the first run."""
        return self._mode

    def __call__(self, z: Tensor, copies: int) -> Tensor:
        """Run the model with ``z``, of ``copies * N`` rows, in place of the layer's features."""
        if self._mode is None:
            self._mode = "replay" if self._rows_are_independent() else "replay expanded"
            if self._mode != "replay":
                self._recording.release()
        if self._mode == "replay":
            try:
                return self._checked(self._recording.run(lambda: self._call_for(1), z), len(z))
            except ReplayFailed as reason:
                self._give_up(reason)
        if self._mode == "replay expanded":
            try:
                return self._checked(self._expanded_recording(copies).run(lambda: self._call_for(copies), z), len(z))
            except ReplayFailed as reason:
                self._give_up(reason)
        return self._to_tensor(run_with(self._site, lambda: self._call_for(copies), z))

    def _checked(self, output: Any, rows: int) -> Tensor:
        tensor = self._to_tensor(output)
        if tensor.ndim == 0 or tensor.shape[0] != rows:
            raise ReplayFailed(f"the output has shape {list(tensor.shape)}, not {rows} rows")
        return tensor

    @torch.no_grad()
    def _rows_are_independent(self) -> bool:
        """Whether 2N rows give the recorded output in their second half; the first half holds other features.

        The first half differs, so that a model that takes its rows from the wrong place is found out even for N = 1.
        """
        features = self.features
        z = torch.cat([0.5 * features.roll(1, dims=-1), features])
        try:
            output = self._checked(self._recording.run(lambda: self._call_for(1), z, first_time=True), len(z))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever a model makes of rows it did not expect, it means: not this way
            return False
        return _same(output[len(features) :], self.output)

    def _expanded_recording(self, copies: int) -> Recording:
        if copies not in self._expanded:
            recording = Recording.make(self._site, lambda: self._call_for(copies), self._roots)
            self._assert_batch_first(recording.features, copies)
            self._assert_reproduces(recording, copies)
            self._expanded[copies] = recording
        return self._expanded[copies]

    def _assert_batch_first(self, features: Tensor, copies: int) -> None:
        wanted = (copies * len(self.features), *self.features.shape[1:])
        if tuple(features.shape) != wanted:
            raise MismatchedArgumentsError(
                f"{self._site.name} gives features of shape {list(features.shape)} for {copies} times the inputs that "
                f"gave {list(self.features.shape)}, wanted {list(wanted)}: the first axis must be the batch. Choose a "
                "layer that keeps it, such as one with batch_first=True."
            )

    @torch.no_grad()
    def _assert_reproduces(self, recording: Recording, copies: int) -> None:
        if not recording.replays_anything:
            raise ReplayFailed("none of the modules before the layer can be found")
        try:
            z = recording.features.clone()  # the layer's successor may work in place
            output = self._to_tensor(recording.run(lambda: self._call_for(copies), z, first_time=True))
        except torch.OutOfMemoryError:
            raise
        except ReplayFailed:
            raise
        except Exception as error:
            raise ReplayFailed(f"replaying raised {type(error).__name__}: {error}") from error
        if not _same(output, self._to_tensor(recording.output)):
            raise ReplayFailed("replaying the recorded prefix gave another output")

    def _give_up(self, reason: Exception) -> None:
        self._mode = "whole model"
        self._recording.release()
        self._expanded.clear()
        warnings.warn(
            f"What comes before {self._site.name} cannot be replayed ({reason}); the whole model runs at each step. "
            "The result is the same, only slower. Passing the nn.Module itself as forward_func usually helps.",
            stacklevel=2,
        )


def _same(found: Tensor, wanted: Tensor) -> bool:
    """Equal up to the rounding that other row counts bring; a wrong replay is off by far more."""
    if found.shape != wanted.shape or not wanted.is_floating_point():
        return found.shape == wanted.shape and bool((found == wanted).all())
    tolerance = min(1e3 * torch.finfo(wanted.dtype).eps, 0.05)
    if wanted.is_cuda and wanted.dtype == torch.float32:
        tolerance = 0.01  # convolutions may run in TF32, and another algorithm per row count
    scale = wanted.abs().amax().clamp_min(torch.finfo(wanted.dtype).tiny)
    return bool((found - wanted).abs().amax() <= tolerance * scale)
