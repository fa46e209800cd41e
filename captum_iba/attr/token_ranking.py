"""Settings of LayerIBA for ranking the tokens of a text."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

TOKEN_RANKING: Mapping[str, Any] = MappingProxyType(
    {
        "mask_granularity": "token",
        "objective": "log_odds",
        "beta": 100.0,
        "n_steps": 20,
        "learning_rate": 0.5,
    }
)
"""Arguments of :meth:`LayerIBA.attribute` that rank tokens best, at the output of the embeddings.

One lambda a token sums up what all its hidden units say, where one for each unit follows the sign of many small slopes.
The log-odds keep their slope where the network is sure. Half the learning rate for twice the steps sees more noise.
They were chosen by token degradation on training sentences (``python -m benchmarks.text choose``). ``beta`` is so large
as log-odds are; it decides how many bits there are, and hardly their order.

Examples::

    >>> import torch
    >>> from captum_iba import LayerIBA
    >>> from captum_iba.attr import TOKEN_RANKING
    >>> model = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Flatten(), torch.nn.Linear(20, 2)).eval()
    >>> ids = torch.randint(9, (500, 5))
    >>> LayerIBA(model, model[0]).estimate(ids).attribute(ids[:2], target=1, **TOKEN_RANKING).shape
    torch.Size([2, 5, 1])
"""
