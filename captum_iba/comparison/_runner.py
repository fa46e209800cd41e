"""Runs methods and metrics on one example after another."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from captum_iba._warn import Warner
from captum_iba.comparison._column import Column, ExampleState, Record
from captum_iba.comparison._cost import Cost
from captum_iba.comparison._pictures import to_heat_map, to_jpeg
from captum_iba.comparison._types import ExampleInfo
from captum_iba.comparison.dataset import Example, ExampleSet
from captum_iba.comparison.methods import Context, Explainer, Method
from captum_iba.comparison.store import ExampleRecord, MethodRecord
from captum_iba.errors import CaptumIBAError, InvalidArgumentError, NonFiniteError, UnreadableExampleError


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        methods (Sequence[Method]): rows.
        columns (Sequence[Column]): metrics.
        context (Context): what methods are built from.
        categories (Sequence[str] or None): names of the classes.
        pictured (frozenset[str]): keys of the examples whose pictures are kept.
    """

    methods: Sequence[Method]
    columns: Sequence[Column]
    context: Context
    categories: Sequence[str] | None
    pictured: frozenset[str]


class Runner:
    """Measures examples; methods are built at the first one.

    Args:
        plan (Plan): what to run.
        on_step (Callable): called after each method of an example.
    """

    def __init__(self, plan: Plan, on_step: Callable[[], object] = lambda: None) -> None:
        self._plan, self._on_step = plan, on_step
        self._explainers: dict[str, Explainer | str] = {}
        self._warner = Warner()

    def measure(self, data: ExampleSet, index: int) -> ExampleRecord:
        """All methods and metrics on one example; one that cannot be read becomes a record with its reason."""
        with warnings.catch_warnings():
            # what Captum says about the hooks it sets, at every call
            warnings.filterwarnings("ignore", module=r"captum\.")
            return self._measure(data, index)

    def _measure(self, data: ExampleSet, index: int) -> ExampleRecord:
        key = data.keys[index]
        try:
            example = data.load(index)
        except UnreadableExampleError as error:
            for _ in self._plan.methods:
                self._on_step()
            return ExampleRecord(ExampleInfo(key, "", "", float("nan")), str(error), {})
        device = self._plan.context.example.device
        inputs, target = example.inputs[None].to(device), torch.tensor([example.target], device=device)
        info = self._describe(example, inputs)
        state = self._state(example, inputs, target)
        found = {}
        for method in self._plan.methods:
            found[method.name] = self._without_running_out(method, example, state)
            self._on_step()
        return ExampleRecord(info, "", found)

    def _describe(self, example: Example, inputs: Tensor) -> ExampleInfo:
        with torch.no_grad():
            probability = self._plan.context.model(inputs).double().softmax(dim=1)[0]
        if example.target >= len(probability):
            raise InvalidArgumentError(
                f"Example {example.key!r} has the target {example.target}, but the model has {len(probability)} "
                "classes. Look at the labels."
            )
        keep = example.key in self._plan.pictured and example.display is not None
        return ExampleInfo(
            example.key,
            self._category(example.target),
            self._category(int(probability.argmax())),
            float(probability[example.target]),
            to_jpeg(example.display) if keep and example.display is not None else b"",
            None if example.boxes is None else example.boxes.double().cpu().numpy(),
        )

    def _category(self, index: int) -> str:
        categories = self._plan.categories
        return str(index) if categories is None else categories[index]

    def _state(self, example: Example, inputs: Tensor, target: Tensor) -> ExampleState:
        context = self._plan.context
        mask = None if example.mask is None else example.mask[None].to(inputs.device)
        return ExampleState(
            context.model, inputs, target, mask, context.layer, context.statistics, context.rows, context.seed
        )

    def _one(self, method: Method, example: Example, state: ExampleState) -> MethodRecord:
        """One method on one example; whatever it raises becomes its reason, as methods come from anywhere."""
        state.rows = self._plan.context.rows
        explain = self._explainer(method)
        if isinstance(explain, str):
            return MethodRecord(failure=explain)
        try:
            with Cost(state.inputs.device) as cost:
                maps = explain(state.inputs, state.target)
            maps = _checked(maps, state.inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return MethodRecord(failure=_reason(error))
        metrics = self._metrics(example, state, maps, explain)
        heat_map = None
        if example.key in self._plan.pictured and example.display is not None:
            heat_map = to_heat_map(maps, method.unit, (state.inputs.shape[2], state.inputs.shape[3]))
        return MethodRecord("", cost.seconds, cost.memory, metrics, heat_map)

    def _metrics(self, example: Example, state: ExampleState, maps: Tensor, explain: Explainer) -> dict[str, Record]:
        found: dict[str, Record] = {}
        for column in self._plan.columns:
            applies = state.mask is not None if column.needs_boxes else not example.only_boxes
            if not applies:
                continue
            try:
                found[column.info.name] = column.measure(state, maps, explain)
            except CaptumIBAError as error:  # undefined for this map; the others still count
                found[column.info.name] = {"undefined": str(error)}
        return found

    def _explainer(self, method: Method) -> Explainer | str:
        """The built method, or why it cannot be built."""
        if method.name not in self._explainers:
            try:
                self._explainers[method.name] = method.build(self._plan.context)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                self._explainers[method.name] = _reason(error)
        return self._explainers[method.name]

    def _without_running_out(self, method: Method, example: Example, state: ExampleState) -> MethodRecord:
        """Run with ever fewer rows at once until memory suffices."""
        context = self._plan.context
        while True:
            try:
                return self._one(method, example, state)
            except torch.OutOfMemoryError as error:
                if context.rows == 1:
                    return MethodRecord(failure=_reason(error))
                context.rows //= 2
                self._warner.once(
                    "memory",
                    f"Memory ran out; going on with {context.rows} rows at once. Pass max_examples_per_batch="
                    f"{context.rows} to start with it.",
                )
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _checked(maps: object, inputs: Tensor) -> Tensor:
    """One finite map an example, (1, C, h, w), detached."""
    if isinstance(maps, Tensor) and maps.ndim == 3 and inputs.ndim == 4:
        maps = maps.unsqueeze(1)
    if not isinstance(maps, Tensor) or maps.ndim != inputs.ndim or len(maps) != len(inputs):
        found = list(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise InvalidArgumentError(f"The method returned {found}; wanted maps (1, C, h, w) for {list(inputs.shape)}.")
    if not torch.isfinite(maps).all():
        raise NonFiniteError("The method's map has NaN or infinity.")
    return maps.detach()


def _reason(error: Exception) -> str:
    """What a method said, in one line, with the kind of error where it is not one of ours."""
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, CaptumIBAError) else f"{type(error).__name__}: {text}"


def probabilities_are_logits(model: nn.Module, example: Tensor) -> None:
    """Refuse a model whose output is no row of logits.

    Raises:
        InvalidArgumentError: another shape.
    """
    with torch.no_grad():
        output = model(example)
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[1] < 2:
        found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InvalidArgumentError(f"The model returns {found}; wanted logits (N, classes). Wrap it in a module.")
