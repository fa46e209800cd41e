"""How much of an attribution lies inside the object's bounding box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_iba.errors import InvalidArgumentError, InvalidTypeError
from captum_iba.metrics._accumulate import Accumulator
from captum_iba.metrics._maps import assert_finite_maps, resized
from captum_iba.metrics._result import MetricResult, assert_defined

_EMPTY = "the mask is empty"


@dataclass(frozen=True)
class BoundingBoxResult(MetricResult):
    """Bounding-box ratios and what else the masks tell.

    Attributes:
        per_sample (Tensor): (N,), share of the n highest pixels that lie inside the mask of n pixels.
        mass_ratio (Tensor): (N,), share of the positive attribution that lies inside the mask; NaN without any.
        pointing_game (Tensor): (N,), probability that a highest pixel lies inside.
        effective_heat_ratio (Tensor): (N,), mean over thresholds of the share, among the pixels above a quantile of
            the heat, of the heat inside (InputIBA's EHR).
        coverage (Tensor): (N,), share of the image that the mask covers: what a random map scores.
    """

    mass_ratio: Tensor
    pointing_game: Tensor
    effective_heat_ratio: Tensor
    coverage: Tensor


def boxes_to_mask(boxes: Tensor | Sequence[Sequence[float]], size: tuple[int, int]) -> Tensor:
    """Draw the union of an image's boxes.

    Args:
        boxes (Tensor or sequence): (n, 4), half-open pixel boxes x0, y0, x1, y1 in the image that the model sees: crop
            and resize boxes as the image. Parts outside the image are cut off. n may be 0.
        size (tuple[int, int]): (H, W).

    Returns:
        Tensor: bool, (H, W).

    Raises:
        InvalidArgumentError: not four finite numbers a box, or an end before its start.

    Examples::

        >>> boxes_to_mask([[0, 0, 2, 1]], (2, 3)).int().tolist()
        [[1, 1, 0], [0, 0, 0]]
    """
    mask = torch.zeros(size, dtype=torch.bool, device="cpu")
    for index, (x0, y0, x1, y1) in enumerate(_edges(boxes).round().tolist()):
        if x1 < x0 or y1 < y0:
            raise InvalidArgumentError(f"boxes[{index}] = {[x0, y0, x1, y1]} ends before it starts.")
        mask[_within(y0, y1, size[0]), _within(x0, x1, size[1])] = True
    return mask


def _edges(boxes: object) -> Tensor:
    """The boxes as numbers, (n, 4)."""
    try:
        edges = torch.as_tensor(boxes, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgumentError(f"boxes={boxes!r}; wanted four numbers a box, (n, 4).") from error
    if edges.ndim in (1, 2) and len(edges) == 0:
        return edges.view(0, 4)
    if edges.ndim != 2 or edges.shape[1] != 4:
        raise InvalidArgumentError(f"boxes has shape {list(edges.shape)}; wanted four numbers a box, (n, 4).")
    if not torch.isfinite(edges).all():
        raise InvalidArgumentError(f"boxes={edges.tolist()} contains NaN or infinity.")
    return edges


def _within(start: float, end: float, size: int) -> slice:
    return slice(*(int(min(max(edge, 0), size)) for edge in (start, end)))


def bounding_box_ratio(attributions: Tensor, masks: Tensor) -> BoundingBoxResult:
    """Share of an image's n most relevant pixels that lie inside its bounding boxes of n pixels.

    Ties are counted by their expected value under random order, so that a constant map scores the boxes' share of the
    image rather than what the memory layout makes of it.

    The result's ``mass_ratio`` counts positive attribution only: negative values speak against the class, and with
    them the shares inside and outside could cancel out and leave the range from 0 to 1. A few extreme pixels decide
    it, so the paper prefers the ratio.

    Args:
        attributions (Tensor): (N, C, h, w), channels being summed; (N, h, w); or (N, T) for tokens. Maps of another
            size than the masks are resized bilinearly.
        masks (Tensor): (N, H, W) or (N, 1, H, W), or (N, T); nonzero inside. They are moved to the attributions'
            device, on which the result lies too.

    Returns:
        BoundingBoxResult: values for each example; NaN, with a warning, where a mask is empty.

    Raises:
        InvalidArgumentError: shapes that do not fit, or no mask that is not empty.
        NonFiniteError: NaN or infinity in the maps.

    Reference:
        Schulz et al. 2020, section 4.4.

    Examples::

        >>> masks = boxes_to_mask([[1, 1, 3, 3]], (4, 4))[None]
        >>> bounding_box_ratio(masks.float(), masks).mean
        1.0
        >>> bounding_box_ratio(torch.zeros(1, 4, 4), masks).mean
        0.25
    """
    _assert_tensors(attributions=attributions, masks=masks)
    masks = _as_masks(masks).to(attributions.device)
    maps = _as_maps(attributions, masks)
    values, inside = maps.flatten(1).double(), masks.flatten(1)
    n = inside.sum(dim=1)
    ratio = torch.where(n > 0, _top_share(values, inside, n.clamp_min(1)), float("nan"))
    pointing = torch.where(n > 0, _top_share(values, inside, torch.ones_like(n)), float("nan"))
    heat = values.clamp_min(0)
    total = heat.sum(dim=1)
    mass = torch.where((n > 0) & (total > 0), (heat * inside).sum(dim=1) / total.clamp_min(1e-300), float("nan"))
    effective = torch.stack([_effective_heat(h, m) for h, m in zip(heat, inside, strict=True)])
    result = BoundingBoxResult(ratio, mass, pointing, effective, inside.double().mean(dim=1))
    assert_defined(result, "bounding_box_ratio", _EMPTY)
    return result


def _assert_tensors(**tensors: object) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise InvalidTypeError(f"{name} is a {type(tensor).__name__}; wanted a tensor.")


def _as_masks(masks: Tensor) -> Tensor:
    if masks.ndim == 4 and masks.shape[1] == 1:
        masks = masks[:, 0]
    if masks.ndim not in (2, 3) or masks.shape[0] == 0:
        raise InvalidArgumentError(f"masks has shape {list(masks.shape)}; wanted (N, H, W), (N, 1, H, W) or (N, T).")
    return masks != 0


def _as_maps(attributions: Tensor, masks: Tensor) -> Tensor:
    """One map an example, of the masks' size."""
    maps = attributions.detach()
    assert_finite_maps(maps)
    if maps.ndim == 4:
        maps = maps.sum(dim=1)
    fits = maps.ndim == masks.ndim and maps.shape[0] == masks.shape[0] and (maps.ndim == 3 or maps.shape == masks.shape)
    if not fits:
        raise InvalidArgumentError(
            f"attributions of shape {list(attributions.shape)} do not fit masks of shape {list(masks.shape)}; wanted "
            "one map (N, h, w) or (N, C, h, w) for each mask (N, H, W), or (N, T) for both."
        )
    if maps.shape == masks.shape:
        return maps
    return resized(maps.double()[:, None], (masks.shape[1], masks.shape[2]))[:, 0]


def _top_share(values: Tensor, inside: Tensor, n: Tensor) -> Tensor:
    """Expected share inside of each row's n highest values."""
    threshold = values.sort(dim=1, descending=True).values.gather(1, (n - 1)[:, None])
    above, equal = values > threshold, values == threshold
    rest = n - above.sum(dim=1)
    ties = rest.double() * (equal & inside).sum(dim=1) / equal.sum(dim=1)
    return ((above & inside).sum(dim=1) + ties) / n.double()


def _effective_heat(heat: Tensor, inside: Tensor) -> Tensor:
    """Zhang et al. 2021: heat scaled to one and cut at 0.1; mean over quantiles of heat inside by pixels above."""
    if not inside.any() or not heat.any():
        return heat.new_tensor(float("nan"))
    heat = heat / heat.max()
    heat = torch.where(heat < 0.1, torch.zeros_like(heat), heat)
    remaining = heat[heat > 0]
    quantiles = torch.linspace(0, 1, 11, dtype=torch.float64, device=heat.device)
    thresholds = torch.quantile(remaining, quantiles).clamp_max(0.99 * float(heat.max()))
    ratios = torch.stack([(heat * inside)[heat > t].sum() / (heat > t).sum() for t in thresholds])
    return torch.trapezoid(ratios, quantiles)


class BoundingBox(Accumulator[BoundingBoxResult]):
    """Bounding-box ratio over batches, like Captum's ``AttackComparator``: evaluate, summary, reset.

    Examples::

        >>> metric = BoundingBox()
        >>> masks = boxes_to_mask([[0, 0, 2, 4]], (4, 4))[None]
        >>> for maps in (masks.float(), -masks.float()):
        ...     _ = metric.evaluate(maps, masks)
        >>> metric.summary().per_sample.tolist()
        [1.0, 0.0]
    """

    name = "bounding box"
    higher_is_better = True

    def evaluate(self, attributions: Tensor, masks: Tensor) -> BoundingBoxResult:
        """:func:`bounding_box_ratio` of a batch, which :meth:`summary` will include."""
        return self._add_defined(lambda: bounding_box_ratio(attributions, masks))

    def summary(self) -> BoundingBoxResult:
        """All examples since the start or the last :meth:`reset`, in order.

        Raises:
            InvalidArgumentError: nothing was evaluated, or no mask has a box.
        """
        results = self._all()
        fields = ("per_sample", "mass_ratio", "pointing_game", "effective_heat_ratio", "coverage")
        summary = BoundingBoxResult(*(torch.cat([getattr(result, field) for result in results]) for field in fields))
        assert_defined(summary, "bounding_box_ratio", _EMPTY)
        return summary
