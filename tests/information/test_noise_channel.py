import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captum_iba.errors import CaptumIBAWarning, InvalidArgumentError
from captum_iba.information import mutual_information
from captum_iba.information.noise_channel import (
    KDE,
    NO_BOUND,
    SamplePropagation,
    distinct_rows,
    independent,
    spread_terms,
    squared_distances,
)

ALL = [KDE(0.3), KDE(0.3, "lower"), SamplePropagation(0.3, 3)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def literal_kde(s, labels, noise_var, factor):
    """Kolchinsky and Tracey's formula, entry by entry."""
    n = len(s)

    def entropy(members):
        total = 0.0
        for i in members:
            mean = sum(math.exp(-float((s[i] - s[j]).square().sum()) / (factor * noise_var)) for j in members)
            total -= math.log(mean / len(members))
        return total / len(members)

    groups = [[i for i in range(n) if labels[i] == label] for label in set(labels.tolist())]
    return entropy(range(n)) - sum(len(group) / n * entropy(group) for group in groups)


@given(
    st.lists(st.integers(0, 3), min_size=2, max_size=12),
    st.integers(1, 3),
    st.sampled_from(["upper", "lower"]),
    st.floats(0.05, 5),
)
@settings(max_examples=40)
def test_kde_is_the_literal_formula(labels, d, bound, noise_var):
    """Matrix and loop agree, for any grouping of the examples."""
    labels = torch.tensor(labels)
    s = normal(len(labels), d)
    value = KDE(noise_var, bound).estimate(labels, s, generator()).value
    assert float(value) == pytest.approx(literal_kde(s, labels, noise_var, 2 if bound == "upper" else 8), abs=1e-10)


def test_sample_propagation_is_the_literal_formula():
    """With the same draws it is the entropy of the mixture less that of the noise, both at these draws."""
    s, noise_var, n_draws = normal(30, 2), 0.5, 4
    labels = torch.arange(30) % 3
    value = SamplePropagation(noise_var, n_draws).estimate(labels, s, generator(7)).value
    source, deviation = independent(generator(7)), noise_var**0.5
    scaled, terms = s / deviation, []
    for _ in range(n_draws):
        at = scaled + torch.randn(30, 2, generator=source, dtype=torch.float64)
        log_density = -0.5 * (at[:, None] - scaled).square().sum(dim=-1)
        everyone = log_density.logsumexp(1) - math.log(30)
        same = labels[:, None] == labels
        terms.append(log_density.where(same, -torch.inf).logsumexp(1) - same.sum(1).double().log() - everyone)
    assert float(value) == pytest.approx(float(torch.stack(terms).mean()), abs=1e-10)


@pytest.mark.parametrize(("d", "noise_var"), [(1, 0.1), (2, 0.1), (5, 1.0)])
def test_gaussian_channel(d, noise_var):
    """Standard normal signals: sample propagation within 0.1 of d/2 ln(1 + 1/noise_var), between the two bounds."""
    s = normal(2000, d)
    low, drawn, up = (
        float(one.estimate(s, s, generator()).value)
        for one in (KDE(noise_var, "lower"), SamplePropagation(noise_var), KDE(noise_var))
    )
    exact = d / 2 * math.log(1 + 1 / noise_var)
    assert low < exact < up
    assert low < drawn < up
    assert drawn == pytest.approx(exact, abs=0.1)


@pytest.mark.parametrize("estimator", [KDE(0.01), KDE(0.01, "lower"), SamplePropagation(0.01)])
@pytest.mark.parametrize("d", [2, 5])
def test_clusters(estimator, d):
    """Corners of a cube, told apart in spite of the noise, are d ln 2."""
    corners = (torch.arange(2**d)[:, None] >> torch.arange(d) & 1).double() * 2 - 1
    s = corners.repeat(10, 1)
    # each corner is one input
    assert float(estimator.estimate(s, s, generator()).value) == pytest.approx(d * math.log(2), abs=1e-6)
    # and so it is if each example is an input of its own
    assert float(estimator.estimate(torch.arange(len(s)), s, generator()).value) == pytest.approx(
        d * math.log(2), abs=1e-6
    )


@pytest.mark.parametrize("estimator", ALL)
def test_inputs_are_labels(estimator):
    """An input of its own for each row, as numbers or as labels arange(n), in either place of the call."""
    s = normal(50, 2)
    x = normal(50, 3, seed=1)
    values = [
        float(estimator.estimate(*pair, generator()).value)
        for pair in ((x, s), (torch.arange(50), s), (s, torch.arange(50)), (torch.arange(50).flip(0) * 3, s))
    ]
    assert values == pytest.approx([values[0]] * 4, abs=1e-12)


@pytest.mark.parametrize("estimator", ALL)
def test_one_matrix_for_several_labels(estimator):
    """Labels measured together are what they are alone."""
    s, several = normal(60, 2), [torch.arange(60), torch.arange(60) % 2, torch.arange(60) % 7]
    together = estimator.label_information(s, several, generator())
    alone = [estimator.label_information(s, [one], generator())[0] for one in several]
    assert [float(one.value) for one in together] == [float(one.value) for one in alone]
    assert [one.warnings for one in together] == [(), (NO_BOUND,), (NO_BOUND,)]


@pytest.mark.parametrize("bound", ["upper", "lower"])
def test_order_of_rows_and_place_do_not_matter(bound):
    """Invariant under permutation, translation, rotation, and common scaling with the noise."""
    s, y = normal(80, 2), torch.arange(80) % 3
    order = torch.randperm(80, generator=generator())
    rotation = torch.linalg.qr(normal(2, 2, seed=3))[0]
    first = KDE(0.2, bound).estimate(y, s, generator())
    for estimator, changed, labels in (
        (KDE(0.2, bound), s[order], y[order]),
        (KDE(0.2, bound), s @ rotation + 5, y),
        (KDE(0.2 * 9, bound), s * 3, y),
    ):
        other = estimator.estimate(labels, changed, generator())
        assert float(other.value) == pytest.approx(float(first.value), abs=1e-10)
        assert float(other.standard_error) == pytest.approx(float(first.standard_error), abs=1e-10)


@pytest.mark.parametrize("estimator", ALL)
def test_never_more_than_ln_n(estimator):
    """Signals far apart give exactly ln n, which is the cap; labels give their own entropy."""
    s = torch.arange(64)[:, None].double() * 1e3
    estimate, of_labels = estimator.label_information(s, [torch.arange(64), torch.arange(64) % 2], generator())
    assert float(estimate.value) == pytest.approx(math.log(64), abs=1e-12)
    assert float(estimate.cap) == pytest.approx(math.log(64))
    assert bool(estimate.saturated)
    assert float(of_labels.value) == pytest.approx(math.log(2), abs=1e-12)
    assert not bool(of_labels.saturated)


@pytest.mark.parametrize("estimator", ALL)
def test_a_constant_signal_says_nothing(estimator):
    """Zero for a signal that is the same for all, and about a label that all share."""
    flat, single = estimator.label_information(torch.ones(20, 2), [torch.arange(20)], generator())[0], torch.zeros(20)
    assert float(flat.value) == pytest.approx(0, abs=1e-12)
    assert float(estimator.estimate(single.long(), normal(20, 2), generator()).value) == 0


@pytest.mark.parametrize("estimator", [KDE(0.1), SamplePropagation(0.1, 2)])
def test_standard_error_is_that_of_the_value(estimator):
    """The mean standard error is the deviation over fresh examples, also about labels, within 25 %."""
    values, errors = [], []
    for seed in range(60):
        s = normal(200, 2, seed=seed)
        found = estimator.label_information(s, [torch.arange(200), (s[:, 0] > 0.5).long()], generator(seed))
        values.append([float(one.value) for one in found])
        errors.append([float(one.standard_error) for one in found])
    deviations, means = torch.tensor(values).std(dim=0), torch.tensor(errors).mean(dim=0)
    assert (means / deviations).tolist() == pytest.approx([1, 1], abs=0.25)


@pytest.mark.parametrize("d", [3, 40])
def test_distances(d):
    """Squared distances are those of float64 differences; from a point to itself exactly 0, in both ways to compute."""
    points = normal(50, d) * 30
    found = torch.cat([squared_distances(points, slice(0, 20)), squared_distances(points, slice(20, 50))])
    exact = (points[:, None] - points).square().sum(dim=-1)
    assert torch.allclose(found, exact, rtol=1e-12, atol=1e-9)
    assert found.diagonal().tolist() == [0.0] * 50


def test_blocks_do_not_matter(monkeypatch):
    """The same value from blocks of few rows."""
    s, y = normal(70, 2), torch.arange(70) % 3
    whole = KDE(0.2).label_information(s, [y], generator())[0]
    monkeypatch.setattr("captum_iba.information.noise_channel._ENTRIES", 8 * 70)
    parts = KDE(0.2).label_information(s, [y], generator())[0]
    drawn = SamplePropagation(0.2).label_information(s, [y], generator())[0]
    assert float(parts.value) == pytest.approx(float(whole.value), abs=1e-12)
    assert float(parts.standard_error) == pytest.approx(float(whole.standard_error), abs=1e-12)
    assert 0 < float(drawn.value) < float(whole.value) + 0.1


def test_spread_of_a_mixture():
    """h(S + noise) - h(noise) is what the examples' own numbers share with the signal."""
    s = normal(40, 2)
    terms = spread_terms(s, 0.3, 2, generator(5))
    estimate = SamplePropagation(0.3, 2).estimate(torch.arange(40), s, generator(5))
    assert float(terms.mean()) == pytest.approx(float(estimate.value), abs=1e-12)


def test_distinct_rows():
    """Equal rows share a label: numbers, with either sign of zero, and integers beyond a float's precision."""
    assert distinct_rows(torch.tensor([[0.0, 1], [-0.0, 1], [1, 0], [0, 1]])).tolist() == [0, 0, 1, 0]
    assert distinct_rows(torch.tensor([2**53, 2**53 + 1, 2**53])[:, None]).tolist() == [0, 1, 0]
    assert distinct_rows(torch.tensor([0.5, -0.0, 0.0, 0.5])).tolist() == [0, 1, 1, 0]
    assert distinct_rows(torch.ones(3, 2, 2, dtype=torch.bfloat16)).tolist() == [0, 0, 0]


def test_through_mutual_information():
    """By name, in bits; a cap that is reached is said, and that a difference of bounds is no bound."""
    x = normal(300, 1)
    with pytest.warns(CaptumIBAWarning, match="near its largest value"):
        mutual_information(x, x, KDE(1e-6))
    value = mutual_information(x, x, KDE(0.1))
    assert float(value) == pytest.approx(float(KDE(0.1).estimate(x, x, generator()).value) / math.log(2))
    with pytest.warns(CaptumIBAWarning, match="itself no bound"):
        about_sign = mutual_information(x, x[:, 0] > 0, "noise")
    assert 0.8 < float(about_sign) <= 1


def test_noise_is_independent_of_data_from_the_same_seed():
    """Examples drawn with the seed that the estimator is given do not meet their own numbers as noise."""
    s = normal(2000, 5, seed=4)
    same, other = (float(SamplePropagation(1.0).estimate(s, s, generator(seed)).value) for seed in (4, 5))
    assert same == pytest.approx(other, abs=0.02)


def test_global_random_state_is_left_alone():
    """Noise comes from the generator that was passed; the same seed draws the same."""
    before = torch.random.get_rng_state()
    s = normal(30, 2)
    values = [float(SamplePropagation(0.3).estimate(s, s, generator(1)).value) for _ in range(2)]
    assert values[0] == values[1]
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KDE(0.0), "noise_var=0.0; wanted a finite number above 0"),
        (lambda: KDE(bound="middle"), "bound='middle'"),
        (lambda: SamplePropagation(n_draws=0), "n_draws=0"),
        (lambda: KDE().label_information(torch.ones(3), [torch.arange(3)], generator()), "floating point"),
        (lambda: KDE().label_information(torch.ones(3, 1), [torch.arange(4)], generator()), "Labels have shape"),
        (lambda: mutual_information(torch.arange(9), torch.arange(9), "kde"), "x and y are"),
    ],
)
def test_mistakes(make, message):
    """What cannot be used is named."""
    with pytest.raises(InvalidArgumentError, match=message):
        make()
