"""Where a training stands, and how it is found again in its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_iba._processes import from_all, rank
from captum_iba.attr._readout import Readout
from captum_iba.attr._readout_format import (
    Parts,
    damage_explained,
    history_in,
    network_in,
    open_parts,
    parse,
    statistics_in,
)
from captum_iba.attr.training_history import TrainingHistory
from captum_iba.bottleneck.readout import ReadoutNetwork
from captum_iba.bottleneck.replay import Site
from captum_iba.bottleneck.statistics import FeatureStatistics
from captum_iba.errors import InvalidArgumentError, ReadoutFileError


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
    read = parse(path, content)
    before = read.content.get("configuration")
    if before is None:
        raise ReadoutFileError(
            f"{str(path)!r} holds a readout, but no training to go on with. Pass checkpoint=... another file, or load "
            "it with load(path)."
        )
    with damage_explained(path):
        now, before = json.loads(json.dumps(dict(configuration))), dict(before)
        differing = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if differing:
        found = "; ".join(f"{key}: {before.get(key)!r} there, {now.get(key)!r} here" for key in differing)
        raise InvalidArgumentError(
            f"The checkpoint {str(path)!r} is of another training ({found}). Pass the same arguments to go on with it, "
            "or another file."
        )
    with damage_explained(path):
        statistics = statistics_in(read, readout.sites)
        network = network_in(read, Readout(readout.site, readout.sources, statistics, readout.settings))
        history = history_in(read)
        return Checkpoint(network, statistics, history, _position(read), _optimizer_state(read, network))


def training_of(path: Path) -> dict[str, Any] | None:
    """Arguments of the training in a checkpoint; None for a file without one.

    Raises:
        MissingFileError: no such file.
        ReadoutFileError: a damaged file, or one of another kind.
    """
    read = open_parts(path)
    with damage_explained(path):
        configuration = read.content["configuration"]
        return None if configuration is None else dict(configuration)


def _position(read: Parts) -> Position:
    numbers = read.content["position"]
    if len(numbers) != 3 or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"position {numbers}")
    generators = read.part("generator")
    epoch, batch, step = numbers
    return Position(epoch, batch, step, [generators[str(index)] for index in range(len(generators))])


def _optimizer_state(read: Parts, network: ReadoutNetwork) -> dict[str, Tensor]:
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
