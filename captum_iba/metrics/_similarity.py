"""How alike two batches of heat maps are, one value an example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from captum_iba.errors import InvalidArgumentError, InvalidTypeError
from captum_iba.metrics._maps import resized
from captum_iba.metrics._ssim import normalize_maps, ssim

SimilarityFunc: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Similarity: TypeAlias = Literal["ssim", "spearman"] | SimilarityFunc


def resolve_similarity(similarity: Similarity, sign_invariant: bool) -> SimilarityFunc:
    """Turn the argument into a function of two batches of maps.

    Args:
        similarity (str or Callable): ``"ssim"``, of normalised maps; ``"spearman"``; or a function.
        sign_invariant (bool): take the larger value of the second map and of its negative.

    Raises:
        InvalidArgumentError: another name, or (when called) a function that does not return (N,).
    """
    function = _function_of(similarity)

    def compare(a: Tensor, b: Tensor) -> Tensor:
        values = _checked(function(a, b), len(a))
        return torch.maximum(values, _checked(function(a, -b), len(a))) if sign_invariant else values

    return compare


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Rank correlation of each pair of maps, equal values sharing their mean rank.

    Args:
        a (Tensor): (N, ...).
        b (Tensor): the same shape.

    Returns:
        Tensor: (N,), float64; exactly 1 for equal maps, NaN where one of the two is constant.

    Examples::

        >>> spearman(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[-3.0, -4.0, -5.0]])).tolist()
        [-1.0]
    """
    x, y = _centred_ranks(a.flatten(1)), _centred_ranks(b.flatten(1))
    # the root of a square gives back the number, so that equal maps score 1 without rounding
    return (x * y).sum(dim=1) / ((x * x).sum(dim=1) * (y * y).sum(dim=1)).sqrt()


def comparable_maps(attributions: object, inputs: Sequence[Tensor]) -> Tensor:
    """One map an example, of the inputs' size.

    Args:
        attributions: (N, C, h, w), channels being summed; (N, h, w), resized bilinearly to the last two axes of the
            first input of four axes; or (N, T).
        inputs (Sequence[Tensor]): (N, ...) each.

    Returns:
        Tensor: float64, (N, H, W) or (N, T).

    Raises:
        InvalidTypeError: no tensor.
        InvalidArgumentError: another shape.
    """
    if not isinstance(attributions, Tensor):
        raise InvalidTypeError(f"attribute_func returned a {type(attributions).__name__}; wanted one Tensor of maps.")
    maps = attributions.detach().to(torch.float64, copy=True)
    if maps.ndim == 4:
        maps = maps.sum(dim=1)
    if maps.ndim not in (2, 3) or len(maps) != len(inputs[0]) or maps.numel() == 0:
        raise InvalidArgumentError(
            f"attribute_func returned shape {list(attributions.shape)} for {len(inputs[0])} examples; wanted "
            f"({len(inputs[0])}, H, W), ({len(inputs[0])}, C, H, W) or, for tokens, ({len(inputs[0])}, T)."
        )
    size = next((tensor.shape[2:] for tensor in inputs if tensor.ndim == 4), None)
    if maps.ndim == 2 or size is None or maps.shape[1:] == size:
        return maps
    return resized(maps[:, None], tuple(size))[:, 0]


def _centred_ranks(values: Tensor) -> Tensor:
    ordered, values = values.sort(dim=1).values.contiguous(), values.contiguous()
    below = torch.searchsorted(ordered, values)
    not_above = torch.searchsorted(ordered, values, right=True)
    return (below + not_above - values.shape[1]).double() / 2


def _normalized_ssim(a: Tensor, b: Tensor) -> Tensor:
    return ssim(normalize_maps(a), normalize_maps(b))


def _function_of(similarity: Similarity) -> SimilarityFunc:
    if callable(similarity):
        return similarity
    known: dict[str, SimilarityFunc] = {"ssim": _normalized_ssim, "spearman": spearman}
    if similarity not in known:
        raise InvalidArgumentError(
            f"similarity={similarity!r}; wanted 'ssim', 'spearman' or a function (a, b) -> (N,) of two batches of maps."
        )
    return known[similarity]


def _checked(values: object, n: int) -> Tensor:
    if not isinstance(values, Tensor):
        raise InvalidTypeError(f"similarity returned a {type(values).__name__}; wanted a Tensor of shape [{n}].")
    if values.shape != (n,):
        raise InvalidArgumentError(
            f"similarity returned shape {list(values.shape)}; wanted one value for each of the {n} pairs of maps."
        )
    return values.detach().double().cpu()
