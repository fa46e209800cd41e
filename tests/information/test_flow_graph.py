import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captum_iba.errors import MissingDependencyError
from captum_iba.information import _flow_graph
from captum_iba.information._flow_graph import chain, node_flow

WIDTHS = st.lists(st.integers(1, 4), min_size=2, max_size=4)


def matrices(widths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.rand(a, b, generator=generator, dtype=torch.float64) for a, b in itertools.pairwise(widths))
    return [matrix * (matrix > 0.2) for matrix in drawn]


def paths(edges):
    """Every path with the product along it."""
    widths = [len(edges[0]), *(matrix.shape[1] for matrix in edges)]
    for path in itertools.product(*map(range, widths)):
        product = 1.0
        for matrix, (a, b) in zip(edges, itertools.pairwise(path), strict=True):
            product *= float(matrix[a, b])
        yield path, product


@settings(max_examples=30)
@given(WIDTHS, st.integers(0, 100))
def test_the_chain_of_matrices_is_the_sum_over_all_paths(widths, seed):
    """A[f, c] = sum over the paths from f to c of the products of their edges."""
    edges = matrices(widths, seed)
    summed = torch.zeros(widths[0], widths[-1], dtype=torch.float64)
    for path, product in paths(edges):
        summed[path[0], path[-1]] += product
    assert torch.allclose(chain(edges), summed, atol=1e-12, rtol=1e-12)


@settings(max_examples=30)
@given(WIDTHS, st.integers(0, 100))
def test_a_units_flow_is_the_sum_over_the_paths_through_it(widths, seed):
    """F_l[i] = sum over the paths whose l-th unit is i."""
    edges = matrices(widths, seed)
    summed = [torch.zeros(width, dtype=torch.float64) for width in widths]
    for path, product in paths(edges):
        for layer, unit in enumerate(path):
            summed[layer][unit] += product
    for found, wanted in zip(node_flow(edges), summed, strict=True):
        assert torch.allclose(found, wanted, atol=1e-12, rtol=1e-12)


@settings(max_examples=30)
@given(WIDTHS, st.integers(0, 100))
def test_every_layer_passes_the_whole_flow(widths, seed):
    """sum_i F_l[i] = sum of A for every layer; features and classes have A's row and column sums."""
    edges = matrices(widths, seed)
    flows, whole = node_flow(edges), chain(edges)
    for flow in flows:
        assert torch.isclose(flow.sum(), whole.sum(), atol=1e-12, rtol=1e-12)
    assert torch.allclose(flows[0], whole.sum(dim=1)) and torch.allclose(flows[-1], whole.sum(dim=0))


def test_without_networkx_the_error_names_the_command(monkeypatch):
    """A missing optional package is a MissingDependencyError with the pip command."""

    def without(name):
        raise ImportError(name)

    monkeypatch.setattr(_flow_graph.importlib, "import_module", without)
    with pytest.raises(MissingDependencyError, match="pip install networkx"):
        _flow_graph.import_networkx()
