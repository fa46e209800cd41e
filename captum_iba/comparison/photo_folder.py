"""Photos of a folder, with class and boxes, as a classifier of torchvision takes them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from captum_iba.comparison._limit import assert_limit, spread
from captum_iba.comparison._photo_boxes import Annotation, Annotations, Frame, read_annotation
from captum_iba.comparison._photo_targets import Targets
from captum_iba.comparison.example import Example
from captum_iba.errors import InvalidArgumentError, UnreadableExampleError
from captum_iba.metrics import boxes_to_mask
from captum_iba.photos import Classifier, photos_in

__all__ = ["PhotoFolder", "Targets"]


class PhotoFolder:
    """The photos below a folder, each read when it is needed.

    Boxes come from Pascal-VOC annotations and follow the photo through resizing and crop; they are truncated to whole
    pixels and cut at the border. An annotation belongs to the photo of its stem: at the photo's own path, else in a
    folder of the same name, else anywhere below ``annotations``. If it states another size than the photo's, as some of
    ImageNet's do, its boxes scale with that size.

    Args:
        folder (str or path): photos, at any depth.
        classifier (Classifier): of :func:`captum_iba.photos.load_classifier`.
        targets (Targets, str, int or path): which class is explained; see :meth:`Targets.parse`. By ``"annotation"``,
            it is the class of the first object, and only boxes of that name count.
        annotations (str or path, optional): folder of XML files, possibly the photos' own. Default: None: no boxes.
        crop (str, optional): ``"center"``: the preprocessing of the classifier's weights; ``"none"``: the whole photo,
            squeezed to the same size. Default: ``"center"``.
        largest_coverage (float, optional): photos whose boxes cover this share of the input or more count as photos
            without boxes; the paper uses 0.33. Default: None: no limit.
        only_boxes (bool, optional): leave out photos without boxes, and mark the others as serving the bounding-box
            metric alone. Reads all annotations at once. Default: ``False``.
        limit (int, optional): most photos, spread evenly over the sorted ones, so that all folders have their share.
            Default: None: all.

    Attributes:
        keys (Sequence[str]): paths within the folder, with slashes, sorted.

    Raises:
        InvalidArgumentError: no photos, no annotations, none with boxes, or another argument out of its range.
        InvalidTypeError: targets or limit of another type.

    Examples::

        >>> from captum_iba.photos import load_classifier
        >>> classifier = load_classifier("resnet50")  # doctest: +SKIP
        >>> photos = PhotoFolder("val", classifier, "folder", annotations="xml")  # doctest: +SKIP
        >>> photos.load(0).inputs.shape  # doctest: +SKIP
        torch.Size([3, 224, 224])
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        classifier: Classifier,
        targets: Targets | str | int | os.PathLike[str],
        *,
        annotations: str | os.PathLike[str] | None = None,
        crop: Literal["center", "none"] = "center",
        largest_coverage: float | None = None,
        only_boxes: bool = False,
        limit: int | None = None,
    ) -> None:
        self.folder, self.classifier = Path(folder), classifier
        self.largest_coverage, self.only_boxes, self.limit = largest_coverage, only_boxes, limit
        self._frame = Frame.of(classifier, crop)
        keys = sorted(path.relative_to(self.folder).as_posix() for path in photos_in(self.folder))
        self.targets = targets if isinstance(targets, Targets) else Targets.parse(targets, classifier, self.folder)
        self._check(annotations is not None)
        self._annotations = None if annotations is None else Annotations(Path(annotations), keys)
        if only_boxes:
            keys = self._with_boxes(keys)
        self.keys: Sequence[str] = spread(keys, limit)

    @cached_property
    def fingerprint(self) -> Mapping[str, object]:
        """Options, and a digest of the files' paths and sizes."""
        digest = hashlib.sha256()
        for key in self.keys:
            digest.update(f"{key}\0{_bytes_in(self.folder / key)}\0{self._annotation_bytes(key)}\n".encode())
        return {
            "class": "PhotoFolder",
            "photos": len(self.keys),
            "limit": self.limit,
            "files": digest.hexdigest()[:16],
            "classifier": self.classifier.name,
            "size": [self._frame.resize_size, self._frame.crop_size],
            "crop": self._frame.crop,
            "largest_coverage": self.largest_coverage,
            "only_boxes": self.only_boxes,
            **self.targets.fingerprint,
        }

    def load(self, index: int) -> Example:
        """Read one photo, its annotation and its class.

        Args:
            index (int): number of its key.

        Returns:
            Example: inputs (3, H, W); boxes and mask None unless the mask covers something, and less than
            largest_coverage.

        Raises:
            UnreadableExampleError: the photo or its annotation cannot be read, or its label leads to no class.
        """
        key = self.keys[index]
        annotation = self._annotation_of(key)
        with _OpenPhoto(self.folder / key) as photo:
            pixels = photo.convert("RGB")  # whose size can differ from the file's, which may be stored on its side
            inputs = self._frame.inputs(pixels)
        boxes, mask = self._boxes(annotation, pixels.size)
        name = None if annotation is None else annotation.name
        target = self.targets.target_of(self.folder / key, name, lambda: self._logits(inputs))
        return Example(key, inputs, target, boxes, mask, self.classifier.to_display(inputs), self.only_boxes)

    def _check(self, has_annotations: bool) -> None:
        limit, largest = self.limit, self.largest_coverage
        assert_limit(limit)
        if largest is not None and not 0 < largest <= 1:
            raise InvalidArgumentError(f"largest_coverage={largest}; wanted a share above 0 and at most 1, or None.")
        if not has_annotations and (self.only_boxes or self.targets.by_annotation):
            reason = "only_boxes=True" if self.only_boxes else "targets='annotation'"
            raise InvalidArgumentError(f"{reason} needs annotations; pass the folder of their XML files.")

    def _with_boxes(self, keys: Sequence[str]) -> list[str]:
        found = [key for key in keys if self._has_boxes(key)]
        if not found:
            limit = "" if self.largest_coverage is None else f" that cover less than {self.largest_coverage:.0%}"
            raise InvalidArgumentError(
                f"None of the {len(keys)} photos in {str(self.folder)!r} has boxes{limit}; wanted annotations with the "
                "photos' names."
            )
        return found

    def _has_boxes(self, key: str) -> bool:
        """Whether the photo counts as one with boxes; one that cannot be read stays, so that loading tells why."""
        try:
            annotation = self._annotation_of(key)
            if annotation is None:
                return False
            with _OpenPhoto(self.folder / key) as photo:
                return self._boxes(annotation, photo.size)[1] is not None
        except UnreadableExampleError:
            return True

    def _annotation_of(self, key: str) -> Annotation | None:
        path = None if self._annotations is None else self._annotations.file_of(key)
        return None if path is None else read_annotation(path)

    def _annotation_bytes(self, key: str) -> int:
        try:
            path = None if self._annotations is None else self._annotations.file_of(key)
        except UnreadableExampleError:
            return -1
        return -1 if path is None else _bytes_in(path)

    def _boxes(self, annotation: Annotation | None, size: tuple[int, int]) -> tuple[Tensor | None, Tensor | None]:
        """Boxes and mask on the inputs' grid, or None for both."""
        if annotation is None:
            return None, None
        drawn = annotation.boxes(annotation.name if self.targets.by_annotation else None)
        boxes = self._frame.boxes(drawn, size, annotation.size)
        mask = boxes_to_mask(boxes, (self._frame.crop_size, self._frame.crop_size))
        coverage = float(mask.double().mean())
        if coverage == 0 or (self.largest_coverage is not None and coverage >= self.largest_coverage):
            return None, None
        return boxes, mask

    def _logits(self, inputs: Tensor) -> Tensor:
        model = self.classifier.model
        device = next((parameter.device for parameter in model.parameters()), inputs.device)
        with torch.no_grad():
            output: Tensor = model(inputs[None].to(device))
        return output[0]


class _OpenPhoto:
    """A photo that is open; what its file's decoder runs into, while it is, becomes UnreadableExampleError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._photo: Any = None

    def __enter__(self) -> Any:
        from PIL import Image

        try:
            self._photo = Image.open(self._path)
        except Exception as error:
            raise self._unreadable(error) from error
        return self._photo

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._photo.close()
        if isinstance(error, Exception):  # decoders raise OSError, SyntaxError, struct.error and others
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> UnreadableExampleError:
        reason = str(error) or type(error).__name__
        return UnreadableExampleError(f"photo {str(self._path)!r} cannot be read: {reason}. Repair it or remove it.")


def _bytes_in(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
