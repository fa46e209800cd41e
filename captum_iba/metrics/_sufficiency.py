"""One piece of a batch behind a layer of which only part is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_iba._captum import TargetType
from captum_iba.errors import InvalidArgumentError, InvalidTypeError
from captum_iba.metrics._kept import Choice, fitted
from captum_iba.metrics._maps import assert_finite_maps
from captum_iba.metrics._noisy_layer import NoisyLayer
from captum_iba.metrics._output import rows_of_target
from captum_iba.metrics._result import MetricResult
from captum_iba.metrics._rows import rows_of_arguments

_NATS_PER_BIT = 0.6931471805599453


@dataclass(frozen=True)
class SufficiencyResult(MetricResult):
    """The decision with only part of a layer kept.

    Attributes:
        per_sample (Tensor): (N,), mean over the settings of the target's probability. Higher is better.
        settings (Tensor): (A,), areas or thresholds.
        area (Tensor): (N, A), share of the positions that were kept.
        probability (Tensor): (N, A), the target's probability (or what ``output`` says), mean over the noise.
        noise_error (Tensor): (N, A), its standard error over the noise.
        rank (Tensor): (N, A), the target's rank among the classes, mean over the noise; NaN without classes.
        top1 (Tensor): (N, A), share of the draws in which the target is the highest class.
        kept, removed (Tensor): (N, A), attribution of the kept (removed) positions: bits for a map of bits.
        intact (Tensor): (N,), the target's probability by the model as it is.
        intact_rank (Tensor): (N,), its rank.
        noise (Tensor): (N,), its probability with the whole layer replaced by noise.
        bottleneck (Tensor): (N,), its probability with nothing removed: the model's own, or through ``mask``.
        through_mask (bool): a ``mask`` was passed, for all examples.
        like_bits (bool): the maps could be bits of the layer: of its own size, and nowhere negative.
    """

    settings: Tensor
    area: Tensor
    probability: Tensor
    noise_error: Tensor
    rank: Tensor
    top1: Tensor
    kept: Tensor
    removed: Tensor
    intact: Tensor
    intact_rank: Tensor
    noise: Tensor
    bottleneck: Tensor
    through_mask: bool
    like_bits: bool

    @property
    def x(self) -> Tensor:
        """(A,), areas or thresholds."""
        return self.settings

    @property
    def curve(self) -> Tensor:
        """(A,), mean probability over the examples."""
        return self.probability.mean(dim=0)

    @property
    def bound(self) -> Tensor:
        """(N, A), most that the removed bits can change an expected probability, for maps and masks of LayerIBA.

        ``min(sqrt(D / 2), sqrt(1 - exp(-D)))`` for D nats: Pinsker's inequality, and that of Bretagnolle and Huber. It
        compares with :attr:`bottleneck`, so ``mask`` must have been passed.

        Raises:
            InvalidArgumentError: without a ``mask``, or for maps that cannot be bits.
        """
        if not self.through_mask:
            raise InvalidArgumentError(
                "The bound is on what changes behind the bottleneck, and no mask was passed. Pass sufficiency(..., "
                "mask=diagnostics.mask), of LayerIBA.attribute(..., return_diagnostics=True), with the bits."
            )
        if not self.like_bits:
            raise InvalidArgumentError(
                "The bound is on what the removed bits can change, and the maps are negative somewhere or not of the "
                "layer's size. Pass the bits that LayerIBA.attribute returned, unchanged, as attributions."
            )
        nats = self.removed.clamp_min(0) * _NATS_PER_BIT  # the rest of a sum may round to less than nothing
        return torch.minimum((nats / 2).sqrt(), (-torch.expm1(-nats)).sqrt())


@dataclass(frozen=True)
class Batch:
    """What belongs to the examples: all of them, or some."""

    inputs: tuple[Tensor, ...]
    additional: tuple[Any, ...] | None
    target: TargetType
    attributions: Tensor
    mask: Tensor | None
    choice: Choice

    def part(self, rows: Tensor, n_examples: int) -> Batch:
        """These examples of all."""
        return Batch(
            tuple(x[rows] for x in self.inputs),
            rows_of_arguments(self.additional, rows, n_examples),
            rows_of_target(self.target, rows),
            self.attributions[rows.to(self.attributions.device)],
            None if self.mask is None else self.mask[rows.to(self.mask.device)],
            self.choice.of(rows),
        )


def assert_map(attributions: Tensor, n_examples: int) -> None:
    """Refuse what holds no finite map for each example.

    Raises:
        InvalidTypeError, InvalidArgumentError, NonFiniteError: see there.
    """
    if not isinstance(attributions, Tensor):
        raise InvalidTypeError(f"attributions is a {type(attributions).__name__}; wanted a tensor.")
    if attributions.ndim < 2 or len(attributions) != n_examples:
        raise InvalidArgumentError(
            f"attributions of shape {list(attributions.shape)} do not fit {n_examples} examples; wanted one map each."
        )
    assert_finite_maps(attributions)


def assert_mask(mask: Tensor | None, n_examples: int) -> None:
    """Refuse what holds no mask for each example.

    Raises:
        InvalidArgumentError: something else than a tensor, or for another number of examples.
    """
    if mask is not None and (not isinstance(mask, Tensor) or mask.ndim == 0 or len(mask) != n_examples):
        found = f"has shape {list(mask.shape)}" if isinstance(mask, Tensor) else f"is a {type(mask).__name__}"
        raise InvalidArgumentError(f"mask {found}; wanted diagnostics.mask of the same {n_examples} examples.")


def _signal(mask: Tensor | None, noisy: NoisyLayer) -> Tensor:
    """Share of signal at kept positions, broadcastable to the features."""
    if mask is None:
        return torch.ones((), dtype=noisy.features.dtype, device=noisy.features.device)
    if mask.shape != noisy.features.shape:
        raise InvalidArgumentError(
            f"mask has shape {list(mask.shape[1:])} for an example; wanted the features' "
            f"{list(noisy.features.shape[1:])}: diagnostics.mask of the same examples."
        )
    # a bottleneck lets nothing of an inactive feature pass, and counts no bits for it
    return torch.where(noisy.active, mask.to(noisy.features), 0.0)


def measured(
    part: Batch, noisy: NoisyLayer, n_samples: int, seed: int, rows: int, advance: Callable[[int], object]
) -> SufficiencyResult:
    """The result for some of the examples; ``noisy`` holds their features, the others are as for its ``run``."""
    maps, is_own_size = fitted(part.attributions, noisy, exact=part.choice.areas is None)
    kept, signal = part.choice.kept(maps), _signal(part.mask, noisy)
    everything, nothing = torch.ones_like(kept[:1]), torch.zeros_like(kept[:1])
    all_kept = torch.cat([kept, nothing, everything])
    found = noisy.run(noisy.as_features(all_kept).to(signal.dtype) * signal, n_samples, seed, rows, advance)
    mean = found.value.mean(dim=1)
    error = found.value.std(dim=1) / n_samples**0.5 if n_samples > 1 else torch.full_like(mean, float("nan"))
    rank = found.rank.mean(dim=1)
    top1 = torch.where(found.rank.isnan(), found.rank, (found.rank == 1).double()).mean(dim=1)
    positions = tuple(range(2, kept.ndim))
    kept_bits = (maps * kept).sum(dim=positions)
    n_settings = len(kept)
    return SufficiencyResult(
        per_sample=mean[:n_settings].mean(dim=0),
        settings=part.choice.settings,
        area=kept.double().mean(dim=positions).T,
        probability=mean[:n_settings].T,
        noise_error=error[:n_settings].T,
        rank=rank[:n_settings].T,
        top1=top1[:n_settings].T,
        kept=kept_bits.T,
        removed=(maps.flatten(1).sum(dim=1) - kept_bits).T,
        intact=noisy.intact.value,
        intact_rank=noisy.intact.rank,
        noise=mean[n_settings],
        bottleneck=mean[n_settings + 1],
        through_mask=part.mask is not None,
        like_bits=is_own_size and bool((maps >= 0).all()),
    )


def joined(results: Sequence[SufficiencyResult]) -> SufficiencyResult:
    """Results of several pieces or batches as one."""
    apart = ("settings", "through_mask", "like_bits")
    names = [name for name in SufficiencyResult.__dataclass_fields__ if name not in apart]
    return SufficiencyResult(
        settings=results[0].settings,
        through_mask=all(result.through_mask for result in results),
        like_bits=all(result.like_bits for result in results),
        **{name: torch.cat([getattr(result, name) for result in results]) for name in names},
    )
