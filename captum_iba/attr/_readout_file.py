"""Readout bottlenecks as files: safetensors, with everything that is no tensor as JSON in the header.

One file, so that weights, statistics and configuration are replaced together or not at all. A checkpoint is the same
file with the optimiser's state and the position in the data beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from captum_iba._files import write_atomically
from captum_iba._processes import from_all, rank
from captum_iba.attr._readout import Readout, ReadoutSettings
from captum_iba.attr._readout_layers import shown, site_of
from captum_iba.attr.training_history import TrainingHistory
from captum_iba.bottleneck.readout import ReadoutNetwork
from captum_iba.bottleneck.replay import Site
from captum_iba.bottleneck.statistics import FeatureStatistics
from captum_iba.errors import InvalidArgumentError, MissingFileError, ReadoutFileError

FORMAT, VERSION = "captum_iba.readout", "1"


@dataclass
class Position:
    """Where a training stands.

    Attributes:
        epoch (int): current epoch.
        batch (int): batches of it that are done.
        step (int): steps of the optimiser, over all epochs.
        generator (Tensor or None): state of the loader's own generator at the start of the epoch.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    generator: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds of a training.

    Attributes:
        network (ReadoutNetwork): the weights.
        statistics (dict[Site, FeatureStatistics]): that they were trained with.
        history (TrainingHistory): so far.
        position (Position): so far.
    """

    network: ReadoutNetwork
    statistics: dict[Site, FeatureStatistics]
    history: TrainingHistory
    position: Position
    _optimizer: dict[str, Tensor]

    def restore(self, optimizer: torch.optim.Optimizer) -> None:
        """Give the optimiser its state back."""
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in self._optimizer.items():
            index, key = name.split(".")
            state.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def write_readout(
    path: Path,
    readout: Readout,
    names: Mapping[nn.Module, str],
    configuration: Mapping[str, Any] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    position: Position | None = None,
) -> None:
    """Write a readout, and with an optimiser the state of its training.

    Args:
        path (Path): the file, replaced once the new one is complete.
        readout (Readout): the readout.
        names (Mapping[nn.Module, str]): of the model's modules.
        configuration (Mapping, optional): what a training must agree in to go on. Default: None.
        optimizer (torch.optim.Optimizer, optional): of the training. Default: None.
        position (Position, optional): of the training. Default: None.
    """
    tensors: dict[str, Tensor] = {}
    for index, site in enumerate(readout.sites):
        own = readout.statistics[site].tensors
        tensors |= {f"statistics.{index}.{name}": tensor for name, tensor in own.items()}
    if readout.network is not None:
        state = readout.network.state_dict()
        tensors |= {f"network.{name}": tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    if optimizer is not None:
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value.detach().cpu().contiguous() for key, value in state.items()}
    if position is not None and position.generator is not None:
        tensors["generator"] = position.generator
    content = _content(readout, names) | {
        "configuration": configuration,
        "position": None if position is None else [position.epoch, position.batch, position.step],
    }
    metadata = {"format": FORMAT, "version": VERSION, "content": json.dumps(content)}
    write_atomically(path, save(tensors, metadata))


def _content(readout: Readout, names: Mapping[nn.Module, str]) -> dict[str, Any]:
    network = readout.network
    return {
        "sites": [
            {
                "layer": names.get(site.layer),
                "at_input": site.at_input,
                "kind": type(site.layer).__name__,
                "shapes": shapes_of(site.layer),
                "statistics": readout.statistics[site].metadata,
            }
            for site in readout.sites
        ],
        "sources": [readout.sites.index(source) for source in readout.sources],
        "settings": asdict(readout.settings),
        "widths": None if network is None else [len(network.first_bias), network.second.out_features],
        "dtype": None if network is None else str(network.first_bias.dtype).removeprefix("torch."),
        "history": readout.history.to_dict(),
    }


def shapes_of(module: nn.Module) -> dict[str, list[int]]:
    """Shapes of a module's parameters and buffers by name: what tells one network's layer from another's."""
    return {name: list(value.shape) for name, value in module.state_dict().items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class _Read:
    """A file's parts."""

    path: Path
    content: dict[str, Any]
    tensors: dict[str, Tensor]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose names begin so, without that."""
        start = f"{prefix}."
        return {name.removeprefix(start): value for name, value in self.tensors.items() if name.startswith(start)}


def layer_of(path: Path) -> str:
    """Name of the bottleneck's layer in a file.

    Raises:
        MissingFileError: no such file.
        ReadoutFileError: a damaged file, or one of another kind.
    """
    read = _open(path)
    try:
        return str(read.content["sites"][0]["layer"])
    except (KeyError, IndexError, TypeError) as error:
        raise _damaged(path, error) from error


def _open(path: Path) -> _Read:
    if not path.is_file():
        raise MissingFileError(f"No readout at {str(path)!r}. Write one with save(path).")
    return _parse(path, path.read_bytes())


def read_readout(path: Path, site: Site, names: Mapping[nn.Module, str]) -> Readout:
    """Read a readout for a layer of this model.

    Args:
        path (Path): a file written by :func:`write_readout`.
        site (Site): of the bottleneck.
        names (Mapping[nn.Module, str]): of the model's modules.

    Returns:
        Readout: as it was written.

    Raises:
        MissingFileError: no such file.
        ReadoutFileError: a damaged file, or one for another network, layer or side.
    """
    read = _open(path)
    try:
        sites = [_found_site(read, entry, site, names) for entry in read.content["sites"]]
        _assert_same_site(read, sites[0], site, names)
        statistics = _statistics(read, sites)
        sources = [sites[index] for index in read.content["sources"]]
        settings = ReadoutSettings(**read.content["settings"])
        readout = Readout(site, sources, statistics, settings)
        if read.content["widths"] is not None:
            readout.network = _network(read, readout)
        readout.history = TrainingHistory.from_dict(read.content["history"])
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        if isinstance(error, ReadoutFileError):
            raise
        raise _damaged(path, error) from error
    return readout


def read_checkpoint(path: Path | None, configuration: Mapping[str, Any], readout: Readout) -> Checkpoint | None:
    """What an earlier training left, as the first process finds it; None where there is nothing.

    Raises:
        InvalidArgumentError: it was another training.
        ReadoutFileError: no checkpoint, or a damaged one.
    """
    if path is None:
        return None
    content = from_all(path.read_bytes() if rank() == 0 and path.is_file() else None)[0]
    if content is None:
        return None
    read = _parse(path, content)
    before = read.content.get("configuration")
    if before is None:
        raise ReadoutFileError(
            f"{str(path)!r} holds a readout, but no training to go on with. Pass checkpoint=... another file, or load "
            "it with load(path)."
        )
    now = json.loads(json.dumps(dict(configuration)))
    differing = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if differing:
        found = "; ".join(f"{key}: {before.get(key)!r} there, {now.get(key)!r} here" for key in differing)
        raise InvalidArgumentError(
            f"The checkpoint {str(path)!r} is of another training ({found}). Pass the same arguments to go on with it, "
            "or another file."
        )
    try:
        statistics = _statistics(read, readout.sites)
        network = _network(read, Readout(readout.site, readout.sources, statistics, readout.settings))
        epoch, batch, step = read.content["position"]
        position = Position(epoch, batch, step, read.tensors.get("generator"))
        history = TrainingHistory.from_dict(read.content["history"])
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise _damaged(path, error) from error
    return Checkpoint(network, statistics, history, position, read.part("optimizer"))


def _parse(path: Path, content: bytes) -> _Read:
    try:
        tensors = load(content)
        # the header: its length in eight bytes, then JSON
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
    except (SafetensorError, ValueError, OSError) as error:
        raise ReadoutFileError(
            f"{str(path)!r} is not a readable safetensors file ({error}); it may be truncated. Train or save again."
        ) from None
    found = (metadata.get("format"), metadata.get("version"))
    if found != (FORMAT, VERSION):
        raise ReadoutFileError(
            f"{str(path)!r} does not hold a readout: found format and version {found}, wanted {(FORMAT, VERSION)}. "
            "Pass a file written by LayerReadoutIBA.save or fit(checkpoint=...)."
        )
    return _Read(path, json.loads(metadata["content"]), tensors)


def _damaged(path: Path, error: Exception) -> ReadoutFileError:
    return ReadoutFileError(
        f"{str(path)!r} holds a damaged readout ({type(error).__name__}: {error}). Train or save again."
    )


def _found_site(read: _Read, entry: dict[str, Any], site: Site, names: Mapping[nn.Module, str]) -> Site:
    """The model's layer that the file names."""
    by_name = {name: module for module, name in names.items()}
    module = by_name.get(entry["layer"])
    if module is None:
        children = [name for name in by_name if name and "." not in name]
        raise ReadoutFileError(
            f"{str(read.path)!r} is of another network: it has a layer {entry['layer']!r} ({entry['kind']}), which "
            f"this one has not; its children are {children}. Load it with the network it was trained for."
        )
    own = shapes_of(module)
    for name in sorted({*own, *entry["shapes"]}):
        if own.get(name) != entry["shapes"].get(name):
            raise ReadoutFileError(
                f"{str(read.path)!r} is of another network: in {shown(entry['layer'], module)}, {name!r} has shape "
                f"{entry['shapes'].get(name, 'none')} there and {own.get(name, 'none')} here. Load it with the network "
                "it was trained for."
            )
    if module is site.layer and entry["at_input"] == site.at_input:
        return site
    found = site_of(module, dict(names))
    return Site(found.layer, found.name, entry["at_input"])


def _assert_same_site(read: _Read, found: Site, site: Site, names: Mapping[nn.Module, str]) -> None:
    if found != site:
        raise ReadoutFileError(
            f"{str(read.path)!r} is a readout of the {found.side} of layer {names.get(found.layer)!r}, and this object "
            f"is at the {site.side} of {names.get(site.layer)!r}. Create LayerReadoutIBA with that layer, and pass "
            "attribute_to_layer_input as it was trained."
        )


def _statistics(read: _Read, sites: list[Site]) -> dict[Site, FeatureStatistics]:
    found = {}
    for index, (site, entry) in enumerate(zip(sites, read.content["sites"], strict=True)):
        tensors = read.part(f"statistics.{index}")
        found[site] = FeatureStatistics.from_metadata(read.path, entry["statistics"], tensors)
    return found


def _network(read: _Read, readout: Readout) -> ReadoutNetwork:
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
