"""Runs methods and metrics on one example after another."""

from __future__ import annotations

import inspect
import json
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_iba._warn import Warner
from captum_iba.comparison._arguments import logits_of
from captum_iba.comparison._column import Column, ExampleState, Record
from captum_iba.comparison._cost import Cost
from captum_iba.comparison._types import ExampleInfo
from captum_iba.comparison.captum_methods import seed_of, seeded
from captum_iba.comparison.context import Context
from captum_iba.comparison.dataset import ExampleSet
from captum_iba.comparison.example import KINDS, AnyExample, refusal
from captum_iba.comparison.methods import Explainer, Method
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
        state = ExampleState.of(self._plan.context, example)
        info = self._describe(example, state)
        found = {}
        for method in self._plan.methods:
            found[method.name] = self._without_running_out(method, example, state)
            self._on_step()
        return ExampleRecord(info, "", found)

    def _describe(self, example: AnyExample, state: ExampleState) -> ExampleInfo:
        predicted, probability = self._predict(example, state)
        details = example.details(self._is_pictured(example))
        return ExampleInfo(example.key, self._category(example.target), predicted, probability, **details)

    def _is_pictured(self, example: AnyExample) -> bool:
        return example.is_shown and example.key in self._plan.pictured

    def _predict(self, example: AnyExample, state: ExampleState) -> tuple[str, float]:
        """Name of the predicted class and the target's probability; nothing where memory does not suffice for that."""
        try:
            with torch.no_grad():
                logits = logits_of(state.model, state.inputs, state.additional_forward_args)
                probability = logits.double().softmax(dim=1)[0]
        except torch.OutOfMemoryError:
            return "", float("nan")
        except Exception as error:
            raise InvalidArgumentError(
                f"The model does not run on example {example.key!r} of shape {list(example.inputs.shape)}: "
                f"{_reason(error)}. Bring all examples to what it takes, or leave it out."
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

    def _one(self, method: Method, example: AnyExample, state: ExampleState) -> MethodRecord:
        """One method on one example; whatever it raises becomes its reason, as methods come from anywhere."""
        explain = self._explainer(method)
        if isinstance(explain, str):
            return MethodRecord(failure=explain)
        inputs = state.inputs
        try:
            with seeded(seed_of(inputs, state.seed), inputs), Cost(inputs.device) as cost:
                maps = explain(inputs, state.target, **state.keywords)
            maps = _checked(maps, example).to(inputs.device)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return MethodRecord(failure=_reason(error))
        metrics = self._metrics(example, state, maps, explain)
        heat_map = None
        if self._is_pictured(example):
            heat_map = example.heat_map(maps, method.unit)
        ranked = example.ranked(maps)
        is_constant = ranked.numel() > 0 and bool(ranked.max() == ranked.min())
        fit_seconds = self._plan.context.fit_seconds.get(method.name)
        return MethodRecord("", cost.seconds, cost.memory, metrics, heat_map, is_constant, fit_seconds)

    def _metrics(self, example: AnyExample, state: ExampleState, maps: Tensor, explain: Explainer) -> dict[str, Record]:
        found: dict[str, Record] = {}
        state.of_map.clear()
        for column in self._plan.columns:
            kinds = getattr(column, "kinds", KINDS)
            if example.kind not in kinds:
                found[column.info.name] = {"undefined": refusal(column.info.name, kinds, example.kind)}
                continue
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

    def _without_running_out(self, method: Method, example: AnyExample, state: ExampleState) -> MethodRecord:
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


def _for_json(record: Record) -> Record:
    """The record, if it can be kept; columns come from anywhere."""
    json.dumps(record, allow_nan=False)
    return record


def _guarded(explain: Explainer) -> Explainer:
    """Explain copies, whatever is done to them, with gradients, whatever the caller's mode.

    Of the keywords only those are handed on that the function takes: most have no use for any.
    """
    taken = _keywords_of(explain)

    def guarded(inputs: Tensor, target: Tensor, **keywords: Any) -> Tensor:
        chosen = {name: _copied(value) for name, value in keywords.items() if taken is None or name in taken}
        with torch.enable_grad():
            return explain(inputs.clone(), target.clone(), **chosen)

    return guarded


def _copied(value: Any) -> Any:
    """A copy of a tensor, or of those in a tuple."""
    if isinstance(value, tuple):
        return tuple(_copied(part) for part in value)
    return value.clone() if isinstance(value, Tensor) else value


def _keywords_of(function: Explainer) -> set[str] | None:
    """Names that a function can be given by keyword; None where it takes any."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # what is no function fails when it is called; built-ins have no signature
        return set()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters}


def _assert_options_used(context: Context, name: str) -> None:
    if context.options.get(name) and name not in context.used:
        raise InvalidArgumentError(
            f"method_options has {', '.join(context.options[name])} for {name}, which takes no arguments."
        )


def _checked(maps: object, example: AnyExample) -> Tensor:
    """One finite map of the example, detached, in the form that its metrics take."""
    if not isinstance(maps, Tensor):
        raise InvalidArgumentError(f"The method returned {type(maps).__name__}; wanted maps, a tensor.")
    maps = example.fitted(maps.detach())
    if not torch.isfinite(maps).all():
        raise NonFiniteError("The method's map has NaN or infinity.")
    return maps


def _reason(error: Exception) -> str:
    """What a method said, in one line, with the kind of error where it is not one of ours."""
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, CaptumIBAError) else f"{type(error).__name__}: {text}"


def assert_logits(context: Context, categories: Sequence[str] | None) -> None:
    """Refuse a model whose output is no row of logits, or has another number of classes than there are names.

    Raises:
        InvalidArgumentError: another shape, or a model that does not run.
    """
    example = context.example
    try:
        with torch.no_grad():
            output = logits_of(context.model, example, context.additional_forward_args)
    except torch.OutOfMemoryError:  # becomes the reason of every method
        return
    except NoTensorError as error:
        raise InvalidArgumentError(f"{error} Wanted logits (N, classes).") from error
    except Exception as error:
        raise InvalidArgumentError(
            f"The model does not run on the first example, {example.dtype} {list(example.shape)}: {_reason(error)}"
        ) from error
    if output.ndim != 2 or output.shape[1] < 2:
        raise InvalidArgumentError(
            f"The model returns {list(output.shape)}; wanted logits (N, classes). Wrap it in a module; for one output "
            "z a row, return torch.cat([torch.zeros_like(z), z], dim=1)."
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
