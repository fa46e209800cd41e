import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from captum_iba.errors import CaptumIBAWarning, InvalidArgumentError, NonFiniteError
from captum_iba.metrics import BoundingBox, bounding_box_ratio, boxes_to_mask
from tests.literal import normal


def random_masks(n, side, seed=0):
    masks = torch.zeros(n, side, side, dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    for mask in masks:
        top, left = torch.randint(0, side // 2, (2,), generator=generator).tolist()
        mask[top : top + side // 2, left : left + side // 3] = True
    return masks


def test_perfect_and_opposite_maps():
    """The mask itself scores 1; its opposite, smaller than half the image, scores 0."""
    masks = random_masks(4, 12)
    assert bounding_box_ratio(masks.float(), masks).per_sample.tolist() == [1.0] * 4
    assert bounding_box_ratio(-masks.float(), masks).per_sample.tolist() == [0.0] * 4


def test_constant_map_scores_the_coverage():
    """Where all pixels tie, the score is the boxes' share of the image exactly."""
    masks = random_masks(4, 12)
    result = bounding_box_ratio(torch.full((4, 12, 12), 0.3), masks)
    torch.testing.assert_close(result.per_sample, result.coverage, rtol=0, atol=1e-15)


@given(st.integers(0, 1000), st.integers(1, 4))
def test_ties_score_the_mean_over_random_orders(seed, levels):
    """Few distinct values: the closed form is the mean over many random ways to break the ties."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, levels, (1, 5, 5), generator=generator).double()
    masks = boxes_to_mask([[1, 0, 4, 2]], (5, 5))[None]
    n = int(masks.sum())
    noise = 0.01 * torch.rand(4000, 25, generator=generator, dtype=torch.float64)
    chosen = (values.flatten() + noise).topk(n, dim=1).indices
    wanted = masks.flatten()[chosen].double().mean()
    assert float(bounding_box_ratio(values, masks).per_sample) == pytest.approx(float(wanted), abs=0.03)


def test_equals_counting():
    """Without ties: the share of the n highest pixels inside, counted by a loop."""
    maps, masks = normal(6, 9, 9), random_masks(6, 9)
    found = bounding_box_ratio(maps, masks).per_sample
    for value, a, mask in zip(found, maps, masks, strict=True):
        order = a.flatten().argsort(descending=True)[: int(mask.sum())].tolist()
        assert float(value) == pytest.approx(sum(bool(mask.flatten()[i]) for i in order) / int(mask.sum()))


def test_increasing_transforms_change_nothing():
    """Only the order of the pixels counts."""
    maps, masks = normal(5, 9, 9), random_masks(5, 9)
    assert torch.equal(
        bounding_box_ratio(maps, masks).per_sample, bounding_box_ratio((3 * maps).exp() - 7, masks).per_sample
    )


def test_smaller_maps_are_resized_bilinearly_and_channels_summed():
    """A layer's map and a three-channel attribution score as their full-size sums do."""
    bits, masks = normal(3, 1, 4, 4).abs(), random_masks(3, 12)
    full = F.interpolate(bits, (12, 12), mode="bilinear", align_corners=False)
    assert torch.equal(bounding_box_ratio(bits, masks).per_sample, bounding_box_ratio(full, masks).per_sample)
    colours = normal(3, 3, 12, 12)
    assert torch.equal(
        bounding_box_ratio(colours, masks[:, None]).per_sample, bounding_box_ratio(colours.sum(1), masks).per_sample
    )


def test_tokens_score_against_a_rationale():
    """One-dimensional masks work alike."""
    assert bounding_box_ratio(torch.tensor([[0.1, 3.0, 2.0, 0.5]]), torch.tensor([[0, 1, 0, 1]])).mean == 0.5


def test_mass_ratio_and_pointing_game():
    """The positive mass inside by the positive mass, and the chance that a highest pixel is inside.

    Negative attribution inside or outside changes neither; without positive attribution there is no mass.
    """
    mask = boxes_to_mask([[0, 0, 2, 1]], (2, 2))[None]
    for below in (-5.0, 0.0, -1e6):
        result = bounding_box_ratio(torch.tensor([[[4.0, 1.0], [4.0, below]]]), mask)
        assert float(result.mass_ratio) == pytest.approx(5 / 9)
        assert float(result.pointing_game) == 0.5
        inside = torch.tensor([[[4.0, below], [4.0, 1.0]]])
        assert float(bounding_box_ratio(inside, mask).mass_ratio) == pytest.approx(4 / 9)
    assert bounding_box_ratio(-torch.ones(1, 2, 2), mask).mass_ratio.isnan().all()


def test_effective_heat_ratio():
    """Heat only inside scores close to one; heat spilling over three times the box scores low."""
    mask = boxes_to_mask([[2, 2, 6, 6]], (12, 12))[None]
    spilled = boxes_to_mask([[2, 2, 6, 6], [6, 2, 10, 6], [2, 6, 6, 10]], (12, 12))[None]
    assert float(bounding_box_ratio(mask.float(), mask).effective_heat_ratio) > 0.99
    assert float(bounding_box_ratio(spilled.float(), mask).effective_heat_ratio) == pytest.approx(1 / 3)


def test_empty_masks_are_left_out_and_said():
    """No box: no value, one warning, and no hit."""
    masks = random_masks(3, 9)
    masks[1] = False
    with pytest.warns(CaptumIBAWarning, match="undefined for 1 of 3"):
        result = bounding_box_ratio(masks.float(), masks)
    assert result.per_sample.isnan().tolist() == [False, True, False]
    assert result.n_valid == 2
    assert result.mean == 1.0
    with pytest.raises(InvalidArgumentError, match="all 1 examples"):
        bounding_box_ratio(masks[1:2].float(), masks[1:2])


def test_mean_and_standard_error():
    """The mean and the sample deviation over the root of n."""
    maps, masks = normal(7, 9, 9), random_masks(7, 9)
    result = bounding_box_ratio(maps, masks)
    assert result.mean == pytest.approx(float(result.per_sample.mean()))
    assert result.stderr == pytest.approx(float(result.per_sample.std()) / 7**0.5)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_any_split_gives_the_same_summary(sizes):
    """Batches of any sizes, and halves gathered apart, sum up to the whole."""
    total = sum(sizes)
    maps, masks = normal(total, 9, 9), random_masks(total, 9)
    whole = bounding_box_ratio(maps, masks)
    metric, other = BoundingBox(), BoundingBox()
    parts = list(zip(maps.split(sizes), masks.split(sizes), strict=True))
    for part in parts[:-1]:
        metric.evaluate(*part)
    other.evaluate(*parts[-1])
    assert torch.equal(metric.merge(other).summary().per_sample, whole.per_sample)
    metric.reset()
    with pytest.raises(InvalidArgumentError, match="nothing to summarise"):
        metric.summary()


def test_boxes():
    """Several boxes make their union; parts outside are cut; no box, an empty mask."""
    mask = boxes_to_mask(torch.tensor([[0, 0, 2, 2], [1, 1, 9, 3], [-5, -5, 1, 1]]), (4, 4))
    assert mask.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]]
    assert not boxes_to_mask([], (3, 3)).any()
    far = [[-1e300, 1, 1e300, 2]]
    assert boxes_to_mask(far, (3, 3)).int().tolist() == [[0, 0, 0], [1, 1, 1], [0, 0, 0]]
    for boxes in (torch.zeros(0, 4), (), [[2, 2, 2, 2]]):
        assert not boxes_to_mask(boxes, (3, 3)).any()


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ([[3, 0, 1, 2]], r"boxes\[0\].*ends before it starts"),
        ([[0, 0, 2, 2], [0, 3, 2, 1]], r"boxes\[1\].*ends before it starts"),
        ([[0, 0, 2]], r"shape \[1, 3\]"),
        ([[0, 0, 2]] * 4, r"shape \[4, 3\]"),
        ([0, 0, 2, 2], r"shape \[4\]"),
        ([[]], r"shape \[1, 0\]"),
        (torch.zeros(1, 1, 4), r"shape \[1, 1, 4\]"),
        ([[0, 0, 2, 2], [0, 0, 2]], "wanted four numbers a box"),
        ([["0", "0", "2", "2"]], "wanted four numbers a box"),
        ("0 0 2 2", "wanted four numbers a box"),
        (5, r"shape \[\]"),
        (None, "wanted four numbers a box"),
        ([[0, 0, float("nan"), 2]], "NaN or infinity"),
        ([[0, 0, float("inf"), 2]], "NaN or infinity"),
    ],
)
def test_bad_boxes(boxes, words):
    """What is not four finite numbers a box is named."""
    with pytest.raises(InvalidArgumentError, match=words):
        boxes_to_mask(boxes, (4, 4))


@pytest.mark.parametrize(
    ("maps", "masks", "words"),
    [
        (torch.zeros(2, 4, 4), torch.ones(3, 4, 4), r"\[2, 4, 4\].*\[3, 4, 4\]"),
        (torch.zeros(2, 4), torch.ones(2, 5), r"\[2, 4\].*\[2, 5\]"),
        (torch.zeros(2, 4, 4), torch.ones(2, 3, 4, 4), "masks has shape"),
    ],
)
def test_bad_input(maps, masks, words):
    """Shapes that do not fit are named."""
    with pytest.raises(InvalidArgumentError, match=words):
        bounding_box_ratio(maps, masks)


def test_maps_that_are_no_numbers():
    """NaN and infinity are refused, with the examples that hold them."""
    for value in (float("nan"), float("inf")):
        maps = torch.zeros(3, 4, 4)
        maps[1, 2, 2] = value
        with pytest.raises(NonFiniteError, match=r"NaN or infinity for examples \[1\]"):
            bounding_box_ratio(maps, torch.ones(3, 4, 4))
