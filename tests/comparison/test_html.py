import base64
import builtins
import hashlib
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from captum_iba.comparison._html_curves import charts
from captum_iba.comparison._html_photos import encoded_maps, photos, viridis
from captum_iba.comparison._types import Curve, HeatMap, MethodInfo
from captum_iba.comparison.html import render_html, write_html
from captum_iba.comparison.tables import to_text
from captum_iba.errors import InvalidArgumentError, MissingDependencyError, MissingFileError
from tests.comparison.results_example import Page, example_results, jpeg, tiny_results

HOSTILE = "<img src=x onerror=alert(1)>.jpg"


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
                assert cell["text"] == "–no value"
                continue
            shown, error = re.search(r"([-\d.e]+) .*± ([\d.e-]+)", cell["text"]).groups()
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
    noted = {re.split(" [↑↓]", h["text"])[0].strip(): h["text"].rsplit("n=")[1:] for h in headings}
    assert noted["bounding box"] == ["4"]
    assert noted["insertion"] == []
    last = page.rows("ran")[-1]
    assert "failed on 1 of 6" in last[0]["text"]
    assert "n=5" in last[1]["text"]
    assert sum("n=" in cell["text"] for row in page.rows("ran") for cell in row) == 5  # but for the bounding box


def test_notes_stand_below_the_table(results, page):
    """The notes and the summary are those of the table as text; the files left out are pointed to."""
    text = to_text(results)
    notes = [e["text"] for e in page.all("li", within="notes")]
    assert "SmoothGrad failed on 1 of 6 examples: RuntimeError: out of memory" in notes
    assert "Saliency's map is constant on 1 example, where it ranks nothing" in notes
    assert len(notes) == 4 and all(f"  {note}\n" in text for note in notes)
    summary = [e["text"] for e in page.all("li", within="summary")]
    assert len(summary) == sum(metric.higher_is_better is not None for metric in results.metrics)
    assert text.endswith("\n".join(f"  {line}" for line in summary))
    assert page.all("a", href="#skipped")[0]["text"] == "Left out 2 of 8 examples"


def test_cost_of_zero_has_no_best():
    """Where a cost is too small to be measured, none is marked as the least."""
    two = replace(
        tiny_results(),
        methods=[
            MethodInfo("IBA", "", "", seconds=2.0, peak_memory=0.0),
            MethodInfo("LRP", "", "", "", 0, "", 0, 1.0, 5.0),
        ],
        scores={name: {"insertion": np.array([0.5])} for name in ("IBA", "LRP")},
    )
    rows = Page(render_html(two)).rows("ran")
    assert [["★" in cell["text"] for cell in row[2:]] for row in rows] == [[False, False], [True, False]]


def test_page_opens_with_the_maps_of_layer_iba(results):
    """Wherever LayerIBA stands; else with the first method that is not random."""
    for names, wanted in (
        (["Random", "Saliency", "LayerIBA"], "LayerIBA"),
        (["Random", "Saliency"], "Saliency"),
        (["Random"], "Random"),
    ):
        maps = dict.fromkeys(names, results.maps["LayerIBA"])
        methods = [MethodInfo(name, "", "") for name in names]
        page = Page(render_html(replace(results, methods=methods, metrics=[], maps=maps, curves={})))
        (shown,) = [e for e in page.all("input", within="switch") if "checked" in e["attrs"]]
        assert names[int(shown["attrs"]["value"])] == wanted == page.all("b", id="shown")[0]["text"]


def test_equal_curves_are_named(results):
    """Methods with one curve are named below the figure."""
    curves = {**results.curves, "SmoothGrad": results.curves["Saliency"]}
    page = Page(render_html(replace(results, curves=curves)))
    assert [e["text"] for e in page.all("p", **{"class": "hint same"})] == ["The same curve: Saliency, SmoothGrad."] * 2


@pytest.mark.parametrize(
    ("configuration", "subject"),
    [
        ({"model": "resnet18", "layer": "layer4"}, ": resnet18, layer layer4"),
        ({"model": "resnet18", "layer": "none: no layer is suitable"}, ": resnet18"),
        ({}, ""),
    ],
)
def test_title(configuration, subject):
    """The page is named after the model and the layer, where there are some."""
    page = Page(render_html(replace(tiny_results(), configuration=configuration)))
    assert page.all("title")[0]["text"] == f"Attribution methods compared{subject}"


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
    results = tiny_results(maps={"IBA": {"a": HeatMap(levels, 0.0, 1.0)}}, photo=jpeg(160, 224))
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
    results = tiny_results(curves={"IBA": {"insertion": Curve(x, {"mean": (y, np.zeros(5))})}})
    (chart,) = charts(results)
    assert chart.series[0].lines[0].path == "M0 1000L250 750M750 500L1000 0"
    assert chart.y_ticks[0] == (0.0, "0")
    assert chart.y_ticks[-1] == (100.0, "4")


def test_flat_curve_lies_in_the_middle():
    """A curve of one value has an axis around it."""
    curve = Curve(np.array([0.0, 1.0]), {"mean": (np.ones(2), np.zeros(2))})
    (chart,) = charts(tiny_results(curves={"IBA": {"insertion": curve}}))
    assert chart.series[0].lines[0].path == "M0 500L1000 500"
    assert (50.0, "1") in chart.y_ticks


def test_every_curve_has_its_lines_and_its_button(results, page):
    """One figure for each metric with curves; in each, a group and a button for each method."""
    assert len(page.all("figure", within="curves")) == 2
    names = [info.name for info in results.methods if not info.reason]
    groups = [e["attrs"] for e in page.all("g", within="curves") if "data-method" in e["attrs"]]
    in_front_last = [*names[1:], "LayerIBA"]
    for kind in ("series", "marks"):
        assert [g["data-method"] for g in groups if g["class"].startswith(kind)] == in_front_last * 2
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
    plain = tiny_results(
        key=HOSTILE,
        photo=jpeg(8, 8),
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
    results = replace(tiny_results(), **change)
    if change.get("examples") == []:
        results = replace(results, scores={"IBA": {"insertion": np.zeros(0)}})
    assert "<h1>" in render_html(results)


def test_infinite_values():
    """An infinite score neither breaks the page's data nor its curves."""
    infinite = Curve(np.arange(3.0), {"mean": (np.array([0, np.inf, 1]), np.zeros(3))})
    results = replace(
        tiny_results(curves={"IBA": {"insertion": infinite}}), scores={"IBA": {"insertion": np.array([np.inf])}}
    )
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
        write_html(tiny_results(), str(tmp_path / "nowhere" / "report.html"))


def test_broken_photo():
    """A photo that is none is named by its example."""
    with pytest.raises(InvalidArgumentError, match="photo of 'a'"):
        photos(tiny_results(photo=b"no JPEG"))


def test_missing_jinja2(monkeypatch):
    """Without jinja2 the message says what to install."""
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "jinja2":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"captum_iba\[report\]"):
        render_html(tiny_results())
