"""Information bottlenecks among the methods of Captum Insights' dashboard (captum 0.8; Insights went with captum 0.9).

Insights makes a method anew from the model alone for each example, so what the bottleneck needs besides, a layer and
what it was calibrated or trained with, is said once with :func:`register`.
"""

from __future__ import annotations

import copy
import importlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any, Literal
from weakref import WeakKeyDictionary

import captum
from torch import Tensor, nn

from captum_iba._captum import TargetType, log_usage
from captum_iba._numbers import as_path, assert_beta, assert_integer
from captum_iba._ports import listening
from captum_iba._warn import Warner
from captum_iba.attr import IBA, LayerIBA, LayerReadoutIBA
from captum_iba.attr._readout_file import layer_of
from captum_iba.attr.blocks import named_layers
from captum_iba.bottleneck.statistics import FeatureStatistics
from captum_iba.errors import InvalidArgumentError, InvalidTypeError, MissingDependencyError

__all__ = ["register", "serve"]

LayerChoice = str | nn.Module | Callable[[nn.Module], nn.Module | str]
StatisticsChoice = str | os.PathLike[str] | FeatureStatistics | Iterable[Any]
_NAMES = {"iba": "IBA", "readout": "Readout IBA"}
# Above what Captum's plots call "approximately 0", and the faintest mark that they can scale by.
_FAINT = 1e-4
_log = logging.getLogger(__name__)
_warner = Warner()


def register(
    layer: LayerChoice | None = None,
    statistics: StatisticsChoice | None = None,
    method: Literal["iba", "readout"] = "iba",
    readout: str | os.PathLike[str] | None = None,
    name: str | None = None,
    n_steps: int = 10,
    beta: float = 10.0,
) -> str:
    """Make the bottleneck selectable in Captum Insights' dashboard.

    To be called before the visualizer is shown; registering a name again replaces it. For each model there is one
    calibrated object, made at its first example and kept as long as the model lives.

    Images get a map of bits per pixel, in three channels, as Insights draws no others: for grey images pass
    ``ImageFeature`` a ``visualization_transform`` that repeats the channel. Token ids, or their embeddings, get bits
    per token. Insights scales what it draws to the largest value, so that colours do not compare from example to
    example. An example without any bits is drawn empty, but for a mark in the first pixel.

    What Insights itself does with an error of ours is to wait for ever; the message is logged (``captum_iba.insights``,
    to stderr by default).

    Args:
        layer (str, nn.Module or Callable, optional): dotted name, module, or function of the model that returns one of
            them, such as :func:`captum_iba.suggest_layer`. Default: None: the readout's own, which only it has.
        statistics (str, PathLike, FeatureStatistics or Iterable, optional): of the layer's features: the file of
            :meth:`LayerIBA.save_statistics`, its content, or data to estimate them from, as for
            :meth:`LayerIBA.estimate`. Default: None: each example's own stand in, and the bits are no upper bound.
        method (str, optional): ``"iba"``, a mask learned for each example (:class:`LayerIBA`), or ``"readout"``, one
            that a trained network predicts (:class:`LayerReadoutIBA`). Default: ``"iba"``.
        readout (str or PathLike, optional): file of :meth:`LayerReadoutIBA.save`, for ``method="readout"``.
            Default: None.
        name (str, optional): in the list of methods, so that several layers can stand there. Default: None: ``"IBA"``
            or ``"Readout IBA"``.
        n_steps (int, optional): where the control for the number of steps begins (``"iba"``). Default: 10 (paper).
        beta (float, optional): where the control for the weight of the information begins (``"iba"``). Default: 10.0
            (paper).

    Returns:
        str: the name.

    Raises:
        MissingDependencyError: there is no Captum Insights, as with captum 0.9; it is an ImportError.
        InvalidArgumentError: an unknown method, arguments that do not go with it, or a name that Captum has given.
        InvalidTypeError: layer or statistics of another type.
        MissingFileError, StatisticsFileError, ReadoutFileError: a file that cannot be read.

    Examples::

        >>> from captum_iba.demo import LAYER, load_canvases
        >>> from captum_iba.errors import MissingDependencyError
        >>> try:
        ...     name = register(layer=LAYER, statistics=load_canvases("train", 1000).images)
        ... except MissingDependencyError as error:  # captum 0.9
        ...     assert "pip install 'captum_iba[insights]'" in str(error)
    """
    config = _insights("captum.insights.attr_vis.config")
    source = _Source(layer, statistics, method, readout)
    name = _NAMES[method] if name is None else name
    _assert_free(name, config.ATTRIBUTION_NAMES_TO_METHODS)
    assert_integer("n_steps", n_steps)
    assert_beta(beta)
    config.ATTRIBUTION_NAMES_TO_METHODS[name] = _method_class(source, name)
    # the dashboard's number fields know whole numbers only
    controls = {"n_steps": config.NumberConfig(n_steps, (1, None)), "beta": config.StrConfig(f"{beta:g}")}
    config.ATTRIBUTION_METHOD_CONFIG[name] = config.ConfigParameters(params=controls if method == "iba" else {})
    return name


def serve(visualizer: Any, port: int = 0, when_ready: Callable[[str], object] = print) -> None:
    """Show a visualizer on this computer alone, until the process is interrupted.

    ``AttributionVisualizer.serve`` does so too, but answers several requests at once, and what Insights computes beside
    the attributions then runs on a model that a bottleneck is just put into. Here one request waits for the other.

    Args:
        visualizer (captum.insights.AttributionVisualizer): what to show.
        port (int, optional): of 127.0.0.1. Default: 0, any that is free.
        when_ready (Callable, optional): called with the address. Default: ``print``.

    Raises:
        MissingDependencyError: there is no Captum Insights.
        InvalidArgumentError: the port is taken.
    """
    server = _insights("captum.insights.attr_vis.server")
    serving = importlib.import_module("werkzeug.serving")
    server.visualizer = visualizer
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    lock = threading.Lock()

    def one_at_a_time(environ: Any, start_response: Any) -> Any:
        with lock:
            return server.app(environ, start_response)

    with listening("127.0.0.1", port) as bound:
        # threads all the same: browsers open connections in advance and leave them idle
        own = serving.make_server("127.0.0.1", port, one_at_a_time, threaded=True, fd=bound.fileno())
        when_ready(f"http://127.0.0.1:{bound.getsockname()[1]}/")
        own.serve_forever()  # ends with an interruption


def _insights(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"There is no Captum Insights here ({error}): it went with captum 0.9, and this is captum "
            f"{captum.__version__}. In an environment of its own, which gets captum 0.8 and its server: pip install "
            "'captum_iba[insights]'. With any captum, captum-iba serve shows a page of our own."
        ) from error


class _Source:
    """What one registration was given, checked, and the methods made of it.

    Raises:
        CaptumIBAError: see :func:`register`.
    """

    def __init__(self, layer: Any, statistics: Any, method: str, readout: Any) -> None:
        if method not in _NAMES:
            raise InvalidArgumentError(f"method={method!r}; wanted 'iba' or 'readout'.")
        if (method == "readout") != (readout is not None):
            raise InvalidArgumentError(
                f"method={method!r} and readout={readout!r}; wanted method='readout' with the file of a trained "
                "readout, or method='iba' without."
            )
        if method == "readout" and statistics is not None:
            raise InvalidArgumentError("statistics do not go with method='readout', whose file has its own.")
        if method == "iba" and layer is None:
            raise InvalidArgumentError(
                "layer is None; wanted a dotted name, a module, or a function such as suggest_layer."
            )
        if layer is not None and not isinstance(layer, str) and not callable(layer):
            raise InvalidTypeError(f"layer is a {type(layer).__name__}; wanted a name, a module, or a function.")
        self._readout = None if readout is None else as_path(readout)
        self._layer: Any = layer
        if self._readout is not None:
            self._layer = layer_of(self._readout) if layer is None else layer
        self._statistics = _checked(statistics)
        self._made: WeakKeyDictionary[nn.Module, LayerIBA | LayerReadoutIBA] = WeakKeyDictionary()
        self._locks: WeakKeyDictionary[nn.Module, threading.Lock] = WeakKeyDictionary()
        self._guard = threading.Lock()

    def method_for(self, model: nn.Module) -> IBA:
        """The calibrated method of a model, made at its first example.

        Raises:
            CaptumIBAError: the model has no such layer, or what was given does not fit it.
        """
        if not isinstance(model, nn.Module):
            raise InvalidTypeError(f"model is a {type(model).__name__}; wanted a torch.nn.Module, whose layers we see.")
        with self._guard:
            lock = self._locks.setdefault(model, threading.Lock())
        with lock:
            kept = self._made.get(model)
            method = self._make(model) if kept is None else copy.copy(kept)
            method.forward_func = model
            if kept is None and not _holds(method, model):
                # without the model, which would otherwise keep itself alive
                kept = copy.copy(method)
                kept.forward_func = None  # type: ignore[assignment]
                self._made[model] = kept
        return IBA(model, method.layer, method=method)

    def _make(self, model: nn.Module) -> LayerIBA | LayerReadoutIBA:
        is_function = callable(self._layer) and not isinstance(self._layer, nn.Module)
        found = self._layer(model) if is_function else self._layer
        (layer,) = named_layers(model, [found]).values()
        if self._readout is not None:
            return LayerReadoutIBA(model, layer).load(self._readout)
        if self._statistics is None or isinstance(self._statistics, FeatureStatistics):
            return LayerIBA(model, layer, statistics=self._statistics)
        return LayerIBA(model, layer).estimate(self._statistics)


def _checked(statistics: Any) -> FeatureStatistics | Iterable[Any] | None:
    if isinstance(statistics, (str, os.PathLike)):
        return FeatureStatistics.load(statistics)
    if isinstance(statistics, Iterator):
        return _Kept(statistics)
    if statistics is None or isinstance(statistics, (FeatureStatistics, Iterable)):
        return statistics
    raise InvalidTypeError(
        f"statistics is a {type(statistics).__name__}; wanted a path, FeatureStatistics, or an iterable of batches."
    )


class _Kept:
    """Batches that can be read once, kept for further models, as far as one reads: there may be no end."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches, self._read = batches, list[Any]()
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Any]:
        for number in count():
            with self._lock:
                if number == len(self._read):
                    try:
                        self._read.append(next(self._batches))
                    except StopIteration:
                        return
            yield self._read[number]


def _holds(method: LayerIBA | LayerReadoutIBA, model: nn.Module) -> bool:
    """Whether a method would keep the model alive: one of its readout's sources may be the model's own output."""
    if isinstance(method, LayerIBA):
        return False
    return any(site.layer is model for readout in method._state.readouts.values() for site in readout.sites)


def _assert_free(name: str, taken: dict[str, Any]) -> None:
    if not isinstance(name, str) or not name:
        raise InvalidTypeError(f"name={name!r}; wanted a text.")
    if name in taken and not hasattr(taken[name], "captum_iba_source"):
        raise InvalidArgumentError(f"name={name!r} is one of Captum's own methods; wanted another.")


def _method_class(source: _Source, name: str) -> type:
    """What Insights takes for a method: made from the model, with an ``attribute`` that it unwraps."""

    class Registered:
        captum_iba_source = source

        def __init__(self, model: nn.Module) -> None:
            self._model = model

        @classmethod
        def get_name(cls) -> str:
            return name

        @log_usage()  # type: ignore[untyped-decorator]
        def attribute(
            self,
            inputs: Tensor | tuple[Tensor, ...],
            target: TargetType = None,
            additional_forward_args: object | None = None,
            **arguments: Any,
        ) -> tuple[Tensor, ...]:
            try:
                inputs = inputs if isinstance(inputs, tuple) else (inputs,)
                bits = source.method_for(self._model).attribute(
                    inputs, target, additional_forward_args, **_numbers(arguments)
                )
            except Exception as error:  # the dashboard shows none of them
                _log.error("%s: %s", type(error).__name__, error)
                raise
            return tuple(_drawable(own) for own in bits)

    return Registered


def _numbers(arguments: dict[str, Any]) -> dict[str, Any]:
    """The controls' values, which may be texts.

    Raises:
        InvalidArgumentError: no number.
    """
    kinds: dict[str, Callable[[Any], Any]] = {"n_steps": int, "beta": float}
    try:
        return {name: kinds[name](value) for name, value in arguments.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidArgumentError(f"{arguments} from the dashboard; wanted numbers n_steps and beta.") from error


def _drawable(bits: Tensor) -> Tensor:
    """Bits of the input's shape as Insights draws them: three channels, and something to scale by."""
    if bits.ndim != 4:
        return bits
    if bits.shape[1] == 1:
        bits = bits.repeat(1, 3, 1, 1) / 3
    for row in range(len(bits)):
        if not bool(bits[row].any()):
            _warner.once("empty", "An example has no bits at all; its map is empty but for a mark in the first pixel.")
            bits[row, :, 0, 0] = _FAINT
    return bits
