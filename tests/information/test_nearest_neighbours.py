import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_iba.errors import CaptumIBAWarning, InvalidArgumentError
from captum_iba.information import KSG, mutual_information, mutual_information_matrix

GENERATOR = torch.Generator()


def pairs(n, d, rho, seed=0):
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((n, d))
    return torch.tensor(x), torch.tensor(rho * x + np.sqrt(1 - rho**2) * draw.standard_normal((n, d)))


def literal(x, y, k):
    """Equation 8 of Kraskov et al., example by example."""
    terms = []
    for i in range(len(x)):
        in_x, in_y = (x - x[i]).abs().amax(dim=1), (y - y[i]).abs().amax(dim=1)
        others = torch.arange(len(x)) != i
        radius = torch.maximum(in_x, in_y)[others].sort().values[k - 1]
        n_x, n_y = (int((table[others] < radius).sum()) for table in (in_x, in_y))
        psi = torch.tensor([k, len(x), n_x + 1, n_y + 1], dtype=torch.float64).digamma()
        terms.append(float(psi[0] + psi[1] - psi[2] - psi[3]))
    return sum(terms) / len(terms)


@pytest.mark.parametrize(
    ("d", "rho", "n", "value"),
    [
        (1, 0.5, 1000, 0.14496053894307),
        (1, 0.9, 5000, 0.82378767701245),
        (5, 0.5, 1000, 0.52853933945308),
        (5, 0.9, 1000, 2.62448868516362),
        (5, 0.9, 5000, 3.11339134635214),
    ],
)
def test_values_on_which_independent_implementations_agree(d, rho, n, value):
    """Untransformed, the estimate equals the value that several implementations have in common."""
    x, y = pairs(n, d, rho)
    assert float(KSG().estimate(x, y, GENERATOR).value) == pytest.approx(value, abs=1e-10)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(8, 30), st.integers(0, 1000))
def test_it_is_the_equation_whatever_the_shapes(k, d, n, seed):
    """The tables in chunks give what the equation gives example by example."""
    x, y = pairs(n, d, 0.7, seed)
    assert float(KSG(k).estimate(x, y[:, :1], GENERATOR).value) == pytest.approx(literal(x, y[:, :1], k), abs=1e-12)


def test_chunks_change_nothing(monkeypatch):
    """A table for a few rows at a time, for vectors, columns, pairs and labels, ends at the same values."""
    x, y = pairs(200, 2, 0.7)
    labels = (x[:, 0] > 0).long()

    def values():
        return torch.stack(
            [
                KSG().estimate(x, y, GENERATOR).value,
                KSG().estimate(x, labels, GENERATOR).value,
                *KSG().pairwise(x, y, GENERATOR).value.flatten(),
            ]
        )

    whole = values()
    monkeypatch.setattr("captum_iba.information.nearest_neighbours._TABLE", 1500)
    assert torch.allclose(values(), whole, atol=1e-12, rtol=0)


def test_a_variable_with_itself_is_at_the_cap():
    """Without ties y = x gives psi(n) - psi(k), which is the cap."""
    x, _ = pairs(1000, 1, 0.5)
    found = KSG().estimate(x, x, GENERATOR)
    assert float(found.value) == pytest.approx(5.984470860550346, abs=1e-12)
    assert float(found.cap) == pytest.approx(float(found.value), abs=1e-12)
    with pytest.warns(CaptumIBAWarning, match="may be anything above"):
        mutual_information(x, x, "ksg")


def test_symmetric_and_blind_to_order_and_common_scale():
    """Swapped roles, permuted examples and a common factor leave the untransformed estimate as it is."""
    x, y = pairs(300, 2, 0.8)
    value = KSG().estimate(x, y, GENERATOR).value
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    for a, b in ((y, x), (x[order], y[order]), (1024 * x, 1024 * y)):
        assert torch.allclose(KSG().estimate(a, b, GENERATOR).value, value, atol=1e-12)


def test_pairs_of_columns_equal_single_estimates():
    """The matrix holds each pair's own estimate and standard error."""
    x, y = pairs(250, 3, 0.8)
    found = KSG().pairwise(x, y[:, :2], GENERATOR)
    for i in range(3):
        for j in range(2):
            one = KSG().estimate(x[:, i : i + 1], y[:, j : j + 1], GENERATOR)
            assert torch.allclose(found.value[i, j], one.value, atol=1e-12)
            assert torch.allclose(found.standard_error[i, j], one.standard_error, atol=1e-12)
            assert found.cap[i, j] == one.cap


@pytest.mark.parametrize("n_classes", [2, 3])
def test_labels_as_scikit_learn_has_them(n_classes):
    """Ross's estimate equals scikit-learn's on the same standardised column."""
    from sklearn.feature_selection import mutual_info_classif
    from sklearn.preprocessing import scale

    x, y = pairs(400, 1, 0.8)
    labels = torch.bucketize(y[:, 0].contiguous(), torch.linspace(-0.5, 0.5, n_classes - 1).double())
    # scikit-learn adds noise of 1e-10 to the standardised column
    expected = mutual_info_classif(x.numpy(), labels.numpy(), n_neighbors=3, random_state=0)[0]
    standard = torch.tensor(scale(x.numpy(), with_mean=False))
    assert float(KSG().estimate(standard, labels, GENERATOR).value) == pytest.approx(expected, abs=1e-9)


def test_numbers_as_scikit_learn_has_them():
    """Two columns: scikit-learn takes another radius, and differs by a few thousandths."""
    from sklearn.feature_selection import mutual_info_regression

    x, y = pairs(2000, 1, 0.9)
    expected = mutual_info_regression(x.numpy(), y[:, 0].numpy(), n_neighbors=3, random_state=0)[0]
    assert float(KSG().estimate(x, y, GENERATOR).value) == pytest.approx(expected, abs=2e-3)


def test_an_example_alone_in_its_class_is_left_out():
    """It changes nothing but the warning."""
    x, y = pairs(100, 1, 0.9)
    labels = (y[:, 0] > 0).long()
    more = torch.cat([x, torch.tensor([[9.0]]).double()])
    found = KSG().estimate(more, torch.cat([labels, torch.tensor([2])]), GENERATOR)
    assert torch.allclose(found.value, KSG().estimate(x, labels, GENERATOR).value, atol=1e-12)
    assert found.n == 100
    assert found.warnings == ("1 examples that are alone in their class were left out.",)


def test_each_example_a_class_of_its_own():
    """Numbers passed as integers are named as the mistake they probably are."""
    x, _ = pairs(50, 1, 0.9)
    with pytest.raises(InvalidArgumentError, match="label of its own"):
        mutual_information(x, torch.arange(50), "ksg")


def test_ties_are_broken_by_the_transform_and_refused_without_it():
    """Rounded to tenths, the transform finds nearly the full information; without it, it is an error."""
    x, y = pairs(5000, 1, 0.9)
    x, y = (10 * x).round() / 10, (10 * y).round() / 10
    assert float(mutual_information(x, y, "ksg", "nats")) == pytest.approx(0.827, abs=0.04)
    with pytest.raises(InvalidArgumentError, match="repeat others"):
        mutual_information(x, y, "ksg", transform="none")


def test_scales_matter_without_the_transform_alone():
    """Ranks take the factor away; without them it is warned of."""
    x, y = pairs(500, 1, 0.9)
    assert mutual_information(x, 1000 * y, "ksg") == mutual_information(x, y, "ksg")
    with pytest.warns(CaptumIBAWarning, match="standard deviations reach from"):
        mutual_information(x, 1000 * y, "ksg", transform="none")


def test_high_information_in_many_dimensions_is_warned_of():
    """More than four columns and half a nat: the value is too low."""
    x, y = pairs(500, 5, 0.9)
    with pytest.warns(CaptumIBAWarning, match="10 dimensions find too little"):
        value = mutual_information(x, y, "ksg", "nats")
    assert value < -2.5 * np.log(1 - 0.81) - 0.5


def test_error_bars_are_the_scatter_of_estimates():
    """The standard error is within a third of the deviation over sixty draws."""
    found = [KSG().estimate(*pairs(300, 1, 0.7, seed), GENERATOR) for seed in range(60)]
    scatter = float(torch.stack([one.value for one in found]).std())
    assert float(torch.stack([one.standard_error for one in found]).mean()) == pytest.approx(scatter, rel=0.33)


@pytest.mark.parametrize("k", [0, 2.0, True, "3"])
def test_neighbours_that_are_no_number(k):
    """k is an integer of at least 1."""
    with pytest.raises(InvalidArgumentError, match="k="):
        KSG(k)


def test_fewer_examples_than_neighbours():
    """Each example needs k others."""
    x, y = pairs(5, 1, 0.5)
    with pytest.raises(InvalidArgumentError, match="at least 7"):
        mutual_information(x, y, KSG(k=5))


def test_matrix_of_a_variable_with_itself_is_symmetric():
    """One matrix is taken for both, ties broken alike, so the table is symmetric and its diagonal at the cap."""
    x, _ = pairs(200, 3, 0.5)
    x = (3 * x).round() / 3
    with pytest.warns(CaptumIBAWarning, match="may be anything above"):
        found = mutual_information_matrix(x, return_details=True)
    assert torch.allclose(found.value, found.value.T, atol=1e-12)
    assert torch.allclose(found.value.diagonal(), found.cap.diagonal(), atol=1e-12)
