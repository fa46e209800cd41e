"""The other metrics: bounding box, sufficiency, and Captum's own two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import captum.metrics
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_iba.comparison._column import ExampleState, Record, mean_and_error, measured, plain, scores
from captum_iba.comparison._types import Array, Curve, MetricInfo
from captum_iba.comparison.captum_methods import seed_of, seeded
from captum_iba.comparison.context import Logits
from captum_iba.comparison.example import Kind
from captum_iba.errors import InvalidArgumentError
from captum_iba.metrics import bounding_box_ratio, sufficiency


@dataclass(frozen=True)
class BoundingBoxColumn:
    """Share of the n most relevant pixels inside boxes of n pixels."""

    needs_boxes: bool = True
    kinds: tuple[Kind, ...] = ("image",)

    @property
    def info(self) -> MetricInfo:
        """See :class:`Column`."""
        return MetricInfo("bounding box", "Share of the n most relevant pixels that lie inside boxes of n pixels.")

    def measure(self, state: ExampleState, maps: Tensor, explain: Callable[[Tensor, Tensor], Tensor]) -> Record:
        """See :class:`Column`."""
        if state.mask is None:  # the caller asks needs_boxes first
            raise InvalidArgumentError("The example has no boxes.")
        return {"score": plain(bounding_box_ratio(maps, state.mask).per_sample)[0]}

    def gather(self, records: Sequence[Record | None]) -> tuple[Array, Curve | None]:
        """See :class:`Column`."""
        return scores(records), None


@dataclass(frozen=True)
class SufficiencyColumn:
    """The target's probability with only the most relevant area of the layer kept."""

    n_samples: int = 10
    needs_boxes: bool = False
    needs_statistics: bool = True

    @property
    def info(self) -> MetricInfo:
        """See :class:`Column`."""
        return MetricInfo(
            "sufficiency",
            "The target's probability when only the most relevant positions of the layer are kept and the others are "
            "replaced by the bottleneck's noise; mean over areas of 2 to 75 %.",
            True,
            "area kept",
            "probability of the target",
        )

    def measure(self, state: ExampleState, maps: Tensor, explain: Callable[[Tensor, Tensor], Tensor]) -> Record:
        """See :class:`Column`."""
        found = sufficiency(
            state.model,
            state.inputs,
            maps,
            state.layer,
            state.statistics,
            state.additional_forward_args,
            state.target,
            n_samples=self.n_samples,
            max_examples_per_batch=state.rows,
            seed=state.seed,
        )
        total = (found.kept + found.removed).clamp_min(1e-300)
        return {
            "score": plain(found.per_sample)[0],
            "x": plain(found.settings),
            "probability": plain(found.probability),
            "rank": plain(found.rank),
            # a share has a meaning for maps of one sign only
            "kept": plain(found.kept / total) if bool((maps >= 0).all()) else None,
        }

    def gather(self, records: Sequence[Record | None]) -> tuple[Array, Curve | None]:
        """See :class:`Column`."""
        there = measured(records)
        if not there:
            return scores(records), None
        lines = {"probability": mean_and_error([record["probability"] for record in there])}
        kept = [record["kept"] for record in there if record["kept"] is not None]
        if len(kept) == len(there):
            lines["share of the attribution kept"] = mean_and_error(kept)
        return scores(records), Curve(np.array(there[0]["x"]), lines)


@dataclass(frozen=True)
class InfidelityColumn:
    """Captum's infidelity, normalised, under Gaussian perturbations."""

    deviation: float = 0.1
    n_perturb_samples: int = 20
    needs_boxes: bool = False
    kinds: tuple[Kind, ...] = ("image",)

    @property
    def info(self) -> MetricInfo:
        """See :class:`Column`."""
        return MetricInfo(
            "infidelity",
            f"Captum's infidelity, normalised, for {self.n_perturb_samples} Gaussian perturbations of "
            f"{self.deviation} of the image's range.",
            False,
        )

    def measure(self, state: ExampleState, maps: Tensor, explain: Callable[[Tensor, Tensor], Tensor]) -> Record:
        """See :class:`Column`."""
        attributions = _input_shaped(maps, state.inputs)
        spread = self.deviation * float(state.inputs.max() - state.inputs.min())

        def perturb(x: Tensor) -> tuple[Tensor, Tensor]:
            noise = torch.randn_like(x) * spread
            return noise, x - noise

        with seeded(state.seed, state.inputs):
            value = captum.metrics.infidelity(
                Logits(state.model),
                perturb,
                state.inputs,
                attributions,
                target=state.target,
                n_perturb_samples=self.n_perturb_samples,
                max_examples_per_batch=state.rows,
                normalize=True,
            )
        return {"score": plain(value)[0]}

    def gather(self, records: Sequence[Record | None]) -> tuple[Array, Curve | None]:
        """See :class:`Column`."""
        return scores(records), None


def _input_shaped(maps: Tensor, inputs: Tensor) -> Tensor:
    """A map of the input's own shape, its sum over the channels being the map resized."""
    summed = maps.to(inputs).sum(dim=1, keepdim=True)
    if summed.shape[2:] != inputs.shape[2:]:
        summed = F.interpolate(summed, tuple(inputs.shape[2:]), mode="bilinear", align_corners=False)
    return (summed / inputs.shape[1]).expand_as(inputs).contiguous()


@dataclass(frozen=True)
class SensitivityMaxColumn:
    """Captum's sensitivity_max: how far the map moves under small changes of the input."""

    n_perturb_samples: int = 3
    needs_boxes: bool = False
    kinds: tuple[Kind, ...] = ("image",)

    @property
    def info(self) -> MetricInfo:
        """See :class:`Column`."""
        return MetricInfo(
            "sensitivity max",
            f"Captum's sensitivity_max: largest relative change of the map over {self.n_perturb_samples} changes of "
            "the input by at most 0.02 a pixel.",
            False,
        )

    def measure(self, state: ExampleState, maps: Tensor, explain: Callable[[Tensor, Tensor], Tensor]) -> Record:
        """See :class:`Column`."""

        def as_tuple(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            # one tensor for a tuple would be taken for one attribution per example
            rows = []
            for x in torch.split(inputs[0], 1):
                # the same noise for each: the input's change is to be measured, not the noise's
                with torch.enable_grad(), seeded(noise, x):
                    rows.append(explain(x, state.target).detach())
            return (torch.cat(rows).contiguous(),)

        noise = state.context.fixed_seed = seed_of(state.inputs, state.seed)
        try:
            with seeded(state.seed, state.inputs):
                value = captum.metrics.sensitivity_max(as_tuple, state.inputs, n_perturb_samples=self.n_perturb_samples)
        finally:
            state.context.fixed_seed = None
        return {"score": plain(value)[0]}

    def gather(self, records: Sequence[Record | None]) -> tuple[Array, Curve | None]:
        """See :class:`Column`."""
        return scores(records), None
