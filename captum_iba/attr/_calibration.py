"""Streams a data set through the model as far as the layer and collects feature statistics."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from captum_iba._captum import _format_additional_forward_args, _format_tensor_into_tuples, _run_forward
from captum_iba._warn import Warner
from captum_iba.attr._channels import resolve_channel_dim
from captum_iba.attr._positions import fits, padding_of, real_positions
from captum_iba.bottleneck.containers import map_tensors
from captum_iba.bottleneck.reading import follow, read
from captum_iba.bottleneck.replay import Recording, Site
from captum_iba.bottleneck.statistics import FeatureStatistics, Kind
from captum_iba.errors import InvalidArgumentError, InvalidTypeError, StatisticsError

T = TypeVar("T")
R = TypeVar("R", covariant=True)
InputFn = Callable[[Any], tuple[Any, Any]]
PositionMask = Callable[[Any], Tensor]
Per = Literal["auto", "feature", "channel"]
LABEL_KEYS = ("labels", "label")
FEW_EXAMPLES = 1000


@dataclass(frozen=True)
class Pass:
    """A forward pass that waits to be run.

    Attributes:
        call (Callable): runs it.
        mask (Tensor or None): (N, *positions), nonzero where a position is real.
        is_found (bool): the mask is the model's own attention mask, which need not fit the layer.
    """

    call: Callable[[], Any]
    mask: Tensor | None = None
    is_found: bool = True

    def __call__(self) -> Any:
        """Run it."""
        return self.call()

    def real(self, features: Tensor, channel_dim: int, layer_name: str) -> Tensor | None:
        """The real positions of the layer's features, laid out to broadcast against them; None if all are.

        Raises:
            InvalidTypeError, InvalidArgumentError: the user's mask does not fit the features.
        """
        if self.mask is None or (self.is_found and not fits(self.mask, features.shape, channel_dim)):
            return None
        real = real_positions(self.mask, features.shape, channel_dim, layer_name)
        return None if real is None else real.to(features.device)


def forward_calls(
    forward_func: Callable[..., Any],
    data: Iterable[Any],
    input_fn: InputFn | None,
    device: torch.device | None,
    with_labels: bool = True,
    position_mask: PositionMask | None = None,
) -> Iterator[Pass]:
    """Turn batches, as a DataLoader yields them, into forward passes that wait to be run."""
    for batch in as_batches(data):
        inputs, additional = on_device(arguments_of(batch, input_fn, with_labels), device)
        call = forward_call(forward_func, inputs, additional)
        if position_mask is not None:
            yield Pass(call, position_mask(batch), is_found=False)
            continue
        is_tuple = isinstance(inputs, (tuple, list))
        found = inputs if isinstance(inputs, Mapping) or is_tuple else (inputs,)
        yield Pass(call, padding_of(forward_func, found, _format_additional_forward_args(additional)))


def as_batches(data: Any, name: str = "data") -> Iterable[Any]:
    """An iterable of batches; a single tensor or mapping is one batch.

    Raises:
        InvalidTypeError: nothing to iterate over.
    """
    if isinstance(data, (Tensor, Mapping)):
        return [data]
    if not isinstance(data, Iterable):
        raise InvalidTypeError(
            f"{name} is a {type(data).__name__}; wanted an iterable of batches, such as a DataLoader."
        )
    return data


def arguments_of(batch: Any, input_fn: InputFn | None, with_labels: bool = True) -> tuple[Any, Any]:
    """(inputs, additional_forward_args) of a batch; given labels, a model would compute a loss of its own."""
    if input_fn is None and not with_labels and isinstance(batch, Mapping):
        return {key: value for key, value in batch.items() if key not in LABEL_KEYS}, None
    return (_inputs_of(batch), None) if input_fn is None else _pair(input_fn(batch))


def on_device(value: T, device: torch.device | None) -> T:
    """Every tensor in nested containers on the device; None leaves them where they are.

    Tensors made in inference mode are copied, as they could not take part in gradients.
    """

    def move(tensor: Tensor) -> Tensor:
        tensor = tensor if device is None else tensor.to(device)
        return tensor.clone() if tensor.is_inference() else tensor

    moved: T = map_tensors(move, value)
    return moved


def forward_call(forward_func: Callable[..., Any], inputs: Any, additional: Any) -> Callable[[], Any]:
    """The forward pass on inputs, of which a mapping means keyword arguments."""
    if isinstance(inputs, Mapping):
        return functools.partial(forward_func, **inputs)
    inputs = _format_tensor_into_tuples(tuple(inputs) if isinstance(inputs, list) else inputs)
    return functools.partial(_run_forward, forward_func, inputs, None, _format_additional_forward_args(additional))


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

    def add(self, call: Pass) -> None:
        """Run one batch as far as the layer and merge its statistics."""
        # what ran before the layer tells where the channels are; once is enough
        recording = Recording.make(self._site, call, self._modules if self.statistics is None else [], to_the_end=False)
        self.add_features(recording.features, recording.modules_before, call)

    def add_features(self, features: Tensor, modules_before: Sequence[nn.Module], source: Pass) -> None:
        """Merge the statistics of one batch's features; the modules are needed at the first batch only."""
        if self.is_full:
            return
        known = None if self.statistics is None else self.statistics.channel_dim
        channel_dim = resolve_channel_dim(
            features,
            self._channel_dim,
            known,
            self._site.layer,
            modules_before,
            self._site.name,
            self._site.at_input,
        )
        real = source.real(features, channel_dim, self._site.name)
        rows = slice(self._max_examples - self.n_samples)
        kind = "channel" if real is not None and self._per == "auto" else self._kind(features, channel_dim)
        real = None if real is None else real[rows]
        batch = FeatureStatistics.from_features(features[rows], channel_dim, kind, real)
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


class LayersCollector:
    """Merges the statistics of several layers from one pass over the data.

    Args:
        sites (Sequence[Site]): layers and sides, each once.
        per, channel_dim, max_examples, modules: as for :class:`Collector`.
    """

    def __init__(
        self, sites: Sequence[Site], per: Per, channel_dim: int | None, max_examples: int, modules: list[nn.Module]
    ) -> None:
        self._modules = modules
        self._collectors = {site: Collector(site, per, channel_dim, max_examples, modules) for site in sites}

    @property
    def n_samples(self) -> int:
        """Examples seen."""
        return next(iter(self._collectors.values())).n_samples

    @property
    def is_full(self) -> bool:
        """Whether max_examples were seen."""
        return next(iter(self._collectors.values())).is_full

    def add(self, call: Pass) -> None:
        """Run one batch as far as the last layer and merge its statistics."""
        if len(self._collectors) == 1:
            next(iter(self._collectors.values())).add(call)
            return
        if self.n_samples == 0:
            order = [entry.module for entry in follow(self._modules, call)]
            self._before = {
                site: order[: order.index(site.layer)] if site.layer in order else [] for site in self._collectors
            }
        found = read(list(self._collectors), call).features
        for (site, collector), features in zip(self._collectors.items(), found, strict=True):
            collector.add_features(features, self._before[site], call)

    def result(self) -> dict[Site, FeatureStatistics]:
        """The statistics of each layer.

        Raises:
            StatisticsError: fewer than two examples.
        """
        return {site: collector.result() for site, collector in self._collectors.items()}


class Collects(Protocol[R]):
    """What batches are streamed into."""

    @property
    def n_samples(self) -> int:
        """Examples seen."""

    @property
    def is_full(self) -> bool:
        """Whether that is enough."""

    def add(self, call: Pass) -> None:
        """Take in one batch."""

    def result(self) -> R:
        """The outcome, from at least two examples."""


def stream(
    collector: Collects[R],
    calls: Iterable[Pass],
    keep: Callable[[R], object],
    total: int | None,
    name: str,
) -> R:
    """Run batch after batch into a collector.

    Args:
        collector (Collects): takes the batches.
        calls (Iterable[Pass]): forward passes.
        keep (Callable): is given what there is at an interruption, as nothing computed is to be lost.
        total (int, optional): number of batches, where it is known.
        name (str): of the progress bar; empty for none.

    Returns:
        R: the collector's result.
    """
    try:
        with tqdm(total=total, desc=name, disable=not name) as bar:
            for call in calls:
                collector.add(call)
                bar.update()
                if collector.is_full:
                    break
    except KeyboardInterrupt:
        if collector.n_samples >= 2:
            keep(collector.result())
        raise
    return collector.result()


def warn_of_few(statistics: FeatureStatistics, site: Site, warner: Warner) -> None:
    """Warn once where there are too few examples for a mean of each feature."""
    if statistics.n_samples < FEW_EXAMPLES and statistics.kind == "feature":
        warner.once(
            ("few", site.layer, site.at_input),
            f"The feature statistics come from {statistics.n_samples} examples; with fewer than {FEW_EXAMPLES} "
            "they are rough. The bits stay an upper bound, a looser one. Pass more data, or per='channel'.",
        )


def length_of(data: Iterable[Any]) -> int | None:
    """Number of batches, where the data know it."""
    if isinstance(data, (Tensor, Mapping)):
        return 1
    try:
        return len(data)  # type: ignore[arg-type]
    except TypeError:  # generators, and loaders over iterable data sets
        return None


def assert_calibration_arguments(max_examples: int, per: str) -> None:
    """Refuse values that :meth:`LayerIBA.estimate` cannot use.

    Raises:
        InvalidArgumentError: there is one.
    """
    if not isinstance(max_examples, int) or max_examples < 2:
        raise InvalidArgumentError(f"max_examples={max_examples!r}; wanted an integer of at least 2.")
    if per not in ("auto", "feature", "channel"):
        raise InvalidArgumentError(f"per={per!r}; wanted 'auto', 'feature' or 'channel'.")
