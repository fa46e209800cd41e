"""The helpers taken from Captum's private modules: they exist, behave as used, and enter through one module."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import captum_iba
from captum_iba import _captum
from captum_iba.attr import LayerReadoutIBA

PACKAGE = Path(captum_iba.__file__).parent
GATE = PACKAGE / "_captum.py"
SOURCES = sorted(PACKAGE.rglob("*.py"))
PARAMETERS = {
    "_convert_ids_to_pretty_tokens": ["ids", "tokenizer"],
    "_run_forward": ["forward_func", "inputs", "target", "additional_forward_args"],
    "_select_targets": ["output", "target"],
    "_expand_target": ["target", "n_steps", "expansion_type"],
    "_expand_additional_forward_args": ["additional_forward_args", "n_steps", "expansion_type"],
    "_format_additional_forward_args": ["additional_forward_args"],
    "_format_tensor_into_tuples": ["inputs"],
}


def imported(source: str) -> Iterator[tuple[str, str]]:
    """Every (module, name) that a source imports; the name is empty for plain imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


def private_imports(source: str) -> list[str]:
    """Those below a private part of Captum."""
    paths = [f"{module}.{name}".split(".") for module, name in imported(source)]
    return [".".join(p) for p in paths if p[0] == "captum" and any(part.startswith("_") for part in p[1:])]


@pytest.mark.parametrize("name", _captum.__all__)
def test_every_helper_can_be_imported(name: str) -> None:
    """Each name that the module promises exists, and is the object that Captum has under that name."""
    origin = next(module for module, found in imported(GATE.read_text()) if found == name)
    assert getattr(_captum, name) is getattr(importlib.import_module(origin), name)


def test_the_module_promises_what_it_imports() -> None:
    """``__all__`` lists exactly the names imported from Captum, each once."""
    names = [name for module, name in imported(GATE.read_text()) if module.split(".")[0] == "captum"]
    assert sorted(names) == sorted(_captum.__all__)


@pytest.mark.parametrize("name", PARAMETERS)
def test_helpers_take_the_parameters_that_are_passed(name: str) -> None:
    """The parameters in use come first, in the order in which they are passed, and no other one is required."""
    signature = inspect.signature(getattr(_captum, name))
    wanted = PARAMETERS[name]
    assert list(signature.parameters)[: len(wanted)] == wanted
    rest = list(signature.parameters.values())[len(wanted) :]
    assert [parameter.name for parameter in rest if parameter.default is parameter.empty] == []


def test_base_classes_take_the_parameters_that_are_passed() -> None:
    """The constructors of the two base classes take what ours hand over, in that order."""
    assert list(inspect.signature(_captum.Attribution).parameters) == ["forward_func"]
    assert list(inspect.signature(_captum.LayerAttribution).parameters) == ["forward_func", "layer", "device_ids"]


def test_every_function_among_the_helpers_has_its_parameters_checked() -> None:
    """No helper function is left out of the table, but for the decorator, which takes anything."""
    functions = {name for name in _captum.__all__ if inspect.isfunction(getattr(_captum, name))}
    assert functions - {"log_usage"} == set(PARAMETERS)


def test_repeat_expands_copy_by_copy() -> None:
    """``ExpansionTypes.repeat`` puts copy after copy, for targets and arguments, and leaves what is no tensor."""
    repeat = _captum.ExpansionTypes.repeat
    rows = torch.tensor([3, 5])
    assert _captum._expand_target(rows, 2, expansion_type=repeat).tolist() == [3, 5, 3, 5]
    assert _captum._expand_target([3, 5], 2, expansion_type=repeat) == [3, 5, 3, 5]
    found = _captum._expand_additional_forward_args((rows, "text", torch.tensor(7)), 2, expansion_type=repeat)
    assert found[0].tolist() == [3, 5, 3, 5]
    assert found[1] == "text"
    assert found[2].shape == ()


def test_targets_select_one_value_per_row() -> None:
    """``_select_targets`` picks, from each row, the value that the target names."""
    output = torch.arange(6).reshape(2, 3)
    assert _captum._select_targets(output, 1).tolist() == [1, 4]
    assert _captum._select_targets(output, [2, 0]).tolist() == [2, 3]
    with pytest.raises(AssertionError):
        _captum._select_targets(output, (9999,) * 20)
    with pytest.raises(IndexError):
        _captum._select_targets(output, 3)


def test_run_forward_appends_the_additional_arguments() -> None:
    """``_run_forward`` passes the inputs, then the additional arguments, in order."""
    a, b = torch.ones(2), torch.zeros(2)
    found = _captum._run_forward(lambda *args: args, (a, b), None, ("more", 5))
    assert [value is wanted for value, wanted in zip(found, (a, b, "more", 5), strict=True)] == [True] * 4


def test_log_usage_keeps_the_function_within_reach() -> None:
    """The decorator leaves ``__wrapped__``, which Captum's consumers call."""

    def plain(x: int) -> int:
        return 2 * x

    decorated = _captum.log_usage(part_of_slo=True)(plain)
    assert decorated.__wrapped__ is plain
    assert decorated(4) == 8
    for method in (captum_iba.LayerIBA, captum_iba.IBA, LayerReadoutIBA):
        assert inspect.isfunction(method.attribute.__wrapped__)


def test_no_other_module_imports_captums_private_helpers() -> None:
    """Only ``_captum.py`` imports from ``captum._utils`` or any other private part of Captum."""
    assert private_imports(GATE.read_text())
    assert len(SOURCES) > 10
    found = {str(path.relative_to(PACKAGE)): private_imports(path.read_text()) for path in SOURCES if path != GATE}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import captum._utils.common",
        "from captum._utils import common",
        "from captum import _utils",
        "def f():\n    from captum.attr._utils.attribution import Attribution",
    ],
)
def test_the_search_for_private_imports_finds_every_form(source: str) -> None:
    """Plain imports, imports of a name and imports inside a function are all found."""
    assert len(private_imports(source)) == 1
    assert private_imports("from captum.attr import LayerGradCam\nfrom captum_iba import _captum") == []
