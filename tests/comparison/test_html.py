import base64
import builtins
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from captum_iba.comparison._html_curves import charts
from captum_iba.comparison._html_photos import encoded_maps, photos, viridis
from captum_iba.comparison._types import Curve, ExampleInfo, HeatMap, MethodInfo, MetricInfo, Results
from captum_iba.comparison.html import render_html, write_html
from captum_iba.errors import InvalidArgumentError, MissingDependencyError, MissingFileError
from tests.comparison.results_example import example_results

HOSTILE = "<img src=x onerror=alert(1)>.jpg"
VOID = {"meta", "link", "img", "input", "br", "wbr"}


class Page(HTMLParser):
    """Elements with their attributes and text, and the cells of the table of values."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "attrs": dict(attrs), "text": "", "within": [e["attrs"].get("id") for e in self.open]}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag, within=None, **attrs):
        return [
            e
            for e in self.elements
            if e["tag"] == tag
            and (within is None or within in e["within"])
            and all(e["attrs"].get(k) == v for k, v in attrs.items())
        ]

    def rows(self, within):
        rows = []
        for e in self.elements:
            if within in e["within"] and e["tag"] == "tr":
                rows.append([])
            if within in e["within"] and e["tag"] in ("th", "td"):
                rows[-1].append(e)
        return rows

    def data(self):
        return json.loads(self.all("script", id="data")[0]["text"])


@pytest.fixture(scope="module")
def results():
    return example_results()


@pytest.fixture(scope="module")
def page(results):
    return Page(render_html(results))


def test_table_holds_the_means(results, page):
    """Every value sorted by is the mean itself, and the text next to it agrees to the digits it shows."""
    rows = {row[0]["text"].splitlines()[0].split("failed")[0]: row for row in page.rows("ran")}
    ran = [info for info in results.methods if not info.reason]
    assert list(rows) == [info.name for info in ran]
    for info in ran:
        for cell, metric in zip(rows[info.name][1:], results.metrics, strict=False):
            mean, rank = results.mean(info.name, metric.name), results.rank(info.name, metric.name)
            np.testing.assert_equal(float(cell["attrs"]["data-value"]), mean)
            if np.isnan(mean):
                assert cell["text"] == "–no defined value"
                continue
            shown, error = re.search(r"([-\d.e]+) ± ([\d.e-]+)", cell["text"]).groups()
            assert float(shown) == pytest.approx(mean, abs=results.stderr(info.name, metric.name) / 10)
            assert float(error) == pytest.approx(results.stderr(info.name, metric.name), rel=0.05)
            assert (f"rank {rank:g}" in cell["text"]) == (not np.isnan(rank))
        assert [float(cell["attrs"]["data-value"]) for cell in rows[info.name][-2:]] == [info.seconds, info.peak_memory]


def test_best_values_are_marked_in_words(results, page):
    """The best of each column is marked by a star and a word, and columns without direction have none."""
    columns = list(zip(*[row[1:] for row in page.rows("ran")], strict=True))
    for cells, metric in zip(columns, results.metrics, strict=False):
        best = ["★ best: " in cell["text"] for cell in cells]
        values = [float(cell["attrs"]["data-value"]) for cell in cells]
        if metric.higher_is_better is None:
            assert not any(best)
        else:
            assert best == [value == (np.nanmax if metric.higher_is_better else np.nanmin)(values) for value in values]


def test_number_of_examples_stands_where_it_differs(page):
    """A column with fewer examples says how many; a cell that differs from its column says so itself."""
    headings = page.rows("table")[0]
    noted = {h["text"].split("\xa0")[0].strip(): h["text"].rsplit("n = ")[1:] for h in headings}
    assert noted["bounding box"] == ["4"]
    assert noted["insertion"] == []
    last = page.rows("ran")[-1]
    assert "failed on 1 of 6" in last[0]["text"]
    assert "n = 5" in last[1]["text"]


def test_methods_that_could_not_run_are_last_with_their_reason(results, page):
    """They have a body of their own, which sorting leaves alone."""
    (row,) = page.rows("stopped")
    (stopped,) = [info for info in results.methods if info.reason]
    assert row[0]["text"] == stopped.name
    assert stopped.reason in row[1]["text"]
    bodies = [e["attrs"]["id"] for e in page.all("tbody", within="table")]
    assert bodies == ["ran", "stopped"]


def test_directions_and_descriptions(results, page):
    """Headings carry direction and description; the glossary repeats the description."""
    buttons = page.all("button", within="table")
    for button, metric in zip(buttons[1:], results.metrics, strict=False):
        assert button["attrs"]["title"] == metric.description
        words = {True: "higher is better", False: "lower is better", None: ""}[metric.higher_is_better]
        assert words in button["text"]
        assert any(metric.description in e["text"] for e in page.all("dd", within="reading"))


def test_photos_and_maps(results, page):
    """Every photo is in the page as it is; maps decode to the palette's colours of their levels."""
    sources = [e["attrs"]["src"] for e in page.all("img", within="grid") if "src" in e["attrs"]]
    assert [base64.b64decode(source.split(",")[1]) for source in sources] == [e.photo for e in results.examples]
    data = page.data()
    assert [one["name"] for one in data["mapped"]] == [info.name for info in results.methods if not info.reason]
    heatmap = results.maps["LayerIBA"][results.examples[0].key]
    picture = Image.open(io.BytesIO(base64.b64decode(data["maps"][0][0][0])))
    assert picture.mode == "P"
    np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), viridis()[heatmap.levels])
    assert data["maps"][0][0][1:] == ["0", f"{heatmap.high:.2f}"]
    assert data["maps"][-1][-1] is None
    rect = page.all("rect", within="grid")[0]["attrs"]
    x0, y0, x1, y1 = results.examples[0].boxes[0]
    assert [float(rect[k]) for k in ("x", "y", "width", "height")] == [x0, y0, x1 - x0, y1 - y0]


def test_large_maps_are_averaged():
    """A map of 224 pixels becomes one of 112, each the mean of four; a small one stays as it is."""
    generator = np.random.default_rng(0)
    levels = generator.integers(0, 64, size=(224, 160)).astype(np.uint8) * 4
    results = _tiny(maps={"IBA": {"a": HeatMap(levels, 0.0, 1.0)}}, photo=_jpeg(160, 224))
    picture = Image.open(io.BytesIO(base64.b64decode(encoded_maps(results)[0][0][0])))
    assert picture.size == (80, 112)
    means = levels.reshape(112, 2, 80, 2).mean(axis=(1, 3))
    assert np.abs(np.asarray(picture).astype(float) - means).max() <= 0.5


def test_paired_differences(results, page):
    """The embedded differences are those of Results, with their sign."""
    data = page.data()
    for metric, pairs in zip(data["metrics"], data["pairs"], strict=True):
        assert len(pairs) == 10
        for i, j, mean, error, n in pairs:
            found = results.paired(data["ran"][i], data["ran"][j], metric["name"])
            wanted = [np.nan if value is None else value for value in (mean, error)]
            np.testing.assert_allclose(wanted, found[:2], rtol=1e-5)
            assert n == found[2]


def test_curves_are_drawn_to_scale():
    """A line's points are its values on the axes' scale, broken where there is none."""
    x = np.array([0.0, 0.5, 1.0, 1.5, 2.0])
    y = np.array([0.0, 1.0, np.nan, 2.0, 4.0])
    results = _tiny(curves={"IBA": {"insertion": Curve(x, {"mean": (y, np.zeros(5))})}})
    (chart,) = charts(results)
    assert chart.series[0].lines[0].path == "M0 1000L250 750M750 500L1000 0"
    assert chart.y_ticks[0] == (0.0, "0")
    assert chart.y_ticks[-1] == (100.0, "4")


def test_flat_curve_lies_in_the_middle():
    """A curve of one value has an axis around it."""
    curve = Curve(np.array([0.0, 1.0]), {"mean": (np.ones(2), np.zeros(2))})
    (chart,) = charts(_tiny(curves={"IBA": {"insertion": curve}}))
    assert chart.series[0].lines[0].path == "M0 500L1000 500"
    assert (50.0, "1") in chart.y_ticks


def test_every_curve_has_its_lines_and_its_button(results, page):
    """One figure for each metric with curves; in each, a group and a button for each method."""
    assert len(page.all("figure", within="curves")) == 2
    names = [info.name for info in results.methods if not info.reason]
    assert [
        e["attrs"]["data-method"] for e in page.all("g", within="curves") if "data-method" in e["attrs"]
    ] == names * 2
    drawn = [e for e in page.all("path", within="curves") if e["attrs"].get("class", "").startswith("line")]
    assert len(drawn) == 3 * len(names)
    buttons = [e["attrs"] for e in page.all("button", within="curves") if "data-method" in e["attrs"]]
    assert [button["data-method"] for button in buttons] == names * 2


def test_run_is_described(results, page):
    """Settings, versions and files left out are there with their values."""
    for name, wanted in (
        ("settings", results.configuration),
        ("versions", results.versions),
        ("skipped", results.skipped),
    ):
        assert [e["text"] for e in page.all("dt", within=name)] == list(wanted)
    assert "8, 14" in [e["text"] for e in page.all("dd", within="settings")]
    assert page.all("title")[0]["text"] == "Attribution methods compared: resnet50, layer layer4"


def test_text_stays_text():
    """Names that are mark-up, scripts or no text at all appear as they are written."""
    script = "</script><script>alert(1)</script>\u2028"
    plain = _tiny(
        key=HOSTILE,
        photo=_jpeg(8, 8),
        maps={script: {HOSTILE: HeatMap(np.zeros((2, 2), np.uint8), 0, 1)}},
        method=script,
        curves={script: {"insertion": Curve(np.arange(3.0), {HOSTILE: (np.ones(3), np.ones(3))})}},
    )
    stopped = MethodInfo(HOSTILE, HOSTILE, "", reason=script)
    hostile = replace(
        plain,
        methods=[*plain.methods, stopped],
        skipped={"\udcff" + HOSTILE: script},
        scores={**plain.scores, HOSTILE: {"insertion": np.array([np.nan])}},
        configuration={"model": script, HOSTILE: script},
        versions={HOSTILE: script},
    )
    text = render_html(hostile)
    text.encode("utf-8")
    page = Page(text)
    assert len(page.all("script")) == 2
    assert [e for e in page.elements if any(name.startswith("on") for name in e["attrs"])] == []
    assert [e["attrs"].get("src", "data:")[:5] for e in page.all("img")] == ["data:"] * 2
    assert page.all("figcaption", within="grid")[0]["text"].strip().startswith(HOSTILE)
    assert page.data()["mapped"][0]["name"] == script
    assert "\\udcff" in page.all("dt", within="skipped")[0]["text"]


def test_nothing_is_loaded(page):
    """The page runs its own script only, and names no address."""
    (policy,) = [e["attrs"]["content"] for e in page.all("meta") if "http-equiv" in e["attrs"]]
    assert "default-src 'none'" in policy
    digest = base64.b64encode(hashlib.sha256(page.all("script")[1]["text"].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    addresses = [v for e in page.elements for k, v in e["attrs"].items() if k in ("src", "href")]
    assert all(address.startswith(("data:", "#")) for address in addresses)


@pytest.mark.parametrize(
    "change",
    [
        {"methods": [], "scores": {}},
        {"metrics": []},
        {"examples": []},
    ],
)
def test_little_to_show(change):
    """A comparison without methods, metrics or examples still has its page."""
    results = replace(_tiny(), **change)
    if change.get("examples") == []:
        results = replace(results, scores={"IBA": {"insertion": np.zeros(0)}})
    assert "<h1>" in render_html(results)


def test_infinite_values():
    """An infinite score neither breaks the page's data nor its curves."""
    infinite = Curve(np.arange(3.0), {"mean": (np.array([0, np.inf, 1]), np.zeros(3))})
    results = replace(_tiny(curves={"IBA": {"insertion": infinite}}), scores={"IBA": {"insertion": np.array([np.inf])}})
    results = replace(
        results,
        methods=[*results.methods, MethodInfo("LRP", "", "")],
        scores={**results.scores, "LRP": {"insertion": np.array([1.0])}},
    )
    page = Page(render_html(results))
    assert "∞" in page.rows("ran")[0][1]["text"]
    assert page.data()["pairs"][0][0][2] is None


def test_write_html(tmp_path, results):
    """The file holds the page; a missing folder is named."""
    write_html(results, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render_html(results)
    with pytest.raises(MissingFileError, match="nowhere"):
        write_html(_tiny(), str(tmp_path / "nowhere" / "report.html"))


def test_broken_photo():
    """A photo that is none is named by its example."""
    with pytest.raises(InvalidArgumentError, match="photo of 'a'"):
        photos(_tiny(photo=b"no JPEG"))


def test_missing_jinja2(monkeypatch):
    """Without jinja2 the message says what to install."""
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "jinja2":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"captum_iba\[report\]"):
        render_html(_tiny())


def _jpeg(width, height):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "grey").save(buffer, "JPEG")
    return buffer.getvalue()


def _tiny(key="a", photo=b"", maps=None, curves=None, method="IBA"):
    return Results(
        [MethodInfo(method, "", "bits per pixel")],
        [MetricInfo("insertion", "An area.")],
        [ExampleInfo(key, "cat", "dog", 0.5, photo)],
        {method: {"insertion": np.array([0.5])}},
        curves or {},
        maps or {},
    )
