"""A comparison as a table in Markdown or plain text, and as data frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from captum_iba.comparison._text import (
    NOTHING,
    SUMMARY_HEADING,
    best_of,
    count_text,
    fewer_text,
    heading_text,
    left_out,
    mean_text,
    methods_that_ran,
    notes,
    number_text,
    seconds_text,
    stopped_lines,
    summary,
)
from captum_iba.comparison._types import MetricInfo, Results
from captum_iba.errors import MissingDependencyError

_WIDTH, _GAP = 150, "  "


def to_markdown(results: Results) -> str:
    """The table as GitHub shows it.

    Args:
        results (Results): a comparison of M methods in K metrics.

    Returns:
        str: a row for each of the M methods: each metric's mean ± standard error and rank, the best in bold, with the
        number of examples behind it where that is not all; seconds an image; megabytes. Beneath it: methods that could
        not run or failed on some examples, constant maps, why values are missing, the examples left out (at most ten),
        and for each metric the best mean and the methods that are not told apart from it.

    Examples::

        >>> import numpy as np
        >>> from captum_iba.comparison._types import ExampleInfo, MethodInfo, MetricInfo, Results
        >>> results = Results(
        ...     methods=[MethodInfo("IBA", "", "bits per pixel", seconds=0.5, peak_memory=100.0)],
        ...     metrics=[MetricInfo("insertion", "area under the curve")],
        ...     examples=[ExampleInfo("a", "cat", "cat", 0.9), ExampleInfo("b", "dog", "dog", 0.8)],
        ...     scores={"IBA": {"insertion": np.array([0.5, 0.7])}},
        ...     curves={},
        ...     maps={},
        ... )
        >>> print(to_markdown(results))
        | method | insertion ↑ | seconds an image ↓ | peak memory, MB ↓ |
        | :-- | --: | --: | --: |
        | IBA | 0.60 ± 0.10 (1) | 0.500 | 100 |
        <BLANKLINE>
        Mean ± standard error (rank, 1 the best) over 2 examples.
    """
    headings, rows = _headings(results), _rows(results)
    lines = [_row(map(_escaped, headings)), _row([":--", *["--:"] * (len(headings) - 1)])]
    for cells, best in rows:
        texts = [f"**{_escaped(text)}**" if column in best else _escaped(text) for column, text in enumerate(cells)]
        lines.append(_row(texts))
    for lead, items in _beneath(results):
        lines += ["", _escaped(lead)] + ([""] if items else []) + [f"- {_escaped(item)}" for item in items]
    return "\n".join(lines)


def to_text(results: Results) -> str:
    """The table for a terminal: aligned, in blocks of metrics that are at most about 150 characters wide.

    Args:
        results (Results): a comparison of M methods in K metrics.

    Returns:
        str: what :func:`to_markdown` says, as plain text. Characters that cannot be printed are replaced by ``?``.

    Examples::

        >>> import numpy as np
        >>> from captum_iba.comparison._types import ExampleInfo, MethodInfo, MetricInfo, Results
        >>> results = Results(
        ...     methods=[MethodInfo("IBA", "", "", seconds=0.5, peak_memory=9.0), MethodInfo("LRP", "", "", "no rule")],
        ...     metrics=[MetricInfo("insertion", "area under the curve")],
        ...     examples=[ExampleInfo("a", "cat", "cat", 0.9)],
        ...     scores={"IBA": {"insertion": np.array([0.5])}, "LRP": {"insertion": np.array([np.nan])}},
        ...     curves={},
        ...     maps={},
        ... )
        >>> print(to_text(results))
        method     insertion ↑  seconds an image ↓  peak memory, MB ↓
        -------------------------------------------------------------
        IBA     0.5000 ± – (1)               0.500               9.00
        LRP                  –                   –                  –
        <BLANKLINE>
        Mean ± standard error (rank, 1 the best) over 1 example.
          LRP could not run: no rule
    """
    table = [_headings(results), *(cells for cells, _ in _rows(results))]
    columns = [[_printable(cells[place]) for cells in table] for place in range(len(table[0]))]
    lines = [line for block in _blocks(columns) for line in [*_aligned([columns[0], *block]), ""]]
    for lead, items in _beneath(results):
        lines += [_printable(lead), *(f"  {_printable(item)}" for item in items), ""]
    return "\n".join(lines[:-1])


def _headings(results: Results) -> list[str]:
    return ["method", *map(heading_text, results.metrics), f"{seconds_text(results)} ↓", "peak memory, MB ↓"]


def _rows(results: Results) -> list[tuple[list[str], set[int]]]:
    """Cells of each method, those that could not run last, and the columns in which it is the best."""
    ran, width = methods_that_ran(results), len(results.metrics) + 3
    rows: dict[str, tuple[list[str], set[int]]] = {
        info.name: ([info.name, *[NOTHING] * (width - 1)], set())
        for info in [*ran, *(info for info in results.methods if info.reason)]
    }
    for column, metric in enumerate(results.metrics, start=1):
        for info in ran:
            rows[info.name][0][column] = _value(results, info.name, metric)
        for name in best_of({info.name: results.mean(info.name, metric.name) for info in ran}, metric.higher_is_better):
            rows[name][1].add(column)
    for info in ran:
        rows[info.name][0][-2:] = [number_text(info.seconds, 3), number_text(info.peak_memory, 3)]
    return list(rows.values())


def _value(results: Results, method: str, metric: MetricInfo) -> str:
    mean, rank = results.mean(method, metric.name), results.rank(method, metric.name)
    text = mean_text(mean, results.stderr(method, metric.name))
    fewer = fewer_text(results, method, metric.name)
    return (text if np.isnan(rank) else f"{text} ({rank:g})") + (f", {fewer}" if fewer else "")


def _beneath(results: Results) -> list[tuple[str, list[str]]]:
    """What stands beneath the table: headings, and the lines of each."""
    caption = f"Mean ± standard error (rank, 1 the best) over {count_text(len(results.examples))}"
    fewer = any(fewer_text(results, info.name, m.name) for info in methods_that_ran(results) for m in results.metrics)
    caption += "; n: where a value, and so its rank, rests on fewer." if fewer else "."
    lead, skipped = left_out(results)
    found = [(caption, [*stopped_lines(results), *notes(results)])]
    found += [(f"{lead}:", skipped)] if skipped else []
    lines = summary(results)
    return found + ([(f"{SUMMARY_HEADING}:", lines)] if lines else [])


def _blocks(columns: Sequence[Sequence[str]]) -> list[list[Sequence[str]]]:
    """Columns after the first, in groups that fit the width together with it."""
    widths = [max(map(len, column)) for column in columns]
    blocks: list[list[Sequence[str]]] = []
    used = _WIDTH
    for column, width in zip(columns[1:], widths[1:], strict=True):
        if used + len(_GAP) + width > _WIDTH:
            blocks.append([])
            used = widths[0]
        blocks[-1].append(column)
        used += len(_GAP) + width
    return blocks


def _aligned(columns: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose first column stands at the left and the others at the right, under a rule."""
    widths = [max(map(len, column)) for column in columns]
    lines = [
        _GAP.join([cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))])
        for cells in zip(*columns, strict=True)
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def _printable(text: str) -> str:
    """Text on one line, without what would steer a terminal or cannot be encoded."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))


def _row(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """Text that neither ends a cell nor becomes mark-up."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("\\", "\\\\")
    for character in "|*_`[]":
        text = text.replace(character, f"\\{character}")
    return text


def to_dataframe(results: Results) -> Any:
    """The table as a data frame, a row for each method.

    Args:
        results (Results): a comparison of M methods in K metrics.

    Returns:
        pandas.DataFrame: (M, 4 * K + 5), indexed by method, in the order asked for. Columns are pairs: ``(metric,
        "mean")``, ``(metric, "stderr")``, ``(metric, "rank")`` and ``(metric, "n")``, the number of examples with a
        value; then ``("seconds", "")``, ``("peak memory", "")`` in MB, ``("training seconds", "")``, ``("failed
        examples", "")`` and ``("reason", "")``, empty where the method ran.

    Raises:
        MissingDependencyError: pandas is not installed.

    Examples::

        >>> from captum_iba.comparison._types import MethodInfo, Results
        >>> frame = to_dataframe(Results([MethodInfo("IBA", "", "", seconds=0.5)], [], [], {}, {}, {}))
        >>> float(frame.loc["IBA", ("seconds", "")])
        0.5
    """
    pandas = _pandas()
    columns: dict[tuple[str, str], list[Any]] = {}
    names = [info.name for info in results.methods]
    for metric in (info.name for info in results.metrics):
        columns[metric, "mean"] = [results.mean(name, metric) for name in names]
        columns[metric, "stderr"] = [results.stderr(name, metric) for name in names]
        columns[metric, "rank"] = [results.rank(name, metric) for name in names]
        columns[metric, "n"] = [int((~np.isnan(results.scores[name][metric])).sum()) for name in names]
    columns["seconds", ""] = [info.seconds for info in results.methods]
    columns["peak memory", ""] = [info.peak_memory for info in results.methods]
    columns["training seconds", ""] = [info.fit_seconds for info in results.methods]
    columns["failed examples", ""] = [info.n_failed for info in results.methods]
    columns["reason", ""] = [info.reason for info in results.methods]
    frame = pandas.DataFrame(columns, index=pandas.Index(names, name="method"))
    frame.columns = pandas.MultiIndex.from_tuples(columns, names=["metric", "value"])
    return frame


def scores_dataframe(results: Results) -> Any:
    """Every example's scores as a data frame, a row for each example and method.

    Args:
        results (Results): a comparison of M methods in K metrics on N examples.

    Returns:
        pandas.DataFrame: (N * M, 5 + K): example, target, predicted, probability, method, and a column for each metric.
        Examples of one method follow each other.

    Raises:
        MissingDependencyError: pandas is not installed.

    Examples::

        >>> import numpy as np
        >>> from captum_iba.comparison._types import ExampleInfo, MethodInfo, MetricInfo, Results
        >>> scores = {"IBA": {"insertion": np.array([0.5])}}
        >>> methods, metrics = [MethodInfo("IBA", "", "bits per pixel")], [MetricInfo("insertion", "...")]
        >>> frame = scores_dataframe(Results(methods, metrics, [ExampleInfo("a", "cat", "cat", 0.9)], scores, {}, {}))
        >>> frame[["example", "method", "insertion"]].values.tolist()
        [['a', 'IBA', 0.5]]
    """
    pandas = _pandas()
    head = [(example.key, example.target, example.predicted, example.probability) for example in results.examples]
    frames = []
    for info in results.methods:
        frame = pandas.DataFrame(head, columns=["example", "target", "predicted", "probability"])
        frame["method"] = info.name
        for metric in results.metrics:
            frame[metric.name] = results.scores[info.name][metric.name]
        frames.append(frame)
    return pandas.concat(frames, ignore_index=True) if frames else pandas.DataFrame()


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise MissingDependencyError("Data frames need pandas: pip install 'captum_iba[report]'.") from error
    return pandas
