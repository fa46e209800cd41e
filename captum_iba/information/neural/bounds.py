"""Variational bounds of mutual information as functions of a critic's scores.

A critic gives each pair of an x and a y a score. All functions take the scores of n examples as a matrix (..., n, n):
row i belongs to x_i, column j to y_j; on the diagonal stand the pairs as they were drawn (the joint distribution), off
it those of different examples (the product of the marginals). They return nats, one value for each matrix.

The best critic of all of them is the log-ratio ln p(x, y) / (p(x) p(y)), where DV and NWJ equal the mutual information.

* DV, Donsker and Varadhan: Belghazi et al. 2018, "Mutual Information Neural Estimation", eq. 2.
* NWJ, Nguyen, Wainwright and Jordan 2010: the same paper, eq. 6 (f-divergence representation), with the exponent moved
  by one so that its best critic is the log-ratio plus 1.
* InfoNCE: van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding"; at most ln n.
* JS: the Jensen-Shannon objective of Hjelm et al. 2019, "Deep InfoMax"; it trains a log-ratio but is no information.
* SMILE: Song and Ermon 2020, "Understanding the Limitations of Variational Mutual Information Estimators"; no bound.

The ``*_terms`` functions give each example its own part, (..., n): their mean is the bound, and their deviation over
the root of n is its standard error. To first order an example contributes by its own score and, as a row and as a
column, by what it adds to the mean over products; leaving the latter out would understate the error of a poor critic.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus


def joint(scores: Tensor) -> Tensor:
    """Scores of the pairs as drawn, (..., n)."""
    return scores.diagonal(dim1=-2, dim2=-1)


def without_joint(scores: Tensor, fill: float) -> Tensor:
    """The scores with another number on the diagonal."""
    diagonal = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    return scores.masked_fill(diagonal, fill)


def log_mean_exp(scores: Tensor) -> Tensor:
    """Logarithm of the mean exponential over the products, (...,)."""
    n = scores.shape[-1]
    return without_joint(scores, -math.inf).flatten(-2).logsumexp(-1) - math.log(n * (n - 1))


def dv(scores: Tensor) -> Tensor:
    """Donsker-Varadhan: mean score of the joint minus the log-mean-exp of the products. Any constant cancels.

    Args:
        scores (Tensor): (..., n, n).

    Returns:
        Tensor: (...,), nats.

    Examples::

        >>> import torch
        >>> dv(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
        tensor(2.)
    """
    return joint(scores).mean(-1) - log_mean_exp(scores)


def nwj(scores: Tensor) -> Tensor:
    """Nguyen-Wainwright-Jordan: 1 + mean (f_ii - 1) - mean exp(f_ij - 1). Never above :func:`dv`."""
    return joint(scores).mean(-1) - (log_mean_exp(scores) - 1).exp()


def infonce(scores: Tensor) -> Tensor:
    """InfoNCE: how well each x finds its own y among the n; at most ln n."""
    return math.log(scores.shape[-1]) + (joint(scores) - scores.logsumexp(-1)).mean(-1)


def js(scores: Tensor) -> Tensor:
    """Jensen-Shannon objective, to train a critic that is then evaluated by :func:`dv` or :func:`nwj`."""
    n = scores.shape[-1]
    off_diagonal = without_joint(softplus(scores), 0.0).sum((-2, -1)) / (n * (n - 1))
    return -softplus(-joint(scores)).mean(-1) - off_diagonal


def smile(scores: Tensor, tau: float = 5.0) -> Tensor:
    """:func:`dv` with the scores of the products clamped to [-tau, tau]: less variance, and no bound any more."""
    return joint(scores).mean(-1) - log_mean_exp(scores.clamp(-tau, tau))


def mine(scores: Tensor, moving_mean: Tensor) -> Tensor:
    """What MINE climbs: its gradient is that of DV with the mean exponential in the denominator from past batches.

    Args:
        scores (Tensor): (..., n, n).
        moving_mean (Tensor): (...,), exponential moving average of exp(:func:`log_mean_exp`); a constant.
    """
    return joint(scores).mean(-1) - log_mean_exp(scores).exp() / moving_mean


def dv_terms(scores: Tensor) -> Tensor:
    """Each example's part of :func:`dv`, (..., n), float64."""
    scores = scores.double()
    return joint(scores) - _products_terms(scores)


def smile_terms(scores: Tensor, tau: float = 5.0) -> Tensor:
    """Each example's part of :func:`smile`, (..., n), float64."""
    scores = scores.double()
    return joint(scores) - _products_terms(scores.clamp(-tau, tau))


def nwj_terms(scores: Tensor) -> Tensor:
    """Each example's part of :func:`nwj`, (..., n), float64."""
    scores = scores.double()
    level = log_mean_exp(scores)[..., None]
    rows, columns = _shares(scores, level)
    return joint(scores) - (level - 1).exp() * (rows + columns - 1)


def js_terms(scores: Tensor) -> Tensor:
    """Each example's part of :func:`js`, (..., n), float64."""
    scores = scores.double()
    cost, others = without_joint(softplus(scores), 0.0), scores.shape[-1] - 1
    rows, columns = cost.sum(-1) / others, cost.sum(-2) / others
    return -softplus(-joint(scores)) - (rows + columns - rows.mean(-1, keepdim=True))


def infonce_terms(scores: Tensor) -> Tensor:
    """Each example's part of :func:`infonce`, (..., n), float64."""
    scores = scores.double()
    own = math.log(scores.shape[-1]) + joint(scores) - scores.logsumexp(-1)
    return own - (scores.softmax(-1).sum(-2) - 1)


def _products_terms(scores: Tensor) -> Tensor:
    level = log_mean_exp(scores)[..., None]
    rows, columns = _shares(scores, level)
    return level + (rows - 1) + (columns - 1)


def _shares(scores: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """Mean exponential of each row and each column of products, over that of all, (..., n): 1 on average."""
    weights = without_joint(scores - level[..., None], -math.inf).exp()
    others = scores.shape[-1] - 1
    return weights.sum(-1) / others, weights.sum(-2) / others
