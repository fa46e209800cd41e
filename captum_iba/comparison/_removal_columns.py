"""Metrics that remove parts of the input: degradation, sensitivity-n, insertion and deletion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from captum_iba.comparison._column import ExampleState, Record, mean_and_error, measured, on_one_grid, plain, scores
from captum_iba.comparison._types import Array, Baseline, Curve, MetricInfo
from captum_iba.comparison.example import Kind
from captum_iba.metrics import DegradationResult, degradation, deletion, insertion
from captum_iba.metrics._baselines import make_baselines
from captum_iba.metrics._perturb import Removal, Rows
from captum_iba.metrics._units import make_units
from captum_iba.metrics.sensitivity_n import SetOutputs, correlate, log_spaced, set_outputs


def named(baselines: Baseline) -> str:
    """A baseline in words."""
    words = {"mean": "the image's mean colour", "zero": "zero", "blur": "the blurred image"}
    return words[baselines] if isinstance(baselines, str) else f"the value {baselines:.3g}"


def as_record(found: DegradationResult) -> Record:
    """One example's curves, whose scale is that of the whole data set; see :func:`gather_scaled`."""
    return {
        "score": plain(found.area)[0],
        "data": {"t1": float(found.top1), "b": float(found.fully_degraded)},
        "x": plain(found.fractions),
        "morf": plain(found.morf),
        "lerf": plain(found.lerf),
    }


def gather_scaled(records: Sequence[Record | None]) -> tuple[Array, Curve | None]:
    """Scores and mean curves of degradation, scaled by the whole data set's t1 and b; see :class:`Column`."""
    there = measured(records)
    if not there:
        return scores(records), None
    # means over the whole data set, also over examples on which this method failed
    t1, b = (float(np.mean([r["data"][key] for r in records if r is not None])) for key in ("t1", "b"))
    if t1 <= b:  # the scaled score is undefined; the raw curves would look like it
        return np.full(len(records), np.nan), None
    x, curves = lines_of(there)
    scaled = {name: [[(value - b) / (t1 - b) for value in row] for row in rows] for name, rows in curves.items()}
    return scores(records) / (t1 - b), Curve(x, {name: mean_and_error(rows) for name, rows in scaled.items()})


def lines_of(records: Sequence[Record]) -> tuple[Array, dict[str, list[list[float]]]]:
    """Both curves of all records on one grid, by the names that a reader sees."""
    x, lines = on_one_grid(records, ("morf", "lerf"))
    return x, {"most relevant first": lines["morf"], "least relevant first": lines["lerf"]}


@dataclass(frozen=True)
class DegradationColumn:
    """Area between the degradation curves, tiles of one size; scaled over the whole data set when gathered."""

    tile_size: int
    n_steps: int | None = None
    baselines: Baseline = "mean"
    needs_boxes: bool = False
    kinds: tuple[Kind, ...] = ("image",)

    @property
    def why_without_scale(self) -> str:
        """Reason for scores that are all undefined."""
        return (
            "The mean top-1 probability of the intact images is not above the target's mean probability on the fully "
            "degraded ones (t1 <= b), so there is no scale. Choose another baseline."
        )

    @property
    def info(self) -> MetricInfo:
        """See :class:`Column`."""
        side = f"{self.tile_size}x{self.tile_size}"
        return MetricInfo(
            f"degradation {side}",
            f"Area between the target's probability with tiles of {side} pixels replaced by {named(self.baselines)}, "
            "least relevant first, and most relevant first; 0 for a random map.",
            True,
            "share of tiles replaced",
            "scaled probability s(x)",
        )

    def measure(self, state: ExampleState, maps: Tensor, explain: Callable[[Tensor, Tensor], Tensor]) -> Record:
        """See :class:`Column`."""
        found = degradation(
            state.model,
            state.inputs,
            maps,
            self.baselines,
            target=state.target,
            tile_size=self.tile_size,
            n_steps=self.n_steps,
            normalizer="none",
            max_examples_per_batch=state.rows,
            seed=state.seed,
        )
        return as_record(found)

    def gather(self, records: Sequence[Record | None]) -> tuple[Array, Curve | None]:
        """See :class:`Column`."""
        return gather_scaled(records)


@dataclass(frozen=True)
class SensitivityNColumn:
    """Correlation of random sets' attribution with the fall of the output; the model runs once for all methods."""

    tile_size: int = 8
    n_perturb_samples: int = 100
    needs_boxes: bool = False
    kinds: tuple[Kind, ...] = ("image",)

    @property
    def info(self) -> MetricInfo:
        """See :class:`Column`."""
        return MetricInfo(
            "sensitivity-n",
            f"Correlation, over {self.n_perturb_samples} random sets of n tiles of {self.tile_size} x {self.tile_size} "
            "pixels, of the attribution of a set and how much the logit falls without it; mean over log-spaced n.",
            True,
            "tiles removed (n)",
            "correlation",
        )

    def measure(self, state: ExampleState, maps: Tensor, explain: Callable[[Tensor, Tensor], Tensor]) -> Record:
        """See :class:`Column`."""
        units = make_units((state.inputs,), maps, None, self.tile_size)
        outputs = state.shared.get(self.info.name)
        if outputs is None:
            outputs = state.shared[self.info.name] = self._outputs(state, units.index, units.removable)
        found = correlate(units, outputs)
        if bool(found.per_sample.isnan().all()):
            return {"undefined": "The attribution of the sets, or the output without them, does not vary."}
        return {
            "score": plain(found.per_sample)[0],
            "x": outputs.n.tolist(),
            "correlation": plain(found.correlations),
        }

    def _outputs(self, state: ExampleState, index: tuple[Tensor, ...], removable: Tensor) -> SetOutputs:
        inputs = (state.inputs,)
        rows = Rows(state.model, inputs, None, state.target, "logit", state.rows)
        removal = Removal(rows, index, make_baselines("zero", inputs, index, False))
        sizes = log_spaced(removable.shape[1])
        return set_outputs(removal, removable, sizes, self.n_perturb_samples, None, state.seed)

    def gather(self, records: Sequence[Record | None]) -> tuple[Array, Curve | None]:
        """See :class:`Column`."""
        there = measured(records)
        common = [record for record in there if record["x"] == there[0]["x"]]
        if not there:
            return scores(records), None
        line = mean_and_error([record["correlation"] for record in common])
        return scores(records), Curve(np.array(there[0]["x"], dtype=np.float64), {"correlation": line})


@dataclass(frozen=True)
class AreaColumn:
    """Insertion or deletion, pixel by pixel."""

    kind: str
    n_steps: int = 50
    baselines: Baseline = "mean"
    needs_boxes: bool = False
    kinds: tuple[Kind, ...] = ("image",)

    @property
    def info(self) -> MetricInfo:
        """See :class:`Column`."""
        inserts = self.kind == "insertion"
        return MetricInfo(
            self.kind,
            "Area under the target's probability while the most relevant pixels are "
            + f"{'inserted into' if inserts else 'replaced by'} {named(self.baselines)}.",
            inserts,
            f"share of pixels {'inserted' if inserts else 'replaced'}",
            "probability of the target",
        )

    def measure(self, state: ExampleState, maps: Tensor, explain: Callable[[Tensor, Tensor], Tensor]) -> Record:
        """See :class:`Column`."""
        function = insertion if self.kind == "insertion" else deletion
        found = function(
            state.model,
            state.inputs,
            maps,
            self.baselines,
            target=state.target,
            n_steps=self.n_steps,
            max_examples_per_batch=state.rows,
            seed=state.seed,
        )
        return {"score": plain(found.per_sample)[0], "x": plain(found.fractions), "value": plain(found.values)}

    def gather(self, records: Sequence[Record | None]) -> tuple[Array, Curve | None]:
        """See :class:`Column`."""
        there = measured(records)
        if not there:
            return scores(records), None
        x, lines = on_one_grid(there, ("value",))
        return scores(records), Curve(x, {self.kind: mean_and_error(lines["value"])})
