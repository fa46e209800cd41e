"""What a comparison found, as table, figures and page."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from captum_iba._files import write_atomically
from captum_iba.comparison._text_figure import plot_texts
from captum_iba.comparison._types import Results
from captum_iba.comparison.figures import plot_maps, plot_results
from captum_iba.comparison.html import write_html
from captum_iba.comparison.tables import scores_dataframe, to_dataframe, to_markdown, to_text
from captum_iba.errors import InvalidArgumentError


class Report:
    """The results of :func:`compare`.

    ``print(report)`` gives the table.

    Args:
        results (Results): all values.

    Attributes:
        results (Results): methods, metrics, examples, scores (one an example), curves, heat maps, configuration.

    Examples::

        >>> from captum_iba.comparison import compare
        >>> from captum_iba.demo import LAYER, load_canvases, load_model
        >>> report = compare(load_model(), load_canvases("test", 3), ["Saliency", "Random"], ["degradation 14x14"],
        ...                  layer=LAYER, calibration=[load_canvases("train", 1000).images])
        >>> difference, error, n = report.paired("Saliency", "Random", "degradation 14x14")
        >>> n
        3
    """

    def __init__(self, results: Results) -> None:
        self.results = results

    def __str__(self) -> str:
        return to_text(self.results)

    def _assert_known(self, metric: str, *methods: str) -> None:
        known_methods = [info.name for info in self.results.methods]
        known_metrics = [info.name for info in self.results.metrics]
        for wanted, names in [(metric, known_metrics), *((method, known_methods) for method in methods)]:
            if wanted not in names:
                raise InvalidArgumentError(f"{wanted!r} was not compared; wanted one of {', '.join(names)}.")

    def mean(self, method: str, metric: str) -> float:
        """A method's mean; NaN where it has no value.

        Raises:
            InvalidArgumentError: no such method or metric, here and below.
        """
        self._assert_known(metric, method)
        return self.results.mean(method, metric)

    def stderr(self, method: str, metric: str) -> float:
        """Standard error of :meth:`mean` over the examples."""
        self._assert_known(metric, method)
        return self.results.stderr(method, metric)

    def rank(self, method: str, metric: str) -> float:
        """Place of the method's mean, 1 the best; equals share the mean place."""
        self._assert_known(metric, method)
        return self.results.rank(method, metric)

    def paired(self, method: str, other: str, metric: str) -> tuple[float, float, int]:
        """Mean difference ``method - other`` over the examples that both have, its standard error, their number."""
        self._assert_known(metric, method, other)
        return self.results.paired(method, other, metric)

    def to_markdown(self) -> str:
        """The table: mean, standard error and rank for each metric, time and memory; reasons beneath."""
        return to_markdown(self.results)

    def to_dataframe(self) -> Any:
        """A pandas DataFrame, one row a method; columns (metric, "mean", "stderr", "rank" or "n").

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        return to_dataframe(self.results)

    def plot(self) -> Figure:
        """Means with standard errors, and the curves."""
        return plot_results(self.results)

    def plot_maps(self, n: int = 8) -> Figure:
        """The first n pictures with every method's map, or texts with a line for each method."""
        return plot_texts(self.results, n) if self.results.kind == "text" else plot_maps(self.results, n)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write one self-contained page: sortable table, photos under each method's map or coloured texts, curves.

        Raises:
            MissingDependencyError: jinja2 is not installed.
            MissingFileError: the folder does not exist.
        """
        write_html(self.results, path)

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write everything into a folder, which is made if it is not there.

        Returns:
            list[Path]: the files: ``table.md``, ``report.html``, ``scores.csv`` (one row for each example and method),
            ``curves.png``, ``maps.png`` where pictures were kept, and ``configuration.json``.

        Raises:
            MissingDependencyError: jinja2 or pandas is not installed.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        known = {"configuration": dict(self.results.configuration), "versions": dict(self.results.versions)}
        texts = {
            "table.md": self.to_markdown() + "\n",
            "scores.csv": scores_dataframe(self.results).to_csv(index=False),
            "configuration.json": json.dumps(known, indent=2, default=str) + "\n",
        }
        for name, text in texts.items():
            write_atomically(target / name, text.encode())
        self.to_html(target / "report.html")
        self.plot().savefig(target / "curves.png", dpi=110)
        pictures = ["curves.png"]
        if any(self.results.maps.values()):
            self.plot_maps().savefig(target / "maps.png", dpi=110)
            pictures.append("maps.png")
        return [target / name for name in (*texts, "report.html", *pictures)]
