"""Whether what an attribution keeps is enough: everything else at the layer is replaced by noise."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_iba._captum import TargetType
from captum_iba.bottleneck.statistics import FeatureStatistics
from captum_iba.errors import InvalidArgumentError, InvalidTypeError, NonFiniteError
from captum_iba.metrics._accumulate import Accumulator
from captum_iba.metrics._noisy_layer import NoisyLayer, noisy_layer
from captum_iba.metrics._output import OutputType
from captum_iba.metrics._result import MetricResult, as_seed
from captum_iba.metrics._units import Tensors

AREAS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75)
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
        """
        nats = self.removed * _NATS_PER_BIT
        return torch.minimum((nats / 2).sqrt(), (-torch.expm1(-nats)).sqrt())


def sufficiency(
    forward_func: Callable[..., Any],
    inputs: Tensors,
    attributions: Tensor,
    layer: nn.Module,
    statistics: FeatureStatistics,
    additional_forward_args: object | None = None,
    target: TargetType = None,
    *,
    areas: Sequence[float] | Tensor = AREAS,
    thresholds: Sequence[float] | None = None,
    mask: Tensor | None = None,
    n_samples: int = 10,
    output: OutputType = "prob",
    attribute_to_layer_input: bool = False,
    max_examples_per_batch: int | None = None,
    seed: int = 0,
) -> SufficiencyResult:
    """Keep a layer's most relevant positions, replace the others by the bottleneck's noise, and look at the decision.

    Any method's map can be tested so: it is resized to the layer's positions, and the same area is kept for all.

    Args:
        forward_func (Callable): the model; returns logits (N, classes).
        inputs (Tensor or tuple[Tensor, ...]): as for :meth:`LayerIBA.attribute`.
        attributions (Tensor): one map an example, of any size for maps: (N, 1, h, w), (N, C, h, w), summed over the
            channels, or (N, h, w); (N, T), (N, T, 1) or (N, T, D) for tokens; (N, F) for layers of F units. Larger maps
            are averaged over areas, smaller ones interpolated bilinearly.
        layer (torch.nn.Module): where the noise replaces the features.
        statistics (FeatureStatistics): of the layer: ``iba.statistics``.
        additional_forward_args (Any, optional): as in Captum. Default: None.
        target (int, tuple, Tensor or list, optional): as in Captum. Default: None.
        areas (Sequence[float] or Tensor, optional): shares of the positions to keep, (A,), or (N, A) for each example,
            such as the ``area`` of another method's result. Positions of equal attribution come in random order.
            Default: 2 % to 75 %.
        thresholds (Sequence[float], optional): instead of areas: keep the positions with at least so many bits; the
            map must be of the layer's own size. Default: None.
        mask (Tensor, optional): the bottleneck's share of signal, ``diagnostics.mask`` of :meth:`LayerIBA.attribute`:
            kept positions then pass what the bottleneck passes rather than everything, which is what :attr:`bound`
            speaks of. Default: None.
        n_samples (int, optional): draws of the noise, the same for all maps. Default: 10.
        output (str or Callable, optional): see :func:`degradation`. Default: ``"prob"``.
        attribute_to_layer_input (bool, optional): at the layer's input. Default: False.
        max_examples_per_batch (int, optional): most rows in one forward pass. Default: None, see :func:`degradation`.
        seed (int, optional): of the noise, and of the order of equal attributions. Default: 0.

    Returns:
        SufficiencyResult: probabilities, ranks, and what was kept.

    Raises:
        InvalidArgumentError: an argument out of range, or shapes that do not fit.
        NonFiniteError: NaN or infinity in the map or the output.
        StatisticsError: the statistics are of another layer.
        CaptumIBAError: as :meth:`LayerIBA.attribute`.

    Reference:
        Schulz et al. 2020, section 3: what is below the threshold may be replaced by noise.

    Examples::

        >>> from captum_iba import LayerIBA
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 3)).eval()
        >>> x = torch.randn(1000, 1, 8, 8)
        >>> iba = LayerIBA(model, model[0]).estimate(x)
        >>> bits = iba.attribute(x[:2], target=1)
        >>> result = sufficiency(model, x[:2], bits, model[0], iba.statistics, target=1, areas=[0.25, 1.0])
        >>> result.area.tolist(), torch.allclose(result.probability[:, 1], result.intact)
        ([[0.25, 1.0], [0.25, 1.0]], True)
    """
    if not isinstance(statistics, FeatureStatistics):
        raise InvalidTypeError(
            f"statistics is a {type(statistics).__name__}; wanted the layer's FeatureStatistics, as in iba.statistics "
            "after iba.estimate(data)."
        )
    as_seed(seed)
    if type(n_samples) is not int or n_samples < 1:
        raise InvalidArgumentError(f"n_samples={n_samples!r}; wanted an integer of at least 1.")
    with noisy_layer(
        forward_func,
        layer,
        statistics,
        inputs,
        additional_forward_args,
        target,
        output,
        attribute_to_layer_input,
        max_examples_per_batch,
    ) as noisy:
        maps = _fitted(attributions, noisy, exact=thresholds is not None)
        open_positions, settings = _kept(maps, areas, thresholds, seed)
        return _measure(noisy, maps, open_positions, settings, _signal(mask, noisy), n_samples, seed)


def _fitted(attributions: Tensor, noisy: NoisyLayer, exact: bool) -> Tensor:
    """The map with one value a position of the layer, (N, *positions)."""
    if not isinstance(attributions, Tensor):
        raise InvalidTypeError(f"attributions is a {type(attributions).__name__}; wanted a tensor.")
    values = attributions.detach().to(noisy.features.device).double()
    if not torch.isfinite(values).all():
        raise NonFiniteError("attributions contain NaN or infinity. Look at the method that made them.")
    positions, features = noisy.positions, noisy.features
    n_axes = len(positions)
    if features.ndim > 2 and values.ndim == n_axes + 2:  # with an axis for channels: the layer's, or else the first
        own = values.shape[noisy.channel_dim]
        is_own = own == 1 or (own == features.shape[noisy.channel_dim] and values.shape[1] > 1)
        values = values.sum(dim=noisy.channel_dim if is_own else 1)
    resizable = n_axes in (2, 3) and values.ndim == n_axes + 1 and not exact
    if len(values) == len(features) and resizable and tuple(values.shape[1:]) != positions:
        modes = {2: "bilinear", 3: "trilinear"}
        smaller = tuple(min(have, want) for have, want in zip(values.shape[1:], positions, strict=True))
        values = F.interpolate(values.unsqueeze(1), smaller, mode="area")
        values = F.interpolate(values, positions, mode=modes[n_axes], align_corners=False).squeeze(1)
    if tuple(values.shape) != (len(features), *positions):
        raise InvalidArgumentError(
            f"attributions of shape {list(attributions.shape)} do not fit the layer's positions {list(positions)} for "
            f"{len(features)} examples; wanted one map an example"
            + (", of the layer's own size, as thresholds are bits per position." if exact else ".")
        )
    return values


def _kept(
    maps: Tensor, areas: Sequence[float] | Tensor, thresholds: Sequence[float] | None, seed: int
) -> tuple[Tensor, Tensor]:
    """Which positions stay, bool (A, N, *positions), and the settings, (A,)."""
    if thresholds is not None:
        settings = _numbers(thresholds, "thresholds")
        if settings.ndim != 1 or len(settings) == 0:
            raise InvalidArgumentError(f"thresholds={thresholds!r}; wanted a sequence of bits, at least one.")
        return torch.stack([maps >= threshold for threshold in settings.tolist()]), settings
    shares = _numbers(areas, "areas").to(maps.device)
    fits = shares.ndim == 1 or (shares.ndim == 2 and len(shares) == len(maps))
    if not fits or shares.numel() == 0 or not bool(((shares >= 0) & (shares <= 1)).all()):
        raise InvalidArgumentError(
            f"areas of shape {list(shares.shape)}; wanted shares from 0 to 1, (A,) or ({len(maps)}, A)."
        )
    per_example = shares if shares.ndim == 2 else shares.expand(len(maps), -1)
    flat = maps.flatten(1)
    generator = torch.Generator("cpu").manual_seed(as_seed(seed))
    shuffled = torch.randperm(flat.shape[1], generator=generator).to(maps.device)
    places = shuffled[(-flat)[:, shuffled].argsort(dim=1, stable=True)].argsort(dim=1)
    counts = (per_example * flat.shape[1]).round()
    kept = torch.stack([places < counts[:, a, None] for a in range(per_example.shape[1])])
    return kept.view(-1, *maps.shape), shares if shares.ndim == 1 else shares.mean(dim=0)


def _numbers(values: Any, name: str) -> Tensor:
    try:
        return torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgumentError(f"{name}={values!r}; wanted a sequence of numbers.") from error


def _signal(mask: Tensor | None, noisy: NoisyLayer) -> Tensor:
    """Share of signal at kept positions, broadcastable to the features."""
    if mask is None:
        return torch.ones((), dtype=noisy.features.dtype, device=noisy.features.device)
    if not isinstance(mask, Tensor) or mask.shape != noisy.features.shape:
        found = f"has shape {list(mask.shape)}" if isinstance(mask, Tensor) else f"is a {type(mask).__name__}"
        raise InvalidArgumentError(
            f"mask {found}; wanted the features' {list(noisy.features.shape)}: diagnostics.mask of the same examples."
        )
    # a bottleneck lets nothing of an inactive feature pass, and counts no bits for it
    return torch.where(noisy.active, mask.to(noisy.features), 0.0)


def _measure(
    noisy: NoisyLayer, maps: Tensor, kept: Tensor, settings: Tensor, signal: Tensor, n_samples: int, seed: int
) -> SufficiencyResult:
    everything, nothing = torch.ones_like(kept[:1]), torch.zeros_like(kept[:1])
    all_kept = torch.cat([kept, nothing, everything])
    found = noisy.run(noisy.as_features(all_kept).to(signal.dtype) * signal, n_samples, seed)
    mean = found.value.mean(dim=1)
    error = found.value.std(dim=1) / n_samples**0.5 if n_samples > 1 else torch.full_like(mean, float("nan"))
    rank = found.rank.mean(dim=1)
    top1 = torch.where(found.rank.isnan(), found.rank, (found.rank == 1).double()).mean(dim=1)
    positions = tuple(range(2, kept.ndim))
    kept_bits = (maps * kept).sum(dim=positions)
    n_settings = len(kept)
    return SufficiencyResult(
        per_sample=mean[:n_settings].mean(dim=0),
        settings=settings,
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
    )


class Sufficiency(Accumulator[SufficiencyResult]):
    """:func:`sufficiency` over batches.

    Args:
        forward_func (Callable): the model.
        layer (torch.nn.Module): as for :func:`sufficiency`.
        statistics (FeatureStatistics): as for :func:`sufficiency`.
        **options (Any): the keyword-only arguments of :func:`sufficiency`, but for ``mask``.

    Raises:
        TypeError: an option that the function does not have.

    Examples::

        >>> from captum_iba import LayerIBA
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 64, 3)).eval()
        >>> x = torch.randn(1000, 1, 8, 8)
        >>> metric = Sufficiency(model, model[0], LayerIBA(model, model[0]).estimate(x).statistics)
        >>> for batch in x[:3].split(2):
        ...     _ = metric.evaluate(batch, batch.abs(), target=0)
        >>> metric.summary().probability.shape
        torch.Size([3, 7])
    """

    name = "sufficiency"
    higher_is_better = True

    def __init__(
        self, forward_func: Callable[..., Any], layer: nn.Module, statistics: FeatureStatistics, **options: Any
    ) -> None:
        super().__init__()
        inspect.signature(sufficiency).bind(forward_func, None, None, layer, statistics, **options)
        self.forward_func, self.layer, self.statistics, self._options = forward_func, layer, statistics, options

    def evaluate(
        self,
        inputs: Tensors,
        attributions: Tensor,
        additional_forward_args: object | None = None,
        target: TargetType = None,
        mask: Tensor | None = None,
    ) -> SufficiencyResult:
        """:func:`sufficiency` of a batch; :meth:`summary` will include it."""
        return self._add(
            sufficiency(
                self.forward_func,
                inputs,
                attributions,
                self.layer,
                self.statistics,
                additional_forward_args,
                target,
                mask=mask,
                **self._options,
            )
        )

    def summary(self) -> SufficiencyResult:
        """All examples since the start or the last :meth:`reset`.

        Raises:
            InvalidArgumentError: nothing was evaluated.
        """
        results = self._all()
        names = [name for name in SufficiencyResult.__dataclass_fields__ if name != "settings"]
        joined = {name: torch.cat([getattr(result, name) for result in results]) for name in names}
        return SufficiencyResult(settings=results[0].settings, **joined)
