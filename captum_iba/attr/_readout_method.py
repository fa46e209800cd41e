"""What a readout bottleneck is before and after its training: layers, statistics, files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import nn

from captum_iba._captum import LayerAttribution
from captum_iba._numbers import as_path
from captum_iba._warn import Warner
from captum_iba.attr._calibration import (
    InputFn,
    Per,
    assert_calibration_arguments,
    forward_calls,
    length_of,
    stream,
    warn_of_few,
)
from captum_iba.attr._model import device_of, evaluation_mode, exclusive, locate, reachable, unwrap_parallel
from captum_iba.attr._readout import DEFAULT_HIDDEN, HiddenChannels, Readout, ReadoutSettings
from captum_iba.attr._readout_calibration import AT_INPUT, BOTTLENECK_ONLY, ReadoutCollector, as_readout, name_of
from captum_iba.attr._readout_file import read_readout, write_readout
from captum_iba.attr._readout_layers import ReadoutLayers, assert_readout_layers, names_of
from captum_iba.attr.training_history import TrainingHistory
from captum_iba.bottleneck.replay import Site
from captum_iba.bottleneck.statistics import FeatureStatistics
from captum_iba.errors import InvalidTypeError, NotTrainedError, StatisticsError

Self = TypeVar("Self", bound="ReadoutMethod")


@dataclass
class _State:
    """What calls leave behind, by layer and side; shared by shallow copies, as in :class:`LayerIBA`."""

    readouts: dict[tuple[nn.Module | None, bool], Readout] = field(default_factory=dict)
    at_input: bool = False
    warner: Warner = field(default_factory=Warner)


class ReadoutMethod(LayerAttribution):
    """Base of :class:`captum_iba.attr.LayerReadoutIBA`, whose arguments it has."""

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        device_ids: Sequence[int] | None = None,
        readout_layers: ReadoutLayers = "auto",
        statistics: Mapping[str, FeatureStatistics] | None = None,
        hidden_channels: HiddenChannels = DEFAULT_HIDDEN,
        sigma: float | None = None,
        initial_alpha: float = 5.0,
        relu: bool = False,
        align_corners: bool = False,
    ) -> None:
        assert_readout_layers(readout_layers)
        if device_ids is not None and not all(isinstance(number, int) for number in device_ids):
            raise InvalidTypeError(f"device_ids is {device_ids!r}; pass layers by name: readout_layers=...")
        LayerAttribution.__init__(self, forward_func, layer, list(device_ids) if device_ids is not None else None)
        self.readout_layers = readout_layers
        self._settings = ReadoutSettings(hidden_channels, sigma, initial_alpha, relu, align_corners)
        self._state = _State()
        if statistics is not None:
            site, modules = self._locate(
                isinstance(statistics, Mapping) and any(name.endswith(AT_INPUT) for name in statistics)
            )
            self._keep(as_readout(statistics, site, modules, readout_layers, self._settings))

    @classmethod
    def get_name(cls) -> str:
        """Name for progress bars and tables."""
        return "Layer Readout IBA"

    @property
    def statistics(self) -> dict[str, FeatureStatistics] | None:
        """Statistics by layer, the bottleneck's own first; None before :meth:`estimate`."""
        readout = self._current()
        if readout is None:
            return None
        names = names_of(self._locate(readout.site.at_input)[1])
        keys = {site: name_of(site, names) for site in readout.sites}
        if readout.site not in readout.sources and not readout.site.at_input:
            keys[readout.site] += BOTTLENECK_ONLY
        return {keys[site]: readout.statistics[site] for site in readout.sites}

    @property
    def history(self) -> TrainingHistory:
        """The course of the training; empty before :meth:`fit`."""
        readout = self._current()
        return TrainingHistory() if readout is None else readout.history

    def estimate(
        self: Self,
        data: Iterable[Any],
        input_fn: InputFn | None = None,
        max_examples: int = 10_000,
        per: Per = "auto",
        attribute_to_layer_input: bool = False,
        show_progress: bool = False,
        channel_dim: int | None = None,
    ) -> Self:
        r"""Estimate mean and deviation of the features of all layers, the bottleneck's and those that are read.

        One pass over the data serves all; the first batch runs once more, to find the layers. Interrupted, it keeps the
        statistics of what it has seen. A trained network stays, so that statistics can be brought up to date; with
        those of other data it may predict badly.

        Args:
            data (Iterable): as for :meth:`LayerIBA.estimate`; labels in mappings are left out, as in :meth:`fit`.
            input_fn (Callable, optional): as for :meth:`LayerIBA.estimate`. Default: None.
            max_examples (int, optional): examples to stop at. Default: 10_000, the published figure.
            per (str, optional): as for :meth:`LayerIBA.estimate`. Default: ``"auto"``.
            attribute_to_layer_input (bool, optional): a bottleneck at the layer's input. Default: False.
            show_progress (bool, optional): show a progress bar. Default: False.
            channel_dim (int, optional): axis of the channels, for the bottleneck's layer and those with as many axes.
                Default: None, found out.

        Returns:
            LayerReadoutIBA: self.

        Raises:
            StatisticsError: fewer than two examples, or NaN among the features.
            InvalidArgumentError: an argument out of range, an ambiguous channel axis, or no such layer.
            InvalidTypeError: batches that cannot be understood.
            LayerNotExecutedError, LayerReusedError: a layer runs never, or more than once.

        Examples::

            >>> import torch
            >>> model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
            >>> from captum_iba import LayerReadoutIBA
            >>> sorted(LayerReadoutIBA(model, model[0]).estimate(torch.randn(1000, 3)).statistics)
            ['0', '2']
        """
        forward_func = unwrap_parallel(self.forward_func, self.device_ids)
        site, modules = self._locate(attribute_to_layer_input)
        to_switch = reachable(modules, site.layer)
        assert_calibration_arguments(max_examples, per)
        collector = ReadoutCollector(site, modules, self.readout_layers, self._settings, per, channel_dim, max_examples)
        with exclusive(to_switch), evaluation_mode(to_switch, self._state.warner), torch.inference_mode(False):
            readout = stream(
                collector,
                forward_calls(forward_func, data, input_fn, device_of(to_switch), with_labels=False),
                self._keep_statistics,
                length_of(data),
                f"{self.get_name()} statistics" if show_progress else "",
            )
        warn_of_few(readout.statistics[site], site, self._state.warner)
        self._keep_statistics(readout)
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights, statistics, layer names, configuration and history of the current layer: one safetensors file.

        Args:
            path (str or PathLike): target; an existing file is replaced only once the new one is complete.

        Raises:
            StatisticsError: there is nothing yet; without :meth:`fit` the file holds statistics alone.
            InvalidArgumentError: a folder, or a forward function that hides its modules, so that they have no names.
            MissingFileError: the folder does not exist.
        """
        readout = self._current()
        if readout is None:
            raise StatisticsError("There is nothing to save. Call estimate(data) and fit(train_data) first.")
        write_readout(as_path(path), readout, names_of(self._locate(readout.site.at_input)[1]))

    def load(self: Self, path: str | os.PathLike[str], attribute_to_layer_input: bool = False) -> Self:
        """Read what :meth:`save` wrote, or a checkpoint of :meth:`fit`.

        Args:
            path (str or PathLike): the file.
            attribute_to_layer_input (bool, optional): it is a bottleneck at the layer's input. Default: False.

        Returns:
            LayerReadoutIBA: self; network and mask are shaped as in the file, until the next :meth:`fit`.

        Raises:
            MissingFileError: no such file.
            ReadoutFileError: a damaged file, or one for another network, layer or side.
        """
        site, modules = self._locate(attribute_to_layer_input)
        self._keep(read_readout(as_path(path), site, names_of(modules), self._state.warner))
        return self

    def channel_dim(self, attribute_to_layer_input: bool = False) -> int:
        """Axis of the channels in the layer's features, which ``attr_dim_summation`` sums over.

        Raises:
            NotTrainedError: :meth:`fit` or :meth:`load` come first.
        """
        return self._trained(self._locate(attribute_to_layer_input)[0]).channel_dim

    def _locate(self, at_input: bool) -> tuple[Site, list[nn.Module]]:
        return locate(unwrap_parallel(self.forward_func, self.device_ids), self.layer, at_input)

    def _current(self) -> Readout | None:
        """Of the current layer, on the side used last, else on the other."""
        by_side = [self._state.readouts.get((self.layer, side)) for side in (False, True)]
        wanted = by_side[self._state.at_input]
        return wanted if wanted is not None else by_side[not self._state.at_input]

    def _keep(self, readout: Readout) -> None:
        self._state.at_input = readout.site.at_input
        self._state.readouts[readout.site.layer, readout.site.at_input] = readout

    def _keep_statistics(self, readout: Readout) -> None:
        """Keep new statistics, and what was trained before for the same layers."""
        before = self._state.readouts.get((readout.site.layer, readout.site.at_input))
        if before is not None and before.network is not None and before.sources == readout.sources:
            readout = replace(before, statistics=readout.statistics)
        self._keep(readout)

    def _trained(self, site: Site) -> Readout:
        readout = self._state.readouts.get((site.layer, site.at_input))
        if readout is not None and readout.network is None:
            raise NotTrainedError(
                f"There are statistics, but no trained network, for the {site.side} of {site.name}. Call "
                "fit(train_data), or load(path) of a file written after that."
            )
        if readout is None or readout.network is None:
            raise NotTrainedError(
                f"There is no trained readout for the {site.side} of {site.name}. Call estimate(data) and "
                "fit(train_data), or load(path); LayerIBA needs no training."
            )
        return readout
