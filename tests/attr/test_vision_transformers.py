"""Vision transformers of torchvision and transformers: from a token layer to bits on the image."""

import pytest
import torch

from captum_iba import IBA, LayerIBA, LayerReadoutIBA
from captum_iba.attr import resize_bits, tokens_to_map
from captum_iba.attr.attention_rollout import AttentionRollout
from captum_iba.errors import InvalidArgumentError, UnsupportedModelError
from tests.attr.vision_models import FAMILIES, GRIDS, SIZE, images, token_layer, vision_model

SHORT = {"n_steps": 2, "n_samples": 2}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def iba(family):
    return LayerIBA(vision_model(family), token_layer(family)).estimate([images(8, seed=2)])


def as_map(family, bits):
    """Written out: the positions as a grid, and the tokens before them."""
    n_prefix, grid = FAMILIES[family][2], GRIDS.get(family, (4, 4))
    if bits.ndim == 4:
        return bits.movedim(3, 1), bits.new_zeros(len(bits), 0)
    return bits[:, n_prefix:, 0].reshape(len(bits), 1, *grid), bits[:, :n_prefix, 0]


def test_the_layers_bits_keep_the_layers_own_shape(family, iba):
    bits = iba.attribute(images(2), target=1, **SHORT)
    assert bits.shape == (2, *FAMILIES[family][1][:-1], 1)
    assert float(bits.min()) >= 0 and float(bits.sum()) > 0


def test_the_images_bits_are_the_patches_bits(family, iba):
    x = images(2)
    bits = iba.attribute(x, target=1, **SHORT)
    patches, prefix = as_map(family, bits)
    found = IBA(vision_model(family), token_layer(family), method=iba).attribute(x, target=1, **SHORT)
    torch.testing.assert_close(found, (resize_bits(patches, (SIZE, SIZE)) / 3).expand_as(x))
    total = bits.flatten(1).sum(dim=1) - prefix.sum(dim=1)
    torch.testing.assert_close(found.flatten(1).sum(dim=1), total)
    if bits.ndim == 3:
        laid_out = tokens_to_map(bits)
        assert torch.equal(laid_out.map, patches) and torch.equal(laid_out.prefix, prefix)


def test_a_grid_can_be_chosen(iba, family):
    """As many patches in fewer rows, as of an image that is four times as wide as high."""
    x = images(1)
    method = IBA(vision_model(family), token_layer(family), method=iba)
    if family == "torchvision swin":
        with pytest.raises(InvalidArgumentError, match="no such tokens"):
            method.attribute(x, target=0, grid=(4, 16), **SHORT)
        return
    grid = (4, 16) if family == "swin" else (2, 8)
    bits = iba.attribute(x, target=0, **SHORT)
    wanted = resize_bits(tokens_to_map(bits, grid).map, (SIZE, SIZE)) / 3
    found = method.attribute(x, target=0, grid=grid, n_prefix=FAMILIES[family][2], **SHORT)
    torch.testing.assert_close(found, wanted.expand_as(x))
    with pytest.raises(InvalidArgumentError, match=r"grid=\(3, 3\), n_prefix|9 patches, with 1 tokens"):
        method.attribute(x, target=0, grid=(3, 3), n_prefix=1, **SHORT)


def test_a_readouts_bits_are_laid_out_too():
    family = "vit"
    model, layer = vision_model(family), token_layer(family)
    readout = LayerReadoutIBA(model, layer, readout_layers=[layer]).estimate([images(8, seed=2)])
    data = [(images(4), torch.tensor([0, 1, 2, 0]))]
    readout.fit(data, epochs=1, show_progress=False)
    bits = readout.attribute(images(2))
    found = IBA(model, layer, method=readout).attribute(images(2))
    torch.testing.assert_close(found, (resize_bits(as_map(family, bits)[0], (SIZE, SIZE)) / 3).expand(2, 3, -1, -1))


def test_rollout_lies_on_the_same_grid(family):
    x, method = images(2), AttentionRollout(vision_model(family))
    if "swin" in family:
        with pytest.raises(UnsupportedModelError, match="LayerIBA"):
            method.attribute(x)
        return
    relevance = method.attribute(x)
    assert relevance.shape == (2, *FAMILIES[family][1][:-1], 1)
    patches, prefix = tokens_to_map(relevance, image_size=(SIZE, SIZE))
    assert patches.shape == (2, 1, 4, 4) and prefix.shape == (2, FAMILIES[family][2])
    torch.testing.assert_close(patches.sum(dim=(1, 2, 3)) + prefix.sum(dim=1), torch.ones(2))
