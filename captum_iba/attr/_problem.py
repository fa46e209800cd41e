"""One call of LayerIBA.attribute: its arguments, checked, and the way from inputs to the optimised mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from captum_iba._captum import TargetType
from captum_iba._numbers import (
    assert_beta,
    assert_initial_alpha,
    assert_integer,
    assert_learning_rate,
    assert_sigma,
    is_integer,
)
from captum_iba._warn import Warner
from captum_iba.attr._channels import resolve_channel_dim
from captum_iba.attr._forward import Forward
from captum_iba.attr._layout import count_far, is_token_layer, make_blur, warn_if_far
from captum_iba.attr._objective import Objective, ObjectiveType, output_tensor
from captum_iba.attr._positions import ProtectedPositions, find_positions
from captum_iba.attr._shared_layers import assert_same_positions, read_behind
from captum_iba.attr.diagnostics import IBADiagnostics
from captum_iba.bottleneck.information import Mask, Reference, assert_finite_features, example_reference, normalize
from captum_iba.bottleneck.noise import AnyNoise, BlockNoise, Noise, PlacedNoise, derived_seed
from captum_iba.bottleneck.optimization import Optimized, Settings, optimize, sample_loss, work_dtype
from captum_iba.bottleneck.replay import Recording, Site
from captum_iba.bottleneck.shared import SharedLayer, SharedNoise
from captum_iba.bottleneck.statistics import FeatureStatistics
from captum_iba.bottleneck.tail import Tail
from captum_iba.errors import InvalidArgumentError, MismatchedArgumentsError

Granularity: TypeAlias = Literal["element", "token"]

# Rows at once on the CPU: more fall out of its caches.
_CPU_ROWS = 40
# Weight of the information where the user names none, see LayerIBA.attribute.
_BETA: Mapping[Granularity, float] = {"element": 10.0, "token": 1.0}


@dataclass(frozen=True)
class Arguments:
    """The numbers of :meth:`LayerIBA.attribute`, under the same names and with the same defaults.

    Raises:
        InvalidArgumentError: one is out of range.
    """

    beta: float | None = None
    n_steps: int = 10
    n_samples: int = 10
    learning_rate: float = 1.0
    sigma: float | None = None
    initial_alpha: float = 5.0
    channel_dim: int | None = None
    internal_batch_size: int | None = None
    objective: ObjectiveType = None
    class_dim: int = 1
    seed: int | Sequence[int] = 0
    relu: bool = False
    position_mask: Tensor | None = None
    protected_positions: ProtectedPositions = None
    mask_granularity: Granularity = "element"

    def __post_init__(self) -> None:
        if self.mask_granularity not in _BETA:
            raise InvalidArgumentError(f"mask_granularity={self.mask_granularity!r}; wanted 'element' or 'token'.")
        if self.beta is not None:
            assert_beta(self.beta)
        assert_learning_rate(self.learning_rate)
        assert_initial_alpha(self.initial_alpha)
        assert_sigma(self.sigma)
        for name in ("n_steps", "n_samples"):
            assert_integer(name, getattr(self, name))
        if self.internal_batch_size is not None:
            assert_integer("internal_batch_size", self.internal_batch_size)
        if not self.seeds or not all(is_integer(seed, least=0) and seed < 2**63 for seed in self.seeds):
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
            beta=_BETA[self.mask_granularity] if self.beta is None else float(self.beta),
            n_steps=int(self.n_steps),
            n_samples=int(self.n_samples),
            learning_rate=float(self.learning_rate),
            initial_alpha=float(self.initial_alpha),
            copies_per_run=copies,
        )


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
        shared (Mapping[Site, FeatureStatistics], optional): further layers that share the mask, and their statistics.
            Default: none.
        record (Callable, optional): gives recordings of the forward pass, see :class:`Tail`. Default: None.
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
        shared: Mapping[Site, FeatureStatistics] | None = None,
        record: Callable[[int], Recording] | None = None,
    ) -> None:
        self._arguments, self._forward, self._site, self._modules = arguments, forward, site, modules
        self._statistics, self._warner, self._shared_sites = statistics, warner, shared or {}
        self._record = record
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
            self._tail = Tail(
                self._site, self._forward, self._modules, output_tensor, self._warner, record=self._record
            )
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
            self._site.at_input,
        )
        self._positions = find_positions(
            self._arguments.position_mask,
            self._forward.padding,
            self._arguments.protected_positions,
            self._features,
            self.channel_dim,
            self._site.name,
        )
        self._reference = self._make_reference()
        self._noise = self._make_noise(tuple(self._features.shape[1:]), self._arguments.seeds)
        self._blur, self._shared_axis = self._make_blur(), self._make_shared_axis()
        if self._shared_sites:
            self._tail.settle()  # while no further layer has noise
        self._shared = self._make_shared() if self._shared_sites else None

    def explain(
        self, after_step: Callable[[], object], sum_channels: bool = True, with_record: bool = True
    ) -> tuple[Tensor, IBADiagnostics | None]:
        """Bits of the whole batch, and what else there is to know; the model must be in evaluation mode.

        Args:
            after_step (Callable): called after each step.
            sum_channels (bool, optional): sum the bits over the channels, keeping the axis. Default: True.
            with_record (bool, optional): run fresh copies through the mask, for the diagnostics. Default: True.
        """
        self.prepare()
        solved = self.solve(after_step)
        probability = self.target_probability(self.loss_through(solved.mask)) if with_record else None
        bits = solved.bits.detach()
        bits = (bits.sum(dim=self.channel_dim, keepdim=True) if sum_channels else bits).contiguous()
        if not with_record:
            return bits, None
        return bits, IBADiagnostics(
            objective=solved.objective,
            information=solved.information,
            target_probability=probability,
            mask=self.shares(solved.mask),
            total_bits=bits.flatten(1).sum(dim=1),
            channel_dim=self.channel_dim,
            inactive_share=self.inactive_share,
            forward_mode=self.forward_mode,
        )

    def solve(self, after_step: Callable[[], object]) -> Optimized:
        """Optimise the mask."""
        return optimize(
            self._features,
            self._reference,
            self._loss,
            self._settings,
            self._noise,
            self._blur,
            after_step,
            self._shared_axis,
            self._shared,
        )

    def loss_through(self, mask: Mask) -> Tensor:
        """Loss of fresh noisy copies through a mask, (n_samples, N)."""
        return sample_loss(self._features, self._reference, mask, self._loss, self._noise, self._settings, self._shared)

    def shares(self, mask: Mask) -> Tensor:
        """Share of signal that passes each element, of the features' shape: all of it where nothing is covered."""
        lam = mask.lam.expand_as(self._features)
        return lam if self._reference.exempt is None else lam.masked_fill(self._reference.exempt, 1.0)

    def target_probability(self, loss: Tensor) -> Tensor | None:
        """Mean probability of the target over noisy copies, from their loss."""
        probability = self._objective.probability(loss)
        return None if probability is None else probability.mean(dim=0)

    @contextmanager
    def _loss(self, z: Tensor, copies: int) -> Iterator[Tensor]:
        with self._tail.run(z.relu() if self._arguments.relu else z, copies) as output:
            yield self._objective(output, copies)

    def _make_blur(self) -> Callable[[Tensor], Tensor] | None:
        shape = tuple(self._features.shape[1:])
        blur = make_blur(self._arguments.sigma, shape, self.channel_dim, self._site.name, self._warner)
        if blur is not None and self._positions.exempt is not None:
            raise InvalidArgumentError(
                f"sigma={self._arguments.sigma} smooths the mask over positions that position_mask or "
                "protected_positions leaves out. Pass sigma=0."
            )
        return blur

    def _make_shared_axis(self) -> int | None:
        if self._arguments.mask_granularity == "element":
            return None
        if self._features.ndim == 2:
            raise InvalidArgumentError(
                f"mask_granularity='token' has no meaning at {self._site.name}, whose features of shape "
                f"{list(self._features.shape)} have no positions. Choose a layer of tokens, or 'element'."
            )
        return self.channel_dim

    def _make_noise(self, shape: tuple[int, ...], seeds: Sequence[int]) -> AnyNoise:
        wide = torch.empty(0, dtype=work_dtype(self._features), device=self._features.device)
        noises = [Noise(shape, wide, int(seed), is_token_layer(shape, self.channel_dim)) for seed in seeds]
        noise = noises[0] if len(seeds) == 1 else BlockNoise(noises, self._forward.n_examples // len(seeds))
        place = self._positions.place
        return noise if place is None else PlacedNoise(noise, place)

    def _make_shared(self) -> SharedNoise:
        """Noise for further layers, whose positions are those of the bottleneck."""
        if self._shared_axis is None:
            raise InvalidArgumentError(
                "shared_layers share one lambda a token; pass mask_granularity='token' with them."
            )
        features = read_behind(self._site, list(self._shared_sites), self._tail, self._forward)
        layers = []
        for number, (site, values) in enumerate(features.items(), start=1):
            assert_same_positions(values, self._features, self.channel_dim, site.name, self._site.name)
            wide = values.to(work_dtype(self._features))
            reference = self._shared_sites[site].reference(wide, site.name)
            seeds = [derived_seed(int(seed), 1, number) for seed in self._arguments.seeds]
            layers.append(
                SharedLayer(
                    site,
                    replace(reference, exempt=self._positions.exempt),
                    self._make_noise(tuple(values.shape[1:]), seeds),
                )
            )
        return SharedNoise(layers)

    def _make_reference(self) -> Reference:
        wide = self._features.to(work_dtype(self._features))
        if self._statistics is not None:
            reference = self._statistics.reference(wide, self._site.name)
            reference = replace(reference, exempt=self._positions.exempt)
            normalized = normalize(wide, reference)
            warn_if_far(count_far(normalized), normalized.numel(), self._site, self._warner)
            return reference
        self._warner.once(
            ("statistics", self._site.layer, self._site.at_input),
            f"There are no feature statistics of the {self._site.side} of {self._site.name}; each example's own "
            "statistics per channel stand in. The bits are then no upper bound on information. Call estimate(data) "
            "first.",
        )
        own = example_reference(wide, self.channel_dim, self._positions.real)
        return replace(own, exempt=self._positions.exempt)
