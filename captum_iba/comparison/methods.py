"""The methods of a comparison: a registry of names, and what builds each for a model."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from captum_iba.attr import LayerIBA, suggest_layer
from captum_iba.attr._objective import output_tensor
from captum_iba.bottleneck.statistics import FeatureStatistics
from captum_iba.comparison._arguments import Additional, logits_of
from captum_iba.comparison._calibration_batches import Batches, Calibration
from captum_iba.comparison._embedding import find_embedding
from captum_iba.comparison._gradcam_layer import last_feature_map
from captum_iba.comparison._types import BITS, NO_UNIT, Baseline
from captum_iba.comparison.example import KINDS, Kind, refusal
from captum_iba.errors import CaptumIBAError, InvalidArgumentError, InvalidTypeError
from captum_iba.metrics._baselines import make_baselines
from captum_iba.metrics._perturb import default_rows

T = TypeVar("T")

Explainer: TypeAlias = Callable[..., Tensor]
"""``explain(inputs (B, C, H, W), target (B,)) -> maps``: (B, 1, h, w), or (B, C, h, w), whose channels are summed.

Of a vision transformer's tokens (B, T, 1) will do, see :func:`captum_iba.attr.tokens_to_map`.

On text ``explain(inputs (1, T), target (1,), ...) -> maps``: (1, T), (1, T, 1), or (1, T, D), which is summed. Where
it has parameters ``additional_forward_args``, ``baselines`` or ``feature_mask``, it is given the model's further
arguments, the ids that stand for nothing, and the units, which are negative at special tokens.
"""

_BITS_ON: Mapping[Kind, str] = {"image": BITS, "text": "bits per token"}


class Context:
    """What methods are built from.

    Layers and statistics that are not given are found when they are first asked for. Where that fails, asking raises,
    so that only the methods that need them cannot run.

    Args:
        model (nn.Module): the model to explain; methods leave it as it is and change copies.
        example (Tensor): (1, C, H, W), or token ids (1, T): the first example.
        calibration (Callable): returns an iterable of batches, and has their ``summary``.
        layer, gradcam_layer (nn.Module, optional): see below. Default: None: to be found.
        statistics (FeatureStatistics, optional): see below. Default: None: from the calibration.
        rows (int, optional): see below. Default: None: as many as run fastest, see :func:`default_rows`.
        seed (int, optional): see below. Default: 0.
        baselines (str or float, optional): see below. Default: ``"mean"`` (paper).
        options (Mapping, optional): further arguments by method, such as ``{"LayerIBA": {"beta": 1}}``. Default: None.
        additional_forward_args (tuple, optional): further arguments of the model on the example. Default: None.
        embedding (nn.Module, optional): see below. Default: None: to be found.

    Attributes:
        model (nn.Module): the model to explain.
        example (Tensor): (1, C, H, W), or token ids (1, T): the first example.
        additional_forward_args (tuple or None): further arguments of the model on the example.
        calibration (Callable): returns an iterable of batches; :meth:`fit` copes with a lack of memory.
        rows (int): most rows at once; halved when memory runs out.
        seed (int): of everything random.
        baselines (str or float): what stands for nothing in an image, see :meth:`baseline`.
        options (Mapping[str, Mapping[str, Any]]): arguments by method; a builder takes them by :meth:`options_of`.
        used (set[str]): methods whose options were taken.
        fit_seconds (dict[str, float]): time that methods say they were trained for, once for all examples.
        fixed_seed (int or None): of all images, where noise must not follow the image; None: of each its own.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        calibration: Calibration,
        *,
        layer: nn.Module | None = None,
        gradcam_layer: nn.Module | None = None,
        statistics: FeatureStatistics | None = None,
        rows: int | None = None,
        seed: int = 0,
        baselines: Baseline = "mean",
        options: Mapping[str, Mapping[str, Any]] | None = None,
        additional_forward_args: Additional = None,
        embedding: nn.Module | None = None,
    ) -> None:
        self.model, self.example, self.calibration = model, example, calibration
        self.additional_forward_args = additional_forward_args
        self.rows = default_rows(example) if rows is None else rows
        self._free_rows = self.rows if rows is None else None
        self.fixed_seed: int | None = None
        self.seed, self.baselines = seed, baselines
        self.options: Mapping[str, Mapping[str, Any]] = options or {}
        self.used: set[str] = set()
        self.fit_seconds: dict[str, float] = {}
        given = {
            "layer": layer,
            "gradcam_layer": gradcam_layer,
            "statistics": statistics,
            "embedding": embedding,
        }
        self._found: dict[str, Any] = {name: value for name, value in given.items() if value is not None}

    @property
    def layer(self) -> nn.Module:
        """Of the bottleneck.

        Raises:
            CaptumIBAError: none was given, and none suggests itself.
        """
        return self._find("layer", self._suggested)

    @property
    def gradcam_layer(self) -> nn.Module:
        """Of the GradCAM methods.

        Raises:
            CaptumIBAError: none was given, and the model has no feature maps.
        """
        return self._find("gradcam_layer", lambda: last_feature_map(self.model, self.example))

    @property
    def embedding(self) -> nn.Module:
        """Of the token ids.

        Raises:
            CaptumIBAError: none was given, and none can be told from the others.
        """
        return self._find("embedding", lambda: find_embedding(self.model, self.example, self.additional_forward_args))

    def forward(self, inputs: Tensor, *additional: Any) -> Tensor:
        """The model as a function to logits."""
        return logits_of(self.model, inputs, additional)

    @property
    def statistics(self) -> FeatureStatistics:
        """Of :attr:`layer`.

        Raises:
            CaptumIBAError: none were given, and they cannot be estimated.
        """
        return self._find("statistics", lambda: self.fit(self._estimate))

    @property
    def limit(self) -> int | None:
        """Most rows at once where memory or the user sets a limit; None where methods may choose."""
        return None if self.rows == self._free_rows else self.rows

    def baseline(self, x: Tensor) -> Tensor:
        """What methods that compare with the absence of features start from: of x's shape."""
        index = torch.zeros([1] * x.ndim, dtype=torch.long, device=x.device)
        return make_baselines(self.baselines, (x,), (index,), as_tuple=False)[0]

    def _suggested(self) -> nn.Module:
        if not self.example.is_floating_point():
            raise InvalidArgumentError(
                "No layer suggests itself for token ids; pass layer=..., an encoder block such as "
                "'bert.encoder.layer.1'."
            )
        return suggest_layer(self.model, self.example)

    def _estimate(self, batches: Iterable[Any]) -> FeatureStatistics:
        statistics = LayerIBA(self.model, self.layer).estimate(batches).statistics
        assert statistics is not None
        return statistics

    def _find(self, name: str, search: Callable[[], T]) -> T:
        """What was given or found; a failure is kept too, and raised again."""
        if name not in self._found:
            try:
                self._found[name] = search()
            except CaptumIBAError as error:
                self._found[name] = error
            except torch.OutOfMemoryError as error:
                self._found[name] = CaptumIBAError(f"Memory does not suffice for a single example: {error}")
        if isinstance(self._found[name], CaptumIBAError):
            raise self._found[name].with_traceback(None)
        found: T = self._found[name]
        return found

    def options_of(self, name: str) -> dict[str, Any]:
        """The user's arguments of a method."""
        self.used.add(name)
        return dict(self.options.get(name, {}))

    def fit(self, estimate: Callable[[Batches], T]) -> T:
        """Call ``estimate(batches)`` with the calibration data, in smaller batches where memory runs out."""
        most: int | None = None
        while True:
            try:
                return estimate(Batches(self.calibration, most))
            except torch.OutOfMemoryError:
                if most == 1:
                    raise
                most = self.rows if most is None else most // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    @cached_property
    def copy(self) -> nn.Module:
        """A copy of the model that returns its logits as a tensor.

        Its activations do not overwrite their input, which backward hooks need.
        """
        with torch.no_grad():
            output = self.model(self.example)
        return self._duplicate if isinstance(output, Tensor) else Logits(self._duplicate)

    @cached_property
    def _duplicate(self) -> nn.Module:
        duplicate = copy.deepcopy(self.model)
        for module in duplicate.modules():
            if getattr(module, "inplace", False) is True:
                module.inplace = False  # type: ignore[assignment]
        return duplicate

    def in_copy(self, layer: nn.Module) -> nn.Module:
        """The module of :attr:`copy` that corresponds to one of the model."""
        name = next(name for name, module in self.model.named_modules() if module is layer)
        return self._duplicate.get_submodule(name)


class Logits(nn.Module):
    """A model, returning the tensor of its output: itself, or its ``logits``.

    Args:
        model (nn.Module): the model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The logits of the model's output."""
        return output_tensor(self.model(*args, **kwargs))


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        name (str): its row's heading.
        build (Callable): ``build(context) -> explain``; raises where the model does not suit it, and the message
            becomes the row's reason.
        description (str): what it is, with its parameters.
        unit (str): of its maps: ``"bits per pixel"`` for bits per position, which are resized with their total kept
            for the pictures, else anything.
        is_fitted (bool): it is fitted on the calibration data.
        needs_statistics (bool): it uses the statistics of the bottleneck's layer.
        source (Callable or None): a user's function, whose code is watched when a run is resumed.
        kinds (tuple[str, ...]): of the examples that it explains: ``"image"``, ``"text"``.
    """

    name: str
    build: Callable[[Context], Explainer]
    description: str = ""
    unit: str = NO_UNIT
    is_fitted: bool = False
    needs_statistics: bool = False
    source: Callable[..., object] | None = None
    kinds: tuple[Kind, ...] = KINDS

    def on(self, kind: Kind) -> Method:
        """The method for examples of a kind: its unit is theirs; one that is for others says so when it is built."""
        unit = _BITS_ON[kind] if self.unit == BITS else self.unit
        if kind in self.kinds:
            return self if unit == self.unit else replace(self, unit=unit)

        def refuse(_context: Context) -> Explainer:
            raise InvalidArgumentError(refusal(self.name, self.kinds, kind))

        return replace(self, unit=unit, build=refuse, is_fitted=False, needs_statistics=False)


_METHODS: dict[str, Method] = {}


def register_method(
    name: str, build: Callable[[Context], Explainer], description: str = "", unit: str = NO_UNIT
) -> Method:
    """Add a method to the registry, for every later :func:`compare`; one of the same name is replaced.

    Args:
        name (str): the row's heading.
        build (Callable): ``build(context) -> explain``, see :class:`Context`, with
            ``explain(inputs, target) -> maps``. It runs once for a comparison.
        description (str, optional): for the report. Default: empty.
        unit (str, optional): of the maps. Default: none.

    Returns:
        Method: the entry.

    Raises:
        InvalidTypeError: build cannot be called, or name is no string.

    Examples::

        >>> method = register_method("Brightness", lambda context: lambda inputs, target: inputs, "the image itself")
        >>> "Brightness" in registered_methods()
        True
        >>> unregister_method("Brightness")
    """
    if not callable(build):
        raise InvalidTypeError(f"build is a {type(build).__name__}; wanted a function of the context.")
    _assert_name(name)
    return add_method(Method(name, build, description, unit, source=build))


def add_method(method: Method) -> Method:
    """Put a method into the registry."""
    _METHODS[method.name] = method
    return method


def unregister_method(name: str) -> None:
    """Take a method out of the registry.

    Raises:
        InvalidArgumentError: there is none of this name.
    """
    if name not in _METHODS:
        raise _unknown(name)
    del _METHODS[name]


def registered_methods() -> tuple[str, ...]:
    """Names of all methods, in the order of their registration."""
    _load_own()
    return tuple(_METHODS)


def find_methods(
    methods: str | Sequence[str | Method] | Mapping[str, Explainer] | None, kind: Kind = "image"
) -> list[Method]:
    """The methods of a comparison.

    Args:
        methods (str, Sequence or Mapping): ``"paper"``; ``"text"``; ``"all"`` that are registered for this kind;
            names and :class:`Method` s; or functions ``explain(inputs, target) -> maps`` by name. None: ``"paper"`` on
            images, ``"text"`` on text.
        kind (str, optional): of the examples. Default: ``"image"``.

    Raises:
        InvalidArgumentError: an unknown name, one twice, or none at all.
        InvalidTypeError: something else.
    """
    _load_own()
    methods = _DEFAULTS[kind] if methods is None else methods
    if isinstance(methods, Mapping):
        found = [_of_function(name, explain) for name, explain in methods.items()]
    elif isinstance(methods, str):
        for_kind = tuple(name for name, method in _METHODS.items() if kind in method.kinds)
        names = {"paper": PAPER, "text": TEXT, "all": for_kind}.get(methods, (methods,))
        found = [_find(name) for name in names]
    elif isinstance(methods, Sequence):
        found = [method if isinstance(method, Method) else _find(method) for method in methods]
    else:
        raise InvalidTypeError(
            f"methods is a {type(methods).__name__}; wanted 'paper', names, or functions (inputs, target) -> maps by "
            "name."
        )
    names = tuple(method.name for method in found)
    if not found or len(set(names)) < len(names):
        raise InvalidArgumentError(f"methods={list(names)}; wanted at least one, each once.")
    return [method.on(kind) for method in found]


def _assert_name(name: object) -> None:
    if not isinstance(name, str):
        raise InvalidTypeError(f"A method's name is a {type(name).__name__}; wanted a string.")


def _of_function(name: str, explain: Explainer) -> Method:
    _assert_name(name)
    if not callable(explain):
        raise InvalidTypeError(f"methods[{name!r}] is a {type(explain).__name__}; wanted (inputs, target) -> maps.")
    return Method(name, lambda context: explain, getattr(explain, "__doc__", None) or "", source=explain)


def _find(name: object) -> Method:
    if not isinstance(name, str):
        raise InvalidTypeError(f"A method is a {type(name).__name__}; wanted its name, or a Method.")
    if name not in _METHODS:
        raise _unknown(name)
    return _METHODS[name]


def _unknown(name: str) -> InvalidArgumentError:
    lower = {known.lower(): known for known in _METHODS}
    near = difflib.get_close_matches(name.lower(), lower, n=1)
    meant = f" Did you mean {lower[near[0]]!r}?" if near else ""
    return InvalidArgumentError(
        f"There is no method {name!r}.{meant} Known are {', '.join(_METHODS)}; register_method adds one."
    )


def _load_own() -> None:
    """Register the methods of this package, which must know this module."""
    import captum_iba.comparison.captum_methods
    import captum_iba.comparison.readout_method
    import captum_iba.comparison.rollout_method
    import captum_iba.comparison.text_methods  # noqa: F401


PAPER = (
    "LayerIBA",
    "Random",
    "Gradient",
    "Saliency",
    "InputXGradient",
    "IntegratedGradients",
    "SmoothGrad",
    "GuidedBackprop",
    "Deconvolution",
    "LayerGradCam",
    "GuidedGradCam",
    "Occlusion-8x8",
    "Occlusion-14x14",
    "DeepLift",
    "LRP",
    "PatternAttribution",
)
"""The methods of the paper's Table 2, and Captum's further ones."""

TEXT = (
    "LayerIBA",
    "LayerIntegratedGradients",
    "LayerGradientXActivation",
    "GradientNorm",
    "AttentionRollout",
    "Random",
)
"""The methods for text."""

_DEFAULTS: Mapping[Kind, str] = {"image": "paper", "text": "text"}
