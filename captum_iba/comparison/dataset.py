"""The input side of a comparison: examples with their class, boxes and mask, loaded one at a time."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from captum_iba.comparison.example import AnyExample, Example
from captum_iba.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    MismatchedArgumentsError,
    UnreadableExampleError,
)
from captum_iba.metrics import boxes_to_mask

ToDisplay = Callable[[Tensor], Tensor]


class ExampleSet(Protocol):
    """What a comparison takes: keys that are known without reading the examples, and the examples one at a time."""

    @property
    def keys(self) -> Sequence[str]:
        """Keys of all examples, in order."""

    @property
    def fingerprint(self) -> Mapping[str, object]:
        """What tells this data from other data, fit for JSON: equal for equal data, cheap to find."""

    def load(self, index: int) -> AnyExample:
        """Read one example.

        Raises:
            UnreadableExampleError: this one cannot be read, and why.
        """


class TensorExamples:
    """Examples that are in memory.

    Args:
        images (Tensor): (N, C, H, W), as the model takes them.
        targets (Tensor or Sequence[int]): (N,), classes to explain.
        masks (Tensor, optional): (N, H, W) or (N, 1, H, W), nonzero inside the object; an empty one counts as none.
            Default: None: drawn from the boxes.
        boxes (Sequence, optional): (n, 4) for each example, half-open pixel boxes x0, y0, x1, y1. Default: None.
        display (Tensor or Callable, optional): (N, 1 or 3, H, W), de-normalised, from 0 to 1; or a function that makes
            one from an image (C, H, W). Default: None.
        keys (Sequence[str], optional): unique names. Default: None: ``"0"``, ``"1"`` and so on.

    Raises:
        InvalidTypeError: images or targets of another type.
        InvalidArgumentError: other shapes, negative targets, keys that repeat, or boxes that are none.
        MismatchedArgumentsError: another number of targets, masks, boxes, display images or keys than of images.

    Examples::

        >>> examples = TensorExamples(torch.zeros(2, 3, 4, 4), [7, 8], boxes=[[[0, 0, 2, 1]], []])
        >>> examples.keys
        ('0', '1')
        >>> int(examples.load(0).mask.sum()), examples.load(1).mask
        (2, None)
    """

    def __init__(
        self,
        images: Tensor,
        targets: Tensor | Sequence[int],
        masks: Tensor | None = None,
        boxes: Tensor | Sequence[Any] | None = None,
        display: Tensor | ToDisplay | None = None,
        keys: Sequence[str] | None = None,
    ) -> None:
        self.images = _as_images(images)
        n, size = len(images), tuple(images.shape[2:])
        self.targets = _as_targets(targets)
        self.masks = None if masks is None else _as_masks(masks, size)
        self.boxes = None if boxes is None else [_as_boxes(b, i) for i, b in enumerate(boxes)]
        self.display = display if display is None or callable(display) else _as_display(display, size)
        self.keys = tuple(map(str, range(n))) if keys is None else tuple(keys)
        counts = {"targets": self.targets, "masks": self.masks, "boxes": self.boxes, "keys": self.keys}
        for name, values in (counts | {"display": None if callable(display) else display}).items():
            if values is not None and len(values) != n:
                raise MismatchedArgumentsError(f"{len(values)} {name} do not fit {n} images; wanted one for each.")
        if len(set(self.keys)) < n:
            raise InvalidArgumentError(f"keys repeat: {_repeated(self.keys)!r}; wanted a name of its own for each.")

    @cached_property
    def fingerprint(self) -> Mapping[str, object]:
        """Shape of the images and a digest of all values."""
        digest = hashlib.sha256("\n".join(self.keys).encode())
        parts = [self.images, torch.tensor(self.targets), self.masks, *(self.boxes or [])]
        for part in parts:
            _update(digest, part)
        return {"class": "TensorExamples", "shape": list(self.images.shape), "digest": digest.hexdigest()[:16]}

    def load(self, index: int) -> Example:
        """One example; boxes without a mask give it one."""
        image = self.images[index]
        display = self.display(image) if callable(self.display) else self.display
        return _finished(
            self.keys[index],
            image,
            self.targets[index],
            None if self.boxes is None else self.boxes[index],
            None if self.masks is None else self.masks[index],
            display if display is None or callable(self.display) else display[index],
        )


class _DatasetExamples:
    """A torch data set of pairs (image, class), or triples with a mask."""

    def __init__(self, dataset: Dataset[Any], to_display: ToDisplay | None) -> None:
        self._dataset, self._to_display = dataset, to_display
        self.keys = tuple(str(i) for i in range(len(dataset)))  # type: ignore[arg-type]

    @cached_property
    def fingerprint(self) -> Mapping[str, object]:
        """Class, length and a digest of all examples, which are read for it."""
        kind, digest = type(self._dataset), hashlib.sha256()
        for index in range(len(self.keys)):
            try:
                example = self.load(index)
            except UnreadableExampleError as error:
                digest.update(str(error).encode())
                continue
            for part in (example.inputs, torch.tensor(example.target), example.mask):
                _update(digest, part)
        return {
            "class": f"{kind.__module__}.{kind.__qualname__}",
            "length": len(self.keys),
            "digest": digest.hexdigest()[:16],
        }

    def load(self, index: int) -> Example:
        key = self.keys[index]
        try:
            item = self._dataset[index]
        except Exception as error:  # whatever the user's own code meets in a broken file
            raise UnreadableExampleError(f"{key}: {type(error).__name__}: {error}") from error
        if not isinstance(item, (tuple, list)) or len(item) not in (2, 3):
            raise UnreadableExampleError(f"{key}: a {_kind(item)}; wanted (image, class) or (image, class, mask).")
        image = item[0]
        if not isinstance(image, Tensor) or image.ndim != 3 or not image.is_floating_point():
            raise UnreadableExampleError(
                f"{key}: the image is a {_kind(image)}; wanted a float Tensor (C, H, W). Give the data set a transform."
            )
        try:
            mask = None if len(item) == 2 else _as_masks(torch.as_tensor(item[2])[None], tuple(image.shape[1:]))[0]
            target = _as_targets([item[1]])[0]
        except (InvalidArgumentError, TypeError, ValueError) as error:
            raise UnreadableExampleError(f"{key}: {error}") from error
        display = None if self._to_display is None else self._to_display(image)
        return _finished(key, image, target, None, mask, display)


class JoinedExamples:
    """Two sets, one after the other; a key of the second that the first has too gets the prefix ``"2/"``.

    Args:
        first, second (ExampleSet): the sets.

    Examples::

        >>> photos = TensorExamples(torch.zeros(2, 3, 4, 4), [7, 8])
        >>> boxed = TensorExamples(torch.zeros(1, 3, 4, 4), [9])
        >>> both = JoinedExamples(photos, boxed)
        >>> both.keys, both.load(2).target
        (('0', '1', '2/0'), 9)
    """

    def __init__(self, first: ExampleSet, second: ExampleSet) -> None:
        self.first, self.second = first, second
        taken, own = set(first.keys), set(second.keys)
        keys = list(first.keys)
        for key in second.keys:
            renamed = key
            while renamed in taken or (renamed != key and renamed in own):
                renamed = f"2/{renamed}"
            keys.append(renamed)
            taken.add(renamed)
        self.keys = tuple(keys)

    @property
    def fingerprint(self) -> Mapping[str, object]:
        """Those of both sets."""
        return {"class": "JoinedExamples", "first": self.first.fingerprint, "second": self.second.fingerprint}

    def load(self, index: int) -> AnyExample:
        """One example of either set, under its key here."""
        index = range(len(self.keys))[index]
        n = len(self.first.keys)
        example: Any = self.first.load(index) if index < n else self.second.load(index - n)
        renamed: AnyExample = replace(example, key=self.keys[index])
        return renamed


def as_examples(dataset: object, *, to_display: ToDisplay | None = None) -> ExampleSet:
    """Take what holds images and their classes.

    Args:
        dataset (object): an :class:`ExampleSet`, which comes back as it is; a tuple of tensors (images, targets) or
            (images, targets, masks) as in :class:`TensorExamples`; a map-style ``torch.utils.data.Dataset`` of pairs
            (image, class) or triples with a mask (H, W); or the demo's canvases.
        to_display (Callable, optional): de-normalises an image: (C, H, W) -> (1 or 3, H, W), from 0 to 1. Ignored for
            an ExampleSet. Default: None: no pictures, but for the demo's canvases.

    Returns:
        ExampleSet: keys, fingerprint and load.

    Raises:
        InvalidTypeError: anything else, a DataLoader or an IterableDataset among it.
        InvalidArgumentError: no examples, or what :class:`TensorExamples` refuses.

    Examples::

        >>> images, targets = torch.rand(2, 3, 8, 8), torch.tensor([1, 0])
        >>> examples = as_examples((images, targets))
        >>> examples.load(1).inputs.shape, examples.load(1).target
        (torch.Size([3, 8, 8]), 0)
    """
    if callable(getattr(dataset, "load", None)) and hasattr(dataset, "keys"):
        return dataset  # type: ignore[return-value]
    if isinstance(dataset, TensorDataset):
        dataset = dataset.tensors
    if isinstance(dataset, tuple) and dataset and isinstance(dataset[0], (list, tuple)) and _are_texts(dataset[0]):
        raise InvalidTypeError("dataset holds texts; pass TextExamples(texts, labels, tokenizer), or a TextFile.")
    if isinstance(dataset, tuple) and len(dataset) in (2, 3):
        images, targets, *masks = dataset
        return TensorExamples(images, targets, masks[0] if masks else None, display=to_display)
    if all(hasattr(dataset, name) for name in ("images", "labels", "boxes")):
        return _from_canvases(dataset, to_display)
    if isinstance(dataset, DataLoader):
        raise InvalidTypeError("dataset is a DataLoader, which has no examples by number; pass loader.dataset.")
    if isinstance(dataset, Dataset) and not isinstance(dataset, IterableDataset) and hasattr(dataset, "__len__"):
        if len(dataset) == 0:
            raise InvalidArgumentError("dataset is empty; wanted at least one example.")
        return _DatasetExamples(dataset, to_display)
    raise InvalidTypeError(
        f"dataset is a {_kind(dataset)}; wanted a tuple (images, targets) or (images, targets, masks), a torch Dataset "
        "with a length whose items are (image, class) or (image, class, mask), or an object with keys, fingerprint and "
        "load such as PhotoFolder."
    )


def _are_texts(values: Sequence[object]) -> bool:
    return bool(values) and all(isinstance(value, str) for value in values)


def _update(digest: Any, part: Tensor | None) -> None:
    """Add type, shape and values to a digest."""
    digest.update(b"none" if part is None else f"{part.dtype} {tuple(part.shape)}".encode())
    if part is not None:
        digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def _from_canvases(canvases: Any, to_display: ToDisplay | None) -> TensorExamples:
    from captum_iba.demo.data import Canvases
    from captum_iba.demo.data import to_display as canvas_to_display

    if to_display is None and isinstance(canvases, Canvases):
        to_display = canvas_to_display
    return TensorExamples(canvases.images, canvases.labels, boxes=canvases.boxes, display=to_display)


def _finished(
    key: str, inputs: Tensor, target: int, boxes: Tensor | None, mask: Tensor | None, display: Tensor | None
) -> Example:
    """The example, with a mask where there is something inside it."""
    if not bool(torch.isfinite(inputs).all()):
        raise UnreadableExampleError(f"{key}: the image holds NaN or infinity.")
    if display is not None and not _is_display(display, inputs):
        raise UnreadableExampleError(
            f"{key}: to_display gave a {_kind(display)}; wanted a Tensor (1 or 3, {inputs.shape[1]}, "
            f"{inputs.shape[2]}) from 0 to 1."
        )
    if mask is None and boxes is not None:
        mask = boxes_to_mask(boxes, (inputs.shape[1], inputs.shape[2]))
    if mask is not None and not bool(mask.any()):
        boxes = mask = None
    return Example(key, inputs, target, boxes, mask, display)


def _is_display(display: object, inputs: Tensor) -> bool:
    return (
        isinstance(display, Tensor)
        and display.ndim == 3
        and display.shape
        in (
            (1, *inputs.shape[1:]),
            (3, *inputs.shape[1:]),
        )
    )


def _as_images(images: Tensor) -> Tensor:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        raise InvalidTypeError(f"images is a {_kind(images)}; wanted a float Tensor (N, C, H, W).")
    if images.ndim != 4 or images.numel() == 0:
        raise InvalidArgumentError(f"images has shape {list(images.shape)}; wanted (N, C, H, W), none of them 0.")
    return images


def _as_targets(targets: Tensor | Sequence[int]) -> tuple[int, ...]:
    try:
        indices = tuple(operator.index(target) for target in targets)
    except TypeError as error:
        raise InvalidTypeError(f"targets is a {_kind(targets)} ({error}); wanted class indices, (N,).") from error
    if indices and min(indices) < 0:
        raise InvalidArgumentError(f"targets has {min(indices)}; wanted class indices from 0.")
    return indices


def _as_masks(masks: Tensor, size: tuple[int, ...]) -> Tensor:
    if not isinstance(masks, Tensor):
        raise InvalidTypeError(f"masks is a {_kind(masks)}; wanted a Tensor (N, H, W).")
    if masks.ndim == 4 and masks.shape[1] == 1:
        masks = masks[:, 0]
    if masks.ndim != 3 or tuple(masks.shape[1:]) != size:
        raise InvalidArgumentError(f"masks has shape {list(masks.shape)}; wanted (N, {size[0]}, {size[1]}).")
    return masks != 0


def _as_boxes(boxes: Any, index: int) -> Tensor:
    try:
        edges = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgumentError(f"boxes[{index}] is {boxes!r}; wanted (n, 4): x0, y0, x1, y1 each.") from error
    if not bool(torch.isfinite(edges).all()) or bool((edges[:, 2:] < edges[:, :2]).any()):
        raise InvalidArgumentError(f"boxes[{index}] = {edges.tolist()} holds a box that ends before it starts, or NaN.")
    return edges


def _as_display(display: Tensor, size: tuple[int, ...]) -> Tensor:
    if not isinstance(display, Tensor):
        raise InvalidTypeError(f"display is a {_kind(display)}; wanted a Tensor (N, 1 or 3, H, W) or a function.")
    if display.ndim != 4 or display.shape[1] not in (1, 3) or tuple(display.shape[2:]) != size:
        raise InvalidArgumentError(
            f"display has shape {list(display.shape)}; wanted (N, 1 or 3, {size[0]}, {size[1]})."
        )
    return display


def _repeated(keys: Sequence[str]) -> str:
    return next(key for key in keys if keys.count(key) > 1)


def _kind(value: object) -> str:
    """Type and shape, for messages."""
    if isinstance(value, Tensor):
        return f"{value.dtype} Tensor {list(value.shape)}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, (tuple, list)) else type(value).__name__
