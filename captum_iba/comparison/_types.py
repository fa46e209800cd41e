"""What a comparison consists of: examples, methods, metrics, and the values found for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

NO_UNIT = "relevance, no unit"
BITS = "bits per pixel"

Baseline: TypeAlias = Literal["mean", "zero", "blur"] | float
"""What stands for a removed part; see :func:`captum_iba.metrics.degradation`."""


@dataclass(frozen=True)
class MethodInfo:
    """One row of the table.

    Attributes:
        name (str): such as ``"LayerIBA"``.
        description (str): what was run, with its parameters.
        unit (str): of its heat maps: ``"bits per pixel"``, on text ``"bits per token"``, or ``"relevance, no unit"``.
        reason (str): why it could not run on this model; empty where it ran.
        n_failed (int): examples that it failed on, though it ran on others.
        failure (str): the most frequent reason of those; empty without any.
        n_constant (int): examples on which its map is constant, so that it ranks nothing.
        seconds (float): median time of one example's attribution; NaN where it did not run.
        fit_seconds (float or None): time that its training took, statistics apart, also if that was before; None where
            nothing is trained.
        peak_memory (float): MB above what was in use before, at the most of one example's attribution; the median over
            the examples, as the first one also loads code. NaN where it did not run or where it cannot be measured.
    """

    name: str
    description: str
    unit: str
    reason: str = ""
    n_failed: int = 0
    failure: str = ""
    n_constant: int = 0
    seconds: float = float("nan")
    peak_memory: float = float("nan")
    fit_seconds: float | None = None


@dataclass(frozen=True)
class MetricInfo:
    """One column of the table.

    Attributes:
        name (str): such as ``"degradation 8x8"``.
        description (str): what it measures, in a sentence.
        higher_is_better (bool or None): None for a figure without better and worse.
        x_label, y_label (str): of its curve; empty where it has none.
    """

    name: str
    description: str
    higher_is_better: bool | None = True
    x_label: str = ""
    y_label: str = ""


@dataclass(frozen=True)
class Curve:
    """A metric's mean curve over the examples, for one method.

    Attributes:
        x (ndarray): (P,).
        lines (Mapping[str, tuple[ndarray, ndarray]]): mean and standard error, each (P,), by the name of the line, such
            as ``"most relevant first"``.
    """

    x: Array
    lines: Mapping[str, tuple[Array, Array]]


@dataclass(frozen=True)
class ExampleInfo:
    """One example of the data.

    Attributes:
        key (str): unique; a file's path within its folder.
        target (str): name of the explained class, or its index.
        predicted (str): name of the most probable class.
        probability (float): of the target, by the model.
        photo (bytes): JPEG of what the model saw, de-normalised; empty where none was kept.
        boxes (ndarray or None): (n, 4), half-open pixel boxes x0, y0, x1, y1 on the photo.
        tokens (tuple[str, ...]): of a text, as they are shown; empty where none were kept.
        special (tuple[bool, ...]): which of the tokens are the tokenizer's own, which no metric removes.
    """

    key: str
    target: str
    predicted: str
    probability: float
    photo: bytes = b""
    boxes: Array | None = None
    tokens: tuple[str, ...] = ()
    special: tuple[bool, ...] = ()


@dataclass(frozen=True)
class HeatMap:
    """One method's map of one example, quantised for display.

    Attributes:
        levels (ndarray): (h, w), uint8: 0 stands for low, 255 for high. Of a text (1, T), uint16, up to 65535: one
            special token may have a hundred times what the others have.
        low, high (float): ends of the scale, in the method's unit.
    """

    levels: npt.NDArray[np.unsignedinteger[Any]]
    low: float
    high: float


@dataclass(frozen=True)
class Results:
    """All values of a comparison.

    Attributes:
        methods (Sequence[MethodInfo]): rows, in the order asked for.
        metrics (Sequence[MetricInfo]): columns.
        examples (Sequence[ExampleInfo]): in the order of the data.
        scores (Mapping): ``scores[method][metric]`` is (n_examples,); NaN where it does not apply or is undefined.
        curves (Mapping): ``curves[method][metric]``, for metrics that have one.
        maps (Mapping): ``maps[method][example key]``, for examples whose photo, or tokens, were kept.
        undefined (Mapping): ``undefined[method][metric]`` is the number of examples on which the metric is undefined
            for the method's map, and the most frequent reason; the key is absent where there are none.
        configuration (Mapping[str, object]): arguments of the run that decide its values, seeds among them.
        versions (Mapping[str, str]): of Python, torch, captum and captum_iba.
        skipped (Mapping[str, str]): reason by file, for examples that could not be read.
        kind (str): of the examples: ``"image"`` or ``"text"``.
    """

    methods: Sequence[MethodInfo]
    metrics: Sequence[MetricInfo]
    examples: Sequence[ExampleInfo]
    scores: Mapping[str, Mapping[str, Array]]
    curves: Mapping[str, Mapping[str, Curve]]
    maps: Mapping[str, Mapping[str, HeatMap]]
    undefined: Mapping[str, Mapping[str, tuple[int, str]]] = field(default_factory=dict)
    configuration: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    kind: Literal["image", "text"] = "image"

    def mean(self, method: str, metric: str) -> float:
        """Mean over the examples with a value; NaN without any."""
        values = _defined(self.scores[method][metric])
        return float(values.mean()) if len(values) else float("nan")

    def stderr(self, method: str, metric: str) -> float:
        """Standard error of the mean; NaN with fewer than two values."""
        values = _defined(self.scores[method][metric])
        return float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("nan")

    def rank(self, method: str, metric: str) -> float:
        """Place of the method's mean, 1 the best, equals sharing the mean place; NaN without value or direction."""
        info = next(info for info in self.metrics if info.name == metric)
        own = self.mean(method, metric)
        if info.higher_is_better is None or np.isnan(own):
            return float("nan")
        sign = 1.0 if info.higher_is_better else -1.0
        others = np.array([sign * self.mean(other.name, metric) for other in self.methods])
        ahead, equal = (others > sign * own).sum(), (others == sign * own).sum()
        return float(ahead + (equal + 1) / 2)

    def paired(self, method: str, other: str, metric: str) -> tuple[float, float, int]:
        """Mean and standard error of the paired difference method - other, and the number of common examples."""
        difference = _defined(self.scores[method][metric] - self.scores[other][metric])
        n = len(difference)
        error = float(difference.std(ddof=1)) / n**0.5 if n > 1 else float("nan")
        return (float(difference.mean()) if n else float("nan")), error, n


def _defined(values: Array) -> Array:
    return values[~np.isnan(values)]
