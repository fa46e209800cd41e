"""What a readout's file consists of: safetensors, with everything that is no tensor as JSON in the header."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from captum_iba.attr._readout import Readout
from captum_iba.attr.training_history import TrainingHistory
from captum_iba.bottleneck.readout import ReadoutNetwork
from captum_iba.bottleneck.replay import Site
from captum_iba.bottleneck.statistics import FeatureStatistics
from captum_iba.errors import MissingFileError, ReadoutFileError

FORMAT, VERSION = "captum_iba.readout", "1"


@dataclass(frozen=True)
class Parts:
    """A file's parts.

    Attributes:
        path (Path): where it was, for messages.
        content (dict[str, Any]): everything that is no tensor.
        tensors (dict[str, Tensor]): by name.
    """

    path: Path
    content: dict[str, Any]
    tensors: dict[str, Tensor]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose names begin so, without that."""
        start = f"{prefix}."
        return {name.removeprefix(start): value for name, value in self.tensors.items() if name.startswith(start)}


def open_parts(path: Path) -> Parts:
    """The parts of a file.

    Raises:
        MissingFileError: no such file.
        ReadoutFileError: a damaged file, or one of another kind.
    """
    if not path.is_file():
        raise MissingFileError(f"No readout at {str(path)!r}. Write one with save(path).")
    return parse(path, path.read_bytes())


def parse(path: Path, content: bytes) -> Parts:
    """The parts of a file's content; the path is for messages.

    Raises:
        ReadoutFileError: damaged, or of another kind.
    """
    try:
        tensors = load(content)
        # the header: its length in eight bytes, then JSON
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise ReadoutFileError(
            f"{str(path)!r} is not a readable safetensors file ({error}); it may be truncated. Train or save again."
        ) from None
    found = (metadata.get("format"), metadata.get("version"))
    if found != (FORMAT, VERSION):
        raise ReadoutFileError(
            f"{str(path)!r} does not hold a readout: found format and version {found}, wanted {(FORMAT, VERSION)}. "
            "Pass a file written by LayerReadoutIBA.save or fit(checkpoint=...)."
        )
    with damage_explained(path):
        parsed = json.loads(metadata["content"])
        if not isinstance(parsed, dict):
            raise ValueError(f"content that is a {type(parsed).__name__}")
        return Parts(path, parsed, tensors)


@contextmanager
def damage_explained(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file leads to into one error."""
    try:
        yield
    except ReadoutFileError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError, AssertionError) as error:
        raise ReadoutFileError(
            f"{str(path)!r} holds a damaged readout ({type(error).__name__}: {error}). Train or save again."
        ) from error


def statistics_in(read: Parts, sites: list[Site]) -> dict[Site, FeatureStatistics]:
    """Statistics of these sites, in the file's order."""
    found = {}
    for index, (site, entry) in enumerate(zip(sites, read.content["sites"], strict=True)):
        tensors = read.part(f"statistics.{index}")
        found[site] = FeatureStatistics.from_metadata(read.path, entry["statistics"], tensors)
    return found


def network_in(read: Parts, readout: Readout) -> ReadoutNetwork:
    """The network, without gradient."""
    channels = [readout.channels(source) for source in readout.sources]
    wide, narrow = read.content["widths"]
    with torch.device("meta"):  # no random numbers are drawn
        network = ReadoutNetwork(
            channels, readout.channels(readout.site), (wide, narrow), 0.0, readout.settings.align_corners
        )
    state = read.part("network")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in state.values()):
        raise ValueError("weights that are no finite numbers")
    network.load_state_dict(state, assign=True)
    return network.requires_grad_(False)


def history_in(read: Parts) -> TrainingHistory:
    """The course of the training."""
    history = TrainingHistory.from_tensors(read.part("history"), read.content["seconds"])
    if (len(history.training), len(history.validation)) != (read.content["steps"], read.content["validations"]):
        raise ValueError("a history of another length")
    return history


def weights_digest(modules: Iterable[nn.Module]) -> str:
    """Tells a network's weights from others: a digest of all parameters' values."""
    digest = hashlib.sha256()
    for parameter in dict.fromkeys(parameter for module in modules for parameter in module.parameters()):
        values = parameter.detach().cpu().contiguous().flatten()
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def shapes_of(module: nn.Module) -> dict[str, list[int]]:
    """Shapes of a module's parameters and buffers by name: what tells one network's layer from another's."""
    return {name: list(value.shape) for name, value in module.state_dict().items() if isinstance(value, Tensor)}
