"""Statistics of all layers of a readout bottleneck from one pass over the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from captum_iba.attr._calibration import Collector, Pass, Per
from captum_iba.attr._readout import Readout, ReadoutSettings
from captum_iba.attr._readout_layers import ReadoutLayers, assert_visible, find_readout_layers, names_of, site_of
from captum_iba.bottleneck.reading import follow, read
from captum_iba.bottleneck.replay import Site
from captum_iba.bottleneck.statistics import FeatureStatistics
from captum_iba.errors import InvalidTypeError, LayerReusedError, MismatchedArgumentsError, StatisticsError

AT_INPUT, BOTTLENECK_ONLY = " (input)", " (not read)"
"""Endings of names of statistics: of the layer's input, and of a bottleneck that is not read itself."""


class ReadoutCollector:
    """Finds the layers at the first batch, and merges the statistics of batch after batch.

    Args:
        site (Site): of the bottleneck.
        modules (list[nn.Module]): modules that the forward function runs.
        readout_layers: the user's choice.
        settings (ReadoutSettings): of the readout.
        per (str): ``"auto"``, ``"feature"`` or ``"channel"``.
        channel_dim (int, optional): the user's choice of the channel axis.
        max_examples (int): examples to stop at.
    """

    def __init__(
        self,
        site: Site,
        modules: list[nn.Module],
        readout_layers: ReadoutLayers,
        settings: ReadoutSettings,
        per: Per,
        channel_dim: int | None,
        max_examples: int,
    ) -> None:
        self._site, self._modules, self._readout_layers = site, modules, readout_layers
        self._settings, self._per, self._channel_dim = settings, per, channel_dim
        self._max_examples = max_examples
        self._sources: list[Site] = []
        self._collectors: dict[Site, Collector] = {}
        self._before: dict[Site, list[nn.Module]] = {}

    @property
    def n_samples(self) -> int:
        """Examples seen."""
        return self._collectors[self._site].n_samples if self._collectors else 0

    @property
    def is_full(self) -> bool:
        """Whether max_examples were seen."""
        return self.n_samples >= self._max_examples

    def add(self, call: Pass) -> None:
        """Run one batch as far as the last of the layers and merge their statistics."""
        if not self._sources:
            self._find_layers(call)
        sites = list(dict.fromkeys([self._site, *self._sources]))
        found = read(sites, call).features
        for site, features in zip(sites, found, strict=True):
            _assert_batch_first(site, features, found[0])
            if site not in self._collectors:
                # the user speaks of the bottleneck's layer, and of others that are laid out alike
                channel_dim = self._channel_dim if features.ndim == found[0].ndim else None
                self._collectors[site] = Collector(site, self._per, channel_dim, self._max_examples, self._modules)
            self._collectors[site].add_features(features, self._before[site], call)

    def _find_layers(self, call: Callable[[], Any]) -> None:
        assert_visible(self._readout_layers, self._modules)
        finished = follow(self._modules, call)
        layers = find_readout_layers(self._readout_layers, self._site.layer, self._modules, finished)
        self._sources = _sites_of(layers, self._site, self._modules)
        order = [entry.module for entry in finished]
        for site in (self._site, *self._sources):
            if order.count(site.layer) > 1:
                raise LayerReusedError(
                    f"{site.name} runs more than once in one forward pass, so it has no single {site.side}. Give "
                    "each use a module of its own, or choose a layer that runs once."
                )
            self._before[site] = order[: order.index(site.layer)] if site.layer in order else order

    def result(self) -> Readout:
        """The readout, not trained yet.

        Raises:
            StatisticsError: fewer than two examples.
        """
        if not self._collectors:  # says so
            Collector(self._site, self._per, None, self._max_examples, []).result()
        statistics = {site: collector.result() for site, collector in self._collectors.items()}
        sources = self._sources
        if isinstance(self._readout_layers, str):  # the same for all inputs says nothing
            sources = [source for source in sources if source == self._site or bool(statistics[source].active.any())]
            statistics = {site: statistics[site] for site in dict.fromkeys([self._site, *sources])}
        return Readout(self._site, sources, statistics, self._settings)


def _assert_batch_first(site: Site, features: Tensor, own: Tensor) -> None:
    is_time_first = getattr(site.layer, "batch_first", True) is False and features.ndim == 3 and not site.at_input
    if is_time_first or len(features) != len(own):
        raise MismatchedArgumentsError(
            f"{site.name} gives features of shape {list(features.shape)}, for a batch whose bottleneck has "
            f"{list(own.shape)}: the first axis must be the batch. Choose a layer that keeps it, such as one with "
            "batch_first=True, or other readout_layers."
        )


def _sites_of(layers: list[nn.Module], site: Site, modules: list[nn.Module]) -> list[Site]:
    names = names_of(modules)
    return [site if layer is site.layer and not site.at_input else site_of(layer, names) for layer in layers]


def as_readout(
    statistics: Mapping[str, FeatureStatistics],
    site: Site,
    modules: list[nn.Module],
    readout_layers: ReadoutLayers,
    settings: ReadoutSettings,
) -> Readout:
    """A readout from statistics by name, as :attr:`LayerReadoutIBA.statistics` gives them.

    Raises:
        InvalidTypeError: anything else.
        StatisticsError: a layer is missing, or unknown.
    """
    if not isinstance(statistics, Mapping) or not all(isinstance(s, FeatureStatistics) for s in statistics.values()):
        raise InvalidTypeError(
            f"statistics is a {type(statistics).__name__}; wanted a FeatureStatistics for each layer by name, as "
            "LayerReadoutIBA.statistics gives them. Use load(path) for a file."
        )
    names = names_of(modules)
    own = next((name for name in statistics if name.endswith((AT_INPUT, BOTTLENECK_ONLY))), None)
    read = [name for name in statistics if name != own]
    unknown = [name for name in read if name not in names.values()]
    if unknown:
        raise StatisticsError(f"statistics has {unknown}, which are no modules of the model; wanted its dotted names.")
    chosen = read if isinstance(readout_layers, str) else list(readout_layers)
    sources = _sites_of(find_readout_layers(chosen, site.layer, modules, []), site, modules)
    found = {}
    for each in dict.fromkeys([site, *sources]):
        name = own if each == site and own is not None else name_of(each, names)
        if name not in statistics:
            raise StatisticsError(
                f"statistics has none of {each.name}, found {list(statistics)}. Call estimate(data) with the same "
                "readout_layers."
            )
        found[each] = statistics[name]
    return Readout(site, sources, found, settings)


def name_of(site: Site, names: Mapping[nn.Module, str]) -> str:
    """A site's name among a readout's statistics."""
    # layers out of sight have no names
    name = names.get(site.layer, f"{type(site.layer).__name__} at {id(site.layer):x}")
    return f"{name}{AT_INPUT}" if site.at_input else name
