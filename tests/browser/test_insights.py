"""Captum Insights' own dashboard in Chromium, with captum 0.8; with captum 0.9 the command says what it needs."""

import importlib.util
import subprocess
import sys

import numpy as np
import torch

from captum_iba.demo import load_canvases
from captum_iba.demo.run import share_inside

HAS_INSIGHTS = importlib.util.find_spec("captum.insights") is not None
N_SHOWN, MOST = 4, 300_000
VIEWPORT = {"width": 1280, "height": 860}


def ink(picture):
    """How much darker than the emptiest each pixel of a heat map is, inside the frame that is drawn around it."""
    is_frame = picture.max(axis=2) < 30
    rows, columns = (np.flatnonzero(is_frame.mean(axis=axis) > 0.5) for axis in (1, 0))
    inside = picture[rows[0] + 3 : rows[-1] - 2, columns[0] + 3 : columns[-1] - 2].mean(axis=2)
    return inside.max() - inside


def share_at_digit(picture, box):
    """Share of a heat map's ink that lies in the box of its canvas."""
    values = torch.from_numpy(ink(picture))[None, None]
    scale = values.shape[3] / 64
    return float(share_inside(values, (box * scale).round().long()[None]))


def test_the_dashboard_draws_our_maps(running, chromium, pixels, screenshot):
    """IBA chosen and fetched, its controls there and sent: each canvas has its map, whose ink lies where the digit is;
    fewer bits with a larger beta; the readout draws others. Nothing is asked for elsewhere."""
    if not HAS_INSIGHTS:
        command = [sys.executable, "-m", "captum_iba", "insights", "--demo"]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        assert said.returncode == 2 and "pip install 'captum_iba[insights]'" in said.stderr
        return
    asked, sent = [], []
    with running("insights", "--demo") as address:
        page = chromium.new_page(viewport=VIEWPORT)
        page.on("request", lambda request: asked.append(request.url))
        page.on("request", lambda request: sent.append(request.post_data_json) if "/fetch" in request.url else None)
        page.goto(address)
        maps = page.get_by_alt_text("attribution")

        def fetch(method, **arguments):
            page.locator("select[name=selected_method]").select_option(method)
            for name, value in arguments.items():
                page.locator(f"input[name={name}]").fill(value)
            page.get_by_role("button", name="Fetch").click()
            page.wait_for_function("!document.querySelector('img')")
            maps.nth(N_SHOWN - 1).wait_for(timeout=MOST)
            return [pixels(image) for image in maps.all()]

        boxes = load_canvases("test", 2 * N_SHOWN).boxes
        found = fetch("IBA", n_steps="10", beta="10")
        assert sent[-1]["attribution_method"] == "IBA" and sent[-1]["arguments"] == {"n_steps": 10, "beta": "10"}
        shares = [share_at_digit(picture, box) for picture, box in zip(found, boxes, strict=False)]
        assert min(shares) > 0.5
        screenshot(page, "insights.png")
        others = fetch("Readout IBA")
        assert sent[-1] == {"attribution_method": "Readout IBA", "arguments": {}, "prediction": "all", "classes": []}
        shares = [share_at_digit(picture, box) for picture, box in zip(others, boxes[N_SHOWN:], strict=False)]
        assert min(shares) > 0.5
        page.close()
    assert [url for url in asked if not url.startswith((address, "data:"))] == []
