"""One call of LayerIBA.attribute: its arguments, checked, and the way from inputs to the optimised mask."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from captum_iba._captum import TargetType
from captum_iba._warn import Warner
from captum_iba.attr._channels import resolve_channel_dim
from captum_iba.attr._forward import Forward
from captum_iba.attr._objective import Objective, ObjectiveType, output_tensor
from captum_iba.bottleneck.information import Reference, assert_finite_features, example_reference, normalize
from captum_iba.bottleneck.optimization import BlockNoise, Noise, Optimized, Settings, optimize, sample_loss, work_dtype
from captum_iba.bottleneck.replay import Site
from captum_iba.bottleneck.smoothing import GaussianBlur
from captum_iba.bottleneck.statistics import FeatureStatistics
from captum_iba.bottleneck.tail import Tail
from captum_iba.errors import InvalidArgumentError, MismatchedArgumentsError

# More than one normalised feature in a hundred beyond ten deviations: not the data the statistics came from.
_FAR, _FAR_SHARE = 10.0, 0.01
# Rows at once on the CPU: more fall out of its caches.
_CPU_ROWS = 40
# Beyond this, squares of gradients overflow in Adam's float32.
_LARGEST = 1e12


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
    seed: int | Sequence[int]

    def __post_init__(self) -> None:
        _assert_number(
            "beta", self.beta, lambda value: 0 <= value <= _LARGEST, f"of at least 0, at most {_LARGEST:.0e}"
        )
        _assert_number("learning_rate", self.learning_rate, lambda v: 0 < v <= _LARGEST, f"above 0, to {_LARGEST:.0e}")
        _assert_number("initial_alpha", self.initial_alpha, lambda v: abs(v) <= 1e4, "from -1e4 to 1e4")
        if self.sigma is not None:
            _assert_number("sigma", self.sigma, lambda value: value == 0 or round(2 * value) >= 1, _WANTED_SIGMA)
        for name in ("n_steps", "n_samples", "internal_batch_size"):
            value = getattr(self, name)
            if (name != "internal_batch_size" or value is not None) and not _is_integer(value, least=1):
                raise InvalidArgumentError(f"{name}={value!r}; wanted an integer of at least 1.")
        if not self.seeds or not all(_is_integer(seed, least=0) and seed < 2**63 for seed in self.seeds):
            raise InvalidArgumentError(
                f"seed={self.seed!r}; wanted an integer from 0 to 2**63 - 1, or a sequence of such."
            )
        if not isinstance(self.class_dim, Integral) or isinstance(self.class_dim, bool) or self.class_dim == 0:
            raise InvalidArgumentError(f"class_dim={self.class_dim!r}; wanted an axis of the output, not the batch's.")

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, one for each of equal blocks of the batch."""
        return tuple(self.seed) if isinstance(self.seed, Sequence) else (self.seed,)

    def settings(self, n_examples: int, device_type: str, warner: Warner) -> Settings:
        """The optimisation's parameters for a batch of this size."""
        rows = self.internal_batch_size
        if rows is None:
            rows = _CPU_ROWS if device_type == "cpu" else n_examples * self.n_samples
        elif rows < n_examples:
            warner.once(
                "internal_batch_size",
                f"internal_batch_size={rows} is below the {n_examples} examples of the batch; {n_examples} rows run at "
                "once. Pass fewer examples to use less memory.",
            )
        most = min(int(self.n_samples), max(1, int(rows) // n_examples))
        # parts of one size: a module before the layer may keep tensors of the size it ran at last
        copies = next(part for part in range(most, 0, -1) if self.n_samples % part == 0)
        return Settings(
            beta=float(self.beta),
            n_steps=int(self.n_steps),
            n_samples=int(self.n_samples),
            learning_rate=float(self.learning_rate),
            initial_alpha=float(self.initial_alpha),
            copies_per_run=copies,
        )


_WANTED_SIGMA = "of at least 0: 0 (off) or more than 0.25 (a window of at least three positions), or None"


class Problem:
    """From a user's call to the optimised mask.

    Args:
        arguments (Arguments): the numbers.
        forward (Forward): the forward pass.
        site (Site): layer and side.
        modules (list[nn.Module]): modules that the forward function runs.
        statistics (FeatureStatistics, optional): of the site.
        target: as in Captum.
        warner (Warner): remembers the warnings given.
    """

    def __init__(
        self,
        arguments: Arguments,
        forward: Forward,
        site: Site,
        modules: list[nn.Module],
        statistics: FeatureStatistics | None,
        target: TargetType,
        warner: Warner,
    ) -> None:
        self._arguments, self._forward, self._site, self._modules = arguments, forward, site, modules
        self._statistics, self._warner = statistics, warner
        self._objective = Objective(arguments.objective, target, arguments.class_dim, warner)
        self._settings = arguments.settings(forward.n_examples, forward.device_type, warner)

    @property
    def n_steps(self) -> int:
        """Steps of the optimisation."""
        return self._settings.n_steps

    @property
    def forward_mode(self) -> str:
        """How the model was run."""
        return str(self._tail.mode)

    @property
    def inactive_share(self) -> float:
        """Share of the features that never vary."""
        return 1.0 - float(self._reference.active.expand_as(self._features).float().mean())

    def prepare(self) -> None:
        """Run the model once and check all that can be wrong before the first step."""
        try:
            self._tail = Tail(self._site, self._forward, self._modules, output_tensor, self._warner)
        except (TypeError, RuntimeError, ValueError, IndexError) as error:
            self._forward.explain(error)
            raise
        self._features, n_examples = self._tail.features, self._forward.n_examples
        if n_examples % len(self._arguments.seeds):
            raise InvalidArgumentError(
                f"seed holds {len(self._arguments.seeds)} seeds for {n_examples} examples; each seed is for one of as "
                "many equal blocks of the batch."
            )
        if self._features.shape[0] != n_examples:
            raise MismatchedArgumentsError(
                f"{self._site.name} gives features of shape {list(self._features.shape)} for {n_examples} examples; "
                "the first axis must be the batch. Choose a layer that keeps it, such as one with batch_first=True."
            )
        assert_finite_features(self._features, self._site.name)
        self._objective.check(self._tail.output, n_examples)
        self.channel_dim = resolve_channel_dim(
            self._features,
            self._arguments.channel_dim,
            self._statistics.channel_dim if self._statistics is not None else None,
            self._site.layer,
            self._tail.modules_before,
            self._site.name,
        )
        self._reference = self._make_reference()
        self._axes = [axis for axis in range(1, self._features.ndim) if axis != self.channel_dim]

    def solve(self, after_step: Callable[[], object]) -> Optimized:
        """Optimise the mask."""
        wide = torch.empty(0, dtype=work_dtype(self._features), device=self._features.device)
        shape, seeds = tuple(self._features.shape[1:]), self._arguments.seeds
        noises = [Noise(shape, wide, int(seed), self._is_token_layer) for seed in seeds]
        self._noise = noises[0] if len(seeds) == 1 else BlockNoise(noises, self._forward.n_examples // len(seeds))
        return optimize(
            self._features, self._reference, self._loss, self._settings, self._noise, self._blur(), after_step
        )

    def target_probability(self, solved: Optimized) -> Tensor | None:
        """Mean probability of the target over fresh noisy copies through the final mask."""
        loss = sample_loss(self._features, self._reference, solved.mask, self._loss, self._noise, self._settings)
        probability = self._objective.probability(loss)
        return None if probability is None else probability.mean(dim=0)

    @contextmanager
    def _loss(self, z: Tensor, copies: int) -> Iterator[Tensor]:
        with self._tail.run(z, copies) as output:
            yield self._objective(output, copies)

    def _make_reference(self) -> Reference:
        wide = self._features.to(work_dtype(self._features))
        if self._statistics is not None:
            reference = self._statistics.reference(wide, self._site.name)
            self._warn_if_far(normalize(wide, reference))
            return reference
        self._warner.once(
            ("statistics", self._site.layer, self._site.at_input),
            f"There are no feature statistics of the {self._site.side} of {self._site.name}; each example's own "
            "statistics per channel stand in. The bits are then no upper bound on information. Call estimate(data) "
            "first.",
        )
        return example_reference(wide, self.channel_dim)

    def _warn_if_far(self, normalized: Tensor) -> None:
        share = float((normalized.abs() > _FAR).float().mean())
        if share > _FAR_SHARE:
            self._warner.once(
                ("far", self._site.layer, self._site.at_input),
                f"{100 * share:.0f} % of the features of {self._site.name} lie more than {_FAR:.0f} standard "
                "deviations from the statistics' mean, so the bits will be very high. Check that data and input "
                "scaling are those of estimate, and that they are of this layer and model.",
            )

    @property
    def _is_token_layer(self) -> bool:
        return self._features.ndim == 3 and self.channel_dim == 2

    def _blur(self) -> Callable[[Tensor], Tensor] | None:
        sizes = tuple(self._features.shape[axis] for axis in self._axes)
        is_grid = len(sizes) in (1, 2, 3) and not self._is_token_layer and max(sizes) > 1
        sigma = self._arguments.sigma if self._arguments.sigma is not None else (1.0 if is_grid else 0.0)
        if sigma == 0:
            return None
        if len(sizes) not in (1, 2, 3):
            raise InvalidArgumentError(
                f"sigma={sigma} smooths over one to three axes of positions, but {self._site.name} has {len(sizes)} in "
                f"{list(self._features.shape)}. Pass sigma=None or 0."
            )
        blur = GaussianBlur(float(sigma), sizes, self._warner)
        if self.channel_dim == 1:
            return blur
        return lambda x: blur(x.movedim(self.channel_dim, 1)).movedim(1, self.channel_dim)


def _is_integer(value: Any, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def _assert_number(name: str, value: Any, in_range: Callable[[float], bool], wanted: str) -> None:
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not in_range(value):
        raise InvalidArgumentError(f"{name}={value!r}; wanted a finite number {wanted}.")
