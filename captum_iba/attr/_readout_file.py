"""Readout bottlenecks as files: safetensors, with everything that is no tensor as JSON in the header.

One file, so that weights, statistics and configuration are replaced together or not at all. A checkpoint is the same
file with the optimiser's state and the position in the data beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from captum_iba._files import write_atomically
from captum_iba._processes import from_all, rank
from captum_iba._warn import Warner
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
        generators (list[Tensor]): states of the loader's own generators at the start of the epoch.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    generators: list[Tensor] = field(default_factory=list, repr=False)


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


def assert_writable(path: Path, readout: Readout, names: Mapping[nn.Module, str]) -> None:
    """Refuse a path that cannot be written, and layers that could not be found again, before any work is done.

    Raises:
        MissingFileError: the folder does not exist.
        InvalidArgumentError: the path is a folder, or a layer has no name.
    """
    if not path.parent.is_dir():
        raise MissingFileError(f"The folder {str(path.parent)!r} does not exist; create it first.")
    if path.is_dir():
        raise InvalidArgumentError(f"{str(path)!r} is a folder; wanted the path of a file.")
    if any(site.layer not in names for site in readout.sites):
        raise InvalidArgumentError(
            "A readout is written with its layers' names, but forward_func hides its modules. Pass the nn.Module "
            "itself as forward_func."
        )


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

    Raises:
        MissingFileError, InvalidArgumentError: it cannot be written.
    """
    assert_writable(path, readout, names)
    tensors: dict[str, Tensor] = {}
    for index, site in enumerate(readout.sites):
        own = readout.statistics[site].tensors
        tensors |= {f"statistics.{index}.{name}": tensor for name, tensor in own.items()}
    if readout.network is not None:
        state = readout.network.state_dict()
        tensors |= {f"network.{name}": tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    if optimizer is not None:
        for index, own in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value.detach().cpu().contiguous() for key, value in own.items()}
    for number, generator in enumerate([] if position is None else position.generators):
        tensors[f"generator.{number}"] = generator
    tensors |= {f"history.{name}": table for name, table in readout.history.to_tensors().items()}
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
        "weights": weights_digest(names),
        "settings": asdict(readout.settings),
        "widths": None if network is None else [len(network.first_bias), network.second.out_features],
        "seconds": readout.history.seconds,
        "steps": len(readout.history.training),
        "validations": len(readout.history.validation),
    }


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
    with _damage_explained(path):
        return str(read.content["sites"][0]["layer"])


def training_of(path: Path) -> dict[str, Any] | None:
    """Arguments of the training in a checkpoint; None for a file without one.

    Raises:
        MissingFileError: no such file.
        ReadoutFileError: a damaged file, or one of another kind.
    """
    read = _open(path)
    with _damage_explained(path):
        configuration = read.content["configuration"]
        return None if configuration is None else dict(configuration)


def _open(path: Path) -> _Read:
    if not path.is_file():
        raise MissingFileError(f"No readout at {str(path)!r}. Write one with save(path).")
    return _parse(path, path.read_bytes())


def read_readout(path: Path, site: Site, names: Mapping[nn.Module, str], warner: Warner) -> Readout:
    """Read a readout for a layer of this model.

    Args:
        path (Path): a file written by :func:`write_readout`.
        site (Site): of the bottleneck.
        names (Mapping[nn.Module, str]): of the model's modules.
        warner (Warner): says if the network's weights are others than in training.

    Returns:
        Readout: as it was written.

    Raises:
        MissingFileError: no such file.
        ReadoutFileError: a damaged file, or one for another network, layer or side.
    """
    read = _open(path)
    with _damage_explained(path):
        sites = [_found_site(read, entry, site, names) for entry in read.content["sites"]]
        _assert_same_site(read, sites[0], site, names)
        statistics = _statistics(read, sites)
        sources = [sites[index] for index in read.content["sources"]]
        readout = Readout(site, sources, statistics, _settings(read.content["settings"]))
        if read.content["widths"] is not None:
            readout.network = _network(read, readout)
        readout.history = _history(read)
        weights = str(read.content["weights"])
    if weights != weights_digest(names):
        warner.once(
            ("weights", str(path)),
            f"{str(path)!r} was trained for other weights of this network (or in another precision), so its masks may "
            "not suit it; the bits stay an upper bound for the statistics they were made with. Train it for these.",
        )
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
    with _damage_explained(path):
        now, before = json.loads(json.dumps(dict(configuration))), dict(before)
        differing = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if differing:
        found = "; ".join(f"{key}: {before.get(key)!r} there, {now.get(key)!r} here" for key in differing)
        raise InvalidArgumentError(
            f"The checkpoint {str(path)!r} is of another training ({found}). Pass the same arguments to go on with it, "
            "or another file."
        )
    with _damage_explained(path):
        statistics = _statistics(read, readout.sites)
        network = _network(read, Readout(readout.site, readout.sources, statistics, readout.settings))
        history = _history(read)
        return Checkpoint(network, statistics, history, _position(read), _optimizer_state(read, network))


def _history(read: _Read) -> TrainingHistory:
    history = TrainingHistory.from_tensors(read.part("history"), read.content["seconds"])
    if (len(history.training), len(history.validation)) != (read.content["steps"], read.content["validations"]):
        raise ValueError("a history of another length")
    return history


def _settings(content: dict[str, Any]) -> ReadoutSettings:
    if set(content) != {field.name for field in fields(ReadoutSettings)}:
        raise ValueError(f"settings {sorted(content)}")
    return ReadoutSettings(**content)


def _position(read: _Read) -> Position:
    numbers = read.content["position"]
    if len(numbers) != 3 or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"position {numbers}")
    generators = read.part("generator")
    epoch, batch, step = numbers
    return Position(epoch, batch, step, [generators[str(index)] for index in range(len(generators))])


def _optimizer_state(read: _Read, network: ReadoutNetwork) -> dict[str, Tensor]:
    """Adam's state, if it is that of this network: after the first step each parameter has one."""
    found = read.part("optimizer")
    wanted = {f"{index}.step": torch.Size([]) for index, _ in enumerate(network.parameters())}
    for index, parameter in enumerate(network.parameters()):
        wanted |= {f"{index}.{name}": parameter.shape for name in ("exp_avg", "exp_avg_sq")}
    if not read.content["position"][2]:
        wanted = {}
    if {name: tensor.shape for name, tensor in found.items()} != wanted:
        raise ValueError("a state of the optimiser that is not this network's")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in found.values()):
        raise ValueError("a state of the optimiser that is no finite numbers")
    return found


def _parse(path: Path, content: bytes) -> _Read:
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
    with _damage_explained(path):
        parsed = json.loads(metadata["content"])
        if not isinstance(parsed, dict):
            raise ValueError(f"content that is a {type(parsed).__name__}")
        return _Read(path, parsed, tensors)


@contextmanager
def _damage_explained(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file leads to into one error."""
    try:
        yield
    except ReadoutFileError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError, AssertionError) as error:
        raise ReadoutFileError(
            f"{str(path)!r} holds a damaged readout ({type(error).__name__}: {error}). Train or save again."
        ) from error


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
