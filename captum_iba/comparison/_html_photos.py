"""Photos and heat maps of the page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from PIL import Image

from captum_iba.comparison._palette import IN_FRONT
from captum_iba.comparison._text import number_text, probability_text
from captum_iba.comparison._types import ExampleInfo, HeatMap, MethodInfo, Results
from captum_iba.errors import InvalidArgumentError
from captum_iba.visualization import COLORMAP

# Longest side of a map: the photo shows it smoothly enlarged. With many maps, all of them together hold this many
# pixels, about 10 MB as PNG in base 64.
LONGEST = 112
_SHORTEST_LIMIT = 28
_ALL_PIXELS = 7_500_000


@dataclass(frozen=True)
class Photo:
    """One photo: ``boxes`` are x, y, width and height."""

    title: str
    target: str
    predicted: str
    probability: str
    source: str
    width: int
    height: int
    boxes: list[list[float]]


def methods_with_maps(results: Results) -> list[MethodInfo]:
    """Methods with a map of at least one example, in order."""
    return [info for info in results.methods if results.maps.get(info.name)]


def opening_place(methods: Sequence[MethodInfo]) -> int:
    """Whose maps the page opens with: LayerIBA, or the first that is not random.

    Examples::

        >>> methods = [MethodInfo(name, "", "") for name in ("Random", "Saliency", "LayerIBA")]
        >>> opening_place(methods), opening_place(methods[:2]), opening_place(methods[:1])
        (2, 1, 0)
    """
    names = [info.name for info in methods]
    if IN_FRONT in names:
        return names.index(IN_FRONT)
    return next((place for place, name in enumerate(names) if name != "Random"), 0)


def photos(results: Results) -> list[Photo]:
    """Examples whose photo was kept.

    Raises:
        InvalidArgumentError: a photo that cannot be read.
    """
    return [_photo(example) for example in results.examples if example.photo]


def _photo(example: ExampleInfo) -> Photo:
    width, height = photo_size(example)
    boxes = np.zeros((0, 4)) if example.boxes is None else np.asarray(example.boxes, float)
    corners = [[round(float(v), 2) for v in (x0, y0, x1 - x0, y1 - y0)] for x0, y0, x1, y1 in boxes]
    source = "data:image/jpeg;base64," + base64.b64encode(example.photo).decode()
    probability = probability_text(example.probability)
    return Photo(example.key, example.target, example.predicted, probability, source, width, height, corners)


def photo_size(example: ExampleInfo) -> tuple[int, int]:
    """Width and height of an example's photo.

    Raises:
        InvalidArgumentError: it cannot be read.
    """
    try:
        with Image.open(io.BytesIO(example.photo)) as photo:
            return int(photo.width), int(photo.height)
    except OSError as error:
        raise InvalidArgumentError(f"The photo of {example.key!r} cannot be read: {error}. Wanted JPEG.") from error


def encoded_maps(results: Results) -> list[list[list[str] | None]]:
    """Maps of the methods that have some, as palette PNG.

    Returns:
        list: for each method, for each photo ``[PNG in base 64, low, high]``, or None without a map.
    """
    keys = [example.key for example in results.examples if example.photo]
    found = [[results.maps[info.name].get(key) for key in keys] for info in methods_with_maps(results)]
    side = longest_side(sum(one is not None for row in found for one in row))
    palette = viridis().tobytes()
    return [[None if one is None else _encoded(one, side, palette) for one in row] for row in found]


def longest_side(n_maps: int) -> int:
    """Most pixels of a map's longer side, so that the page stays small.

    Examples::

        >>> longest_side(40 * 14), longest_side(200 * 14)
        (112, 51)
    """
    return max(_SHORTEST_LIMIT, min(LONGEST, math.isqrt(_ALL_PIXELS // max(1, n_maps))))


def viridis() -> npt.NDArray[np.uint8]:
    """The palette of heat maps, (256, 3)."""
    colours: npt.NDArray[np.uint8] = colormaps[COLORMAP](np.arange(256), bytes=True)[:, :3]
    return np.ascontiguousarray(colours)


def _encoded(heatmap: HeatMap, side: int, palette: bytes) -> list[str]:
    picture = Image.fromarray(np.ascontiguousarray(heatmap.levels, dtype=np.uint8))
    scale = side / max(picture.size)
    if scale < 1:
        width, height = (max(1, round(scale * length)) for length in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BOX)  # the mean over an area
    indexed = Image.frombytes("P", picture.size, picture.tobytes())
    indexed.putpalette(palette)
    buffer = io.BytesIO()
    indexed.save(buffer, "PNG", optimize=True)
    text = base64.b64encode(buffer.getvalue()).decode()
    return [text, number_text(heatmap.low, 3), number_text(heatmap.high, 3)]
