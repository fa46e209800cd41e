import copy
import math
import pickle
import sys

import pytest
import torch
from torch import nn

from captum_iba.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    LayerNotExecutedError,
    LayerReusedError,
    MismatchedArgumentsError,
    MissingDependencyError,
    NonFiniteError,
    NoTensorError,
)
from captum_iba.information import KSG, Binning, Gaussian, mutual_information
from captum_iba.information.information_bottleneck import information_bottleneck
from captum_iba.information.information_plane import CONSTANT, InformationPlane
from captum_iba.information.noise_channel import KDE, NO_BOUND, SamplePropagation
from captum_iba.information.szt import szt_dataset, tishby_network, train_epochs


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def data(n=64, d=4):
    x = torch.randn(n, d, generator=generator())
    return x, (x[:, 0] > 0).long()


class Net(nn.Module):
    """Every kind of state that a measurement could change."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.act = nn.Tanh()
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(3, 2)

    def forward(self, x, scale=None):
        hidden = self.drop(self.act(self.norm(self.first(x))))
        return self.last(hidden if scale is None else hidden * scale)


def net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net()


def state(model):
    return (
        copy.deepcopy(model.state_dict()),
        [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()],
        [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
    )


def assert_same(one, other):
    assert all(torch.equal(one[0][key], other[0][key]) for key in one[0])
    assert one[2] == other[2]
    for (asks, grad), (asked, other_grad) in zip(one[1], other[1], strict=True):
        assert asks == asked
        assert grad is other_grad is None or torch.equal(grad, other_grad)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails):
    """Weights, buffers, gradients, modes and hooks, and the global random state, also after an error."""
    x, y = data()
    model = net()
    model.norm.eval()  # modes that differ
    model(x).sum().backward()
    before, random_state = state(model), torch.random.get_rng_state()
    plane = InformationPlane(["act", "last"])
    if fails:
        x = torch.cat([x[:-1], torch.full((1, 4), math.nan)])
        with pytest.raises(NonFiniteError, match="Layer 'act' has a NaN or an infinity for input 63"):
            plane.log(0, model, x, y)
    else:
        plane.log(0, model, x, y)
    assert_same(state(model), before)
    assert torch.equal(random_state, torch.random.get_rng_state())


def test_the_measured_tensor_is_the_layers_own():
    """Both informations are the estimator's for the layer's output in evaluation mode, in bits."""
    x, y = data()
    model = net().eval()
    with torch.no_grad():
        t = model.act(model.norm(model.first(x))).double()
    result = InformationPlane(["act"], KDE(0.01))
    result.log(3, model.train(), x, y)
    result = result.result()
    expected = [KDE(0.01).estimate(one, t, generator()) for one in (x.double(), y)]
    assert result.i_xt[0] == pytest.approx(float(expected[0].value) / math.log(2), abs=1e-9)
    assert result.i_ty[0] == pytest.approx(float(expected[1].value) / math.log(2), abs=1e-9)
    assert result.i_xt_se[0] == pytest.approx(float(expected[0].standard_error) / math.log(2), abs=1e-9)
    assert result.cap[0] == pytest.approx(math.log2(64))
    assert result.warnings == (NO_BOUND,)
    assert result.error_bars == "rows" and result.n_runs == (1,)


def test_binning_is_the_entropy_of_the_cells():
    """For inputs that are all different, I(X;T) is H(bin T), and I(T;Y) is H(bin T) - H(bin T | Y)."""
    x, y = data()
    model = net().eval()
    with torch.no_grad():
        t = model.act(model.norm(model.first(x))).double()
    plane = InformationPlane(["act"], Binning(width=0.5, correction=False), unit="nats")
    plane.log(0, model, x, y)
    cells = [tuple(row) for row in (t / 0.5).floor().int().tolist()]

    def entropy(members):
        shares = [members.count(cell) / len(members) for cell in set(members)]
        return -sum(p * math.log(p) for p in shares)

    given_y = sum(
        float((y == label).double().mean()) * entropy([c for c, k in zip(cells, y.tolist(), strict=True) if k == label])
        for label in (0, 1)
    )
    assert plane.result().i_xt[0] == pytest.approx(entropy(cells), abs=1e-12)
    assert plane.result().i_ty[0] == pytest.approx(entropy(cells) - given_y, abs=1e-12)


def test_what_changes_a_layers_output_in_place_is_not_measured():
    """A layer before an activation in place has the plane that it has before one that is not."""
    x, y = data()
    planes = [InformationPlane(["0"], KDE(0.1)) for _ in range(2)]
    linear = net().first
    for plane, act in zip(planes, (nn.ReLU(inplace=True), nn.ReLU()), strict=True):
        plane.log(0, nn.Sequential(linear, act), x, y)
    assert planes[0].result() == planes[1].result()
    assert planes[0].result().i_xt[0] > 1


class OfNumbers(nn.Module):
    """Takes a number for each example."""

    def __init__(self):
        super().__init__()
        self.act = nn.Tanh()

    def forward(self, x):
        return self.act(x.reshape(len(x), 1))


@pytest.mark.parametrize("estimator", ["kde", "ksg", "binning"])
@pytest.mark.filterwarnings("ignore:.*near its largest value")
def test_inputs_without_columns_are_one_column(estimator):
    """Inputs (n,) are inputs (n, 1)."""
    x, y = data()
    planes = [InformationPlane(["act"], estimator) for _ in range(2)]
    for plane, inputs in zip(planes, (x[:, 0], x[:, :1]), strict=True):
        plane.log(0, OfNumbers(), inputs, y)
    assert planes[0].result() == planes[1].result()


def test_information_is_not_negative():
    """Where neighbours say less than nothing, the plane holds 0, as mutual_information does."""
    x, below = torch.randn(60, 1, generator=generator(1)), 0
    for seed in range(8):
        y = torch.randint(2, (60,), generator=generator(seed))
        plane = InformationPlane(["act"], KSG())
        plane.log(0, OfNumbers(), x, y)
        value = plane.result().i_ty[0]
        assert value == pytest.approx(float(mutual_information(x.tanh(), y, "ksg")), abs=1e-12)
        below += value == 0
    assert 0 < below < 8


def test_a_layer_that_was_not_recorded_is_named():
    """Of a wrong name, with those that there are."""
    plane = InformationPlane(["act"])
    plane.log(0, net(), *data())
    with pytest.raises(InvalidArgumentError, match="no layer 'zz'; recorded were 'act'"):
        plane.result().loss_after_maximum("zz")


def test_equal_inputs_are_one_value():
    """With each input twice, the information is what it is with each once."""
    x, y = data()
    once, twice = (InformationPlane(["act"], KDE(0.1)) for _ in range(2))
    once.log(0, net(), x, y)
    twice.log(0, net(), x.repeat(2, 1), y.repeat(2))
    assert twice.result().i_xt == pytest.approx(once.result().i_xt, abs=1e-6)
    assert twice.result().i_ty == pytest.approx(once.result().i_ty, abs=1e-6)


@pytest.mark.parametrize("estimator", ["kde", KDE(bound="lower"), SamplePropagation(0.1, 2), "binning"])
def test_batches_do_not_matter(estimator):
    """Forward passes in pieces give the same plane; further arguments are cut with x."""
    x, y = data()
    scale = torch.rand(64, 1, generator=generator(3))
    whole, parts = (InformationPlane(["act", "last"], estimator, internal_batch_size=size) for size in (None, 10))
    for plane in (whole, parts):
        plane.log(0, net(), x, y, additional_forward_args=(scale,))
    assert parts.result().i_xt == pytest.approx(whole.result().i_xt, abs=1e-4)
    assert parts.result().i_ty == pytest.approx(whole.result().i_ty, abs=1e-4)


def test_layers_by_name_module_or_own_name():
    """Three ways to say the same; convolutional maps are flattened."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    x = torch.randn(30, 1, 4, 4, generator=generator())
    y = torch.arange(30) % 2
    results = []
    for layers in (["1", "3"], [model[1], model[3]], {"conv": "1", "logits": model[3]}):
        plane = InformationPlane(layers)
        plane.log(0, model, x, y)
        results.append(plane.result())
    assert results[0].i_xt == results[1].i_xt == results[2].i_xt
    assert [result.layer for result in results] == [("1", "3"), ("layer 1", "layer 2"), ("conv", "logits")]


class Odd(nn.Module):
    """Layers that cannot be measured, and one in a tuple that can."""

    def __init__(self):
        super().__init__()
        self.pair, self.unused, self.lstm = nn.Identity(), nn.Identity(), nn.LSTM(4, 2, batch_first=True)
        self.twice, self.mean, self.tuple = nn.Identity(), nn.Identity(), Single()

    def forward(self, x):
        x = self.twice(self.twice(x))
        self.mean(x.mean(0))
        self.lstm(x[:, None])
        return self.tuple(x)[0]


class Single(nn.Module):
    """One tensor, and what is none."""

    def forward(self, x):
        return x, None


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        ("unused", LayerNotExecutedError, "did not run"),
        ("twice", LayerReusedError, "more than once"),
        ("lstm", NoTensorError, "returns a tuple with 3 floating-point"),
        ("mean", MismatchedArgumentsError, "returned shape"),
        ("nothing", LayerNotExecutedError, "is no layer of this Odd"),
        (nn.Identity(), LayerNotExecutedError, "pass dotted names"),
    ],
)
def test_layers_that_cannot_be_measured(layer, error, message):
    """The layer and the next step are named, and no point is added."""
    x, y = data()
    plane = InformationPlane([layer])
    model = Odd()
    if layer == "lstm":
        # the states are nested in the tuple: one tensor stands beside them
        plane.log(0, model, x, y)
        assert plane.result().layer == ("lstm",)
        model.lstm.register_forward_hook(lambda module, args, output: (output[0], *output[1]))
    plane = InformationPlane([layer])
    with pytest.raises(error, match=message):
        plane.log(0, model, x, y)
    assert all(not module._forward_hooks for module in model.modules() if module is not model.lstm)
    with pytest.raises(InvalidArgumentError, match="Nothing was recorded yet"):
        plane.result()


def test_a_tuple_with_one_tensor():
    """Its tensor is the layer's output."""
    x, y = data()
    plane = InformationPlane(["tuple"], KDE(0.1))
    plane.log(0, Odd(), x, y)
    assert plane.result().i_xt[0] == pytest.approx(
        float(KDE(0.1).estimate(torch.arange(64), x.double(), generator()).value) / math.log(2), abs=1e-9
    )


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: InformationPlane("act"), InvalidTypeError, "layers is the string 'act'"),
        (lambda: InformationPlane([3]), InvalidTypeError, "wanted dotted names or modules"),
        (lambda: InformationPlane([]), InvalidArgumentError, "at least one"),
        (lambda: InformationPlane(["a", "a"]), InvalidArgumentError, "each once"),
        (lambda: InformationPlane(["a"], Gaussian()), InvalidArgumentError, "takes no labels"),
        (lambda: InformationPlane(["a"], unit="bans"), InvalidArgumentError, "unit='bans'"),
        (lambda: InformationPlane(["act"]).log("a", net(), *data()), InvalidArgumentError, "step='a'"),
        (lambda: InformationPlane(["act"]).log(0, net(), *data(), run=-1), InvalidArgumentError, "run=-1"),
        (lambda: InformationPlane(["act"]).log(0, print, *data()), InvalidTypeError, "model is a builtin"),
        (lambda: InformationPlane(["act"]).log(0, net(), [1], data()[1]), InvalidTypeError, "x is a list"),
        (lambda: InformationPlane(["act"]).log(0, net(), data()[0], data()[0]), InvalidArgumentError, "argmax"),
        (lambda: InformationPlane(["act"]).log(0, net(), data()[0][:9], data()[1]), MismatchedArgumentsError, "a row"),
        (lambda: InformationPlane(["act"]).log(0, net(), *(v[:1] for v in data())), InvalidArgumentError, "1 examples"),
    ],
)
def test_mistakes(make, error, message):
    """What cannot be used is named."""
    with pytest.raises(error, match=message):
        make()


@pytest.mark.filterwarnings("ignore:Nearest neighbours in 6 dimensions")
def test_other_estimators_take_the_inputs_as_numbers():
    """KSG has no neighbours with the same input: it gets x itself, ranked, and labels; dead units count for nothing."""
    x, y = data(200)
    plane = InformationPlane(["first"], KSG(), unit="nats")
    model = net()
    with torch.no_grad():
        model.first.weight[1] = 0
    plane.log(0, model, x, y)
    t = model.first(x).detach()[:, [0, 2]]
    expected = [float(mutual_information(x, t, "ksg", "nats")), float(mutual_information(t, y, "ksg", "nats"))]
    assert [plane.result().i_xt[0], plane.result().i_ty[0]] == pytest.approx(expected, abs=1e-9)
    with torch.no_grad():
        model.first.weight.zero_()
    plane.log(1, model, x, y)
    assert plane.result().i_xt[1] == plane.result().i_ty[1] == 0
    assert any("6 dimensions" in text for text in plane.result().warnings) and CONSTANT in plane.result().warnings
    plane.result().plot()


def test_runs():
    """Several runs: their mean, with the standard error over runs; merged planes are runs of one; a copy survives."""
    x, y = data()
    together, first, second = (InformationPlane(["act", "last"], KDE(0.1)) for _ in range(3))
    for seed in range(3):
        together.log(0, net(seed), x, y, run=seed)
        (first if seed < 2 else second).log(0, net(seed), x, y, run=seed % 2)
    merged = pickle.loads(pickle.dumps(first)).merge(second)
    mean = together.result()
    assert merged.result() == mean
    single = torch.tensor([together.result(run).i_xt for run in range(3)], dtype=torch.float64)
    assert mean.i_xt == pytest.approx(single.mean(0).tolist())
    assert mean.i_xt_se == pytest.approx((single.std(0) / 3**0.5).tolist())
    assert mean.error_bars == "runs" and mean.n_runs == (3, 3)
    assert together.result(0).error_bars == "rows"
    with pytest.raises(MismatchedArgumentsError, match="wanted the same"):
        together.merge(InformationPlane(["act"], KDE(0.1)))
    with pytest.raises(InvalidTypeError, match="merge got a int"):
        together.merge(3)
    with pytest.raises(InvalidArgumentError, match="run=7; recorded were"):
        together.result(7)


def test_a_run_that_stopped_early():
    """Where one run alone has a step, the error over runs is not known: infinite, never zero."""
    x, y = data()
    plane = InformationPlane(["act"])
    for run, step in ((0, 0), (1, 0), (0, 5)):
        plane.log(step, net(run), x, y, run=run)
    result = plane.result()
    assert result.n_runs == (2, 1) and result.i_xt_se[0] < math.inf and result.i_xt_se[1] == math.inf
    result.plot().savefig("/dev/null", format="png")


def test_an_interruption_loses_nothing():
    """A step that fails half-way is not recorded, all steps before it are."""
    x, y = data()
    plane, model = InformationPlane(["act", "last"]), net()
    plane.log(0, model, x, y)

    def interrupt(module, args, output):
        raise KeyboardInterrupt

    handle = model.last.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        plane.log(1, model, x, y)
    handle.remove()
    assert plane.result().step == (0, 0)
    plane.log(1, model, x, y)
    plane.log(1, model, x, y)  # a step logged again is replaced
    assert plane.result().step == (0, 0, 1, 1)
    assert plane.result().layer == ("act", "last") * 2


def test_the_table(monkeypatch):
    """A data frame holds the columns; without pandas the message says how to get it."""
    import pandas

    x, y = data()
    plane = InformationPlane(["act"])
    plane.log(0, net(), x, y)
    frame = plane.result().to_dataframe()
    assert isinstance(frame, pandas.DataFrame)
    assert [*frame] == ["step", "layer", "i_xt", "i_ty", "i_xt_se", "i_ty_se", "cap", "saturated", "n_runs"]
    assert frame["i_xt"][0] == plane.result().i_xt[0]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingDependencyError, match="captum_iba\\[report\\]"):
        plane.result().to_dataframe()


def test_data_processing():
    """A layer with closer values than the one before passes; one that spreads them farther than noise is reported."""
    x, y = data()
    model = nn.Sequential(nn.Linear(4, 2), nn.Identity(), nn.Linear(2, 2, bias=False), nn.Identity())
    with torch.no_grad():
        model[2].weight.copy_(torch.eye(2) * 0.5)
    plane = InformationPlane(["1", "3"], KDE(0.05))
    plane.log(0, model, x, y)
    check = plane.result().check_data_processing()
    assert check.holds and check.n_comparisons == 2
    assert str(check) == "KDE(noise_var=0.05, bound='upper'): 0 of 2 comparisons violate the inequality."
    with torch.no_grad():
        model[2].weight.mul_(20)  # the same information, farther above the noise
    plane.log(1, model, x, y)
    check = plane.result().check_data_processing()
    assert not check.holds and check.n_comparisons == 4
    violation = max(check.violations, key=lambda one: one.excess)
    result = plane.result()
    assert (violation.step, violation.layers, violation.quantity) == (1, ("1", "3"), "I(X;T)")
    assert violation.excess == pytest.approx(result.i_xt[3] - result.i_xt[2])
    assert violation.excess > 2 * violation.standard_error
    assert "KDE(noise_var=0.05, bound='upper'): " in str(check) and "'1' to '3' at step 1" in str(check)
    assert plane.check_data_processing(1e6).holds and not plane.check_data_processing().holds


def test_the_picture():
    """A path for each layer, colours for the steps, the limit of the information bottleneck from p_xy or its curve."""
    x, y = data()
    plane = InformationPlane(["act", "last"])
    for step in (0, 1, 10):
        plane.log(step, net(step), x, y)
    result = plane.result()
    figure = plane.plot()
    axis, bar = figure.axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["act", "last"]
    assert (axis.get_xlabel(), axis.get_ylabel(), bar.get_ylabel()) == ("I(X;T), bits", "I(T;Y), bits", "step")
    offsets = torch.as_tensor(axis.collections[-1].get_offsets().data)
    assert offsets[:, 0].tolist() == [result.i_xt[place] for place in result.path("last")]
    joint = torch.stack([(y == label).double() for label in (0, 1)], dim=1)
    for limit in (joint, information_bottleneck(joint, [0.5, 2, 10], unit="nats")):
        (line,) = [line for line in result.plot(limit).axes[0].lines if line.get_label() == "IB limit"]
        heights = torch.as_tensor(line.get_ydata())
        # y is determined by x: the line to H(Y), in bits
        share = float(y.double().mean())
        entropy = -sum(p * math.log2(p) for p in (share, 1 - share))
        assert float(heights.max()) == pytest.approx(entropy, abs=1e-6)
    with pytest.raises(InvalidTypeError, match="limit is a str"):
        result.plot("limit")


def test_a_small_training():
    """On the classical data, what the last hidden layer holds of the label grows, and no layer exceeds the limits."""
    x, y = szt_dataset()
    x, y = x[::8], y[::8]
    network = tishby_network()
    plane = InformationPlane(["hidden1", "hidden5"])
    for epoch in train_epochs(network, x, y, n_epochs=20, batch_size=64, learning_rate=1e-2):
        if epoch % 10 == 0:
            plane.log(epoch, network, x, y)
    result = plane.result()
    last = [result.i_ty[place] for place in result.path("hidden5")]
    assert last[0] < 0.3 and last[-1] > 0.5
    share = float(y.double().mean())
    assert max(result.i_ty) <= -sum(p * math.log2(p) for p in (share, 1 - share)) + 1e-9
    assert max(result.i_xt) <= 9 + 1e-9  # 512 different inputs
    assert result.saturated[0]
    assert result.check_data_processing().holds
    values = [result.i_xt[place] for place in result.path("hidden5")]
    assert result.loss_after_maximum("hidden5") == max(values) - values[-1]
