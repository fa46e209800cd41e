"""The model from the layer on, for many noisy copies of a batch, in the cheapest way that is proven right.

Three ways, tried in this order; each is checked at every call before it is used:

1. the recorded prefix of the N examples, and copies * N rows from the layer on;
2. the prefix recorded on inputs expanded to copies * N rows (skip connections past the layer, models that read the
   batch size from their input);
3. the whole model on expanded inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from captum_iba._warn import Warner
from captum_iba.bottleneck.replay import Recording, ReplayFailed, Site, run_with
from captum_iba.errors import MismatchedArgumentsError

CallFor = Callable[[int], Any]


class SharedPrefix:
    """Recordings for the tails of several layers, from one forward pass for each number of copies.

    Args:
        sites (Sequence[Site]): layers and sides.
        call_for, roots: as for :class:`Tail`.
    """

    def __init__(self, sites: Sequence[Site], call_for: CallFor, roots: Sequence[nn.Module]) -> None:
        self._sites, self._call_for, self._roots = list(sites), call_for, roots
        self._made: dict[int, dict[Site, Recording]] = {}

    def recording(self, site: Site, copies: int) -> Recording:
        """The recording of a site, which is handed out once."""
        if site not in self._made.get(copies, {}):
            made = Recording.make_all(self._sites, lambda: self._call_for(copies), self._roots)
            self._made[copies] = dict(zip(self._sites, made, strict=True))
        return self._made[copies].pop(site)


class Tail:
    """Maps replaced features of ``copies * N`` rows to the model's output.

    Rows are ordered copy by copy (row ``k * N + i`` is copy k of example i), which is Captum's
    ``ExpansionTypes.repeat``.

    Args:
        site (Site): the layer and its side.
        call_for (Callable): ``call_for(copies)`` runs the forward pass on inputs repeated that many times.
        roots (Sequence[nn.Module]): modules that may be replayed, with their descendants.
        to_tensor (Callable): turns what the model returns into its output tensor.
        warner (Warner, optional): remembers the warnings given. Default: None, one of its own.
        record (Callable, optional): ``record(copies)`` gives the :class:`Recording` of ``call_for(copies)`` at this
            site, see :class:`SharedPrefix`. Default: None, made here.

    Examples::

        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> x = torch.ones(4, 2)
        >>> tail = Tail(Site(model[0], "0"), lambda n: model(x.repeat(n, 1)), [model], lambda output: output)
        >>> with tail.run(torch.zeros(12, 3), copies=3) as output:
        ...     output.shape, tail.mode
        (torch.Size([12, 1]), 'replay')
    """

    def __init__(
        self,
        site: Site,
        call_for: CallFor,
        roots: Sequence[nn.Module],
        to_tensor: Callable[[Any], Tensor],
        warner: Warner | None = None,
        record: Callable[[int], Recording] | None = None,
    ) -> None:
        self._site, self._call_for, self._roots, self._to_tensor = site, call_for, roots, to_tensor
        self._warner = Warner() if warner is None else warner
        self._record = partial(SharedPrefix([site], call_for, roots).recording, site) if record is None else record
        self._recording = self._record(1)
        self._expanded: dict[int, Recording] = {}
        self.modules_before = self._recording.modules_before
        self.features = self._recording.features
        self.output = to_tensor(self._recording.output)
        self._mode: str | None = None

    @property
    def mode(self) -> str | None:
        """``"replay"``, ``"replay expanded"`` or ``"whole model"``; None before the first run."""
        return self._mode

    def settle(self) -> None:
        """Find out the way to run now, which :meth:`run` does at first otherwise."""
        if self._mode is None:
            self._mode = self._first_mode()

    @contextmanager
    def run(self, z: Tensor, copies: int) -> Iterator[Tensor]:
        """Run the model with ``z``, of ``copies * N`` rows, in place of the layer's features.

        A context, because a backward pass may recompute parts of the forward pass: take gradients inside.
        """
        with ExitStack() as stack:
            yield self._enter(stack, z, copies)

    def _enter(self, stack: ExitStack, z: Tensor, copies: int) -> Tensor:
        self.settle()
        if self._mode == "replay":
            try:
                return self._rows_of(stack, self._recording.run(lambda: self._call_for(1), z), len(z))
            except ReplayFailed as reason:
                self._give_up(stack, reason)
        if self._mode == "replay expanded":
            try:
                recording = self._expanded_recording(copies)
                return self._rows_of(stack, recording.run(lambda: self._call_for(copies), z), len(z))
            except ReplayFailed as reason:
                self._give_up(stack, reason)
        return self._to_tensor(stack.enter_context(run_with(self._site, lambda: self._call_for(copies), z)))

    def _first_mode(self) -> str:
        if self._rows_are_independent():
            return "replay"
        has_prefix = self._recording.replays_anything
        self._recording.release()
        if has_prefix:
            return "replay expanded"
        if not self._roots:
            self._warn("the function's modules are not found; pass the nn.Module itself as forward_func")
        return "whole model"

    def _rows_of(self, stack: ExitStack, running: Any, rows: int) -> Tensor:
        tensor = self._to_tensor(stack.enter_context(running))
        if tensor.ndim == 0 or tensor.shape[0] != rows:
            raise ReplayFailed(f"the output has shape {list(tensor.shape)}, not {rows} rows")
        return tensor

    def _rows_are_independent(self) -> bool:
        """Whether 2N rows give the recorded output in their second half; the first half holds other features.

        The first half differs, so that a model that takes its rows from the wrong place is found out even for N = 1.
        """
        features = self.features
        z = torch.cat([0.5 * features.roll(1, dims=-1), features])
        try:
            with ExitStack() as stack, without_checkpointing():
                replay = self._recording.run(lambda: self._call_for(1), z.clone(), first_time=True)
                output = self._rows_of(stack, replay, len(z)).detach()
            if _is_exact(self.output):
                return same_output(output[len(features) :], self.output)
            # other row counts round differently, and coarsely here: compare with a whole run of as many rows
            with torch.no_grad(), run_with(self._site, lambda: self._call_for(2), z.clone()) as whole:
                return same_output(output, self._to_tensor(whole))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever a model makes of rows it did not expect, it means: not this way
            return False

    def _expanded_recording(self, copies: int) -> Recording:
        if copies not in self._expanded:
            recording = self._record(copies)
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

    def _assert_reproduces(self, recording: Recording, copies: int) -> None:
        try:
            z = recording.features.clone()  # the layer's successor may work in place
            replay = recording.run(lambda: self._call_for(copies), z, first_time=True)
            with without_checkpointing(), replay as found:
                output = self._to_tensor(found).detach()
        except (torch.OutOfMemoryError, ReplayFailed):
            raise
        except Exception as error:
            raise ReplayFailed(f"replaying raised {type(error).__name__}: {error}") from error
        if not same_output(output, self._to_tensor(recording.output)):
            raise ReplayFailed("replaying the recorded prefix gave another output")

    def _give_up(self, stack: ExitStack, reason: Exception) -> None:
        stack.close()
        self._mode = "whole model"
        self._recording.release()
        self._expanded.clear()
        self._warn(str(reason))

    def _warn(self, reason: str) -> None:
        self._warner.once(
            ("replay", self._site.layer),
            f"What comes before {self._site.name} cannot be replayed ({reason}). The whole model runs at each step: "
            "the result is the same, only slower.",
        )


@contextmanager
def without_checkpointing() -> Iterator[None]:
    """Let activation checkpointing fail: recomputed, the prefix would not be what was replayed.

    With gradients, since torch skips checkpointing without them.
    """
    message = "the model recomputes activations (checkpointing)"
    with torch.enable_grad(), torch.autograd.graph.disable_saved_tensors_hooks(message):
        yield


def _is_exact(output: Tensor) -> bool:
    """Whether rounding is fine enough to tell a wrong replay from another row count; TF32 and half are not."""
    return output.dtype == torch.float64 or (output.dtype == torch.float32 and output.device.type == "cpu")


def same_output(found: Tensor, wanted: Tensor) -> bool:
    """Equal up to the rounding of one order of summation or another; a wrong replay is off by far more."""
    if found.shape != wanted.shape or not wanted.is_floating_point():
        return found.shape == wanted.shape and bool((found == wanted).all())
    factor = 1e3 if wanted.dtype in (torch.float32, torch.float64) else 4.0
    scale = wanted.abs().amax().clamp_min(torch.finfo(wanted.dtype).tiny)
    return bool((found - wanted).abs().amax() <= factor * torch.finfo(wanted.dtype).eps * scale)
