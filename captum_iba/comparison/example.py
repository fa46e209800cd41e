"""What one example of a comparison is: what the model takes, and how it is explained, measured and shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import numpy as np
from torch import Tensor

from captum_iba.attr import tokens_to_map
from captum_iba.comparison._pictures import to_heat_map, to_jpeg
from captum_iba.comparison._types import Array, HeatMap
from captum_iba.errors import InvalidArgumentError

Kind: TypeAlias = Literal["image", "text"]
"""What an example is; methods and metrics say which they are for."""

KINDS: tuple[Kind, ...] = ("image", "text")
_THINGS: Mapping[Kind, str] = {"image": "images", "text": "text"}


def refusal(name: str, kinds: Sequence[Kind], kind: Kind) -> str:
    """Why a method or metric has nothing to say on examples of a kind.

    Examples::

        >>> refusal("Saliency", ("image",), "text")
        'Saliency is for images, not for text.'
    """
    return f"{name} is for {' and '.join(_THINGS[own] for own in kinds)}, not for {_THINGS[kind]}."


class AnyExample(Protocol):
    """One input of any kind, and what is known about it.

    Attributes:
        kind (str): ``"image"`` or ``"text"``.
        key (str): unique and stable.
        inputs (Tensor): as the model takes it, without the axis of the batch.
        target (int): class to explain.
        arguments (Mapping[str, Tensor]): further arguments of the model by their names, without the axis of the batch.
        baselines (Tensor or None): what stands for nothing at each place of the inputs; None where the metrics say it.
        feature_mask (Tensor or None): units of the inputs as integers, as in Captum; negative where nothing is ever
            removed. None where the metrics divide it.
        mask (Tensor or None): where the object is, on the inputs' grid.
        only_boxes (bool): serves the bounding-box metric alone.
    """

    kind: ClassVar[Kind]

    @property
    def key(self) -> str: ...  # noqa: D102

    @property
    def inputs(self) -> Tensor: ...  # noqa: D102

    @property
    def target(self) -> int: ...  # noqa: D102

    @property
    def arguments(self) -> Mapping[str, Tensor]: ...  # noqa: D102

    @property
    def baselines(self) -> Tensor | None: ...  # noqa: D102

    @property
    def feature_mask(self) -> Tensor | None: ...  # noqa: D102

    @property
    def mask(self) -> Tensor | None: ...  # noqa: D102

    @property
    def only_boxes(self) -> bool: ...  # noqa: D102

    @property
    def is_shown(self) -> bool:
        """Whether there is something to show of it, so that maps are worth keeping."""

    def details(self, pictured: bool) -> dict[str, Any]:
        """Further fields of :class:`ExampleInfo`; what is heavy is there only if ``pictured``."""

    def fitted(self, maps: Tensor) -> Tensor:
        """A method's map of it, (1, ...), in the form that metrics take.

        Raises:
            InvalidArgumentError: another shape.
        """

    def heat_map(self, maps: Tensor, unit: str) -> HeatMap:
        """A fitted map for display."""

    def ranked(self, maps: Tensor) -> Tensor:
        """The values of a fitted map that rank something, flat."""


@dataclass(frozen=True, eq=False)
class Example:
    """One image and what is known about it.

    Attributes:
        key (str): unique and stable: a file's path within its folder, or an index.
        inputs (Tensor): (C, H, W), as the model takes it.
        target (int): class to explain.
        boxes (Tensor or None): (n, 4), float; half-open pixel boxes x0, y0, x1, y1 on the inputs' grid.
        mask (Tensor or None): (H, W), bool; where the object is.
        display (Tensor or None): (1, H, W) or (3, H, W), de-normalised, from 0 to 1.
        only_boxes (bool): serves the bounding-box metric alone.
    """

    kind: ClassVar[Kind] = "image"
    key: str
    inputs: Tensor
    target: int
    boxes: Tensor | None = None
    mask: Tensor | None = None
    display: Tensor | None = None
    only_boxes: bool = False
    arguments: Mapping[str, Tensor] = field(default_factory=dict, init=False)
    baselines: Tensor | None = field(default=None, init=False)
    feature_mask: Tensor | None = field(default=None, init=False)

    @property
    def is_shown(self) -> bool:
        """See :class:`AnyExample`."""
        return self.display is not None

    def details(self, pictured: bool) -> dict[str, Any]:
        """Photo and boxes, see :class:`AnyExample`."""
        photo = to_jpeg(self.display) if pictured and self.display is not None else b""
        return {"photo": photo, "boxes": self._drawn_boxes()}

    def _drawn_boxes(self) -> Array | None:
        """Boxes to draw: the example's own, or the one around its mask."""
        if self.boxes is not None:
            drawn: Array = self.boxes.double().cpu().numpy()
            return drawn
        if self.mask is None:
            return None
        rows, columns = (self.mask.any(dim=axis).nonzero().flatten().tolist() for axis in (1, 0))
        return np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], dtype=np.float64)

    def fitted(self, maps: Tensor) -> Tensor:
        """(1, C, h, w), see :class:`AnyExample`."""
        if maps.ndim == 3:
            size = (self.inputs.shape[1], self.inputs.shape[2])
            is_tokens = maps.shape[2] == 1 < min(maps.shape[1], size[1])
            maps = tokens_to_map(maps, image_size=size).map if is_tokens else maps.unsqueeze(1)
        if maps.ndim != 4 or len(maps) != 1 or maps.numel() == 0:
            raise InvalidArgumentError(
                f"The method returned {list(maps.shape)}; wanted maps (1, C, h, w) for {[1, *self.inputs.shape]}."
            )
        return maps

    def heat_map(self, maps: Tensor, unit: str) -> HeatMap:
        """At most 112 positions a side, see :class:`AnyExample`."""
        return to_heat_map(maps, unit, (self.inputs.shape[1], self.inputs.shape[2]))

    def ranked(self, maps: Tensor) -> Tensor:
        """Sums over the channels, see :class:`AnyExample`."""
        return maps.sum(dim=1).flatten()
