from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer, load_iris
from torch import nn

from captum_iba.errors import InvalidArgumentError, UnsupportedModelError
from captum_iba.information.neural_information_flow import NeuralInformationFlow


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.ELU]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def built(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().double()


def flow_of(model, data, *args, **kwargs):
    return NeuralInformationFlow(model, *args, **{"estimator": "gaussian", **kwargs}).fit(data)


@pytest.mark.filterwarnings("ignore:.*near its largest value:captum_iba.errors.CaptumIBAWarning")
@settings(max_examples=15)
@given(
    st.sampled_from(ACTIVATIONS),
    st.lists(st.integers(2, 5), min_size=1, max_size=3),
    st.booleans(),
    st.integers(0, 50),
)
def test_removing_constant_units_leaves_the_outputs(activation, hidden, bias, seed):
    """Bias balancing is exact for any activation, depth and number of constant units, with a bias or without."""

    def make():
        widths, layers = [3, *hidden, 2], []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b, bias=bias), activation()]
        return nn.Sequential(*layers[:-1])

    model, x = built(make, seed), normal(100, 3)
    with torch.no_grad():
        for place in range(0, 2 * len(hidden), 2):
            model[place].weight[:2] = 0
            if bias:
                model[place].bias[0] = 0.7  # no activation here is 0 at it
    flow = flow_of(model, x)
    smaller, report = flow.prune()
    assert report.n_units >= 2
    assert torch.allclose(smaller(x), model(x), atol=1e-12, rtol=1e-12)
    assert report.largest_difference <= 1e-12 * max(report.largest_output, 1)
    for place in range(0, 2 * len(hidden), 2):
        assert not smaller[place].weight[:2].any() and not smaller[place + 2].weight[:, :2].any()
    again, _ = flow_of(smaller, x).prune()
    assert torch.allclose(again(x), model(x), atol=1e-12, rtol=1e-12)


def convolution(padding=0, padding_mode="zeros", activation=nn.Sigmoid, groups=1):
    return built(
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3),
            activation(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 2, padding=padding, padding_mode=padding_mode, groups=groups),
            nn.BatchNorm2d(6),
            activation(),
            nn.Flatten(),
            nn.Linear(6 * (2 + 2 * padding) ** 2, 2),
        )
    )


def make_constant(model, value=0.3):
    with torch.no_grad():
        model[0].weight[1] = 0
        model[0].bias[1] = value
        model[3].weight[2] = 0
        model[4].running_mean.normal_(generator=torch.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("padding_mode", ["zeros", "circular", "replicate"])
def test_convolutions_without_zero_padding_are_exact(padding_mode, groups):
    """Constant channels fold through pooling, batch norm and flattening, in groups and with paddings of themselves."""
    padding = 0 if padding_mode == "zeros" else 1
    model = make_constant(convolution(padding, padding_mode, groups=groups))
    x = normal(60, 1, 8, 8)
    flow = flow_of(model.train(), x)
    assert flow.result.units_of("constant") == {"2": (1,), "5": (2,)}
    smaller, report = flow.prune()
    model.eval(), smaller.eval()
    assert report.units == {"2": (1,), "5": (2,)}
    assert torch.allclose(smaller(x), model(x), atol=1e-12, rtol=1e-12)
    assert not smaller[7].weight[:, 2 * (2 + 2 * padding) ** 2 : 3 * (2 + 2 * padding) ** 2].any()


def test_zero_padding_is_refused_unless_the_constant_is_zero():
    """At the border zeros stand beside the constant: an error; a dead channel is 0 as well, so it folds."""
    x = normal(60, 1, 8, 8)
    with pytest.raises(UnsupportedModelError, match="pads with zeros"):
        flow_of(make_constant(convolution(1)), x).prune()
    model = make_constant(convolution(1, activation=nn.ReLU), value=-1.0)
    smaller, report = flow_of(model.eval(), x).prune()
    assert report.n_units >= 1
    assert torch.allclose(smaller(x), model(x), atol=1e-12, rtol=1e-12)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        hidden = torch.sigmoid(self.a(x))
        return self.c(torch.tanh(self.b(hidden)) + hidden)


def test_what_else_reads_a_unit_is_noticed():
    """A residual connection: outputs on the data differ, so the removal is refused; the model is left alone."""
    model = built(Residual)
    with torch.no_grad():
        model.a.weight[0] = 0
        model.a.bias[0] = 2.0
    x = normal(50, 3)
    before = model(x)
    flow = flow_of(model, x, ["a", "b", "c"])
    with pytest.raises(UnsupportedModelError, match="something beside the next layer reads them"):
        flow.prune()
    assert torch.equal(model(x), before)
    _, report = flow.prune({"a": [0]})
    assert report.largest_difference > 0.01


def test_layers_that_mix_units_and_computed_weights_are_refused():
    """After a layer norm a constant unit varies; parametrized weights cannot be set; a layer that runs twice."""
    x = normal(50, 3)
    mixing = built(lambda: nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.LayerNorm(3), nn.Linear(3, 2)))
    computed = built(lambda: nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)))
    with torch.no_grad():
        mixing[0].bias[0] = computed[0].bias[0] = -100
    nn.utils.parametrizations.weight_norm(computed[2])
    with pytest.warns(UserWarning, match="not checked"), pytest.raises(UnsupportedModelError, match="LayerNorm, Lin"):
        flow_of(mixing, x, ["1", "3"]).prune()
    with pytest.warns(UserWarning, match="not checked"), pytest.raises(UnsupportedModelError, match="parametrized"):
        flow_of(computed, x).prune()

    class Hidden(nn.Module):
        """A normalisation that no module shows."""

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.b(self.a(x).relu().exp().log_softmax(1))

    model = built(Hidden)
    with torch.no_grad():
        model.a.weight[0] = 0
    with pytest.raises(UnsupportedModelError, match="not constant where the Linear reads them"):
        flow_of(model, x, ["a", "b"]).prune()


class Shared(nn.Module):
    """A layer that reads hidden units, and then once more for the output."""

    def __init__(self):
        super().__init__()
        self.a, self.hidden, self.b, self.after, self.c = (
            nn.Linear(3, 3),
            nn.Sigmoid(),
            nn.Linear(3, 2),
            nn.Tanh(),
            nn.Linear(2, 2),
        )

    def forward(self, x):
        hidden = self.hidden(self.a(x))
        return self.c(self.after(self.b(hidden))) + self.b(hidden)


def test_a_reader_that_runs_twice_is_refused():
    """One bias cannot stand for two uses."""
    with pytest.raises(UnsupportedModelError, match="runs 2 times in one pass"):
        flow_of(built(Shared), normal(50, 3), ["hidden", "after", "c"]).prune({"hidden": [0]})


@pytest.mark.filterwarnings("ignore:.*near its largest value:captum_iba.errors.CaptumIBAWarning")
@pytest.mark.parametrize("size", [1, 3])
def test_padding_by_name_is_zero_padding_of_wide_kernels(size):
    """padding="same" pads a kernel of three, not one of one."""
    model = built(
        lambda: nn.Sequential(
            nn.Conv1d(1, 2, 1), nn.Sigmoid(), nn.Conv1d(2, 2, size, padding="same"), nn.Flatten(), nn.Linear(16, 2)
        )
    )
    with torch.no_grad():
        model[0].weight[0] = 0
    x = normal(50, 1, 8)
    flow = flow_of(model, x)
    if size == 1:
        assert torch.allclose(flow.prune()[0](x), model(x), atol=1e-12)
    else:
        with pytest.raises(UnsupportedModelError, match="pads with zeros"):
            flow.prune()


class Absolute(nn.Module):
    def forward(self, x):
        return x.abs()


def exclusive_or():
    """Copies of two bits; their sum's size, which tells whether they are equal; two logits."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1), Absolute(), nn.Linear(1, 2)).double()
    with torch.no_grad():
        for layer, weight, bias in (
            (model[0], [[9.0, 0.0], [0.0, 9.0]], [0.0, 0.0]),
            (model[2], [[1.0, 1.0]], [0.0]),
            (model[4], [[1.0], [-1.0]], [-1.0, 1.0]),
        ):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.copy_(torch.tensor(bias))
    return model


@pytest.mark.filterwarnings("ignore:.*near its largest value:captum_iba.errors.CaptumIBAWarning")
def test_units_without_pairwise_information_may_be_needed():
    """Exclusive or: no edge is above the null, together the units say all; removing them costs the task."""
    bits = normal(400, 2).sign()
    labels = (bits[:, 0] != bits[:, 1]).long()
    model = exclusive_or()
    flow = flow_of(model, (bits, labels), family_wise=True, n_permutations=400)
    assert flow.result.units[1] == ("null", "null") and float(flow.result.attribution.abs().sum()) == 0
    _, kept = flow.prune()
    assert kept.n_units == 0 and "nothing to remove" in kept.describe() and kept.accuracy_after == 1.0
    _, report = flow.prune("null")
    assert report.accuracy_before == 1.0 and report.accuracy_after < 0.7
    assert "accuracy 1.0000 before" in report.describe()


def test_units_by_name_are_replaced_by_their_mean():
    """The next layer gets a chosen unit's mean; the report says by how much outputs change."""
    model = built(lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    x = normal(80, 3)
    smaller, report = flow_of(model, x).prune({"1": [2, 0]})
    hidden = model[:2](x).clone()
    hidden[:, [0, 2]] = hidden[:, [0, 2]].mean(0)
    wanted = model[2](hidden)
    assert torch.allclose(smaller(x), wanted, atol=1e-12)
    assert report.units == {"1": (0, 2)} and report.accuracy_before is None
    assert report.largest_difference == pytest.approx((wanted - model(x)).abs().max().item())
    assert report.what == "chosen" and report.n == 80


def test_wrong_units_are_refused():
    """Words, layers and units that there are not; no null in the poster's mode."""
    model = built(lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    flow = flow_of(model, normal(50, 3))
    for what, message in (
        ("weak", "what='weak'"),
        ({"2": [0]}, "no hidden layer '2'; wanted '1'"),
        ({"1": [4]}, "has no unit 4"),
        ({"1": [-1]}, "has no unit -1"),
        ({"1": "0"}, "are a str"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            flow.prune(what)
    assert "No unit was named" in flow.prune({})[1].describe()
    with pytest.warns(UserWarning, match="no information of an edge"):
        poster = flow_of(model, normal(50, 3), mode="poster")
    with pytest.raises(InvalidArgumentError, match="has no null"):
        poster.prune("null")


def trained(x, y, hidden, seed):
    def make():
        widths, layers = [x.shape[1], *hidden, int(y.max()) + 1], []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), nn.ReLU()]
        return nn.Sequential(*layers[:-1]).float()

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.filterwarnings("ignore:.*near its largest value:captum_iba.errors.CaptumIBAWarning")
@pytest.mark.parametrize("load", [load_iris, load_breast_cancer])
@pytest.mark.parametrize("hidden", [(10,), (8, 6)])
def test_trained_networks_lose_constant_units_without_loss(load, hidden):
    """Iris and breast cancer: outputs equal to float32 rounding, accuracy unchanged, dead units found."""
    values, labels = load(return_X_y=True)
    x = torch.tensor(values[:, :4], dtype=torch.float32)
    x, y = (x - x.mean(0)) / x.std(0), torch.tensor(labels)
    model = trained(x, y, hidden, seed=0)
    with torch.no_grad():
        model[0].bias[0] = -100  # a dead unit, which not every training leaves behind
    flow = flow_of(model, (x, y), estimator="ksg", n_permutations=40)
    smaller, report = flow.prune()
    assert 0 in report.units["1"]
    assert torch.allclose(smaller(x), model(x), rtol=1e-5, atol=1e-5 * report.largest_output)
    assert report.accuracy_after == report.accuracy_before > 0.85
