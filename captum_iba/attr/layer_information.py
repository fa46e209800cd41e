"""Bits of each token at each layer, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from captum_iba._pandas import as_dataframe
from captum_iba.attr._real_tokens import bits_of_example
from captum_iba.bottleneck.statistics import FeatureStatistics

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class LayerInformation:
    """Outcome of :func:`information_by_layer`.

    Attributes:
        layers (tuple[str, ...]): names of the layers, in the order asked for.
        bits (Tensor): (L, N, T), bits that each token passes at each layer; 0 on padding.
        position_mask (Tensor): (N, T), bool; False on padding.
        target_probability (Tensor or None): (L, N), mean probability of the target through each bottleneck; None where
            the objective is not that of a probability.
        tokens (list[list[str]]): each example's real tokens; their numbers where no tokenizer was given.
        cls_position (int): number of the token whose share :attr:`cls_share` is, among an example's real ones.
        statistics (dict[str, FeatureStatistics]): of each layer, for further calls; empty where there were none.
    """

    layers: tuple[str, ...]
    bits: Tensor
    position_mask: Tensor
    target_probability: Tensor | None
    tokens: list[list[str]]
    cls_position: int = 0
    statistics: Mapping[str, FeatureStatistics] = field(default_factory=dict, repr=False)

    @property
    def total_bits(self) -> Tensor:
        """(L, N), bits of all tokens together."""
        return self.bits.sum(dim=2)

    @property
    def cls_share(self) -> Tensor:
        """(L, N), share of the bits at :attr:`cls_position`, [CLS] in BERT; NaN where there are no bits at all."""
        place = self.position_mask.cumsum(dim=1) - 1
        count = self.position_mask.sum(dim=1, keepdim=True)
        wanted = self.cls_position if self.cls_position >= 0 else count + self.cls_position
        at = self.position_mask & (place == wanted)
        return (self.bits * at).sum(dim=2) / self.total_bits

    @property
    def effective_tokens(self) -> Tensor:
        """(L, N), over how many tokens the bits spread: exp of the entropy of their shares, 1 for a single one.

        NaN where there are no bits at all.
        """
        entropy: Tensor = torch.special.entr(self.bits / self.total_bits.unsqueeze(2)).sum(dim=2)
        return entropy.exp()

    @property
    def most_informative_layer(self) -> str:
        """The layer that passes the most bits, in the mean over the examples."""
        return self.layers[int(self.total_bits.mean(dim=1).argmax())]

    def of_example(self, index: int) -> Tensor:
        """(L, real tokens), one example's bits without padding.

        Raises:
            InvalidArgumentError: there is no such example.
        """
        return bits_of_example(self.bits, self.position_mask, index)

    def to_dataframe(self) -> DataFrame:
        """One row for each layer and example, with all the figures of :class:`LayerInformation`.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        n = len(self.position_mask)
        columns: dict[str, object] = {
            "layer": [layer for layer in self.layers for _ in range(n)],
            "example": [*range(n)] * len(self.layers),
        }
        values = {
            "total_bits": self.total_bits,
            "target_probability": self.target_probability,
            "cls_share": self.cls_share,
            "effective_tokens": self.effective_tokens,
        }
        columns |= {
            name: None if value is None else value.double().cpu().flatten().numpy() for name, value in values.items()
        }
        return as_dataframe(columns)
