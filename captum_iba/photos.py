"""Photos, torchvision's classifiers and their preprocessing, by name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captum_iba.errors import InvalidArgumentError, MissingDependencyError

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}


@dataclass(frozen=True)
class Classifier:
    """A torchvision model with what it needs around it.

    Attributes:
        name (str): torchvision's name.
        model (nn.Module): in evaluation mode.
        preprocess (Callable): photo -> normalised tensor (3, H, W).
        categories (Sequence[str]): names of the classes.
        mean (Tensor): (3, 1, 1), of the normalisation.
        std (Tensor): (3, 1, 1), likewise.
    """

    name: str
    model: nn.Module
    preprocess: Callable[[Any], Tensor]
    categories: Sequence[str]
    mean: Tensor
    std: Tensor

    def to_display(self, images: Tensor) -> Tensor:
        """Undo the normalisation: values from 0 to 1."""
        return (images * self.std + self.mean).clamp(0, 1)

    def class_index(self, target: str) -> int:
        """Index of a class given by index or name.

        Raises:
            InvalidArgumentError: no such class.
        """
        if target.isdecimal() and int(target) < len(self.categories):
            return int(target)
        names = [category.lower() for category in self.categories]
        wanted = target.lower().replace("_", " ")
        if wanted in names:
            return names.index(wanted)
        raise InvalidArgumentError(
            f"target={target!r} is no class of {self.name}; wanted an index from 0 to {len(self.categories) - 1} or a "
            f"name such as {_nearest(target, self.categories)}."
        )


def _nearest(word: str, known: Sequence[str]) -> str:
    """The known words most like this one, for messages."""
    found = difflib.get_close_matches(word.lower(), [k.lower() for k in known], n=3, cutoff=0.4)
    return ", ".join(repr(k) for k in known if k.lower() in found) or repr(known[0])


def load_classifier(name: str, weights: str = "DEFAULT") -> Classifier:
    """Build one of torchvision's image classifiers.

    Args:
        name (str): such as ``"resnet50"``.
        weights (str, optional): ``"DEFAULT"``, torchvision's own (downloaded at first use), or the path of a state
            dict (.pth, .pt or .safetensors). Default: ``"DEFAULT"``.

    Returns:
        Classifier: model and preprocessing; a file's preprocessing is that of torchvision's own weights.

    Raises:
        MissingDependencyError: torchvision is not installed.
        InvalidArgumentError: an unknown model, or weights that cannot be read or do not fit.
    """
    models = _torchvision_models()
    try:
        own = models.get_model_weights(name).DEFAULT
        preset = own.transforms()
        mean, std = preset.mean, preset.std
    except (ValueError, AttributeError):
        known = [n for n in models.list_models(module=models) if not n.startswith("quantized")]
        raise InvalidArgumentError(
            f"model={name!r} is no image classifier of torchvision; wanted a name such as {_nearest(name, known)}."
        ) from None
    if weights == "DEFAULT":
        model = _download(models, name, own)
    else:
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        model = models.get_model(name, weights=None, **options)
        _load_state(model, name, Path(weights))
    shape = (3, 1, 1)
    return Classifier(
        name,
        model.eval(),
        preset,
        own.meta["categories"],
        torch.tensor(mean).view(shape),
        torch.tensor(std).view(shape),
    )


def _download(models: Any, name: str, own: Any) -> Any:
    try:
        return models.get_model(name, weights=own)
    except OSError as error:  # URLError is one
        raise InvalidArgumentError(
            f"weights='DEFAULT' of {name} could not be downloaded: {error}. Pass the file of a state dict as weights."
        ) from error


def _torchvision_models() -> Any:
    try:
        from torchvision import models
    except ImportError as error:
        raise MissingDependencyError(
            "Photos and model names need torchvision and pillow: pip install 'captum_iba[vision]'."
        ) from error
    return models


def _load_state(model: nn.Module, name: str, path: Path) -> None:
    if not path.is_file():
        raise InvalidArgumentError(f"weights={str(path)!r} is no file; wanted DEFAULT or the path of a state dict.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state)
    except Exception as error:  # torch reports broken files in many ways, down to KeyError and EOFError
        reason = [line[:200] for line in str(error).strip().splitlines()[:2]]
        raise InvalidArgumentError(
            f"weights={str(path)!r} cannot be loaded into {name}: {type(error).__name__} {' '.join(reason)}. "
            "Wanted a state dict of this very model."
        ) from error


def photos_in(folder: str | os.PathLike[str]) -> list[Path]:
    """Image files below a folder, in order.

    Raises:
        InvalidArgumentError: not a folder, or none in it.
    """
    path = Path(folder)
    if not path.is_dir():
        raise InvalidArgumentError(f"{str(path)!r} is no folder; wanted one with photos.")
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES)
    if not found:
        raise InvalidArgumentError(f"{str(path)!r} holds no photos (files ending in {', '.join(sorted(_SUFFIXES))}).")
    return found


def read_batches(
    paths: Sequence[Path],
    preprocess: Callable[[Any], Tensor],
    batch_size: int,
    on_unreadable: Callable[[Path, str], None],
) -> Iterator[tuple[list[Path], Tensor]]:
    """Read photos in batches; those that cannot be read are reported and left out.

    Args:
        paths (Sequence[Path]): files.
        preprocess (Callable): photo -> tensor (3, H, W).
        batch_size (int): most photos at once.
        on_unreadable (Callable): called with path and reason.

    Yields:
        tuple[list[Path], Tensor]: files and their images (N, 3, H, W).
    """
    from PIL import Image

    files: list[Path] = []
    images: list[Tensor] = []
    for path in paths:
        try:
            with Image.open(path) as photo:
                images.append(preprocess(photo.convert("RGB")))
            files.append(path)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: broken PNG
            on_unreadable(path, str(error) or type(error).__name__)
        if len(files) == batch_size:
            yield files, torch.stack(images)
            files, images = [], []
    if files:
        yield files, torch.stack(images)
