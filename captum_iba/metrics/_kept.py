"""Which positions of a layer an attribution keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_iba.errors import InvalidArgumentError
from captum_iba.metrics._maps import resized
from captum_iba.metrics._noisy_layer import NoisyLayer
from captum_iba.metrics._result import as_seed


@dataclass(frozen=True)
class Choice:
    """What to keep: the highest positions of an area, or all from a threshold on.

    Attributes:
        settings (Tensor): (A,), areas or thresholds, as the result names them.
        areas (Tensor or None): (A,), or (N, A) for each example; None for thresholds.
        seed (int): of the order of positions of equal attribution.
    """

    settings: Tensor
    areas: Tensor | None
    seed: int

    def of(self, rows: Tensor) -> Choice:
        """The choice for some of the examples."""
        if self.areas is None or self.areas.ndim == 1:
            return self
        return dataclasses.replace(self, areas=self.areas[rows.to(self.areas.device)])

    def kept(self, maps: Tensor) -> Tensor:
        """Which positions of the maps stay, bool (A, N, *positions)."""
        if self.areas is None:
            return torch.stack([maps >= threshold for threshold in self.settings.tolist()])
        per_example = self.areas if self.areas.ndim == 2 else self.areas.expand(len(maps), -1)
        flat = maps.flatten(1)
        generator = torch.Generator("cpu").manual_seed(as_seed(self.seed))
        shuffled = torch.randperm(flat.shape[1], generator=generator, device="cpu").to(maps.device)
        places = shuffled[(-flat)[:, shuffled].argsort(dim=1, stable=True)].argsort(dim=1)
        counts = (per_example * flat.shape[1]).round().to(maps.device)
        return torch.stack([places < counts[:, a, None] for a in range(per_example.shape[1])]).view(-1, *maps.shape)


def make_choice(areas: Sequence[float] | Tensor, thresholds: Sequence[float] | None, like: Tensor, seed: int) -> Choice:
    """Check the arguments of :func:`sufficiency`; ``like`` (N, ...) gives the number of examples and the device.

    Raises:
        InvalidArgumentError: other shapes, no number at all, or areas that are no shares.
    """
    if thresholds is not None:
        settings = _numbers(thresholds, "thresholds", like)
        if settings.ndim != 1 or len(settings) == 0:
            raise InvalidArgumentError(f"thresholds={thresholds!r}; wanted a sequence of bits, at least one.")
        return Choice(settings, None, seed)
    shares = _numbers(areas, "areas", like)
    fits = shares.ndim == 1 or (shares.ndim == 2 and len(shares) == len(like))
    if not fits or shares.numel() == 0 or not bool(((shares >= 0) & (shares <= 1)).all()):
        raise InvalidArgumentError(
            f"areas of shape {list(shares.shape)}; wanted shares from 0 to 1, (A,) or ({len(like)}, A)."
        )
    return Choice(shares if shares.ndim == 1 else shares.mean(dim=0), shares, seed)


def fitted(attributions: Tensor, noisy: NoisyLayer, exact: bool) -> tuple[Tensor, bool]:
    """The map with one value a position of the layer, (N, *positions), and whether it came in that size.

    Raises:
        InvalidArgumentError: a shape that does not fit, or with ``exact`` another size.
    """
    values = attributions.detach().to(noisy.features.device).double()
    positions, features = noisy.positions, noisy.features
    n_axes = len(positions)
    if features.ndim > 2 and values.ndim == n_axes + 2:  # with an axis for channels: the layer's, or else the first
        own = values.shape[noisy.channel_dim]
        is_own = own == 1 or (own == features.shape[noisy.channel_dim] and values.shape[1] > 1)
        values = values.sum(dim=noisy.channel_dim if is_own else 1)
    is_own_size = tuple(values.shape[1:]) == positions
    if n_axes in (2, 3) and values.ndim == n_axes + 1 and not exact and not is_own_size:
        values = resized(values.unsqueeze(1), positions, average=True).squeeze(1)
    if tuple(values.shape) != (len(features), *positions):
        raise InvalidArgumentError(
            f"attributions of shape {list(attributions.shape)} do not fit the layer's positions {list(positions)}; "
            "wanted one map an example"
            + (", of the layer's own size, as thresholds are bits per position." if exact else ".")
        )
    return values, is_own_size


def _numbers(values: Any, name: str, like: Tensor) -> Tensor:
    try:
        return torch.as_tensor(values, dtype=torch.float64, device=like.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgumentError(f"{name}={values!r}; wanted a sequence of numbers.") from error
