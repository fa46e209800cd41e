import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from captum_iba.errors import CaptumIBAError, InvalidArgumentError, InvalidTypeError, NonFiniteError
from captum_iba.metrics import bounding_box_ratio, boxes_to_mask, degradation, sensitivity_n
from captum_iba.metrics._units import make_units
from tests.literal import normal


def units(x, maps, mask=None, tile_size=None):
    return make_units((x,), maps, mask, tile_size)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
def test_tiles(height, width, side):
    """Square tiles row by row; what remains at the border belongs to the last row and column; sums of all channels."""
    side = min(side, height, width)
    x, maps = normal(2, 3, height, width), normal(2, 3, height, width, seed=1)
    found = units(x, maps, tile_size=side)
    across = width // side
    sums = torch.zeros(2, (height // side) * across, dtype=torch.float64)
    sizes = torch.zeros_like(sums)
    for i in range(height):
        for j in range(width):
            unit = min(i // side, height // side - 1) * across + min(j // side, across - 1)
            assert int(found.index[0].expand(1, 1, height, width)[0, 0, i, j]) == unit
            sums[:, unit] += maps[:, :, i, j].sum(dim=1)
            sizes[:, unit] += 1
    torch.testing.assert_close(found.sums, sums, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.means, sums / sizes, rtol=0, atol=1e-12)
    assert found.removable.all() and found.count.tolist() == [sums.shape[1]] * 2


def test_default_tiles():
    """14 pixels on maps, one elsewhere."""
    for shape, n_units in (((1, 3, 28, 42), 6), ((1, 9), 9), ((1, 9, 4), 9), ((1, 2, 14, 14, 28), 2)):
        maps = normal(1, 9) if len(shape) < 4 else normal(1, 1, *shape[2:])
        assert units(normal(*shape), maps).sums.shape == (1, n_units)


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 99))
def test_maps_of_any_size_and_form(height, width, seed):
    """(N, 1, h, w), (N, h, w) and repeated channels rank alike; smaller and larger ones are resized bilinearly."""
    x, small = normal(2, 3, 6, 5), normal(2, 1, height, width, seed=seed)
    full = F.interpolate(small, (6, 5), mode="bilinear", align_corners=False)
    wanted = units(x, full, tile_size=2)
    for maps in (small, small[:, 0], small.expand(-1, 3, -1, -1) / 3, small.clone().requires_grad_()):
        torch.testing.assert_close(units(x, maps, tile_size=2).sums, wanted.sums, rtol=0, atol=1e-12)


@given(st.floats(-1e3, 1e3), st.integers(1, 9), st.integers(1, 3))
def test_constant_maps_tie_exactly(value, size, side):
    """Neither resizing nor unequal tiles nor groups tell parts of a constant map apart."""
    maps = torch.full((1, 1, size, size), value, dtype=torch.float64)
    groups = torch.tensor([0, *[1] * 3, *[2] * 12, *[3] * 33]).view(1, 1, 7, 7)
    for found in (units(normal(1, 3, 7, 7), maps, tile_size=side), units(normal(1, 3, 7, 7), maps, groups)):
        assert len(found.means.unique()) == 1


def test_bounding_boxes_take_maps_alike():
    """A constant map of any size scores the coverage, and what is no tensor is named."""
    mask = boxes_to_mask([[1, 1, 5, 4]], (7, 7))[None]
    for size in (3, 5, 7):
        flat = torch.full((1, 1, size, size), 0.1, dtype=torch.float64)
        assert bounding_box_ratio(flat, mask).mean == pytest.approx(12 / 49, abs=1e-12)
    small = normal(1, 1, 3, 3)
    full = F.interpolate(small, (7, 7), mode="bilinear", align_corners=False)
    found, wanted = (bounding_box_ratio(maps, mask) for maps in (small, full))
    torch.testing.assert_close(found.mass_ratio, wanted.mass_ratio, rtol=0, atol=1e-12)
    for maps, masks in ((flat.numpy(), mask), (flat, mask.numpy())):
        with pytest.raises(InvalidTypeError, match="is a ndarray"):
            bounding_box_ratio(maps, masks)


def test_feature_masks_group_any_elements():
    """Numbers need not be consecutive; a group's score is its mean, its sum what sensitivity-n adds up."""
    x, maps = normal(2, 1, 2, 3), normal(2, 1, 2, 3, seed=1)
    mask = torch.tensor([[[[7, 7, 3], [-1, 100, -5]]]])
    found = units(x, maps, mask)
    assert found.index[0].tolist() == [[[[1, 1, 0], [-1, 2, -1]]]]
    flat = maps.flatten(1)
    sums = torch.stack([flat[:, 2], flat[:, 0] + flat[:, 1], flat[:, 4]], dim=1)
    torch.testing.assert_close(found.sums, sums)
    torch.testing.assert_close(found.means, sums / torch.tensor([1, 2, 1]))
    assert found.count.tolist() == [3, 3]


def test_units_of_each_example():
    """A mask with a row for each example: units that one lacks are not removable there."""
    x, maps = torch.ones(2, 4), normal(2, 4)
    mask = torch.tensor([[0, 1, 2, 3], [0, 1, -1, -1]])
    found = units(x, maps, mask)
    assert found.removable.tolist() == [[True] * 4, [True, True, False, False]]
    assert found.count.tolist() == [4, 2]
    options = {"output": "logit", "normalizer": "none"}
    together = degradation(lambda x: x.sum(dim=1), x, maps, 0.0, mask, **options)
    assert together.fractions[1].tolist() == [0, 0, 0.5, 1, 1]  # 4 steps of 2 units, rounded to even
    assert together.morf[1].tolist() == [4, 4, 3, 2, 2]


def test_channels_as_units():
    """A mask may divide the channels, if the attribution has them."""
    x, maps = normal(2, 3, 2, 2), normal(2, 3, 2, 2, seed=1)
    found = units(x, maps, torch.arange(3).view(1, 3, 1, 1))
    torch.testing.assert_close(found.sums, maps.sum(dim=(2, 3)))
    with pytest.raises(InvalidArgumentError, match="divides an axis that the attributions"):
        units(x, maps[:, :1], torch.arange(3).view(1, 3, 1, 1))


def test_negative_units_are_never_removed():
    """A model that reports the least it saw at protected places always saw them, in every curve and set."""
    x, maps = torch.ones(1, 1, 4, 4), normal(1, 1, 4, 4)
    mask = torch.arange(16).view(1, 1, 4, 4).clone()
    mask[..., 1:3, 1:3] = -1
    seen = []

    def model(x):
        seen.append(x)
        return (x * torch.arange(16).view(4, 4)).sum(dim=(1, 2, 3))

    for order in (maps, -maps):
        degradation(model, x, order, 0.0, mask, output="logit", normalizer="none")
    sensitivity_n(model, x, maps, [1, 7], "zero", mask)
    rows = torch.cat(seen)
    assert bool((rows[:, 0, 1:3, 1:3] == 1).all())
    assert float(rows.sum(dim=(1, 2, 3)).min()) == 4  # everything else goes


def test_several_inputs():
    """Units of all inputs compete; a number in two masks is one group of both."""
    image, vector = torch.ones(2, 1, 2, 2, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)
    maps = (normal(2, 1, 2, 2), normal(2, 3, seed=1))

    def model(image, vector):
        return 10 * image.sum(dim=(1, 2, 3)) + vector.sum(dim=1)

    options = {"output": "logit", "normalizer": "none", "tile_size": 1}
    result = degradation(model, (image, vector), maps, 0.0, **options)
    worth = torch.tensor([10.0] * 4 + [1.0] * 3, dtype=torch.float64).expand(2, -1)
    order = torch.cat([maps[0].flatten(1), maps[1]], dim=1).argsort(dim=1, descending=True)
    left = 43 - worth.gather(1, order).cumsum(dim=1)
    torch.testing.assert_close(result.morf[:, 1:], left)
    masks = (torch.zeros(1, 1, 1, 1, dtype=torch.long), torch.tensor([[0, 1, -1]]))
    found = make_units((image, vector), maps, masks, None)
    torch.testing.assert_close(found.sums[:, 0], maps[0].sum(dim=(1, 2, 3)) + maps[1][:, 0])
    torch.testing.assert_close(found.means[:, 0], found.sums[:, 0] / 5)
    both = degradation(model, (image, vector), maps, (0.0, 0.5), masks, **options)
    # the group of image and first element falls to 0 and 0.5, the second element to 0.5; the third stays
    steps = {(43.0, 2.5, 2.0), (43.0, 42.5, 2.0)}
    assert {tuple(curve) for curve in (*both.morf.tolist(), *both.lerf.tolist())} == steps
    assert both.fully_degraded.tolist() == [2.0, 2.0]


def test_tokens_and_signals():
    """(N, T) and (N, T, D) have a unit a token, with maps of either form; (N, C, L) with (N, 1, L) a unit a sample."""
    ids, embedded = torch.randint(0, 9, (2, 5)), normal(2, 5, 4)
    per_token = normal(2, 5, seed=1)
    for x, maps in (
        (ids, per_token),
        (ids, per_token[..., None]),
        (embedded, per_token),
        (embedded, per_token[..., None]),
    ):
        assert torch.equal(units(x, maps).sums, per_token)
    assert units(embedded, normal(2, 5, 1)).index[0].shape == (1, 5, 1)
    signal = units(embedded, normal(2, 1, 4), tile_size=2)
    assert signal.index[0].tolist() == [[[0, 0, 1, 1]]]
    full = normal(2, 5, 4, seed=2)
    with pytest.raises(InvalidArgumentError, match="leave open"):
        units(embedded, full)
    torch.testing.assert_close(units(embedded, full, torch.arange(5).view(1, 5, 1)).sums, full.sum(dim=2))


X, MAPS = normal(2, 3, 4, 4), normal(2, 1, 4, 4, seed=1)


@pytest.mark.parametrize(
    ("inputs", "maps", "options", "error", "words"),
    [
        (X, MAPS[:1], {}, InvalidArgumentError, r"\[1, 1, 4, 4\] do not fit"),
        (X, normal(2, 2, 4, 4), {}, InvalidArgumentError, "do not fit"),
        (X, normal(2, 4), {}, InvalidArgumentError, "do not fit"),
        (X, (MAPS, MAPS), {}, InvalidArgumentError, "2 tensors for 1 inputs"),
        (X, MAPS.numpy(), {}, InvalidTypeError, "attributions is a ndarray"),
        (X, None, {}, InvalidTypeError, "attributions is a NoneType"),
        (X, (None,), {}, InvalidTypeError, r"attributions\[0\] is a NoneType"),
        (X, MAPS * float("inf"), {}, NonFiniteError, r"examples \[0, 1\]"),
        (X.numpy(), MAPS, {}, InvalidTypeError, "inputs is a ndarray"),
        (X[:0], MAPS[:0], {}, InvalidArgumentError, "at least 1"),
        ((), (), {}, InvalidArgumentError, "inputs is empty"),
        ((X, X[:1]), (MAPS, MAPS), {}, InvalidArgumentError, r"inputs\[1\]"),
        (torch.zeros(3), torch.zeros(3), {}, InvalidArgumentError, r"wanted \(N, ...\)"),
        (
            normal(1, 2, 3, 3, 3, 3),
            normal(1, 1, 2, 2, 2, 2),
            {},
            InvalidArgumentError,
            "one to three spatial axes",
        ),
        (X, MAPS, {"tile_size": 0}, InvalidArgumentError, "tile_size=0"),
        (X, MAPS, {"tile_size": True}, InvalidArgumentError, "tile_size=True"),
        (X, MAPS, {"tile_size": 5}, InvalidArgumentError, "larger than the input"),
        (X, MAPS, {"feature_mask": torch.zeros(1, 1, 4, 4)}, InvalidArgumentError, "torch.float32"),
        (X, MAPS, {"feature_mask": torch.zeros(1, 1, 3, 4).long()}, InvalidArgumentError, r"\[1, 1, 3, 4\]"),
        (X, MAPS, {"feature_mask": torch.zeros(4, 4).long()}, InvalidArgumentError, r"\[4, 4\]"),
        (X, MAPS, {"feature_mask": [[0]]}, InvalidTypeError, "feature_mask is a list"),
        (X, MAPS, {"feature_mask": (torch.zeros(1, 1, 4, 4).long(),) * 2}, InvalidArgumentError, "2 tensors for 1"),
        (X, MAPS, {"feature_mask": torch.full((1, 1, 4, 4), -1)}, InvalidArgumentError, "undefined for all 2"),
    ],
)
def test_bad_input(inputs, maps, options, error, words):
    """Inputs, maps and masks that do not fit are named."""
    assert issubclass(error, CaptumIBAError)
    with pytest.raises(error, match=words):
        degradation(
            lambda *x: sum(part.flatten(1).sum(dim=1) for part in x),
            inputs,
            maps,
            "zero",
            output="logit",
            **{"tile_size": 1, **options},
        )
