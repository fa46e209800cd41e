"""The laws of tokens_to_map and of its use in bits_to_input: nothing is lost, moved or made up."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_iba.attr import resize_bits, tokens_to_map
from captum_iba.attr.resize import bits_to_input
from captum_iba.errors import InvalidArgumentError, InvalidTypeError


def tokens(n_tokens, n=2, width=1):
    generator = torch.Generator().manual_seed(n_tokens)
    return torch.rand(n, n_tokens, width, dtype=torch.float64, generator=generator)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 7), st.booleans())
def test_the_total_is_kept_and_every_token_is_where_it_belongs(rows, columns, n_prefix, says_prefix):
    bits = tokens(n_prefix + rows * columns)
    found = tokens_to_map(bits, (rows, columns), n_prefix if says_prefix else None)
    assert found.map.shape == (2, 1, rows, columns)
    assert torch.equal(torch.cat([found.prefix, found.map.flatten(1)], dim=1), bits[:, :, 0])
    for row in range(rows):
        for column in range(columns):
            assert torch.equal(found.map[:, 0, row, column], bits[:, n_prefix + row * columns + column, 0])


@pytest.mark.parametrize(
    ("n_tokens", "grid", "n_prefix"),
    [
        (196, (14, 14), 0),  # Swin, or the mean of the patches
        (197, (14, 14), 1),  # ViT
        (198, (14, 14), 2),  # DeiT
        (261, (16, 16), 5),  # with four registers
        (5, (2, 2), 1),  # rather than 4 and one patch
        (4, (2, 2), 0),
        (9, (3, 3), 0),  # rather than 5 and 2 x 2
        (10, (3, 3), 1),
    ],
)
def test_the_square_with_the_fewest_tokens_before_it_is_found(n_tokens, grid, n_prefix):
    found = tokens_to_map(tokens(n_tokens))
    assert tuple(found.map.shape[2:]) == grid and found.prefix.shape == (2, n_prefix)
    of_image = tokens_to_map(tokens(n_tokens), image_size=(224, 224))
    assert torch.equal(of_image.map, found.map)


def test_n_prefix_decides_between_squares():
    assert tokens_to_map(tokens(9), n_prefix=5).map.shape == (2, 1, 2, 2)
    assert tokens_to_map(tokens(22), n_prefix=6).map.shape == (2, 1, 4, 4)


@pytest.mark.parametrize(
    ("n_tokens", "image_size", "grid"),
    [
        (6, (32, 48), (2, 3)),
        (7, (48, 32), (3, 2)),
        (1 + 14 * 21, (224, 336), (14, 21)),
        (8 * 13, (60, 100), (8, 13)),  # the last row and column padded
        (1 + 7 * 12, (60, 100), (7, 12)),  # or cut off
        (1 + 9 * 16, (90, 160), (9, 16)),  # 12 x 12 would fit too, but does not tile the image
        (197, (300, 600), (14, 14)),  # resized to a square inside
    ],
)
def test_square_patches_of_rectangular_images_are_found(n_tokens, image_size, grid):
    assert tuple(tokens_to_map(tokens(n_tokens), image_size=image_size).map.shape[2:]) == grid


def test_units_and_forms_of_bits():
    """Bits per neuron add up to bits per token; without an axis of units they are bits per token already."""
    bits = tokens(17, width=6)
    found = tokens_to_map(bits)
    torch.testing.assert_close(found.map, tokens_to_map(bits.sum(dim=2)).map)
    torch.testing.assert_close(found.map.sum() + found.prefix.sum(), bits.sum())
    assert torch.equal(tokens_to_map(-bits).map, -found.map)


@pytest.mark.parametrize(
    ("n_tokens", "arguments", "message"),
    [
        (50 + 6, {}, "There are 56 tokens.*no square of patches fits.*grid="),
        (3, {}, "There are 3 tokens"),
        (12, {"grid": (3, 5)}, r"grid=\(3, 5\) has 15 patches, but there are 12 tokens"),
        (12, {"grid": (3, 3), "n_prefix": 1}, "9 patches, with 1 tokens before them, but there are 12"),
        (12, {"n_prefix": 1}, "With 1 tokens before the patches, no square"),
        (12, {"n_prefix": 12}, "from 0 to 11"),
        (12, {"n_prefix": -1}, "n_prefix=-1"),
        (12, {"n_prefix": True}, "n_prefix=True"),
        (12, {"grid": 3}, "two positive integers"),
        (12, {"grid": (0, 3)}, "two positive integers"),
        (12, {"image_size": (3, 3, 3)}, "image_size"),
        # 11 x 11 of a model that resizes, or a class token and 8 x 15 of one that tiles
        (121, {"image_size": (80, 150)}, "both 8 x 15 and 11 x 11 patches fit"),
    ],
)
def test_what_fits_no_grid_or_two_is_refused_with_its_number(n_tokens, arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        tokens_to_map(tokens(n_tokens), **arguments)


def test_what_is_no_row_of_tokens_is_refused():
    with pytest.raises(InvalidTypeError, match="list"):
        tokens_to_map([[1.0]])
    for shape in ((4,), (1, 1, 2, 2), (1, 0, 1)):
        with pytest.raises(InvalidArgumentError, match="wanted tokens"):
            tokens_to_map(torch.zeros(shape))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("size", "grid", "n_prefix"), [((12, 12), (4, 4), 1), ((10, 15), (2, 3), 2)])
def test_an_images_bits_are_those_of_its_patches_resized(size, grid, n_prefix, channels_last):
    """Written out: the map, resized with its total kept, in equal parts for the channels."""
    bits = tokens(n_prefix + grid[0] * grid[1])
    image = torch.zeros(2, *size, 3) if channels_last else torch.zeros(2, 3, *size)
    found = bits_to_input(bits, image, channel_dim=2, input_channel_dim=-1 if channels_last else None)
    assert found.shape == image.shape
    wanted = resize_bits(bits[:, n_prefix:, 0].reshape(2, 1, *grid), size) / 3
    wanted = wanted.movedim(1, -1) if channels_last else wanted
    torch.testing.assert_close(found, wanted.expand(image.shape))
    total = bits[:, n_prefix:].sum(dim=(1, 2))
    torch.testing.assert_close(found.sum(dim=(1, 2, 3)), total)


def test_layouts_are_for_the_tokens_of_images_alone():
    for bits, inputs, channel_dim in (
        (torch.ones(1, 5, 1), torch.zeros(1, 5), 2),
        (torch.ones(1, 1, 4, 4), torch.zeros(1, 3, 8, 8), 1),
    ):
        for layout in ({"grid": (2, 2)}, {"n_prefix": 1}):
            with pytest.raises(InvalidArgumentError, match="no such tokens"):
                bits_to_input(bits, inputs, channel_dim, **layout)
    with pytest.raises(InvalidArgumentError, match="7 tokens of an image of 8 x 8 pixels"):
        bits_to_input(torch.ones(1, 7, 1), torch.zeros(1, 3, 8, 8), 2, n_prefix=1)
