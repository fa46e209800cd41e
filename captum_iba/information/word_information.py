r"""How much of each input word a hidden state keeps: the largest noise on the word that leaves the state as it is.

Each word's embedding gets isotropic noise of its own deviation :math:`\sigma_i`, and the deviations are made as large
as the state allows:

.. math:: \min_\sigma \; E_\epsilon \frac{1}{D} \sum_j \frac{(\Phi_j(x + \sigma\epsilon) - \Phi_j(x))^2}{r_j^2}
    - \lambda \, \text{mean}_i \ln \sigma_i

A **small** deviation means that the word is kept, that is, **much** information; some accounts have it the other way
round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from captum_iba._numbers import assert_integer, assert_number
from captum_iba._warn import Warner
from captum_iba.bottleneck.noise import AnyNoise, Noise, PlacedNoise
from captum_iba.bottleneck.optimization import work_dtype
from captum_iba.errors import (
    GradientModeError,
    InvalidArgumentError,
    InvalidTypeError,
    MismatchedArgumentsError,
    NonFiniteError,
    StatisticsError,
)
from captum_iba.information.estimate import BITS_PER_NAT, Unit, assert_unit

Reduction: TypeAlias = Literal["mean", "sum"]
States: TypeAlias = Callable[[Tensor], Tensor]

# Adam's first step width, in nats of ln sigma; it falls to a fifth along a cosine.
_LEARNING_RATE, _LAST_SHARE = 0.1, 0.2
# Adam's memory of squares: short on the way, where slopes shrink by orders; long while ln sigma is averaged, because a
# rare large slope that sets its own scale counts for too little.
_MEMORY, _MEMORY_AVERAGED = 0.9, 0.99
# ln sigma is averaged over the last of the steps, which takes out what single draws of noise do to it.
_AVERAGED = 0.6
# An example whose words still move by more than this in the mean, in nats, has not settled.
_SETTLED = 0.08


@dataclass(frozen=True)
class WordNoiseSettings:
    """Parameters of :func:`word_noise`.

    Attributes:
        lam (float): weight of the entropy. Default: 0.1 (the paper's code).
        n_steps (int): steps of Adam. Default: 200, which with 16 samples is within 1 % of linear models' exact answer.
        n_samples (int): noisy copies at each step, in antithetic pairs. Default: 16.
        init_scale (float): deviation to start from, in deviations of the embeddings. Default: 0.05: from a large one,
            states of bounded size have no slope back.
        max_scale (float): largest deviation, at which a word has no information, likewise. Default: 10.0 (the paper's
            code).
        reduction (str): the entropy's terms are the ``"mean"`` over an example's words, as in the paper's code, by
            which lam weighs less for each word of a longer sentence; or their ``"sum"``, as in the paper, by which it
            does not. Default: ``"mean"``.
        seed (int): of the noise. Default: 0.

    Raises:
        InvalidArgumentError: one is out of range.
    """

    lam: float = 0.1
    n_steps: int = 200
    n_samples: int = 16
    init_scale: float = 0.05
    max_scale: float = 10.0
    reduction: Reduction = "mean"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("lam", "init_scale", "max_scale"):
            assert_number(name, getattr(self, name), lambda value: 1e-12 <= value <= 1e12, "from 1e-12 to 1e12")
        if self.init_scale > self.max_scale:
            raise InvalidArgumentError(
                f"init_scale={self.init_scale} is above max_scale={self.max_scale}; wanted a start below the largest "
                "deviation."
            )
        for name in ("n_steps", "n_samples"):
            assert_integer(name, getattr(self, name))
        assert_integer("seed", self.seed, least=0)
        assert_reduction(self.reduction)


@dataclass(frozen=True)
class WordNoise:
    """The noise that each word bears, and the information that follows from it.

    Attributes:
        log_sigma (Tensor): (N, L), natural logarithm of each word's deviation; at its largest on padding.
        log_sigma_max (Tensor): (N, 1), of the largest deviation.
        mask (Tensor): (N, L), bool; False on padding.
        width (int): K, numbers in a word's embedding.
        drift (Tensor): (N, L), how far ``log_sigma`` still moved, in nats, from the first to the second half of the
            steps that it is the mean of; 0 on padding.
    """

    log_sigma: Tensor
    log_sigma_max: Tensor
    mask: Tensor
    width: int
    drift: Tensor

    @property
    def sigma(self) -> Tensor:
        """(N, L), each word's deviation; 0 on padding, which gets no noise."""
        return self.log_sigma.exp().where(self.mask, 0.0)

    @property
    def mean_drift(self) -> Tensor:
        """(N,), mean of ``drift`` over an example's words."""
        return self.drift.sum(dim=1) / self.mask.sum(dim=1)

    def information(self, unit: Unit = "bits") -> Tensor:
        r"""(N, L), :math:`K \ln(\sigma_\max / \sigma_i)`: entropy that knowing the state takes from each word.

        Args:
            unit (str, optional): ``"bits"`` or ``"nats"``. Default: ``"bits"``.
        """
        assert_unit(unit)
        nats = self.width * (self.log_sigma_max - self.log_sigma).clamp_min(0.0)
        return (nats * (BITS_PER_NAT if unit == "bits" else 1.0)).where(self.mask, 0.0)

    def entropy(self, unit: Unit = "bits") -> Tensor:
        r"""(N, L), :math:`\frac{K}{2} \ln 2 \pi e + K \ln \sigma_i`: entropy of each word given the state.

        On padding it is 0.

        Args:
            unit (str, optional): ``"bits"`` or ``"nats"``. Default: ``"bits"``.
        """
        assert_unit(unit)
        nats = self.width * (0.5 * math.log(2 * math.pi * math.e) + self.log_sigma)
        return (nats * (BITS_PER_NAT if unit == "bits" else 1.0)).where(self.mask, 0.0)


def word_noise(
    embeddings: Tensor,
    states: States,
    reference_std: Tensor | float,
    settings: WordNoiseSettings | None = None,
    mask: Tensor | None = None,
    state_mask: Tensor | None = None,
    embedding_std: Tensor | float | None = None,
    copies_per_run: int | None = None,
    after_step: Callable[[], object] = lambda: None,
    warner: Warner | None = None,
) -> WordNoise:
    r"""The largest noise on each word that leaves the states as they are, found by Adam.

    The free parameter is :math:`\ln \sigma`. Examples share nothing but the noise, which depends on a word's place in
    its sentence alone, so that a padded batch gives what its sentences give one by one.

    Args:
        embeddings (Tensor): (N, L, K), of the words.
        states (Callable): ``states(noisy)``, from (R, L, K) to (R, ...), R a multiple of N: row ``k * N + i`` is copy k
            of example i.
        reference_std (Tensor or float): how far each number of the state varies between sentences; positive, broadcasts
            against one example's state.
        settings (WordNoiseSettings, optional): the parameters. Default: None, the defaults.
        mask (Tensor, optional): (N, L), nonzero at real words; padding gets no noise and no term. Default: None, all.
        state_mask (Tensor, optional): broadcasts against the states (N, ...), nonzero at the numbers that count.
            Default: None, all.
        embedding_std (Tensor or float, optional): the unit of ``init_scale`` and ``max_scale``; one, or (N,). Default:
            None: the deviation of each example's own embeddings.
        copies_per_run (int, optional): most copies that go through ``states`` at once. Default: None, all.
        after_step (Callable, optional): called after each step. Default: does nothing.
        warner (Warner, optional): gives the warning that the noise has not settled, once. Default: None, one of its
            own.

    Returns:
        WordNoise: deviations and information.

    Raises:
        InvalidArgumentError, InvalidTypeError, MismatchedArgumentsError: tensors of other shapes or types.
        StatisticsError: the embeddings do not vary, so that there is no unit for the noise.
        GradientModeError: the states do not depend on the embeddings by gradient.
        NonFiniteError: NaN or infinity in embeddings or states.

    Reference:
        Guan, Wang, Zhang, Chen, He, Xie: Towards a Deep and Unified Understanding of Deep Neural Models in NLP, ICML
        2019, eq. 8.

    Examples::

        >>> weights = torch.tensor([1.0, 2.0, 0.0])  # the state is their weighted sum of words
        >>> words = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> found = word_noise(words, lambda x: (weights[:, None] * x).sum(dim=1), reference_std=1.0)
        >>> bool((found.sigma[0, 0] / found.sigma[0, 1] - 2.0).abs() < 0.02)
        True
        >>> float(found.information()[0, 2])  # the third word is not in the state
        0.0
    """
    settings = settings or WordNoiseSettings()
    problem = _Problem(embeddings, states, reference_std, settings, mask, state_mask, embedding_std)
    copies = settings.n_samples if copies_per_run is None else copies_per_run
    assert_integer("copies_per_run", copies)
    log_sigma = (problem.log_unit + math.log(settings.init_scale)).expand(problem.shape)
    course = [log_sigma]
    adam = _Adam(log_sigma)
    n_before = settings.n_steps - math.ceil(_AVERAGED * settings.n_steps)
    for step in range(settings.n_steps):
        memory = _MEMORY if step < n_before else _MEMORY_AVERAGED
        way = adam.direction(problem.slope(log_sigma, copies), memory)
        log_sigma = log_sigma - _step_width(step / settings.n_steps) * way
        log_sigma = torch.minimum(log_sigma, problem.log_sigma_max)
        course.append(log_sigma)
        after_step()
    found = problem.result(course)
    if bool((found.mean_drift > _SETTLED).any()):
        (warner or Warner()).once(
            "drift",
            f"After n_steps={settings.n_steps} the noise of {int((found.mean_drift > _SETTLED).sum())} examples has "
            f"not settled: it moved by up to {float(found.mean_drift.max()):.2f} nats a word over the steps that it is "
            "the mean of. Raise n_steps, or n_samples.",
        )
    return found


class _Adam:
    """Adam's direction, with a memory of squares that may change on the way: each mean is over the weights it has."""

    def __init__(self, like: Tensor) -> None:
        self._slope, self._slope_weight = torch.zeros_like(like), 0.0
        self._square, self._square_weight = torch.zeros_like(like), 0.0

    def direction(self, slope: Tensor, memory: float) -> Tensor:
        """Mean slope over the root of the mean square."""
        self._slope = 0.9 * self._slope + 0.1 * slope
        self._slope_weight = 0.9 * self._slope_weight + 0.1
        self._square = memory * self._square + (1 - memory) * slope.square()
        self._square_weight = memory * self._square_weight + 1 - memory
        return self._slope / self._slope_weight / ((self._square / self._square_weight).sqrt() + 1e-8)


def _step_width(share: float) -> float:
    return _LEARNING_RATE * (_LAST_SHARE + (1 - _LAST_SHARE) * 0.5 * (1 + math.cos(math.pi * share)))


def linear_word_noise(
    gains: Tensor, reference_std: Tensor | float, lam: float = 0.1, reduction: Reduction = "mean"
) -> Tensor:
    r"""Each word's deviation in closed form, where the state is linear in the words: :math:`s = \sum_i A_i x_i`.

    .. math:: \sigma_i = \sqrt{\frac{\lambda D}{2 n \sum_j |A_i[j, :]|^2 / r_j^2}}

    Args:
        gains (Tensor): (n, D, K), the matrix A of each word.
        reference_std (Tensor or float): of the D numbers of the state.
        lam (float, optional): weight of the entropy. Default: 0.1.
        reduction (str, optional): see :class:`WordNoiseSettings`; for ``"sum"`` the n is left out. Default: ``"mean"``.

    Returns:
        Tensor: (n,), without a largest value; infinite for a word that is not in the state.

    Raises:
        InvalidTypeError: gains of integers, or a deviation that is no number.
        InvalidArgumentError: another shape, a deviation or lam that is not positive, or an unknown reduction.
        NonFiniteError: NaN or infinity in the gains.

    Examples::

        >>> identity = torch.eye(256, dtype=torch.float64)
        >>> gains = torch.tensor([10.0, 20.0, 5.0])[:, None, None] * identity
        >>> [round(value, 5) for value in linear_word_noise(gains, 0.32).tolist()]
        [0.00413, 0.00207, 0.00826]
    """
    assert_reduction(reduction)
    assert_number("lam", lam, lambda value: value > 0, "above 0")
    _assert_words("gains", gains, "(words, state, embedding)")
    n, size, _ = gains.shape
    std = _reference(reference_std, gains, (size,))
    power = (gains.square().sum(dim=2) / std.square()).sum(dim=1)
    return (lam * size / (2 * (n if reduction == "mean" else 1) * power)).sqrt()


class _Problem:
    """What stays the same from step to step.

    Attributes:
        shape: (N, L).
        weight (Tensor): (N, L), of each word's ln sigma in the loss; 0 on padding.
        log_unit, log_sigma_max (Tensor): (N, 1), of the embeddings' deviation and of the largest one.
    """

    def __init__(
        self,
        embeddings: Tensor,
        states: States,
        reference_std: Tensor | float,
        settings: WordNoiseSettings,
        mask: Tensor | None,
        state_mask: Tensor | None,
        embedding_std: Tensor | float | None,
    ) -> None:
        _assert_words("embeddings", embeddings, "(examples, words, width)")
        self._wide, self._dtype = embeddings.detach().to(work_dtype(embeddings)), embeddings.dtype
        self._states, self._settings = states, settings
        self.shape = embeddings.shape[:2]
        self._real = _real_words(mask, embeddings)
        unit = _unit_of(embedding_std, self._wide, self._real)
        self.log_unit = unit.log()
        self.log_sigma_max = self.log_unit + math.log(settings.max_scale)
        count = self._real.sum(dim=1, keepdim=True) if settings.reduction == "mean" else 1
        self.weight = settings.lam * self._real / count
        with torch.no_grad():
            self._clean = self._run(self._wide, 1).detach().clone()
        self._importance = _importance(self._clean, reference_std, state_mask)
        self._noise = self._placed(Noise(tuple(embeddings.shape[1:]), self._wide, settings.seed, by_position=True))

    def slope(self, log_sigma: Tensor, copies_per_run: int) -> Tensor:
        """Gradient of the loss by ln sigma for one draw of the noise."""
        pairs = self._noise.draw(-(-self._settings.n_samples // 2))
        eps = torch.cat([pairs, -pairs])[: self._settings.n_samples]
        eps = eps.unsqueeze(1) if eps.ndim == 3 else eps
        slope = -self.weight
        for start in range(0, len(eps), copies_per_run):
            part = eps[start : start + copies_per_run]
            with torch.enable_grad():
                leaf = log_sigma.detach().requires_grad_()
                noisy = self._wide + (leaf.exp() * self._real)[..., None] * part
                loss = self._error(self._run(noisy.flatten(0, 1), len(part)))
                slope = slope + _gradient(loss / self._settings.n_samples, leaf)
        return slope

    def result(self, course: list[Tensor]) -> WordNoise:
        """The outcome, from ln sigma at the start and after each step."""
        steps = torch.stack(course)
        averaged = steps[-math.ceil(_AVERAGED * (len(course) - 1)) :]
        earlier = averaged[: len(averaged) // 2] if len(averaged) > 1 else steps[:1]
        later = averaged[len(averaged) // 2 :]
        drift = (later.mean(dim=0) - earlier.mean(dim=0)).abs()
        # what is at its largest all the time has no information, to the last digit
        log_sigma = self.log_sigma_max - (self.log_sigma_max - averaged).mean(dim=0)
        log_sigma = log_sigma.where(self._real, self.log_sigma_max)
        return WordNoise(log_sigma, self.log_sigma_max, self._real, self._wide.shape[2], drift * self._real)

    def _placed(self, noise: Noise) -> AnyNoise:
        place = self._real.cumsum(dim=1).sub(1).clamp_min(0)
        in_order = torch.arange(place.shape[1], device=place.device).expand_as(place)
        return noise if bool((place == in_order)[self._real].all()) else PlacedNoise(noise, place)

    def _run(self, noisy: Tensor, copies: int) -> Tensor:
        found = self._states(noisy.to(self._dtype))
        if not isinstance(found, Tensor) or found.ndim < 2 or len(found) != copies * self.shape[0]:
            what = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise MismatchedArgumentsError(
                f"states returned {what} for {copies * self.shape[0]} rows; wanted a tensor with a row for each."
            )
        if not torch.isfinite(found).all():
            raise NonFiniteError(
                "The states became NaN or infinite. Look at the model's states for noisy embeddings; a smaller "
                "max_scale, or the model in float32, usually helps."
            )
        return found

    def _error(self, found: Tensor) -> Tensor:
        """Sum over the rows of the states' mean squared error."""
        off = found.to(self._wide.dtype).reshape(-1, *self._clean.shape) - self._clean.to(self._wide.dtype)
        loss: Tensor = (off.square() * self._importance).sum()
        return loss


def _gradient(value: Tensor, leaf: Tensor) -> Tensor:
    grad = torch.autograd.grad(value, leaf, allow_unused=True)[0] if value.requires_grad else None
    if grad is None:
        raise GradientModeError(
            "The state does not depend on the word embeddings by gradient. Choose a layer behind them, and remove "
            "torch.no_grad or detach between the two."
        )
    return grad


def _assert_words(name: str, value: Any, axes: str) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        what = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise InvalidTypeError(f"{name} is {what}; wanted a floating-point tensor {axes}.")
    if value.ndim != 3 or 0 in value.shape:
        raise InvalidArgumentError(f"{name} has shape {list(value.shape)}; wanted {axes}, none of them 0.")
    if not torch.isfinite(value).all():
        raise NonFiniteError(f"{name} contains NaN or infinity. Look at the model's weights and inputs.")


def _assert_mask(name: str, mask: Any) -> None:
    if not isinstance(mask, Tensor):
        raise InvalidTypeError(f"{name} is a {type(mask).__name__}; wanted a tensor, nonzero at what counts.")


def _deviation(name: str, value: Any, like: Tensor) -> Tensor:
    """What a user gave as one or several numbers."""
    try:
        return torch.as_tensor(value, dtype=like.dtype, device=like.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidTypeError(f"{name}={value!r}; wanted a positive number, or a tensor of such.") from error


def _real_words(mask: Tensor | None, embeddings: Tensor) -> Tensor:
    if mask is None:
        return torch.ones(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
    _assert_mask("mask", mask)
    if mask.shape != embeddings.shape[:2]:
        raise InvalidArgumentError(
            f"mask has shape {list(mask.shape)}; wanted {list(embeddings.shape[:2])}, one entry for each word."
        )
    real = (mask != 0).to(embeddings.device)
    if not bool(real.any(dim=1).all()):
        raise InvalidArgumentError("mask marks no word of an example as real; leave empty examples out of the batch.")
    return real


def _unit_of(embedding_std: Tensor | float | None, wide: Tensor, real: Tensor) -> Tensor:
    """(N, 1), the deviation that the noise's scales are multiples of."""
    if embedding_std is not None:
        given = _deviation("embedding_std", embedding_std, wide)
        if given.numel() not in (1, len(wide)):
            raise InvalidArgumentError(
                f"embedding_std has shape {list(given.shape)}; wanted one number, or one for each of {len(wide)} "
                "examples."
            )
        unit = given.reshape(-1, 1).expand(len(wide), 1)
    else:
        count = real.sum(dim=1) * wide.shape[2]
        mean = wide.where(real[..., None], 0.0).sum(dim=(1, 2)) / count
        spread = (wide - mean[:, None, None]).square().where(real[..., None], 0.0).sum(dim=(1, 2)) / count
        unit = spread.sqrt().unsqueeze(1)
    if not bool((torch.isfinite(unit) & (unit > 0)).all()):
        raise StatisticsError(
            f"The deviation of the embeddings is {float(unit.min()):.3g}, so there is no unit for the noise; wanted a "
            "positive one. Pass embedding_std."
        )
    return unit


def _importance(clean: Tensor, reference_std: Tensor | float, state_mask: Tensor | None) -> Tensor:
    """Weights of the squared errors, which make their sum the mean over the numbers that count; 0 at all others."""
    clean = clean.to(work_dtype(clean))
    weights = _reference(reference_std, clean, clean.shape[1:]).square().reciprocal().expand(clean.shape)
    if state_mask is None:
        return weights / clean[0].numel()
    _assert_mask("state_mask", state_mask)
    try:
        counts = (state_mask != 0).to(clean.device).expand(clean.shape)
    except RuntimeError:
        raise InvalidArgumentError(
            f"state_mask has shape {list(state_mask.shape)}; wanted one that broadcasts against the states' "
            f"{list(clean.shape)}."
        ) from None
    n_counts = counts.flatten(1).sum(dim=1)
    if not bool((n_counts > 0).all()):
        raise InvalidArgumentError(
            f"state_mask marks no number of example {int(n_counts.argmin())}'s state; wanted at least one that counts."
        )
    return weights * counts / n_counts.reshape(-1, *[1] * (clean.ndim - 1))


def _reference(reference_std: Tensor | float, like: Tensor, shape: Sequence[int]) -> Tensor:
    """The deviations of a state's numbers, of the state's shape."""
    std = _deviation("reference_std", reference_std, like)
    try:
        whole = std.expand(shape)
    except RuntimeError:
        raise InvalidArgumentError(
            f"reference_std has shape {list(std.shape)}, and a state has {list(shape)}; wanted one number, or as many "
            "as the state's last axis has."
        ) from None
    if not bool((torch.isfinite(std) & (std > 0)).all()):
        raise InvalidArgumentError(
            f"reference_std has values from {float(std.min()):.3g} to {float(std.max()):.3g}; wanted positive ones."
        )
    return whole


def assert_reduction(reduction: Any) -> None:
    """Refuse all but the two.

    Raises:
        InvalidArgumentError: another one.
    """
    if reduction not in get_args(Reduction):
        raise InvalidArgumentError(f'reduction={reduction!r}; wanted "mean" or "sum".')
