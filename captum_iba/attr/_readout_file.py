"""Readout bottlenecks as files.

One file, so that weights, statistics and configuration are replaced together or not at all. A checkpoint is the same
file with the optimiser's state and the position in the data beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from captum_iba._files import write_atomically
from captum_iba._warn import Warner
from captum_iba.attr._readout import Readout, ReadoutSettings
from captum_iba.attr._readout_checkpoint import Position
from captum_iba.attr._readout_format import (
    FORMAT,
    VERSION,
    Parts,
    damage_explained,
    history_in,
    network_in,
    open_parts,
    shapes_of,
    statistics_in,
    weights_digest,
)
from captum_iba.attr._readout_layers import shown, site_of
from captum_iba.bottleneck.replay import Site
from captum_iba.errors import InvalidArgumentError, MissingFileError, ReadoutFileError


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


def layer_of(path: Path) -> str:
    """Name of the bottleneck's layer in a file.

    Raises:
        MissingFileError: no such file.
        ReadoutFileError: a damaged file, or one of another kind.
    """
    read = open_parts(path)
    with damage_explained(path):
        return str(read.content["sites"][0]["layer"])


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
    read = open_parts(path)
    with damage_explained(path):
        sites = [_found_site(read, entry, site, names) for entry in read.content["sites"]]
        _assert_same_site(read, sites[0], site, names)
        statistics = statistics_in(read, sites)
        sources = [sites[index] for index in read.content["sources"]]
        readout = Readout(site, sources, statistics, _settings(read.content["settings"]))
        if read.content["widths"] is not None:
            readout.network = network_in(read, readout)
        readout.history = history_in(read)
        weights = str(read.content["weights"])
    if weights != weights_digest(names):
        warner.once(
            ("weights", str(path)),
            f"{str(path)!r} was trained for other weights of this network (or in another precision), so its masks may "
            "not suit it; the bits stay an upper bound for the statistics they were made with. Train it for these.",
        )
    return readout


def _settings(content: dict[str, Any]) -> ReadoutSettings:
    if set(content) != {field.name for field in fields(ReadoutSettings)}:
        raise ValueError(f"settings {sorted(content)}")
    return ReadoutSettings(**content)


def _found_site(read: Parts, entry: dict[str, Any], site: Site, names: Mapping[nn.Module, str]) -> Site:
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


def _assert_same_site(read: Parts, found: Site, site: Site, names: Mapping[nn.Module, str]) -> None:
    if found != site:
        raise ReadoutFileError(
            f"{str(read.path)!r} is a readout of the {found.side} of layer {names.get(found.layer)!r}, and this object "
            f"is at the {site.side} of {names.get(site.layer)!r}. Create LayerReadoutIBA with that layer, and pass "
            "attribute_to_layer_input as it was trained."
        )
