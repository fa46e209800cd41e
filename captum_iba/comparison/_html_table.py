"""The table of the page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from captum_iba.comparison._text import best_of, mean_text, number_text
from captum_iba.comparison._types import MethodInfo, Results


@dataclass(frozen=True)
class Column:
    """A heading: ``higher`` is None for a column without better and worse, ``note`` the number of examples if fewer."""

    name: str
    description: str
    higher: bool | None
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """One value: ``value`` is what rows are sorted by, ``notes`` stand beneath it, the reason of a dash among them."""

    text: str
    value: float
    best: bool = False
    notes: tuple[str, ...] = ()


def table_columns(results: Results) -> list[Column]:
    """Headings of K metrics, seconds and memory."""
    total = len(results.examples)
    columns = []
    for metric in results.metrics:
        common = _common_count(results, metric.name)
        note = f"n = {common}" if common not in (0, total) else ""
        columns.append(Column(metric.name, metric.description, metric.higher_is_better, note))
    return [
        *columns,
        Column("seconds an image", "Mean time of one example's attribution.", False),
        Column("peak memory, MB", "Most memory an attribution needed above what was in use before.", False),
    ]


def table_rows(results: Results) -> list[tuple[MethodInfo, list[Cell]]]:
    """Methods that ran, each with its K + 2 cells."""
    ran = [info for info in results.methods if not info.reason]
    columns = [_metric_cells(results, ran, metric.name, metric.higher_is_better) for metric in results.metrics]
    columns.append(_cost_cells({info.name: info.seconds for info in ran}))
    columns.append(_cost_cells({info.name: info.peak_memory for info in ran}))
    return [(info, [column[info.name] for column in columns]) for info in ran]


def _metric_cells(results: Results, ran: list[MethodInfo], metric: str, higher: bool | None) -> dict[str, Cell]:
    means = {info.name: results.mean(info.name, metric) for info in ran}
    best, common = best_of(means, higher), _common_count(results, metric)
    cells = {}
    for name, mean in means.items():
        n, rank = _count(results, name, metric), results.rank(name, metric)
        notes = [
            "" if math.isnan(rank) else f"rank {rank:g}",
            "no defined value" if n == 0 else f"n = {n}" if n != common else "",
        ]
        text = mean_text(mean, results.stderr(name, metric))
        cells[name] = Cell(text, mean, name in best, tuple(note for note in notes if note))
    return cells


def _cost_cells(values: Mapping[str, float]) -> dict[str, Cell]:
    best = best_of(values, higher_is_better=False)
    cells = {}
    for name, value in values.items():
        notes = ("not measured",) if math.isnan(value) else ()
        cells[name] = Cell(number_text(value, 3), value, name in best, notes)
    return cells


def _count(results: Results, method: str, metric: str) -> int:
    return int((~np.isnan(results.scores[method][metric])).sum())


def _common_count(results: Results, metric: str) -> int:
    """The number of examples behind most of the column's values."""
    counts = Counter(_count(results, info.name, metric) for info in results.methods if not info.reason)
    del counts[0]
    return max(counts, key=lambda n: (counts[n], n)) if counts else 0


def paired_differences(results: Results) -> list[list[list[float | int | None]]]:
    """Paired differences of the methods that ran.

    Returns:
        list: for each metric, ``[i, j, mean, standard error, n]`` for places i < j among the methods that ran; the
        difference is i - j, None where it is undefined.
    """
    names = [info.name for info in results.methods if not info.reason]
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
