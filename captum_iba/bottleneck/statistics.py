"""Mean and standard deviation of a layer's features over a data set: the noise that the bottleneck adds."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from captum_iba._files import write_atomically
from captum_iba.bottleneck.information import Reference, floor_scale
from captum_iba.errors import MissingFileError, StatisticsError, StatisticsFileError

FORMAT = "captum_iba.statistics"
VERSION = 1

Kind = Literal["feature", "channel"]


@dataclass(frozen=True)
class FeatureStatistics:
    """Streaming mean and variance of a layer's features, exact under merging (Chan et al. 1979).

    Attributes:
        mean (Tensor): float64. Shape of one example's features for ``kind="feature"``; 1 on all axes but the channel
            axis for ``kind="channel"``.
        m2 (Tensor): sum of squared deviations from the mean, of the mean's shape.
        count (int): values behind each mean.
        n_samples (int): examples seen.
        shape (tuple[int | None, ...]): shape of one example's features; None where it varied between examples.
        kind (str): ``"feature"``, an own mean for every element (the paper's), or ``"channel"``, pooled over
            positions.
        channel_dim (int): axis of the channels, counted with the batch axis.

    Examples::

        >>> features = torch.randn(100, 3, 4, 4)
        >>> whole = FeatureStatistics.from_features(features, channel_dim=1)
        >>> left, right = (FeatureStatistics.from_features(half, channel_dim=1) for half in features.chunk(2))
        >>> torch.allclose(left.merge(right).std, whole.std)
        True
    """

    mean: Tensor = field(repr=False)
    m2: Tensor = field(repr=False)
    count: int
    n_samples: int
    shape: tuple[int | None, ...]
    kind: Kind
    channel_dim: int

    @classmethod
    def from_features(
        cls, features: Tensor, channel_dim: int, kind: Kind = "feature", real: Tensor | None = None
    ) -> FeatureStatistics:
        """Statistics of one batch.

        Args:
            features (Tensor): (N, ...), N >= 1.
            channel_dim (int): axis of the channels, 1 or larger.
            kind (str, optional): ``"feature"`` or ``"channel"``. Default: ``"feature"``.
            real (Tensor, optional): bool, 1 on the channel axis and else of the features' shape; False on positions
                to leave out, such as padding, which only statistics per channel can. Default: None, all.

        Returns:
            FeatureStatistics: of this batch alone.

        Raises:
            StatisticsError: NaN or infinity among the features, or positions left out of statistics per feature.
        """
        if real is not None and kind == "feature":
            raise StatisticsError(
                "Positions are left out of some examples, so a mean of each feature would come from different "
                "examples at each position. Use per='channel'."
            )
        # float64 where the device has it: the merge below loses digits otherwise
        wide = features.detach().to(torch.float32 if features.device.type == "mps" else torch.float64)
        if not torch.isfinite(wide).all():
            raise StatisticsError(
                "The layer's features contain NaN or infinity, so their mean and deviation are undefined. "
                "Check the calibration data and the model with torch.isfinite."
            )
        axes = [0] if kind == "feature" else [a for a in range(wide.ndim) if a != channel_dim]
        if real is None:
            mean = wide.mean(dim=axes, keepdim=True)
            m2 = (wide - mean).square().sum(dim=axes, keepdim=True)
            count = math.prod(wide.shape[axis] for axis in axes)
        else:
            count = int(real.sum())
            mean = wide.where(real, 0.0).sum(dim=axes, keepdim=True) / count
            m2 = (wide - mean).square().where(real, 0.0).sum(dim=axes, keepdim=True)
        return cls(mean[0], m2[0], count, wide.shape[0], tuple(wide.shape[1:]), kind, channel_dim)

    @property
    def std(self) -> Tensor:
        """Unbiased standard deviation, without any floor; float64.

        Raises:
            StatisticsError: fewer than two examples.
        """
        if self.n_samples < 2:
            raise StatisticsError(
                f"Feature statistics need at least 2 examples, found n_samples={self.n_samples}. "
                "Call estimate(data) with more data; a thousand examples are a good start."
            )
        return (self.m2 / (self.count - 1)).sqrt()

    @property
    def active(self) -> Tensor:
        """Bool: features that vary. The others carry no information, and the bottleneck sets them to their mean."""
        return floor_scale(self.mean, self.std)[1]

    def pool(self) -> FeatureStatistics:
        """Per-channel statistics from per-feature ones: the exact merge over positions."""
        if self.kind == "channel":
            return self
        axes = [axis for axis in range(self.mean.ndim) if axis != self.channel_dim - 1]
        mean = self.mean.mean(dim=axes, keepdim=True) if axes else self.mean
        spread = self.count * (self.mean - mean).square() + self.m2
        m2 = spread.sum(dim=axes, keepdim=True) if axes else spread
        count = self.count * math.prod(self.mean.shape[axis] for axis in axes)
        return FeatureStatistics(mean, m2, count, self.n_samples, self.shape, "channel", self.channel_dim)

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Statistics of both data sets together.

        Args:
            other (FeatureStatistics): of the same layer. If the kinds differ, the result is per channel.

        Returns:
            FeatureStatistics: as if all examples had been seen at once.

        Raises:
            StatisticsError: the two belong to layers of different shape.
        """
        if self.kind != other.kind:
            return self.pool().merge(other.pool())
        if self.channel_dim != other.channel_dim or self.mean.shape != other.mean.shape:
            raise StatisticsError(
                f"Cannot merge statistics of features {list(self.shape)} (channel axis {self.channel_dim}) with those "
                f"of features {list(other.shape)} (channel axis {other.channel_dim}). "
                "Use per='channel' for inputs of varying size."
            )
        count = self.count + other.count
        delta = other.mean.to(self.mean) - self.mean
        mean = self.mean + delta * (other.count / count)
        m2 = self.m2 + other.m2.to(self.m2) + delta.square() * (self.count * other.count / count)
        shape = tuple(a if a == b else None for a, b in zip(self.shape, other.shape, strict=True))
        n_samples = self.n_samples + other.n_samples
        return FeatureStatistics(mean, m2, count, n_samples, shape, self.kind, self.channel_dim)

    def reference(self, features: Tensor, layer_name: str = "the layer") -> Reference:
        """The noise distribution for these features, on their device and in their dtype.

        Args:
            features (Tensor): (N, ...), of the shape the statistics were made from; per-channel statistics fit any
                number of positions.
            layer_name (str, optional): for messages. Default: ``"the layer"``.

        Returns:
            Reference: mean, floored deviation and active features.

        Raises:
            StatisticsError: the shapes do not fit, or no feature varies.
        """
        if not self._fits(features.shape[1:]):
            raise StatisticsError(
                f"The statistics are for features of shape {_show(self.shape)} ({self.kind} statistics), but "
                f"{layer_name} gives {_show(features.shape[1:])}. They are of another layer, model or input size: call "
                "estimate on this one, with per='channel' for inputs of varying size."
            )
        scale, active = floor_scale(self.mean, self.std)
        if not active.any():
            raise StatisticsError(
                f"No feature of {layer_name} varies over the {self.n_samples} calibration examples. "
                "Check that the calibration data differ, and choose a layer whose output depends on the input."
            )
        mean, scale, active = self.mean.to(features), scale.to(features), active.to(features.device)
        return Reference(mean[None], scale[None], active[None])

    def _fits(self, shape: torch.Size) -> bool:
        if self.kind == "feature":
            return self.mean.shape == shape
        channels = self.channel_dim - 1
        return len(shape) == len(self.shape) and shape[channels] == self.mean.shape[channels]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, atomically.

        Args:
            path (str or PathLike): target; an existing file is replaced only once the new one is complete.
        """
        write_atomically(Path(path), save(self.tensors, self.metadata))

    @property
    def metadata(self) -> dict[str, str]:
        """Everything but the tensors, as text."""
        return {
            "format": FORMAT,
            "version": str(VERSION),
            "kind": self.kind,
            "shape": json.dumps(self.shape),
            "channel_dim": str(self.channel_dim),
            "count": str(self.count),
            "n_samples": str(self.n_samples),
        }

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors, on the CPU."""
        return {"mean": self.mean.contiguous().cpu(), "m2": self.m2.contiguous().cpu()}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FeatureStatistics:
        """Read a file written by :meth:`save`.

        Raises:
            MissingFileError: no such file.
            StatisticsFileError: the file is truncated, of another kind or of a newer version.
        """
        path = Path(path)
        if not path.is_file():
            raise MissingFileError(f"No statistics file at {str(path)!r}. Write one with save_statistics(path).")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise StatisticsFileError(
                f"{str(path)!r} is not a readable safetensors file ({error}); it may be truncated. "
                "Run estimate and save_statistics again."
            ) from None
        if metadata.get("format") != FORMAT or set(tensors) != {"mean", "m2"}:
            raise StatisticsFileError(
                f"{str(path)!r} does not hold feature statistics: found format {metadata.get('format')!r} with tensors "
                f"{sorted(tensors)}, wanted {FORMAT!r}. Pass a file written by save_statistics."
            )
        return cls.from_metadata(path, metadata, tensors)

    @classmethod
    def from_metadata(cls, path: Path, metadata: dict[str, str], tensors: dict[str, Tensor]) -> FeatureStatistics:
        """Statistics from :attr:`metadata` and :attr:`tensors`; the path is for messages.

        Raises:
            StatisticsFileError: another version, or damaged.
        """
        if metadata.get("version") != str(VERSION):
            raise StatisticsFileError(
                f"{str(path)!r} has statistics version {metadata.get('version')}, but this release reads version "
                f"{VERSION}. Update captum_iba or run estimate again."
            )
        try:
            kind = metadata["kind"]
            shape = tuple(json.loads(metadata["shape"]))
            channel_dim, count, n_samples = (int(metadata[key]) for key in ("channel_dim", "count", "n_samples"))
            mean, m2 = tensors["mean"], tensors["m2"]
            consistent = (
                kind in ("feature", "channel")
                and mean.shape == m2.shape
                and mean.ndim == len(shape)
                and 1 <= channel_dim <= len(shape)
                and count >= n_samples >= 1
                and bool(torch.isfinite(mean).all() and torch.isfinite(m2).all() and (m2 >= 0).all())
            )
        except (KeyError, ValueError, TypeError):
            consistent = False
        if not consistent:
            raise StatisticsFileError(
                f"{str(path)!r} holds damaged statistics (metadata {metadata}). Run estimate and save_statistics again."
            )
        return cls(mean, m2, count, n_samples, shape, "channel" if kind == "channel" else "feature", channel_dim)


def _show(shape: tuple[int | None, ...] | torch.Size) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
