"""One batch through the readout bottleneck: its measures, and the gradient for the network's parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from captum_iba._processes import world_size
from captum_iba._warn import Warner
from captum_iba.attr._layout import count_far, warn_if_far
from captum_iba.attr._objective import Objective, ObjectiveType, output_tensor
from captum_iba.attr._readout import Observation, Readout
from captum_iba.attr._training_data import Batch
from captum_iba.attr.training_history import Measures
from captum_iba.bottleneck.information import BITS_PER_NAT
from captum_iba.bottleneck.reading import watch
from captum_iba.bottleneck.readout import noisy_features
from captum_iba.bottleneck.replay import Recording, ReplayFailed, run_with
from captum_iba.bottleneck.tail import same_output, without_checkpointing
from captum_iba.errors import (
    CaptumIBAError,
    DeviceError,
    GradientModeError,
    InvalidArgumentError,
    NonFiniteError,
    TargetError,
    TargetIndexError,
)


@dataclass(frozen=True)
class Sums:
    """Sums over the rows of a batch, of all processes.

    Attributes:
        values (Tensor): loss, mean nats, total bits, hits through the bottleneck, hits without, rows; float64.
        has_accuracy (bool): hits mean something.
    """

    values: Tensor
    has_accuracy: bool

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.values + other.values, self.has_accuracy)

    def measures(self, beta: float, step: int, epoch: int) -> Measures:
        """Means."""
        loss, nats, bits, hits, own_hits, n = self.values.tolist()
        loss, nats, bits, hits, own_hits = (value / n for value in (loss, nats, bits, hits, own_hits))
        accuracy, own = (hits, own_hits) if self.has_accuracy else (None, None)
        return Measures(step, epoch, round(n), loss + beta * nats, loss, bits, accuracy, own)


class Pass:
    """Runs batches through model and bottleneck.

    Args:
        readout (Readout): what is trained.
        roots (list[nn.Module]): modules whose results before the bottleneck may be replayed.
        objective: as in :meth:`LayerIBA.attribute`.
        class_dim (int): axis of the classes.
        autocast (Callable): context for the model's own passes.
        warner (Warner): remembers the warnings given.
    """

    def __init__(
        self,
        readout: Readout,
        roots: list[nn.Module],
        objective: ObjectiveType,
        class_dim: int,
        autocast: Callable[[], Any],
        warner: Warner,
    ) -> None:
        self._readout, self._roots = readout, roots
        self._objective, self._class_dim = objective, class_dim
        self._autocast, self.warner = autocast, warner
        self._replays: bool | None = None if roots else False

    def see(self, batch: Batch) -> tuple[Recording, Observation]:
        """The pass without noise."""
        taken = {}

        def call() -> Any:
            with watch(self._readout.sources) as found:
                output = batch.call()
            taken.update(found)
            return output

        with self._autocast():
            recording = Recording.make(self._readout.site, call, self._roots)
        taken[self._readout.site] = recording.features
        seen = self._readout.observe(taken)
        warn_if_far(count_far(seen.normalized), seen.normalized.numel(), self._readout.site, self.warner)
        return recording, seen

    def forward(
        self,
        batch: Batch,
        recording: Recording,
        seen: Observation,
        network: nn.Module,
        noise_seed: int,
        beta: float | None = None,
    ) -> Sums:
        """The pass with noise; given beta, the gradient is left in the network's parameters.

        Raises:
            NonFiniteError: something became NaN or infinite; the message says what came first.
        """
        own = output_tensor(recording.output)
        with agreed(own.device):
            targets = self._targets(batch, own)
            objective = Objective(self._objective, targets, self._class_dim, self.warner)
            objective.check(own, batch.n)
        train = beta is not None
        with torch.set_grad_enabled(train):
            alpha = self._readout.alpha(seen, network)
            leaf = alpha.detach().requires_grad_(train)
            z, nats = noisy_features(
                leaf,
                seen.features,
                seen.normalized,
                seen.reference,
                self._noise(batch, seen, noise_seed),
                self._readout.blur(seen, self.warner),
                _relu if self._readout.settings.relu else lambda values: values,
            )
            with self._run(batch, recording, z.to(seen.dtype)) as output:
                rows, nats = objective(output, 1), nats.flatten(1)
                with agreed(rows.device):
                    _assert_finite(alpha, nats, output, rows)
                if beta is not None:
                    self._backward(batch, rows, beta * nats.mean(dim=1), leaf, alpha)
        hits = [torch.zeros_like(rows), torch.zeros_like(rows)]
        if not callable(self._objective):
            hits = [values.detach().argmax(dim=self._class_dim) == targets for values in (output, own)]
        columns = [rows, nats.mean(dim=1), nats.sum(dim=1) * BITS_PER_NAT, *hits, torch.ones_like(rows)]
        values = torch.stack([column.detach().double()[: batch.counted].sum() for column in columns])
        return Sums(_over_processes(values), not callable(self._objective))

    def _targets(self, batch: Batch, own: Tensor) -> Tensor:
        """Classes of the rows, or whatever a user's objective takes."""
        targets = batch.targets
        if targets is not None and callable(self._objective):
            return targets
        if not -own.ndim < self._class_dim < own.ndim:
            raise InvalidArgumentError(
                f"class_dim={self._class_dim} is no axis of the model's output of shape {list(own.shape)}. For outputs "
                "without classes pass objective, a function (output, targets) -> one loss a row, and targets."
            )
        if own.shape[self._class_dim] == 1:
            raise InvalidArgumentError(
                f"The model's output of shape {list(own.shape)} has a single class, whose softmax is constant. Pass "
                "objective, a function (output, targets) -> one loss a row, such as binary cross-entropy with logits."
            )
        if targets is None:
            return own.argmax(dim=self._class_dim)
        if targets.ndim != 1 or targets.is_floating_point() or targets.dtype == torch.bool:
            raise TargetError(
                f"The targets have shape {list(targets.shape)} and type {targets.dtype}; wanted one class index for "
                "each example, integers of shape (N,). For others pass objective, a function (output, targets) -> one "
                "loss a row."
            )
        lowest, highest = int(targets.min()), int(targets.max())
        if lowest < 0 or highest >= own.shape[self._class_dim]:
            raise TargetIndexError(
                f"The targets go from {lowest} to {highest}; wanted class indices from 0 to "
                f"{own.shape[self._class_dim] - 1}, as the model's output has shape {list(own.shape)}. Look at the "
                "labels, and leave examples without a class out of the data."
            )
        return targets.long()

    def _backward(self, batch: Batch, rows: Tensor, cost: Tensor, leaf: Tensor, alpha: Tensor) -> None:
        """Gradient through the model as far as alpha, and through the network from there."""
        # processes' gradients are averaged afterwards
        weight = world_size() / batch.n_global if batch.counted else 0.0
        slope = None
        if rows.requires_grad:  # by the layer, or by weights behind it alone
            (slope,) = torch.autograd.grad((rows * weight).sum(), leaf, retain_graph=True, allow_unused=True)
        if slope is None:
            raise GradientModeError(
                "The objective does not depend on the layer by gradient. Choose a layer that the output depends on, "
                "and remove torch.no_grad or detach between the layer and the output."
            )
        (of_information,) = torch.autograd.grad((cost * weight).sum(), leaf)
        torch.autograd.backward(alpha, slope + of_information)

    @contextmanager
    def _run(self, batch: Batch, recording: Recording, z: Tensor) -> Iterator[Tensor]:
        """The model's output with z at the layer, as fast as is proven right."""
        if self._replays is None:
            self._replays = self._check_replay(batch, recording)
        with ExitStack() as stack:
            stack.enter_context(self._autocast())
            output = self._replayed(stack, batch, recording, z) if self._replays else None
            if output is None:
                output = stack.enter_context(run_with(self._readout.site, batch.call, z))
            yield output_tensor(output)

    def _replayed(self, stack: ExitStack, batch: Batch, recording: Recording, z: Tensor) -> Any:
        """The output, or None if this batch takes another way through the model than the first one."""
        try:
            return stack.enter_context(recording.run(batch.call, z, first_time=True))
        except ReplayFailed as reason:
            self._give_up(str(reason))
            return None

    def _give_up(self, reason: str) -> None:
        self._replays = False
        self.warner.once(
            ("replay", self._readout.site.layer),
            f"What comes before {self._readout.site.name} cannot be replayed ({reason}). The whole model runs twice at "
            "each step: the result is the same, only slower.",
        )

    def _check_replay(self, batch: Batch, recording: Recording) -> bool:
        """Whether the features that were recorded give the output that was recorded."""
        if not recording.replays_anything:
            return False
        features, wanted = recording.features.clone(), output_tensor(recording.output)
        try:
            with without_checkpointing(), self._autocast(), recording.run(batch.call, features, True) as output:
                if same_output(output_tensor(output).detach(), wanted):
                    return True
                reason = "it gave another output"
        except torch.OutOfMemoryError:
            raise
        except (ReplayFailed, RuntimeError) as error:  # activation checkpointing says so by the latter
            reason = str(error)
        self._give_up(reason)
        return False

    def _noise(self, batch: Batch, seen: Observation, seed: int) -> Tensor:
        """One draw for each row, the same whether or not the rows are shared out among processes."""
        device = seen.features.device
        generator = torch.Generator(device).manual_seed(seed)
        shape = (batch.n_global, *seen.features.shape[1:])
        drawn = torch.randn(shape, generator=generator, dtype=torch.float32, device=device)
        return drawn[batch.offset : batch.offset + batch.n].to(seen.features)


def _over_processes(values: Tensor) -> Tensor:
    if world_size() > 1:
        dist.all_reduce(values)
    return values.cpu()


def _relu(z: Tensor) -> Tensor:
    """A copy, because the layer's successor may work in place on what autograd needs."""
    return z.relu().clone()


def _assert_finite(alpha: Tensor, nats: Tensor, output: Tensor, rows: Tensor) -> None:
    """Say what became NaN first."""
    causes = (
        (alpha, "the readout network's output", "A smaller learning_rate usually helps."),
        (nats, "the information", "Features lie too far from the statistics' mean; look at the data's scaling."),
        (output, "the model's output for noisy features", "Look at the model; half precision may have overflowed."),
        (rows, "the objective", "Look at whether objective fits the model's output (logits by default)."),
    )
    for values, what, advice in causes:
        if not torch.isfinite(values).all():
            raise NonFiniteError(f"{what} became NaN or infinite. {advice}")


@contextmanager
def agreed(device: torch.device) -> Iterator[None]:
    """Stop in all processes if one of them fails inside, instead of waiting for it.

    Raises:
        CaptumIBAError: this process's own, or that of being stopped by another one.
    """
    error: CaptumIBAError | None = None
    try:
        yield
    except CaptumIBAError as own:
        error = own
    stopped = error is not None
    if world_size() > 1:
        flag = torch.full((1,), float(stopped), device=device)
        dist.all_reduce(flag)
        stopped = bool(flag)
    if error is not None:
        raise error
    if stopped:
        raise DeviceError("Another process stopped; its message says why.")
