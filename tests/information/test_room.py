import ast
from pathlib import Path

import captum_iba.information

ROOM = Path(captum_iba.information.__file__).parent
ALLOWED = {"torch", "numpy", "captum_iba", "__future__"}
UPWARDS = ("attr", "metrics", "comparison", "visualization", "cli", "_captum")


def imports_of(tree):
    """Modules that importing the file imports, not what its functions import when called."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_no_dependency_beyond_torch_and_numpy():
    """The room's modules import the standard library, torch, numpy and what lies below them."""
    import sys

    for source in ROOM.rglob("*.py"):
        for module in imports_of(ast.parse(source.read_text())):
            top = module.split(".")[0]
            assert top in ALLOWED or top in sys.stdlib_module_names, f"{source.name} imports {module}"
            assert not module.startswith(tuple(f"captum_iba.{room}" for room in UPWARDS)), f"{source.name}: {module}"


def test_public_names_are_documented():
    """Every public name of the room shows an example, says what it holds, or how it differs from one that does."""
    for name in captum_iba.information.__all__:
        docstring = getattr(captum_iba.information, name).__doc__ or ""
        wanted = ("Examples::", "Attributes:", "Class attributes:", ":class:`Neural`")
        assert any(part in docstring for part in wanted), name
