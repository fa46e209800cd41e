"""What training a readout bottleneck leaves behind: how objective, bits and accuracy went."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Measures:
    """Means over the examples of a training step, or of a data set, with one draw of noise each.

    Attributes:
        step (int): steps of the optimiser taken before.
        epoch (int): epoch it belongs to, from 0.
        n (int): examples.
        objective (float): ``loss + beta * mean information in nats``, what training minimises.
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


@dataclass
class TrainingHistory:
    """The course of a training.

    Attributes:
        training (list[Measures]): of each step's batch, before the step.
        validation (list[Measures]): of the validation data: before the first step, after each epoch, and where a
            training ended.
        seconds (float): time spent in steps and validation, over all runs that were resumed.

    Examples::

        >>> history = TrainingHistory(validation=[Measures(0, 0, 8, 50.1, 0.1, 9000.0, 1.0, 1.0)])
        >>> TrainingHistory.from_dict(history.to_dict()) == history
        True
    """

    training: list[Measures] = field(default_factory=list)
    validation: list[Measures] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, as for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingHistory:
        """The history written by :meth:`to_dict`."""
        return cls(
            [Measures(**entry) for entry in values["training"]],
            [Measures(**entry) for entry in values["validation"]],
            float(values["seconds"]),
        )
