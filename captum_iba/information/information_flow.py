"""What an information flow found: edges, the flow through each unit, and which units carry nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from torch import Tensor

from captum_iba.information import _flow_graph
from captum_iba.information.estimate import Unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UnitKind: TypeAlias = Literal["constant", "null", "informative"]


@dataclass(frozen=True)
class InformationFlow:
    """The result of :meth:`NeuralInformationFlow.fit`.

    Attributes:
        layers (tuple[str, ...]): names of the layers, ``"inputs"`` first.
        estimates (tuple[Tensor, ...]): for each layer but the last, the mutual information (n_l, n_{l+1}) of its units
            with those of the next one as estimated, in ``unit``; float64.
        null_quantiles (tuple[Tensor, ...]): what an estimate must exceed; it broadcasts to the estimates.
        saturated (tuple[Tensor, ...]): bool (n_l, n_{l+1}): the estimate is at the largest value that so many examples
            allow, as one unit determines the other; the true value may be anything above.
        edges (tuple[Tensor, ...]): (n_l, n_{l+1}), what the mode makes of the estimates: 0 where not above the null or
            the weights are 0, times the weights if asked for.
        attribution (Tensor): (features, classes), the sum over all paths of the product of their edges. It ranks; it is
            a power of an information, not an information.
        node_flow (tuple[Tensor, ...]): (n_l,) for each layer: the same sum over the paths through a unit.
        units (tuple[tuple[str, ...], ...]): for each layer and unit ``"constant"``: one value for all examples;
            ``"null"``: no flow, as everything that it receives or sends is not above the null; or ``"informative"``.
        n (int): number of examples.
        mode (str): ``"pairwise"``, ``"mifs"`` or ``"poster"``.
        estimator (str): the estimator and its settings.
        unit (str): ``"bits"`` or ``"nats"``.
        weighted (bool): edges are times the weights, and in no unit.
        warnings (tuple[str, ...]): traps that the estimates met.

    Examples::

        >>> import torch
        >>> from torch import nn
        >>> from captum_iba.information.neural_information_flow import NeuralInformationFlow
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
        >>> result = NeuralInformationFlow(model, estimator="gaussian").fit(torch.randn(200, 2)).result
        >>> print(result.describe())
        2 (inputs) -> 3 (1) -> 2 (2) units, 200 examples, Gaussian(correction=True), mode pairwise.
        Layer 1: every unit varies and has a flow above the null.
        >>> [round(float(flow.sum() / result.attribution.sum()), 6) for flow in result.node_flow]
        [1.0, 1.0, 1.0]
    """

    layers: tuple[str, ...]
    estimates: tuple[Tensor, ...]
    null_quantiles: tuple[Tensor, ...]
    saturated: tuple[Tensor, ...]
    edges: tuple[Tensor, ...]
    attribution: Tensor
    node_flow: tuple[Tensor, ...]
    units: tuple[tuple[UnitKind, ...], ...]
    n: int
    mode: str
    estimator: str
    unit: Unit
    weighted: bool
    warnings: tuple[str, ...] = ()

    def units_of(self, kind: UnitKind) -> dict[str, tuple[int, ...]]:
        """Hidden units of a kind, by layer; layers without one are left out."""
        hidden = zip(self.layers[1:-1], self.units[1:-1], strict=True)
        found = {name: tuple(i for i, one in enumerate(kinds) if one == kind) for name, kinds in hidden}
        return {name: units for name, units in found.items() if units}

    def describe(self) -> str:
        """A line for each hidden layer, in words."""
        counts = " -> ".join(f"{len(kinds)} ({name})" for name, kinds in zip(self.layers, self.units, strict=True))
        lines = [f"{counts} units, {self.n} examples, {self.estimator}, mode {self.mode}."]
        for name, kinds in zip(self.layers[1:-1], self.units[1:-1], strict=True):
            parts = [
                _in_words(kind, [i for i, one in enumerate(kinds) if one == kind]) for kind in ("constant", "null")
            ]
            said = "; ".join(part for part in parts if part)
            lines.append(f"Layer {name}: {said or 'every unit varies and has a flow above the null'}.")
        at_cap = sum(int(table.sum()) for table in self.saturated)
        if at_cap:
            lines.append(f"{at_cap} edges are as high as {self.n} examples allow; they may be anything above.")
        return "\n".join(lines)

    def to_networkx(self) -> Any:
        """A ``networkx.DiGraph``.

        Its nodes (layer, unit) have ``layer``, ``flow`` and ``kind``, its edges ``information``.

        Raises:
            MissingDependencyError: networkx is not installed.
        """
        return _flow_graph.to_networkx(self)

    def communities(self) -> list[set[tuple[int, int]]]:
        """Groups of units (layer, unit) that share more information than chance would have it, the largest first.

        Greedy modularity (Clauset, Newman and Moore, 2004) on the edges, without their direction. Units without an
        edge are in no group.

        Raises:
            MissingDependencyError: networkx is not installed.
        """
        return _flow_graph.communities(self)

    def plot(self, communities: bool = True, max_units: int = 32) -> Figure:
        """Draw the graph, layers from left to right.

        The wider an edge the more information, the larger a unit the more flow, each scaled in its own layer; a colour
        for each community; units without flow are hollow, constant ones crossed.

        Args:
            communities (bool, optional): find and colour communities, for which networkx is needed. Default: True.
            max_units (int, optional): of each layer at most so many units are drawn, those with the highest flow.
                Default: 32.

        Returns:
            matplotlib.figure.Figure: drawn without pyplot.

        Raises:
            MissingDependencyError: communities are asked for and networkx is not installed.
            InvalidArgumentError: max_units is no integer of at least 1.
        """
        from captum_iba.information._flow_plot import plot_flow

        return plot_flow(self, communities, max_units)


def kinds_of(constant: Tensor, flow: Tensor) -> tuple[UnitKind, ...]:
    """The kind of each unit of a layer."""
    said = zip(constant.tolist(), (flow == 0).tolist(), strict=True)
    return tuple("constant" if same else "null" if nothing else "informative" for same, nothing in said)


def _in_words(kind: str, units: list[int]) -> str:
    if not units:
        return ""
    what = {
        "constant": "constant, which can be removed without a change of the outputs on this data",
        "null": "without a flow above the null",
    }[kind]
    listed = ", ".join(map(str, units[:8])) + (", ..." if len(units) > 8 else "")
    return f"{len(units)} unit{'s' * (len(units) > 1)} ({listed}) {what}"
