"""Streams a data set through the model as far as the layer and collects feature statistics."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from captum_iba._captum import _format_additional_forward_args, _format_tensor_into_tuples, _run_forward
from captum_iba.attr._channels import resolve_channel_dim
from captum_iba.bottleneck.containers import map_tensors
from captum_iba.bottleneck.replay import Recording, Site
from captum_iba.bottleneck.statistics import FeatureStatistics, Kind
from captum_iba.errors import InvalidTypeError, StatisticsError

InputFn = Callable[[Any], tuple[Any, Any]]
Per = Literal["auto", "feature", "channel"]


def forward_calls(
    forward_func: Callable[..., Any], data: Iterable[Any], input_fn: InputFn | None, device: torch.device | None
) -> Iterator[Callable[[], Any]]:
    """Turn batches, as a DataLoader yields them, into forward passes that wait to be run."""
    batches = [data] if isinstance(data, (Tensor, Mapping)) else data
    if not isinstance(batches, Iterable):
        raise InvalidTypeError(f"data is a {type(data).__name__}; wanted an iterable of batches, such as a DataLoader.")

    def to_device(tensor: Tensor) -> Tensor:
        return tensor if device is None else tensor.to(device)

    for batch in batches:
        inputs, additional = (_inputs_of(batch), None) if input_fn is None else _pair(input_fn(batch))
        inputs, additional = map_tensors(to_device, inputs), map_tensors(to_device, additional)
        if isinstance(inputs, Mapping):
            yield functools.partial(forward_func, **inputs)
        else:
            inputs = _format_tensor_into_tuples(tuple(inputs) if isinstance(inputs, list) else inputs)
            args = _format_additional_forward_args(additional)
            yield functools.partial(_run_forward, forward_func, inputs, None, args)


def _pair(returned: Any) -> tuple[Any, Any]:
    if isinstance(returned, tuple) and len(returned) == 2:
        return returned
    raise InvalidTypeError(
        f"input_fn returned {type(returned).__name__}; wanted a pair (inputs, additional_forward_args), the second of "
        "which may be None."
    )


def _inputs_of(batch: Any) -> Any:
    if isinstance(batch, (Tensor, Mapping)):
        return dict(batch) if isinstance(batch, Mapping) else batch
    if isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], (Tensor, Mapping, tuple, list)):
        return _inputs_of(batch[0]) if isinstance(batch[0], (Tensor, Mapping)) else tuple(batch[0])
    raise InvalidTypeError(
        f"data yields {type(batch).__name__}; wanted batches that are a tensor, a tuple whose first entry is the "
        "input, or a mapping of keyword arguments. For anything else pass input_fn(batch) -> (inputs, "
        "additional_forward_args)."
    )


class Collector:
    """Merges the statistics of batch after batch.

    Args:
        site (Site): the layer and its side.
        per (str): ``"auto"``, ``"feature"`` or ``"channel"``.
        channel_dim (int, optional): the user's choice of the channel axis.
        max_examples (int): examples to stop at.
        modules (list[nn.Module]): modules that the forward function runs.
    """

    def __init__(
        self, site: Site, per: Per, channel_dim: int | None, max_examples: int, modules: list[nn.Module]
    ) -> None:
        self._site, self._per, self._channel_dim = site, per, channel_dim
        self._max_examples, self._modules = max_examples, modules
        self.statistics: FeatureStatistics | None = None

    @property
    def n_samples(self) -> int:
        """Examples seen."""
        return 0 if self.statistics is None else self.statistics.n_samples

    @property
    def is_full(self) -> bool:
        """Whether max_examples were seen."""
        return self.n_samples >= self._max_examples

    def add(self, call: Callable[[], Any]) -> None:
        """Run one batch as far as the layer and merge its statistics."""
        # what ran before the layer tells where the channels are; once is enough
        recording = Recording.make(self._site, call, self._modules if self.statistics is None else [], to_the_end=False)
        features = recording.features[: self._max_examples - self.n_samples]
        if len(features) == 0:
            return
        known = None if self.statistics is None else self.statistics.channel_dim
        channel_dim = resolve_channel_dim(
            features, self._channel_dim, known, self._site.layer, recording.modules_before, self._site.name
        )
        batch = FeatureStatistics.from_features(features, channel_dim, self._kind(features, channel_dim))
        self.statistics = batch if self.statistics is None else self._merge(self.statistics, batch)

    def _kind(self, features: Tensor, channel_dim: int) -> Kind:
        if self._per != "auto":
            return self._per
        is_token_layer = features.ndim == 3 and channel_dim == 2
        return "channel" if is_token_layer else "feature"

    def _merge(self, whole: FeatureStatistics, batch: FeatureStatistics) -> FeatureStatistics:
        if self._per == "auto" and whole.mean.shape != batch.mean.shape:
            whole, batch = whole.pool(), batch.pool()
        return whole.merge(batch)

    def result(self) -> FeatureStatistics:
        """The statistics.

        Raises:
            StatisticsError: fewer than two examples.
        """
        if self.n_samples < 2 or self.statistics is None:
            raise StatisticsError(
                f"estimate needs at least 2 examples, found {self.n_samples} in data. Pass an iterable of batches; "
                "a thousand examples are a good start, and a generator can be used only once."
            )
        return self.statistics
