"""Trains the readout network, keeps a history, and goes on from a checkpoint."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from captum_iba._processes import rank, world_size
from captum_iba.attr._readout import Readout
from captum_iba.attr._readout_checkpoint import Position, read_checkpoint
from captum_iba.attr._readout_file import assert_writable, write_readout
from captum_iba.attr._training_data import Batch, Batches, stream_seed
from captum_iba.attr._training_step import Pass, agreed
from captum_iba.attr.training_history import Measures, TrainingHistory
from captum_iba.errors import NonFiniteError

# Below this share of the model's accuracy, over at least so many examples, or so few bits, too much is lost.
_LOSSY, _ENOUGH, _NOTHING = 0.85, 100, 0.1
# Above this share of the first information there was hardly any training.
_OPEN = 0.5
# Share of beta that a warm-up starts with.
_WARMUP_START = 0.01
# Steps of training that stand for the whole where there are no validation data.
_LATEST = 20


@dataclass(frozen=True)
class Schedule:
    """How long and how fast; the numbers of :meth:`LayerReadoutIBA.fit` under the same names."""

    epochs: int
    max_steps: int | None
    learning_rate: float
    beta: float
    warmup_steps: int
    seed: int
    checkpoint: Path | None
    checkpoint_every: int
    show_progress: bool

    def beta_at(self, step: int) -> float:
        """The weight of the information at a step: it grows a hundredfold over the first ones."""
        left = max(0.0, 1.0 - step / self.warmup_steps) if self.warmup_steps else 0.0
        return float(self.beta * _WARMUP_START**left)


class Trainer:
    """One call of :meth:`LayerReadoutIBA.fit`.

    Args:
        readout (Readout): gets network and history.
        run (Pass): runs batches.
        schedule (Schedule): the numbers.
        configuration (dict): what a checkpoint must agree in to be gone on from.
        names (dict[nn.Module, str]): the model's modules.
        train_data, val_data (Batches): the data; the second one may be None.
        like (Tensor): gives device and dtype of the network.
        when_ready (Callable): called as soon as something is learned.
    """

    def __init__(
        self,
        readout: Readout,
        run: Pass,
        schedule: Schedule,
        configuration: dict[str, Any],
        names: dict[nn.Module, str],
        train_data: Batches,
        val_data: Batches | None,
        like: Tensor,
        when_ready: Callable[[], object],
    ) -> None:
        self._readout, self._pass, self._schedule = readout, run, schedule
        self._configuration, self._names = configuration, names
        self._train_data, self._val_data, self._like = train_data, val_data, like
        self._when_ready = when_ready
        self._position = Position()
        self._is_saved = True

    def run(self) -> None:
        """Train to the end of the schedule, once :meth:`prepare` is done.

        Raises:
            NonFiniteError: the objective became NaN; the weights before that step stay.
            CaptumIBAError: data or a checkpoint that cannot be used.
        """
        steps = self._total_steps()
        bar = tqdm(
            total=steps,
            initial=self._position.step,
            desc="Layer Readout IBA training",
            disable=not self._schedule.show_progress or rank() > 0,
        )
        with bar, self._network_in_training():
            try:
                self._train(bar)
            finally:
                self._save()
        self._warn_of_the_outcome()

    def prepare(self) -> None:
        """Network, optimiser and position: from the checkpoint, or fresh."""
        if self._schedule.checkpoint is not None:
            assert_writable(self._schedule.checkpoint, self._readout, self._names)
        found = read_checkpoint(self._schedule.checkpoint, self._configuration, self._readout)
        if found is None:
            self._network = self._readout.make_network(self._schedule.seed, self._like)
            self._history = TrainingHistory()
        else:
            self._network, self._history, self._position = found.network.to(self._like), found.history, found.position
            self._readout.statistics = found.statistics
        self._optimizer = torch.optim.Adam(self._network.parameters(), lr=self._schedule.learning_rate)
        if found is not None:
            found.restore(self._optimizer)
        self._readout.network, self._readout.history = self._network, self._history
        if self._position.step:
            self._when_ready()

    @contextmanager
    def _network_in_training(self) -> Iterator[None]:
        self._module: nn.Module = self._network
        for parameter in self._network.parameters():
            parameter.requires_grad_(True)
        if world_size() > 1:
            self._module = DistributedDataParallel(self._network)
        try:
            yield
        finally:
            del self._module
            for parameter in self._network.parameters():
                parameter.grad = None
                parameter.requires_grad_(False)

    @property
    def _is_done(self) -> bool:
        limit = self._schedule.max_steps
        return self._position.epoch >= self._schedule.epochs or (limit is not None and self._position.step >= limit)

    def _train(self, bar: Any) -> None:
        while True:
            if self._val_data is not None and self._is_to_validate:
                self._validate()
                self._save()
            if self._is_done:
                return
            self._train_epoch(bar)
            self._save()

    @property
    def _is_to_validate(self) -> bool:
        """At the start, between epochs, and where the training ends."""
        found, position = self._history.validation, self._position
        return not found or (found[-1].step < position.step and (position.batch == 0 or self._is_done))

    def _train_epoch(self, bar: Any) -> None:
        position, schedule = self._position, self._schedule
        if position.generators:
            self._train_data.set_generator_states(position.generators)
        position.generators = self._train_data.generator_states()
        try:
            for batch in self._train_data.epoch(schedule.seed, position.epoch, position.batch):
                if self._is_done:
                    return
                self._step(batch)
                bar.update()
                latest = self._history.training[-1]
                shown = {"objective": latest.objective, "bits": latest.bits, "accuracy": latest.accuracy}
                texts = {name: f"{value:.4g}" for name, value in shown.items() if value is not None}
                bar.set_postfix(texts, refresh=False)
                if position.step % schedule.checkpoint_every == 0:
                    self._save()
        except NonFiniteError as error:
            raise NonFiniteError(
                f"Training stopped at step {position.step} (epoch {position.epoch}, batch {position.batch}): {error} "
                "The weights are those before this step."
            ) from error
        with uninterrupted():
            position.epoch, position.batch, self._is_saved = position.epoch + 1, 0, False
            position.generators = self._train_data.generator_states()

    def _step(self, batch: Batch) -> None:
        start, position = time.perf_counter(), self._position
        self._optimizer.zero_grad(set_to_none=True)
        with agreed(self._like.device):
            recording, seen = self._pass.see(batch)
        noise = stream_seed(self._schedule.seed, "training noise", position.step)
        beta = self._schedule.beta_at(position.step)
        sums = self._pass.forward(batch, recording, seen, self._module, noise, beta)
        measures = sums.measures(beta, position.step, position.epoch)
        gradients = [p.grad for p in self._network.parameters() if p.grad is not None]
        if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            raise NonFiniteError("the gradient became NaN or infinite. A smaller learning_rate usually helps.")
        with uninterrupted():
            self._optimizer.step()
            self._history.training.append(measures)
            position.step, position.batch, self._is_saved = position.step + 1, position.batch + 1, False
            self._history.seconds += time.perf_counter() - start
            self._when_ready()

    def _warn_of_the_outcome(self) -> None:
        """A bottleneck that lets nothing through says nothing, and one that was hardly trained lets everything."""
        schedule, warner, steps = self._schedule, self._pass.warner, self._position.step
        records = self._history.validation[-1:] or self._history.training[-_LATEST:]
        first = self._history.training[0].bits
        if steps < schedule.warmup_steps:
            warner.once(
                "warmup",
                f"The training ended after {steps} of {schedule.warmup_steps} warmup_steps, at beta = "
                f"{schedule.beta_at(steps):.3g} instead of {schedule.beta:.3g}. Pass fewer of them: half the steps.",
            )
        elif schedule.beta > 0 and first > 0 and records[-1].bits > _OPEN * first:
            warner.once(
                "open",
                f"The trained bottleneck still lets {100 * records[-1].bits / first:.0f} % of the information pass "
                f"that it let pass at the start: learning_rate={schedule.learning_rate:g} is small for so short a "
                f"training (steps: {steps}). Train longer, or raise it.",
            )
        self._warn_if_closed(records)

    def _warn_if_closed(self, records: list[Measures]) -> None:
        n = sum(each.n for each in records)
        bits = sum(each.bits * each.n for each in records) / n
        through = sum((each.accuracy or 0.0) * each.n for each in records) / n
        own = sum((each.model_accuracy or 0.0) * each.n for each in records) / n
        # without accuracy the objective is one of the user's own
        is_lossy = n >= _ENOUGH and records[-1].accuracy is not None and through < _LOSSY * own
        if is_lossy or bits < _NOTHING:
            way = "a smaller learning_rate" if self._schedule.warmup_steps else "warmup_steps, half of the training's"
            self._pass.warner.once(
                "closed",
                f"Through the trained bottleneck the accuracy is {through:.2f}, against {own:.2f} without it, at "
                f"{bits:.3g} bits: part of the decision is lost, and the map says nothing of it. A smaller beta keeps "
                f"more; where the bottleneck closed altogether, {way} may keep it open.",
            )

    def _validate(self) -> None:
        start = time.perf_counter()
        measures = evaluate(
            self._pass, self._val_data, self._network, self._schedule.beta, self._schedule.seed, self._position
        )
        self._history.validation.append(measures)
        self._is_saved = False
        self._history.seconds += time.perf_counter() - start

    def _save(self) -> None:
        """Write the checkpoint, if anything is new; the first process alone."""
        path = self._schedule.checkpoint
        if path is not None and rank() == 0 and not self._is_saved:
            write_readout(path, self._readout, self._names, self._configuration, self._optimizer, self._position)
        self._is_saved = True

    def _total_steps(self) -> int | None:
        n = len(self._train_data)
        by_epochs = n * self._schedule.epochs if n else None
        limits = [limit for limit in (by_epochs, self._schedule.max_steps) if limit is not None]
        return min(limits) if limits else None


def evaluate(
    run: Pass, data: Batches | None, network: nn.Module, beta: float, seed: int, position: Position
) -> Measures:
    """Means over a data set, with the same noise at each call."""
    assert data is not None
    total, states = None, data.generator_states()
    with torch.no_grad():
        for index, batch in enumerate(data.epoch(seed, 0)):
            with agreed(next(network.parameters()).device):
                recording, seen = run.see(batch)
            noise = stream_seed(seed, "validation noise", index)
            sums = run.forward(batch, recording, seen, network, noise)
            total = sums if total is None else total + sums
    data.set_generator_states(states)  # the next time the same
    assert total is not None
    return total.measures(beta, position.step, position.epoch)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let an interruption from the keyboard wait until the end of this context.

    Half a step of the optimiser would be neither the weights before nor those after.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield  # signals go to the main thread, and one whose handler is not Python's cannot be put back
        return
    waiting: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _frame: waiting.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if waiting:
            signal.raise_signal(signal.SIGINT)
