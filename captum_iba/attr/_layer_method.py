"""What LayerIBA is before it explains: model, layer, and the statistics of its features."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from captum_iba._captum import LayerAttribution
from captum_iba._warn import Warner
from captum_iba.attr._calibration import (
    InputFn,
    LayersCollector,
    Per,
    PositionMask,
    assert_calibration_arguments,
    forward_calls,
    length_of,
    stream,
    warn_of_few,
)
from captum_iba.attr._model import device_of, evaluation_mode, exclusive, locate, reachable, unwrap_parallel
from captum_iba.attr._shared_layers import assert_shared_layers
from captum_iba.bottleneck.replay import Site
from captum_iba.bottleneck.statistics import FeatureStatistics
from captum_iba.errors import InvalidTypeError, StatisticsError

Self = TypeVar("Self", bound="LayerMethod")


@dataclass
class _State:
    """What calls leave behind. It is only ever changed in place, so that shallow copies of a method share it.

    Statistics are kept per layer and side, because consumers such as TCAV reassign ``layer`` on the live object.
    """

    statistics: dict[tuple[nn.Module | None, bool], FeatureStatistics] = field(default_factory=dict)
    at_input: bool = False
    warner: Warner = field(default_factory=Warner)


class LayerMethod(LayerAttribution):
    """Base of :class:`captum_iba.attr.LayerIBA`, whose arguments it has."""

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        device_ids: Sequence[int] | None = None,
        statistics: FeatureStatistics | None = None,
        shared_layers: Sequence[nn.Module] | None = None,
    ) -> None:
        if isinstance(device_ids, FeatureStatistics):
            raise InvalidTypeError("device_ids is a FeatureStatistics; pass it by name: statistics=...")
        LayerAttribution.__init__(self, forward_func, layer, list(device_ids) if device_ids is not None else None)
        if shared_layers is not None:
            assert_shared_layers(shared_layers)
        self.shared_layers = None if shared_layers is None else list(shared_layers)
        self._state = _State()
        if statistics is not None:
            self._set_statistics(statistics, attribute_to_layer_input=False)

    @classmethod
    def get_name(cls) -> str:
        """Name for progress bars and tables."""
        return "Layer IBA"

    @property
    def statistics(self) -> FeatureStatistics | None:
        """Statistics of the current layer, on the side estimated or loaded last, else on the other; None before."""
        by_side = [self._state.statistics.get((self.layer, side)) for side in (False, True)]
        wanted = by_side[self._state.at_input]
        return wanted if wanted is not None else by_side[not self._state.at_input]

    def _set_statistics(self, statistics: FeatureStatistics, attribute_to_layer_input: bool) -> None:
        if not isinstance(statistics, FeatureStatistics):
            raise InvalidTypeError(
                f"statistics must be a FeatureStatistics, found {type(statistics).__name__}. "
                "Use load_statistics(path) for a file."
            )
        self._state.at_input = attribute_to_layer_input
        self._state.statistics[self.layer, attribute_to_layer_input] = statistics

    def estimate(
        self: Self,
        data: Iterable[Any],
        input_fn: InputFn | None = None,
        max_examples: int = 10_000,
        per: Per = "auto",
        attribute_to_layer_input: bool = False,
        show_progress: bool = False,
        channel_dim: int | None = None,
        position_mask: PositionMask | None = None,
    ) -> Self:
        r"""Estimate the mean and deviation of the layer's features, which the noise will have.

        The model runs only as far as the layer, in evaluation mode, without gradient.
        Interrupted, it keeps the statistics of what it has seen.

        Args:
            data (Iterable): batches as a DataLoader yields them: tensors; tuples whose first entry is the input (a
                nested tuple is several inputs), the rest being ignored; or mappings, passed as keyword arguments. A
                single tensor or mapping is one batch. Data like those to be explained, but not the same examples.
            input_fn (Callable, optional): ``input_fn(batch) -> (inputs, additional_forward_args)`` for anything else.
                Default: None.
            max_examples (int, optional): examples to stop at. Default: 10_000, the published figure.
            per (str, optional): ``"feature"``: a mean and deviation for each element of the features, as in the paper,
                which needs inputs of one size; ``"channel"``: pooled over positions; ``"auto"``: per feature on
                spatial maps of one size and on vectors, else per channel. Default: ``"auto"``.
            attribute_to_layer_input (bool, optional): the layer's input instead of its output. Default: False.
            show_progress (bool, optional): show a progress bar. Default: False.
            channel_dim (int, optional): axis of the channels, see :meth:`attribute`. Default: None, found out.
            position_mask (Callable, optional): ``position_mask(batch) -> (N, T)``, nonzero where a token counts; the
                others are left out, which statistics per channel allow. Default: None: the ``attention_mask`` of a
                mapping, or that which the model's signature names, where it fits the layer's positions.

        Returns:
            LayerIBA: self.

        Raises:
            StatisticsError: fewer than two examples, or NaN among the features.
            InvalidArgumentError: an argument out of range, or an ambiguous channel axis.
            InvalidTypeError: batches that cannot be understood.

        Examples::

            >>> import torch
            >>> from captum_iba import LayerIBA
            >>> model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
            >>> loader = [(torch.randn(500, 3), torch.zeros(500)) for _ in range(2)]
            >>> LayerIBA(model, model[0]).estimate(loader).statistics.std.shape
            torch.Size([5])
        """
        assert_calibration_arguments(max_examples, per)
        if position_mask is not None and not callable(position_mask):
            raise InvalidTypeError(
                f"position_mask is a {type(position_mask).__name__}; wanted a function batch -> (N, T) here. A "
                "mapping's attention_mask is used by itself."
            )
        forward_func = unwrap_parallel(self.forward_func, self.device_ids)
        sites, modules = self._locate(attribute_to_layer_input)
        to_switch = reachable(modules, sites[0].layer)
        collector = LayersCollector(sites, per, channel_dim, max_examples, modules)
        calls = forward_calls(forward_func, data, input_fn, device_of(to_switch), position_mask=position_mask)
        # statistics made in inference mode could not take part in gradients later
        with exclusive(to_switch), evaluation_mode(to_switch, self._state.warner), torch.inference_mode(False):
            statistics = stream(
                collector,
                calls,
                self._keep,
                length_of(data),
                f"{self.get_name()} statistics" if show_progress else "",
            )
        warn_of_few(statistics[sites[0]], sites[0], self._state.warner)
        self._keep(statistics)
        return self

    def _locate(self, at_input: bool) -> tuple[list[Site], list[nn.Module]]:
        """The bottleneck's site and those that share its mask, and the modules that run."""
        forward_func = unwrap_parallel(self.forward_func, self.device_ids)
        site, modules = locate(forward_func, self.layer, at_input)
        return [site, *(locate(forward_func, layer, at_input)[0] for layer in self.shared_layers or ())], modules

    def _statistics_of(self, site: Site) -> FeatureStatistics:
        """Statistics of a layer that shares the mask.

        Raises:
            StatisticsError: there are none.
        """
        found = self._state.statistics.get((site.layer, site.at_input))
        if found is None:
            raise StatisticsError(
                f"There are no feature statistics of {site.name}, one of shared_layers. Call estimate(data), which "
                "serves them all."
            )
        return found

    def _keep(self, statistics: dict[Site, FeatureStatistics]) -> None:
        for site, found in statistics.items():
            self._state.at_input = site.at_input
            self._state.statistics[site.layer, site.at_input] = found

    def save_statistics(self, path: str | os.PathLike[str]) -> None:
        """Write the current statistics as safetensors.

        Raises:
            StatisticsError: there are none yet.
        """
        if self.statistics is None:
            raise StatisticsError("There are no statistics to save. Call estimate(data) first.")
        self.statistics.save(path)

    def load_statistics(self: Self, path: str | os.PathLike[str], attribute_to_layer_input: bool = False) -> Self:
        """Read statistics of this layer written by :meth:`save_statistics`.

        Args:
            path (str or PathLike): the file.
            attribute_to_layer_input (bool, optional): they belong to the layer's input. Default: False.

        Returns:
            LayerIBA: self.

        Raises:
            MissingFileError: no such file.
            StatisticsFileError: not a statistics file, or a damaged one.
        """
        self._set_statistics(FeatureStatistics.load(path), attribute_to_layer_input)
        return self
