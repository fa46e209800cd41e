"""The objective of the variational information bottleneck, and how predictions are averaged over draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_iba._numbers import assert_beta, assert_number
from captum_iba.errors import InvalidArgumentError, MismatchedArgumentsError, TargetIndexError
from captum_iba.information.estimate import Unit, assert_unit

Reduction: TypeAlias = Literal["mean", "sum", "none"]


class VIBLoss(nn.Module):
    r"""Loss of the prediction plus beta times the information, in nats.

    .. math::

        J = E[-\ln q(y|z)] + \beta \sum_k KL[p(z_k|x) \,\|\, r] + \gamma \sum_k KL[p(z_k|x) \,\|\, s(z_k|\mathrm{type})]

    (Alemi et al. 2017, equation 17; the third term is Li & Eisner's, 2019). Both terms in nats or both in bits give
    the same solutions for one beta, so beta does not depend on the unit; the result is in nats, as torch's losses are,
    and with ``beta=0`` is their value.

    Args:
        beta (float): nats of prediction that a nat of information is worth. A bottleneck collapses (no information
            passes) where beta is too high: for jointly Gaussian variables from their squared correlation on, see
            :func:`~captum_iba.information.gaussian_information_bottleneck`; for classes at 1 at
            the latest. Alemi et al. use 1e-3 on MNIST.
        gamma (float, optional): weight of the information beyond the tokens' types. Default: 0.0; Li & Eisner use
            gamma = beta.
        loss (Callable, optional): (prediction, target) -> losses in nats, not reduced, their first axis the examples,
            such as ``functools.partial(F.mse_loss, reduction="none")``. Default: None, cross-entropy of logits.
        reduction (str, optional): ``"sum"`` over all targets; ``"mean"``, the sum over the number of targets that
            count; ``"none"``, a value for each example. Default: ``"mean"``.
        ignore_index (int, optional): a target that does not count, for the cross-entropy. Default: -100, as in
            :class:`torch.nn.CrossEntropyLoss`.
        unit (str, optional): of ``kl`` and ``type_kl``, the bottleneck's. Default: ``"bits"``.

    Shape:
        - logits: (N, C, \*) as for :class:`torch.nn.CrossEntropyLoss`, or (n_samples, N, C, \*) with an axis of draws,
          over which the *loss* is averaged. Which of both is told by the number of the target's axes.
        - target: (N, \*) classes, or of the logits' shape without draws if floating point.
        - kl, type_kl: (N, \*, K); all of an example is added up.
        - Output: a number, with ``reduction="none"`` (N,).

    Raises:
        InvalidArgumentError: a weight or name is out of range.

    Examples::

        >>> import torch
        >>> from captum_iba.information import VariationalBottleneck
        >>> _ = torch.manual_seed(0)
        >>> bottleneck, decoder, objective = VariationalBottleneck(4, 2), torch.nn.Linear(2, 3), VIBLoss(beta=1e-2)
        >>> logits = decoder(bottleneck(torch.randn(5, 4)))
        >>> objective(logits, torch.tensor([0, 1, 2, 0, 1]), bottleneck.kl).backward()
        >>> bottleneck.encoder.weight.grad.shape
        torch.Size([4, 4])
    """

    def __init__(
        self,
        beta: float,
        gamma: float = 0.0,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
        unit: Unit = "bits",
    ) -> None:
        super().__init__()
        assert_beta(beta)
        assert_number("gamma", gamma, lambda value: value >= 0, "of at least 0")
        if reduction not in ("mean", "sum", "none"):
            raise InvalidArgumentError(f'reduction={reduction!r}; wanted "mean", "sum" or "none".')
        if loss is not None and not callable(loss):
            raise InvalidArgumentError(f"loss={loss!r}; wanted a function of prediction and target, or None.")
        assert_unit(unit)
        self.beta, self.gamma, self.loss, self.reduction = beta, gamma, loss, reduction
        self.ignore_index, self.unit = ignore_index, unit

    def forward(self, logits: Tensor, target: Tensor, kl: Tensor, type_kl: Tensor | None = None) -> Tensor:
        """Compute the objective.

        Args:
            logits (Tensor): predictions.
            target (Tensor): what they should be.
            kl (Tensor): the bottleneck's ``kl``, its ``rate`` will not do.
            type_kl (Tensor, optional): the bottleneck's ``type_kl``; needed if gamma is not 0. Default: None.

        Returns:
            Tensor: in nats; see Shape above.

        Raises:
            MismatchedArgumentsError: shapes that do not fit each other, or gamma without ``type_kl``.
            TargetIndexError: the logits have no such class.
            InvalidArgumentError: no target counts, so that there is no mean.
        """
        if self._is_classes(target):
            target = target.long()  # a uint8 cannot be compared with -100
        losses = self._losses(logits, target)
        total = losses.flatten(1).sum(dim=1) + self.beta * self._nats("kl", kl, target)
        if type_kl is not None:
            total = total + self.gamma * self._nats("type_kl", type_kl, target)
        elif self.gamma:
            raise MismatchedArgumentsError(f"gamma={self.gamma} and no type_kl; wanted the bottleneck's type_kl.")
        if self.reduction == "none":
            return total
        if self.reduction == "sum":
            return total.sum()
        n = int((target != self.ignore_index).sum()) if self._is_classes(target) else losses.numel()
        if n == 0:
            raise InvalidArgumentError(
                f"No target counts: each is {self.ignore_index} (ignore_index), or there is none."
            )
        return total.sum() / n

    def extra_repr(self) -> str:
        """The weights."""
        return f"beta={self.beta}, gamma={self.gamma}, reduction={self.reduction!r}, unit={self.unit!r}"

    def _is_classes(self, target: Tensor) -> bool:
        return self.loss is None and not target.is_floating_point()

    def _losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """Losses of one draw, or their mean over the draws: (N, ...)."""
        one_draw = target.ndim if target.is_floating_point() else target.ndim + 1
        has_draws = logits.ndim == one_draw + 1
        if target.ndim == 0 or logits.ndim - one_draw not in (0, 1) or logits.shape[has_draws] != len(target):
            raise MismatchedArgumentsError(
                f"logits have shape {tuple(logits.shape)} and the target {tuple(target.shape)}, {target.dtype}; wanted "
                "(N, C, ...) or (n_samples, N, C, ...) for classes (N, ...) or for a floating point target (N, C, ...)."
            )
        if not has_draws:
            return self._of_draw(logits, target)
        n_samples, n = logits.shape[:2]
        repeated = target.expand(n_samples, *target.shape).flatten(0, 1)
        losses = self._of_draw(logits.flatten(0, 1), repeated)
        return losses.reshape(n_samples, n, *losses.shape[1:]).mean(dim=0)

    def _of_draw(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.loss is not None:
            losses = self.loss(logits, target)
            if not isinstance(losses, Tensor) or losses.ndim == 0 or len(losses) != len(target):
                found = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
                raise MismatchedArgumentsError(
                    f"loss returned {found} for {len(target)} examples; wanted a loss for each. Torch's losses take "
                    'reduction="none".'
                )
            return losses.unsqueeze(-1)
        wanted = logits.shape if target.is_floating_point() else logits[:, 0].shape
        if target.shape != wanted:
            raise MismatchedArgumentsError(
                f"The target has shape {tuple(target.shape)}; wanted {tuple(wanted)}, as the logits have "
                f"{tuple(logits.shape)}."
            )
        if not target.is_floating_point():
            self._assert_classes(target, logits.shape[1])
        return F.cross_entropy(logits, target, reduction="none", ignore_index=self.ignore_index).unsqueeze(-1)

    def _assert_classes(self, target: Tensor, n_classes: int) -> None:
        wrong = target[(target != self.ignore_index) & ((target < 0) | (target >= n_classes))]
        if wrong.numel():
            raise TargetIndexError(
                f"target holds {int(wrong[0])}; wanted classes from 0 to {n_classes - 1}, or {self.ignore_index} to "
                "ignore one."
            )

    def _nats(self, name: str, kl: Tensor, target: Tensor) -> Tensor:
        """Information of each example, (N,)."""
        if kl.ndim < 2 or len(kl) != len(target):
            raise MismatchedArgumentsError(
                f"{name} has shape {tuple(kl.shape)}; wanted ({len(target)}, ..., K): the bottleneck's {name}, one for "
                "each example and code."
            )
        return kl.flatten(1).sum(dim=1) * (math.log(2.0) if self.unit == "bits" else 1.0)


def mean_probabilities(logits: Tensor, log: bool = False) -> Tensor:
    r"""Average the predicted *probabilities* over the draws of a bottleneck.

    That is the prediction of the model as a whole, q(y|x) = E_z q(y|z); the average of the logits is not.

    Args:
        logits (Tensor): (n_samples, N, C, \*).
        log (bool, optional): return their logarithms, which have gradients also where a probability rounds to 0 or 1.
            Default: False.

    Returns:
        Tensor: probabilities, (N, C, \*), with gradients.

    Raises:
        MismatchedArgumentsError: no axis of draws.

    Examples::

        >>> mean_probabilities(torch.tensor([[[0.0, 0.0]], [[0.0, 100.0]]]))
        tensor([[0.2500, 0.7500]])
    """
    if logits.ndim < 3:
        raise MismatchedArgumentsError(
            f"logits have shape {tuple(logits.shape)}; wanted (n_samples, N, C, ...), as a model gives them inside of "
            "bottleneck.sampling(n_samples)."
        )
    if not log:
        return torch.softmax(logits, dim=2).mean(dim=0)
    return torch.log_softmax(logits, dim=2).logsumexp(dim=0) - math.log(len(logits))
