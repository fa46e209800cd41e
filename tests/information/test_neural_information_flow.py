import copy
import dataclasses
from itertools import pairwise

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from captum_iba.errors import (
    CaptumIBAWarning,
    InvalidArgumentError,
    InvalidTypeError,
    LayerNotExecutedError,
    LayerReusedError,
    MismatchedArgumentsError,
    NonFiniteError,
    NoTensorError,
    NotTrainedError,
    TargetError,
    TargetIndexError,
    UnsupportedModelError,
)
from captum_iba.information import NeuralInformationFlow, _flow_edges, mutual_information, mutual_information_matrix
from captum_iba.information._flow_graph import chain
from captum_iba.information._flow_null import independent_estimates
from captum_iba.information.estimator import as_estimator
from captum_iba.information.generators import generator_of
from captum_iba.information.permutation import permutation_estimates
from captum_iba.information.variables import rank_gaussianize


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def mlp(*widths, activation=nn.ReLU, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), activation()]
        return nn.Sequential(*layers[:-1])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def flow_of(model, data, *args, **kwargs):
    return NeuralInformationFlow(model, *args, **{"estimator": "gaussian", **kwargs}).fit(data)


def test_edges_are_the_mutual_information_of_units():
    """Estimates equal mutual_information_matrix of the layers' outputs; edges exceed the null; A is their chain."""
    model, x = mlp(3, 5, 2, seed=1), normal(300, 3)
    result = flow_of(model, x, estimator="ksg").result
    hidden = model[:2](x).detach()
    for seed, (a, b) in enumerate([(x, hidden), (hidden, model(x).detach())]):
        assert torch.equal(result.estimates[seed], mutual_information_matrix(a, b, "ksg", seed=seed))
    for edges, estimates, quantile in zip(result.edges, result.estimates, result.null_quantiles, strict=True):
        assert torch.equal(edges, torch.where(estimates > quantile, estimates, 0.0))
    assert torch.equal(result.attribution, chain(result.edges))
    assert result.layers == ("inputs", "1", "2") and result.n == 300


def test_bits_are_nats_over_ln_2():
    """unit scales estimates, edges and the null."""
    model, x = mlp(3, 4, 2), normal(200, 3)
    bits, nats = (flow_of(model, x, unit=unit).result for unit in ("bits", "nats"))
    for name in ("estimates", "edges", "null_quantiles"):
        for a, b in zip(getattr(bits, name), getattr(nats, name), strict=True):
            assert torch.allclose(a * torch.tensor(2.0, dtype=torch.float64).log(), b)


def test_a_linear_chain_ranks_by_the_closed_form():
    """y = 3 a + b of normal a, b: edges are 1/2 log2(1 + 9) and 1/2 log2(1 + 1/9), c says nothing."""
    model = nn.Sequential(nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 1.0, 1e-30]]))
    found = flow_of(model, normal(20_000, 3)).result
    assert found.attribution[:2, 0].tolist() == pytest.approx([1.661, 0.076], abs=0.03)
    assert found.estimates[0][2, 0] < 1e-3


def test_independent_features_are_below_the_null_about_every_twentieth_time():
    """The null's 95 % quantile is exceeded by 5 % of edges that carry nothing, for each estimator."""
    x, y = normal(150, 30, seed=3), normal(150, 30, seed=4)
    for name in ("ksg", "gaussian"):
        draws = independent_estimates(as_estimator(name), 150, 2000, generator_of(0))
        share = float((mutual_information_matrix(x, y, name, "nats") > draws.quantile(0.95)).double().mean())
        assert 0.02 < share < 0.09


def test_the_pooled_null_is_the_permutation_null():
    """Whatever two columns hold: their permuted estimates have the pooled null's distribution."""
    x, y = normal(100, 1).exp(), normal(100, 1, seed=1).sign() * normal(100, 1, seed=2).square()
    pooled = independent_estimates(as_estimator("ksg"), 100, 1000, generator_of(0))
    x, y = (rank_gaussianize(column.double(), generator_of(0)) for column in (x, y))
    own = permutation_estimates(as_estimator("ksg"), x, y, 300, generator_of(1))
    for level in (0.2, 0.5, 0.8, 0.95):
        assert float((own <= pooled.quantile(level)).double().mean()) == pytest.approx(level, abs=0.07)


def test_weights_of_zero_carry_nothing_and_weights_scale():
    """Information does not know weights: masked by default, kept without the mask, multiplied with weighted."""
    model, x = mlp(3, 4, 2), normal(400, 3)
    with torch.no_grad():
        model[2].weight[:, 1] = 0
    masked, kept, weighted = (
        flow_of(model, x, **options).result
        for options in ({}, {"mask_zero_weights": False}, {"weighted": True, "mask_zero_weights": False})
    )
    assert kept.edges[1][1].max() > 0.01 and kept.node_flow[1][1] > 0
    assert masked.edges[1][1].tolist() == [0, 0] and masked.units[1][1] == "null"
    assert torch.allclose(weighted.edges[1], kept.edges[1] * model[2].weight.detach().abs().double().T)


class Branch(nn.Module):
    """A hidden layer, and a branch of it that is added to sums of its units or not."""

    def __init__(self, residual):
        super().__init__()
        self.a, self.b, self.o = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.first, self.second = nn.Identity(), nn.Identity()
        self.residual = residual

    def forward(self, x):
        hidden = self.first(self.a(x).tanh())
        return self.o(self.second(self.b(hidden) + self.residual * (hidden + hidden.roll(1, 1))))


def test_a_residual_connection_carries_what_weights_of_zero_do_not():
    """A zero-initialised branch passes nothing; what is added past it does, and its edges are not masked."""
    x, layers = normal(300, 3), ["first", "second", "o"]
    model = Branch(residual=True)
    nn.init.zeros_(model.b.weight)
    with pytest.warns(CaptumIBAWarning, match="not checked for weights of 0: layer 'second' depends on more"):
        masked = flow_of(model, x, layers).result
    kept = flow_of(model, x, layers, mask_zero_weights=False).result
    assert torch.equal(masked.attribution, kept.attribution) and float(masked.attribution.sum()) > 1
    with pytest.raises(UnsupportedModelError, match="weighted=True, but layer 'second'"):
        flow_of(model, x, layers, weighted=True)
    assert not any(module._forward_hooks for module in model.modules())


def test_without_a_residual_connection_the_branch_is_the_link():
    """The same modules in a row: weights of 0 are masked, whatever the batches."""
    x, layers = normal(300, 3), ["first", "second", "o"]
    model = Branch(residual=False)
    with torch.no_grad():
        model.b.weight[:, 1] = 0
    for data in (x, list(x.split(1)), list(x.split(7))):
        edges = flow_of(model, data, layers).result.edges[1]
        assert edges[1].tolist() == [0, 0, 0] and float(edges[0].sum()) > 0


@pytest.mark.parametrize("output", ["logits", "labels"])
def test_a_layer_of_constant_units_has_no_edges(output):
    """A branch of zeros without a residual connection: nothing passes it, whether what comes after varies or not."""
    model, x = Branch(residual=False), normal(100, 3)
    nn.init.zeros_(model.b.weight)
    result = flow_of(model, (x, (x[:, 0] > 0).long()), ["first", "second", "o"], estimator="ksg", output=output).result
    assert float(result.attribution.sum()) == 0 and result.units_of("constant") == {"second": (0, 1, 2)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_few_levels_of_16_bits_are_no_constant(dtype):
    """A unit that takes three neighbouring values varies; one that takes two is rounded."""
    eps = torch.finfo(dtype).eps
    x = (normal(300, 2).sign() * torch.tensor([1.0, 0.5])).to(dtype)
    x[:100, 0] = 0
    model = nn.Sequential(nn.Linear(2, 2), nn.Identity(), nn.Linear(2, 2)).to(dtype)
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2) * eps)
        model[0].bias.copy_(torch.tensor([1.5, 1.5 + eps / 2]))
    result = flow_of(model, x).result
    assert model[0](x).detach().unique(dim=0).shape[0] >= 3
    assert result.units_of("constant") == {"1": (1,)}


def test_a_constant_unit_is_found_and_has_no_edge():
    """A unit with one value for all data is constant, whatever it is worth; its edges are 0."""
    model, x = mlp(3, 4, 2, activation=nn.Sigmoid), normal(200, 3)
    with torch.no_grad():
        model[0].weight[2] = 0
        model[0].bias[0] = 60  # saturated, up to rounding
    result = flow_of(model, x).result
    assert result.units_of("constant") == {"1": (0, 2)}
    assert float(result.edges[0][:, [0, 2]].abs().sum()) == 0 == float(result.edges[1][[0, 2]].abs().sum())
    assert "2 units (0, 2) constant" in result.describe()


def test_rounding_is_not_ranked():
    """A mean over positions that varies by rounding alone says nothing."""
    model = nn.Sequential(nn.Conv1d(1, 2, 1), nn.InstanceNorm1d(2), nn.Flatten(), nn.Linear(16, 2))
    result = flow_of(model, normal(300, 1, 8), layers=["1", "3"], mask_zero_weights=False).result
    assert float(result.estimates[0].max()) == 0
    assert result.units[1] == ("null", "null")


def test_an_edge_that_one_unit_determines_is_flagged():
    """One-to-one edges are at the cap, where the true value is infinite: flagged, and warned of once."""
    model = nn.Sequential(nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 1))
    flow = NeuralInformationFlow(model)
    with pytest.warns(CaptumIBAWarning, match="near its largest value") as caught:
        flow.fit(normal(200, 1)).fit(normal(200, 1))
    assert len(caught) == 1 and caught[0].filename == __file__
    assert all(bool(saturated.all()) for saturated in flow.result.saturated)
    assert "2 edges are as high as 200 examples allow" in flow.result.describe()


def test_the_default_layers_of_a_chain():
    """After each weighted layer what follows unit by unit, before a flattening; last the logits, not the softmax."""
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        nn.Linear(27, 4),
        nn.GELU(),
        nn.Dropout(),
        nn.Linear(4, 2),
        nn.Softmax(dim=1),
    )
    flow = NeuralInformationFlow(model, estimator="gaussian")
    assert list(flow.layers) == ["0.3", "4", "5"]
    result = flow.fit(normal(100, 1, 8, 8)).result
    assert [len(kinds) for kinds in result.units] == [1, 3, 4, 2]


def test_layers_by_name_and_by_module_are_the_same():
    """And any model may name them."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = mlp(3, 4, 3, seed=2), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(torch.tanh(self.body(x)))

    model, x = Model().eval(), normal(100, 3)
    by_name = flow_of(model, x, ["body.1", "body.2", "head"]).result
    by_module = flow_of(model, x, [model.body[1], model.body[2], model.head]).result
    assert torch.equal(by_name.attribution, by_module.attribution)
    with pytest.raises(InvalidArgumentError, match="layers=None for a Model"):
        NeuralInformationFlow(model)


def test_channels_are_means_and_elements_are_each_their_own():
    """A convolution's channels stand for their positions; elements on demand; attribute has the inputs' shape."""
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2))
    x = normal(200, 2, 3, 3)
    by_channel = flow_of(model, x)
    means = mutual_information_matrix(x.mean((2, 3)), model[:2](x).mean((2, 3)).detach(), "gaussian")
    assert torch.allclose(by_channel.result.estimates[0], means, atol=1e-6)
    rows = by_channel.attribute(x[:2], target=1)
    assert rows.shape == (2, 2, 3, 3) and rows.dtype == x.dtype
    assert torch.equal(rows, by_channel.result.attribution[:, 1].float().reshape(1, 2, 1, 1).expand(2, 2, 3, 3))
    assert by_channel.attribute(torch.zeros(1, 2, 5, 7), 0).shape == (1, 2, 5, 7)
    with pytest.warns(CaptumIBAWarning, match="not checked for weights of 0"):
        by_element = flow_of(model, x, input_units="elements")
    rows = by_element.attribute(x[:1], target=0)
    assert torch.equal(rows, by_element.result.attribution[:, 0].float().reshape(1, 2, 3, 3))


def test_a_linear_layer_reads_channels_through_a_flattening():
    """The weights of a channel are those of all its positions."""
    model = nn.Sequential(nn.Conv1d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    with torch.no_grad():
        model[3].weight[:, 4:8] = 0
    x = normal(200, 1, 4)
    result = flow_of(model, x).result
    assert result.edges[1][1].tolist() == [0, 0] and bool((result.estimates[1][1] > 0).any())
    weighted = flow_of(model, x, weighted=True).result
    sums = model[3].weight.detach().double().abs().reshape(2, 3, 4).sum(2).T
    assert torch.allclose(weighted.edges[1], result.edges[1] * sums)


def test_an_estimator_of_columns_as_they_are_has_a_null_for_each_pair():
    """Without the rank transform the null depends on the columns: as many quantiles as edges."""
    model, x = mlp(2, 3, 2), normal(90, 2)
    result = flow_of(model, x, estimator="binning", n_permutations=20).result
    assert result.null_quantiles[0].shape == (2, 3) and len(set(result.null_quantiles[0].flatten().tolist())) > 3
    assert float(result.edges[0].sum()) > 0


def test_loader_batches_and_tensor_give_the_same():
    """In batches or at once, with labels or without, of a list, a generator or a loader."""
    model, x, y = mlp(3, 4, 2), normal(90, 3), torch.arange(90) % 2
    wanted = flow_of(model, x).result.attribution
    for data in (
        (x, y),
        DataLoader(TensorDataset(x, y), batch_size=40),
        [x[:50], x[50:]],
        (part for part in x.split(20)),
    ):
        assert torch.allclose(flow_of(model, data).result.attribution, wanted, atol=1e-5)
    sized = flow_of(model, x, internal_batch_size=7)
    assert torch.allclose(sized.result.attribution, wanted, atol=1e-5)


def test_classes_in_place_of_logits():
    """output="labels": the last edges are the information of a unit about each class against the others."""
    model, x = mlp(2, 4, 3), normal(300, 2)
    labels = (x[:, 0] > 0).long() + (x[:, 1] > 0)
    result = flow_of(model, (x, labels), estimator="ksg", output="labels", n_permutations=40).result
    hidden = model[:2](x).detach()
    for label in range(3):
        wanted = mutual_information_matrix(hidden, labels == label, "ksg", seed=1)[:, 0]
        assert torch.allclose(result.estimates[1][:, label], wanted, atol=1e-12)
    assert result.null_quantiles[1].shape == (3,)
    with pytest.raises(InvalidArgumentError, match="pass \\(inputs, labels\\)"):
        flow_of(model, x, estimator="ksg", output="labels")
    with pytest.raises(InvalidArgumentError, match="reach from 0 to 7"):
        flow_of(model, (x, labels.clamp_max(0) + 7 * (labels > 0)), estimator="ksg", output="labels")


def test_the_poster_has_no_edge_information():
    """a_k - beta r_i: rank 2 at most, rows depend on the units' order; a warning says so."""
    model, x = mlp(4, 6, 3, seed=2), normal(150, 4) @ normal(4, 4, seed=1)
    with pytest.warns(CaptumIBAWarning, match="no information of an edge"):
        result = flow_of(model, x, mode="poster").result
    for matrix in result.edges:
        assert torch.linalg.matrix_rank(matrix) <= 2
        assert torch.allclose(matrix - matrix[:1], (matrix - matrix[:1])[:, :1].expand_as(matrix))
    joint = mutual_information(x, model[:2](x)[:, :1].detach(), "gaussian")
    assert float(result.edges[0][0, 0]) == pytest.approx(float(joint), abs=1e-6)


def test_mifs_takes_the_mean_redundancy_off():
    """Two copies of a feature lose beta times their information over the number of others."""
    x = normal(500, 3)
    x[:, 1] = x[:, 0] + 0.5 * x[:, 1]
    model = mlp(3, 4, 2)
    plain, less = (flow_of(model, x, mode=mode).result for mode in ("pairwise", "mifs"))
    shared = mutual_information(x[:, 0], x[:, 1], "gaussian")
    wanted = (plain.edges[0][0] - 0.5 * shared / 2).clamp_min(0)
    assert torch.allclose(less.edges[0][0], wanted, atol=1e-6)
    assert torch.allclose(less.edges[0][2], plain.edges[0][2])


def test_family_wise_levels_are_higher_and_need_draws():
    """1 - 0.05 / edges; too few draws are an error that says how many are needed."""
    model, x = mlp(2, 2, 2), normal(100, 2)
    high, low = (flow_of(model, x, family_wise=wise, n_permutations=400).result for wise in (True, False))
    assert high.null_quantiles[0] > low.null_quantiles[0]
    with pytest.raises(InvalidArgumentError, match="wanted at least 160"):
        flow_of(model, x, family_wise=True, n_permutations=100)


def test_a_column_of_attributions_is_selected_as_captum_does():
    """int, list, tensor, tuple of one; each example its own class; the same for all examples of a class."""
    model, x = mlp(3, 4, 3), normal(200, 3)
    flow = flow_of(model, x)
    rows = flow.result.attribution.T.float()
    assert torch.equal(flow.attribute(x[:2], 1), rows[[1, 1]])
    assert torch.equal(flow.attribute(x[:2], (1,)), rows[[1, 1]])
    assert torch.equal(flow.attribute(x[:2], torch.tensor([2])), rows[[2, 2]])
    assert torch.equal(flow.attribute(x[:3], [0, 2, 1]), rows[[0, 2, 1]])
    assert torch.equal(flow.attribute(x[:3], torch.tensor([0, 2, 1])), rows[[0, 2, 1]])
    assert torch.equal(flow.attribute((x[:1],), 0)[0], rows[:1])
    assert flow.attribute(x[:1].double(), 0).dtype == torch.float64
    for wrong in (None, [0, 1], 1.0, True, torch.tensor([0.5, 1.0, 1.0]), "a", (0, 1)):
        with pytest.raises(TargetError, match="target"):
            flow.attribute(x[:3], wrong)
    for wrong in (3, -1, [0, 1, 3]):
        with pytest.raises(TargetIndexError, match="classes 0 to 2"):
            flow.attribute(x[:3], wrong)
    with pytest.raises(MismatchedArgumentsError, match="inputs has shape"):
        flow.attribute(x[:, :2], 0)
    with pytest.raises(InvalidTypeError, match="tuple of 2"):
        flow.attribute((x, x), 0)
    single = flow_of(mlp(3, 4, 1), x)
    assert torch.equal(single.attribute(x[:1])[0], single.result.attribution[:, 0].float())


def test_seeds_repeat_and_the_global_state_is_left():
    """Same seed, same flow; other seed, another null; nobody's random numbers are used."""
    model, x = mlp(3, 4, 2), normal(100, 3)
    loader = DataLoader(TensorDataset(x), batch_size=30, shuffle=True)
    before = torch.random.get_rng_state()
    first, again = (flow_of(model, loader, estimator="ksg").result for _ in range(2))
    other = flow_of(model, loader, estimator="ksg", seed=1).result
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.attribution, again.attribution)
    assert not torch.equal(first.null_quantiles[0], other.null_quantiles[0])


class Broken(nn.Module):
    def forward(self, x):
        raise RuntimeError("broken")


def test_the_model_is_left_as_it_was():
    """Hooks, modes, buffers, gradients: as before, after a fit, a pruning, and a fit that raised."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 2))
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[4].weight.grad = torch.ones_like(model[4].weight)
    state, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    flow = flow_of(model, normal(100, 3))
    flow.prune()
    flow.prune({"3": [0]})
    with pytest.raises(NonFiniteError, match="inputs"):
        flow.fit(torch.full((50, 3), torch.nan))
    broken = nn.Sequential(*model[:4], Broken(), model[4])
    with pytest.raises(RuntimeError, match="broken"):
        flow_of(broken, normal(50, 3))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert not model[0].weight.requires_grad and bool((model[4].weight.grad == 1).all())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_an_interrupted_fit_goes_on_where_it_was(monkeypatch):
    """What was estimated before an interruption is not estimated again, and the result is that of one go."""
    model, x = mlp(3, 20, 4, 2), normal(100, 3)
    wanted = flow_of(model, x).result
    flow, estimate, calls = NeuralInformationFlow(model, estimator="gaussian"), mutual_information_matrix, []

    def interrupted(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return estimate(*args, **kwargs)

    monkeypatch.setattr(_flow_edges, "mutual_information_matrix", interrupted)
    with pytest.raises(KeyboardInterrupt):
        flow.fit(x)
    with pytest.raises(NotTrainedError):
        flow.result  # noqa: B018
    assert torch.equal(flow.fit(x).result.attribution, wanted.attribution)
    assert len(calls) == 5  # three pairs of layers, one of them in two blocks, one block twice
    assert torch.equal(flow.fit(x).result.attribution, wanted.attribution) and len(calls) == 5
    assert not torch.equal(flow.fit(x + x.square()).result.attribution, wanted.attribution)
    assert len(calls) == 9


def test_progress_is_shown_on_demand(capsys):
    """A bar with show_progress, nothing without."""
    flow = flow_of(mlp(2, 3, 2), normal(50, 2))
    assert capsys.readouterr().err == ""
    flow.fit(normal(50, 2), show_progress=True)
    assert "12/12" in capsys.readouterr().err


def test_graph_and_communities_are_the_edges():
    """Two networks side by side are two communities; the graph's edges are those above the null."""
    model = mlp(4, 6, 4)
    with torch.no_grad():
        model[0].weight[:3, 2:] = model[0].weight[3:, :2] = 0
        model[2].weight[:2, 3:] = model[2].weight[2:, :3] = 0
    flow = flow_of(model, normal(400, 4, seed=5))
    graph, communities = flow.result.to_networkx(), flow.result.communities()
    assert graph.number_of_edges() == sum(int((matrix > 0).sum()) for matrix in flow.result.edges)
    for a, b, information in graph.edges(data="information"):
        assert information == float(flow.result.edges[a[0]][a[1], b[1]])
    left = {(0, 0), (0, 1), (2, 0), (2, 1), *((1, unit) for unit in range(3))}
    for community in communities:
        assert community <= left or not community & left
    assert sum(map(len, communities)) == len(set().union(*communities))


def test_a_flow_of_nothing_has_no_communities():
    """A model that reads nothing: no attribution, no community, still a plot."""
    model = mlp(2, 3, 2)
    with torch.no_grad():
        model[0].weight.zero_()
    flow = flow_of(model, normal(50, 2))
    assert not flow.result.attribution.any() and flow.result.communities() == []
    assert len(flow.plot().axes[0].collections) == 2 + 7 + 5  # hidden units and logits are constant, and crossed


def test_the_plot_draws_every_unit_and_edge():
    """One marker a unit, a cross more for a constant one; fewer with max_units; never shown by itself."""
    model = mlp(3, 6, 2)
    with torch.no_grad():
        model[0].bias[0] = -100
    flow = flow_of(model, normal(200, 3))
    open_figures = plt.get_fignums()
    figure = flow.plot()
    assert len(figure.axes[0].collections) == 2 + 11 + 1  # edges of two layers, units, a cross
    small = flow.plot(communities=False, max_units=2)
    assert len(small.axes[0].collections) == 2 + 6
    assert any("2 of 6 units" in text.get_text() for text in small.axes[0].texts)
    assert plt.get_fignums() == open_figures
    with pytest.raises(InvalidArgumentError, match="max_units=0"):
        flow.plot(max_units=0)


def test_critics_see_what_the_copula_does():
    """estimator="mine": the informative edge of a linear chain is found, within its error."""
    model = nn.Sequential(nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[2.0, 0.5]]))
    quick = dataclasses.replace(as_estimator("mine"), n_folds=2, n_steps=50)
    result = flow_of(model, normal(400, 2), estimator=quick, n_permutations=20).result
    assert result.estimates[0][0, 0] > result.null_quantiles[0]
    assert result.edges[0][0, 0] > 2 * result.edges[0][1, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "eq2"}, "mode='eq2'"),
        ({"estimator": "knn"}, "estimator='knn'"),
        ({"estimator": "kde"}, "no edge counts"),
        ({"estimator": "noise"}, "no edge counts"),
        ({"estimator": "gaussian", "output": "labels"}, "takes no labels"),
        ({"unit": "bit"}, "unit='bit'"),
        ({"output": "y"}, "output='y'"),
        ({"input_units": "pixels"}, "input_units='pixels'"),
        ({"redundancy_weight": -1}, "redundancy_weight=-1"),
        ({"n_permutations": 5}, "n_permutations=5"),
        ({"internal_batch_size": 0}, "internal_batch_size=0"),
        ({"layers": []}, "nothing; wanted at least one"),
        ({"layers": ["0", "0"]}, "each once"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    """With the value found and what is wanted."""
    with pytest.raises(InvalidArgumentError, match=message):
        NeuralInformationFlow(mlp(2, 3, 2), **options)


def test_wrong_models_and_layers_are_refused():
    """Each kind of layer that has no units, with what to do."""
    model, x = mlp(2, 3, 2), normal(50, 2)
    with pytest.raises(InvalidTypeError, match="model is a builtin"):
        NeuralInformationFlow(torch.relu)
    with pytest.raises(InvalidTypeError, match="layers is a str"):
        NeuralInformationFlow(model, "0")
    with pytest.raises(InvalidTypeError, match="layers holds a int"):
        NeuralInformationFlow(model, [0])
    with pytest.raises(LayerNotExecutedError, match="no layer 'fc'; it has '0'"):
        NeuralInformationFlow(model, ["fc"])
    with pytest.raises(LayerNotExecutedError, match="no such Linear"):
        NeuralInformationFlow(model, [nn.Linear(2, 2)])
    with pytest.raises(NotTrainedError, match="call fit"):
        NeuralInformationFlow(model).attribute(x, 0)
    with pytest.raises(InvalidArgumentError, match="which is '1', '2'"):
        flow_of(model, x, ["2", "1"])
    with pytest.raises(InvalidArgumentError, match="has 3 units, the model's output 2"):
        flow_of(model, x, ["0", "1"])

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.unused = nn.Linear(2, 2), nn.LSTM(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.a(self.a(x)) + self.b(x)[0]

    with pytest.raises(LayerReusedError, match="'a' ran more than once"):
        flow_of(Twice(), x, ["a"])
    with pytest.raises(NoTensorError, match="'b' returns a tuple"):
        flow_of(Twice(), x, ["b"])
    with pytest.raises(LayerNotExecutedError, match="did not run 'unused'"):
        flow_of(Twice(), x, ["unused"])
    steps = nn.Sequential(nn.Unflatten(1, (2, 1)), nn.Linear(1, 3), nn.Flatten(), nn.Linear(6, 2))
    with pytest.raises(InvalidArgumentError, match=r"Layer '1' gives \[50, 2, 3\]"):
        flow_of(steps, x, ["1", "3"])
    with pytest.raises(InvalidArgumentError, match="wanted logits"):
        flow_of(nn.Sequential(nn.Linear(2, 4), nn.Unflatten(1, (2, 2))), x)
    with pytest.raises(UnsupportedModelError, match=r"weighted=True, but between inputs and 1 .*LayerNorm"):
        flow_of(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 2)), x, ["1", "2"], weighted=True)


def test_wrong_data_are_refused():
    """Each with what is wanted."""
    model, x = mlp(2, 3, 2), normal(50, 2)
    for data, error, message in (
        (3, InvalidTypeError, "data is a int"),
        ((x, x, x), InvalidTypeError, "3 things together"),
        (x.long(), InvalidTypeError, "inputs are of torch.int64"),
        ((x, x[:, 0]), InvalidTypeError, "labels are of torch.float32"),
        ((x, torch.zeros(3, dtype=torch.long)), MismatchedArgumentsError, "3 labels for 50 inputs"),
        ([], InvalidArgumentError, "no example"),
        (x[:0], InvalidArgumentError, "no example"),
        (x[:2], InvalidArgumentError, "2 examples"),
        (x[:1], InvalidArgumentError, "1 examples"),
        (x.double(), MismatchedArgumentsError, "inputs are torch.float64, the model's weights torch.float32"),
        ([x, (x, torch.zeros(50, dtype=torch.long))], InvalidArgumentError, "50 of 100 examples have labels"),
        ([x[:, :0]], RuntimeError, "mat1"),
    ):
        with pytest.raises(error, match=message):
            flow_of(model, data)
