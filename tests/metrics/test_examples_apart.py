"""The law of all metrics that remove units: an example's values do not depend on the others in its batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captum_iba.errors import InvalidArgumentError
from captum_iba.metrics import SensitivityN, degradation, deletion, insertion, sensitivity_n
from captum_iba.metrics._units import make_units
from tests.literal import normal

WIDTH = 12


def wave(x):
    """One value a row in which every element counts and none adds up simply."""
    weights = torch.arange(1, WIDTH + 1, dtype=x.dtype)
    return ((x * weights).sin() * weights).sum(dim=1) + x.sum(dim=1).tanh()


def groups(seed, n_examples, fewest=2):
    """A mask with a row for each example: groups of unequal size under any numbers, and places that stay."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(n_examples):
        names = torch.randperm(90, generator=generator)[: int(torch.randint(fewest, 8, (1,), generator=generator))]
        row = names[torch.randint(len(names), (WIDTH,), generator=generator)]
        row[torch.randint(WIDTH, (2,), generator=generator)] = -1 - int(names[0])
        row[torch.randperm(WIDTH, generator=generator)[:fewest]] = names[:fewest]
        rows.append(row)
    return torch.stack(rows)


def ties(seed, n_examples):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (n_examples, WIDTH), generator=generator).double()


def assert_rows(whole, single, row, names):
    for name in names:
        torch.testing.assert_close(getattr(single, name)[0], getattr(whole, name)[row], rtol=0, atol=1e-12)


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 4), st.booleans())
def test_curves_of_an_example_are_its_own(seed, n_examples, constant):
    """Also among ties, whatever units, and numbers of units, the others have."""
    x, mask = normal(n_examples, WIDTH, seed=seed), groups(seed, n_examples)
    maps = torch.full_like(x, 0.1) if constant else ties(seed, n_examples)
    options = {"output": "logit", "seed": seed}
    scored = {"normalizer": "none", "n_tie_draws": 2, **options}
    whole = degradation(wave, x, maps, 0.0, mask, **scored)
    areas = [metric(wave, x, maps, 0.0, mask, n_steps=None, **options) for metric in (deletion, insertion)]
    for i in range(n_examples):
        one = slice(i, i + 1)
        alone = degradation(wave, x[one], maps[one], 0.0, mask[one], **scored)
        assert_rows(whole, alone, i, ("per_sample", "top1", "fully_degraded"))
        for metric, found in zip((deletion, insertion), areas, strict=True):
            alone = metric(wave, x[one], maps[one], 0.0, mask[one], n_steps=None, **options)
            assert_rows(found, alone, i, ("per_sample",))
    if constant:
        assert whole.per_sample.tolist() == [0.0] * n_examples


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 4))
def test_sets_of_an_example_are_its_own(seed, n_examples):
    """Sensitivity-n draws sets by the place of a unit among the example's own."""
    x, mask = normal(n_examples, WIDTH, seed=seed), groups(seed, n_examples, fewest=3)
    maps = normal(n_examples, WIDTH, seed=seed + 1)
    options = {"n_perturb_samples": 9, "seed": seed}
    whole = sensitivity_n(wave, x, maps, [1, 2], "zero", mask, **options)
    for i in range(n_examples):
        one = slice(i, i + 1)
        alone = sensitivity_n(wave, x[one], maps[one], [1, 2], "zero", mask[one], **options)
        assert_rows(whole, alone, i, ("sums", "drops", "correlations", "per_sample"))


def test_numbers_of_units_name_them_and_nothing_else():
    """Groups under other numbers in the same order are the same units, also where examples share none."""
    x, maps = normal(3, 4), ties(3, 3)[:, :4]
    places = torch.tensor([0, 1, 1, 2])
    apart = torch.stack([places, 5 + 10 * places, 7 + 2 * places])
    same = make_units((x,), maps, places.expand(3, -1), None)
    for mask in (apart, apart.to(torch.int16), apart + 2**40):
        found = make_units((x,), maps, mask, None)
        assert torch.equal(found.index[0], same.index[0]) and torch.equal(found.means, same.means)
        assert found.removable.all()
    shared = make_units((x,), maps, places[None], None)
    assert torch.equal(shared.index[0].expand(3, -1), same.index[0]) and torch.equal(shared.means, same.means)


def test_sets_are_the_same_for_examples_with_as_many_units():
    """Powers of two in the order of each example's units: equal sums are equal sets."""
    mask = torch.tensor([[0, 1, 2, 3, 4, 5], [9, 8, 7, 6, 5, 4], [3, -1, 30, 300, 31, -2]])
    place = torch.tensor([[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [0, 9, 1, 3, 2, 9]])
    powers = (2.0**place).double()
    sums = sensitivity_n(lambda x: x.sum(dim=1), normal(3, 6), powers, [2], "zero", mask).sums[:, 0]
    assert torch.equal(sums[0], sums[1])
    # of four units, those of the six's keys that belong to the first four
    assert not torch.equal(sums[0], sums[2]) and float(sums[2].max()) <= 12


@pytest.mark.parametrize("width", [1, 7, 100])
def test_a_longer_list_of_keys_starts_with_the_shorter(width):
    """What makes an example's keys independent of the batch: torch draws uniform numbers one after another."""
    long = torch.rand(500, width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for n in range(1, 500, 7):
        short = torch.rand(n, width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        assert torch.equal(short, long[:n])


def test_default_sizes_follow_the_largest_example():
    """Without n the sizes are those of the most units in the batch; batches that differ in it need n."""
    mask = torch.stack([torch.arange(WIDTH), torch.arange(WIDTH) // 3])
    x, maps = normal(2, WIDTH), normal(2, WIDTH, seed=1)
    together = sensitivity_n(wave, x, maps, None, "zero", mask)
    alone = sensitivity_n(wave, x[1:], maps[1:], None, "zero", mask[1:])
    assert together.n.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 10] and alone.n.tolist() == [1, 2, 3]
    assert together.correlations[1, 4:].isnan().all()
    metric, fixed = SensitivityN(wave), SensitivityN(wave, [1, 2, 3])
    for one in (slice(0, 1), slice(1, 2)):
        for each in (metric, fixed):
            each.evaluate(x[one], maps[one], mask[one])
    with pytest.raises(InvalidArgumentError, match="Batches have different sets.*Pass the same n"):
        metric.summary()
    torch.testing.assert_close(fixed.summary().correlations, together.correlations[:, :3], rtol=0, atol=1e-12)
