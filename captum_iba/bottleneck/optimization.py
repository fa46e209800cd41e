"""The per-sample bottleneck: how much noise each element of the features bears while the decision stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

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
from captum_iba.bottleneck.noise import AnyNoise
from captum_iba.bottleneck.shared import SharedNoise
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
        mask (Mask): the final mask; broadcasts against the features.
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


def optimize(
    features: Tensor,
    reference: Reference,
    loss: Loss,
    settings: Settings,
    noise: AnyNoise,
    blur: Callable[[Tensor], Tensor] | None = None,
    after_step: Callable[[], object] = lambda: None,
    shared_axis: int | None = None,
    shared: SharedNoise | None = None,
) -> Optimized:
    r"""Minimise loss + beta * mean information over each example's mask (eq. 6).

    The examples share nothing but the noise: each has its own mask and Adam state, and the losses are summed.

    Args:
        features (Tensor): R, (N, ...), without gradient.
        reference (Reference): distribution of the noise.
        loss (Callable): ``loss(z, copies)`` with z of ``copies * N`` rows, copy by copy, in the features' dtype; a
            context that gives one value a row and within which gradients can be taken.
        settings (Settings): the parameters.
        noise (Noise, BlockNoise or PlacedNoise): source of the noise.
        blur (Callable, optional): smoothing of the mask. Default: None.
        after_step (Callable, optional): called after each step. Default: does nothing.
        shared_axis (int, optional): axis along which all elements have one lambda in common, such as a token's.
            Default: None: each has its own.
        shared (SharedNoise, optional): further layers that bear noise through the same mask. Default: None.

    Returns:
        Optimized: bits per element and the course of the optimisation.

    Raises:
        GradientModeError: the loss does not depend on z.
        NonFiniteError: NaN or infinity in the features or the loss.
    """
    wide = features.to(work_dtype(features))
    normalized = normalize(wide, reference)
    like = wide if shared_axis is None else wide.narrow(shared_axis, 0, 1)
    alpha = torch.full_like(like, settings.initial_alpha).contiguous().requires_grad_()
    k = reference.n_covered(wide)
    adam = torch.optim.Adam([alpha], lr=settings.learning_rate)
    objectives, informations = [], []
    for _ in range(settings.n_steps):
        with torch.enable_grad():
            mask = make_mask(alpha, blur)
            nats = information(mask, normalized, reference).flatten(1)
            mean_nats = nats.sum(dim=1) / k
            parts = _parts(mask, wide, reference, shared)
        value, slopes = _loss_and_slopes(parts, features.dtype, loss, settings, noise, shared)
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
    features: Tensor,
    reference: Reference,
    mask: Mask,
    loss: Loss,
    noise: AnyNoise,
    settings: Settings,
    shared: SharedNoise | None = None,
) -> Tensor:
    """Loss of ``n_samples`` noisy copies through a mask, without gradient.

    Returns:
        Tensor: (n_samples, N).
    """
    wide = features.to(work_dtype(features))
    rows = []
    with torch.no_grad():
        parts = _parts(mask, wide, reference, shared)
        for copies, run in _runs(parts, features.dtype, loss, settings, noise, shared):
            with run as values:
                rows.append(values.view(copies, -1))
    return torch.cat(rows)


def _parts(mask: Mask, wide: Tensor, reference: Reference, shared: SharedNoise | None) -> tuple[Tensor, ...]:
    """Mean and deviation of Z, and lambda and omega where further layers need them."""
    parts = signal_and_noise_scale(mask, wide, reference)
    return parts if shared is None else (*parts, mask.lam, mask.omega)


def _runs(
    parts: Sequence[Tensor],
    dtype: torch.dtype,
    loss: Loss,
    settings: Settings,
    noise: AnyNoise,
    shared: SharedNoise | None,
) -> Iterator[tuple[int, AbstractContextManager[Tensor]]]:
    """Chunks of noisy copies: how many, and a context that gives one value a row, copy by copy."""
    eps = noise.draw(settings.n_samples)
    further = [] if shared is None else shared.draw(settings.n_samples)
    for start in range(0, settings.n_samples, settings.copies_per_run):
        chunk = slice(start, start + settings.copies_per_run)
        with_others = nullcontext if shared is None else partial(shared.through, parts[2:], [e[chunk] for e in further])
        yield len(eps[chunk]), _run(parts, eps[chunk], dtype, loss, with_others)


@contextmanager
def _run(
    parts: Sequence[Tensor],
    eps: Tensor,
    dtype: torch.dtype,
    loss: Loss,
    with_others: Callable[[], AbstractContextManager[None]],
) -> Iterator[Tensor]:
    mean, deviation = parts[:2]
    if eps.ndim == mean.ndim:  # one draw for all examples
        eps = eps.unsqueeze(1)
    z = torch.addcmul(mean, deviation, eps).to(dtype).flatten(0, 1)
    with with_others(), loss(z, len(eps)) as rows:
        yield rows


def _loss_and_slopes(
    parts: Sequence[Tensor],
    dtype: torch.dtype,
    loss: Loss,
    settings: Settings,
    noise: AnyNoise,
    shared: SharedNoise | None,
) -> tuple[Tensor, list[Tensor]]:
    """Each example's mean loss over the copies, and its gradient for each of the parts, chunk by chunk."""
    leaves = tuple(part.detach().requires_grad_() for part in parts)
    value = torch.zeros(len(leaves[0]), dtype=leaves[0].dtype, device=leaves[0].device)
    slopes = [torch.zeros_like(leaf) for leaf in leaves]
    for copies, run in _runs(leaves, dtype, loss, settings, noise, shared):
        with torch.enable_grad(), run as rows:
            _assert_finite(rows, "The objective")
            grads = _gradients(rows, leaves, 1.0 / settings.n_samples)
        value += rows.detach().view(copies, -1).sum(dim=0).to(value) / settings.n_samples
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
