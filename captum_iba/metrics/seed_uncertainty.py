"""How sure an explanation is of itself: the same bottleneck under other noise."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_iba._captum import (
    ExpansionTypes,
    TargetType,
    _expand_additional_forward_args,
    _expand_target,
    _format_additional_forward_args,
    _format_tensor_into_tuples,
)
from captum_iba.errors import InvalidArgumentError, InvalidTypeError
from captum_iba.metrics._result import MetricResult, as_seed
from captum_iba.metrics._similarity import spearman
from captum_iba.metrics._units import Tensors

if TYPE_CHECKING:
    from captum_iba.attr import LayerIBA


@dataclass(frozen=True)
class SeedUncertaintyResult(MetricResult):
    """Attributions over several seeds.

    Attributes:
        per_sample (Tensor): (N,), rank stability: Spearman's correlation of the maps of two seeds, mean over all
            pairs; 1 where every seed ranks alike. NaN for a map that is constant.
        maps (Tensor): (k, N, ...), the attributions of each seed.
        mean_map (Tensor): (N, ...), their mean, an attribution with less noise than one seed's.
        stderr_map (Tensor): (N, ...), standard error of that mean, in the attributions' unit.
    """

    maps: Tensor
    mean_map: Tensor
    stderr_map: Tensor


def seed_uncertainty(
    method: LayerIBA,
    inputs: Tensors,
    target: TargetType = None,
    additional_forward_args: object | None = None,
    *,
    n_seeds: int = 5,
    seed: int = 0,
    **kwargs: Any,
) -> SeedUncertaintyResult:
    """Attribute under several seeds in one batched call.

    Args:
        method (LayerIBA): the bottleneck.
        inputs (Tensor or tuple[Tensor, ...]): as for :meth:`LayerIBA.attribute`.
        target (int, tuple, Tensor or list, optional): as in Captum. Default: None.
        additional_forward_args (Any, optional): as in Captum. Default: None.
        n_seeds (int, optional): number of seeds, at least 2. Default: 5.
        seed (int, optional): the first one; the others follow. Default: 0.
        **kwargs (Any): further arguments of :meth:`LayerIBA.attribute`.

    Returns:
        SeedUncertaintyResult: mean and standard error of each position, and how stable the ranking is.

    Raises:
        InvalidTypeError: ``method`` attributes nothing or takes no seed, or its attributions are no tensor.
        InvalidArgumentError: fewer than two seeds.
        CaptumIBAError: as :meth:`LayerIBA.attribute`.

    Examples::

        >>> from torch import nn
        >>> from captum_iba import LayerIBA
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 3)).eval()
        >>> x = torch.randn(1000, 1, 8, 8)
        >>> result = seed_uncertainty(LayerIBA(model, model[0]).estimate(x), x[:2], target=0, n_seeds=3)
        >>> result.maps.shape, result.mean_map.shape
        (torch.Size([3, 2, 1, 8, 8]), torch.Size([2, 1, 8, 8]))
    """
    _assert_takes_seeds(method)
    as_seed(seed)
    if type(n_seeds) is not int or n_seeds < 2:
        raise InvalidArgumentError(f"n_seeds={n_seeds!r}; wanted an integer of at least 2.")
    tensors = _format_tensor_into_tuples(inputs)
    repeated = tuple(torch.cat([tensor] * n_seeds) for tensor in tensors)
    maps = method.attribute(
        repeated if isinstance(inputs, tuple) else repeated[0],
        _expand_target(target, n_seeds, expansion_type=ExpansionTypes.repeat),
        _expand_additional_forward_args(
            _format_additional_forward_args(additional_forward_args), n_seeds, expansion_type=ExpansionTypes.repeat
        ),
        seed=[seed + k for k in range(n_seeds)],
        **kwargs,
    )
    if not isinstance(maps, Tensor):
        raise InvalidTypeError(
            f"{type(method).__name__}.attribute returned a {type(maps).__name__}; wanted a tensor. Leave out "
            "return_diagnostics."
        )
    maps = maps.view(n_seeds, -1, *maps.shape[1:])
    pairs = [spearman(maps[a], maps[b]) for a, b in combinations(range(n_seeds), 2)]
    return SeedUncertaintyResult(
        per_sample=torch.stack(pairs).mean(dim=0),
        maps=maps,
        mean_map=maps.mean(dim=0),
        stderr_map=maps.std(dim=0) / n_seeds**0.5,
    )


def _assert_takes_seeds(method: object) -> None:
    attribute = getattr(method, "attribute", None)
    parameters = inspect.signature(attribute).parameters.values() if callable(attribute) else ()
    if not any(p.name == "seed" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        raise InvalidTypeError(
            f"method is a {type(method).__name__}; wanted a LayerIBA, or another attribution method whose attribute() "
            "takes seed=[...]."
        )
