"""Cluttered canvases: one whole handwritten digit among fragments of other digits.

A canvas is drawn from three layers of grey, where 0 is the black background and 1 is full ink: the digit, the clutter
and the noise. The images that a network gets are centred and scaled, ``(grey - GREY_MEAN) / GREY_STD``, so that over
many canvases they have about zero mean and unit variance; :func:`to_display` turns them back into greys.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from captum_iba.errors import InvalidArgumentError, InvalidTypeError, MissingDependencyError

Split: TypeAlias = Literal["train", "test"]
Grey: TypeAlias = npt.NDArray[np.float32]

SIZE = 64
"""Height and width of a canvas in pixels."""

GREY_MEAN = 0.1
"""The grey that the centred images call zero: about the mean grey of a canvas."""

GREY_STD = 0.24
"""The grey step that the scaled images call one: about the standard deviation of a canvas."""

# The data set keeps its writers together, so that cutting it once (rather than dealing the digits out in turn) makes
# most of the test digits come from hands that no training digit came from.
_TRAIN_DIGITS = 1297
_DIGIT_SIDES = (18, 26)
_FRAGMENT_COUNTS = (8, 12)
_FRAGMENT_SIDES = (5, 9)
# Paler ink than this cannot be told from the noise by eye; it is wiped, so that "visible" means "not zero".
_VISIBLE = 0.1
# Free pixels between the digit's box and the clutter, so that the digit does not seem to grow extra strokes.
_GAP = 2
_NOISE_STD = 0.04


@dataclass(frozen=True, eq=False)
class Canvases:
    """A batch of canvases and the truth about them.

    Attributes:
        images: Centred and scaled canvases, float32, of shape (n, 1, 64, 64).
        labels: The digits 0 to 9 that the canvases show, int64, of shape (n,).
        boxes: The pixel boxes x0, y0, x1, y1 (x1 and y1 excluded) that tightly bound the visible ink of the digits,
            int64, of shape (n, 4).

    Examples::

        >>> from captum_iba.demo.data import load_canvases
        >>> canvases = load_canvases("train", n=3)
        >>> canvases.images.shape, canvases.labels.shape, canvases.boxes.shape
        (torch.Size([3, 1, 64, 64]), torch.Size([3]), torch.Size([3, 4]))
    """

    images: Tensor
    labels: Tensor
    boxes: Tensor

    def __len__(self) -> int:
        """Count the canvases."""
        return self.images.shape[0]


class _Layers(NamedTuple):
    """What one canvas is made of; ``sources`` are rows of the data set, first the digit's, then the fragments'."""

    digit: Grey
    clutter: Grey
    noise: Grey
    label: int
    box: tuple[int, int, int, int]
    sources: tuple[int, ...]


def load_canvases(split: Split, n: int, seed: int = 0) -> Canvases:
    """Draw cluttered canvases, the same ones for the same arguments.

    Every canvas has a random generator of its own, so that the first canvases of a long draw are those of a short
    draw. The global random states are neither used nor changed.

    Args:
        split: ``"train"`` or ``"test"``; no handwritten digit is used in both.
        n: How many canvases to draw, at least 1.
        seed: Which canvases to draw, 0 or more.

    Returns:
        The images, the labels and the boxes of the digits.

    Raises:
        InvalidArgumentError: The split is unknown, n is below 1, or the seed is negative.
        InvalidTypeError: n or seed is not an int.
        MissingDependencyError: scikit-learn, which holds the handwritten digits, is not installed.

    Examples::

        >>> from captum_iba.demo.data import load_canvases
        >>> short, long = load_canvases("test", n=2, seed=5), load_canvases("test", n=4, seed=5)
        >>> bool((short.images == long.images[:2]).all())
        True
    """
    if split not in get_args(Split):
        raise InvalidArgumentError(f"split is {split!r}, but must be 'train' or 'test'.")
    _check_int("n", n, least=1)
    _check_int("seed", seed, least=0)
    images = np.empty((n, 1, SIZE, SIZE), dtype=np.float32)
    labels, boxes = np.empty(n, dtype=np.int64), np.empty((n, 4), dtype=np.int64)
    for index in range(n):
        layers = _draw_layers(split, seed, index)
        images[index, 0] = np.maximum(layers.digit, layers.clutter) + layers.noise
        labels[index], boxes[index] = layers.label, layers.box
    images = (images - np.float32(GREY_MEAN)) / np.float32(GREY_STD)
    return Canvases(torch.from_numpy(images), torch.from_numpy(labels), torch.from_numpy(boxes))


def to_display(images: Tensor) -> Tensor:
    """Turn centred and scaled images back into greys for plotting.

    Args:
        images: Images as in :class:`Canvases`, of any shape.

    Returns:
        The greys, from 0 (background) to 1 (full ink), in the same shape; noise beyond these ends is cut off.

    Examples::

        >>> from captum_iba.demo.data import load_canvases, to_display
        >>> greys = to_display(load_canvases("test", n=1).images)
        >>> 0 <= greys.min().item() < greys.max().item() <= 1
        True
    """
    return (images * GREY_STD + GREY_MEAN).clamp(0, 1)


def _check_int(name: str, value: int, least: int) -> None:
    """Refuse everything but a whole number that is large enough."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidTypeError(f"{name} is {value!r} of type {type(value).__name__}, but must be an int.")
    if value < least:
        raise InvalidArgumentError(f"{name} is {value}, but must be at least {least}.")


@lru_cache(maxsize=1)
def _all_digits() -> tuple[Grey, npt.NDArray[np.int64]]:
    """Read the handwritten digits as greys with an empty rim, (1797, 10, 10), and their labels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependencyError(
            "The demo canvases are made of scikit-learn's handwritten digits, but scikit-learn cannot be imported. "
            "Install it with: pip install captum_iba[demo]"
        ) from error
    values, labels = load_digits(return_X_y=True)
    greys = values.reshape(-1, 8, 8).astype(np.float32) / 16
    # The rim lets strokes at the edge of the 8x8 raster fade out instead of ending in a straight cut.
    return np.pad(greys, ((0, 0), (1, 1), (1, 1))), labels.astype(np.int64)


def _split_rows(split: Split) -> range:
    """Name the rows of the data set that belong to a split."""
    count = len(_all_digits()[1])
    return range(_TRAIN_DIGITS) if split == "train" else range(_TRAIN_DIGITS, count)


def _draw_layers(split: Split, seed: int, index: int) -> _Layers:
    """Draw one canvas in separate layers, from nothing but these arguments."""
    rng = np.random.default_rng((get_args(Split).index(split), seed, index))
    rows = _split_rows(split)
    row = rows[int(rng.integers(len(rows)))]
    ink = _crop_margins(_upscale(_all_digits()[0][row], _between(rng, _DIGIT_SIDES)))
    height, width = ink.shape
    y0, x0 = int(rng.integers(SIZE - height + 1)), int(rng.integers(SIZE - width + 1))
    box = (x0, y0, x0 + width, y0 + height)
    digit = np.zeros((SIZE, SIZE), dtype=np.float32)
    digit[y0 : box[3], x0 : box[2]] = ink
    clutter, fragment_rows = _draw_clutter(rng, rows, row, box)
    noise = rng.standard_normal((SIZE, SIZE), dtype=np.float32) * np.float32(_NOISE_STD)
    return _Layers(digit, clutter, noise, int(_all_digits()[1][row]), box, (row, *fragment_rows))


def _draw_clutter(
    rng: np.random.Generator, rows: range, row: int, box: tuple[int, int, int, int]
) -> tuple[Grey, list[int]]:
    """Strew fragments of other digits around the box; also tell which rows they come from."""
    clutter = np.zeros((SIZE, SIZE), dtype=np.float32)
    used = []
    for _ in range(_between(rng, _FRAGMENT_COUNTS)):
        # A step of 1 to len - 1 around the circle of rows reaches every row but the digit's own.
        step = int(rng.integers(1, len(rows)))
        other = rows[(row - rows.start + step) % len(rows)]
        fragment = _cut_fragment(rng, _upscale(_all_digits()[0][other], _between(rng, _DIGIT_SIDES)))
        height, width = fragment.shape
        top, left = _place_outside(rng, height, width, box)
        patch = clutter[top : top + height, left : left + width]
        np.maximum(patch, fragment, out=patch)
        used.append(other)
    return clutter, used


def _between(rng: np.random.Generator, ends: tuple[int, int]) -> int:
    """Draw a whole number, both ends included."""
    return int(rng.integers(ends[0], ends[1] + 1))


@lru_cache(maxsize=64)
def _bilinear_weights(size: int, source: int) -> Grey:
    """Give the (size, source) matrix that stretches a line of pixels bilinearly, pixel centres on pixel centres."""
    centres = (np.arange(size) + 0.5) * source / size - 0.5
    distances = np.abs(centres[:, None] - np.arange(source)[None, :])
    weights: Grey = np.maximum(1 - distances, 0).astype(np.float32)
    return weights


def _upscale(image: Grey, side: int) -> Grey:
    """Enlarge a rimmed 10x10 digit such that its 8x8 core becomes ``side`` pixels wide; wipe invisible ink."""
    source = image.shape[0]
    weights = _bilinear_weights(round(side * source / (source - 2)), source)
    enlarged: Grey = np.matmul(np.matmul(weights, image), weights.T)
    enlarged[enlarged < _VISIBLE] = 0
    return enlarged


def _crop_margins(image: Grey) -> Grey:
    """Cut away the empty rows and columns around the ink."""
    rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _cut_fragment(rng: np.random.Generator, image: Grey) -> Grey:
    """Cut a small random piece out of an enlarged digit, around a pixel with strong ink so that it shows something."""
    strong = np.argwhere(image > 0.5 * image.max())
    y, x = strong[int(rng.integers(len(strong)))]
    height, width = _between(rng, _FRAGMENT_SIDES), _between(rng, _FRAGMENT_SIDES)
    top = int(np.clip(y - height // 2, 0, image.shape[0] - height))
    left = int(np.clip(x - width // 2, 0, image.shape[1] - width))
    return image[top : top + height, left : left + width]


def _place_outside(
    rng: np.random.Generator, height: int, width: int, box: tuple[int, int, int, int]
) -> tuple[int, int]:
    """Draw the top left corner of a patch that keeps off the box, evenly among all such corners."""
    x0, y0, x1, y1 = box
    free = np.ones((SIZE - height + 1, SIZE - width + 1), dtype=bool)
    free[max(0, y0 - _GAP - height + 1) : y1 + _GAP, max(0, x0 - _GAP - width + 1) : x1 + _GAP] = False
    # The box is far smaller than the canvas, so that some corner is always free.
    corners = np.flatnonzero(free)
    top, left = divmod(int(corners[int(rng.integers(len(corners)))]), free.shape[1])
    return top, left
