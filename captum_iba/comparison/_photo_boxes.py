"""Pascal-VOC annotations, and where their boxes lie once a photo has the model's size."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from captum_iba.errors import InvalidArgumentError, UnreadableExampleError
from captum_iba.photos import Classifier

_MOST_BYTES = 1_000_000
_EDGES = ("xmin", "ymin", "xmax", "ymax")

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Annotation:
    """What an XML file says about a photo.

    Attributes:
        size (tuple[float, float] or None): width and height that its boxes refer to; None if it does not say.
        objects (Sequence[tuple[str, Box]]): name and edges x0, y0, x1, y1 of each object with a box.
    """

    size: tuple[float, float] | None
    objects: Sequence[tuple[str, Box]]

    @property
    def name(self) -> str | None:
        """Name of the first object; None without any."""
        return self.objects[0][0] or None if self.objects else None

    def boxes(self, name: str | None = None) -> list[Box]:
        """All boxes, or those of the objects of a name."""
        return [box for own, box in self.objects if name is None or own == name]


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses document types, and with them entities that grow without bound."""

    def doctype(self, name: str, _pubid: str | None, _system: str | None) -> None:
        raise ValueError(f"a document type ({name}), which annotations do not need")


def read_annotation(path: Path) -> Annotation:
    """Read a Pascal-VOC annotation.

    Args:
        path (Path): the XML file.

    Returns:
        Annotation: its size and objects.

    Raises:
        UnreadableExampleError: no XML, larger than 1 MB, with a document type, or a box that is none.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"larger than {_MOST_BYTES} bytes")
        root = ElementTree.fromstring(path.read_bytes(), ElementTree.XMLParser(target=_NoDoctype()))
        objects = [
            (item.findtext("name", "").strip(), _box(found))
            for item in root.iter("object")
            if (found := item.find("bndbox")) is not None
        ]
        width, height = (_number(root.findtext(f"size/{side}") or "0", side) for side in ("width", "height"))
    except (OSError, ValueError, LookupError, ElementTree.ParseError) as error:  # LookupError: unknown encoding
        raise UnreadableExampleError(
            f"annotation {str(path)!r}: {error}; wanted Pascal-VOC XML. Repair it or remove it."
        ) from error
    return Annotation((width, height) if width > 0 and height > 0 else None, objects)


def _box(element: ElementTree.Element) -> Box:
    x0, y0, x1, y1 = (_number(element.findtext(edge), edge) for edge in _EDGES)
    if x1 < x0 or y1 < y0:
        raise ValueError(f"the box {[x0, y0, x1, y1]} ends before it starts")
    return x0, y0, x1, y1


def _number(text: str | None, name: str) -> float:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{name} is {text!r}, no number")
    return value


class Annotations:
    """The annotations of a folder's photos, by the files' stems.

    An annotation at the photo's own path (``a/1.xml`` for ``a/1.jpg``) comes first, then the one in a folder of the
    same name (``boxes/n01440764/1.xml`` for ``n01440764/1.jpg``), then one of the same stem anywhere, if no other
    photo and no other annotation has that stem.

    Args:
        folder (Path): holds the XML files, at any depth.
        keys (Sequence[str]): the photos' paths within their folder.

    Raises:
        InvalidArgumentError: no folder, or no XML in it.
    """

    def __init__(self, folder: Path, keys: Sequence[str]) -> None:
        if not folder.is_dir():
            raise InvalidArgumentError(f"annotations={str(folder)!r} is no folder; wanted one with Pascal-VOC XML.")
        self._folder = folder
        files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() == ".xml")
        if not files:
            raise InvalidArgumentError(f"annotations={str(folder)!r} holds no .xml files; wanted Pascal-VOC XML.")
        self._by_place = {file.with_suffix("").as_posix(): file for file in files}
        self._claimed = {_place(key) for key in keys}
        self._photos = Counter(PurePosixPath(key).stem for key in keys)
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for file in files:
            self._by_stem[file.stem].append(file)

    def file_of(self, key: str) -> Path | None:
        """Annotation of a photo; None if it has none.

        Raises:
            UnreadableExampleError: several photos or annotations of this name, so that one cannot tell.
        """
        if (place := _place(key)) in self._by_place:
            return self._folder / self._by_place[place]
        photo = PurePosixPath(key)
        found = [f for f in self._by_stem.get(photo.stem, ()) if f.with_suffix("").as_posix() not in self._claimed]
        beside = [file for file in found if photo.parent.name and file.parent.name == photo.parent.name]
        if len(beside) == 1:
            return self._folder / beside[0]
        if not found:
            return None
        if len(found) == 1 and self._photos[photo.stem] == 1:
            return self._folder / found[0]
        raise UnreadableExampleError(
            f"{key}: {len(found)} annotations and {self._photos[photo.stem]} photos are named {photo.stem!r}; wanted "
            "one of each, or the same subfolders for both."
        )


def _place(key: str) -> str:
    return PurePosixPath(key).with_suffix("").as_posix()


@dataclass(frozen=True)
class Frame:
    """How photos come to the model's size.

    Attributes:
        crop (str): ``"center"``: the shorter side becomes resize_size, and the centre is cut out; ``"none"``: the
            whole photo is squeezed to crop_size x crop_size.
        resize_size, crop_size (int): of the model's own preprocessing.
        classifier (Classifier): preprocessing and normalisation.
    """

    crop: str
    resize_size: int
    crop_size: int
    classifier: Classifier

    @classmethod
    def of(cls, classifier: Classifier, crop: str) -> Frame:
        """The frame of a classifier's preprocessing.

        Raises:
            InvalidArgumentError: an unknown crop, or a preprocessing of unknown sizes.
        """
        if crop not in ("center", "none"):
            raise InvalidArgumentError(f"crop={crop!r}; wanted 'center' or 'none'.")
        sizes = [getattr(classifier.preprocess, name, None) for name in ("resize_size", "crop_size")]
        if not all(isinstance(size, list) and len(size) == 1 for size in sizes):
            kind = type(classifier.preprocess).__name__
            raise InvalidArgumentError(
                f"The preprocessing of {classifier.name} is a {kind} without resize_size "
                "and crop_size, so that boxes cannot follow it; wanted that of load_classifier."
            )
        return cls(crop, sizes[0][0], sizes[1][0], classifier)  # type: ignore[index]

    def inputs(self, photo: Any) -> Tensor:
        """A PIL photo as the model takes it, (3, crop_size, crop_size)."""
        preprocess: Any = self.classifier.preprocess
        if self.crop == "center":
            centre: Tensor = preprocess(photo)
            return centre
        from torchvision.transforms import functional

        size = [self.crop_size, self.crop_size]
        squeezed = functional.resize(photo, size, preprocess.interpolation, antialias=preprocess.antialias)
        pixels: Tensor = functional.pil_to_tensor(squeezed)
        return (pixels / 255 - self.classifier.mean) / self.classifier.std

    def boxes(self, boxes: Sequence[Box], photo: tuple[int, int], drawn_on: tuple[float, float] | None) -> Tensor:
        """Boxes on the inputs' grid, in whole pixels and cut at the border; those wholly outside are left out.

        Args:
            boxes (Sequence[Box]): x0, y0, x1, y1.
            photo (tuple[int, int]): width and height of the photo.
            drawn_on (tuple[float, float] or None): width and height that the boxes refer to; None: the photo's.

        Returns:
            Tensor: (n, 4), float.
        """
        new = self._resized(photo)
        old = drawn_on or photo
        axes = [(new[axis], old[axis], self._offset(new[axis])) for axis in (0, 1, 0, 1)]
        placed = [[self._edge(x, *axis) for x, axis in zip(box, axes, strict=True)] for box in boxes]
        kept = [box for box in placed if box[0] < box[2] and box[1] < box[3]]
        return torch.tensor(kept, dtype=torch.float32).reshape(-1, 4)

    def _edge(self, edge: float, new: int, old: float, offset: int) -> int:
        return int(min(max(edge * new / old - offset, 0), self.crop_size))

    def _resized(self, photo: tuple[int, int]) -> tuple[int, int]:
        """Width and height before the crop."""
        if self.crop == "none":
            return self.crop_size, self.crop_size
        width, height = (self._scaled(side, min(photo)) for side in photo)
        return width, height

    def _scaled(self, side: int, short: int) -> int:
        return int(self.resize_size * side / short)

    def _offset(self, length: int) -> int:
        """First pixel of the crop; below 0 where torchvision pads a length that is shorter than the crop."""
        if length < self.crop_size:
            return -((self.crop_size - length) // 2)
        return round((length - self.crop_size) / 2)
