"""Patterns of linear layers: the direction of the input in which a neuron's signal lies."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from captum_iba._files import write_atomically
from captum_iba.attr._chain import Link
from captum_iba.errors import MissingFileError, StatisticsFileError

FORMAT = "captum_iba.patterns"
VERSION = "1"


class PatternEstimator:
    r"""Streams the moments of one layer's inputs and outputs, and gives its patterns.

    With :math:`E_+` the mean over the inputs x (patches, for convolutions) on which the neuron's ReLU lets
    :math:`y > 0` pass, and E that over all inputs,

    .. math:: a = \frac{E_+[x y] - E_+[x] E[y]}{w^T (E_+[x y] - E_+[x] E[y])}.

    Without ReLU :math:`E_+ = E` and a = cov[x, y] / var[y]. The paper writes layers without bias. Here a bias is the
    weight of one more input, always 1, whose term :math:`b (E_+[y] - E[y])` the denominator then contains too. Without
    it the denominator would be no variance, and near 0 or negative for many neurons with large biases; with it
    :math:`w^T a` and the bias's share :math:`b (E_+[y] - E[y]) / (\ldots)` add up to 1.

    The sums over patches are weight gradients of the convolution: no patch is written out.

    Args:
        link (Link): a convolution or linear layer.
        is_gated (bool): use the positive regime alone.

    Reference:
        Kindermans et al.: Learning how to explain neural networks, ICLR 2018, section 4, linear and two-component
        estimator.
    """

    def __init__(self, link: Link, is_gated: bool) -> None:
        self._link, self._is_gated = link, is_gated
        weight, bias = link.folded()
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self._weight = weight.to(dtype)
        # where all inputs pass, a bias changes nothing
        self._bias = bias.to(dtype) if bias is not None and is_gated else self._weight.new_zeros(len(weight))
        self._sum_x, self._sum_xy = torch.zeros_like(self._weight), torch.zeros_like(self._weight)
        # over all inputs: y; over those that pass: their number, y, and the size of the terms
        self._sum_y, self._passing, self._passing_y, self._size = self._weight.new_zeros(4, len(weight))
        self._centre: Tensor | None = None
        self._count = 0

    def add(self, x: Tensor) -> None:
        """Take in a batch of the layer's inputs, (N, ...)."""
        weight = self._weight.detach().requires_grad_()
        with torch.enable_grad():
            product = self._link.linear(x.detach().to(weight.dtype), weight)
        # a neuron for each entry of this axis; all other axes count as examples
        axis = product.ndim - 1 if weight.ndim == 2 else 1
        others = [other for other in range(product.ndim) if other != axis]
        along = [-1 if other == axis else 1 for other in range(product.ndim)]
        plain, bias = product.detach(), self._bias.reshape(along)
        if self._centre is None:
            self._centre = plain.mean(dim=others)
        passes = (plain + bias > 0).to(plain.dtype) if self._is_gated else torch.ones_like(plain)
        # any constant in y cancels; centred, no digits are lost
        y = plain - self._centre.reshape(along)
        self._sum_x += torch.autograd.grad(product, weight, passes, retain_graph=True)[0]
        self._sum_xy += torch.autograd.grad(product, weight, passes * y)[0]
        self._sum_y += y.sum(dim=others)
        self._passing += passes.sum(dim=others)
        self._passing_y += (passes * y).sum(dim=others)
        self._size += (passes * plain.abs() * (plain.abs() + bias.abs())).sum(dim=others)
        self._count += y.numel() // len(weight)

    def result(self) -> Tensor:
        """The patterns, of the weight's shape; 0 for neurons without a signal."""
        columns = [-1, *[1] * (self._weight.ndim - 1)]
        mean = self._sum_y / self._count
        # the number of passing inputs is left out of both, as it cancels
        numerator = self._sum_xy - self._sum_x * mean.reshape(columns)
        of_bias = self._bias * (self._passing_y - self._passing * mean)
        denominator = (self._weight * numerator).flatten(1).sum(dim=1) + of_bias
        lengths = self._weight.flatten(1).norm(dim=1) * numerator.flatten(1).norm(dim=1)
        # below this, what remains of the terms' difference is rounding
        floor = torch.finfo(self._weight.dtype).eps ** 0.75 * torch.maximum(lengths, self._size)
        denominator = denominator.masked_fill(denominator <= floor, torch.inf)
        patterns: Tensor = numerator / denominator.reshape(columns)
        return patterns


def save_patterns(patterns: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write patterns as safetensors, atomically.

    Args:
        patterns (Mapping[str, Tensor]): by layer.
        path (str or PathLike): the file.
    """
    tensors = {name: pattern.contiguous().cpu() for name, pattern in patterns.items()}
    write_atomically(Path(path), save(tensors, {"format": FORMAT, "version": VERSION}))


def load_patterns(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read patterns.

    Args:
        path (str or PathLike): a file written by :func:`save_patterns`.

    Returns:
        dict[str, Tensor]: patterns by layer.

    Raises:
        MissingFileError: no such file.
        StatisticsFileError: a damaged file, or one of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"No patterns file at {str(path)!r}. Write one with save(path).")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            patterns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise StatisticsFileError(
            f"{str(path)!r} is not a readable safetensors file ({error}); it may be truncated. Run fit and save again."
        ) from None
    found = (metadata.get("format"), metadata.get("version"))
    if found != (FORMAT, VERSION) or not all(bool(torch.isfinite(pattern).all()) for pattern in patterns.values()):
        raise StatisticsFileError(
            f"{str(path)!r} does not hold patterns: found format and version {found} with tensors {sorted(patterns)}, "
            f"wanted {(FORMAT, VERSION)} and finite numbers. Pass a file written by save."
        )
    return patterns
