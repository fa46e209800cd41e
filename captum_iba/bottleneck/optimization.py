"""The per-sample bottleneck: how much noise each element of the features bears while the decision stands."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_iba.bottleneck.information import (
    BITS_PER_NAT,
    Mask,
    Reference,
    information,
    make_mask,
    normalize,
    signal_and_noise_scale,
)
from captum_iba.errors import GradientModeError, NonFiniteError

Loss = Callable[[Tensor, int], AbstractContextManager[Tensor]]


@dataclass(frozen=True)
class Settings:
    """Parameters of the optimisation (Schulz et al. 2020, Table 3).

    Attributes:
        beta (float): factor of the mean information in nats; the paper writes beta / k times the sum over k elements.
        n_steps (int): steps of Adam.
        n_samples (int): noisy copies of each example at each step.
        learning_rate (float): of Adam.
        initial_alpha (float): start of the free parameters; sigmoid(5) lets 99.3 % of the signal pass.
        copies_per_run (int): most copies that go through the model at once.
    """

    beta: float = 10.0
    n_steps: int = 10
    n_samples: int = 10
    learning_rate: float = 1.0
    initial_alpha: float = 5.0
    copies_per_run: int = 10


@dataclass(frozen=True)
class Optimized:
    """Outcome of :func:`optimize`.

    Attributes:
        bits (Tensor): information of each element through the final mask, of the features' shape.
        mask (Mask): the final mask.
        objective (Tensor): (n_steps, N), mean loss over the noisy copies before each step.
        information (Tensor): (n_steps, N), total bits before each step.
    """

    bits: Tensor
    mask: Mask
    objective: Tensor
    information: Tensor


def work_dtype(features: Tensor) -> torch.dtype:
    """Float32 for half precision, where the information of nearly open elements overflows; else the features' own."""
    return torch.promote_types(features.dtype, torch.float32)


class Noise:
    """Standard normal noise, one draw for all examples of a batch, from a generator of its own on the CPU.

    An example's result thus depends neither on the batch around it nor on device and precision, and the global random
    state is left alone.

    Args:
        shape (tuple[int, ...]): shape of one example's features.
        like (Tensor): gives dtype and device.
        seed (int): of the generator.
        by_position (bool, optional): draw position after position, so that a longer sequence gets the same noise at
            the positions it shares with a shorter one. Default: False.
    """

    def __init__(self, shape: tuple[int, ...], like: Tensor, seed: int, by_position: bool = False) -> None:
        self._shape, self._like, self._by_position = shape, like, by_position
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def draw(self, n_samples: int) -> Tensor:
        """Return one draw for each of n_samples copies: (n_samples, ...)."""
        if not self._by_position:
            return torch.randn(
                (n_samples, *self._shape), generator=self._generator, dtype=torch.float32, device="cpu"
            ).to(self._like)
        width = n_samples * math.prod(self._shape[1:])
        # torch fills in blocks of 16; a row that ends inside a block would change with the number of rows
        rows = torch.randn(
            (self._shape[0], -(-width // 16) * 16), generator=self._generator, dtype=torch.float32, device="cpu"
        )
        drawn = rows[:, :width].reshape(self._shape[0], n_samples, *self._shape[1:]).movedim(1, 0)
        return drawn.contiguous().to(self._like)


class BlockNoise:
    """Noise of several seeds at once, one for each of equal blocks of a batch's rows.

    Args:
        noises (Sequence[Noise]): the sources, one a block.
        n_examples (int): rows of each block.
    """

    def __init__(self, noises: Sequence[Noise], n_examples: int) -> None:
        self._noises, self._n_examples = noises, n_examples

    def draw(self, n_samples: int) -> Tensor:
        """Return one draw for each of n_samples copies of each block's rows: (n_samples, rows, ...)."""
        draws = torch.stack([noise.draw(n_samples) for noise in self._noises], dim=1)
        return draws.repeat_interleave(self._n_examples, dim=1)


def optimize(
    features: Tensor,
    reference: Reference,
    loss: Loss,
    settings: Settings,
    noise: Noise | BlockNoise,
    blur: Callable[[Tensor], Tensor] | None = None,
    after_step: Callable[[], object] = lambda: None,
) -> Optimized:
    r"""Minimise loss + beta * mean information over each example's mask (eq. 6).

    The examples share nothing but the noise: each has its own mask and Adam state, and the losses are summed.

    Args:
        features (Tensor): R, (N, ...), without gradient.
        reference (Reference): distribution of the noise.
        loss (Callable): ``loss(z, copies)`` with z of ``copies * N`` rows, copy by copy, in the features' dtype; a
            context that gives one value a row and within which gradients can be taken.
        settings (Settings): the parameters.
        noise (Noise): source of the noise.
        blur (Callable, optional): smoothing of the mask. Default: None.
        after_step (Callable, optional): called after each step. Default: does nothing.

    Returns:
        Optimized: bits per element and the course of the optimisation.

    Raises:
        GradientModeError: the loss does not depend on z.
        NonFiniteError: NaN or infinity in the features or the loss.
    """
    wide = features.to(work_dtype(features))
    normalized = normalize(wide, reference)
    alpha = torch.full_like(wide, settings.initial_alpha).requires_grad_()
    adam = torch.optim.Adam([alpha], lr=settings.learning_rate)
    objectives, informations = [], []
    for _ in range(settings.n_steps):
        with torch.enable_grad():
            mask = make_mask(alpha, blur)
            nats = information(mask, normalized, reference).flatten(1)
            mean_nats = nats.mean(dim=1)
            parts = signal_and_noise_scale(mask, wide, reference)
        value, slopes = _loss_and_slopes(parts, features.dtype, loss, settings, noise.draw(settings.n_samples))
        # one pass back through blur and sigmoid, however many copies there were
        (alpha.grad,) = torch.autograd.grad(
            [*parts, mean_nats], alpha, [*slopes, torch.full_like(value, settings.beta).to(wide.dtype)]
        )
        adam.step()
        objectives.append(value)
        informations.append(nats.detach().sum(dim=1) * BITS_PER_NAT)
        after_step()
    with torch.no_grad():
        mask = make_mask(alpha, blur)
        bits = information(mask, normalized, reference) * BITS_PER_NAT
    _assert_finite(bits, "The bits")
    return Optimized(bits, mask, torch.stack(objectives), torch.stack(informations))


def sample_loss(
    features: Tensor, reference: Reference, mask: Mask, loss: Loss, noise: Noise | BlockNoise, settings: Settings
) -> Tensor:
    """Loss of ``n_samples`` noisy copies through a mask, without gradient.

    Returns:
        Tensor: (n_samples, N).
    """
    wide = features.to(work_dtype(features))
    rows = []
    with torch.no_grad():
        parts = signal_and_noise_scale(mask, wide, reference)
        for chunk in torch.split(noise.draw(settings.n_samples), settings.copies_per_run):
            with loss(_noisy(parts, chunk, features.dtype), len(chunk)) as values:
                rows.append(values.view(len(chunk), len(features)))
    return torch.cat(rows)


def _noisy(parts: tuple[Tensor, Tensor], eps: Tensor, dtype: torch.dtype) -> Tensor:
    """Z for each copy of each example, copy by copy."""
    mean, deviation = parts
    if eps.ndim == mean.ndim:  # one draw for all examples
        eps = eps.unsqueeze(1)
    return torch.addcmul(mean, deviation, eps).to(dtype).flatten(0, 1)


def _loss_and_slopes(
    parts: tuple[Tensor, Tensor], dtype: torch.dtype, loss: Loss, settings: Settings, eps: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Each example's mean loss over the copies, and its gradient for mean and deviation of Z, chunk by chunk."""
    mean, deviation = (part.detach().requires_grad_() for part in parts)
    value = torch.zeros(len(mean), dtype=mean.dtype, device=mean.device)
    slopes = [torch.zeros_like(mean), torch.zeros_like(deviation)]
    for chunk in torch.split(eps, settings.copies_per_run):
        with torch.enable_grad(), loss(_noisy((mean, deviation), chunk, dtype), len(chunk)) as rows:
            _assert_finite(rows, "The objective")
            grads = _gradients(rows, (mean, deviation), 1.0 / settings.n_samples)
        value += rows.detach().view(len(chunk), len(mean)).sum(dim=0).to(value) / settings.n_samples
        for slope, grad in zip(slopes, grads, strict=True):
            slope += grad
    return value, slopes


def _gradients(rows: Tensor, leaves: tuple[Tensor, ...], weight: float) -> list[Tensor]:
    grads: tuple[Tensor | None, ...] = (None,)
    if rows.requires_grad:
        grads = torch.autograd.grad(rows, leaves, torch.full_like(rows, weight), allow_unused=True)
    found = [grad for grad in grads if grad is not None]
    if len(found) < len(leaves):
        raise GradientModeError(
            "The objective does not depend on the layer by gradient. Choose a layer that the output depends on, and "
            "remove torch.no_grad or detach between the layer and the output."
        )
    return found


def _assert_finite(values: Tensor, what: str) -> None:
    if not torch.isfinite(values).all():
        raise NonFiniteError(
            f"{what} became NaN or infinite. Look at the model's output for noisy features; a smaller learning_rate, "
            "more calibration data or a layer in float32 usually helps."
        )
