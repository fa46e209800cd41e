"""Laws of texts on the page and in figures: every token under every method, its colour and value, whatever it holds."""

import itertools
import re

import numpy as np
import pytest

from captum_iba.comparison._html_texts import STEPS, strengths_of, texts, values_of
from captum_iba.comparison._text_figure import plot_texts
from captum_iba.comparison._types import ExampleInfo, HeatMap, MethodInfo, MetricInfo, Results
from captum_iba.comparison.html import render_html
from captum_iba.comparison.report import Report
from captum_iba.errors import InvalidArgumentError
from tests.comparison.results_example import Page

METHODS = [
    MethodInfo("LayerIBA", "", "bits per token", seconds=0.1),
    MethodInfo("GradientNorm", "", "relevance, no unit", seconds=0.1),
    MethodInfo("Stopped", "", "relevance, no unit", "there is no layer"),
]
WORDS = ["[CLS]", "so", "warm", "a", "film", "&", "a", "<b>plot</b>", "of", "$", "and", "##ing", "[SEP]"]


def results(n=3, length=13, n_methods=2):
    """Texts with maps of every method that ran; the second method has none of the last text."""
    generator = np.random.default_rng(0)
    tokens = tuple(itertools.islice(itertools.cycle(WORDS), length))
    special = tuple(token.startswith("[") for token in tokens)
    examples = [
        ExampleInfo(f"dev.tsv:{i}", "warm", "warm" if i else "cold", 0.9, tokens=tokens, special=special)
        for i in range(n)
    ]
    ran = [METHODS[0], METHODS[1], *(MethodInfo(f"method {i}", "", "") for i in range(n_methods - 2))]

    def one(place):
        levels = generator.integers(0, 65536, (1, length)).astype(np.uint16)
        levels[0, :2] = 0, 65535
        return HeatMap(levels, -1.0 if place else 0.0, 3.0)

    maps = {info.name: {e.key: one(place) for e in examples} for place, info in enumerate(ran)}
    if n > 1:
        del maps["GradientNorm"][examples[-1].key]
    scores = {info.name: {"degradation mask": generator.normal(size=n)} for info in [*ran, METHODS[2]]}
    metrics = [MetricInfo("degradation mask", "An area.")]
    return Results([*ran, METHODS[2]], metrics, examples, scores, {}, maps, kind="text")


def test_the_page_holds_every_text_under_every_method():
    """Tokens in order, escaped, each with the value that the map has for it, to three digits."""
    found = results()
    page = Page(render_html(found))
    paragraphs = [e for e in page.all("p", within="texts") if e["attrs"].get("class") == "tokens"]
    assert len(paragraphs) == 3 * 2
    assert all(e["text"].split() == list(WORDS) for e in paragraphs)
    shown = [float(e["attrs"]["title"]) for e in page.all("span", within="texts") if "title" in e["attrs"]]
    wanted = [
        values_of(found.maps[info.name][e.key])
        for e in found.examples
        for info in METHODS[:2]
        if e.key in found.maps[info.name]
    ]
    np.testing.assert_allclose(shown, np.concatenate(wanted), rtol=5e-3)
    headings = [e["text"] for e in page.all("h3", within="texts")]
    assert headings == [e.key for e in found.examples]


def test_a_line_has_its_scale_and_unit():
    """Bits where they are bits; a line without a map says so and has no colours."""
    page = Page(render_html(results()))
    scales = [e["text"] for e in page.all("small", within="texts")]
    assert scales == ["0 to 3.00 bits per token", "-1.00 to 3.00 relevance, no unit"] * 2 + [
        "0 to 3.00 bits per token", "no map",
    ]  # fmt: skip


def test_colours_follow_values():
    """Stronger for larger values, one colour for and one against the class; special tokens are marked, and do not set
    the scale."""
    for text in texts(results()):
        for line in text.lines:
            if not line.scale:
                assert all(token.style in ("", "s") for token in line.tokens)
                continue
            own = [t for t in line.tokens if "[" not in t.text]
            largest = max(abs(float(t.value)) for t in own)
            for token in line.tokens:
                step = max(-1, min(1, float(token.value) / largest)) * STEPS
                colour = re.sub("^s ?", "", token.style)
                signed = int(colour[1:] or 0) * (-1 if colour.startswith("n") else 1) if colour else 0
                assert abs(signed - step) < 0.51
                assert token.style.startswith("s") == ("[" in token.text)


def test_a_map_of_nothing_has_no_colour():
    """Not the middle of a scale, and no division by it."""
    assert strengths_of(np.zeros(3), (False,) * 3).tolist() == [0, 0, 0]
    assert strengths_of(np.array([5.0, 0, 0]), (True, False, False)).tolist() == [0, 0, 0]
    assert strengths_of(np.array([5.0]), (True,)).tolist() == [0]


def test_every_colour_is_in_the_style_sheet():
    """So that no step is shown as none, in a page that loads nothing."""
    page = render_html(results())
    for side, step in itertools.product("pn", range(1, STEPS + 1)):
        assert re.search(rf"\.{side}{step} {{ background: rgb\([\d ]+ / {6 * step}%\); }}", page)
    assert not re.search(r"""(src|href)=["']?http|url\(""", page)


def test_words_are_those_of_texts():
    """No photo, pixel or box is spoken of; another predicted class is pointed out."""
    page = render_html(results())
    read = Page(page)
    body = read.all("header")[0]["text"] + read.all("main")[0]["text"]
    assert not re.search("photo|pixel|known boxes|seconds an image", body) and "seconds a text" in body
    assert "predicted cold (another class)" in body
    assert read.all("a", href="#texts") and not read.all("a", href="#photos")
    report = Report(results())
    assert "seconds a text" in str(report) and "seconds a text" in report.to_markdown()


def test_lines_can_be_hidden():
    """A box for each method with maps, which the script finds by its place; with a single method there is none."""
    page = Page(render_html(results()))
    boxes = page.all("input", within="lines")
    assert [box["attrs"]["value"] for box in boxes] == ["0", "1"] and all("checked" in box["attrs"] for box in boxes)
    assert [e["attrs"]["data-place"] for e in page.all("div", within="texts") if "data-place" in e["attrs"]] == [
        "0", "1",
    ] * 3  # fmt: skip


def test_a_page_of_200_sentences_under_six_methods_is_small():
    """Below 3 MB; of texts that are too long for that, the first are shown and the others counted."""
    page = render_html(results(200, 25, 6))
    assert len(page.encode()) < 3e6 and len(Page(page).all("article")) == 200
    long = render_html(results(200, 500, 6))
    assert len(long.encode()) < 10e6 and len(Page(long).all("article")) == 50
    assert "150 more are left out" in long


def test_a_page_of_images_has_no_texts():
    """Nor their style."""
    page = render_html(Results([], [], [], {}, {}, {}))
    assert 'id="texts"' not in page and ".tokens" not in page


def test_the_figure_draws_every_token_in_its_colour():
    """In order, over as many lines as it takes; what starts mathematics is drawn as it is."""
    found = results(2, 60)
    figure = plot_texts(found)
    drawn = [text for text in figure.texts if text.get_bbox_patch() is not None]
    tokens = found.examples[0].tokens
    assert [text.get_text().replace("\\$", "$") for text in drawn] == list(tokens) * 2 * 2
    strengths = strengths_of(values_of(found.maps["LayerIBA"]["dev.tsv:0"]), found.examples[0].special)
    alphas = [text.get_bbox_patch().get_facecolor()[3] for text in drawn[: len(tokens)]]
    np.testing.assert_allclose(alphas, 0.6 * np.abs(strengths), atol=1e-6)
    assert all(0 < text.get_position()[0] < 1 and 0 < text.get_position()[1] < 1 for text in figure.texts)
    for one, other in itertools.pairwise(drawn[: len(tokens)]):  # none over another
        (x0, y0), (x1, y1) = one.get_position(), other.get_position()
        assert y1 < y0 or x1 > x0
    assert len([t for t in plot_texts(found, 1).texts if t.get_bbox_patch() is not None]) == 2 * len(tokens)


def test_a_figure_needs_texts():
    """And at least one of them."""
    for call in (lambda: plot_texts(results(), 0), lambda: plot_texts(Results([], [], [], {}, {}, {}))):
        with pytest.raises(InvalidArgumentError, match="wanted at least one, and tokens that were kept"):
            call()


def test_a_report_saves_the_figure(tmp_path):
    """Beside the page, under the name that pictures have."""
    names = {path.name for path in Report(results()).save(tmp_path)}
    assert {"maps.png", "report.html", "table.md"} <= names
