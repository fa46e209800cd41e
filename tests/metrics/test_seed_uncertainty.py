"""Several seeds in one batched call."""

import pytest
import torch
from scipy.stats import spearmanr

from captum_iba import LayerIBA
from captum_iba.errors import InvalidArgumentError, InvalidTypeError
from captum_iba.metrics import seed_uncertainty
from tests.literal import normal, small_cnn


@pytest.fixture(scope="module")
def iba():
    model = small_cnn()
    return LayerIBA(model, model[2]).estimate(normal(1200, 3, 10, 10, seed=9))


@pytest.mark.parametrize("internal_batch_size", [None, 8])
def test_one_batched_call_equals_single_calls(iba, internal_batch_size):
    """Block j of the batch gets the noise that a call with seed j gets."""
    x, target = normal(2, 3, 10, 10, seed=4), torch.tensor([1, 3])
    found = seed_uncertainty(iba, x, target, n_seeds=3, seed=5, internal_batch_size=internal_batch_size).maps
    wanted = torch.stack([iba.attribute(x, target, seed=5 + k) for k in range(3)])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def test_mean_error_and_stability_of_the_maps(iba):
    """Mean, standard error and mean pairwise rank correlation, as numpy and scipy compute them."""
    x = normal(2, 3, 10, 10, seed=4)
    result = seed_uncertainty(iba, x, [0, 2], n_seeds=3)
    maps = result.maps.numpy()
    torch.testing.assert_close(result.mean_map.numpy(), maps.mean(axis=0))
    torch.testing.assert_close(result.stderr_map.numpy(), maps.std(axis=0, ddof=1) / 3**0.5)
    for i in range(2):
        pairs = [(0, 1), (0, 2), (1, 2)]
        wanted = sum(spearmanr(maps[a, i].ravel(), maps[b, i].ravel()).statistic for a, b in pairs) / 3
        assert abs(float(result.per_sample[i]) - wanted) < 1e-12


def test_equal_seeds_are_certain(iba):
    """Blocks with the same noise give the same map: nothing else in a batch depends on the block."""
    x = normal(1, 3, 10, 10, seed=4)
    twice = iba.attribute(torch.cat([x, x]), target=1, seed=[7, 7])
    torch.testing.assert_close(twice[0], twice[1], rtol=0, atol=0)


@pytest.mark.parametrize("seed", [[1, 2], [], [1, -1], "ab", [1.5, 2.0, 3.0]])
def test_seeds_that_do_not_fit_the_batch(iba, seed):
    """Three examples are no two blocks; seeds are non-negative integers."""
    with pytest.raises(InvalidArgumentError, match="seed"):
        iba.attribute(normal(3, 3, 10, 10), target=1, seed=seed)


@pytest.mark.parametrize("n_seeds", [1, 2.0, True])
def test_one_seed_knows_no_uncertainty(iba, n_seeds):
    with pytest.raises(InvalidArgumentError, match="n_seeds"):
        seed_uncertainty(iba, normal(1, 3, 10, 10), 0, n_seeds=n_seeds)


class Unseeded:
    def attribute(self, inputs, target=None):
        return inputs


@pytest.mark.parametrize("method", [small_cnn(), Unseeded(), None, lambda x: x])
def test_what_takes_no_seed_is_refused(method):
    """A model or another method in place of the bottleneck is named by its type."""
    with pytest.raises(InvalidTypeError, match=f"method is a {type(method).__name__}; wanted a LayerIBA"):
        seed_uncertainty(method, normal(1, 3, 10, 10), 0)


def test_any_method_with_seeds_will_do():
    """What counts is attribute(inputs, target, additional_forward_args, seed=[...]) with one seed for each block."""

    class Seeded:
        def attribute(self, inputs, target, additional, *, seed):
            return inputs + torch.tensor(seed).repeat_interleave(2)[:, None]

    found = seed_uncertainty(Seeded(), normal(2, 4), 0, n_seeds=3, seed=5)
    torch.testing.assert_close(found.mean_map, normal(2, 4) + 6)


def test_further_results_are_refused(iba):
    """Diagnostics would stand beside the maps."""
    with pytest.raises(InvalidTypeError, match="returned a tuple.*return_diagnostics"):
        seed_uncertainty(iba, normal(1, 3, 10, 10), 0, n_seeds=2, return_diagnostics=True)
    with pytest.raises(InvalidArgumentError, match="seed='a'"):
        seed_uncertainty(iba, normal(1, 3, 10, 10), 0, seed="a")


def test_arguments_of_a_call_are_repeated_alike():
    """Targets as a list and additional arguments go with their examples."""

    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small_cnn()

        def forward(self, x, factor):
            return self.net(x * factor)

    model = Scaled().eval()
    iba = LayerIBA(model, model.net[2]).estimate([((normal(1200, 3, 10, 10, seed=9), torch.ones(1200, 1, 1, 1)),)])
    x, factor = normal(2, 3, 10, 10, seed=4), torch.tensor([1.0, 0.5]).view(2, 1, 1, 1).double()
    found = seed_uncertainty(iba, x, [0, 3], factor, n_seeds=2).maps
    wanted = torch.stack([iba.attribute(x, [0, 3], factor, seed=k) for k in range(2)])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
