"""Fixtures of the conformance tests: the entries, the seeds and the warnings that are expected."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.conformance._adapter import AUTO_FIT, REAL_NAMES, STOCK_NAMES, Entry, find_entry, reseed

# few examples, modules in training mode and maps smaller than the smoothing window are used here on purpose
EXPECTED_WARNINGS = (
    "ignore:The feature statistics come from",
    "ignore:.*modules are in training mode",
    "ignore:.*the window is shortened",
    "ignore:.*It seems to end in softmax",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Filter the expected warnings in this folder alone."""
    for item in items:
        if item.path.parent.name == "conformance":
            for expected in EXPECTED_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(expected))


@pytest.fixture(autouse=True)
def _seeded_single_thread() -> Iterator[None]:
    threads, fastpath = torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled()
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(True)  # torch's default, so that a test sees when it is not put back
    reseed()
    yield
    torch.set_num_threads(threads)
    torch.backends.mha.set_fastpath_enabled(fastpath)


@pytest.fixture(params=AUTO_FIT)
def kind(request: pytest.FixtureRequest) -> str:
    """The methods, by name."""
    return str(request.param)


@pytest.fixture(params=[*STOCK_NAMES, *REAL_NAMES])
def entry(request: pytest.FixtureRequest, kind: str) -> Entry:
    """Captum's entries and our own, one after the other, for each method."""
    found = find_entry(request.param, kind)
    reseed()
    return found


@pytest.fixture(params=REAL_NAMES)
def real_entry(request: pytest.FixtureRequest) -> Entry:
    """Entries whose cross-entropy depends on the input, for the method whose map depends on the target."""
    return find_entry(request.param)


@pytest.fixture(params=REAL_NAMES)
def real_entry_of_any_kind(request: pytest.FixtureRequest, kind: str) -> Entry:
    """The same for each method."""
    return find_entry(request.param, kind)
