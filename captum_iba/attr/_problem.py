"""One call of LayerIBA.attribute: its arguments, checked, and the way from inputs to the optimised mask."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_iba._captum import (
    ExpansionTypes,
    TargetType,
    _expand_additional_forward_args,
    _format_additional_forward_args,
    _format_tensor_into_tuples,
    _run_forward,
)
from captum_iba.attr._channels import resolve_channel_dim
from captum_iba.attr._objective import Objective, ObjectiveType, output_tensor
from captum_iba.bottleneck.information import Reference, assert_finite_features, example_reference, normalize
from captum_iba.bottleneck.optimization import Noise, Optimized, Settings, optimize, sample_loss, work_dtype
from captum_iba.bottleneck.replay import Site
from captum_iba.bottleneck.smoothing import GaussianBlur
from captum_iba.bottleneck.statistics import FeatureStatistics
from captum_iba.bottleneck.tail import Tail
from captum_iba.errors import (
    CaptumIBAError,
    GradientModeError,
    InvalidArgumentError,
    InvalidTypeError,
    MismatchedArgumentsError,
    NonFiniteError,
)

# More than one normalised feature in a hundred beyond ten deviations: not the data the statistics came from.
_FAR, _FAR_SHARE = 10.0, 0.01


@dataclass(frozen=True)
class Arguments:
    """The numbers of :meth:`LayerIBA.attribute`, under the same names.

    Raises:
        InvalidArgumentError: one is out of range.
    """

    beta: float
    n_steps: int
    n_samples: int
    learning_rate: float
    sigma: float | None
    initial_alpha: float
    channel_dim: int | None
    internal_batch_size: int | None
    objective: ObjectiveType
    class_dim: int
    seed: int

    def __post_init__(self) -> None:
        _assert_number("beta", self.beta, lambda value: value >= 0, "of at least 0")
        _assert_number("learning_rate", self.learning_rate, lambda value: value > 0, "above 0")
        _assert_number("initial_alpha", self.initial_alpha, lambda _: True, "of any size")
        if self.sigma is not None:
            _assert_number("sigma", self.sigma, lambda value: value >= 0, "of at least 0, or None")
        for name in ("n_steps", "n_samples", "internal_batch_size"):
            value = getattr(self, name)
            if name == "internal_batch_size" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidArgumentError(f"{name}={value!r}; wanted an integer of at least 1.")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or not 0 <= self.seed < 2**63:
            raise InvalidArgumentError(f"seed={self.seed!r}; wanted an integer from 0 to 2**63 - 1.")

    def settings(self, n_examples: int) -> Settings:
        """The optimisation's parameters for a batch of this size."""
        copies = self.n_samples
        if self.internal_batch_size is not None:
            if self.internal_batch_size < n_examples:
                warnings.warn(
                    f"internal_batch_size={self.internal_batch_size} is below the {n_examples} examples of the batch; "
                    f"{n_examples} rows run at once. Pass fewer examples to use less memory.",
                    stacklevel=5,
                )
            most = min(copies, max(1, self.internal_batch_size // n_examples))
            # parts of one size: a module before the layer may keep tensors of the size it ran at last
            copies = next(part for part in range(most, 0, -1) if copies % part == 0)
        return Settings(
            beta=float(self.beta),
            n_steps=self.n_steps,
            n_samples=self.n_samples,
            learning_rate=float(self.learning_rate),
            initial_alpha=float(self.initial_alpha),
            seed=self.seed,
            copies_per_run=copies,
        )


class Problem:
    """From a user's call to the optimised mask.

    Args:
        arguments (Arguments): the numbers.
        forward_func (Callable): the forward function.
        site (Site): layer and side.
        roots (list[nn.Module]): modules around the layer.
        statistics (FeatureStatistics, optional): of the site.
        inputs, target, additional_forward_args: as in Captum.
    """

    def __init__(
        self,
        arguments: Arguments,
        forward_func: Callable[..., Any],
        site: Site,
        roots: list[nn.Module],
        statistics: FeatureStatistics | None,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType,
        additional_forward_args: object | None,
    ) -> None:
        self._arguments, self._forward_func, self._site, self._roots = arguments, forward_func, site, roots
        self._statistics = statistics
        self._inputs: tuple[Tensor, ...] = _format_tensor_into_tuples(inputs)
        self._additional = _format_additional_forward_args(additional_forward_args)
        self._objective = Objective(arguments.objective, target, arguments.class_dim)
        _assert_inputs(self._inputs)
        self._n_examples = self._inputs[0].shape[0]
        self._settings = arguments.settings(self._n_examples)
        device = self._inputs[0].device.type
        self._users_autocast = torch.autocast(
            device, dtype=torch.get_autocast_dtype(device), enabled=torch.is_autocast_enabled(device)
        )

    @property
    def modules(self) -> list[nn.Module]:
        """Modules whose mode matters: the model; for a function that hides it, the layer."""
        return self._roots or [self._site.layer]

    @property
    def n_steps(self) -> int:
        """Steps of the optimisation."""
        return self._settings.n_steps

    @property
    def forward_mode(self) -> str | None:
        """How the model was run."""
        return self._tail.mode

    @property
    def inactive_share(self) -> float:
        """Share of the features that never vary."""
        return 1.0 - float(self._reference.active.expand_as(self._features).float().mean())

    def prepare(self, warned: set[str]) -> None:
        """Run the model once and check all that can be wrong before the first step.

        Args:
            warned (set[str]): warnings already given.
        """
        try:
            self._tail = Tail(self._site, self._call, self._roots, output_tensor)
        except (TypeError, RuntimeError, ValueError, IndexError) as error:
            if isinstance(error, CaptumIBAError):
                raise
            self._explain(error)
            raise
        self._features = self._tail.features
        if self._features.shape[0] != self._n_examples:
            raise MismatchedArgumentsError(
                f"{self._site.name} gives features of shape {list(self._features.shape)} for {self._n_examples} "
                "examples; the first axis must be the batch. Choose a layer that keeps it, such as one with "
                "batch_first=True."
            )
        self._objective.check(self._tail.output, self._n_examples)
        self.channel_dim = resolve_channel_dim(
            self._features,
            self._arguments.channel_dim,
            self._statistics.channel_dim if self._statistics is not None else None,
            self._site.layer,
            self._tail.modules_before,
            self._site.name,
        )
        self._reference = self._make_reference(warned)
        self._axes = [axis for axis in range(1, self._features.ndim) if axis != self.channel_dim]

    def solve(self, after_step: Callable[[], object]) -> Optimized:
        """Optimise the mask."""
        wide = torch.empty(0, dtype=work_dtype(self._features), device=self._features.device)
        self._noise = Noise(tuple(self._features.shape[1:]), wide, self._settings.seed, self._is_token_layer)
        return optimize(
            self._features, self._reference, self._loss, self._settings, self._noise, self._blur(), after_step
        )

    def target_probability(self, solved: Optimized) -> Tensor | None:
        """Mean probability of the target over fresh noisy copies through the final mask."""
        loss = sample_loss(self._features, self._reference, solved.mask, self._loss, self._noise, self._settings)
        probability = self._objective.probability(loss)
        return None if probability is None else probability.mean(dim=0)

    def full_precision(self) -> torch.autocast:
        """Context for everything but the model itself: under autocast, information would be computed in bfloat16."""
        return torch.autocast(self._inputs[0].device.type, enabled=False)

    def _call(self, copies: int) -> Any:
        inputs, additional = self._inputs, self._additional
        if copies > 1:
            inputs = tuple(torch.cat([tensor] * copies) for tensor in inputs)
            additional = _expand_additional_forward_args(additional, copies, expansion_type=ExpansionTypes.repeat)
        with self._users_autocast:
            return _run_forward(self._forward_func, inputs, None, additional)

    def _loss(self, z: Tensor, copies: int) -> Tensor:
        return self._objective(self._tail(z, copies), copies)

    def _explain(self, error: Exception) -> None:
        """Raise an error of ours if the arguments explain the model's; return if they do not."""
        function = self._forward_func.forward if isinstance(self._forward_func, nn.Module) else self._forward_func
        arguments = (*self._inputs, *(self._additional or ()))
        if isinstance(error, TypeError):
            try:
                inspect.signature(function).bind(*arguments)
            except TypeError as mismatch:
                raise InvalidTypeError(
                    f"additional_forward_args does not fit the model: with {len(self._inputs)} inputs and "
                    f"{len(self._additional or ())} additional_forward_args, {mismatch}. Pass the model's further "
                    "arguments in order."
                ) from error
            except ValueError:  # a built-in without a signature
                return
        for index, argument in enumerate(self._additional or ()):
            if isinstance(argument, Tensor) and argument.ndim > 0 and argument.shape[0] != self._n_examples:
                raise MismatchedArgumentsError(
                    f"additional_forward_args[{index}] has shape {list(argument.shape)} but inputs hold "
                    f"{self._n_examples} examples, and the model fails with: {error}. Give it one row per example."
                ) from error

    def _make_reference(self, warned: set[str]) -> Reference:
        wide = self._features.to(work_dtype(self._features))
        assert_finite_features(wide)
        if self._statistics is not None:
            reference = self._statistics.reference(wide, self._site.name)
            self._warn_if_far(normalize(wide, reference), warned)
            return reference
        if "statistics" not in warned:
            warned.add("statistics")
            warnings.warn(
                f"There are no feature statistics of {self._site.name} yet; each example's own statistics per channel "
                "stand in. The bits are then no upper bound on information. Call estimate(data) first.",
                stacklevel=4,
            )
        return example_reference(wide, self.channel_dim)

    def _warn_if_far(self, normalized: Tensor, warned: set[str]) -> None:
        share = float((normalized.abs() > _FAR).float().mean())
        if share > _FAR_SHARE and "far" not in warned:
            warned.add("far")
            warnings.warn(
                f"{100 * share:.0f} % of the features lie more than {_FAR:.0f} standard deviations from the "
                "statistics' mean, so the bits will be very high. Check that data and input scaling are those of "
                "estimate.",
                stacklevel=4,
            )

    @property
    def _is_token_layer(self) -> bool:
        return self._features.ndim == 3 and self.channel_dim == 2

    def _blur(self) -> Callable[[Tensor], Tensor] | None:
        is_grid = len(self._axes) in (1, 2, 3) and not self._is_token_layer
        sigma = self._arguments.sigma if self._arguments.sigma is not None else (1.0 if is_grid else 0.0)
        if sigma == 0:
            return None
        if len(self._axes) not in (1, 2, 3):
            raise InvalidArgumentError(
                f"sigma={sigma} smooths over one to three axes of positions, but {self._site.name} has "
                f"{len(self._axes)} in {list(self._features.shape)}. Pass sigma=None or 0."
            )
        blur = GaussianBlur(sigma, tuple(self._features.shape[axis] for axis in self._axes))
        if self.channel_dim == 1:
            return blur
        return lambda x: blur(x.movedim(self.channel_dim, 1)).movedim(1, self.channel_dim)


def _assert_number(name: str, value: Any, in_range: Callable[[float], bool], wanted: str) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not in_range(value):
        raise InvalidArgumentError(f"{name}={value!r}; wanted a finite number {wanted}.")


def _assert_inputs(inputs: tuple[Tensor, ...]) -> None:
    if torch.is_inference_mode_enabled():
        raise GradientModeError(
            "LayerIBA needs gradients, and torch.inference_mode rules them out. Call it outside of it; torch.no_grad "
            "is no hindrance."
        )
    if not inputs:
        raise InvalidArgumentError(f"inputs is empty ({inputs!r}); wanted a tensor, or a tuple of at least one.")
    for index, tensor in enumerate(inputs):
        if not isinstance(tensor, Tensor):
            raise InvalidTypeError(f"inputs[{index}] is a {type(tensor).__name__}; wanted a tensor.")
        if tensor.ndim == 0 or tensor.shape[0] == 0:
            raise InvalidArgumentError(
                f"inputs[{index}] has shape {list(tensor.shape)}: an empty batch. Wanted at least one example."
            )
        if tensor.shape[0] != inputs[0].shape[0]:
            raise InvalidArgumentError(
                f"inputs[{index}] holds {tensor.shape[0]} examples and inputs[0] {inputs[0].shape[0]}; wanted as many."
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise NonFiniteError(f"inputs[{index}] contains NaN or infinity. Clean the data, e.g. torch.nan_to_num.")
