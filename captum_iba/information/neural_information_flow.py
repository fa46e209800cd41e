"""Neural Information Flow: how much information passes from unit to unit of a trained network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from captum_iba._numbers import assert_integer, assert_number
from captum_iba._warn import Warner
from captum_iba.errors import InvalidArgumentError, NotTrainedError
from captum_iba.information._flow_attribution import expand_rows
from captum_iba.information._flow_data import DataType, FlowData
from captum_iba.information._flow_edges import Edges, EdgeSettings, edges_of
from captum_iba.information._flow_graph import chain, node_flow
from captum_iba.information._flow_layers import resolve_layers
from captum_iba.information._flow_modes import MODES, Mode
from captum_iba.information._flow_prune import PruneReport, Pruning, prune
from captum_iba.information._flow_record import INPUTS, InputUnits, Record, record
from captum_iba.information.estimate import Unit, assert_unit
from captum_iba.information.estimator import Estimator, as_estimator
from captum_iba.information.information_flow import InformationFlow, kinds_of
from captum_iba.information.noise_channel import NoiseChannel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_POSTER = (
    'mode="poster" is equation 2 of the poster as printed. It holds no information of an edge: its first term is the '
    "same for every unit, its second for every unit of the next layer, so that entries may be negative and the matrix "
    'has rank 2 at most. Use "pairwise", or "mifs" for a penalty of redundancy.'
)


class NeuralInformationFlow:
    """Mutual information from unit to unit through a network: features to classes, and units without information.

    For each two neighbouring layers the mutual information of each unit of the one with each unit of the other is
    estimated from the data that :meth:`fit` gets. Estimates are never exactly 0, so those that independent units would
    reach as well, by their permutation null, count as 0. Products along paths, summed over all paths, say which feature
    reaches which class; this is a chain of matrices. After Davis et al., "NIF: A Framework for Quantifying Neural
    Information Flow in Deep Networks" (arXiv:1901.08557), whose poster is corrected in four places: an edge is the
    information between its two units (see ``mode``); each information is estimated by itself, as one critic for the
    difference of two (equation 3) bounds nothing, a lower bound with a minus being an upper one; an estimate counts
    when it exceeds its null; and what is removed without a change of the outputs is a *constant* unit, which need not
    be true of one whose flow is 0. Its fifth error is in the reading of a test: see :func:`ks_test`.

    What it does not say:

    - It is pairwise. Two units may say nothing alone and everything together (an exclusive or), so a unit without flow
      may be needed; :meth:`prune` measures it.
    - Information does not know the weights: a unit that nothing reads still shares information with what others made of
      the same inputs. Edges whose weights are 0 are therefore left out, and ``weighted`` takes sizes into account.
    - Sums of products rank features. They are no bits, and shrink or grow with the number of layers.

    Args:
        model (torch.nn.Module): takes inputs (n, features, ...) and returns logits (n, classes). It is run in
            evaluation mode, and left as it was.
        layers (Sequence[str or torch.nn.Module], optional): dotted names or modules in the order in which they run: the
            hidden layers, whose outputs (n, units) or feature maps (n, channels, ...) hold the units, after the
            activation rather than before; and last the layer that gives the logits. A channel's value is its mean
            over positions. Default: None, for an nn.Sequential: each linear or convolutional layer with what follows
            it unit by unit.
        estimator (str or Estimator, optional): ``"ksg"``, nearest neighbours; ``"gaussian"``, which is fast for wide
            layers and sees less of what is not monotone; ``"mine"``, a critic trained for each edge and each draw of
            the null, which takes minutes (fewer ``n_permutations`` and an object with fewer steps help); or another
            one, but ``"kde"`` and ``"noise"``, to which it does not matter what is paired. ``"auto"`` is ``"ksg"``.
            Default: ``"ksg"``, as units are compared one by one, where it is accurate.
        mode (str, optional): ``"pairwise"``: the information of the two units. ``"mifs"``: less the mean information of
            the unit with the others of its layer, times ``redundancy_weight``, not below 0 (after Battiti, 1994).
            ``"poster"``: the poster's equation 2 as printed, with a warning. Default: ``"pairwise"``.
        redundancy_weight (float, optional): beta of ``"mifs"`` and ``"poster"``. Default: 0.5.
        mask_zero_weights (bool, optional): edges whose weights are all 0 carry nothing. Default: True.
        weighted (bool, optional): multiply each edge by the sum of its absolute weights. Default: False, which keeps
            edges in bits.
        output (str, optional): the last layer's units are the ``"logits"``; or the classes themselves: ``"labels"``,
            each class against the others, for which the data needs labels. Default: ``"logits"``.
        input_units (str, optional): units of inputs with positions are ``"channels"`` or ``"elements"``. Default:
            ``"auto"``, channels if a convolution comes first, else elements.
        n_permutations (int, optional): draws of the null. Default: 200, which places the 95 % quantile to about 1.5 %.
        family_wise (bool, optional): the null's level is 1 - 0.05 / edges in place of 0.95, so that among edges without
            information even one above the null is rare. It needs 20 draws for each edge. Default: False.
        unit (str, optional): ``"bits"`` or ``"nats"``. Default: ``"bits"``.
        internal_batch_size (int, optional): examples of one forward pass, for data that is no loader. Default: None.
        seed (int, optional): for breaking ties, the null, and critics. Default: 0.

    Raises:
        InvalidArgumentError: an argument out of range, an estimator that does not fit, layers not named for a model
            that is no chain.
        InvalidTypeError: no module, or layers that are neither names nor modules.
        LayerNotExecutedError: the model has no such layer.

    Examples::

        >>> import torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> with torch.no_grad():
        ...     model[0].weight[:, 2] = 0  # nothing reads the third feature
        ...     model[0].bias[0] = -100    # the first unit is dead
        >>> x = torch.randn(300, 3)
        >>> flow = NeuralInformationFlow(model, estimator="gaussian").fit(x)
        >>> flow.attribute(x[:1], target=1)[0, 2].item()
        0.0
        >>> flow.result.units_of("constant")
        {'1': (0,)}
        >>> smaller, report = flow.prune()
        >>> report.n_units, bool(torch.allclose(smaller(x), model(x)))
        (1, True)
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str | nn.Module] | None = None,
        estimator: str | Estimator = "ksg",
        mode: Mode = "pairwise",
        *,
        redundancy_weight: float = 0.5,
        mask_zero_weights: bool = True,
        weighted: bool = False,
        output: str = "logits",
        input_units: InputUnits = "auto",
        n_permutations: int = 200,
        family_wise: bool = False,
        unit: Unit = "bits",
        internal_batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        assert_unit(unit)
        _assert_among("mode", mode, MODES)
        _assert_among("output", output, ("logits", "labels"))
        _assert_among("input_units", input_units, ("auto", "channels", "elements"))
        assert_number("redundancy_weight", redundancy_weight, lambda value: value >= 0, "of at least 0")
        # below, the 95 % quantile would be the largest draw
        assert_integer("n_permutations", n_permutations, least=20)
        assert_integer("seed", seed, least=0)
        if internal_batch_size is not None:
            assert_integer("internal_batch_size", internal_batch_size)
        chosen = as_estimator("ksg" if estimator == "auto" else estimator)
        _assert_fits(chosen, output == "labels")
        self.model, self.layers = model, resolve_layers(model, layers)
        self._settings = EdgeSettings(
            chosen,
            mode,
            float(redundancy_weight),
            bool(mask_zero_weights),
            bool(weighted),
            output == "labels",
            int(n_permutations),
            bool(family_wise),
            unit,
            int(seed),
        )
        self._input_units: InputUnits = input_units
        self._internal_batch_size = internal_batch_size
        self._warner = Warner()
        # remembers what is estimated, also by a fit that was interrupted
        self._edges = Edges(self._settings)
        self._fitted: tuple[InformationFlow, Record, FlowData] | None = None

    @property
    def result(self) -> InformationFlow:
        """What :meth:`fit` found.

        Raises:
            NotTrainedError: it was not called.
        """
        return self._state()[0]

    def fit(self, data: DataType, show_progress: bool = False) -> NeuralInformationFlow:
        """Estimate the information of all edges.

        A fit that is interrupted keeps what it has: called again with the same data, it goes on from there.

        Args:
            data (Tensor, tuple[Tensor, Tensor] or Iterable): inputs, some hundreds or thousands; (inputs, labels); or a
                loader of batches that are one or the other. Labels are for ``output="labels"`` and for the accuracies
                of :meth:`prune`. It is kept, not copied, as :meth:`prune` goes through it again.
            show_progress (bool, optional): a bar over edges. Default: False.

        Returns:
            NeuralInformationFlow: itself.

        Raises:
            InvalidArgumentError: layers out of order, a last layer that does not fit the output, no labels where they
                are needed, too few examples or permutations.
            InvalidTypeError: data of another kind.
            MismatchedArgumentsError: inputs of another dtype than the model can take.
            NonFiniteError: a NaN or an infinity in inputs or layers.
            UnsupportedModelError: ``weighted`` where two layers are not linked by one layer with weights.
        """
        examples = FlowData(data, self._internal_batch_size, self._settings.seed)
        found = record(self.model, self.layers, examples, self._input_units)
        parts = edges_of(self._edges, found, show_progress)
        result = self._as_result(found, parts)
        for text in (*([_POSTER] if self._settings.mode == "poster" else []), *result.warnings):
            self._warner.once(text, text)
        self._fitted = (result, found, examples)
        return self

    def attribute(self, inputs: Tensor | tuple[Tensor], target: Any = None) -> Tensor | tuple[Tensor]:
        """What each feature has to do with a class, in the shape of the inputs.

        The attribution is **global**: a property of the model and of the data of :meth:`fit`, the same for every
        example with the same target. It is the target's column of ``result.attribution``; channels are expanded to
        their positions.

        Args:
            inputs (Tensor or tuple[Tensor]): (n, features, ...), as for the model; only shape, type and device are
                used.
            target (int, list[int], tuple[int] or Tensor, optional): class for all, or one for each example. Default:
                None, for a model with a single output.

        Returns:
            Tensor or tuple[Tensor]: as inputs.

        Raises:
            NotTrainedError: :meth:`fit` was not called.
            MismatchedArgumentsError: inputs of another shape than the data of :meth:`fit`.
            TargetError: a target that does not select one class for each example.
            TargetIndexError: a class that the output does not have.
        """
        result, found, _ = self._state()
        return expand_rows(result.attribution, found, inputs, target)

    def prune(
        self, what: str | Mapping[str, Sequence[int]] = "constant", show_progress: bool = False
    ) -> tuple[nn.Module, PruneReport]:
        """Remove units from a copy of the model and compare the outputs on the data of :meth:`fit`.

        What the next layer gets from a removed unit is replaced by its mean, which goes into that layer's bias ("bias
        balancing", Amjad et al., 2018); then the weights from and to the unit are set to 0. Shapes stay.

        For a constant unit this leaves the outputs as they are, up to rounding, whatever the activation. That holds on
        the data of :meth:`fit`: on other data the unit may wake up, so check there too. For a unit without flow it need
        not hold, as units may say together what none says alone; the report says what happened.

        Args:
            what (str or Mapping[str, Sequence[int]], optional): ``"constant"`` units; ``"null"``: those and the ones
                without flow; or units of hidden layers by the layer's name. Default: ``"constant"``, which alone is
                free of loss.
            show_progress (bool, optional): a bar over layers. Default: False.

        Returns:
            tuple[torch.nn.Module, PruneReport]: the copy, and what was removed and what came of it.

        Raises:
            NotTrainedError: :meth:`fit` was not called.
            InvalidArgumentError: another word, a layer or a unit that there is not, or ``"null"`` of a mode without it.
            UnsupportedModelError: the removal is not exact although it is to be: positions that a convolution pads with
                zeros, what a residual connection reads, a layer that mixes units; or no single layer reads the units.
        """
        result, found, examples = self._state()
        pruning = Pruning(self.model, self.layers, found, examples)
        return prune(pruning, result, what, show_progress)

    def plot(self, communities: bool = True, max_units: int = 32) -> Figure:
        """The graph of the flow; see :meth:`InformationFlow.plot`."""
        return self.result.plot(communities, max_units)

    def _state(self) -> tuple[InformationFlow, Record, FlowData]:
        if self._fitted is None:
            raise NotTrainedError("There is no information flow yet; call fit(data) first.")
        return self._fitted

    def _as_result(self, found: Record, parts: list[Any]) -> InformationFlow:
        matrices = [part.edges for part in parts]
        flow = node_flow(matrices)
        constants = list(found.constant)
        if self._settings.labels:
            constants[-1] = torch.zeros(matrices[-1].shape[1], dtype=torch.bool)
        return InformationFlow(
            layers=found.names,
            estimates=tuple(part.estimates for part in parts),
            null_quantiles=tuple(part.null_quantile for part in parts),
            saturated=tuple(part.saturated for part in parts),
            edges=tuple(matrices),
            attribution=chain(matrices),
            node_flow=flow,
            units=tuple(kinds_of(constant, values) for constant, values in zip(constants, flow, strict=True)),
            n=len(found.units[0]),
            mode=self._settings.mode,
            estimator=parts[0].estimator,
            unit=self._settings.unit,
            weighted=self._settings.weighted,
            warnings=tuple(dict.fromkeys(text for part in parts for text in part.warnings)),
        )


def _assert_among(name: str, value: Any, wanted: Sequence[str]) -> None:
    if value not in wanted:
        raise InvalidArgumentError(f"{name}={value!r}; wanted one of {', '.join(map(repr, wanted))}.")


def _assert_fits(estimator: Estimator, labels: bool) -> None:
    """Refuse estimators for which no edge could exceed its null, or that cannot work with the labels."""
    if isinstance(estimator, NoiseChannel):
        raise InvalidArgumentError(
            f"estimator={estimator!r}; it takes one unit as a function of the other, whatever stands beside what, so "
            'that permuted units have the same information and no edge counts. Take "ksg" or "gaussian".'
        )
    if labels and estimator.takes_labels == "none":
        raise InvalidArgumentError(
            f'output="labels", and estimator={estimator!r} takes no labels; take "ksg", or output="logits".'
        )


__all__ = ["INPUTS", "InformationFlow", "NeuralInformationFlow", "PruneReport"]
