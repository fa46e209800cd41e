"""Which class of a photo is explained."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from captum_iba.errors import InvalidArgumentError, InvalidTypeError, UnreadableExampleError
from captum_iba.photos import Classifier, _nearest

LogitsFn = Callable[[], Tensor]
Choose = Callable[[Path, str | None, LogitsFn], int]

_WNID = re.compile(r"n\d{8}")
_WNID_WITHIN = re.compile(r"(?<![A-Za-z0-9])n\d{8}(?!\d)")
_LEADING_INDEX = re.compile(r"\d+(?=[_-])")
_MOST_DIGITS = 9
_IMAGENET = 1000


@dataclass(frozen=True)
class Targets:
    """Chooses the class to explain for each photo; made by :meth:`parse`.

    Attributes:
        choose (Callable): path, name in the annotation and logits -> class.
        fingerprint (Mapping[str, object]): what tells this choice from others, fit for JSON.
        by_annotation (bool): the annotation's name decides.
    """

    choose: Choose
    fingerprint: Mapping[str, object] = field(default_factory=dict)
    by_annotation: bool = False

    @classmethod
    def parse(
        cls, spec: str | int | os.PathLike[str], classifier: Classifier, folder: str | os.PathLike[str]
    ) -> Targets:
        """Read a specification.

        Args:
            spec (str, int or path): ``"folder"``: the name of the photo's folder, a WordNet id, class index or class
                name, or else the class index that the file's name begins with or the WordNet id in it
                (``000_n01440764_tench.JPEG``); ``"predicted"``: the model's own choice; ``"annotation"``: the name in
                the photo's annotation; the path of a CSV file with columns file and label; or one class for all
                photos. WordNet ids stand for the classes of a model that has ImageNet's 1000.
            classifier (Classifier): has the classes.
            folder (str or path): to which the CSV file's paths are relative.

        Returns:
            Targets: target_of and fingerprint.

        Raises:
            InvalidTypeError: a spec of another type.
            InvalidArgumentError: none of these, or a CSV file that cannot be read.
        """
        if isinstance(spec, bool) or not isinstance(spec, (str, int, os.PathLike)):
            raise InvalidTypeError(f"targets is a {type(spec).__name__}; wanted a str, a path or a class index.")
        labels = _Labels(classifier)
        if spec == "folder":
            return cls(lambda path, _name, _logits: labels.of_path(path), {"targets": "folder"})
        if spec == "predicted":
            return cls(lambda _path, _name, logits: _most_probable(logits()), {"targets": "predicted"})
        if spec == "annotation":
            return cls(lambda _path, name, _logits: labels.of_annotation(name), {"targets": "annotation"}, True)
        if not isinstance(spec, int) and _is_table(spec):
            return cls._from_csv(Path(spec), labels, Path(folder))
        try:
            index = labels.index_of(str(spec))
        except InvalidArgumentError as error:
            raise InvalidArgumentError(
                f"targets={spec!r} is not 'folder', 'predicted', 'annotation' or a CSV file, and as a class: {error}"
            ) from None
        return cls(lambda _path, _name, _logits: index, {"targets": "class", "index": index})

    @classmethod
    def _from_csv(cls, path: Path, labels: _Labels, folder: Path) -> Targets:
        table = _read_table(path)

        def choose(photo: Path, _name: str | None, _logits: LogitsFn) -> int:
            key = Path(os.path.relpath(photo, folder)).as_posix()
            label = table.get(key, table.get(photo.name))
            if label is None:
                raise InvalidArgumentError(f"{str(path)!r} has no line for it; wanted one with {key!r} or its name.")
            return labels.index_of(label)

        digest = hashlib.sha256(repr(sorted(table.items())).encode()).hexdigest()
        return cls(choose, {"targets": "csv", "digest": digest})

    def target_of(self, path: Path, annotation_name: str | None, logits_fn: LogitsFn) -> int:
        """Class to explain for one photo.

        Args:
            path (Path): the photo.
            annotation_name (str or None): name of its object.
            logits_fn (Callable): gives the model's output for it, (classes,); called only if needed.

        Returns:
            int: class index.

        Raises:
            UnreadableExampleError: its label leads to no class.
        """
        try:
            return self.choose(path, annotation_name, logits_fn)
        except InvalidArgumentError as error:
            raise UnreadableExampleError(f"{str(path)!r}: {error}") from error


class _Labels:
    """Class indices by index, WordNet id and name."""

    def __init__(self, classifier: Classifier) -> None:
        self._model, self._categories = classifier.name, classifier.categories
        self._exact = _unique(classifier.categories)
        self._folded = _unique(map(_fold, classifier.categories))

    def index_of(self, label: str) -> int:
        """Class of a label; InvalidArgumentError if it leads to none."""
        index = self._find(label.strip())
        if index is None:
            raise InvalidArgumentError(f"label {label!r} is no class of {self._model}; wanted {self._wanted(label)}.")
        return index

    def of_annotation(self, name: str | None) -> int:
        if name is None:
            raise InvalidArgumentError("it has no annotation with a name; give it one or choose other targets.")
        return self.index_of(name)

    def of_path(self, path: Path) -> int:
        """Class by the folder's name, or else by the file's."""
        parent = Path(os.path.abspath(path)).parent.name
        if _is_number(parent) or _WNID.fullmatch(parent) or self._find(parent) is not None:
            return self.index_of(parent)
        inside, leading = _WNID_WITHIN.search(path.stem), _LEADING_INDEX.match(path.stem)
        if inside and self._is_imagenet():
            return self.index_of(inside.group())
        if leading:
            return self.index_of(leading.group())
        raise InvalidArgumentError(
            f"neither its folder {parent!r} nor its name is a class of {self._model}; wanted a folder named by "
            f"{self._wanted(parent)}."
        )

    def _find(self, label: str) -> int | None:
        if _is_number(label):
            known = len(label) <= _MOST_DIGITS and int(label) < len(self._categories)
            return int(label) if known else None
        if _WNID.fullmatch(label):
            return _wordnet_ids().get(label) if self._is_imagenet() else None
        return self._exact.get(label, self._folded.get(_fold(label)))

    def _is_imagenet(self) -> bool:
        return len(self._categories) == _IMAGENET

    def _wanted(self, label: str) -> str:
        wordnet = "an ImageNet WordNet id, " if self._is_imagenet() else ""
        near = _nearest(_fold(label), self._categories)
        return f"{wordnet}an index from 0 to {len(self._categories) - 1} or a name such as {near}"


def _is_number(label: str) -> bool:
    return label.isascii() and label.isdigit()


def _fold(name: str) -> str:
    return name.lower().replace("_", " ")


def _unique(names: Iterable[str]) -> dict[str, int]:
    """Index by name, without names that occur twice."""
    found: dict[str, int] = {}
    repeated = set()
    for index, name in enumerate(names):
        if found.setdefault(name, index) != index:
            repeated.add(name)
    return {name: index for name, index in found.items() if name not in repeated}


@lru_cache(maxsize=1)
def _wordnet_ids() -> dict[str, int]:
    """Class index by WordNet id: ImageNet's classes are in the order of their ids."""
    lines = Path(__file__).with_name("imagenet_wnids.txt").read_text(encoding="ascii").split()
    return {name: index for index, name in enumerate(lines)}


def _is_table(spec: str | os.PathLike[str]) -> bool:
    return isinstance(spec, os.PathLike) or spec.lower().endswith(".csv") or os.path.isfile(spec)


def _most_probable(logits: Tensor) -> int:
    if not bool(torch.isfinite(logits).all()):
        raise InvalidArgumentError("the model's output for it holds NaN or infinity, so that it predicts no class.")
    return int(logits.argmax())


def _read_table(path: Path) -> dict[str, str]:
    """Label by file of a CSV file."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = [(number, row) for number, row in enumerate(csv.reader(lines, strict=True), start=1) if row]
    except (OSError, ValueError, csv.Error) as error:  # UnicodeDecodeError is a ValueError
        raise InvalidArgumentError(f"targets={str(path)!r} cannot be read as CSV in UTF-8: {error}.") from error
    header = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    table: dict[str, str] = {}
    if {"file", "label"} <= set(header):
        columns, rows = (header.index("file"), header.index("label")), rows[1:]
    else:
        columns = (0, 1)
    for number, row in rows:
        file, label = _cells(path, number, row, columns, len(header) if columns != (0, 1) else 2)
        if table.setdefault(file, label) != label:
            raise InvalidArgumentError(f"targets={str(path)!r} row {number}: {file!r} has another label further up.")
    if not table:
        raise InvalidArgumentError(f"targets={str(path)!r} has no rows; wanted columns file and label.")
    return table


def _cells(path: Path, number: int, row: Sequence[str], columns: tuple[int, int], width: int) -> tuple[str, str]:
    file, label = (row[column].strip() if column < len(row) else "" for column in columns)
    if len(row) != width or not file or not label:
        raise InvalidArgumentError(
            f"targets={str(path)!r} row {number} is {row!r}; wanted {width} columns with a file and a label, quoted if "
            "it has a comma."
        )
    return file.replace("\\", "/").removeprefix("./"), label
