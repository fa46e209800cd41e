"""Streams a data set through the model as far as the layer and collects feature statistics."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from captum_iba._captum import _format_additional_forward_args, _format_tensor_into_tuples, _run_forward
from captum_iba._warn import Warner
from captum_iba.attr._channels import resolve_channel_dim
from captum_iba.bottleneck.containers import map_tensors
from captum_iba.bottleneck.replay import Recording, Site
from captum_iba.bottleneck.statistics import FeatureStatistics, Kind
from captum_iba.errors import InvalidArgumentError, InvalidTypeError, StatisticsError

T = TypeVar("T")
R = TypeVar("R", covariant=True)
InputFn = Callable[[Any], tuple[Any, Any]]
Per = Literal["auto", "feature", "channel"]
LABEL_KEYS = ("labels", "label")
_FEW_EXAMPLES = 1000


def forward_calls(
    forward_func: Callable[..., Any],
    data: Iterable[Any],
    input_fn: InputFn | None,
    device: torch.device | None,
    with_labels: bool = True,
) -> Iterator[Callable[[], Any]]:
    """Turn batches, as a DataLoader yields them, into forward passes that wait to be run."""
    for batch in as_batches(data):
        inputs, additional = arguments_of(batch, input_fn, with_labels)
        yield forward_call(forward_func, *on_device((inputs, additional), device))


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

    def add(self, call: Callable[[], Any]) -> None:
        """Run one batch as far as the layer and merge its statistics."""
        # what ran before the layer tells where the channels are; once is enough
        recording = Recording.make(self._site, call, self._modules if self.statistics is None else [], to_the_end=False)
        self.add_features(recording.features, recording.modules_before)

    def add_features(self, features: Tensor, modules_before: Sequence[nn.Module]) -> None:
        """Merge the statistics of one batch's features; the modules are needed at the first batch only."""
        features = features[: self._max_examples - self.n_samples]
        if len(features) == 0:
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


class Collects(Protocol[R]):
    """What batches are streamed into."""

    @property
    def n_samples(self) -> int:
        """Examples seen."""

    @property
    def is_full(self) -> bool:
        """Whether that is enough."""

    def add(self, call: Callable[[], Any]) -> None:
        """Take in one batch."""

    def result(self) -> R:
        """The outcome, from at least two examples."""


def stream(
    collector: Collects[R],
    calls: Iterable[Callable[[], Any]],
    keep: Callable[[R], object],
    total: int | None,
    name: str,
) -> R:
    """Run batch after batch into a collector.

    Args:
        collector (Collects): takes the batches.
        calls (Iterable[Callable]): forward passes.
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
    if statistics.n_samples < _FEW_EXAMPLES and statistics.kind == "feature":
        warner.once(
            ("few", site.layer, site.at_input),
            f"The feature statistics come from {statistics.n_samples} examples; with fewer than {_FEW_EXAMPLES} "
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
