"""Sufficiency runs its examples in pieces that fit into memory; nothing in the result tells of them."""

import dataclasses

import pytest
import torch
from torch import nn

from captum_iba import LayerIBA
from captum_iba.errors import CaptumIBAWarning, InvalidArgumentError
from captum_iba.metrics import Sufficiency, sufficiency
from tests.literal import normal, small_cnn

N = 5
X, MAPS, SCALE = normal(N, 3, 10, 10), normal(N, 1, 10, 10, seed=1), torch.linspace(0.5, 2, N, dtype=torch.float64)
SHARES = torch.rand(N, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Watched(nn.Module):
    """A network that takes a number an example and a setting, and notes, or refuses, how many rows it runs."""

    def __init__(self):
        super().__init__()
        self.net, self.rows, self.most = small_cnn(inplace=False), [], 10**9

    @property
    def layer(self):
        return self.net[3]

    def forward(self, x, scale, name):
        assert name == "as it is" and len(scale) == len(x)
        return self.behind(self.net(x)) * scale[:, None]

    def behind(self, y):
        self.rows.append(len(y))
        if len(y) > self.most:
            raise torch.OutOfMemoryError("out of memory")
        return y


MODEL = Watched().eval()
STATISTICS = (
    LayerIBA(MODEL, MODEL.layer).estimate([((normal(64, 3, 10, 10, seed=9), torch.ones(64), "as it is"),)]).statistics
)
MASK = torch.rand(N, 8, 10, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(autouse=True)
def without_notes():
    MODEL.rows.clear()
    MODEL.most = 10**9


def measure(rows=None, chosen=slice(None), **options):
    given = {"target": 1, "areas": [0.1, 0.5], "n_samples": 3, "max_examples_per_batch": rows, **options}
    return sufficiency(
        MODEL,
        X[chosen],
        MAPS[chosen],
        MODEL.layer,
        STATISTICS,
        (SCALE[chosen], "as it is"),
        given.pop("target"),
        **given,
    )


def assert_same(found, wanted):
    for field in dataclasses.fields(wanted):
        values = getattr(found, field.name), getattr(wanted, field.name)
        torch.testing.assert_close(*values, rtol=0, atol=1e-12, equal_nan=True, msg=field.name)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target": torch.tensor([3, 1, 0, 2, 1])},
        {"target": torch.tensor([2])},
        {"target": [3, 1, 0, 2, 1]},
        {"target": (2,)},
        {"target": [(3,), (1,), (0,), (2,), (1,)]},
        {"mask": MASK},
        {"areas": SHARES},
        {"thresholds": [-0.5, 0.0, 0.7]},
        {"output": "logit", "n_samples": 1, "seed": 4},
    ],
)
def test_results_do_not_depend_on_the_pieces(options):
    """Inputs, arguments, targets of all forms, masks and areas go with their examples."""
    whole = measure(**options)
    for rows in (1, 2, 4, 7, 1000):
        assert_same(measure(rows, **options), whole)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 100])
def test_no_forward_pass_has_more_rows(rows):
    """Not behind the layer and not before it, however many examples come; two is the least."""
    measure(rows)
    assert max(MODEL.rows) <= max(2, rows)
    assert max(MODEL.rows) >= min(rows, 10) - rows % 2


@pytest.mark.parametrize("most", [2, 5, 16])
def test_out_of_memory_halves_the_rows(most):
    """A model that fails above some rows gives the same values, with one warning that names a number that fits."""
    wanted = measure()
    MODEL.most = most
    with pytest.warns(CaptumIBAWarning, match="rows at once did not fit into memory") as caught:
        found = measure()
    assert len(caught) == 1
    assert_same(found, wanted)
    suggested = int(str(caught[0].message).partition("max_examples_per_batch=")[2].split()[0])
    assert_same(measure(suggested), wanted)
    MODEL.most = 0
    with pytest.raises(torch.OutOfMemoryError):
        measure()


def test_warnings_are_given_once():
    """Not for each piece."""
    wanted = measure(2)
    MODEL.train()
    try:
        with pytest.warns(CaptumIBAWarning, match="training mode") as caught:
            assert_same(measure(2), wanted)
    finally:
        MODEL.eval()
    assert len(caught) == 1


def test_progress_is_shown_if_asked_for(capsys):
    """A bar over the rows, one for each example, setting and draw, the two ends included; also after a retreat."""
    measure()
    assert capsys.readouterr().err == ""
    measure(4, show_progress=True)
    assert "60/60" in capsys.readouterr().err
    MODEL.most = 6
    with pytest.warns(CaptumIBAWarning, match="memory"):
        measure(show_progress=True)
    shown = capsys.readouterr().err
    assert "60/60" in shown and "61/60" not in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mask": MASK[:4]}, r"mask has shape \[4, 8, 10, 10\].*the same 5 examples"),
        ({"mask": MASK[:, :7]}, r"mask has shape \[7, 10, 10\] for an example.*\[8, 10, 10\]"),
        ({"mask": MASK[0, 0, 0, 0]}, r"mask has shape \[\]"),
        ({"areas": SHARES[:2]}, r"\(A,\) or \(5, A\)"),
    ],
)
@pytest.mark.parametrize("rows", [2, None])
def test_what_does_not_fit_is_named_for_the_whole_batch(options, words, rows):
    """Whatever the pieces are."""
    with pytest.raises(InvalidArgumentError, match=words):
        measure(rows, **options)


def test_flat_maps_of_any_size_tie():
    """Averaging and interpolating tell no part of a constant map apart: the same random places are kept."""
    wanted = measure(areas=[0.3])
    flat = [
        sufficiency(
            MODEL,
            X,
            torch.full((N, 1, side, side), 0.1, dtype=torch.float64),
            MODEL.layer,
            STATISTICS,
            (SCALE, "as it is"),
            1,
            areas=[0.3],
            n_samples=3,
        ).probability
        for side in (10, 3, 7, 23)
    ]
    assert not torch.equal(flat[0], wanted.probability)
    assert all(torch.equal(other, flat[0]) for other in flat[1:])


def test_a_bound_needs_bits_and_their_mask():
    """Without a mask, with negative values or maps of another size there is none, and it is said what to pass."""
    bits = MAPS.abs()

    def bound(maps, **options):
        return sufficiency(
            MODEL, X, maps, MODEL.layer, STATISTICS, (SCALE, "as it is"), 1, areas=[0.3, 1.0], n_samples=1, **options
        ).bound

    assert bound(bits, mask=MASK).shape == (N, 2)
    for scale in range(1, 20):  # nothing is removed, whatever the sums round to
        assert bool((bound(bits / scale, mask=MASK)[:, 1] < 1e-6).all())
    for maps in (bits, MAPS):
        with pytest.raises(InvalidArgumentError, match="no mask was passed. Pass .*mask=diagnostics.mask"):
            bound(maps)
    one_negative = bits.clone()
    one_negative[3, 0, 2, 2] = -1e-9
    for maps in (MAPS, one_negative, bits[..., ::2, ::2]):
        with pytest.raises(InvalidArgumentError, match="Pass the bits that LayerIBA.attribute returned"):
            bound(maps, mask=MASK, max_examples_per_batch=2)


def test_a_summary_has_a_bound_where_all_batches_have():
    """One batch without a mask, and there is none for all."""
    metric = Sufficiency(MODEL, MODEL.layer, STATISTICS, areas=[0.3], n_samples=1)
    for part in (slice(0, 2), slice(2, 5)):
        metric.evaluate(X[part], MAPS[part].abs(), (SCALE[part], "as it is"), 1, MASK[part])
    assert metric.summary().bound.shape == (N, 1)
    metric.evaluate(X[:1], MAPS[:1].abs(), (SCALE[:1], "as it is"), 1)
    with pytest.raises(InvalidArgumentError, match="no mask was passed"):
        _ = metric.summary().bound
