"""What an information plane recorded: a table, a picture, and whether information only falls from layer to layer."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from captum_iba._numbers import assert_number
from captum_iba._pandas import as_dataframe
from captum_iba.errors import InvalidArgumentError
from captum_iba.information.estimate import Estimate, Unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = ("step", "layer", "i_xt", "i_ty", "i_xt_se", "i_ty_se", "cap", "saturated", "n_runs")


class Point(NamedTuple):
    """One layer at one step of one run: pairs for I(X;T) and I(T;Y), in floats, of which a training makes many."""

    values: tuple[float, float]
    errors: tuple[float, float]
    cap: float
    saturated: bool
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, i_xt: Estimate, i_ty: Estimate) -> Point:
        """From both estimates, in the same unit; information is at least 0, although some estimators go below."""
        return cls(
            (max(float(i_xt.value), 0.0), max(float(i_ty.value), 0.0)),
            (float(i_xt.standard_error), float(i_ty.standard_error)),
            float(i_xt.cap),
            bool(i_xt.saturated),
            (*i_xt.warnings, *i_ty.warnings),
        )


@dataclass(frozen=True)
class Violation:
    """A layer that seems to know more than the layer before it.

    Attributes:
        step (float): when.
        layers (tuple[str, str]): the earlier layer and the later one.
        quantity (str): ``"I(X;T)"`` or ``"I(T;Y)"``.
        excess (float): by how much the later one exceeds the earlier one.
        standard_error (float): of this difference, as if the two were independent.
    """

    step: float
    layers: tuple[str, str]
    quantity: str
    excess: float
    standard_error: float


@dataclass(frozen=True)
class DataProcessingCheck:
    """Whether estimates obey the data-processing inequality along the layers.

    Attributes:
        estimator (str): whose estimates they are.
        n_comparisons (int): pairs of adjacent layers that were compared, for both quantities.
        violations (tuple[Violation, ...]): those beyond the tolerance.
        unit (str): of the excesses.
    """

    estimator: str
    n_comparisons: int
    violations: tuple[Violation, ...]
    unit: Unit

    @property
    def holds(self) -> bool:
        """No violation."""
        return not self.violations

    def __str__(self) -> str:
        head = f"{self.estimator}: {len(self.violations)} of {self.n_comparisons} comparisons violate the inequality"
        if self.holds:
            return head + "."
        worst = max(self.violations, key=lambda one: one.excess)
        return (
            f"{head}; the largest excess is {worst.excess:.2f} {self.unit} of {worst.quantity}, from "
            f"{worst.layers[0]!r} to {worst.layers[1]!r} at step {worst.step:g}. No network does this: it is the "
            "estimator, whose noise or bins are put on each layer anew and are not passed on."
        )


@dataclass(frozen=True)
class InformationPlaneResult:
    """Columns of equal length, a row for each step and layer: by step, within a step in the order of the layers.

    Attributes:
        step (tuple[float, ...]): as logged.
        layer (tuple[str, ...]): its name.
        i_xt (tuple[float, ...]): I(X;T), in ``unit``, at least 0.
        i_ty (tuple[float, ...]): I(T;Y), likewise.
        i_xt_se (tuple[float, ...]): standard error of I(X;T); see ``error_bars``.
        i_ty_se (tuple[float, ...]): standard error of I(T;Y).
        cap (tuple[float, ...]): the largest value that I(X;T) can have for so many rows.
        saturated (tuple[bool, ...]): I(X;T) is near the cap, in at least one run; the true one may be anything above.
        n_runs (tuple[int, ...]): runs behind this row.
        error_bars (str): ``"rows"``: of one run, what other rows of data would change; ``"runs"``: of the mean over
            several runs, what other initialisations would change.
        estimator (str): with its settings.
        unit (str): ``"bits"`` or ``"nats"``.
        warnings (tuple[str, ...]): traps that estimates met, each once.
    """

    step: tuple[float, ...]
    layer: tuple[str, ...]
    i_xt: tuple[float, ...]
    i_ty: tuple[float, ...]
    i_xt_se: tuple[float, ...]
    i_ty_se: tuple[float, ...]
    cap: tuple[float, ...]
    saturated: tuple[bool, ...]
    n_runs: tuple[int, ...]
    error_bars: Literal["rows", "runs"]
    estimator: str
    unit: Unit
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, points: Mapping[tuple[int, float, str], Point], layers: Sequence[str], estimator: str, unit: Unit
    ) -> InformationPlaneResult:
        """The table of points by (run, step, layer)."""
        over_runs = len({run for run, _, _ in points}) > 1
        grouped: dict[tuple[float, str], list[Point]] = {}
        for (_, step, layer), point in points.items():
            grouped.setdefault((step, layer), []).append(point)
        keys = sorted(grouped, key=lambda key: (key[0], layers.index(key[1])))
        rows = [(*key, *_row(grouped[key], over_runs)) for key in keys]
        columns = dict(zip(_COLUMNS, zip(*rows, strict=True), strict=True))
        met = dict.fromkeys(text for point in points.values() for text in point.warnings)
        bars: Literal["rows", "runs"] = "runs" if over_runs else "rows"
        return cls(**columns, error_bars=bars, estimator=estimator, unit=unit, warnings=tuple(met))

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in their order."""
        return tuple(dict.fromkeys(self.layer))

    def path(self, layer: str) -> list[int]:
        """Positions of one layer's rows, by step.

        Raises:
            InvalidArgumentError: no layer has this name.
        """
        if layer not in self.layer:
            raise InvalidArgumentError(
                f"There is no layer {layer!r}; recorded were {', '.join(map(repr, self.layers))}."
            )
        return [place for place, name in enumerate(self.layer) if name == layer]

    def loss_after_maximum(self, layer: str) -> float:
        """How far I(X;T) of a layer has fallen at the last step from its largest value: its compression.

        Raises:
            InvalidArgumentError: no layer has this name.
        """
        values = [self.i_xt[place] for place in self.path(layer)]
        return max(values) - values[-1]

    def to_dataframe(self) -> Any:
        """A pandas.DataFrame with these columns.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        return as_dataframe({name: getattr(self, name) for name in _COLUMNS})

    def check_data_processing(self, n_standard_errors: float = 2.0) -> DataProcessingCheck:
        """Compare each layer with the one before it: X - T_1 - T_2 - ... - Y lets neither information rise.

        The layers must be a chain: each computed from the one before it alone. Estimates for a deterministic network
        need not obey the inequality, as noise or bins are put on each layer anew. A violation says that this
        estimator's values at these two layers cannot be compared, not that a layer created information.

        Args:
            n_standard_errors (float, optional): tolerance, in standard errors of the difference. Default: 2.

        Returns:
            DataProcessingCheck: with all violations; printing it says which estimator and how much.
        """
        assert_number("n_standard_errors", n_standard_errors, lambda value: value >= 0, "of at least 0")
        found, n_comparisons = [], 0
        pairs = [
            (a, b)
            for a, b in zip(range(len(self.step)), range(1, len(self.step)), strict=False)
            if self.step[a] == self.step[b]
        ]
        quantities = (("I(X;T)", self.i_xt, self.i_xt_se), ("I(T;Y)", self.i_ty, self.i_ty_se))
        for quantity, values, errors in quantities:
            for a, b in pairs:
                n_comparisons += 1
                error = math.hypot(errors[a], errors[b])
                # a billionth for rounding: at the cap the error is 0
                if values[b] - values[a] > n_standard_errors * error + 1e-9:
                    between = (self.layer[a], self.layer[b])
                    found.append(Violation(self.step[a], between, quantity, values[b] - values[a], error))
        return DataProcessingCheck(self.estimator, n_comparisons, tuple(found), self.unit)

    def plot(self, limit: Any = None) -> Figure:
        """Draw the plane: a path for each layer, with the steps as colour.

        Args:
            limit (BottleneckCurve or Tensor, optional): the information bottleneck curve of the data, which no layer's
                true point is above; or p_xy (n_x, n_y), of which it is computed. Default: None.

        Returns:
            matplotlib.figure.Figure: drawn without pyplot; ``figure.savefig(path)`` writes it.
        """
        from captum_iba.information.plane_plot import plot_plane

        return plot_plane(self, limit)


def _row(points: Sequence[Point], over_runs: bool) -> tuple[Any, ...]:
    """A row's values, beside step and layer."""
    both = [*zip(*(point.values for point in points), strict=True)]
    means = [statistics.fmean(values) for values in both]
    errors = [_error_of_mean(values) for values in both] if over_runs else points[0].errors
    saturated = any(point.saturated for point in points)
    return (*means, *errors, max(point.cap for point in points), saturated, len(points))


def _error_of_mean(values: Sequence[float]) -> float:
    """Standard error of a mean; infinite for a single value, which tells nothing about others."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.inf
