"""Mutual information of cells of a grid, and of labels: counts in place of densities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from captum_iba._numbers import assert_integer, assert_number
from captum_iba.errors import InvalidArgumentError
from captum_iba.information.estimate import Estimate, from_terms
from captum_iba.information.estimator import Estimator
from captum_iba.information.variables import is_labels, numbered


@dataclass(frozen=True)
class Binning(Estimator, name="binning"):
    """Mutual information of binned variables; labels are counted as they are.

    Rows of several columns are cells of a grid in as many dimensions. Never a default for numbers: the value depends
    on the grid, and in many dimensions nearly every example has a cell of its own, which caps it at ln n. For two sets
    of labels it is the plug-in estimate, with the bias correction of Miller (1955) and Madow.

    Args:
        bins (int, optional): number of bins of each column. Default: 8.
        width (float or None, optional): width of all bins, cut at its multiples, in place of ``bins``. Default: None.
        limits (tuple[float, float] or None, optional): where the equally wide bins begin and end; what lies outside
            belongs to the outermost. Default: None, each column's smallest and largest value.
        mass (str, optional): ``"width"`` for bins of equal width, ``"mass"`` for bins with equally many examples.
            Default: ``"width"``, as in most of the literature.
        correction (bool, optional): subtract the bias (m_xy - m_x - m_y + 1) / 2n, m the numbers of cells that are not
            empty. Default: True.

    Examples::

        >>> import torch
        >>> from captum_iba.information import Binning, mutual_information
        >>> x = torch.tensor([0, 0, 1, 1] * 25)
        >>> y = torch.tensor([0, 1, 0, 1] * 25)
        >>> float(mutual_information(x, x, Binning(correction=False)))
        1.0
        >>> float(mutual_information(x, y, Binning(correction=False)))
        0.0
    """

    bins: int = 8
    width: float | None = None
    limits: tuple[float, float] | None = None
    mass: Literal["width", "mass"] = "width"
    correction: bool = True

    takes_labels: ClassVar[str] = "both"
    at_least: ClassVar[int] = 2

    def __post_init__(self) -> None:
        assert_integer("bins", self.bins)
        if self.width is not None:
            assert_number("width", self.width, lambda value: value > 0, "above 0")
        if self.mass not in ("width", "mass"):
            raise InvalidArgumentError(f'mass={self.mass!r}; wanted "width" or "mass".')
        if self.limits is not None and not self.limits[0] < self.limits[1]:
            raise InvalidArgumentError(f"limits={self.limits!r}; wanted a smaller and a larger number.")

    def estimate(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Estimate:
        """See :meth:`Estimator.estimate`."""
        x, y = self.cells(x), self.cells(y)
        xy = numbered(torch.stack([x, y], dim=1))
        counts = [cells.bincount() for cells in (x, y, xy)]
        shares = [count[cells].double() / len(x) for count, cells in zip(counts, (x, y, xy), strict=True)]
        terms = shares[2].log() - shares[0].log() - shares[1].log()
        if self.correction:
            m_x, m_y, m_xy = (len(count) for count in counts)
            terms = terms - (m_xy - m_x - m_y + 1) / (2 * len(x))
        # as many different values as examples say no more than that
        cap = float(terms.new_tensor(float(len(x))).log())
        return from_terms(terms, repr(self), cap)

    def cells(self, variable: Tensor) -> Tensor:
        """The cell of each example, numbered 0, 1, ...; (n, d) or labels (n,) -> (n,)."""
        if is_labels(variable):
            return numbered(variable[:, None])
        return numbered(self._bins(variable))

    def _bins(self, variable: Tensor) -> Tensor:
        if self.width is not None:
            return (variable / self.width).floor()  # not as integers, which huge numbers overflow
        if self.mass == "mass":
            # ranks with the smallest of tied ones, so that equal values share a bin
            ordered = variable.T.contiguous().sort(dim=1).values
            ranks = torch.searchsorted(ordered, variable.T.contiguous()).T
            return ranks * self.bins // len(variable)
        low, high = self.limits or (variable.amin(dim=0), variable.amax(dim=0))
        span = torch.as_tensor(high - low, dtype=variable.dtype, device=variable.device)
        shares = (variable - low) / span.where(span > 0, torch.ones_like(span))
        return (shares * self.bins).floor().clamp(0, self.bins - 1).long()
