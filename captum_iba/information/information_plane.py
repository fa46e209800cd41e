"""The information plane: what a network's layers hold of their input and of the label, while it is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from captum_iba._numbers import assert_integer, assert_number
from captum_iba.errors import InvalidArgumentError, InvalidTypeError, MismatchedArgumentsError
from captum_iba.information._layer_outputs import find_layers, layer_outputs, named_layers
from captum_iba.information.estimate import Estimate, Unit, assert_unit, no_information
from captum_iba.information.estimator import Estimator, as_estimator
from captum_iba.information.generators import generator_of
from captum_iba.information.noise_channel import NoiseChannel, as_rows, distinct_rows
from captum_iba.information.plane_result import DataProcessingCheck, InformationPlaneResult, Point
from captum_iba.information.variables import as_variable, is_labels, rank_gaussianize, varying

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONSTANT = "A layer or the label was the same for all examples, so that there was no information, by definition."


class InformationPlane:
    r"""Record I(X; T_l) and I(T_l; Y) of layers T_l while a network is trained.

    Shwartz-Ziv and Tishby 2017, "Opening the black box of deep neural networks via information", section 3. **The true
    I(X;T) of a deterministic network is constant or infinite; only a binned or noisy surrogate of T moves (Goldfeld et
    al. 2019).** What moves is how far the layer's values for different inputs lie apart, measured with the estimator's
    noise or bins: falling information is clustering. So the estimator is part of the result: with bins between -1 and 1
    ReLU units seem to compress, with others they do not (Saxe et al. 2018). For a network that is itself noisy see
    :func:`noisy_network_information`.

    Each call of :meth:`log` adds one step; nothing is lost if training stops. X is the row of the data: rows with equal
    inputs are one value, all rows are equally likely, and no estimate exceeds ln n.

    Args:
        layers (Sequence or Mapping): in the order in which they run; dotted names as in ``model.named_modules()``,
            modules, or a dict from names of your choice to such. Dotted names also fit other models (runs).
        estimator (str or Estimator, optional): ``KDE()``, ``SamplePropagation()``, ``Binning(width=0.07,
            correction=False)``, or a name. Default: ``"kde"``, the upper bound with a noise variance of 1e-3. Those
            that take no labels are refused, as Y is one.
        unit (str, optional): ``"bits"`` or ``"nats"``. Default: ``"bits"``.
        internal_batch_size (int, optional): rows of one forward pass. Default: None, all.
        seed (int, optional): of estimators that draw; each step starts from it. Default: 0.

    Raises:
        InvalidArgumentError: no layer, a layer twice, an estimator that takes no labels, an unknown unit.
        InvalidTypeError: layers or an estimator of another type.

    Examples::

        >>> import torch
        >>> from torch import nn
        >>> from captum_iba.information import InformationPlane
        >>> _ = torch.manual_seed(0)
        >>> x, model = torch.randn(200, 4), nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
        >>> y = (x[:, 0] > 0).long()
        >>> optimizer = torch.optim.Adam(model.parameters(), 0.05)
        >>> plane = InformationPlane(["1"])
        >>> for epoch in range(40):
        ...     if epoch % 13 == 0:
        ...         plane.log(epoch, model, x, y)
        ...     optimizer.zero_grad()
        ...     nn.functional.cross_entropy(model(x), y).backward()
        ...     optimizer.step()
        >>> result = plane.result()
        >>> result.step, result.layer
        ((0, 13, 26, 39), ('1', '1', '1', '1'))
        >>> bool(result.i_ty[-1] > result.i_ty[0])
        True
        >>> figure = plane.plot()
        >>> plane.check_data_processing().holds  # of one layer: there is nothing to compare
        True
    """

    def __init__(
        self,
        layers: Sequence[str | nn.Module] | Mapping[str, str | nn.Module],
        estimator: str | Estimator = "kde",
        unit: Unit = "bits",
        internal_batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        assert_unit(unit)
        assert_integer("seed", seed, least=0)
        if internal_batch_size is not None:
            assert_integer("internal_batch_size", internal_batch_size)
        self._layers = named_layers(layers)
        self.estimator = as_estimator(estimator)
        if self.estimator.takes_labels == "none":
            raise InvalidArgumentError(
                f"{self.estimator!r} takes no labels, and Y is one. Take KDE(), SamplePropagation() or Binning(...)."
            )
        self._unit, self._batch, self._seed = unit, internal_batch_size, seed
        self._points: dict[tuple[int, float, str], Point] = {}

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers."""
        return tuple(self._layers)

    def log(
        self,
        step: float,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        additional_forward_args: Any = None,
        run: int = 0,
    ) -> None:
        """Measure all layers now. A step that is logged again is replaced.

        Args:
            step (int or float): of training: epoch or iteration.
            model (nn.Module): runs in evaluation mode, without gradients, and is left as it was.
            x (Tensor): (n, ...), inputs, on the model's device.
            y (Tensor): (n,), integers or booleans.
            additional_forward_args (Any, optional): further arguments of the model; tensors with n rows are cut like
                x. Default: None.
            run (int, optional): number of the run, where several networks are trained; :meth:`result` then gives their
                mean. Default: 0.

        Raises:
            CaptumIBAError: inputs or labels that cannot be used, a layer that does not run or returns no single
                tensor, a NaN.
        """
        assert_number("step", step, lambda value: True, "such as the epoch")
        assert_integer("run", run, least=0)
        labels = _as_labels(x, y, self.estimator.at_least)
        places = find_layers(model, self._layers)
        outputs = layer_outputs(model, places, x, additional_forward_args, self._batch, self._seed)
        rows = distinct_rows(x)
        points = {}
        for name, output in outputs.items():
            i_xt, i_ty = self._measured(rows, x, output, labels)
            points[run, step, name] = Point.of(i_xt.to(self._unit), i_ty.to(self._unit))
        self._points.update(points)

    def _measured(self, rows: Tensor, x: Tensor, output: Tensor, labels: Tensor) -> tuple[Estimate, Estimate]:
        """I(X;T) and I(T;Y) in nats."""
        generator = generator_of(self._seed)
        t, rows, labels = output.double(), rows.to(output.device), labels.to(output.device)
        if isinstance(self.estimator, NoiseChannel):
            i_xt, i_ty = self.estimator.label_information(t, [rows, labels], generator)
            return i_xt, i_ty
        if self.estimator.takes_labels == "both":  # labels are counted, and an input is a label
            return self.estimator.estimate(rows, t, generator), self.estimator.estimate(t, labels, generator)
        # no input has others with the same label: the numbers themselves
        x = as_rows(x.to(output.device))
        return self._prepared(x, output, generator), self._prepared(output, labels, generator)

    def _prepared(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Estimate:
        """An estimate of what estimators expect: columns that vary, ranked where that is wanted."""
        kept = []
        for variable in (x, y):
            checked = as_variable("layer or input", variable)
            columns = varying(checked, variable.dtype)
            if not bool(columns.any()):
                return no_information((), len(x), repr(self.estimator), CONSTANT, x.device)
            checked = checked if is_labels(checked) else checked[:, columns]
            kept.append(rank_gaussianize(checked, generator) if self.estimator.ranked else checked)
        return self.estimator.estimate(kept[0], kept[1], generator)

    def merge(self, *others: InformationPlane) -> InformationPlane:
        """Add the runs of other recordings, of other processes for instance, after the runs of this one.

        Args:
            *others (InformationPlane): with the same layers, estimator and unit.

        Returns:
            InformationPlane: this one.

        Raises:
            MismatchedArgumentsError: layers, estimator or unit differ.
            InvalidTypeError: no InformationPlane.
        """
        for other in others:
            if not isinstance(other, InformationPlane):
                raise InvalidTypeError(f"merge got a {type(other).__name__}; wanted an InformationPlane.")
            mine, theirs = (f"{one.layers}, {one.estimator!r}, {one._unit}" for one in (self, other))
            if mine != theirs:
                raise MismatchedArgumentsError(f"This plane holds {mine} and the other {theirs}; wanted the same.")
        for other in others:
            first = 1 + max((run for run, _, _ in self._points), default=-1)
            places = {run: first + place for place, run in enumerate(sorted({run for run, _, _ in other._points}))}
            self._points.update({(places[run], step, name): one for (run, step, name), one in other._points.items()})
        return self

    def result(self, run: int | None = None) -> InformationPlaneResult:
        """All that was recorded so far.

        Args:
            run (int, optional): one run. Default: None: all; of several, means with the standard error over runs.

        Returns:
            InformationPlaneResult: by step, and within a step by layer.

        Raises:
            InvalidArgumentError: nothing was recorded, or not this run.
        """
        runs = sorted({one for one, _, _ in self._points})
        if not runs:
            raise InvalidArgumentError("Nothing was recorded yet; call log(step, model, x, y) first.")
        if run is not None and run not in runs:
            raise InvalidArgumentError(f"run={run!r}; recorded were {runs}.")
        chosen = {key: point for key, point in self._points.items() if run is None or key[0] == run}
        return InformationPlaneResult.of(chosen, self.layers, repr(self.estimator), self._unit)

    def plot(self, limit: Any = None) -> Figure:
        """Draw all that was recorded; see :meth:`InformationPlaneResult.plot`."""
        return self.result().plot(limit)

    def check_data_processing(self, n_standard_errors: float = 2.0) -> DataProcessingCheck:
        """Compare each layer with the one before it; see :meth:`InformationPlaneResult.check_data_processing`."""
        return self.result().check_data_processing(n_standard_errors)


def _as_labels(x: Any, y: Any, at_least: int) -> Tensor:
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor):
            raise InvalidTypeError(f"{name} is a {type(value).__name__}; wanted a tensor with a row for each example.")
    if y.is_floating_point() or y.is_complex() or y.ndim != 1:
        raise InvalidArgumentError(
            f"y has shape {tuple(y.shape)} and dtype {y.dtype}; wanted one integer for each example. Of one-hot rows "
            "take y.argmax(1); put continuous values into classes: torch.bucketize(y, boundaries)."
        )
    if x.ndim == 0 or len(x) != len(y):
        raise MismatchedArgumentsError(
            f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}; wanted a row of x for each label."
        )
    if len(y) < at_least:
        raise InvalidArgumentError(f"There are {len(y)} examples; this estimator needs at least {at_least}.")
    labels: Tensor = torch.unique(y.detach(), return_inverse=True)[1]
    return labels
