"""What holds of the tutorials without running them; their cells are run by ``make test``."""

import re
from pathlib import Path

import jupytext
import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return request.param, nbformat.read(request.param, as_version=4)


def test_there_are_seven():
    """Each subject has its tutorial, and each script its notebook."""
    assert len(NOTEBOOKS) == 7
    assert [path.stem for path in NOTEBOOKS] == sorted(path.stem for path in FOLDER.glob("*.py"))


def test_the_script_is_the_notebook(notebook):
    """Cell by cell, the paired script says what the notebook says."""
    path, cells = notebook[0], notebook[1].cells
    script = jupytext.read(path.with_suffix(".py")).cells
    assert [(cell.cell_type, cell.source) for cell in script] == [(cell.cell_type, cell.source) for cell in cells]


def test_it_begins_with_what_the_reader_will_have(notebook):
    """A heading, and the end of the way."""
    first = notebook[1].cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert "At the end you" in first.source


def test_outputs_are_kept_and_clean(notebook):
    """Every figure and sentence is there to be read without a run, without errors and warnings."""
    code = [cell for cell in notebook[1].cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


def test_figures_in_prose_are_computed(notebook):
    """Text cells hold no measured numbers: a fraction or a percentage stands only where a cell has computed it."""
    prose = "\n".join(cell.source for cell in notebook[1].cells if cell.cell_type == "markdown")
    prose = re.sub(r"`[^`]*`|\$[^$]*\$|\([^)]*\d{4}[^)]*\)|https?://\S+", "", prose)
    assert re.findall(r"\d+\.\d+|\d+ ?%", prose) == []
