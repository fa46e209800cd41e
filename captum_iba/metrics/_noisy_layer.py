"""A model with part of a layer's features replaced by the bottleneck's noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_iba._captum import TargetType
from captum_iba._warn import Warner
from captum_iba.attr._channels import resolve_channel_dim
from captum_iba.attr._forward import Forward
from captum_iba.attr._model import evaluation_mode, exclusive, locate, reachable, unwrap_parallel
from captum_iba.attr._objective import output_tensor
from captum_iba.bottleneck.information import Reference
from captum_iba.bottleneck.noise import Noise
from captum_iba.bottleneck.optimization import work_dtype
from captum_iba.bottleneck.statistics import FeatureStatistics
from captum_iba.bottleneck.tail import Tail
from captum_iba.metrics._output import Output, OutputType, Row
from captum_iba.metrics._units import Tensors


@dataclass(frozen=True)
class NoisyLayer:
    """The features of a batch, and the model from there on.

    Attributes:
        features (Tensor): (N, ...).
        channel_dim (int): axis of the channels; all others behind the batch are positions.
        intact (Row): values of the model as it is.
    """

    features: Tensor
    channel_dim: int
    intact: Row
    _tail: Tail
    _reference: Reference
    _read: Output

    @property
    def active(self) -> Tensor:
        """Features that vary over the data, bool, broadcastable to the features."""
        return self._reference.active

    @property
    def positions(self) -> tuple[int, ...]:
        """Sizes of the axes of positions; the features themselves for vectors."""
        axes = [axis for axis in range(1, self.features.ndim) if axis != self.channel_dim]
        return tuple(self.features.shape[axis] for axis in axes) or tuple(self.features.shape[1:])

    def as_features(self, positions: Tensor) -> Tensor:
        """Values per position (..., *positions) with an axis for the channels, to broadcast against the features."""
        if self.features.ndim == 2:
            return positions
        return positions.unsqueeze(self.channel_dim - self.features.ndim)

    def run(self, signal: Tensor, n_samples: int, seed: int, rows: int, advance: Callable[[int], object]) -> Row:
        """Values of the model behind a partly open layer, for fresh draws of the noise.

        Args:
            signal (Tensor): (A, N, ...), broadcastable to the features behind A: the share of signal, from 0, noise
                alone, to 1, the features as they are.
            n_samples (int): draws of the noise, the same for all examples and settings.
            seed (int): of the noise.
            rows (int): most rows in one forward pass, where that is not less than the examples.
            advance (Callable): called with the number of rows that were run.

        Returns:
            Row: each (A, n_samples, N).
        """
        wide = self.features.to(work_dtype(self.features))
        is_tokens = wide.ndim == 3 and self.channel_dim == 2
        eps = Noise(tuple(wide.shape[1:]), wide, seed, is_tokens).draw(n_samples)
        # inactive features keep their mean wherever anything is taken from them
        noise = torch.where(
            self._reference.active,
            self._reference.mean + self._reference.scale * eps.unsqueeze(1),
            self._reference.mean,
        )
        jobs = [(a, k) for a in range(len(signal)) for k in range(n_samples)]
        n, copies = len(wide), max(1, rows // len(wide))
        found = []
        for start in range(0, len(jobs), copies):
            part = jobs[start : start + copies]
            z = torch.cat([signal[a] * wide + (1 - signal[a]) * noise[k] for a, k in part]).to(self.features.dtype)
            with torch.no_grad(), self._tail.run(z, len(part)) as output:
                found.append(self._read(output, torch.arange(n, device=wide.device).repeat(len(part))))
            advance(n * len(part))
        shape = (len(signal), n_samples, n)
        value, best, rank = (torch.cat([getattr(f, x) for f in found]).view(shape) for x in ("value", "best", "rank"))
        return Row(value, best, rank)


@contextmanager
def noisy_layer(
    forward_func: Callable[..., Any],
    layer: nn.Module,
    statistics: FeatureStatistics,
    inputs: Tensors,
    additional_forward_args: object | None,
    target: TargetType,
    output: OutputType,
    attribute_to_layer_input: bool,
    warner: Warner,
) -> Iterator[NoisyLayer]:
    """Record a batch up to the layer; arguments are those of :func:`sufficiency`.

    The model runs with as many rows as there are examples, and with twice as many to see whether it can be replayed.
    """
    forward_func = unwrap_parallel(forward_func, None)
    site, modules = locate(forward_func, layer, attribute_to_layer_input)
    to_switch = reachable(modules, site.layer)
    forward = Forward(forward_func, inputs, additional_forward_args)
    with exclusive(to_switch), evaluation_mode(to_switch, warner), torch.autocast(forward.device_type, enabled=False):
        tail = Tail(site, forward, modules, output_tensor, warner)
        features = tail.features
        read = Output(output, target, len(features), warner)
        yield NoisyLayer(
            features,
            resolve_channel_dim(features, None, statistics.channel_dim, layer, tail.modules_before, site.name),
            read(tail.output, torch.arange(len(features), device=features.device)),
            tail,
            statistics.reference(features.to(work_dtype(features)), site.name),
            read,
        )
