import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import captum_iba

PACKAGE = Path(captum_iba.__file__).parent


def test_import_stays_light():
    """Importing the package imports neither torchvision, transformers nor scikit-learn."""
    code = "import sys, captum_iba; print([m for m in ('torchvision', 'transformers', 'sklearn') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_bottleneck_is_free_of_captum():
    """Nothing in the method's room imports Captum, or upwards."""
    for source in (PACKAGE / "bottleneck").glob("*.py"):
        lines = [line.strip() for line in source.read_text().splitlines() if "import" in line]
        assert not [line for line in lines if line.startswith(("from captum ", "from captum.", "import captum "))]
        assert not [line for line in lines if "captum_iba.attr" in line or "captum_iba._captum" in line]


def test_version_is_the_metadata_s():
    """The version stands in one place."""
    assert version("captum_iba") == captum_iba.__version__


def test_public_names_exist_and_are_documented():
    """Every public name has a docstring with an example or a table of attributes."""
    assert all((getattr(captum_iba, name).__doc__ or "").strip() for name in captum_iba.__all__)


def test_the_package_names_what_is_public_and_nothing_else():
    """Docstring, imports, version and names: no code of its own."""
    docstring, *statements = ast.parse((PACKAGE / "__init__.py").read_text()).body
    assert isinstance(docstring, ast.Expr)
    assigned = [s.targets[0].id for s in statements if isinstance(s, ast.Assign)]
    imported = [alias.name for s in statements if isinstance(s, ast.ImportFrom) for alias in s.names]
    assert assigned == ["__version__", "__all__"]
    assert sorted(imported) == sorted(captum_iba.__all__)
    assert all(isinstance(s, (ast.ImportFrom, ast.Assign)) for s in statements)
