import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_iba.errors import InvalidArgumentError
from captum_iba.information import Binning, mutual_information
from captum_iba.information.benchmark import get_tasks

PLAIN = Binning(correction=False)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=5, max_size=40))
def test_labels_are_counted(cells):
    """The plug-in value is the sum over the table of shares, by scikit-learn too."""
    from sklearn.metrics import mutual_info_score

    x, y = torch.tensor(cells).T
    value = float(PLAIN.estimate(x, y, torch.Generator()).value)
    assert value == pytest.approx(mutual_info_score(x.numpy(), y.numpy()), abs=1e-12)


def test_bits_of_fair_coins():
    """Nothing in one of two bits about whether they differ, one bit in both."""
    bits = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]] * 25)
    differ = bits.sum(dim=1) % 2
    assert float(mutual_information(bits[:, 0], differ, PLAIN)) == 0.0
    assert float(mutual_information(bits, differ, PLAIN)) == pytest.approx(1.0, abs=1e-12)


def test_the_correction_is_miller_and_madow_s():
    """(m_xy - m_x - m_y + 1) / 2n less, with m the cells that are not empty."""
    x = torch.tensor([0, 0, 1, 1, 2, 2, 2, 0])
    y = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
    both = [float(one.estimate(x, y, torch.Generator()).value) for one in (PLAIN, Binning())]
    assert both[0] - both[1] == pytest.approx((5 - 3 - 2 + 1) / 16, abs=1e-12)


def test_a_table_s_information_within_its_error():
    """Corrected counts of a known table agree with the closed form."""
    (task,) = get_tasks("table 2x3")
    found = mutual_information(*task.sample(20000), unit="nats", return_details=True)
    assert abs(float(found.value) - task.information) < 3 * float(found.standard_error)


def test_bins_by_hand():
    """Equal widths between the extremes, equal masses with equal values together, multiples of a width, and limits."""
    x = torch.tensor([[0.0], [0.1], [0.2], [0.9], [1.0], [1.0]], dtype=torch.float64)
    assert Binning(bins=2).cells(x).tolist() == [0, 0, 0, 1, 1, 1]
    assert Binning(bins=3, mass="mass").cells(x).tolist() == [0, 0, 1, 1, 2, 2]
    assert Binning(width=0.15).cells(x).tolist() == [0, 0, 1, 2, 2, 2]
    assert Binning(bins=2, limits=(0.0, 0.2)).cells(x).tolist() == [0, 1, 1, 1, 1, 1]


def test_rows_are_cells_of_a_grid():
    """Two columns of two bins make four cells."""
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]] * 5, dtype=torch.float64)
    assert len(set(Binning(bins=2).cells(x).tolist())) == 4


def test_entropy_of_cells_is_the_information_of_the_examples():
    """With each example a name of its own, I = H(cells), and ln n is the cap."""
    t = torch.rand(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = PLAIN.estimate(torch.arange(64), t, torch.Generator())
    shares = PLAIN.cells(t).bincount().double() / 64
    assert float(found.value) == pytest.approx(float(-(shares * shares.log()).sum()), abs=1e-12)
    assert float(found.cap) == pytest.approx(math.log(64))


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"bins": 0}, "bins"), ({"width": 0.0}, "width"), ({"mass": "equal"}, "mass"), ({"limits": (1.0, 0.0)}, "limits")],
)
def test_settings_that_make_no_bins(settings, name):
    """The message names the setting."""
    with pytest.raises(InvalidArgumentError, match=name):
        Binning(**settings)


def test_huge_numbers_have_bins_too():
    """Multiples of a width beyond what integers hold are cells of their own."""
    x = 1e30 * torch.randn(50, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert len(set(Binning(width=0.07).cells(x).tolist())) == 50
