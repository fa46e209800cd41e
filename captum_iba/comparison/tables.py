"""A comparison as a Markdown table, and as data frames."""

from __future__ import annotations

from typing import Any

import numpy as np

from captum_iba.comparison._text import best_of, heading_text, mean_text, number_text
from captum_iba.comparison._types import MethodInfo, MetricInfo, Results
from captum_iba.errors import MissingDependencyError


def to_markdown(results: Results) -> str:
    """The table as GitHub shows it.

    Args:
        results (Results): a comparison of M methods in K metrics.

    Returns:
        str: a row for each of the M methods: each metric's mean ± standard error and rank, the best in bold; seconds an
        image; megabytes. Methods that could not run come last, and beneath the table with their reasons.

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
        Mean ± standard error (rank) over 2 examples.
    """
    headings = ["method", *map(heading_text, results.metrics), "seconds an image ↓", "peak memory, MB ↓"]
    ran = [info for info in results.methods if not info.reason]
    stopped = [info for info in results.methods if info.reason]
    cells = {info.name: [_escaped(info.name), *["–"] * (len(headings) - 1)] for info in [*ran, *stopped]}
    for column, metric in enumerate(results.metrics, start=1):
        best = best_of({info.name: results.mean(info.name, metric.name) for info in ran}, metric.higher_is_better)
        for info in ran:
            text = _value(results, info.name, metric)
            cells[info.name][column] = f"**{text}**" if info.name in best else text
    for info in ran:
        cells[info.name][-2:] = [number_text(info.seconds, 3), number_text(info.peak_memory, 3)]
    lines = [_row(map(_escaped, headings)), _row([":--", *["--:"] * (len(headings) - 1)]), *map(_row, cells.values())]
    return "\n".join(
        [*lines, "", f"Mean ± standard error (rank) over {len(results.examples)} examples.", *_notes(ran)]
        + [f"- {_escaped(info.name)} could not run: {_escaped(info.reason)}" for info in stopped]
    )


def _notes(ran: list[MethodInfo]) -> list[str]:
    failed = [f"- {_escaped(info.name)} failed on {info.n_failed} of them" for info in ran if info.n_failed]
    return ["", *failed] if failed else [""]


def _value(results: Results, method: str, metric: MetricInfo) -> str:
    mean, rank = results.mean(method, metric.name), results.rank(method, metric.name)
    text = mean_text(mean, results.stderr(method, metric.name))
    return text if np.isnan(rank) else f"{text} ({rank:g})"


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
        pandas.DataFrame: (M, 4 * K + 4), indexed by method, in the order asked for. Columns are pairs: ``(metric,
        "mean")``, ``(metric, "stderr")``, ``(metric, "rank")`` and ``(metric, "n")``, the number of examples with a
        value; then ``("seconds", "")``, ``("peak memory", "")`` in MB, ``("failed examples", "")`` and ``("reason",
        "")``, empty where the method ran.

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
