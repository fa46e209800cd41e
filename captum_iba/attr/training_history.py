"""What training a readout bottleneck leaves behind: how objective, bits and accuracy went."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Measures:
    """Means over the examples of a training step, or of a data set, with one draw of noise each.

    Attributes:
        step (int): steps of the optimiser taken before.
        epoch (int): epoch it belongs to, from 0.
        n (int): examples.
        objective (float): ``loss + beta * mean information in nats``, what training minimises; with the step's beta
            during a warm-up, and with the full one on validation data.
        loss (float): through the bottleneck: the cross-entropy in nats, or the mean of the user's objective.
        bits (float): total information of an example, in bits.
        accuracy (float or None): share of examples whose largest output through the bottleneck is the target's; None
            with an objective of the user's own.
        model_accuracy (float or None): the same without the bottleneck.
    """

    step: int
    epoch: int
    n: int
    objective: float
    loss: float
    bits: float
    accuracy: float | None
    model_accuracy: float | None


@dataclass(repr=False)
class TrainingHistory:
    """The course of a training.

    Attributes:
        training (list[Measures]): of each step's batch, before the step.
        validation (list[Measures]): of the validation data: before the first step, after each epoch, and where a
            training ended.
        seconds (float): time spent in steps and validation, over all runs that were resumed.

    Examples::

        >>> history = TrainingHistory(validation=[Measures(0, 0, 8, 50.1, 0.1, 9000.0, 1.0, 1.0)])
        >>> TrainingHistory.from_tensors(history.to_tensors(), history.seconds) == history
        True
    """

    training: list[Measures] = field(default_factory=list)
    validation: list[Measures] = field(default_factory=list)
    seconds: float = 0.0

    def __repr__(self) -> str:
        """The latest measures; the lists are long."""
        latest = [values[-1] for values in (self.training, self.validation) if values]
        return f"TrainingHistory({len(self.training)} steps, {self.seconds:.0f} s, latest: {latest})"

    def to_tensors(self) -> dict[str, Tensor]:
        """Float64 tables (entries, measures), NaN for None: a long training has many entries."""
        found = {"training": self.training, "validation": self.validation}
        return {
            name: torch.tensor(
                [[float("nan") if value is None else float(value) for value in astuple(each)] for each in entries],
                dtype=torch.float64,
                device="cpu",
            ).reshape(len(entries), len(fields(Measures)))
            for name, entries in found.items()
        }

    @classmethod
    def from_tensors(cls, tables: Mapping[str, Tensor], seconds: float) -> TrainingHistory:
        """The history written by :meth:`to_tensors`."""
        found = {}
        for name in ("training", "validation"):
            rows = tables[name].tolist()
            if any(len(row) != len(fields(Measures)) for row in rows):
                raise ValueError(f"a history of shape {list(tables[name].shape)}")
            found[name] = [_measures(row) for row in rows]
        return cls(found["training"], found["validation"], float(seconds))


def _measures(row: list[float]) -> Measures:
    step, epoch, n, *others = (None if math.isnan(value) else value for value in row)
    return Measures(int(step), int(epoch), int(n), *others)  # type: ignore[arg-type]
