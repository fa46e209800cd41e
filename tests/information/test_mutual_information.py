import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_iba.errors import (
    CaptumIBAWarning,
    InvalidArgumentError,
    InvalidTypeError,
    MismatchedArgumentsError,
    NonFiniteError,
)
from captum_iba.information import KDE, KSG, Estimate, Estimator, Neural, mutual_information, mutual_information_matrix
from captum_iba.information.variables import rank_gaussianize


def draw(n=400, d=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x, x + torch.randn(n, d, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("estimator", ["ksg", "gaussian", "binning"])
def test_bits_are_nats_over_the_logarithm_of_two(estimator):
    """Value, error, interval and cap change with the unit, and nothing else."""
    x, y = draw()
    bits, nats = (mutual_information(x, y, estimator, unit, return_details=True) for unit in ("bits", "nats"))
    for name in ("value", "standard_error", "cap", "slack", "held_out"):
        assert torch.allclose(getattr(bits, name), getattr(nats, name) / math.log(2))
    assert bits.to("nats").value == pytest.approx(nats.value)
    assert bits.interval[1] == pytest.approx(float(bits.value + 2 * bits.standard_error))
    assert mutual_information(x, y, estimator) == bits.value


@given(st.integers(0, 100), st.sampled_from(["ksg", "gaussian"]))
def test_blind_to_monotone_maps_of_columns(seed, estimator):
    """The default estimate depends on ranks alone."""
    x, y = draw(60, 2, seed)
    value = mutual_information(x, y, estimator)
    assert torch.allclose(mutual_information(x.exp(), y**3 + 5, estimator), value, atol=1e-12)


@given(st.lists(st.integers(0, 4), min_size=4, max_size=30), st.integers(0, 1000))
def test_ranks_are_the_quantiles_in_order(values, seed):
    """Each column becomes the same quantiles, larger values get larger ones, and ties stay side by side."""
    column = torch.tensor(values, dtype=torch.float64)[:, None]
    ranked = rank_gaussianize(column, torch.Generator().manual_seed(seed))[:, 0]
    n = len(values)
    expected = torch.special.ndtri(torch.arange(1, n + 1, dtype=torch.float64) / (n + 1))
    assert torch.equal(ranked.sort().values, expected)
    assert bool((column[ranked.argsort(), 0].diff() >= 0).all())


def test_ties_are_broken_independently():
    """Two columns of two values each, independent: their ranks are independent too."""
    coins = torch.randint(2, (4000, 2), generator=torch.Generator().manual_seed(0)).double()
    ranked = rank_gaussianize(coins, torch.Generator().manual_seed(1))
    assert abs(float(torch.corrcoef(ranked.T)[0, 1])) < 4 / 4000**0.5


def test_automatic_choice():
    """Labels are counted, two columns go to neighbours."""
    x, y = draw()
    names = [
        mutual_information(a, b, return_details=True).estimator
        for a, b in ((x, y), (x, y[:, 0] > 0), (x[:, 0] > 0, y), (x[:, 0] > 0, y[:, 0] > 0))
    ]
    assert [name.split("(")[0] for name in names] == ["KSG", "KSG", "KSG", "Binning"]


def test_labels_on_either_side():
    """Mutual information is symmetric: labels may come first."""
    x, y = draw()
    labels = y[:, 0] > 0
    assert mutual_information(labels, x) == mutual_information(x, labels)
    assert mutual_information_matrix(labels, x).shape == (1, 1)
    assert mutual_information_matrix(x.expand(-1, 1), labels) == mutual_information(x, labels)


def test_the_names_of_labels_do_not_matter():
    """Any integers, and rows of several, are names."""
    x, y = draw()
    labels = (y[:, 0] > 0).long()
    value = mutual_information(x, labels)
    assert mutual_information(x, 7 - 100 * labels) == value
    assert mutual_information(x, torch.stack([labels, 1 - labels], dim=1)) == value


def test_permutations_say_what_nothing_looks_like():
    """Dependent variables lie above the null, independent ones mostly do not, and the p-values say so."""
    x, y = draw()
    found = mutual_information(x, y, return_details=True, n_permutations=39)
    assert found.value > found.null_quantile
    assert float(found.p_value) == pytest.approx(1 / 40)
    p_values = [
        float(mutual_information(x, draw(seed=s)[0], "gaussian", return_details=True, n_permutations=19).p_value)
        for s in range(1, 41)
    ]
    assert all(p >= 0.05 for p in p_values)
    assert 0.35 < sum(p_values) / 40 < 0.7  # uniform between 0.05 and 1


def test_each_pair_has_its_own_null():
    """In the matrix the dependent pairs lie above their null, independent ones mostly do not, constants never."""
    x, _ = draw(d=3)
    y = torch.cat([x[:, :1] + draw(seed=1)[0], draw(seed=2)[0], torch.ones_like(x[:, :1])], dim=1)
    found = mutual_information_matrix(x, y, "gaussian", return_details=True, n_permutations=39)
    assert found.p_value.shape == found.null_quantile.shape == (3, 3)
    assert float(found.p_value[0, 0]) == pytest.approx(1 / 40)
    assert bool((found.value > found.null_quantile)[0, 0])
    assert bool((found.p_value[1:, :2] > 0.025).all())
    assert found.p_value[:, 2].tolist() == [1.0] * 3


@pytest.mark.parametrize("which", ["x", "y"])
def test_a_constant_has_no_information(which):
    """Zero by definition, and the warning says which variable it is."""
    x, y = draw()
    constant = torch.full_like(x, 3.7)
    pair = (constant, y) if which == "x" else (x, constant)
    with pytest.warns(CaptumIBAWarning, match=f"^{which} is constant over the 400"):
        found = mutual_information(*pair, return_details=True)
    assert float(found.value) == 0.0
    assert [float(end) for end in found.interval] == [0.0, 0.0]


def test_constant_columns_beside_others_change_nothing():
    """They are left out before the estimator, and are zero in the matrix."""
    x, y = draw(d=2)
    with_constant = torch.cat([x, torch.ones_like(y[:, :1])], dim=1)
    assert mutual_information(with_constant, y, "gaussian") == mutual_information(x, y, "gaussian")
    table = mutual_information_matrix(with_constant, y, "ksg")
    assert torch.equal(table[:2], mutual_information_matrix(x, y, "ksg"))
    assert table[2].tolist() == [0.0, 0.0]


def test_a_small_scale_is_no_constant():
    """What varies by more than rounding varies, however small it is beside other columns."""
    x, y = draw(d=2)
    scaled = x * torch.tensor([1.0, 1e-9])
    assert torch.allclose(mutual_information(scaled, y, "gaussian"), mutual_information(x, y, "gaussian"))


def test_the_same_seed_and_nothing_else():
    """Equal seeds give equal values with ties, other seeds others, and the global state stays."""
    x, y = ((2 * v).round() / 2 for v in draw())
    before = torch.random.get_rng_state()
    first, again, other = (mutual_information(x, y, "ksg", seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert torch.equal(torch.random.get_rng_state(), before)


def test_single_precision_is_computed_in_double():
    """float32 in, float64 inside and out; neither input is changed."""
    x, y = (v.float() for v in draw())
    copies = x.clone(), y.clone()
    value = mutual_information(x, y, "gaussian", transform="none")
    assert value.dtype == torch.float64
    assert value == mutual_information(x.double(), y.double(), "gaussian", transform="none")
    assert torch.equal(x, copies[0])
    assert torch.equal(y, copies[1])


def test_negative_estimates_are_zero_and_kept_beside():
    """The value is at least 0; what the estimator found stands in held_out."""
    found = [
        mutual_information(draw(seed=s)[0], draw(seed=s + 50)[0], "gaussian", return_details=True) for s in range(20)
    ]
    assert all(float(one.value) == max(0.0, float(one.held_out)) for one in found)
    assert any(float(one.held_out) < 0 for one in found)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, y: (x.tolist(), y), InvalidTypeError, "x is a list"),
        (lambda x, y: (x, y.to(torch.complex64)), InvalidTypeError, "y is complex"),
        (lambda x, y: (x[None], y), InvalidArgumentError, r"shape \(1, 400, 1\)"),
        (lambda x, y: (x, y[:0]), InvalidArgumentError, "y has shape"),
        (lambda x, y: (x, y[:-1]), MismatchedArgumentsError, "400 examples and y has 399"),
        (lambda x, y: (x.where(x > -1, torch.nan), y), NonFiniteError, "NaN or an infinity in row"),
        (lambda x, y: (x[:3], y[:3]), InvalidArgumentError, "at least"),
        (lambda x, y: (x, y, "mutual"), InvalidArgumentError, "'binning'"),
        (lambda x, y: (x, y, KSG), InvalidTypeError, "KSG itself"),
        (lambda x, y: (x, y, 3), InvalidTypeError, "int"),
        (lambda x, y: (x, y, "ksg", "shannon"), InvalidArgumentError, "unit='shannon'"),
        (lambda x, y: (x, y > 0, "gaussian"), InvalidArgumentError, "y is of an integer dtype"),
        (lambda x, y: (x > 0, y > 0, "ksg"), InvalidArgumentError, "x and y are"),
    ],
)
def test_mistakes_are_answered(change, error, message):
    """What was found, what is wanted and what to do."""
    with pytest.raises(error, match=message):
        mutual_information(*change(*draw()))


@pytest.mark.parametrize(
    ("name", "value"),
    [("transform", "z"), ("n_permutations", -1), ("seed", -1), ("seed", 0.5), ("n_permutations", 1.5)],
)
def test_options_that_mean_nothing(name, value):
    """The message names the option."""
    with pytest.raises(InvalidArgumentError, match=name):
        mutual_information(*draw(), "ksg", **{name: value})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_offset_in_half_precision_is_no_constant(dtype):
    """A column that varies by a few of its dtype's steps is what it is in single precision."""
    x, y = draw()
    rounded = (100 + x).to(dtype)
    assert float(rounded.float().std()) > 0
    assert mutual_information(rounded, y) == mutual_information(rounded.double(), y)


def test_a_constant_is_where_its_null_is():
    """With permutations, the details of a constant say so."""
    x, y = draw()
    with pytest.warns(CaptumIBAWarning, match="constant"):
        found = mutual_information(x, torch.ones_like(y), return_details=True, n_permutations=19)
    assert float(found.null_quantile) == 0.0
    assert float(found.p_value) == 1.0


def test_automatic_choice_for_pairs():
    """The matrix compares single columns: neighbours; tables of labels are counted."""
    x, y = draw(d=2)
    assert torch.equal(mutual_information_matrix(x, y, "auto"), mutual_information_matrix(x, y, "ksg"))
    labels = y[:, 0] > 0
    assert mutual_information_matrix(labels, x[:, 0] > 0, "auto") == mutual_information(labels, x[:, 0] > 0)


@pytest.mark.parametrize("estimator", ["kde", "noise"])
def test_a_null_where_pairs_do_not_matter(estimator):
    """Noise channels take y as a function of x, so that there is nothing to permute; labels can be."""
    x, y = draw(60)
    with pytest.raises(InvalidArgumentError, match="n_permutations has no meaning"):
        mutual_information(x, y, estimator, n_permutations=19)
    with pytest.warns(CaptumIBAWarning, match="itself no bound"):
        found = mutual_information(x[:, 0] > 0, y, KDE(noise_var=1.0), return_details=True, n_permutations=19)
    assert float(found.p_value) == pytest.approx(1 / 20)


def test_critics_train_under_inference_mode():
    """The value is that of a call outside."""
    x, y = draw(d=2)
    outside = mutual_information(x, y, Neural(n_steps=5))
    with torch.inference_mode():
        assert mutual_information(x.clone(), y.clone(), Neural(n_steps=5)) == outside


def test_more_than_examples_can_show():
    """y = x for a critic: the value is above ln n, and a warning says what it rests on."""
    x, _ = draw(200, 2)
    with pytest.warns(CaptumIBAWarning, match="above ln n"):
        mutual_information(x, x, Neural(n_steps=5))


class OneBit(Estimator):
    """Finds one bit everywhere."""

    def estimate(self, x, y, generator):
        value, none = torch.tensor(math.log(2)).double(), torch.zeros(()).double()
        return Estimate(value, none + 0.1, len(x), "one bit", none + math.inf, none, warnings=("It is always one.",))


def test_estimators_of_the_user():
    """Any Estimator is taken: its nats become bits, its warnings are given once, its pairs come one by one."""
    with pytest.warns(CaptumIBAWarning, match="always one") as caught:
        assert float(mutual_information(*draw(), OneBit())) == pytest.approx(1.0)
    assert len(caught) == 1
    with pytest.warns(CaptumIBAWarning, match="always one") as caught:
        table = mutual_information_matrix(*draw(d=2), OneBit())
    assert len(caught) == 1
    assert torch.allclose(table, torch.ones(2, 2).double())
