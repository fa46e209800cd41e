import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captum_iba.information._flow_modes import above, mifs, poster


def table(correlation):
    """Two fair bits that are equal with probability (1 + correlation) / 2."""
    same, other = (1 + correlation) / 4, (1 - correlation) / 4
    return torch.tensor([[same, other], [other, same]], dtype=torch.float64)


def independent(joint):
    return joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)


def donsker_varadhan(critic, joint):
    """A lower bound of the information of a table, for any critic."""
    return (joint * critic).sum() - (independent(joint) * critic.exp()).sum().log()


def information(joint):
    return (joint * (joint / independent(joint)).log()).sum()


def test_one_critic_for_a_difference_bounds_nothing():
    """The poster's equation 3, one critic T for A - beta B: with T at 0 it is above the difference, with T at B's best
    below it."""
    a, b = table(0.3), table(0.8)
    difference = information(a) - information(b)
    critics = torch.zeros(2, 2, dtype=torch.float64), (b / independent(b)).log()
    found = [donsker_varadhan(critic, a) - donsker_varadhan(critic, b) for critic in critics]
    assert torch.isclose(donsker_varadhan(critics[1], b), information(b))
    assert found[0] > difference + 0.1 and found[1] < difference - 0.1


@settings(max_examples=25)
@given(st.integers(1, 6), st.integers(1, 6), st.floats(0, 3), st.integers(0, 99))
def test_the_posters_matrix_has_rank_two_at_most(a, b, beta, seed):
    """a_k - beta r_i: every two rows differ by one number, whatever the informations."""
    generator = torch.Generator().manual_seed(seed)
    joint = torch.rand(b, generator=generator, dtype=torch.float64)
    redundancy = torch.rand(a, a, generator=generator, dtype=torch.float64)
    found = poster(joint, redundancy, beta)
    assert torch.linalg.matrix_rank(found, atol=1e-10) <= 2
    assert torch.allclose(found - found[:1], (found - found[:1])[:, :1].expand_as(found), atol=1e-12)
    assert torch.allclose(found[0], joint)  # nothing comes before the first unit
    assert torch.allclose(found[-1], joint - beta * redundancy[-1, :-1].sum())


@settings(max_examples=25)
@given(st.integers(1, 5), st.integers(1, 3), st.floats(0, 2), st.randoms(use_true_random=False))
def test_mifs_does_not_depend_on_the_order_of_units(a, b, beta, random):
    """Permuted units have permuted edges; one unit alone has no redundancy; edges are never negative."""
    generator = torch.Generator().manual_seed(a * 10 + b)
    relevance, redundancy = (torch.rand(*s, generator=generator, dtype=torch.float64) for s in ((a, b), (a, a)))
    redundancy = redundancy + redundancy.T
    order = random.sample(range(a), a)
    found = mifs(relevance, redundancy, beta)
    assert torch.allclose(mifs(relevance[order], redundancy[order][:, order], beta), found[order])
    assert bool((found >= 0).all())
    if a == 1 or beta == 0:
        assert torch.equal(found, relevance)


def test_only_what_exceeds_the_null_counts():
    """At the quantile is not above it; quantiles of each pair or one for all."""
    values = torch.tensor([[0.1, 0.2], [0.3, 0.0]])
    assert above(values, torch.tensor(0.2)).tolist() == [[0, 0], [values[1, 0].item(), 0]]
    assert above(values, values - 1e-3).equal(values)
