"""The weights between two layers of units, where there are such."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from captum_iba.errors import UnsupportedModelError

Weighted: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# with parameters of their own, but one unit out depends on one unit in
_UNIT_WISE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.PReLU)
# without, perhaps, but they mix units
_MIXING = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
    nn.CrossMapLRN2d,
    nn.Softmax,
    nn.LogSoftmax,
    nn.Softmax2d,
    nn.Softmin,
    nn.GLU,
    nn.ChannelShuffle,
    nn.Bilinear,
)


def is_unit_wise(module: nn.Module) -> bool:
    """Whether, as far as can be told, each unit of a module's output depends on one unit of its input."""
    has_parameters = next(module.parameters(recurse=False), None) is not None
    return not isinstance(module, _MIXING) and (isinstance(module, _UNIT_WISE) or not has_parameters)


@dataclass(frozen=True)
class Link:
    """What lies between the units of two layers: one linear or convolutional module that reads the one for the other.

    Attributes:
        module (nn.Module or None): the module; None where there is not exactly one, it is not the only way, or units
            cannot be told apart.
        reason (str): why there is none.
        n_in (int): units read.
        n_out (int): units written.
    """

    module: Weighted | None
    reason: str
    n_in: int
    n_out: int

    def strengths(self) -> Tensor:
        """(n_in, n_out), float64: sum of the absolute weights from one unit to another.

        Raises:
            UnsupportedModelError: there is no such module.
        """
        weight = dense_weight(self.weighted()).abs().double().sum(dim=2)
        return weight.reshape(self.n_out, -1, self.n_in, weight.shape[1] // self.n_in).sum(dim=(1, 3)).T

    def weighted(self) -> Weighted:
        """The module.

        Raises:
            UnsupportedModelError: there is none.
        """
        if self.module is None:
            raise UnsupportedModelError(self.reason)
        return self.module

    def features_of(self, units: Sequence[int]) -> list[int]:
        """The module's input features that come from these units: after a flattening, several of each."""
        width = input_width(self.weighted()) // self.n_in
        return [unit * width + position for unit in units for position in range(width)]

    def rows_of(self, units: Sequence[int]) -> list[int]:
        """The module's output features that become these units."""
        width = output_width(self.weighted()) // self.n_out
        return [unit * width + position for unit in units for position in range(width)]


def link_of(between: Sequence[nn.Module], n_in: int, n_out: int, names: tuple[str, str]) -> Link:
    """Find the module that links two layers among those that ran between them."""
    what = f"between {names[0]} and {names[1]}"
    weighted = [module for module in between if isinstance(module, WEIGHTED)]
    others = [m for m in between if not isinstance(m, WEIGHTED) and not is_unit_wise(m)]
    if len(weighted) != 1 or others:
        ran = ", ".join(type(module).__name__ for module in between) or "nothing"
        return Link(None, f"{what} there is not one linear or convolutional module alone: {ran} ran.", n_in, n_out)
    module = weighted[0]
    if parametrize.is_parametrized(module):
        return Link(None, f"{what} the weights are computed (parametrized); remove the parametrization.", n_in, n_out)
    read, written = input_width(module), output_width(module)
    grouped = isinstance(module, CONVOLUTIONS)
    if read % n_in or written % n_out or (grouped and (read != n_in or written != n_out)):
        text = f"{what} a {type(module).__name__} takes {read} features to {written}; the units are {n_in} and {n_out}."
        return Link(None, text, n_in, n_out)
    return Link(module, "", n_in, n_out)


def input_width(module: Weighted) -> int:
    """Number of features that a module reads."""
    return module.in_features if isinstance(module, nn.Linear) else module.in_channels


def output_width(module: Weighted) -> int:
    """Number of features that a module writes."""
    return module.out_features if isinstance(module, nn.Linear) else module.out_channels


def dense_weight(module: Weighted) -> Tensor:
    """(out, in, k), k places of the kernel; groups of a convolution stand as blocks in a matrix of zeros."""
    weight = module.weight.detach()
    if isinstance(module, nn.Linear):
        return weight.unsqueeze(-1)
    weight = weight.flatten(2)
    dense = weight.new_zeros(module.out_channels, module.in_channels, weight.shape[-1])
    out, read = module.out_channels // module.groups, module.in_channels // module.groups
    for group in range(module.groups):
        rows = slice(group * out, (group + 1) * out)
        dense[rows, group * read : (group + 1) * read] = weight[rows]
    return dense


def clear_input(module: Weighted, features: Sequence[int]) -> None:
    """Set the weights of some input features to 0, in place."""
    with torch.no_grad():
        if isinstance(module, nn.Linear) or module.groups == 1:
            module.weight[:, list(features)] = 0
            return
        out, read = module.out_channels // module.groups, module.in_channels // module.groups
        for feature in features:
            group = feature // read
            module.weight[group * out : (group + 1) * out, feature % read] = 0
