import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import trapezoid

from captum_iba.errors import CaptumIBAError, CaptumIBAWarning, InvalidArgumentError
from captum_iba.metrics import degradation, deletion, insertion
from tests.literal import blur_matrix, normal, small_cnn


def by_hand(model, x, attributions, target, start, end):
    """Probabilities while the pixels of one image turn from start into end, most relevant first."""
    order = attributions.flatten().argsort(descending=True).tolist()
    image, curve = start.clone(), []
    for pixel in [None, *order]:
        if pixel is not None:
            image.flatten(1)[:, pixel] = end.flatten(1)[:, pixel]
        with torch.no_grad():
            curve.append(float(model(image[None]).softmax(dim=1)[0, target]))
    return curve


def test_equal_removal_and_insertion_by_hand():
    """Pixel by pixel with loops: deletion ends at the baseline, insertion starts there."""
    model, x, maps = small_cnn(), normal(2, 3, 10, 10), normal(2, 1, 10, 10, seed=1)
    zeros = torch.zeros_like(x[0])
    removed = deletion(model, x, maps, 0.0, target=[1, 2], n_steps=None)
    inserted = insertion(model, x, maps, 0.0, target=[1, 2], n_steps=None)
    for i, target in enumerate((1, 2)):
        for result, start, end in ((removed, x[i], zeros), (inserted, zeros, x[i])):
            wanted = by_hand(model, x[i], maps[i], target, start, end)
            np.testing.assert_allclose(result.values[i].numpy(), wanted, rtol=0, atol=1e-12)
            area = trapezoid(wanted, np.linspace(0, 1, 101))
            assert float(result.per_sample[i]) == pytest.approx(area, abs=1e-12)


def test_they_are_the_two_curves_of_degradation():
    """Deletion is MoRF; insertion is LeRF read from its end."""
    model, x, maps = small_cnn(), normal(2, 3, 10, 10), normal(2, 1, 10, 10, seed=1).round()
    options = {"target": 1, "tile_size": 2, "n_steps": 9, "seed": 4}
    both = degradation(model, x, maps, "mean", **options)
    removed, inserted = (metric(model, x, maps, "mean", **options) for metric in (deletion, insertion))
    assert torch.equal(removed.values, both.morf) and torch.equal(removed.fractions, both.fractions)
    assert torch.equal(inserted.values, both.lerf.flip(1))
    torch.testing.assert_close(inserted.fractions, 1 - both.fractions.flip(1))
    torch.testing.assert_close(inserted.per_sample - removed.per_sample, both.area)
    torch.testing.assert_close(torch.trapezoid(inserted.curve, inserted.x), inserted.per_sample.mean())


@given(st.integers(2, 30), st.integers(0, 99))
def test_linear_models_have_closed_forms(n_units, seed):
    """What is inserted and what is left add up to the whole, and no map does better than the contributions."""
    x, weights = normal(2, n_units, seed=seed), normal(n_units, seed=seed + 1)
    contributions = x * weights
    exact, other = contributions, normal(2, n_units, seed=seed + 2)

    def areas(metric, maps):
        return metric(lambda x: x @ weights, x, maps, 0.0, n_steps=None).per_sample

    for maps in (exact, other):
        torch.testing.assert_close(
            areas(insertion, maps) + areas(deletion, maps), contributions.sum(dim=1), rtol=0, atol=1e-12
        )
    assert bool((areas(insertion, exact) >= areas(insertion, other) - 1e-12).all())
    assert bool((areas(deletion, exact) <= areas(deletion, other) + 1e-12).all())
    assert torch.equal(areas(deletion, -exact), areas(deletion, -exact.mul(2)))


def test_insertion_starts_from_a_blur():
    """By default at a Gaussian of 15 pixels for a side of 224, in proportion at 10, and ends at the image."""
    model, x, maps = small_cnn(), normal(2, 3, 10, 10), normal(2, 1, 10, 10, seed=1)
    result = insertion(model, x, maps, target=1)
    blur = blur_matrix(15 * 10 / 224, 10)
    with torch.no_grad():
        blurred, intact = (model(image).softmax(dim=1)[:, 1] for image in (blur @ x @ blur.T, x))
    torch.testing.assert_close(result.values[:, 0], blurred, rtol=0, atol=1e-9)
    torch.testing.assert_close(result.values[:, -1], intact, rtol=0, atol=1e-12)
    assert result.values.shape == (2, 100)
    torch.testing.assert_close(result.curve, result.values.mean(dim=0), rtol=0, atol=1e-12)


def test_examples_with_different_numbers_of_units():
    """Shares are of each example's own units, and the mean curve is taken at common shares."""
    x = torch.tensor([[1.0, 1, 1, 1, 5], [1, 1, 5, 5, 5]], dtype=torch.float64)
    units = torch.tensor([[0, 1, 2, 3, -1], [0, 1, -1, -1, -1]])
    result = deletion(lambda x: x.sum(dim=1), x, x, 0.0, units)
    torch.testing.assert_close(result.per_sample, torch.tensor([7.0, 16.0], dtype=torch.float64))
    wanted = torch.tensor([13.0, 12.25, 11.5, 10.75, 10.0], dtype=torch.float64)
    torch.testing.assert_close(result.curve, wanted)
    assert result.x.tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_examples_without_units():
    """They are left out with a warning; if there are no others, there is no result."""
    x, units = torch.ones(2, 3), torch.tensor([[0, 1, 2], [-1, -1, -1]])
    for metric in (insertion, deletion):
        with pytest.warns(CaptumIBAWarning, match="undefined for 1 of 2"):
            assert metric(lambda x: x.sum(dim=1), x, x, 0.0, units).n_valid == 1
        with pytest.raises(InvalidArgumentError, match="undefined for all 1"):
            metric(lambda x: x.sum(dim=1), x[1:], x[1:], 0.0, units[1:])


def test_a_single_unit_has_an_area():
    """There is one order, and the curve is the line between the two ends."""
    x, units = torch.tensor([[1.0, 2, 4], [1, 2, 5]]), torch.tensor([[3, 3, 3], [-1, 7, -1]])
    wanted = torch.tensor([(7 + 0) / 2, (8 + 6) / 2], dtype=torch.float64)
    for metric in (insertion, deletion):
        result = metric(lambda x: x.sum(dim=1), x, normal(2, 3), 0.0, units, n_steps=None)
        assert result.n_valid == 2
        torch.testing.assert_close(result.per_sample, wanted)


@pytest.mark.parametrize(
    "options", [{"n_steps": "5"}, {"n_steps": 0}, {"tile_size": 11}, {"output": 3}, {"seed": 0.5}, {"target": "cat"}]
)
def test_bad_options(options):
    """Wrong options are errors of ours for both."""
    for metric in (insertion, deletion):
        with pytest.raises(CaptumIBAError, match=str(next(iter(options.values())))):
            metric(small_cnn(), normal(1, 3, 10, 10), normal(1, 1, 10, 10), **{"target": 1, **options})
