"""The page of captum-iba serve in Chromium."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from captum_iba.demo import load_canvases, to_display
from captum_iba.serve import TextModel, digits_model, explain_photo, explain_text
from captum_iba.text_models import load_text_classifier
from tests.comparison.text_cases import TEXTS, bert, calibration, tokenizer

VIEWPORT, MOST = {"width": 1280, "height": 820}, 300_000
# of matplotlib's viridis: the emptiest and the fullest
EMPTY, FULL = (68, 1, 84), (253, 231, 37)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A canvas as a picture, a text model, and texts to calibrate on."""
    path = tmp_path_factory.mktemp("serve")
    grey = (to_display(load_canvases("test", 2).images)[0, 0] * 255).byte().numpy()
    Image.fromarray(grey).resize((256, 256), Image.Resampling.NEAREST).save(path / "digit.png")
    bert().save_pretrained(path / "model")
    tokenizer().save_pretrained(path / "model")
    (path / "train.tsv").write_text("".join(f"{text}\t0\n" for text in calibration()))
    return path


@pytest.fixture(scope="module")
def address(running, folder):
    text = ("--text-model", folder / "model", "--calibrate-text", folder / "train.tsv")
    kept = folder / "kept"
    kept.mkdir()
    with running("serve", "--demo", *text, TMPDIR=str(kept)) as found:
        yield found
    assert not list(kept.rglob("*.png"))  # what was dropped goes with the page


@pytest.fixture
def page(chromium, address):
    """The page; at the end, it must have asked for nothing elsewhere."""
    asked = []
    page = chromium.new_page(viewport=VIEWPORT)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    yield page
    page.close()
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


def explain(page):
    """Press the button of the open tab; the line of figures, or of the mistake."""
    shown = page.locator(".iba-figures:visible, .iba-error:visible")
    before = shown.evaluate_all("all => all.forEach((one) => one.classList.add('seen'))")
    assert before is None
    page.get_by_role("button", name="Explain").locator("visible=true").click()
    fresh = page.locator(".iba-figures:not(.seen):visible, .iba-error:not(.seen):visible")
    fresh.wait_for(timeout=MOST)
    return fresh.inner_text()


def colours(picture, colour):
    """Where a picture has a colour, but for what the picture's compression does to it."""
    return np.abs(picture - np.array(colour)).max(axis=2) < 40


def plot(page):
    image = page.locator("[data-testid=matplotlib] img:visible, .plot-container img:visible, .matplotlib img:visible")
    image.wait_for(timeout=MOST)
    return image


def test_a_photo_is_explained(page, folder, pixels, screenshot):
    """A picture is uploaded: the figures are those of explain_photo, and the map, in viridis beside the picture, is
    brightest where it is; another class and a wrong layer give what they should."""
    page.locator("input[type=file]").first.set_input_files(folder / "digit.png")
    page.get_by_role("button", name="Remove Image").or_(page.get_by_label("Remove Image")).first.wait_for(timeout=MOST)
    figures = explain(page)
    assert list((folder / "kept").rglob("digit.png"))
    with Image.open(folder / "digit.png") as photo:
        wanted = explain_photo(digits_model(), photo)
    bits = f"{wanted.total_bits:.0f}" if wanted.total_bits >= 100 else f"{wanted.total_bits:.1f}"
    assert re.search(rf"^{bits}\s+bits at stage2", figures)
    assert f"{wanted.label}, {wanted.probability:.3f}" in figures and f"{wanted.probability_through:.3f}" in figures
    picture = pixels(plot(page))
    page.wait_for_timeout(500)
    screenshot(page, "serve.png")
    empty, full = colours(picture, EMPTY), colours(picture, FULL)
    rows, columns = np.flatnonzero(empty.any(axis=1)), np.flatnonzero(empty.sum(axis=0) > empty.shape[0] / 4)
    top, left, side = rows[0], columns[0], columns[-1] - columns[0]
    assert side > 150  # the map's own pixels
    y, x = (np.flatnonzero(full[:, left : left + side].any(axis=axis)).mean() for axis in (1, 0))
    peak = int(wanted.pixels[0, 0].argmax())
    expected = np.array(divmod(peak, 64)) / 64
    assert np.abs(np.array([(y - top) / side, x / side]) - expected).max() < 0.1
    page.get_by_label("Class").locator("visible=true").fill("twenty")
    assert "target='twenty' is no class" in explain(page)
    page.get_by_label("Class").locator("visible=true").fill("3")
    assert "3, 0." in explain(page)


def test_mistakes_are_lines(page):
    """No traceback, and no box that goes away."""
    assert explain(page) == "There is no photo yet: drop one first."
    page.get_by_role("button", name="A canvas of the embedded digits").click()
    page.get_by_role("button", name="Remove Image").or_(page.get_by_label("Remove Image")).first.wait_for(timeout=MOST)
    page.get_by_label("beta").locator("visible=true").fill("-1")
    assert "beta=-1; wanted a finite number of at least 0" in explain(page)


def test_a_broken_file_is_a_line(page, folder):
    """What is no picture, though it is called one, is said to be none."""
    (folder / "broken.png").write_bytes(b"\x89PNG and no more")
    page.locator("input[type=file]").first.set_input_files(folder / "broken.png")
    page.get_by_role("button", name="Remove Image").or_(page.get_by_label("Remove Image")).first.wait_for(timeout=MOST)
    assert "This is no picture that can be read" in explain(page)


def test_a_sentence_is_explained(page, folder, pixels):
    """Tokens with their bits, the darkest that with most; the heat map has a cell for each layer and token."""
    page.get_by_role("tab", name="Sentence").click()
    page.get_by_label("Sentence").locator("visible=true").last.fill(TEXTS[0])
    page.get_by_label("beta").locator("visible=true").fill("0.5")
    figures = explain(page)
    model = TextModel(load_text_classifier(folder / "model"), calibration=folder / "train.tsv")
    wanted = explain_text(model, TEXTS[0], beta=0.5)
    assert f"bits at {wanted.layer}" in figures and f"{wanted.label}, {wanted.probability:.3f}" in figures
    tokens = page.locator(".iba-tokens:visible span")
    assert [text.split("\n")[0] for text in tokens.all_inner_texts()] == wanted.tokens
    shown = [float(text) for text in tokens.locator("small").all_inner_texts()]
    torch.testing.assert_close(torch.tensor(shown), wanted.bits, atol=0.11, rtol=0.02)
    alpha = "e => Number(getComputedStyle(e).backgroundColor.match(/[\\d.]+/g)[3] ?? 1)"
    shades = [token.evaluate(alpha) for token in tokens.all()]
    assert int(np.argmax(shades)) == int(wanted.bits.argmax()) and max(shades) > 0.5
    picture = pixels(plot(page))
    assert colours(picture, FULL).sum() > 100 and picture.std() > 20
