"""These tests need Chromium and run only where they are named: make test-browser.

The documentation's screenshots are taken on the way: make screenshots.
"""

import base64
import io
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_ignore_collect(config):
    named = [Path(config.invocation_params.dir, argument.split("::")[0]).resolve() for argument in config.args]
    return None if any(path == HERE or HERE in path.parents for path in named) else True


@pytest.fixture(scope="session")
def chromium():
    from playwright.sync_api import sync_playwright

    off = ["gpu", "quic", "background-networking", "component-update", "sync"]
    arguments = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in off)]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=arguments)
        yield browser
        browser.close()


def pytest_addoption(parser):
    parser.addoption("--screenshots", type=Path, help="folder to write the documentation's screenshots to")


@pytest.fixture
def screenshot(request):
    """Take the documentation's screenshot, where one is asked for."""
    folder = request.config.getoption("--screenshots")
    return lambda page, name: None if folder is None else page.screenshot(path=folder / name)


@pytest.fixture(scope="session")
def running():
    """Start a command of ours that serves a page; gives its address, and at the end interrupts it as Ctrl-C does."""

    @contextmanager
    def run(*arguments, **variables):
        command = [sys.executable, "-m", "captum_iba", *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"} | variables
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        try:
            line = process.stdout.readline()
            assert "http://127.0.0.1:" in line, line
            yield next(word for word in line.split() if word.startswith("http://"))
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
            process.communicate()

    return run


PIXELS = """(image) => image.decode().then(() => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  canvas.getContext("2d").drawImage(image, 0, 0);
  return canvas.toDataURL("image/png").split(",")[1];
})"""


@pytest.fixture(scope="session")
def pixels():
    """The pixels of an image of a page, (H, W, 3), as the browser decodes them."""
    import numpy as np
    from PIL import Image

    def read(image):
        content = base64.b64decode(image.evaluate(PIXELS))
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(float)

    return read
