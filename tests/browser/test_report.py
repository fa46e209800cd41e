import re
import time
from dataclasses import replace

import pytest

from captum_iba.comparison.html import write_html
from tests.comparison.results_example import example_results

PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 900}
# contrast of every element with text of its own against what is behind it
CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length < 4 || colour[3] > 0.5) return colour;
    }
    return [255, 255, 255];
  };
  const own = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  return [...document.querySelectorAll("body *")]
    .filter((e) => own(e) && e.checkVisibility() && !e.closest("script, svg, .hidden"))
    .map((e) => {
      const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))];
      return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.outerHTML.slice(0, 80)];
    });
}"""


@pytest.fixture(scope="module")
def results():
    return example_results()


@pytest.fixture(scope="module")
def address(results, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_html(results, path)
    return path.as_uri()


@pytest.fixture
def visit(chromium):
    """Open a page; at the end, it must have been silent and must have asked for nothing."""
    opened, heard, asked = [], [], []

    def open_page(address, **options):
        page = chromium.new_page(**{"viewport": DESKTOP, **options})
        opened.append(page)
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        return page

    yield open_page
    for page in opened:
        page.close()
    assert heard == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def _names(page):
    return [text.split("failed")[0].strip() for text in page.locator("#table tbody th").all_text_contents()]


def _values(page, column):
    cells = page.locator(f"#ran td:nth-child({column + 1})")
    return [float(cell.get_attribute("data-value")) for cell in cells.all()]


def test_sorting(visit, address, results):
    """A heading sorts best first, then the other way; methods that could not run and dashes stay last."""
    page = visit(address)
    asked_for, heading = _names(page), page.locator("#table thead th").nth(5)
    assert asked_for[-1] == "LayerDeepLiftShap"
    assert heading.get_attribute("aria-sort") == "none"
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"  # infidelity: lower is better
    assert _values(page, 5) == sorted(_values(page, 5))
    heading.get_by_role("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert _values(page, 5) == sorted(_values(page, 5), reverse=True)
    assert _names(page) != asked_for and _names(page)[-1] == "LayerDeepLiftShap"
    for _ in range(2):
        page.locator("#table thead button").nth(4).press(" ")
        assert _names(page)[-2:] == ["Saliency", "LayerDeepLiftShap"]  # the first has no value of sensitivity-n
    assert heading.get_attribute("aria-sort") == "none"
    assert "sensitivity-n, ascending" in page.locator("#sorted").text_content()
    page.locator("#table thead button").first.click()
    assert _names(page)[:-1] == sorted(_names(page)[:-1])


def test_differences(visit, address, results):
    """The chosen method and metric decide what is shown: the paired differences, best first."""
    page = visit(address)
    page.get_by_label("Compare with").select_option("SmoothGrad")
    page.get_by_label("in the metric").select_option("infidelity")
    assert "below zero is better" in page.locator("#differences caption").text_content()
    rows = page.locator("#differences tbody tr").all()
    found = []
    for row in rows:
        name, text = row.locator("th").text_content(), row.locator("td").first.text_content()
        mean, error, n = results.paired(name, "SmoothGrad", "infidelity")
        shown, shown_error = re.match(r"\+?([-\d.e]+) ± ([\d.]+)", text).groups()
        assert float(shown) == pytest.approx(mean, abs=error / 10) and float(shown_error) == pytest.approx(
            error, rel=0.05
        )
        verdict = "not told apart" if abs(mean) <= 2 * error else "better" if mean < 0 else "worse"
        assert f"{verdict}, {n} examples" in text
        found.append(mean)
    assert found == sorted(found) and len(found) == 4


def test_method_switch(visit, address):
    """Buttons and arrow keys change all maps at once; a method without a map says so."""
    page = visit(address)
    maps = page.locator("#grid .map")

    def sources():
        return [picture.get_attribute("src") for picture in maps.all()]

    seen = [sources()]
    assert all(source.startswith("data:image/png") for source in seen[0])
    page.get_by_role("radio", name="Saliency").click()
    seen.append(sources())
    assert page.locator("#shown").text_content() == "Saliency"
    page.keyboard.press("ArrowRight")
    seen.append(sources())
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("ArrowLeft")
    assert sources() == seen[1]
    page.keyboard.press("ArrowLeft")
    assert sources() == seen[0] and all(a != b for a, b in zip(seen[1], seen[2], strict=True))
    page.keyboard.press("ArrowLeft")
    assert page.locator("#shown").text_content() == "SmoothGrad"
    assert sources()[-1] is None
    assert page.locator("#grid .no-map:visible").count() == 1
    assert page.locator("#grid .photo").last.locator(".scale").is_hidden()
    assert page.locator("#grid .unit").first.text_content() == "relevance, no unit"
    # the slider keeps the keys for itself
    page.locator("#opacity").press("ArrowRight")
    assert page.locator("#shown").text_content() == "SmoothGrad"


def test_boxes_and_opacity(visit, address):
    """The check box hides the boxes; the slider changes the maps."""
    page = visit(address)
    box = page.locator("#grid .boxes").first
    assert box.is_visible()
    page.get_by_label("show boxes").uncheck()
    assert box.is_hidden()
    page.get_by_label("Opacity").fill("25")
    assert page.locator("#grid .map").first.evaluate("e => getComputedStyle(e).opacity") == "0.25"


def test_map_lies_on_its_photo(visit, address):
    """Photo, map and boxes cover the same area."""
    page = visit(address)
    areas = [
        page.locator(f"#grid .photo >> nth=0 >> {part}").bounding_box() for part in ("img >> nth=0", ".map", "svg")
    ]
    assert areas[0] == areas[1] == areas[2]
    assert areas[0]["width"] == pytest.approx(areas[0]["height"], abs=0.5)  # 224 x 224


def test_curves(visit, address):
    """A button takes its method out of every figure, resting on it brings the line out, and one button hides all."""
    page = visit(address)
    button = page.locator(".legend").first.get_by_role("button", name="Saliency")
    lines = page.locator('.series[data-method="Saliency"]')
    button.focus()
    assert "on" in lines.first.get_attribute("class").split()
    assert page.locator(".chart").first.get_attribute("class").split()[-1] == "out"
    button.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    assert [line.is_visible() for line in lines.all()] == [False, False]
    button.click()
    assert lines.last.is_visible()
    page.get_by_role("button", name="Hide all").first.click()
    assert page.locator(".series:not(.off)").count() == 0
    page.get_by_role("button", name="Show all").last.click()
    assert page.locator(".series.off").count() == 0


def test_bands_are_drawn_where_they_can_be_told_apart(visit, address):
    """With more than four methods only the one brought out has a band; with four, all have."""
    page = visit(address)
    bands = page.locator(".chart >> nth=0 >> .band:visible")
    assert bands.count() == 0
    button = page.locator(".legend").first.get_by_role("button", name="Saliency")
    button.focus()
    assert bands.count() == 1
    button.click()
    page.evaluate("document.activeElement.blur()")
    page.mouse.move(0, 0)
    assert bands.count() == 4
    assert page.locator(".chart >> nth=0 >> .marks:visible").count() == 4


def test_nine_metrics_fit_a_desktop(visit, results, tmp_path):
    """Nothing of a table of nine metrics is hidden at 1280 pixels; where some is, a line says that it scrolls."""
    large, more = example_results(4, 14), ["deletion", "sensitivity max", "degradation 14x14"]
    scores = {name: {**own, **dict.fromkeys(more, own["insertion"])} for name, own in large.scores.items()}
    metrics = [*large.metrics, *(replace(large.metrics[0], name=one) for one in more)]
    write_html(replace(large, metrics=metrics, scores=scores), tmp_path / "report.html")
    for viewport, hidden in ((DESKTOP, False), (PHONE, True)):
        page = visit((tmp_path / "report.html").as_uri(), viewport=viewport)
        assert page.locator(".scroll").first.evaluate("e => e.scrollWidth > e.clientWidth") == hidden
        assert page.locator(".sideways").is_visible() == hidden


@pytest.mark.parametrize("width", [320, 360, 412, 1280])
def test_no_sideways_scrolling(visit, address, width):
    """Only the table's own container scrolls sideways."""
    page = visit(address, viewport={**PHONE, "width": width})
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    if width <= 412:
        assert page.locator(".scroll").first.evaluate("e => e.scrollWidth > e.clientWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(visit, address, scheme):
    """Text stands out from what is behind it by 4.5 to 1, in either scheme."""
    page = visit(address, color_scheme=scheme)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    found = page.evaluate(CONTRAST)
    assert len(found) > 100
    assert [text for contrast, text in found if contrast < 4.5] == []


def test_basics_of_accessibility(visit, address):
    """Pictures have a text, controls a name, ids are unique, headings descend by one, the language is named."""
    page = visit(address)
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.locator("img:visible:not([alt])").count() == page.locator('img:visible[alt=""]').count() == 0
    for control in page.locator("button, select, input").all():
        named = control.evaluate("e => (e.labels?.[0] ?? e).textContent.trim()")
        assert named
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((e) => Number(e.tagName[1]))")
    assert levels[0] == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
    assert page.locator("nav a").count() == 5
    for link in page.locator("nav a").all():
        assert page.locator(link.get_attribute("href")).count() == 1


def test_hostile_names_run_nothing(visit, tmp_path, results):
    """Mark-up in names is text also where the page's script writes it."""
    hostile = '<img src="file:///x" onerror="alert(1)">'
    rename = {"SmoothGrad": hostile}
    methods = [type(m)(**{**vars(m), "name": rename.get(m.name, m.name)}) for m in results.methods]
    parts = [{rename.get(k, k): v for k, v in part.items()} for part in (results.scores, results.curves, results.maps)]
    write_html(type(results)(methods, results.metrics, results.examples, *parts), tmp_path / "report.html")
    page = visit((tmp_path / "report.html").as_uri())
    page.get_by_label("Compare with").select_option(hostile)
    page.keyboard.press("Escape")
    page.locator("#switch input").last.check(force=True)
    assert page.locator("#shown").text_content() == hostile
    assert page.locator("img").count() == 2 * len(results.examples)


def test_large_page_opens_quickly(visit, tmp_path):
    """40 photos under 14 methods' maps of 224 x 224, and curves of 785 points: under 15 MB, open in under 3 s."""
    path = tmp_path / "report.html"
    write_html(example_results(40, 14, size=224, n_points=785), path)
    assert path.stat().st_size < 15e6
    start = time.perf_counter()
    page = visit(path.as_uri())
    page.wait_for_function("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    elapsed = time.perf_counter() - start
    assert page.locator("#grid .map:visible").count() == 40
    assert elapsed < 3
