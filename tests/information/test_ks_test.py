import itertools
import math
import warnings

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from captum_iba.errors import InvalidArgumentError, InvalidTypeError, MismatchedArgumentsError, NonFiniteError
from captum_iba.information import ks_test as module
from captum_iba.information.ks_test import kendall, ks_test, spearman

# few different values, so that there are ties
VALUES = st.lists(st.integers(-6, 6).map(float), min_size=1, max_size=12)
PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12).filter(
    lambda pairs: all(len(set(column)) > 1 for column in zip(*pairs, strict=True))
)


@settings(max_examples=50)
@given(VALUES, VALUES)
def test_distance_and_exact_p_value_are_scipys(a, b):
    """D and the exact two-sided p value equal those of scipy.stats.ks_2samp, with ties as well."""
    found = ks_test(torch.tensor(a), torch.tensor(b))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wanted = stats.ks_2samp(a, b, method="exact")
    assume(not caught)  # "Exact calculation unsuccessful. Switching to method=asymp."
    assert found.exact
    assert found.statistic == pytest.approx(wanted.statistic, abs=1e-12)
    assert found.p_value == pytest.approx(wanted.pvalue, abs=1e-10)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 3), (4, 4), (5, 3), (6, 6)])
def test_exact_p_value_is_the_share_of_orders(n, m):
    """P(D >= d) over all ways to deal n + m places to two samples, each as likely."""
    places = torch.arange(float(n + m))
    distances = []
    for chosen in itertools.combinations(range(n + m), n):
        others = [place for place in range(n + m) if place not in chosen]
        found = ks_test(places[list(chosen)], places[others])
        distances.append((found.statistic, found.p_value))
    for statistic, p_value in distances:
        share = sum(other >= statistic - 1e-12 for other, _ in distances) / len(distances)
        assert p_value == pytest.approx(share, abs=1e-12)


def test_exact_p_values_of_unequal_and_larger_samples_are_scipys():
    """Counting stays exact for hundreds of values."""
    generator = torch.Generator().manual_seed(0)
    for n, m, shift in ((30, 50, 0.3), (200, 150, 0.2), (97, 101, 0.0)):
        a, b = torch.randn(n, generator=generator), torch.randn(m, generator=generator) + shift
        wanted = stats.ks_2samp(a.numpy(), b.numpy(), method="exact")
        assert ks_test(a, b).p_value == pytest.approx(wanted.pvalue, abs=1e-10)


def test_beyond_counting_the_limit_distribution_is_taken(monkeypatch):
    """Large samples: Kolmogorov's series, near the exact value."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(400, generator=generator), torch.randn(500, generator=generator) + 0.1
    exact = ks_test(a, b)
    monkeypatch.setattr(module, "_COUNTED", 0)
    found = ks_test(a, b)
    assert not found.exact and found.statistic == exact.statistic
    scaled = found.statistic * math.sqrt(400 * 500 / 900)
    assert found.p_value == pytest.approx(stats.kstwobign.sf(scaled), abs=1e-10)
    assert found.p_value == pytest.approx(exact.p_value, abs=0.03)
    assert ks_test(a, a).p_value == 1.0


def test_four_against_four_values():
    """D has five values; exact p 0.0286, 0.2286, 0.7714, 1, 1, not the large-sample ones."""
    a = torch.arange(4.0)
    wanted = {0.0: 1.0, 0.25: 1.0, 0.5: 0.7714, 0.75: 0.2286, 1.0: 0.0286}
    for shift, (statistic, p_value) in enumerate(wanted.items()):
        found = ks_test(a, a + shift)
        assert (found.statistic, round(found.p_value, 4)) == (statistic, p_value)
        assert found.least_p_value == pytest.approx(2 / 70)


def test_the_reading_is_the_right_way_round():
    """A large distance rejects equality; a small one does not show it; few values have no power."""
    apart, alike = ks_test(torch.arange(4.0), torch.arange(4.0) + 9), ks_test(torch.arange(4.0), torch.arange(4.0))
    assert "the two distributions differ" in apart.describe()
    assert "does not show that the distributions are the same" in alike.describe()
    assert "next to no power" in apart.describe() and "next to no power" in alike.describe()
    assert "power" not in ks_test(torch.arange(40.0), torch.arange(40.0)).describe()


@settings(max_examples=50)
@given(PAIRS)
def test_rank_correlations_are_scipys(pairs):
    """Spearman's with mean ranks and Kendall's tau-b, with ties."""
    a, b = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert kendall(a, b) == pytest.approx(stats.kendalltau(a, b).statistic, abs=1e-12)


def test_what_is_no_sample_is_refused():
    """Each wrong argument with what is wrong."""
    good = torch.arange(3.0)
    with pytest.raises(InvalidTypeError, match="a is a list"):
        ks_test([1.0], good)
    with pytest.raises(InvalidArgumentError, match=r"b has shape \[0\]"):
        ks_test(good, good[:0])
    with pytest.raises(NonFiniteError, match="b holds a NaN"):
        ks_test(good, torch.tensor([math.nan]))
    with pytest.raises(MismatchedArgumentsError, match="a has 3 values and b 2"):
        spearman(good, good[:2])
    with pytest.raises(InvalidArgumentError, match="b holds 3 equal values"):
        kendall(good, torch.ones(3))
