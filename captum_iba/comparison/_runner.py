"""Runs methods and metrics on one example after another."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from captum_iba._warn import Warner
from captum_iba.attr import tokens_to_map
from captum_iba.attr._objective import output_tensor
from captum_iba.comparison._column import Column, ExampleState, Record
from captum_iba.comparison._cost import Cost
from captum_iba.comparison._pictures import to_heat_map, to_jpeg
from captum_iba.comparison._types import Array, ExampleInfo
from captum_iba.comparison.captum_methods import seed_of, seeded
from captum_iba.comparison.dataset import Example, ExampleSet
from captum_iba.comparison.methods import Context, Explainer, Method
from captum_iba.comparison.store import ExampleRecord, MethodRecord
from captum_iba.errors import (
    CaptumIBAError,
    CaptumIBAWarning,
    InvalidArgumentError,
    NonFiniteError,
    NoTensorError,
    UnreadableExampleError,
)

_METRIC_HALVES = r"\d+ rows at once did not fit"


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
            # a metric would halve its own rows again at every call; here they are halved for good
            warnings.filterwarnings("error", message=_METRIC_HALVES, category=CaptumIBAWarning)
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
        predicted, probability = self._predict(example, inputs)
        keep = example.key in self._plan.pictured and example.display is not None
        return ExampleInfo(
            example.key,
            self._category(example.target),
            predicted,
            probability,
            to_jpeg(example.display) if keep and example.display is not None else b"",
            _boxes(example),
        )

    def _predict(self, example: Example, inputs: Tensor) -> tuple[str, float]:
        """Name of the predicted class and the target's probability; nothing where memory does not suffice for that."""
        try:
            with torch.no_grad():
                output = output_tensor(self._plan.context.model(inputs))
            probability = output.double().softmax(dim=1)[0]
        except torch.OutOfMemoryError:
            return "", float("nan")
        except Exception as error:
            raise InvalidArgumentError(
                f"The model does not run on example {example.key!r} of shape {list(example.inputs.shape)}: "
                f"{_reason(error)}. Bring all images to one size, or leave it out."
            ) from error
        if example.target >= len(probability):
            raise InvalidArgumentError(
                f"Example {example.key!r} has the target {example.target}, but the model has {len(probability)} "
                "classes. Look at the labels."
            )
        return self._category(int(probability.argmax())), float(probability[example.target])

    def _category(self, index: int) -> str:
        categories = self._plan.categories
        return str(index) if categories is None else categories[index]

    def _state(self, example: Example, inputs: Tensor, target: Tensor) -> ExampleState:
        mask = None if example.mask is None else example.mask[None].to(inputs.device)
        return ExampleState(self._plan.context, inputs, target, mask)

    def _one(self, method: Method, example: Example, state: ExampleState) -> MethodRecord:
        """One method on one example; whatever it raises becomes its reason, as methods come from anywhere."""
        explain = self._explainer(method)
        if isinstance(explain, str):
            return MethodRecord(failure=explain)
        inputs = state.inputs
        try:
            with seeded(seed_of(inputs, state.seed), inputs), Cost(inputs.device) as cost:
                maps = explain(inputs, state.target)
            maps = _checked(maps, inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return MethodRecord(failure=_reason(error))
        metrics = self._metrics(example, state, maps, explain)
        heat_map = None
        if example.key in self._plan.pictured and example.display is not None:
            heat_map = to_heat_map(maps, method.unit, (state.inputs.shape[2], state.inputs.shape[3]))
        is_constant = bool(maps.sum(dim=1).max() == maps.sum(dim=1).min())
        fit_seconds = self._plan.context.fit_seconds.get(method.name)
        return MethodRecord("", cost.seconds, cost.memory, metrics, heat_map, is_constant, fit_seconds)

    def _metrics(self, example: Example, state: ExampleState, maps: Tensor, explain: Explainer) -> dict[str, Record]:
        found: dict[str, Record] = {}
        for column in self._plan.columns:
            applies = state.mask is not None if column.needs_boxes else not example.only_boxes
            if not applies:
                continue
            try:
                found[column.info.name] = _for_json(column.measure(state, maps, explain))
            except torch.OutOfMemoryError:
                raise
            except CaptumIBAWarning as warning:
                if re.match(_METRIC_HALVES, str(warning)):
                    raise torch.OutOfMemoryError(str(warning)) from None
                raise
            except Exception as error:  # undefined for this map; the others still count
                found[column.info.name] = {"undefined": _reason(error)}
        return found

    def _explainer(self, method: Method) -> Explainer | str:
        """The built method, or why it cannot be built."""
        if method.name not in self._explainers:
            context = self._plan.context
            try:
                with torch.enable_grad(), seeded(context.seed, context.example):
                    self._explainers[method.name] = _guarded(method.build(context))
                _assert_options_used(context, method.name)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                self._explainers[method.name] = _reason(error)
        return self._explainers[method.name]

    def _without_running_out(self, method: Method, example: Example, state: ExampleState) -> MethodRecord:
        """Run with ever fewer rows at once until memory suffices."""
        context = self._plan.context
        before = context.rows
        while True:
            try:
                record = self._one(method, example, state)
                break
            except torch.OutOfMemoryError as error:
                if context.rows == 1:
                    context.rows = before  # it is not the rows, so the other methods may have them
                    return MethodRecord(failure=_reason(error))
                context.rows //= 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        if context.rows < before:
            self._warner.once(
                "memory",
                f"Memory ran out; going on with {context.rows} rows at once. Pass max_examples_per_batch="
                f"{context.rows} to start with it.",
            )
        return record


def _boxes(example: Example) -> Array | None:
    """Boxes to draw: the example's own, or the one around its mask."""
    if example.boxes is not None:
        drawn: Array = example.boxes.double().cpu().numpy()
        return drawn
    if example.mask is None:
        return None
    rows, columns = (example.mask.any(dim=axis).nonzero().flatten().tolist() for axis in (1, 0))
    return np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], dtype=np.float64)


def _for_json(record: Record) -> Record:
    """The record, if it can be kept; columns come from anywhere."""
    json.dumps(record, allow_nan=False)
    return record


def _guarded(explain: Explainer) -> Explainer:
    """Explain copies, whatever is done to them, with gradients, whatever the caller's mode."""

    def guarded(inputs: Tensor, target: Tensor) -> Tensor:
        with torch.enable_grad():
            return explain(inputs.clone(), target.clone())

    return guarded


def _assert_options_used(context: Context, name: str) -> None:
    if context.options.get(name) and name not in context.used:
        raise InvalidArgumentError(
            f"method_options has {', '.join(context.options[name])} for {name}, which takes no arguments."
        )


def _checked(maps: object, inputs: Tensor) -> Tensor:
    """One finite map an example, (1, C, h, w), detached."""
    if isinstance(maps, Tensor) and maps.ndim == 3 and inputs.ndim == 4:
        is_tokens = maps.shape[2] == 1 < min(maps.shape[1], inputs.shape[3])
        maps = (
            tokens_to_map(maps, image_size=(inputs.shape[2], inputs.shape[3])).map if is_tokens else maps.unsqueeze(1)
        )
    if not isinstance(maps, Tensor) or maps.ndim != inputs.ndim or len(maps) != len(inputs) or maps.numel() == 0:
        found = list(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise InvalidArgumentError(f"The method returned {found}; wanted maps (1, C, h, w) for {list(inputs.shape)}.")
    if not torch.isfinite(maps).all():
        raise NonFiniteError("The method's map has NaN or infinity.")
    return maps.detach().to(inputs.device)


def _reason(error: Exception) -> str:
    """What a method said, in one line, with the kind of error where it is not one of ours."""
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, CaptumIBAError) else f"{type(error).__name__}: {text}"


def _logits(output: object) -> object:
    """The tensor of an output, or the output where it has none."""
    try:
        return output_tensor(output)
    except NoTensorError:
        return output


def assert_logits(model: nn.Module, example: Tensor, categories: Sequence[str] | None) -> None:
    """Refuse a model whose output is no row of logits, or has another number of classes than there are names.

    Raises:
        InvalidArgumentError: another shape, or a model that does not run.
    """
    try:
        with torch.no_grad():
            output = _logits(model(example))
    except torch.OutOfMemoryError:  # becomes the reason of every method
        return
    except Exception as error:
        raise InvalidArgumentError(
            f"The model does not run on the first example, {example.dtype} {list(example.shape)}: {_reason(error)}"
        ) from error
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[1] < 2:
        found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InvalidArgumentError(
            f"The model returns {found}; wanted logits (N, classes). Wrap it in a module; for one output z a row, "
            "return torch.cat([torch.zeros_like(z), z], dim=1)."
        )
    if not bool(torch.isfinite(output).all()):
        raise InvalidArgumentError(
            "The model returns NaN or infinity for the first example. Look at weights and input."
        )
    if bool((output >= 0).all()) and bool(((output.double().sum(dim=1) - 1).abs() < 1e-3).all()):
        raise InvalidArgumentError(
            "The model returns probabilities (no value is negative and they sum to 1); wanted logits, as metrics and "
            "methods take the softmax themselves. Leave out the last softmax, or wrap the model to return log(p)."
        )
    if categories is not None and len(categories) != output.shape[1]:
        raise InvalidArgumentError(
            f"There are {len(categories)} categories for {output.shape[1]} classes; wanted a name for each class."
        )
