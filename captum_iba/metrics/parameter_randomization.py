"""Whether an attribution depends on the parameters that the model has learned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from captum_iba._warn import Warner
from captum_iba.attr._calibration import forward_calls
from captum_iba.attr._model import device_of, evaluation_mode
from captum_iba.errors import InvalidArgumentError, InvalidTypeError
from captum_iba.metrics._accumulate import Accumulator
from captum_iba.metrics._cascade import ORIGINAL, AttributeFunc, Cascade, Inputs
from captum_iba.metrics._options import bound_options
from captum_iba.metrics._randomize import Method, Randomizer, preserved
from captum_iba.metrics._result import MetricResult, UndefinedResultError
from captum_iba.metrics._similarity import Similarity, resolve_similarity
from captum_iba.metrics._stages import Stage

_METHODS = ("reset", "permute")


@dataclass(frozen=True)
class ParameterRandomizationResult(MetricResult):
    """How alike the trained and the randomised model's maps are, stage by stage.

    Attributes:
        per_sample (Tensor): (N,), mean similarity over the randomised stages at which it is defined.
        similarities (Tensor): (N, S + 1), float64: similarity of each stage's map to the trained model's. The first
            column compares that map with itself, which gives 1 by SSIM and rank correlation. NaN where undefined.
        stages (tuple[str, ...]): S + 1 names: ``"original"``, then what each stage randomised on top of those before.
        reference (Tensor or None): (N,), similarity on the trained model of ``reference_func`` to ``attribute_func``:
            what noise alone does. None without a ``reference_func``.
        failures (dict[str, str]): why values are missing, by stage.
    """

    similarities: Tensor
    stages: tuple[str, ...]
    reference: Tensor | None = None
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def curve(self) -> Tensor:
        """(S + 1,), mean similarity over the examples that have one."""
        return self.similarities.nanmean(dim=0)

    @property
    def curve_stderr(self) -> Tensor:
        """(S + 1,), standard error of :attr:`curve`; NaN where fewer than two examples have a value."""
        n = (~self.similarities.isnan()).sum(dim=0)
        squares = (self.similarities - self.curve).square().nansum(dim=0)
        return torch.where(n > 1, (squares / (n - 1).clamp_min(1) / n.clamp_min(1)).sqrt(), float("nan"))


def parameter_randomization(
    model: nn.Module,
    attribute_func: AttributeFunc,
    inputs: Inputs,
    target: Any = None,
    *,
    stages: Sequence[str] | None = None,
    method: Method = "reset",
    similarity: Similarity = "ssim",
    sign_invariant: bool = False,
    seed: int = 0,
    show_progress: bool = False,
    recalibration_data: Iterable[Any] | None = None,
    reference_func: AttributeFunc | None = None,
) -> ParameterRandomizationResult:
    """Randomise the model from the output towards the input and watch how much the attribution changes.

    The last layer gets new weights, then one layer more at each stage, until all are random. After each stage the
    randomised model is explained, for the same inputs and targets, and the map compared with the trained model's. A
    map that stays as it was does not depend on what the model has learned. This is a check, not a score: a low value
    does not make a method good.

    The model itself is randomised, in evaluation mode, and is put back bit for bit, with its buffers, flags and
    gradients and with torch's global random state, also where something raises or is interrupted. Inside, gradients
    of parameters start as None. A copy of the parameters is kept meanwhile.

    Args:
        model (Module): runs as ``model(*inputs)``.
        attribute_func (Callable): ``attribute_func(model, inputs, target) -> maps``, with the maps (N, H, W);
            (N, C, H, W), channels being summed; or (N, T). They may be smaller than the inputs: they are resized
            bilinearly to the last two axes of the first input of four axes. It should give the same map again, as
            noise lowers the similarity too: torch's global generators are seeded alike before each call. What was
            fitted to the trained model, such as a bottleneck's statistics, it has to fit anew.
        inputs (Tensor or tuple[Tensor, ...]): (N, ...) each.
        target (optional): handed on to ``attribute_func``. Default: None.
        stages (Sequence[str], optional): dotted names of modules, with all that they contain, or of parameters, in
            the order in which to randomise. Default: None: all, in reverse order of execution, as one forward pass
            shows it. A module that runs several times counts at its last run. A parameter that belongs to a module
            with children, such as a class token or a positional embedding, is a stage of its own and counts at that
            module's start. What did not run comes last. Tied parameters are randomised once, at the first stage that
            reaches them.
        method (str, optional): ``"reset"``: a module's own initialiser (``reset_parameters`` or
            ``_reset_parameters``); where it has none, normal values with the parameter's own mean and deviation; norm
            layers' parameters shuffled, since ones and zeros would hardly be random. ``"permute"``: every parameter
            shuffled, which keeps its scale. By either, parameters whose elements are all equal and have no
            initialiser stay, and running statistics of norm layers go back to mean 0 and variance 1. Default:
            ``"reset"``, as published.
        similarity (str or Callable, optional): ``"ssim"``: each map is clamped to its own 1st and 99th percentile and
            rescaled to [0, 1], and compared by structural similarity in 5x5 windows; ``"spearman"``: rank correlation,
            for tokens and vectors too, undefined for constant maps; or ``similarity(a, b) -> (N,)`` of two batches
            of maps as they are, in float64. Default: ``"ssim"``, as published.
        sign_invariant (bool, optional): take the larger similarity of the map and of its negative, for methods whose
            sign flips, such as layer-wise relevance propagation. Default: False.
        seed (int, optional): of the new weights, which depend on it and on the stage's place, and not on the inputs.
            Default: 0.
        show_progress (bool, optional): show a progress bar over the stages. Default: False.
        recalibration_data (Iterable, optional): batches, as :meth:`LayerIBA.estimate` takes them, from which the
            running statistics of the batch norms reached so far are estimated after each stage. It is gone through
            again for each stage. Default: None: they stay reset.
        reference_func (Callable, optional): like ``attribute_func``, and often the same; called on the trained model
            with other random numbers. Default: None.

    Returns:
        ParameterRandomizationResult: similarities for each example and stage. Where ``attribute_func`` fails on a
        randomised model, with whatever exception but lack of memory, or returns NaN, they are NaN, with one warning
        and the reason in ``failures``.

    Raises:
        InvalidTypeError: an argument, or what a function returned, is of the wrong type.
        InvalidArgumentError: an argument out of range, an unknown stage, maps of a wrong shape, or no value for any
            example.
        NonFiniteError: the model's output is NaN or infinite, before or after a stage, or a map on the trained model.

    Reference:
        Adebayo et al. 2018, Sanity Checks for Saliency Maps; Schulz et al. 2020, sections 4.3 and G.3.

    Examples::

        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)).eval()
        >>> def edges(model, inputs, target):
        ...     return inputs.diff(dim=3, append=inputs[..., -1:]).abs()
        >>> result = parameter_randomization(model, edges, torch.rand(2, 1, 8, 8), target=0)
        >>> result.stages
        ('original', '3', '0')
        >>> result.curve.tolist()  # a filter of the image does not look at the model
        [1.0, 1.0, 1.0]
    """
    _assert_arguments(model, method, seed, recalibration_data)
    cascade = Cascade(model, inputs, target, resolve_similarity(similarity, sign_invariant), seed)
    randomizer = Randomizer(method, seed, cascade.devices)
    with preserved(model, cascade.devices), evaluation_mode([model], Warner()):
        plan = cascade.plan(stages)
        cascade.start(attribute_func, reference_func)
        with tqdm(total=len(plan), desc="Parameter randomization", disable=not show_progress) as bar:
            for index, stage in enumerate(plan, start=1):
                randomizer.randomize(stage, index)
                if recalibration_data is not None:
                    randomizer.recalibrate(forward_calls(model, recalibration_data, None, device_of([model])))
                cascade.stage(stage.name, attribute_func)
                bar.update()
    return _result(cascade, plan)


def _result(cascade: Cascade, plan: Sequence[Stage]) -> ParameterRandomizationResult:
    similarities = torch.stack(cascade.columns, dim=1)
    return _reported(
        ParameterRandomizationResult(
            similarities[:, 1:].nanmean(dim=1),
            similarities,
            (ORIGINAL, *(stage.name for stage in plan)),
            cascade.reference,
            cascade.failures,
        )
    )


def _reported(result: ParameterRandomizationResult) -> ParameterRandomizationResult:
    """The result; warns of missing values, refuses where no example has any."""
    if not result.failures:
        return result
    stage, reason = next(iter(result.failures.items()))
    first = f"the first at stage {stage!r}: {reason}"
    if result.n_valid == 0:
        raise UndefinedResultError(
            f"parameter_randomization is undefined for all {len(result.per_sample)} examples at all stages, {first}.",
            result,
        )
    missing = result.similarities.isnan()
    Warner().once(
        "undefined",
        f"parameter_randomization has no value for {int(missing.sum())} of {missing.numel()} pairs of example and "
        f"stage, {first}. They are left out of the means; the result's failures tell more.",
    )
    return result


def _assert_arguments(model: nn.Module, method: str, seed: int, recalibration_data: Iterable[Any] | None) -> None:
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise InvalidTypeError(f"model is a {type(model).__name__}; wanted a torch.nn.Module that is not TorchScript.")
    if method not in _METHODS:
        raise InvalidArgumentError(f"method={method!r}; wanted 'reset' or 'permute'.")
    if not isinstance(seed, int) or seed < 0:
        raise InvalidArgumentError(f"seed={seed!r}; wanted an integer of at least 0.")
    if isinstance(recalibration_data, Iterator):
        raise InvalidTypeError(
            f"recalibration_data is a {type(recalibration_data).__name__}, which can be gone through only once, and "
            "each stage needs it. Pass a list of batches or a DataLoader."
        )


class ParameterRandomization(Accumulator[ParameterRandomizationResult]):
    """Parameter randomisation over batches, like Captum's ``AttackComparator``: evaluate, summary, reset.

    Every batch sees the same random weights, so that any split of the data gives the same values.

    Args:
        model (Module): as for :func:`parameter_randomization`.
        attribute_func (Callable): likewise.
        options: its keyword arguments from ``stages`` on.

    Raises:
        InvalidTypeError: an option that the function does not have, or that belongs to :meth:`evaluate`.

    Examples::

        >>> model = nn.Linear(3, 2).eval()
        >>> def gradient(model, inputs, target):
        ...     return model.weight[target].expand(len(inputs), -1)
        >>> metric = ParameterRandomization(model, gradient, similarity="spearman")
        >>> for batch in torch.rand(5, 3).split(2):
        ...     _ = metric.evaluate(batch, target=1)
        >>> metric.summary().similarities.shape
        torch.Size([5, 2])
    """

    name = "parameter randomization"
    higher_is_better = False

    def __init__(self, model: nn.Module, attribute_func: AttributeFunc, **options: Any) -> None:
        fixed = {"model": model, "attribute_func": attribute_func}
        super().__init__(bound_options(parameter_randomization, type(self).evaluate, fixed, options))
        self.model, self.attribute_func, self.options = model, attribute_func, options

    def evaluate(self, inputs: Inputs, target: Any = None) -> ParameterRandomizationResult:
        """:func:`parameter_randomization` of a batch, which :meth:`summary` will include."""
        return self._add_defined(
            lambda: parameter_randomization(self.model, self.attribute_func, inputs, target, **self.options)
        )

    def summary(self) -> ParameterRandomizationResult:
        """All examples since the start or the last :meth:`reset`, in order; of failures, each stage's first.

        The reference is None where one of the batches has none.

        Raises:
            InvalidArgumentError: nothing was evaluated, the batches' models have different stages, or no example has a
                value.
        """
        results = self._all()
        stages = results[0].stages
        other = next((result.stages for result in results if result.stages != stages), None)
        if other is not None:
            raise InvalidArgumentError(
                f"Results with stages {other} cannot be summarised with stages {stages}. Merge objects of one model."
            )
        references = [result.reference for result in results if result.reference is not None]
        failures = {stage: reason for result in reversed(results) for stage, reason in result.failures.items()}
        summary = ParameterRandomizationResult(
            torch.cat([result.per_sample for result in results]),
            torch.cat([result.similarities for result in results]),
            stages,
            torch.cat(references) if len(references) == len(results) else None,
            failures,
        )
        return _reported(summary)
