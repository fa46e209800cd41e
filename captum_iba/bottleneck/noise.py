"""Standard normal noise that depends on a seed and on nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor


class Noise:
    """Standard normal noise, one draw for all examples of a batch, from a generator of its own on the CPU.

    An example's result thus depends neither on the batch around it nor on device and precision, and the global random
    state is left alone.

    Args:
        shape (tuple[int, ...]): shape of one example's features.
        like (Tensor): gives dtype and device.
        seed (int): of the generator.
        by_position (bool, optional): draw position after position, so that a longer sequence gets the same noise at
            the positions it shares with a shorter one. Default: False.
    """

    def __init__(self, shape: tuple[int, ...], like: Tensor, seed: int, by_position: bool = False) -> None:
        self._shape, self._like, self._by_position = shape, like, by_position
        self._seed, self._n_draws = seed, 0
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def draw(self, n_samples: int) -> Tensor:
        """Return one draw for each of n_samples copies: (n_samples, ...)."""
        if not self._by_position:
            return self._normal((n_samples, *self._shape)).to(self._like)
        # every draw begins afresh, since one for a longer sequence uses up more numbers
        self._generator.manual_seed(derived_seed(self._seed, 0, self._n_draws))
        self._n_draws += 1
        width = n_samples * math.prod(self._shape[1:])
        # torch fills in blocks of 16; a row that ends inside a block would change with the number of rows
        rows = self._normal((self._shape[0], -(-width // 16) * 16))
        drawn = rows[:, :width].reshape(self._shape[0], n_samples, *self._shape[1:]).movedim(1, 0)
        return drawn.contiguous().to(self._like)

    def _normal(self, shape: tuple[int, ...]) -> Tensor:
        # the same numbers for every device and precision
        return torch.randn(shape, generator=self._generator, dtype=torch.float32, device="cpu")


class BlockNoise:
    """Noise of several seeds at once, one for each of equal blocks of a batch's rows.

    Args:
        noises (Sequence[Noise]): the sources, one a block.
        n_examples (int): rows of each block.
    """

    def __init__(self, noises: Sequence[Noise], n_examples: int) -> None:
        self._noises, self._n_examples = noises, n_examples

    def draw(self, n_samples: int) -> Tensor:
        """Return one draw for each of n_samples copies of each block's rows: (n_samples, rows, ...)."""
        draws = torch.stack([noise.draw(n_samples) for noise in self._noises], dim=1)
        return draws.repeat_interleave(self._n_examples, dim=1)


class PlacedNoise:
    """Noise by position, for batches whose examples begin at different positions, such as those padded on the left.

    Args:
        noise (Noise or BlockNoise): drawn for tokens (T, D).
        place (Tensor): (N, T), integer; the draw's position that stands at each of an example's.
    """

    def __init__(self, noise: Noise | BlockNoise, place: Tensor) -> None:
        self._noise, self._place = noise, place

    def draw(self, n_samples: int) -> Tensor:
        """Return one draw for each of n_samples copies of each row: (n_samples, N, T, D)."""
        drawn = self._noise.draw(n_samples)
        if drawn.ndim == 3:  # one draw for all examples
            return drawn[:, self._place]
        return drawn.take_along_dim(self._place[None, :, :, None], dim=2)


AnyNoise: TypeAlias = Noise | BlockNoise | PlacedNoise


def derived_seed(seed: int, *numbers: int) -> int:
    """A seed for one of several purposes, which share no numbers.

    Args:
        seed (int): of the call.
        *numbers (int): which purpose.
    """
    state = np.random.SeedSequence((seed, *numbers)).generate_state(1, np.uint64)
    return int(state[0]) >> 1  # generators take 63 bits
