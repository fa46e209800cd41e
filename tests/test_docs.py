import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
WITH_CODE = [page for page in PAGES if "```python" in page.read_text()]


@pytest.mark.filterwarnings("ignore:The feature statistics come from")
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_python_blocks_run_in_order(page, tmp_path, monkeypatch):
    """Every Python block of a page runs, one after the other, as a reader would type them."""
    monkeypatch.chdir(tmp_path)  # where pictures go
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        exec(compile(block, str(page), "exec"), namespace)


def test_each_page_can_be_reached():
    """Each page stands in a table of contents."""
    named = {
        (page.parent / line.strip()).with_suffix(".md").resolve()
        for page in PAGES
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), flags=re.DOTALL)
        for line in tree.splitlines()
        if line.strip() and not line.startswith(":")
    }
    assert [page for page in PAGES if page.resolve() not in named] == [DOCS / "index.md"]
