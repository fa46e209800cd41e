"""What a metric of a comparison is: it measures one map of one example, and gathers the examples' records."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from captum_iba.bottleneck.statistics import FeatureStatistics
from captum_iba.comparison._arguments import Additional, ordered
from captum_iba.comparison._types import Array, Curve, MetricInfo
from captum_iba.comparison.context import Context
from captum_iba.comparison.example import AnyExample
from captum_iba.metrics._curves import at_fractions

Record: TypeAlias = dict[str, Any]
"""What one metric found for one map: numbers, strings and lists of them, fit for JSON."""


@dataclass
class ExampleState:
    """One example on its way through the metrics.

    Attributes:
        context (Context): of the comparison.
        inputs (Tensor): (1, C, H, W), or token ids (1, T).
        target (Tensor): (1,).
        mask (Tensor or None): (1, H, W).
        additional_forward_args (tuple or None): further arguments of the model.
        baselines, feature_mask (Tensor or None): (1, T), of an example that has its own, see :class:`AnyExample`.
        shared (dict): results that do not depend on the method, by column.
        of_map (dict): results that columns share about the map at hand.
    """

    context: Context
    inputs: Tensor
    target: Tensor
    mask: Tensor | None
    additional_forward_args: Additional = None
    baselines: Tensor | None = None
    feature_mask: Tensor | None = None
    shared: dict[str, Any] = field(default_factory=dict)
    of_map: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, context: Context, example: AnyExample) -> ExampleState:
        """An example as a batch of one, on the context's device."""
        device = context.example.device

        def batch(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[None].to(device)

        return cls(
            context,
            example.inputs[None].to(device),
            torch.tensor([example.target], device=device),
            batch(example.mask),
            ordered(context.model, {name: value[None].to(device) for name, value in example.arguments.items()}),
            batch(example.baselines),
            batch(example.feature_mask),
        )

    @property
    def keywords(self) -> dict[str, Any]:
        """What an example has beyond inputs and target, under Captum's names; methods take what they want of it."""
        found = {
            "additional_forward_args": self.additional_forward_args,
            "baselines": self.baselines,
            "feature_mask": self.feature_mask,
        }
        return {name: value for name, value in found.items() if value is not None}

    @property
    def model(self) -> nn.Module:
        """The model."""
        return self.context.model

    @property
    def layer(self) -> nn.Module:
        """Of the bottleneck; raises where the model has none."""
        return self.context.layer

    @property
    def statistics(self) -> FeatureStatistics:
        """Of the layer; raises where there are none."""
        return self.context.statistics

    @property
    def rows(self) -> int:
        """Most rows at once."""
        return self.context.rows

    @property
    def seed(self) -> int:
        """Of everything random."""
        return self.context.seed


class Column(Protocol):
    """One metric.

    An attribute ``kinds`` says which kinds of examples it is for, such as ``("image",)``; without it, all.
    """

    @property
    def info(self) -> MetricInfo:
        """Heading, description and direction."""

    @property
    def needs_boxes(self) -> bool:
        """It applies to examples with a mask, and to those alone."""

    def measure(self, state: ExampleState, maps: Tensor, explain: Callable[[Tensor, Tensor], Tensor]) -> Record:
        """Measure one map, (1, C, h, w), or (1, T) of tokens."""

    def gather(self, records: Sequence[Record | None]) -> tuple[Array, Curve | None]:
        """Scores of all examples, NaN where there is no record, and the mean curve.

        A record without score, of an example on which the method failed, holds under "data" what another method's
        record said of the example itself.
        """


def scores(records: Sequence[Record | None]) -> Array:
    """Scores of the records, NaN where there is none."""
    return np.array([np.nan if r is None else _number(r.get("score")) for r in records], dtype=np.float64)


def measured(records: Sequence[Record | None]) -> list[Record]:
    """The records of examples on which the method gave a map."""
    return [record for record in records if record is not None and "score" in record]


def _number(value: float | None) -> float:
    """JSON has no NaN; None stands for it."""
    return float("nan") if value is None else value


def plain(values: Tensor) -> list[float | None]:
    """Numbers for JSON, None for NaN and infinity."""
    return [value if math.isfinite(value) else None for value in values.flatten().double().tolist()]


def mean_and_error(rows: Sequence[Sequence[float | None]]) -> tuple[Array, Array]:
    """Mean and standard error over the rows, (P,) each, of what is defined."""
    values = np.array([[_number(value) for value in row] for row in rows], dtype=np.float64)
    there = ~np.isnan(values)
    n = there.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(there, values, 0).sum(axis=0) / n
        spread = np.where(there, values - mean, 0)
        error = np.sqrt((spread**2).sum(axis=0) / (n - 1) / n)
    return mean, error


def on_one_grid(records: Sequence[Record], names: Sequence[str]) -> tuple[Array, dict[str, list[list[float]]]]:
    """Curves at common fractions: those of the example with most points."""
    longest = max(records, key=lambda record: len(record["x"]))["x"]
    grid = torch.tensor(longest, dtype=torch.float64)
    lines: dict[str, list[list[float]]] = {name: [] for name in names}
    for record in records:
        own = torch.tensor([record["x"]], dtype=torch.float64)
        for name in names:
            values = torch.tensor([record[name]], dtype=torch.float64)
            lines[name].append(at_fractions(values, own, grid)[0].tolist())
    return np.array(longest), lines
