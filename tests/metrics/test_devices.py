"""The law of devices: every tensor that a metric makes is put where the user's are, or on the CPU by name.

A default device that computes nothing shows this without a second device: a tensor made there by mistake cannot be
mixed with the others.
"""

import dataclasses

import pytest
import torch

from captum_iba import LayerIBA
from captum_iba.metrics import (
    bounding_box_ratio,
    boxes_to_mask,
    degradation,
    deletion,
    insertion,
    log_spaced,
    parameter_randomization,
    sensitivity_n,
    sufficiency,
)
from tests.literal import normal, small_cnn
from tests.metrics.randomized_models import edges

MODEL = small_cnn(inplace=False)
X, MAPS = normal(3, 3, 10, 10), normal(3, 1, 5, 5, seed=1).round(decimals=1)
EACH = torch.arange(100).view(1, 1, 10, 10).repeat(3, 1, 1, 1) // torch.tensor([3, 4, 5]).view(3, 1, 1, 1)
MASKS = torch.zeros(3, 10, 10)
MASKS[:, 2:7, 1:6] = 1
SIZES = log_spaced(20)
FINE, TARGET, SETS = normal(3, 1, 10, 10), torch.tensor([0, 1, 2]), torch.tensor([[0, 1], [3, 1], [2, 0]])
STATISTICS = LayerIBA(MODEL, MODEL[3]).estimate(normal(40, 3, 10, 10, seed=9)).statistics

METRICS = {
    "bounding box": lambda: bounding_box_ratio(MAPS, MASKS),
    "bounding box of tokens": lambda: bounding_box_ratio(MAPS.flatten(1), MASKS[:, :5, :5].flatten(1)),
    "degradation": lambda: degradation(MODEL, X, MAPS, target=1, tile_size=3),
    "degradation, paper": lambda: degradation(MODEL, X, MAPS, "blur", target=[0, 1, 2], tile_size=5, points="paper"),
    "degradation, groups": lambda: degradation(MODEL, X, MAPS, 0.5, EACH, target=1, n_steps=5, n_tie_draws=2),
    "deletion": lambda: deletion(MODEL, X, MAPS, "zero", target=TARGET, n_steps=5),
    "insertion": lambda: insertion(MODEL, X, MAPS, target=1, n_steps=5),
    "sensitivity-n": lambda: sensitivity_n(MODEL, X, MAPS, target=1, tile_size=2, n_perturb_samples=4),
    "sensitivity-n, groups": lambda: sensitivity_n(MODEL, X, MAPS, [2], "mean", EACH, target=1, n_perturb_samples=4),
    "sensitivity-n, given sets": lambda: sensitivity_n(MODEL, X, MAPS, target=1, tile_size=5, index_sets=[SETS]),
    "parameter randomization": lambda: parameter_randomization(MODEL, edges, X, reference_func=edges),
    "parameter randomization, permuted": lambda: parameter_randomization(
        MODEL, edges, X, method="permute", similarity="spearman", sign_invariant=True
    ),
    "sufficiency": lambda: sufficiency(MODEL, X, MAPS, MODEL[3], STATISTICS, target=1, n_samples=2),
    "sufficiency, thresholds": lambda: sufficiency(
        MODEL, X, FINE, MODEL[3], STATISTICS, target=1, thresholds=[0.0, 0.5], n_samples=2
    ),
}


@pytest.mark.parametrize("name", METRICS)
def test_nothing_is_made_on_the_default_device(name):
    """Results under another default device are the same, to the last bit and in the same place."""
    wanted = METRICS[name]()
    with torch.device("meta"):
        found = METRICS[name]()
    for field in dataclasses.fields(wanted):
        value, expected = getattr(found, field.name), getattr(wanted, field.name)
        if isinstance(expected, torch.Tensor):
            assert value.device == expected.device and torch.equal(value.nan_to_num(9), expected.nan_to_num(9))
        else:
            assert value == expected


def test_masks_and_sizes_too():
    """Boxes are drawn on the CPU, wherever other tensors go."""
    with torch.device("meta"):
        assert boxes_to_mask([[0, 0, 2, 1]], (2, 2)).int().tolist() == [[1, 1], [0, 0]]
        assert log_spaced(20) == SIZES


def test_masks_go_to_the_attributions_device():
    """Boxes are drawn on the CPU, and maps often lie elsewhere: it is the masks that move."""
    moved = []

    class Elsewhere(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, arguments=(), options=None):
            if function is torch.Tensor.to:
                moved.append(arguments[1])
            return super().__torch_function__(function, types, arguments, options or {})

    bounding_box_ratio(MAPS, MASKS.as_subclass(Elsewhere))
    assert moved[0] == MAPS.device
