import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.filterwarnings("ignore:The feature statistics come from")
def test_python_blocks_run_in_order(tmp_path, monkeypatch):
    """Every Python block of the README runs, one after the other, as a reader would type them."""
    monkeypatch.chdir(tmp_path)  # where pictures go
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert len(blocks) >= 3
    assert namespace["bits"].shape == (1, 3, 224, 224)


def test_table_names_exist():
    """Every public name is in the README's table or text."""
    import captum_iba

    text = README.read_text()
    assert [name for name in captum_iba.__all__ if name not in text] == []
