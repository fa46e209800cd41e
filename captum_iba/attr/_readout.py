"""A readout bottleneck: what it reads, with which statistics, and the network that turns it into a mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from captum_iba._numbers import assert_initial_alpha, assert_sigma, is_integer
from captum_iba._warn import Warner
from captum_iba.attr._layout import is_token_layer, make_blur, positions_of
from captum_iba.attr.training_history import TrainingHistory
from captum_iba.bottleneck.information import Reference, normalize
from captum_iba.bottleneck.optimization import work_dtype
from captum_iba.bottleneck.readout import ReadoutNetwork, assert_readable, channels_second
from captum_iba.bottleneck.replay import Site
from captum_iba.bottleneck.statistics import FeatureStatistics
from captum_iba.errors import InvalidArgumentError, MismatchedArgumentsError

HiddenChannels = Literal["published"] | Sequence[int]
DEFAULT_HIDDEN = (128, 128)


@dataclass(frozen=True)
class ReadoutSettings:
    """The arguments of :class:`LayerReadoutIBA` that shape its network and mask, under the same names.

    Raises:
        InvalidArgumentError: one is out of range.
    """

    hidden_channels: HiddenChannels = DEFAULT_HIDDEN
    sigma: float | None = None
    initial_alpha: float = 5.0
    relu: bool = False
    align_corners: bool = False

    def __post_init__(self) -> None:
        assert_sigma(self.sigma)
        assert_initial_alpha(self.initial_alpha)
        widths = self.hidden_channels
        is_pair = isinstance(widths, Sequence) and len(widths) == 2 and all(is_integer(width, 1) for width in widths)
        if widths != "published" and not is_pair:
            raise InvalidArgumentError(
                f"hidden_channels={widths!r}; wanted two widths, such as {DEFAULT_HIDDEN}, or 'published'."
            )
        # plain numbers, which can be written to a file
        object.__setattr__(self, "initial_alpha", float(self.initial_alpha))
        object.__setattr__(self, "sigma", None if self.sigma is None else float(self.sigma))
        if widths != "published":
            object.__setattr__(self, "hidden_channels", tuple(int(width) for width in widths))
        for name in ("relu", "align_corners"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidArgumentError(f"{name}={getattr(self, name)!r}; wanted True or False.")

    def widths(self, in_channels: int, out_channels: int) -> tuple[int, int]:
        """Both hidden widths as numbers."""
        if isinstance(self.hidden_channels, str):
            return max(1, in_channels // 2), 2 * out_channels
        wide, narrow = self.hidden_channels
        return int(wide), int(narrow)


@dataclass(frozen=True)
class Observation:
    """What one batch shows of the model.

    Attributes:
        features (Tensor): of the bottleneck's layer, in the working precision.
        normalized (Tensor): (features - mean) / scale.
        dtype (torch.dtype): of the features as the model gives them.
        reference (Reference): distribution of the noise.
        sources (list[Tensor]): normalised features that are read, channels second.
    """

    features: Tensor
    normalized: Tensor
    dtype: torch.dtype
    reference: Reference
    sources: list[Tensor]


@dataclass
class Readout:
    """Everything that belongs to one layer and side.

    Attributes:
        site (Site): of the bottleneck.
        sources (list[Site]): what is read.
        statistics (dict[Site, FeatureStatistics]): of each of them.
        settings (ReadoutSettings): of network and mask.
        network (ReadoutNetwork or None): None until it is trained.
        history (TrainingHistory): of the training.
    """

    site: Site
    sources: list[Site]
    statistics: dict[Site, FeatureStatistics]
    settings: ReadoutSettings
    network: ReadoutNetwork | None = None
    history: TrainingHistory = field(default_factory=TrainingHistory)
    _references: dict[Any, Reference] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def sites(self) -> list[Site]:
        """The bottleneck's site and those that are read, each once."""
        return list(dict.fromkeys([self.site, *self.sources]))

    @property
    def channel_dim(self) -> int:
        """Axis of the bottleneck's channels."""
        return self.statistics[self.site].channel_dim

    def channels(self, site: Site) -> int:
        """Channels of a site's features."""
        statistics = self.statistics[site]
        return statistics.mean.shape[statistics.channel_dim - 1]

    def make_network(self, seed: int, like: Tensor) -> ReadoutNetwork:
        """A fresh network, on the device and of the dtype of ``like``."""
        channels, out = [self.channels(source) for source in self.sources], self.channels(self.site)
        widths = self.settings.widths(sum(channels), out)
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)
            network = ReadoutNetwork(channels, out, widths, self.settings.initial_alpha, self.settings.align_corners)
        return network.to(like)

    def observe(self, features: dict[Site, Tensor]) -> Observation:
        """Normalise the features of one pass.

        Raises:
            StatisticsError: the statistics are of features of another shape.
            NonFiniteError: NaN or infinity among the features.
            UnsupportedModelError: features that cannot be brought to the bottleneck's positions.
        """
        own = features[self.site]
        wide = own.to(work_dtype(own))
        reference = self._reference(self.site, wide)
        normalized = {self.site: normalize(wide, reference, self.site.name)}
        for site in self.sources:
            if site not in normalized:
                self._assert_readable(site, features[site], own)
                read = features[site].to(wide)
                normalized[site] = normalize(read, self._reference(site, read), site.name)
        sources = [channels_second(normalized[site], self.statistics[site].channel_dim) for site in self.sources]
        return Observation(wide, normalized[self.site], own.dtype, reference, sources)

    def _reference(self, site: Site, features: Tensor) -> Reference:
        """The statistics on the features' device and in their dtype; made once."""
        statistics = self.statistics[site]
        # statistics per channel fit any number of positions
        channels = features.shape[statistics.channel_dim] if features.ndim > statistics.channel_dim else None
        shape = features.shape[1:] if statistics.kind == "feature" else (features.ndim, channels)
        key = (site, shape, features.dtype, features.device)
        if key not in self._references:
            self._references[key] = statistics.reference(features, site.name)
        return self._references[key]

    def _assert_readable(self, site: Site, read: Tensor, own: Tensor) -> None:
        if len(read) != len(own):
            raise MismatchedArgumentsError(
                f"{site.name} gives features of shape {list(read.shape)} and {self.site.name} of shape "
                f"{list(own.shape)}; the first axis must be the batch in both. Choose other readout_layers."
            )
        channel_dim = self.statistics[site].channel_dim
        is_grid = not is_token_layer(read.shape[1:], channel_dim)
        assert_readable(read.shape, channel_dim, site.name, is_grid, self.positions(own))

    def positions(self, features: Tensor) -> tuple[int, ...]:
        """Sizes of the bottleneck's axes of positions."""
        return positions_of(features.shape[1:], self.channel_dim)

    def alpha(self, seen: Observation, network: nn.Module) -> Tensor:
        """The mask's parameters, of the features' shape."""
        like = next(network.parameters())
        alpha: Tensor = network([source.to(like) for source in seen.sources], self.positions(seen.features))
        alpha = alpha.to(seen.features)
        return alpha if self.channel_dim == 1 else alpha.movedim(1, self.channel_dim)

    def blur(self, seen: Observation, warner: Warner) -> Callable[[Tensor], Tensor] | None:
        """Smoothing of the mask."""
        shape = seen.features.shape[1:]
        return make_blur(self.settings.sigma, shape, self.channel_dim, self.site.name, warner)
