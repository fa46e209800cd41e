import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity

from captum_iba.errors import InvalidArgumentError, InvalidTypeError
from captum_iba.metrics._similarity import comparable_maps, resolve_similarity, spearman
from captum_iba.metrics._ssim import normalize_maps, ssim
from tests.literal import normal

KINDS = ("uniform", "constant", "zeros", "steps", "ramp", "spike")


def unit_map(kind, height, width, seed):
    """One map with values in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(height, width, generator=generator, dtype=torch.float64)
    if kind == "constant":
        return values[:1, :1].expand(height, width).clone()
    if kind == "zeros":
        return torch.zeros_like(values)
    if kind == "steps":
        return (values * 3).floor() / 2
    if kind == "ramp":
        return torch.linspace(0, 1, height * width, dtype=torch.float64).view(height, width)
    if kind == "spike":
        return (values == values.max()).double()
    return values


maps = st.builds(lambda *args: args, st.sampled_from(KINDS), st.integers(0, 10_000))


@given(maps, maps, st.integers(5, 19), st.integers(5, 19))
def test_equals_scikit_image(first, second, height, width):
    """Of any two maps, square or not, constant or not: scikit-image's value with a window of 5 and a range of 1."""
    a, b = (unit_map(kind, height, width, seed) for kind, seed in (first, second))
    wanted = structural_similarity(a.numpy(), b.numpy(), win_size=5, data_range=1)
    assert float(ssim(a[None], b[None])) == pytest.approx(wanted, abs=1e-12)


@given(st.integers(0, 10_000), st.sampled_from(KINDS))
def test_a_map_equals_itself_exactly(seed, kind):
    """Equal maps score 1, not nearly 1; so does the pair in the other order score the same."""
    a, b = unit_map(kind, 9, 7, seed)[None], unit_map("uniform", 9, 7, seed + 1)[None]
    assert float(ssim(a, a)) == 1.0
    torch.testing.assert_close(ssim(a, b), ssim(b, a), rtol=0, atol=1e-15)


def test_a_batch_equals_its_maps_one_by_one():
    """The range is each map's own; what else is in the batch does not matter."""
    a, b = normal(4, 8, 11) * torch.tensor([1.0, 100.0, 0.01, 3.0]).view(4, 1, 1), normal(4, 8, 11, seed=1)
    compare = resolve_similarity("ssim", sign_invariant=False)
    single = torch.cat([compare(a[i : i + 1], b[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(compare(a, b), single, rtol=0, atol=1e-15)


def test_single_precision_is_computed_in_double():
    """Maps in float32 lose nothing on the way."""
    a, b = normal(2, 8, 8).float(), normal(2, 8, 8, seed=1).float()
    assert torch.equal(ssim(a, b), ssim(a.double(), b.double()))


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 9))
def test_normalisation_equals_numpy_s_percentiles(seed, height, width):
    """Clamped to numpy's 1st and 99th percentile of each map, and rescaled."""
    values = normal(3, height, width, seed=seed)
    for found, map_ in zip(normalize_maps(values).numpy(), values.numpy(), strict=True):
        low, high = np.percentile(map_, [1, 99])
        wanted = (np.clip(map_, low, high) - low) / (high - low) if high > low else np.zeros_like(map_)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


def test_constant_maps_become_zeros():
    """Whatever the constant; and so does a map with less than one per cent of other pixels."""
    values = torch.full((3, 20, 20), 0.1)
    values[1], values[2, 3, 4] = -1e9, 1e9
    assert torch.equal(normalize_maps(values), torch.zeros(3, 20, 20, dtype=torch.float64))


def test_scale_and_offset_of_a_map_do_not_count():
    """Normalised maps forget their unit."""
    values = normal(2, 10, 10)
    torch.testing.assert_close(normalize_maps(7 * values - 3), normalize_maps(values), rtol=0, atol=1e-12)


@given(st.integers(0, 10_000), st.integers(2, 5))
def test_spearman_equals_scipy(seed, levels):
    """Rank correlation with mean ranks for ties; NaN for a constant map."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randint(0, levels, (2, 1, 12), generator=generator).double()
    if a.unique().numel() == 1 or b.unique().numel() == 1:
        assert spearman(a, b).isnan().all()
    else:
        assert float(spearman(a, b)) == pytest.approx(spearmanr(a[0].numpy(), b[0].numpy()).statistic, abs=1e-12)
        assert float(spearman(a, a)) == 1.0


def test_sign_invariance_takes_the_larger():
    """The value of the map or of its negative, for each example."""
    a = normal(3, 8, 8)
    b = a * torch.tensor([1.0, -1.0, -2.0]).view(3, 1, 1)
    both = resolve_similarity("ssim", sign_invariant=True)(a, b)
    torch.testing.assert_close(both, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)
    plain = resolve_similarity("ssim", sign_invariant=False)
    assert torch.equal(
        resolve_similarity("ssim", True)(a, a.flip(0)), torch.maximum(plain(a, a.flip(0)), plain(a, -a.flip(0)))
    )


def test_a_resized_constant_stays_constant():
    """Interpolation does not leave rounding noise, which normalisation would stretch to a pattern."""
    (found,) = comparable_maps(torch.full((1, 7, 7), 0.1), [torch.zeros(1, 3, 224, 222)]).unique()
    assert float(found) == float(torch.tensor(0.1))


def test_maps_are_resized_and_summed():
    """Channels are summed, and a smaller map is interpolated bilinearly to the image's size."""
    small = normal(2, 3, 4, 5)
    wanted = torch.nn.functional.interpolate(small.sum(1, keepdim=True), (8, 9), mode="bilinear")[:, 0]
    torch.testing.assert_close(comparable_maps(small, [torch.zeros(2, 1), torch.zeros(2, 1, 8, 9)]), wanted)


@pytest.mark.parametrize(
    ("a", "b"), [(torch.zeros(1, 4, 9), torch.zeros(1, 4, 9)), (torch.zeros(2, 30), torch.zeros(2, 30))]
)
def test_maps_without_a_window_are_refused(a, b):
    """Vectors and maps under 5x5 pixels are sent to rank correlation."""
    with pytest.raises(InvalidArgumentError, match="spearman"):
        ssim(a, b)


def test_bad_similarities_are_refused():
    """An unknown name, a value of another type, and another shape."""
    with pytest.raises(InvalidArgumentError, match="'psnr'.*'ssim', 'spearman'"):
        resolve_similarity("psnr", False)
    with pytest.raises(InvalidTypeError, match=r"returned a float.*\[2\]"):
        resolve_similarity(lambda a, b: 0.5, False)(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(InvalidArgumentError, match=r"returned shape \[2, 3\]"):
        resolve_similarity(lambda a, b: a - b, False)(torch.zeros(2, 3), torch.zeros(2, 3))


@pytest.mark.parametrize("shape", [(3, 5, 5), (2,), (2, 0, 5), (2, 1, 1, 5, 5)])
def test_maps_of_other_shapes_are_refused(shape):
    """One map for each example, of pixels or tokens."""
    with pytest.raises(InvalidArgumentError, match="for 2 examples"):
        comparable_maps(torch.zeros(shape), [torch.zeros(2, 3, 8, 8)])
    with pytest.raises(InvalidTypeError, match="returned a tuple"):
        comparable_maps((torch.zeros(2, 5, 5),), [torch.zeros(2, 3, 8, 8)])
