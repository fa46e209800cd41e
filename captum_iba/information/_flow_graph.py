"""The graph of an information flow: products along its paths, and what passes each unit."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from captum_iba.errors import MissingDependencyError

if TYPE_CHECKING:
    from torch import Tensor

    from captum_iba.information.information_flow import InformationFlow


def chain(edges: Sequence[Tensor]) -> Tensor:
    """Sum over all paths from a feature to a class of the product along the path: a chain of matrices.

    Args:
        edges (Sequence[Tensor]): (n_l, n_{l+1}) for each pair of layers.

    Returns:
        Tensor: (features, classes).
    """
    product = edges[0]
    for matrix in edges[1:]:
        product = product @ matrix
    return product


def node_flow(edges: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Sum over all paths through a unit of the product along the path.

    What comes in, ``1' M_0 .. M_{l-1}``, times what goes out, ``M_l .. M_{L-1} 1``. The units of each layer together
    have the same flow, as each path passes one of them.

    Args:
        edges (Sequence[Tensor]): (n_l, n_{l+1}) for each pair of layers.

    Returns:
        tuple[Tensor, ...]: (n_l,) for each layer.
    """
    incoming = [edges[0].new_ones(len(edges[0]))]
    for matrix in edges:
        incoming.append(incoming[-1] @ matrix)
    outgoing = [edges[-1].new_ones(edges[-1].shape[1])]
    for matrix in reversed(edges):
        outgoing.append(matrix @ outgoing[-1])
    return tuple(a * b for a, b in zip(incoming, reversed(outgoing), strict=True))


def import_networkx() -> Any:
    """The package networkx.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return importlib.import_module("networkx")
    except ImportError as error:
        raise MissingDependencyError("Graphs and communities need networkx: pip install networkx") from error


def to_networkx(flow: InformationFlow) -> Any:
    """A directed graph of an information flow; see :meth:`InformationFlow.to_networkx`."""
    graph = import_networkx().DiGraph()
    for layer, name in enumerate(flow.layers):
        for unit, (value, kind) in enumerate(zip(flow.node_flow[layer].tolist(), flow.units[layer], strict=True)):
            graph.add_node((layer, unit), layer=name, flow=value, kind=kind)
    for layer, matrix in enumerate(flow.edges):
        for unit, after in matrix.nonzero().tolist():
            graph.add_edge((layer, unit), (layer + 1, after), information=float(matrix[unit, after]))
    return graph


def communities(flow: InformationFlow) -> list[set[tuple[int, int]]]:
    """Units that share more information with each other than chance would have it, the largest community first.

    Clauset, Newman and Moore's greedy modularity on the edges that carry something, without their direction.
    """
    networkx = import_networkx()
    graph = to_networkx(flow)
    negative = [(a, b) for a, b, information in graph.edges(data="information") if information <= 0]
    graph.remove_edges_from(negative)
    graph.remove_nodes_from(list(networkx.isolates(graph)))
    if not graph:
        return []
    found = networkx.community.greedy_modularity_communities(graph.to_undirected(), weight="information")
    return [set(community) for community in found]
