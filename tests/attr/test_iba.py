import pytest
import torch
from torch import nn

from captum_iba import IBA, LayerIBA, resize_bits
from captum_iba.errors import InvalidArgumentError
from tests.literal import normal, small_cnn


@pytest.fixture(scope="module")
def cnn():
    return small_cnn()


@pytest.fixture(scope="module")
def iba(cnn):
    return IBA(cnn, cnn[2]).estimate(normal(1200, 3, 10, 10, seed=9))


def test_is_the_layers_map_resized(iba, cnn):
    """The attribution is LayerIBA's, on the input's grid, and carries the same bits in all."""
    x = normal(2, 3, 10, 10, seed=3)
    layer = LayerIBA(cnn, cnn[2], statistics=iba.statistics).attribute(x, target=1)
    found = iba.attribute(x, target=1)
    assert found.shape == x.shape
    torch.testing.assert_close(found.sum(dim=1, keepdim=True), resize_bits(layer, (10, 10)))
    torch.testing.assert_close(found.flatten(1).sum(1), layer.flatten(1).sum(1))
    assert iba.get_name() == "IBA"


def test_tuple_in_tuple_out(iba):
    """A tuple of inputs gives a tuple of attributions."""
    x = normal(1, 3, 10, 10)
    (found,) = iba.attribute((x,), target=1)
    assert torch.equal(found, iba.attribute(x, target=1))


def test_several_inputs_share_the_bits():
    """Two images of one scene get half of the bits each."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = small_cnn()

        def forward(self, left, right):
            return self.body(left + right)

    model = Both().eval()
    method = IBA(model, model.body[2])
    pairs = [((normal(600, 3, 10, 10, seed=1), normal(600, 3, 10, 10, seed=2)), None)] * 2
    method.estimate(pairs)
    x = (normal(2, 3, 10, 10, seed=3), normal(2, 3, 10, 10, seed=4))
    left, right = method.attribute(x, target=1)
    bits = method.layer_iba.attribute(x, target=1)
    assert torch.equal(left, right)
    torch.testing.assert_close((left + right).sum(), bits.sum())


def test_statistics_travel_by_file(iba, cnn, tmp_path):
    """Saved by one object, loaded by another: the same attributions."""
    iba.save_statistics(tmp_path / "layer.safetensors")
    other = IBA(cnn, cnn[2]).load_statistics(tmp_path / "layer.safetensors")
    x = normal(1, 3, 10, 10)
    assert torch.equal(other.attribute(x, target=1), iba.attribute(x, target=1))


def test_reassigned_forward_function_counts(iba, cnn):
    """Consumers reassign forward_func and layer; the next call uses them, and the statistics stay shared."""
    seen = []

    def spy(x):
        seen.append(len(x))
        return cnn(x)

    other = IBA(cnn, cnn[2], statistics=iba.statistics)
    other.forward_func = spy
    other.attribute(normal(1, 3, 10, 10), target=1, n_steps=1)
    assert seen
    other.layer = cnn[5]
    assert other.statistics is None


def test_vectors_have_no_place_on_the_input():
    """A linear layer's bits belong to no element of the input."""
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    method = IBA(model, model[0]).estimate(torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(InvalidArgumentError, match="no spatial relation"):
        method.attribute(torch.ones(2, 3), target=0)


def test_arguments_that_would_change_the_shape_are_refused(iba):
    """The shape is the input's; asking for another says which method to use."""
    with pytest.raises(InvalidArgumentError, match="attr_dim_summation.*LayerIBA"):
        iba.attribute(normal(1, 3, 10, 10), target=1, attr_dim_summation=False)
