"""Estimators of mutual information by trained critics."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from captum_iba._numbers import assert_integer, assert_learning_rate, assert_number
from captum_iba.errors import InvalidArgumentError
from captum_iba.information.estimate import Estimate
from captum_iba.information.estimator import Estimator
from captum_iba.information.neural import bounds
from captum_iba.information.neural.critic import Classifier, Critic, Quadratic
from captum_iba.information.neural.cross_fitting import CrossFitted, cross_fit
from captum_iba.information.neural.folds import split
from captum_iba.information.neural.scoring import blocks
from captum_iba.information.neural.training import Objective, Schedule

# A critic that does so much better (nats) on the examples that trained it knows them by heart.
IN_SAMPLE_GAP = 0.1
# A fitted start that loses more than this (nats) makes the estimate worthless, as do fewer examples than these.
WORTHLESS_SLACK, WORTHLESS_BELOW = 0.1, 100
_ROWS_A_FOLD = 4
# A standard error of more than this share of the value (or of this many nats).
_UNSURE = 0.5
# Scores of one training step, of all critics.
_AT_ONCE = 2**22


@dataclass(frozen=True)
class _Size:
    """Of a critic and its training."""

    hidden: int
    rank: int
    batch_size: int
    learning_rate: float
    patience: int


# For two vectors, and for two single columns (or one and labels), where small critics learn fast, many side by side.
_VECTORS = _Size(hidden=128, rank=32, batch_size=512, learning_rate=1e-3, patience=500)
_COLUMNS = _Size(hidden=16, rank=8, batch_size=64, learning_rate=5e-3, patience=150)


@dataclass(frozen=True)
class Neural(Estimator, name="neural"):
    """Mutual information by critics that start at the Gaussian log-ratio and climb the Donsker-Varadhan bound.

    The examples are cut into ``n_folds`` folds. For each, a critic starts at the log-ratio of the Gaussian with the
    covariance of the other examples, trains on 7/8 of them, and is kept at the state that does best on the rest; only
    one that beats the start by two standard errors is preferred to it. The fold is scored by that critic, every x
    against every y. The value is the mean over all examples, 0 where that is negative; its standard error takes the
    sampling error of the examples as pairs and as products, for critics as they came out. What a critic has failed to
    learn is not in it. The fitted start costs dx dy / (2 n_train) nats on average, which is the ``slack``.

    In expectation it is a lower bound (up to the logarithm's bias, of order 1/n). No such bound that holds for all
    distributions can guarantee more than about ln n nats from n examples (McAllester and Stratos 2020, "Formal
    Limitations on the Measurement of Mutual Information"): what a high value rests on is the critic's form.

    Labels are one-hot and have a critic of their own, the log-odds of a classifier that starts at Fisher's
    discriminant. Results are the same for x and y exchanged (unless ties are broken at random first), and for the same
    generator; they differ between devices by rounding. An interruption from the keyboard ends the training, and the
    critics until then are scored.

    Args:
        n_folds (int, optional): folds. Default: 4.
        n_steps (int, optional): longest training; it ends earlier when no critic has gained for 500 steps (single
            columns: 150). Default: 2000.
        hidden (int or None, optional): width of the two hidden layers. Default: None, 128 for vectors and 16 for single
            columns.
        batch_size (int or None, optional): examples a step, each paired with all others. Default: None, 512 for vectors
            and 64 for single columns.
        learning_rate (float or None, optional): AdamW's. Default: None, 1e-3 for vectors and 5e-3 for single columns.
        start (str, optional): ``"gaussian"``, or ``"zero"`` as in the literature, which needs more steps and has no
            slack. Default: ``"gaussian"``.
        show_progress (bool, optional): whether to show a bar of the steps. Default: False.

    Raises:
        InvalidArgumentError: a setting out of range, or (when it estimates) fewer than four examples a fold.

    Examples::

        >>> import torch
        >>> from captum_iba.information import Neural
        >>> generator = torch.Generator().manual_seed(0)
        >>> x, noise = torch.randn(2, 1000, 1, generator=generator, dtype=torch.float64)
        >>> found = Neural(n_steps=50).estimate(x, x + noise, generator)
        >>> low, high = found.interval
        >>> bool(low < 0.3466 < high)  # 1/2 ln(1 + 1)
        True
    """

    ranked: ClassVar[bool] = True
    takes_labels: ClassVar[str] = "one"
    at_least: ClassVar[int] = 32

    n_folds: int = 4
    n_steps: int = 2000
    hidden: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    start: Literal["gaussian", "zero"] = "gaussian"
    show_progress: bool = False

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        assert_integer("n_folds", self.n_folds, least=2)
        assert_integer("n_steps", self.n_steps, least=0)
        for name, least in (("hidden", 1), ("batch_size", 2)):
            if getattr(self, name) is not None:
                assert_integer(name, getattr(self, name), least=least)
        if self.learning_rate is not None:
            assert_learning_rate(self.learning_rate)
        if self.start not in ("gaussian", "zero"):
            raise InvalidArgumentError(f'start={self.start!r}; wanted "gaussian" or "zero".')

    def objective(self) -> Objective:
        """What critics climb, are chosen by and report."""
        return Objective(bounds.dv, bounds.dv_terms)

    def cap_of(self, n: int) -> float:
        """Largest value that a block of n examples can have, nats."""
        return math.inf

    def estimate(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Estimate:
        """Mutual information of x (n, dx) or labels (n,) and y (n, dy) or labels (n,), in nats."""
        with torch.inference_mode(False):  # critics are trained wherever they are asked for
            return _shaped(self._of_problems(_as_rows(x)[None], _as_rows(y)[None], generator), ())

    def pairwise(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Estimate:
        """Mutual information of each column of x with each of y, (dx, dy), in nats; critics train in one batch.

        Each pair gets the estimate that :meth:`estimate` gives it with the generator in the same state, up to rounding.
        """
        left, right = _as_problems(x), _as_problems(y)
        shape = len(left), len(right)
        left, right = left.repeat_interleave(shape[1], 0), right.repeat(shape[0], 1, 1)
        with torch.inference_mode(False):
            return _shaped(self._of_problems(left, right, generator), shape)

    def _of_problems(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Estimate:
        """Estimates of x (problems, n, dx) and y (problems, n, dy); a Boolean one holds one-hot labels."""
        n = x.shape[1]
        if n // self.n_folds < _ROWS_A_FOLD:
            raise InvalidArgumentError(
                f"{n} examples in {self.n_folds} folds; wanted at least {_ROWS_A_FOLD} examples a fold. Take fewer "
                "folds."
            )
        x, y = _in_order(x, y)
        critic, schedule = self._recipe(x, y)
        seed = int(torch.randint(2**62, (), generator=generator))
        parts: list[CrossFitted] = []
        for some in _portions(len(x), self.n_folds * min(schedule.batch_size, n) ** 2):
            if parts and parts[-1].interrupted:
                schedule = replace(schedule, n_steps=0)
            own = torch.Generator().manual_seed(seed)
            data, folds = (_standardized(x[some]), _standardized(y[some])), split(n, self.n_folds, own)
            parts.append(cross_fit(critic, self.objective(), data, folds, schedule, own, self.show_progress))
        return self._reported(parts, n, critic.fitted_numbers(x.shape[-1], y.shape[-1]))

    def _recipe(self, x: Tensor, y: Tensor) -> tuple[Critic, Schedule]:
        is_labels = y.dtype == torch.bool
        single = x.shape[-1] == 1 and (is_labels or y.shape[-1] == 1)
        size = _COLUMNS if single else _VECTORS
        hidden, from_form = self.hidden or size.hidden, self.start == "gaussian"
        critic = Classifier(hidden, from_form) if is_labels else Quadratic(hidden, size.rank, from_form)
        batch_size, learning_rate = self.batch_size or size.batch_size, self.learning_rate or size.learning_rate
        return critic, Schedule(self.n_steps, batch_size, learning_rate, size.patience)

    def _reported(self, parts: list[CrossFitted], n: int, n_fitted: int) -> Estimate:
        terms = torch.cat([part.terms for part in parts])
        held_out, in_sample = terms.mean(1), torch.cat([part.in_sample for part in parts])
        slack = torch.cat([part.slack for part in parts])
        cap, error = self._cap(n), terms.std(1) / n**0.5
        met = (
            *self._warnings(n, n_fitted, parts, (in_sample - held_out).max(), slack.max()),
            *_unsure(held_out, error, n),
        )
        return Estimate(
            value=held_out.clamp(0.0, cap),
            standard_error=error,
            n=n,
            estimator=repr(self),
            cap=torch.full_like(held_out, cap),
            slack=slack,
            in_sample=in_sample,
            held_out=held_out,
            warnings=met,
        )

    def _cap(self, n: int) -> float:
        folds = [len(part) for part in torch.arange(n).tensor_split(self.n_folds)]
        sizes = [len(part) for fold in folds for part in torch.arange(fold).tensor_split(blocks(fold))]
        return sum(size * self.cap_of(size) for size in sizes) / n

    def _warnings(self, n: int, n_fitted: int, parts: list[CrossFitted], gap: Tensor, slack: Tensor) -> Iterator[str]:
        name = type(self).__name__
        if any(part.interrupted for part in parts):
            yield f"{name}: the keyboard ended the training; the best critics until then were scored."
        if n < WORTHLESS_BELOW or slack > WORTHLESS_SLACK:
            wanted = max(WORTHLESS_BELOW, math.ceil(n * float(slack) / WORTHLESS_SLACK))
            yield (
                f"{name}: {n} examples are too few for a critic of this many columns: its start alone has {n_fitted} "
                f'fitted numbers. Take at least {wanted} examples, fewer columns, or estimator="ksg".'
            )
        if gap > IN_SAMPLE_GAP:
            yield (
                f"{name}: on the examples that trained them, the critics find {float(gap):.2f} nat more than on "
                "others. Only the value on others is returned, which errs on the low side; more examples bring them "
                "together."
            )


@dataclass(frozen=True)
class DV(Neural, name="dv"):
    """:class:`Neural` under the name of its bound, after Donsker and Varadhan."""


@dataclass(frozen=True)
class MINE(Neural, name="mine"):
    """:class:`Neural` with the gradient of MINE (Belghazi et al. 2018, section 3.2).

    The mean exponential in the gradient's denominator is a moving average over past batches, against the bias that the
    logarithm of a batch's mean has. The value is the Donsker-Varadhan bound all the same.
    """

    def objective(self) -> Objective:
        """DV with a moving mean."""
        return Objective(bounds.mine, bounds.dv_terms, has_moving_mean=True)


@dataclass(frozen=True)
class NWJ(Neural, name="nwj"):
    """:class:`Neural` with the bound of Nguyen, Wainwright and Jordan: never above DV's, with no logarithm's bias."""

    def objective(self) -> Objective:
        """NWJ, whose best critic is the log-ratio plus 1."""
        return Objective(_nwj_of_log_ratio, _nwj_terms_of_log_ratio)


@dataclass(frozen=True)
class InfoNCE(Neural, name="infonce"):
    """:class:`Neural` with the bound of van den Oord et al. 2018: little variance, and at most ln of a fold's size."""

    def objective(self) -> Objective:
        """InfoNCE."""
        return Objective(bounds.infonce, bounds.infonce_terms)

    def cap_of(self, n: int) -> float:
        """Ln n."""
        return math.log(n)


@dataclass(frozen=True)
class JS(Neural, name="js"):
    """:class:`Neural` whose critics climb the Jensen-Shannon objective; the value is the Donsker-Varadhan bound."""

    def objective(self) -> Objective:
        """JS to train, DV to choose and report."""
        return Objective(bounds.js, bounds.dv_terms)


@dataclass(frozen=True)
class SMILE(Neural, name="smile"):
    """:class:`Neural` with the estimate of Song and Ermon 2020: less variance, and no bound: it may be too high.

    Critics climb the Jensen-Shannon objective and are chosen by it: chosen by the value, the highest error would win.

    Args:
        tau (float, optional): products' scores are clamped to [-tau, tau]. Default: 5.0.
    """

    tau: float = 5.0

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        super().__post_init__()
        assert_number("tau", self.tau, lambda value: value > 0, "above 0")

    def objective(self) -> Objective:
        """JS to train and choose, DV with clamped products to report."""
        return Objective(bounds.js, partial(bounds.smile_terms, tau=self.tau), bounds.js_terms)

    def _warnings(self, *args: Any) -> Iterator[str]:
        yield "SMILE is no bound of the mutual information: its estimate may be too high."
        yield from super()._warnings(*args)


def _unsure(value: Tensor, error: Tensor, n: int) -> Iterator[str]:
    """Why the highest of the values may not be taken for what it seems."""
    if float(value.max()) > math.log(n):
        yield (
            f"The estimate, {float(value.max()):.1f} nats, is above ln n = {math.log(n):.1f}: so much no {n} examples "
            "can show. It rests on the critic's form; if one variable determines the other, the truth is infinite."
        )
    if bool((error > _UNSURE * value.clamp_min(_UNSURE)).any()):
        yield (
            f"A few examples decide the estimate: its standard error is {float(error.max()):.2g} nats. Leave "
            'transform="auto", which tames heavy tails, or take more examples.'
        )


def _nwj_of_log_ratio(scores: Tensor) -> Tensor:
    return bounds.nwj(scores + 1)


def _nwj_terms_of_log_ratio(scores: Tensor) -> Tensor:
    return bounds.nwj_terms(scores + 1)


def _as_rows(variable: Tensor) -> Tensor:
    """Columns (n, d) as they are; labels (n,) one-hot and Boolean, one column for each that occurs."""
    return variable if variable.ndim == 2 else one_hot(torch.unique(variable, return_inverse=True)[1]).bool()


def _as_problems(variable: Tensor) -> Tensor:
    """One problem for each column; labels are one column."""
    return variable.T[..., None] if variable.ndim == 2 else _as_rows(variable)[None]


def _in_order(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Labels second, the wider variable second; else the order in which their first different numbers ascend.

    The order of x and y has no meaning, so that it should make no difference.
    """
    if x.dtype == torch.bool or y.dtype == torch.bool:
        return (y, x) if x.dtype == torch.bool else (x, y)
    if x.shape[-1] != y.shape[-1]:
        return (y, x) if x.shape[-1] > y.shape[-1] else (x, y)
    difference = (x - y).flatten(1)
    first = (difference != 0).int().argmax(1, keepdim=True)
    swap = (difference.gather(1, first) > 0)[..., None]
    return torch.where(swap, y, x), torch.where(swap, x, y)


def _standardized(variable: Tensor) -> Tensor:
    """Columns with mean 0 and deviation 1 in float32; of one-hot labels, the numbers."""
    if variable.dtype != torch.bool:
        variable = variable - variable.mean(1, keepdim=True)
        variable = variable / variable.std(1, correction=0, keepdim=True)
    return variable.float()


def _portions(n_problems: int, scores_each: int) -> list[slice]:
    """Problems that train together, so many that their scores fit into memory."""
    at_once = max(1, _AT_ONCE // scores_each)
    return [slice(first, first + at_once) for first in range(0, n_problems, at_once)]


def _shaped(found: Estimate, shape: tuple[int, ...]) -> Estimate:
    """The tables of problems in another shape."""
    names = ("value", "standard_error", "cap", "slack", "in_sample", "held_out")
    tables: dict[str, Any] = {name: getattr(found, name).reshape(shape) for name in names}
    return replace(found, **tables)
