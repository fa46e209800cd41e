"""How far states and word embeddings vary over a corpus, from one pass over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_iba.attr._calibration import Pass
from captum_iba.attr._word_states import Pick, Position, assert_words
from captum_iba.bottleneck.reading import read
from captum_iba.bottleneck.replay import Site
from captum_iba.bottleneck.statistics import FeatureStatistics
from captum_iba.errors import InvalidArgumentError, StatisticsError

# A number of the state that hardly varies would outweigh all others; in shares of the root mean square of them all.
_FLOOR = 1e-3


@dataclass(frozen=True)
class WordReference:
    """Deviations over a corpus.

    Attributes:
        states (Tensor): (D,), of the numbers of a layer's state, floored at a thousandth of their root mean square.
        embeddings (float): of all numbers of the words' embeddings together.
        n_examples (int): sentences that they come from.
    """

    states: Tensor
    embeddings: float
    n_examples: int


class WordReferenceCollector:
    """Merges the statistics of batch after batch, see :func:`captum_iba.attr._calibration.stream`.

    Args:
        embedding (Site): of the word embedding.
        sites (Sequence[Site]): of the layers.
        position: which state.
        max_examples (int): examples to stop at.
    """

    def __init__(self, embedding: Site, sites: Sequence[Site], position: Position, max_examples: int) -> None:
        self._embedding, self._sites, self._position = embedding, list(sites), position
        self._max_examples, self.n_samples = max_examples, 0
        self._words: FeatureStatistics | None = None
        self._states: dict[Site, FeatureStatistics] = {}

    @property
    def is_full(self) -> bool:
        """Whether max_examples were seen."""
        return self.n_samples >= self._max_examples

    def add(self, call: Pass) -> None:
        """Run one batch as far as the last layer and merge its statistics."""
        sites = list(dict.fromkeys([self._embedding, *self._sites]))
        found = dict(zip(sites, read(sites, call).features, strict=True))
        words = found[self._embedding]
        assert_words(words, len(words), self._embedding.name)
        real = call.real(words, 2, self._embedding.name)
        mask = torch.ones_like(words[..., 0], dtype=torch.bool) if real is None else real[..., 0]
        own = FeatureStatistics.from_features(words[mask].reshape(-1, 1), 1)
        self._words = own if self._words is None else self._words.merge(own)
        for site in self._sites:
            rows = FeatureStatistics.from_features(self._rows(site, found[site], mask), 1)
            self._states[site] = self._states[site].merge(rows) if site in self._states else rows
        self.n_samples += len(words)

    def _rows(self, site: Site, features: Tensor, mask: Tensor) -> Tensor:
        """States (M, D) of all that count."""
        pick = Pick(self._position, mask, site.name)
        states = pick(features)
        if states.ndim not in (2, 3):
            raise InvalidArgumentError(
                f"{site.name} gives {list(states.shape)}; wanted states (examples, width) or (examples, positions, "
                "width). Choose a layer of tokens, or pass position=a function that takes a state from them."
            )
        return states if states.ndim == 2 else states[mask] if pick.has_positions(features) else states.flatten(0, 1)

    def result(self) -> Mapping[Site, WordReference]:
        """The deviations of each layer.

        Raises:
            StatisticsError: fewer than two examples, or a layer whose state does not vary.
        """
        if self.n_samples < 2 or self._words is None:
            raise StatisticsError(
                f"estimate_reference_std needs at least 2 sentences, found {self.n_samples} in data; a hundred are a "
                "good start, and a generator can be used only once."
            )
        found = {}
        for site, statistics in self._states.items():
            std = statistics.std
            typical = float(std.square().mean().sqrt())
            if typical <= 0:
                raise StatisticsError(
                    f"The state at {site.name}, position={self._position!r}, is the same for all {self.n_samples} "
                    "sentences, so there is no unit for its errors. Choose a layer and position that depend on them."
                )
            found[site] = WordReference(std.clamp_min(_FLOOR * typical), float(self._words.std), self.n_samples)
        return found
