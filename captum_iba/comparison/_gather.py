"""From the examples' records to the results of a comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from captum_iba.comparison._column import Column, Record
from captum_iba.comparison._types import Array, Curve, HeatMap, MethodInfo, MetricInfo, Results
from captum_iba.comparison.example import Kind
from captum_iba.comparison.methods import Method
from captum_iba.comparison.store import ExampleRecord, MethodRecord


def gather(
    records: Sequence[ExampleRecord],
    methods: Sequence[Method],
    columns: Sequence[Column],
    configuration: Mapping[str, object],
    versions: Mapping[str, str],
    kind: Kind = "image",
) -> Results:
    """Put the records of all examples together.

    Args:
        records (Sequence[ExampleRecord]): in the order of the data.
        methods (Sequence[Method]): rows.
        columns (Sequence[Column]): metrics.
        configuration (Mapping[str, object]): of the run.
        versions (Mapping[str, str]): of the packages.
        kind (str, optional): of the examples. Default: ``"image"``.

    Returns:
        Results: scores, curves, maps, costs and reasons.
    """
    read = [record for record in records if not record.skipped]
    scores: dict[str, dict[str, Array]] = {}
    curves: dict[str, dict[str, Curve]] = {}
    maps: dict[str, dict[str, HeatMap]] = {}
    undefined: dict[str, dict[str, tuple[int, str]]] = {}
    of_data = {column.info.name: [_of_data(record, column.info.name) for record in read] for column in columns}
    for method in methods:
        own = [record.methods[method.name] for record in read]
        scores[method.name], curves[method.name] = _gather_columns(own, columns, of_data)
        undefined[method.name] = _undefined(own, columns) | _without_scale(own, columns, scores[method.name])
        maps[method.name] = {
            record.info.key: result.heat_map
            for record, result in zip(read, own, strict=True)
            if result.heat_map is not None
        }
    return Results(
        methods=[_info(method, [record.methods[method.name] for record in read]) for method in methods],
        metrics=[_described(column, read) for column in columns],
        examples=[record.info for record in read],
        scores=scores,
        curves=curves,
        maps=maps,
        undefined=undefined,
        configuration=configuration,
        versions=versions,
        skipped={record.info.key: record.skipped for record in records if record.skipped},
        kind=kind,
    )


def _of_data(record: ExampleRecord, metric: str) -> Record | None:
    """What a metric found of an example itself, whichever method it was asked for."""
    found = [(result.metrics or {}).get(metric) for result in record.methods.values()]
    return next(({"data": r["data"]} for r in found if r is not None and "data" in r), None)


def _gather_columns(
    results: Sequence[MethodRecord], columns: Sequence[Column], of_data: Mapping[str, Sequence[Record | None]]
) -> tuple[dict[str, Array], dict[str, Curve]]:
    scores, curves = {}, {}
    for column in columns:
        name = column.info.name
        found = [(result.metrics or {}).get(name) for result in results]
        complete = [
            known if own is None or "undefined" in own else own for own, known in zip(found, of_data[name], strict=True)
        ]
        values, curve = column.gather(complete)
        scores[name] = values
        if curve is not None:
            curves[name] = curve
    return scores, curves


def _undefined(results: Sequence[MethodRecord], columns: Sequence[Column]) -> dict[str, tuple[int, str]]:
    """For how many examples a metric is undefined, and the most frequent reason."""
    found = {}
    for column in columns:
        records = [(result.metrics or {}).get(column.info.name) for result in results]
        reasons = Counter(record["undefined"] for record in records if record is not None and "undefined" in record)
        if reasons:
            found[column.info.name] = (sum(reasons.values()), reasons.most_common(1)[0][0])
    return found


def _without_scale(
    results: Sequence[MethodRecord], columns: Sequence[Column], scores: Mapping[str, Array]
) -> dict[str, tuple[int, str]]:
    """Why a metric that has records for every example has no score for any: the data set as a whole has no scale."""
    found = {}
    for column in columns:
        name, reason = column.info.name, getattr(column, "why_without_scale", "")
        n = sum("score" in ((result.metrics or {}).get(name) or {}) for result in results)
        if reason and n and np.isnan(scores[name]).all():
            found[name] = (n, reason)
    return found


def _described(column: Column, records: Sequence[ExampleRecord]) -> MetricInfo:
    """What a metric is, and why it has no value where it has none for any method and example."""
    info = column.info
    found = [(result.metrics or {}).get(info.name) for record in records for result in record.methods.values()]
    reasons = [None if r is None else r.get("undefined") for r in found if r is not None]
    if not reasons or None in reasons:
        return info
    return replace(info, description=f"{info.description} It could not be computed: {reasons[0]}")


def _info(method: Method, results: Sequence[MethodRecord]) -> MethodInfo:
    failures = Counter(result.failure for result in results if result.failure)
    n_failed = sum(failures.values())
    everywhere = n_failed == len(results) and n_failed > 0
    return MethodInfo(
        method.name,
        method.description,
        method.unit,
        reason=failures.most_common(1)[0][0] if everywhere else "",
        n_failed=n_failed,
        failure=failures.most_common(1)[0][0] if failures and not everywhere else "",
        n_constant=sum(result.is_constant for result in results),
        seconds=_median([result.seconds for result in results]),
        peak_memory=_median([result.memory for result in results]),
        fit_seconds=next((result.fit_seconds for result in results if result.fit_seconds is not None), None),
    )


def _median(values: Sequence[float | None]) -> float:
    there = [value for value in values if value is not None]
    return float(np.median(there)) if there else float("nan")
