r"""The bottleneck's two formulas: the noisy features and the information they still carry.

Notation of Schulz et al. 2020: :math:`Z = \lambda R + (1 - \lambda)\epsilon` (eq. 2) with noise of the features' own
mean and standard deviation, and :math:`KL[P(Z|R) || Q(Z)]`, whose mean over the data bounds :math:`I[R; Z]` from above
(eq. 4 and 5): :math:`I[R; Z] = E_R KL[P(Z|R) || Q(Z)] - KL[P(Z) || Q(Z)]`. The paper's eq. 4 and 14 print the last term
with P and Q exchanged; its proof (eq. 13) and the conclusion stand. ``omega`` is :math:`1 - \lambda`, computed on its
own so that nothing is lost where lambda is close to 1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_iba.errors import NonFiniteError, StatisticsError

BITS_PER_NAT = 1.0 / math.log(2.0)

# Below this lambda, -log(1 - lambda) - lambda cancels; so many terms of its series are exact to rounding there.
_SERIES_BELOW = 0.02
_SERIES_TERMS = {torch.float64: 8}
_SERIES_TERMS_ELSE = 4
# Below the alpha where omega underflows by this much, its smallest blurred value is a normal number too.
_AWAY_FROM_UNDERFLOW = 20.0


@dataclass(frozen=True)
class Mask:
    """Lambda, the share of the signal that passes, and omega = 1 - lambda, each exact where it is small.

    Attributes:
        lam (Tensor): share of signal, in [0, 1].
        omega (Tensor): share of noise.
        log_omega (Tensor): logarithm of omega, finite.
    """

    lam: Tensor
    omega: Tensor
    log_omega: Tensor


@dataclass(frozen=True)
class Reference:
    """What the noise looks like: the distribution Q(Z) that information is measured against.

    All tensors broadcast against the features (N, ...).

    Attributes:
        mean (Tensor): mean of each feature.
        scale (Tensor): standard deviation, floored; positive.
        active (Tensor): bool; False where a feature never varies. Such features transmit nothing: they are set to
            their mean and count zero bits.
        exempt (Tensor or None): bool; True at positions that the bottleneck leaves alone, such as padding: their
            features pass as they are and count zero bits. None: nowhere.
    """

    mean: Tensor
    scale: Tensor
    active: Tensor
    exempt: Tensor | None = None

    @functools.cached_property
    def counts(self) -> Tensor | None:
        """Bool: where information is counted; None: everywhere."""
        if self.exempt is not None:
            return self.active & ~self.exempt
        return None if bool(self.active.all()) else self.active

    def n_covered(self, features: Tensor) -> Tensor:
        """Number of each example's elements that the bottleneck covers, (N,): the k of the paper."""
        k = torch.full((len(features),), features[0].numel(), dtype=features.dtype, device=features.device)
        if self.exempt is None:
            return k
        return k - self.exempt.expand_as(features).flatten(1).sum(dim=1)


def make_mask(alpha: Tensor, blur: Callable[[Tensor], Tensor] | None = None) -> Mask:
    r"""Turn the free parameters into a mask: :math:`\lambda = blur(sigmoid(\alpha))` (eq. 7).

    Args:
        alpha (Tensor): parameters of any shape.
        blur (Callable, optional): linear smoothing that keeps constants. Default: None.

    Returns:
        Mask: lambda, omega and log(omega), of alpha's shape.

    Examples::

        >>> mask = make_mask(torch.tensor([-200.0, 0.0, 200.0]))
        >>> mask.lam.tolist(), mask.log_omega.tolist()
        ([0.0, 0.5, 1.0], [0.0, -0.6931471824645996, -200.0])
    """
    if blur is None:
        return Mask(torch.sigmoid(alpha), torch.sigmoid(-alpha), F.logsigmoid(-alpha))
    tiny = torch.finfo(alpha.dtype).tiny
    lam = blur(torch.sigmoid(alpha))
    if float(alpha.detach().amax()) < -math.log(tiny) - _AWAY_FROM_UNDERFLOW:
        omega = blur(torch.sigmoid(-alpha))
        return Mask(lam, omega, omega.log())
    # omega is blurred relative to its largest value in the example, so that its logarithm outlives its underflow
    exponent = F.logsigmoid(-alpha)
    largest = exponent.detach().flatten(1).amax(dim=1).view(-1, *[1] * (alpha.ndim - 1))
    relative = blur(torch.exp(exponent - largest))
    log_omega = relative.clamp_min(tiny).log() + largest
    return Mask(lam, relative * largest.exp(), log_omega)


class _OpenTerm(torch.autograd.Function):
    """-log(omega) - lambda without cancellation, neither in the value nor in the derivative.

    Towards a closed mask the derivative, lambda / omega, goes through lambda; towards an open one it goes through
    log(omega), which outlives the underflow of omega.
    """

    @staticmethod
    def forward(ctx: Any, lam: Tensor, omega: Tensor, log_omega: Tensor) -> Tensor:
        ctx.save_for_backward(lam, omega)
        terms = _SERIES_TERMS.get(lam.dtype, _SERIES_TERMS_ELSE)
        polynomial = torch.full_like(lam, 1.0 / (terms + 1))
        for power in range(terms - 2, -1, -1):
            polynomial.mul_(lam).add_(1.0 / (power + 2))
        closed = torch.where(lam < 0.5, torch.log1p(-lam.clamp_max(0.5)), log_omega)
        return torch.where(lam < _SERIES_BELOW, polynomial.mul_(lam).mul_(lam), -closed - lam)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, Tensor]:
        (grad,) = grad_outputs
        lam, omega = ctx.saved_tensors
        closing = lam < 0.5
        through_lam = torch.where(closing, lam / omega.clamp_min(0.5), -torch.ones_like(lam))
        return grad * through_lam, None, torch.where(closing, torch.zeros_like(grad), -grad)


def kl_divergence(mask: Mask, normalized: Tensor) -> Tensor:
    r"""Information of each element, :math:`KL[N(\lambda r, \omega^2) || N(0, 1)]`, in **nats**.

    Args:
        mask (Mask): lambda and omega.
        normalized (Tensor): features r = (R - mean) / scale, of the mask's shape.

    Returns:
        Tensor: nats per element, never negative, of the mask's shape.

    Examples::

        >>> mask = make_mask(torch.zeros(2, dtype=torch.float64))
        >>> kl_divergence(mask, torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
        [0.3181471805599453, 0.4431471805599453]
    """
    open_term: Tensor = _OpenTerm.apply(mask.lam, mask.omega, mask.log_omega)
    return torch.addcmul(open_term, mask.lam.square(), normalized.square().add_(1.0), value=0.5)


def assert_finite_features(features: Tensor, layer_name: str = "the layer") -> None:
    """Refuse features with a NaN or an infinity.

    Raises:
        NonFiniteError: there is one.
    """
    if not all(torch.isfinite(extreme) for extreme in features.aminmax()):  # one pass, without a copy
        raise NonFiniteError(
            f"The features of {layer_name} contain NaN or infinity. Look at the model and the input with "
            "torch.isfinite before asking for attributions; half-precision models may have overflowed."
        )


def normalize(features: Tensor, reference: Reference, layer_name: str = "the layer") -> Tensor:
    """Return (features - mean) / scale, zero where no information is counted.

    Raises:
        NonFiniteError: the features hold a NaN or an infinity.
    """
    assert_finite_features(features, layer_name)
    normalized = (features - reference.mean).div_(reference.scale)
    return normalized if reference.counts is None else normalized.masked_fill_(~reference.counts, 0.0)


def information(mask: Mask, normalized: Tensor, reference: Reference) -> Tensor:
    """:func:`kl_divergence` in nats, zero where none is counted; of the features' shape."""
    nats = kl_divergence(mask, normalized)
    return nats if reference.counts is None else torch.where(reference.counts, nats, torch.zeros_like(nats))


def signal_and_noise_scale(mask: Mask, features: Tensor, reference: Reference) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of Z given the features; Z is ``mean + deviation * standard normal noise``.

    Inactive features have their mean, those at exempt positions themselves, and neither a deviation. The selection is
    by ``where``, never by multiplication with a 0/1 mask, because NaN * 0 is NaN.
    """
    mean = torch.where(reference.active, mask.lam * features + mask.omega * reference.mean, reference.mean)
    deviation = mask.omega * reference.scale
    deviation = torch.where(reference.active, deviation, torch.zeros_like(deviation))
    if reference.exempt is None:
        return mean, deviation
    return torch.where(reference.exempt, features, mean), deviation.masked_fill(reference.exempt, 0.0)


def example_reference(features: Tensor, channel_dim: int, real: Tensor | None = None) -> Reference:
    """Stand-in for missing statistics: each example's own mean and deviation per channel, over its positions.

    With a single position all features of the example are pooled.

    Args:
        features (Tensor): (N, ...).
        channel_dim (int): axis of the channels, 1 or larger.
        real (Tensor, optional): bool, broadcasts against the features; the positions that count, without padding.
            Default: None, all.

    Returns:
        Reference: one set per example, so that examples of a batch stay independent.

    Raises:
        StatisticsError: an example's features are all alike.
    """
    positions = [axis for axis in range(1, features.ndim) if axis != channel_dim]
    if all(features.shape[axis] == 1 for axis in positions):
        positions = list(range(1, features.ndim))
    weight = torch.ones_like(features) if real is None else real.to(features).expand_as(features)
    count = weight.sum(dim=positions, keepdim=True)
    mean = torch.where(weight > 0, features, 0.0).sum(dim=positions, keepdim=True) / count
    spread = (features - mean).square().where(weight > 0, 0.0).sum(dim=positions, keepdim=True)
    scale = spread.div((count - 1).clamp_min(1)).sqrt()
    if real is not None:  # an example with a single real position is pooled as well
        kept = weight > 0
        n = weight.flatten(1).sum(dim=1).view(-1, *[1] * (features.ndim - 1))
        axes = list(range(1, features.ndim))
        middle = torch.where(kept, features, 0.0).sum(dim=axes, keepdim=True) / n
        around = (features - middle).square().where(kept, 0.0).sum(dim=axes, keepdim=True)
        is_single = (count == 1).flatten(1).all(dim=1).view_as(n)
        mean = torch.where(is_single, middle, mean)
        scale = torch.where(is_single, around.div((n - 1).clamp_min(1)).sqrt(), scale)
    scale, active = floor_scale(mean, scale, per_example=True)
    if not active.flatten(1).any(dim=1).all():
        raise StatisticsError(
            "All features of an example are constant over its positions, so its own statistics cannot stand in. "
            "Call estimate(data) with about a thousand examples of the model's data first."
        )
    return Reference(mean, scale, active)


def floor_scale(mean: Tensor, std: Tensor, min_std: float = 0.01, per_example: bool = False) -> tuple[Tensor, Tensor]:
    """Floor the standard deviations and find the features that vary at all.

    The floor is relative, ``min_std`` times the root mean square deviation of the varying features, because an
    absolute one (0.01 in the published package) means another thing in each layer. The same floored value serves the
    noise and the information: only then is one an upper bound for the other.

    Args:
        mean (Tensor): means.
        std (Tensor): standard deviations, of the same shape.
        min_std (float, optional): relative floor. Default: 0.01, the published figure made relative.
        per_example (bool, optional): the first axis holds examples with floors of their own. Default: False.

    Returns:
        tuple[Tensor, Tensor]: the floored deviations (1 where the feature is not active) and the active features.
    """
    axes = list(range(1 if per_example else 0, std.ndim))
    varying = std > 0
    count = varying.sum(dim=axes, keepdim=True).clamp_min(1)
    typical = std.square().sum(dim=axes, keepdim=True).div(count).sqrt()
    # a deviation this far below the feature's own size is rounding, not variation
    active = std > 1e-6 * torch.maximum(typical, mean.abs())
    return torch.where(active, torch.maximum(std, min_std * typical), torch.ones_like(std)), active
