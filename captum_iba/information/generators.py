"""Sources of randomness that share nothing with those of users."""

from __future__ import annotations

import torch

from captum_iba._numbers import assert_integer
from captum_iba.bottleneck.noise import derived_seed

# any number that tells these generators from others of the same seed
_PURPOSE = 6


def generator_of(seed: int) -> torch.Generator:
    """A generator on the CPU, whose numbers are not those of a user who drew the data with the same seed.

    Raises:
        InvalidArgumentError: no integer of at least 0.
    """
    assert_integer("seed", seed, least=0)
    return torch.Generator("cpu").manual_seed(derived_seed(seed, _PURPOSE))
