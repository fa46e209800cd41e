"""The table of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from captum_iba.comparison._text import (
    best_of,
    column_count,
    fewer_text,
    mean_text,
    methods_that_ran,
    number_text,
    seconds_text,
    value_count,
)
from captum_iba.comparison._types import MethodInfo, MetricInfo, Results


@dataclass(frozen=True)
class Column:
    """A heading: ``higher`` is None for a column without better and worse, ``note`` the number of examples if fewer."""

    name: str
    description: str
    higher: bool | None
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """One value, its standard error and its rank, empty where there is none.

    ``value`` is what rows are sorted by; ``note`` stands beneath it: the number of examples, or why there is a dash.
    """

    text: str
    value: float
    error: str = ""
    rank: str = ""
    best: bool = False
    note: str = ""


def table_columns(results: Results) -> list[Column]:
    """Headings of K metrics, seconds and memory."""
    total = len(results.examples)
    columns = []
    for metric in results.metrics:
        n = column_count(results, metric.name)
        note = f"n={n}" if n not in (0, total) else ""
        columns.append(Column(metric.name, metric.description, metric.higher_is_better, note))
    return [
        *columns,
        Column(seconds_text(results), "Median time of one example's attribution.", False),
        Column("peak memory, MB", "Most memory of an attribution above what was in use before; the median.", False),
    ]


def table_rows(results: Results) -> list[tuple[MethodInfo, list[Cell]]]:
    """Methods that ran, each with its K + 2 cells."""
    ran = methods_that_ran(results)
    columns = [_metric_cells(results, ran, metric) for metric in results.metrics]
    columns.append(_cost_cells({info.name: info.seconds for info in ran}))
    columns.append(_cost_cells({info.name: info.peak_memory for info in ran}))
    return [(info, [column[info.name] for column in columns]) for info in ran]


def _metric_cells(results: Results, ran: list[MethodInfo], metric: MetricInfo) -> dict[str, Cell]:
    means = {info.name: results.mean(info.name, metric.name) for info in ran}
    best = best_of(means, metric.higher_is_better)
    cells = {}
    for name, mean in means.items():
        rank = results.rank(name, metric.name)
        text, _, error = mean_text(mean, results.stderr(name, metric.name)).partition(" ± ")
        note = fewer_text(results, name, metric.name) if value_count(results, name, metric.name) else "no value"
        cells[name] = Cell(text, mean, error, "" if math.isnan(rank) else f"{rank:g}", name in best, note)
    return cells


def _cost_cells(values: Mapping[str, float]) -> dict[str, Cell]:
    """None is the best where one is 0: it was too small to be measured, so that it cannot be told from others."""
    best = set() if 0.0 in values.values() else best_of(values, higher_is_better=False)
    return {
        name: Cell(number_text(value, 3), value, best=name in best, note="not measured" if math.isnan(value) else "")
        for name, value in values.items()
    }


def paired_differences(results: Results) -> list[list[list[float | int | None]]]:
    """Paired differences of the methods that ran.

    Returns:
        list: for each metric, ``[i, j, mean, standard error, n]`` for places i < j among the methods that ran; the
        difference is i - j, None where it is undefined.
    """
    names = [info.name for info in methods_that_ran(results)]
    found = []
    for metric in results.metrics:
        pairs: list[list[float | int | None]] = []
        for i, name in enumerate(names):
            for j in range(i + 1, len(names)):
                difference, error, n = results.paired(name, names[j], metric.name)
                pairs.append([i, j, _finite(difference), _finite(error), n])
        found.append(pairs)
    return found


def _finite(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
