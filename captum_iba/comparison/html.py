"""A comparison as one page that needs nothing else: table, photos with heat maps, curves."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from captum_iba._files import write_atomically
from captum_iba.comparison._html_curves import MOST_BANDS, SIZE, charts
from captum_iba.comparison._html_photos import encoded_maps, methods_with_maps, opening_place, photos, viridis
from captum_iba.comparison._html_table import paired_differences, table_columns, table_rows
from captum_iba.comparison._html_texts import STEPS, texts
from captum_iba.comparison._palette import DARK, LIGHT, MARK_PATHS
from captum_iba.comparison._text import (
    SUMMARY_HEADING,
    count_text,
    left_out,
    methods_that_ran,
    notes,
    plain_text,
    summary,
)
from captum_iba.comparison._types import Results
from captum_iba.errors import MissingDependencyError

_PARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[/_.-])")


def render_html(results: Results) -> str:
    """One page with the table, the photos under every method's heat map, the curves, and what was run.

    Texts are shown in the photos' place, a line of coloured tokens for each method. The page loads nothing from
    anywhere and follows the reader's light or dark setting. So that it stays small, heat maps longer than 112 pixels
    are averaged down to that length (further, from about 600 maps on), curves of more than 101 points are thinned to
    that number, and of more than 150 000 tokens, over all methods, the first texts are shown; the table holds every
    value.

    Args:
        results (Results): a comparison of M methods in K metrics on N examples; maps are (h, w) levels of any size.

    Returns:
        str: HTML; names of files, classes and methods appear in it as text, whatever they hold.

    Raises:
        InvalidArgumentError: an example's photo cannot be read.
        MissingDependencyError: jinja2 is not installed.

    Examples::

        >>> import numpy as np
        >>> from captum_iba.comparison._types import ExampleInfo, MethodInfo, MetricInfo, Results
        >>> results = Results(
        ...     methods=[MethodInfo("IBA", "LayerIBA on layer4", "bits per pixel", seconds=0.5)],
        ...     metrics=[MetricInfo("insertion", "Area under the insertion curve.")],
        ...     examples=[ExampleInfo("<cat>.jpg", "cat", "cat", 0.9)],
        ...     scores={"IBA": {"insertion": np.array([0.5])}},
        ...     curves={},
        ...     maps={},
        ...     configuration={"model": "resnet50"},
        ... )
        >>> page = render_html(results)
        >>> "<title>Attribution methods compared: resnet50</title>" in page
        True
    """
    environment = _environment()
    # the page runs this script and no other, by its hash
    script = environment.get_template("report.js").render()
    shown = texts(results)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page: str = environment.get_template("report.html").render(
        results=results,
        subject=_subject(results),
        columns=table_columns(results),
        rows=table_rows(results),
        stopped=[info for info in results.methods if info.reason],
        n_text=count_text(len(results.examples)),
        notes=notes(results),
        left_out=left_out(results)[0],
        summary=summary(results),
        summary_heading=SUMMARY_HEADING,
        photos=photos(results),
        texts=shown,
        n_hidden=sum(bool(example.tokens) for example in results.examples) - len(shown),
        steps=STEPS,
        mapped=methods_with_maps(results),
        opening=opening_place(methods_with_maps(results)),
        charts=charts(results),
        size=SIZE,
        marks=MARK_PATHS,
        most_bands=MOST_BANDS,
        settings={str(key): plain_text(value) for key, value in results.configuration.items()},
        light=LIGHT,
        dark=DARK,
        scale=["#" + bytes(colour).hex() for colour in viridis()[::15]],
        script=script,
        digest=digest,
        data=_safe_json(_data(results)),
    )
    # names of files may hold bytes that are no text
    return page.encode("utf-8", "backslashreplace").decode()


def write_html(results: Results, path: str | os.PathLike[str]) -> None:
    """Write the page of :func:`render_html`; an existing file is replaced only once the new one is complete.

    Args:
        results (Results): a comparison.
        path (str or PathLike): the file.

    Raises:
        InvalidArgumentError: an example's photo cannot be read.
        MissingDependencyError: jinja2 is not installed.
        MissingFileError: the file's folder does not exist.

    Examples::

        >>> import tempfile
        >>> from captum_iba.comparison._types import Results
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_html(Results([], [], [], {}, {}, {}), Path(folder) / "report.html")
        ...     (Path(folder) / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
        True
    """
    write_atomically(Path(path), render_html(results).encode())


def _subject(results: Results) -> str:
    """What was explained, as far as the configuration says so."""
    parts = []
    if results.configuration.get("model"):
        parts.append(plain_text(results.configuration["model"]))
    layer = plain_text(results.configuration.get("layer") or "")
    if layer and not layer.startswith("none: "):  # a reason why there is none
        parts.append(f"layer {layer}")
    return ", ".join(parts)


def _data(results: Results) -> dict[str, Any]:
    """What the page's script needs."""
    return {
        "ran": [info.name for info in methods_that_ran(results)],
        "metrics": [{"name": info.name, "higher": info.higher_is_better} for info in results.metrics],
        "pairs": paired_differences(results),
        "mapped": [{"name": info.name, "unit": info.unit} for info in methods_with_maps(results)],
        "maps": encoded_maps(results),
    }


def _safe_json(data: dict[str, Any]) -> str:
    """JSON without a character that could end the script around it; other than ASCII is escaped."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _environment() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependencyError("The page needs jinja2: pip install 'captum_iba[report]'.") from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("captum_iba.comparison"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["breakable"] = _breakable
    return environment


def _breakable(text: str) -> Any:
    """A long name in which a line may end, as in LayerGrad|Cam or photo_|12.|jpg; its parts are escaped."""
    from markupsafe import Markup  # comes with jinja2

    return Markup("<wbr>").join(part for part in _PARTS.split(text) if part)
