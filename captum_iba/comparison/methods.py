"""The methods of a comparison: a registry of names, and what builds each for a model."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from torch import Tensor

from captum_iba.comparison._types import BITS, NO_UNIT
from captum_iba.comparison.context import Context
from captum_iba.comparison.example import KINDS, Kind, refusal
from captum_iba.errors import InvalidArgumentError, InvalidTypeError

Explainer: TypeAlias = Callable[..., Tensor]
"""``explain(inputs (B, C, H, W), target (B,)) -> maps``: (B, 1, h, w), or (B, C, h, w), whose channels are summed.

Of a vision transformer's tokens (B, T, 1) will do, see :func:`captum_iba.attr.tokens_to_map`.

On text ``explain(inputs (1, T), target (1,), ...) -> maps``: (1, T), (1, T, 1), or (1, T, D), which is summed. Where
it has parameters ``additional_forward_args``, ``baselines`` or ``feature_mask``, it is given the model's further
arguments, the ids that stand for nothing, and the units, which are negative at special tokens.
"""

_BITS_ON: Mapping[Kind, str] = {"image": BITS, "text": "bits per token"}


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
