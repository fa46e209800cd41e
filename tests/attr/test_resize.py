import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_iba import resize_bits
from captum_iba.attr.resize import bits_to_input
from captum_iba.errors import InvalidArgumentError
from tests.literal import normal


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 40), st.integers(1, 40))
def test_total_is_kept_for_any_sizes(h, w, height, width):
    """Resizing moves bits about and neither makes nor loses any."""
    bits = normal(2, 1, h, w).abs()
    resized = resize_bits(bits, (height, width))
    assert resized.shape == (2, 1, height, width)
    assert (resized >= 0).all()
    torch.testing.assert_close(resized.flatten(1).sum(1), bits.flatten(1).sum(1))


def test_whole_factors_give_bits_per_pixel():
    """A uniform map of one bit a position becomes a uniform map of 1/16 bit a pixel at four times the side."""
    torch.testing.assert_close(resize_bits(torch.ones(1, 1, 3, 5), (12, 20)), torch.full((1, 1, 12, 20), 1 / 16))


def test_zero_stays_zero():
    """A map without bits stays one, without a division by zero."""
    assert not resize_bits(torch.zeros(1, 1, 3, 3), (7, 8)).any()


@pytest.mark.parametrize("shape", [(2, 1, 5), (2, 1, 3, 4, 5)])
def test_one_and_three_axes(shape):
    """Sequences and volumes are resized as maps are."""
    bits = normal(*shape).abs()
    resized = resize_bits(bits, tuple(2 * size for size in shape[2:]))
    torch.testing.assert_close(resized.sum(), bits.sum())


def test_same_size_is_untouched():
    """Nothing is interpolated where nothing has to be."""
    bits = normal(1, 1, 4, 4).abs()
    assert resize_bits(bits, (4, 4)) is bits


def test_axes_must_fit():
    """A map without spatial axes, or sizes of another number, name both shapes."""
    with pytest.raises(InvalidArgumentError, match=r"\[2, 1\]"):
        resize_bits(torch.ones(2, 1), ())
    with pytest.raises(InvalidArgumentError, match=r"\(3,\)"):
        resize_bits(torch.ones(2, 1, 4, 4), (3,))


def test_channels_share_a_pixels_bits_equally():
    """Each channel of a pixel gets the same share, and the input's total is the layer's."""
    bits = normal(2, 1, 4, 4).abs()
    spread = bits_to_input(bits, torch.zeros(2, 3, 8, 8), channel_dim=1)
    assert spread.shape == (2, 3, 8, 8)
    assert torch.equal(spread[:, 0], spread[:, 2])
    torch.testing.assert_close(spread.sum(), bits.sum())
    assert spread.is_contiguous()


def test_channels_last_features_and_grey_images():
    """Features (N, h, w, C) and images (N, H, W) without channels find each other."""
    bits = normal(2, 4, 5, 1).abs()
    spread = bits_to_input(bits, torch.zeros(2, 8, 10), channel_dim=3)
    assert spread.shape == (2, 8, 10)
    torch.testing.assert_close(spread.sum(), bits.sum())
    assert spread[0, 0, 0] == bits[0, 0, 0, 0] / 4


def test_tokens_belong_to_ids_and_to_embeddings():
    """Bits of tokens stand at their ids, and are shared by the units of their embeddings."""
    bits = normal(2, 6, 1).abs()
    assert torch.equal(bits_to_input(bits, torch.zeros(2, 6, dtype=torch.long), 2), bits[..., 0])
    spread = bits_to_input(bits, torch.zeros(2, 6, 4), 2)
    assert spread.shape == (2, 6, 4)
    torch.testing.assert_close(spread.sum(dim=2), bits[..., 0])


@pytest.mark.parametrize(
    ("bits", "inputs", "channel_dim"),
    [
        (torch.ones(2, 1), torch.ones(2, 3), 1),
        (torch.ones(2, 5, 1), torch.ones(2, 7, dtype=torch.long), 2),
        (torch.ones(2, 1, 4, 4), torch.ones(2, 7), 1),
    ],
)
def test_no_spatial_relation(bits, inputs, channel_dim):
    """Vectors and other token counts have no place on the input, and the error says so."""
    with pytest.raises(InvalidArgumentError, match="no spatial relation"):
        bits_to_input(bits, inputs, channel_dim)


def test_shrinking_loses_nothing():
    """A single position between those of a smaller grid keeps its bits."""
    bits = torch.zeros(1, 1, 28, 28)
    bits[0, 0, 13, 6] = 5.0
    for size in ((4, 4), (4, 40), (1, 1)):
        assert float(resize_bits(bits, size).sum()) == pytest.approx(5.0)


def test_channels_last_inputs_are_asked_about():
    """Where the sizes speak for channels behind the positions, the bits are not put in the wrong place unasked."""
    bits = normal(2, 1, 4, 4).abs()
    photos = torch.zeros(2, 8, 8, 3)
    with pytest.raises(InvalidArgumentError, match="input_channel_dim=-1"):
        bits_to_input(bits, photos, 1)
    spread = bits_to_input(bits, photos, 1, input_channel_dim=-1)
    assert spread.shape == photos.shape
    torch.testing.assert_close(spread.sum(dim=3), bits_to_input(bits, torch.zeros(2, 3, 8, 8), 1).sum(dim=1))
    sequence = normal(2, 1, 9).abs()
    with pytest.raises(InvalidArgumentError, match="input_channel_dim"):
        bits_to_input(sequence, torch.zeros(2, 9, 5), 1)
    assert bits_to_input(sequence, torch.zeros(2, 9, 5), 1, -1).std(dim=1).min() > 0
    with pytest.raises(InvalidArgumentError, match="input_channel_dim=2"):
        bits_to_input(bits, photos, 1, input_channel_dim=2)


def test_tokens_are_not_spread_over_colours():
    """Three tokens have no relation to an image of three channels, and are no square of patches."""
    with pytest.raises(InvalidArgumentError, match="3 tokens of an image of 8 x 8"):
        bits_to_input(torch.ones(2, 3, 1), torch.ones(2, 3, 8, 8), 2)


def test_negative_values_and_plain_sizes_are_refused():
    """A total can be kept only of values that are not negative; a size is a tuple."""
    with pytest.raises(InvalidArgumentError, match=r"down to -1.*interpolate"):
        resize_bits(torch.tensor([[[[1.0, -1.0]]]]), (4, 4))
    with pytest.raises(InvalidArgumentError, match="size=32"):
        resize_bits(torch.ones(1, 1, 4, 4), 32)
