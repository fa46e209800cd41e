"""Agreement with Quantus, an independent implementation, where its definitions are the same."""

import numpy as np
import pytest
import quantus
import torch
from torch import nn

from captum_iba.metrics import bounding_box_ratio, degradation, sensitivity_n
from tests.literal import normal

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

N, SIDE, TARGET = 4, 16, [0, 2, 1, 2]
QUIET = {"normalise": False, "disable_warnings": True, "display_progressbar": False}


def network(channels):
    """A small convolutional network in single precision, in which Quantus runs."""
    torch.manual_seed(channels)
    model = nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(8 * 196, 3),
    )
    with torch.no_grad():
        model[-1].weight.mul_(4)  # so that curves fall by more than rounding
    return model.eval()


def example(channels, map_channels=1):
    return normal(N, channels, SIDE, SIDE).float(), normal(N, map_channels, SIDE, SIDE, seed=1)


def arguments(model, x, maps):
    """Quantus' arguments for the same batch."""
    return {
        "model": model,
        "x_batch": x.numpy(),
        "y_batch": np.array(TARGET),
        "a_batch": maps.numpy(),
        "device": "cpu",
        "batch_size": N,
    }


def boxes():
    masks = torch.zeros(N, SIDE, SIDE, dtype=torch.bool)
    for i, mask in enumerate(masks):
        mask[i : i + 5, 2 * i : 2 * i + 7] = True
    return masks


def test_bounding_box_ratio():
    """RelevanceRankAccuracy, without ties."""
    x, maps = example(1)
    metric = quantus.RelevanceRankAccuracy(abs=False, **QUIET)
    wanted = metric(s_batch=boxes()[:, None].int().numpy(), **arguments(network(1), x, maps))
    found = bounding_box_ratio(maps, boxes()).per_sample.numpy()
    assert 0.05 < found.mean() < 0.5
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


def test_mass_ratio():
    """RelevanceMassAccuracy, of maps without negative values."""
    x, maps = example(1)
    metric = quantus.RelevanceMassAccuracy(abs=False, **QUIET)
    wanted = metric(s_batch=boxes()[:, None].int().numpy(), **arguments(network(1), x, maps.abs()))
    np.testing.assert_allclose(bounding_box_ratio(maps.abs(), boxes()).mass_ratio.numpy(), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("output", ["prob", "logit"])
@pytest.mark.parametrize("order", ["morf", "lerf"])
def test_degradation_curves(channels, output, order):
    """RegionPerturbation gives the fall after each tile."""
    model, (x, maps) = network(channels), example(channels)
    metric = quantus.RegionPerturbation(
        patch_size=4, order=order, regions_evaluation=16, perturb_baseline=0.0, return_aggregate=False, **QUIET
    )
    falls = np.array(metric(softmax=output == "prob", **arguments(model, x, maps)))
    result = degradation(model, x, maps, "zero", target=TARGET, tile_size=4, output=output, normalizer="none")
    found = getattr(result, order)
    assert float((found[:, :1] - found[:, 1:]).abs().max()) > 0.1
    np.testing.assert_allclose((found[:, :1] - found[:, 1:]).numpy(), falls, rtol=0, atol=1e-6)


@pytest.mark.parametrize("n", [1, 16, 100])
def test_sensitivity_n(n):
    """FaithfulnessCorrelation on the sets that its seed draws, an own row of sets for each image."""
    model, (x, maps) = network(1), example(1)
    n_sets = 20
    metric = quantus.FaithfulnessCorrelation(
        nr_runs=n_sets, subset_size=n, perturb_baseline=0.0, return_aggregate=False, **QUIET
    )
    np.random.seed(3)
    wanted = np.array(metric(softmax=False, **arguments(model, x, maps)))
    np.random.seed(3)
    drawn = [[np.random.choice(SIDE**2, n, replace=False) for _ in range(N)] for _ in range(n_sets)]
    sets = torch.from_numpy(np.array(drawn)).movedim(1, 0)
    found = sensitivity_n(model, x, maps, target=TARGET, index_sets=[sets]).correlations[:, 0].numpy()
    assert np.abs(found).max() > 0.05
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
