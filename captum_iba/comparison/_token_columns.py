"""Metrics that remove tokens from a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from captum_iba.comparison._column import ExampleState, Record, mean_and_error, measured, plain, scores
from captum_iba.comparison._removal_columns import as_record, gather_scaled, lines_of
from captum_iba.comparison._types import Array, Curve, MetricInfo
from captum_iba.comparison.example import Kind
from captum_iba.metrics import DegradationResult, degradation

Removal = Literal["mask", "delete"]
_DONE = {"mask": "replaced by the token that stands for nothing", "delete": "cut out of the text"}


@dataclass(frozen=True)
class TokenDegradationColumn:
    """Area between the degradation curves, token by token; scaled over the whole data set when gathered."""

    removal: Removal
    n_steps: int | None = None
    needs_boxes: bool = False
    kinds: tuple[Kind, ...] = ("text",)

    @property
    def why_without_scale(self) -> str:
        """Reason for scores that are all undefined."""
        return (
            "The mean top-1 probability of the intact texts is not above the target's mean probability on the texts "
            "without tokens (t1 <= b), so there is no scale. Choose another removal."
        )

    @property
    def info(self) -> MetricInfo:
        """See :class:`Column`."""
        return MetricInfo(
            f"degradation {self.removal}",
            f"Area between the target's probability with tokens {_DONE[self.removal]}, least relevant first, and most "
            "relevant first; special tokens stay. 0 for a random map.",
            True,
            "share of tokens removed",
            "scaled probability s(x)",
        )

    def measure(self, state: ExampleState, maps: Tensor, explain: Callable[[Tensor, Tensor], Tensor]) -> Record:
        """See :class:`Column`."""
        found = _degraded(state, maps, self.removal, self.n_steps)
        return as_record(found)

    def gather(self, records: Sequence[Record | None]) -> tuple[Array, Curve | None]:
        """See :class:`Column`."""
        return gather_scaled(records)


@dataclass(frozen=True)
class TokenAccuracyColumn:
    """Area between the accuracies on the same texts as :class:`TokenDegradationColumn`."""

    removal: Removal
    n_steps: int | None = None
    needs_boxes: bool = False
    kinds: tuple[Kind, ...] = ("text",)

    @property
    def info(self) -> MetricInfo:
        """See :class:`Column`."""
        return MetricInfo(
            f"accuracy {self.removal}",
            f"Area between the shares of texts whose most probable class is the target, with tokens "
            f"{_DONE[self.removal]} least relevant first, and most relevant first; special tokens stay. 0 for a random "
            "map.",
            True,
            "share of tokens removed",
            "accuracy",
        )

    def measure(self, state: ExampleState, maps: Tensor, explain: Callable[[Tensor, Tensor], Tensor]) -> Record:
        """See :class:`Column`."""
        found = _degraded(state, maps, self.removal, self.n_steps)
        area = torch.trapezoid(found.lerf_top1 - found.morf_top1, found.fractions, dim=1)
        area = area.round(decimals=12)  # what cancels is 0
        return {
            "score": plain(area)[0],
            "x": plain(found.fractions),
            "morf": plain(found.morf_top1),
            "lerf": plain(found.lerf_top1),
        }

    def gather(self, records: Sequence[Record | None]) -> tuple[Array, Curve | None]:
        """See :class:`Column`."""
        there = measured(records)
        if not there:
            return scores(records), None
        x, curves = lines_of(there)
        return scores(records), Curve(x, {name: mean_and_error(rows) for name, rows in curves.items()})


def _degraded(state: ExampleState, maps: Tensor, removal: Removal, n_steps: int | None) -> DegradationResult:
    """Curves of one map, which both columns read."""
    key = f"tokens, {removal}, {n_steps}"
    if key not in state.of_map:
        replaced = removal == "mask"
        state.of_map[key] = degradation(
            state.model,
            state.inputs,
            maps,
            state.baselines if replaced and state.baselines is not None else 0,
            state.feature_mask,
            state.additional_forward_args,
            state.target,
            n_steps=n_steps,
            normalizer="none",
            removal="replace" if replaced else "delete",
            max_examples_per_batch=state.rows,
            seed=state.seed,
        )
    found: DegradationResult = state.of_map[key]
    return found
