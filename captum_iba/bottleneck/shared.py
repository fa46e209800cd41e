"""Further layers behind the bottleneck's own that bear noise through the same mask (Hong et al. 2025, CoIBA).

A position's lambda then holds for a range of layers, so that no single layer has to be chosen. Whatever the further
layers add, only noise, can lower the information, so what passes the first one bounds it for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_iba.bottleneck.containers import find_features, replace_features
from captum_iba.bottleneck.information import Mask, Reference, signal_and_noise_scale
from captum_iba.bottleneck.noise import AnyNoise
from captum_iba.bottleneck.replay import Site
from captum_iba.errors import MismatchedArgumentsError


@dataclass(frozen=True)
class SharedLayer:
    """One further layer.

    Attributes:
        site (Site): the layer.
        reference (Reference): distribution of its noise, in the precision that the mask has.
        noise (Noise, BlockNoise or PlacedNoise): source of its noise.
    """

    site: Site
    reference: Reference
    noise: AnyNoise


class SharedNoise:
    """Puts noise on further layers, through the bottleneck's mask.

    Args:
        layers (Sequence[SharedLayer]): behind the bottleneck.
    """

    def __init__(self, layers: Sequence[SharedLayer]) -> None:
        self._layers = layers

    def draw(self, n_samples: int) -> list[Tensor]:
        """Noise of each layer for n_samples copies."""
        return [layer.noise.draw(n_samples) for layer in self._layers]

    @contextmanager
    def through(self, mask: Sequence[Tensor], eps: Sequence[Tensor]) -> Iterator[None]:
        """Give the layers noisy features in every pass inside; rows are copy by copy.

        Args:
            mask (Sequence[Tensor]): lambda and omega, (N, T, 1), or as long on every axis but the channels'.
            eps (Sequence[Tensor]): noise of each layer for the copies.
        """
        lam, omega = mask
        with ExitStack() as stack:
            for layer, noise in zip(self._layers, eps, strict=True):
                handle = layer.site.hook(_Exchange(layer, lam, omega, noise))
                stack.callback(handle.remove)
            yield


@dataclass(frozen=True)
class _Exchange:
    layer: SharedLayer
    lam: Tensor
    omega: Tensor
    eps: Tensor

    def __call__(self, container: Any) -> Any:
        site, copies = self.layer.site, len(self.eps)
        features = find_features(container, site.name, site.side)
        if len(features) != copies * len(self.lam):
            raise MismatchedArgumentsError(
                f"{site.name} has {len(features)} rows where the bottleneck has {copies * len(self.lam)}; wanted as "
                "many. Choose shared_layers that run on the whole batch."
            )
        wide = features.to(self.lam.dtype).reshape(copies, len(self.lam), *features.shape[1:])
        mean, deviation = signal_and_noise_scale(
            Mask(self.lam, self.omega, self.omega.log()), wide, self.layer.reference
        )
        eps = self.eps if self.eps.ndim == mean.ndim else self.eps.unsqueeze(1)
        return replace_features(container, torch.addcmul(mean, deviation, eps).to(features.dtype).flatten(0, 1))
