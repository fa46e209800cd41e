import itertools
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity
from torch import nn

from captum_iba.errors import CaptumIBAWarning, InvalidArgumentError, InvalidTypeError, NonFiniteError, StatisticsError
from captum_iba.metrics._ssim import normalize_maps, ssim
from captum_iba.metrics.parameter_randomization import (
    ParameterRandomization,
    ParameterRandomizationResult,
    parameter_randomization,
)
from tests.literal import normal, small_cnn

IMAGES = normal(3, 3, 10, 10)


class Everything(nn.Module):
    """Children are defined in another order than they run in."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 7)
        self.unused = nn.Linear(2, 7)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.class_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.positions = nn.Parameter(torch.zeros(1, 17, 8))
        self.prompts = nn.ParameterList([torch.zeros(8), torch.zeros(8)])
        self.shared = nn.Linear(8, 8)
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.shared.weight
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 2, stride=2), nn.BatchNorm2d(8), nn.GroupNorm(2, 8))
        self.plain = nn.BatchNorm2d(8, affine=False)
        self.register_buffer("scale", torch.full((), 0.5))
        self.register_buffer("secret", torch.tensor([float("nan"), -0.0, 3.0]), persistent=False)
        self.register_buffer("ids", torch.arange(17).expand(2, -1))  # cannot be written to

    def forward(self, x):
        x = self.plain(self.stem(x)).flatten(2).mT * self.scale
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.positions + self.prompts[1]
        x = self.tied(torch.tanh(self.shared(torch.tanh(self.shared(x)))))
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.norm(x)[:, 0])


ORDER = ["head", "norm", "attention", "tied", "shared", "plain", "stem.2", "stem.1", "stem.0"]
ORDER += ["prompts.1", "prompts.0", "positions", "class_token", "unused"]


def trained(model, seed=0):
    """Values as training might leave them: no parameter is constant."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 + 0.5 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model.eval()


def tensors_of(model):
    """Copies of parameters, under all their names, and of buffers."""
    everything = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in everything}


def bits(tensor):
    return tensor.detach().contiguous().numpy().tobytes()


def edges(model, inputs, target):
    """A map that does not look at the model."""
    return inputs.diff(dim=3, append=inputs[..., :1]).abs().sum(1)


def gradient(model, inputs, target):
    inputs = inputs.detach().clone().requires_grad_()
    (maps,) = torch.autograd.grad(model(inputs)[:, target].sum(), inputs)
    return maps


class Spy:
    """An attribution that keeps what the model held at each call."""

    def __init__(self, function=edges):
        self.seen, self._function = [], function

    def __call__(self, model, inputs, target):
        self.seen.append(tensors_of(model))
        return self._function(model, inputs, target)


def at_call(number, action, otherwise=edges):
    """An attribution that does something else at one of its calls; 0 is the trained model's."""
    counter = itertools.count()

    def attribute(model, inputs, target):
        return (action if next(counter) == number else otherwise)(model, inputs, target)

    return attribute


def test_the_whole_curve_by_hand():
    """Two linear layers: weights as the model held them, the chain rule by hand, and scikit-image's similarity."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.Tanh(), nn.Linear(6, 3)).double().eval()
    inputs, spy = normal(4, 1, 6, 8), Spy(gradient)
    result = parameter_randomization(model, spy, inputs, target=2)
    assert result.stages == ("original", "3", "1")
    first, last = ("1.weight", "1.bias"), ("3.weight", "3.bias")
    assert [[torch.equal(seen[k], spy.seen[0][k]) for k in (*first, *last)] for seen in spy.seen] == [
        [True, True, True, True],
        [True, True, False, False],
        [False, False, False, False],
    ]
    assert all(torch.equal(spy.seen[1][k], spy.seen[2][k]) for k in last)

    def map_by_hand(seen, x):
        hidden = np.tanh(seen["1.weight"].numpy() @ x.flatten().numpy() + seen["1.bias"].numpy())
        slope = (seen["3.weight"][2].numpy() * (1 - hidden**2)) @ seen["1.weight"].numpy()
        low, high = np.percentile(slope, [1, 99])
        return ((np.clip(slope, low, high) - low) / (high - low)).reshape(6, 8)

    for row, x in zip(result.similarities, inputs, strict=True):
        maps = [map_by_hand(seen, x) for seen in spy.seen]
        wanted = [structural_similarity(maps[0], map_, win_size=5, data_range=1) for map_ in maps]
        np.testing.assert_allclose(row.numpy(), wanted, rtol=0, atol=1e-9)
    torch.testing.assert_close(result.per_sample, result.similarities[:, 1:].mean(dim=1))
    torch.testing.assert_close(result.curve, result.similarities.mean(dim=0))
    torch.testing.assert_close(result.curve_stderr, result.similarities.std(dim=0) / 4**0.5)


@pytest.mark.parametrize("similarity", ["ssim", "spearman"])
@pytest.mark.parametrize("method", ["reset", "permute"])
def test_the_trained_model_is_its_own_equal(similarity, method):
    """The first column is exactly 1, the others are not: the gradient depends on the model."""
    result = parameter_randomization(small_cnn(), gradient, IMAGES, 1, similarity=similarity, method=method)
    assert result.similarities[:, 0].tolist() == [1.0] * 3
    assert (result.similarities[:, 1:] < 1).all()
    assert result.stages == ("original", "8", "5", "2", "0")


@pytest.mark.parametrize("similarity", ["ssim", "spearman", lambda a, b: (a == b).flatten(1).double().mean(1)])
@pytest.mark.parametrize("method", ["reset", "permute"])
def test_a_map_that_ignores_the_model_never_changes(similarity, method):
    """A filter of the image scores 1 at all stages."""
    result = parameter_randomization(trained(Everything()), edges, normal(2, 1, 8, 8).float(), method=method)
    assert result.stages == ("original", *ORDER)
    assert torch.equal(result.similarities, torch.ones(2, 1 + len(ORDER), dtype=torch.float64))


def meddling(model, inputs, target):
    """An attribution that leaves traces wherever it can."""
    model(inputs).sum().backward()
    torch.rand(3)
    model.train()
    model.head.weight.requires_grad_(False)
    model.secret = torch.zeros(3)
    model.register_buffer("left_behind", torch.zeros(2))
    return edges(model, inputs, target)


def interrupt(model, inputs, target):
    raise KeyboardInterrupt


def fail(model, inputs, target):
    raise ZeroDivisionError


@pytest.mark.parametrize("method", ["reset", "permute"])
@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: meddling, None),
        (lambda: at_call(0, fail), ZeroDivisionError),
        (lambda: at_call(3, fail, meddling), ZeroDivisionError),
        (lambda: at_call(14, interrupt, meddling), KeyboardInterrupt),
    ],
)
def test_everything_is_put_back(method, make, error):
    """Parameters, all buffers, flags, gradients and global random state, bit for bit and by identity, in any case."""
    model = trained(Everything())
    model.norm.weight.requires_grad_(False)
    model.stem[2].training = True
    model.head.weight.grad = torch.full((7, 8), 7.0)
    parts = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    values = {name: bits(tensor) for name, tensor in parts.items()}
    flags = [(module, module.training) for module in model.modules()]
    wants = [parameter.requires_grad for parameter in model.parameters()]
    gradient_before, random_before = model.head.weight.grad, torch.get_rng_state()
    inputs = normal(2, 1, 8, 8).float()
    outcome = nullcontext() if error is None else pytest.raises(error)
    with pytest.warns(CaptumIBAWarning, match="training mode"), outcome:
        parameter_randomization(model, make(), inputs, method=method)
    after = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    assert list(after) == list(parts) and all(after[name] is parts[name] for name in parts)
    assert {name: bits(tensor) for name, tensor in after.items()} == values
    assert [(module, module.training) for module in model.modules()] == flags
    assert [parameter.requires_grad for parameter in model.parameters()] == wants
    assert torch.equal(torch.get_rng_state(), random_before)
    assert model.head.weight.grad is gradient_before and (gradient_before == 7).all()
    assert model.head.bias.grad is None
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert "secret" not in model.state_dict()


@pytest.mark.parametrize("method", ["reset", "permute"])
def test_every_parameter_and_statistic_is_reached(method):
    """Each stage changes what it names and nothing else; at the end all is new, and other buffers are as they were."""
    model, spy = trained(Everything()), Spy()
    stages = parameter_randomization(model, spy, normal(2, 1, 8, 8).float(), method=method).stages
    reached = {"scale", "secret", "ids"}
    for stage, before, after in zip(stages[1:], spy.seen, spy.seen[1:], strict=False):
        changed = {name for name in before if bits(before[name]) != bits(after[name])}
        # resets of a counter from 0 to 0 cannot be seen
        changed |= {name for name in before if name.endswith("num_batches_tracked") and name.startswith(stage)}
        wanted = {name for name in before if name == stage or name.startswith(stage + ".")} - reached
        wanted |= {"shared.weight"} if stage == "tied" else set()
        assert changed == wanted
        reached |= changed
    assert reached == set(spy.seen[0])
    end = spy.seen[-1]
    for name in ("plain", "stem.1"):
        assert (end[f"{name}.running_mean"] == 0).all() and (end[f"{name}.running_var"] == 1).all()
    assert all(bits(end[name]) == bits(spy.seen[0][name]) for name in ("scale", "secret", "ids"))
    assert end["tied.weight"].equal(end["shared.weight"])


def test_tied_parameters_are_randomised_once():
    """The stage that reaches them first decides; the second stage leaves them."""
    model, spy = trained(nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))), Spy(lambda m, x, t: x)
    model[0].weight = model[2].weight
    parameter_randomization(model, spy, normal(2, 5).float(), similarity="spearman")
    start, first, second = spy.seen
    assert not first["0.weight"].equal(start["0.weight"]) and first["0.weight"].equal(first["2.weight"])
    assert second["0.weight"].equal(first["0.weight"]) and not second["0.bias"].equal(first["0.bias"])


def test_a_stage_that_reaches_nothing_new_is_left_out():
    """A layer all of whose parameters are tied to a later one is no stage."""
    model = nn.Sequential(nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)).eval()
    model[0].weight = model[1].weight
    result = parameter_randomization(model, lambda m, x, t: x, normal(2, 5).float(), similarity="spearman")
    assert result.stages == ("original", "1")


@pytest.mark.parametrize("stages", [None, ["0.1", "0"]])
@pytest.mark.parametrize("method", ["reset", "permute"])
def test_layers_of_equal_shape_get_different_weights(stages, method):
    """In stages of their own, and within one."""
    layers = [nn.Linear(6, 6) for _ in range(3)]
    for layer in layers:
        layer.load_state_dict(layers[0].state_dict())
    model, spy = nn.Sequential(nn.Sequential(*layers)).eval(), Spy(lambda m, x, t: x)
    parameter_randomization(model, spy, normal(2, 6).float(), similarity="spearman", stages=stages, method=method)
    weights = [spy.seen[-1][f"0.{i}.weight"] for i in range(3)]
    assert not any(a.equal(b) for a, b in itertools.combinations(weights, 2))


def test_order_is_of_execution():
    """Not of definition: later defined layers may run first, and one that runs twice counts at its last run."""

    class Crossed(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.middle, self.first, self.twice = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x):
            return self.last(self.twice(self.middle(self.twice(self.first(x)))))

    result = parameter_randomization(Crossed().eval(), lambda m, x, t: x, normal(2, 4).float(), similarity="spearman")
    assert result.stages == ("original", "last", "twice", "middle", "first")


def test_fused_transformer_kernels_do_not_hide_layers():
    """torch's fast path does not run the layers inside; they are in order all the same."""
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    result = parameter_randomization(model, lambda m, x, t: x, normal(2, 3, 8).float(), similarity="spearman")
    assert result.stages == ("original", "norm2", "linear2", "linear1", "norm1", "self_attn")
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_compiled_model_equals_the_eager_one():
    """The same stages under the same names, and the same values; its outputs are the old ones afterwards."""
    model = small_cnn(inplace=False)
    wanted, output = parameter_randomization(model, gradient, IMAGES, 1), model(IMAGES)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager")
    found = parameter_randomization(compiled, gradient, IMAGES, 1)
    assert found.stages == wanted.stages
    torch.testing.assert_close(found.similarities, wanted.similarities, rtol=0, atol=1e-9)
    torch.testing.assert_close(compiled(IMAGES), output, rtol=0, atol=1e-12)


def test_a_model_that_is_one_layer():
    """Its stage has no name in the model, and is called by its type."""
    result = parameter_randomization(nn.Linear(4, 2).eval(), lambda m, x, t: x, normal(2, 4).float(), similarity=one)
    assert result.stages == ("original", "Linear")


def one(a, b):
    return torch.ones(len(a))


@given(st.integers(0, 1000))
@settings(max_examples=10)
def test_permutation_keeps_the_values(seed):
    """Every parameter holds the same numbers as before, in another order."""
    model, spy = trained(Everything(), seed), Spy()
    parameter_randomization(model, spy, normal(2, 1, 8, 8).float(), method="permute", seed=seed)
    for name, _ in model.named_parameters():
        before, after = spy.seen[0][name].flatten(), spy.seen[-1][name].flatten()
        assert before.sort().values.equal(after.sort().values)
    assert not spy.seen[0]["positions"].equal(spy.seen[-1]["positions"])


def test_norm_layers_are_permuted_rather_than_reset():
    """Ones and zeros would undo the training without being random."""
    model, spy = trained(Everything()), Spy()
    parameter_randomization(model, spy, normal(2, 1, 8, 8).float())
    for name in ("norm.weight", "norm.bias", "stem.1.weight", "stem.1.bias", "stem.2.weight", "stem.2.bias"):
        before, after = spy.seen[0][name], spy.seen[-1][name]
        assert before.sort().values.equal(after.sort().values) and not before.equal(after)


class Own(nn.Module):
    """A layer with an initialiser that also touches a child and a buffer."""

    def __init__(self):
        super().__init__()
        self.weight, self.forgotten = nn.Parameter(torch.randn(200, 200)), nn.Parameter(3 + 2 * torch.randn(200, 200))
        self.child = nn.Linear(2, 2)
        self.register_buffer("mask", torch.ones(2))

    def _reset_parameters(self):
        self.weight = nn.Parameter(torch.full((200, 200), 7.0))
        nn.init.zeros_(self.child.weight)
        self.mask.zero_()

    def forward(self, x):
        return self.child(x)


def test_a_module_s_own_initialiser_is_used():
    """For its own parameters alone; what it forgets, or what has none, is normal with the old mean and deviation."""
    model, spy = Own().eval(), Spy(lambda m, x, t: x)
    weight = model.weight
    parameter_randomization(
        model, spy, normal(2, 2).float(), stages=["weight", "forgotten", "child.bias"], similarity=one
    )
    start, first, second, third = spy.seen
    assert (first["weight"] == 7).all() and model.weight is weight
    assert second["forgotten"].mean().item() == pytest.approx(start["forgotten"].mean().item(), abs=0.04)
    assert second["forgotten"].std().item() == pytest.approx(start["forgotten"].std().item(), rel=0.02)
    assert third["forgotten"].equal(second["forgotten"]) and not second["forgotten"].equal(start["forgotten"])
    assert all(seen["mask"].equal(torch.ones(2)) for seen in spy.seen)
    assert all(seen["child.weight"].equal(start["child.weight"]) for seen in spy.seen)


def test_reset_draws_as_a_new_layer_is_drawn():
    """A linear layer's new weights are those of a newly built layer from the same random state."""
    model, spy = trained(nn.Sequential(nn.Linear(6, 4))), Spy(lambda m, x, t: x)
    states = []
    original = nn.Linear.reset_parameters

    def watched(self):
        states.append(torch.get_rng_state())
        original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Linear, "reset_parameters", watched)
        parameter_randomization(model, spy, normal(2, 6).float(), similarity=one)
    (state,) = states
    with torch.random.fork_rng():
        torch.set_rng_state(state)
        new = nn.Linear(6, 4)
    assert spy.seen[1]["0.weight"].equal(new.weight) and spy.seen[1]["0.bias"].equal(new.bias)


def test_an_initialiser_with_arguments_is_not_called():
    """It cannot be; the parameter's own moments serve, and a constant parameter stays."""

    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.constant = nn.Parameter(5 + torch.randn(40_000)), nn.Parameter(torch.full((3,), 0.25))
            self.codes = nn.Parameter(torch.arange(50), requires_grad=False)

        def reset_parameters(self, gain):
            raise NotImplementedError

        def forward(self, x):
            return x * self.weight.mean()

    spy = Spy(lambda m, x, t: x)
    parameter_randomization(Asking().eval(), spy, normal(2, 4).float(), similarity=one)
    start, end = spy.seen
    assert end["weight"].mean().item() == pytest.approx(start["weight"].mean().item(), abs=0.03)
    assert end["weight"].std().item() == pytest.approx(start["weight"].std().item(), rel=0.03)
    assert end["constant"].equal(start["constant"])
    assert end["codes"].sort().values.equal(start["codes"]) and not end["codes"].equal(start["codes"])


def test_constant_maps_have_a_similarity():
    """A randomised model without any attribution is compared as zeros, and nothing is missing."""
    black = at_call(2, lambda m, x, t: torch.full((len(x), 10, 10), 0.3))
    result = parameter_randomization(small_cnn(), black, IMAGES)
    original = normalize_maps(edges(None, IMAGES, None))
    assert torch.equal(result.similarities[:, 2], ssim(original, torch.zeros_like(original)))
    assert result.failures == {} and not result.similarities.isnan().any()


def test_rank_correlation_of_a_constant_map_is_missing():
    """It is undefined, said once, and left out of the means."""
    black = at_call(2, lambda m, x, t: edges(m, x, t) * torch.tensor([0.0, 1.0, 1.0]).view(3, 1, 1))
    with pytest.warns(CaptumIBAWarning, match="no value for 1 of 15 pairs .*first at stage '5'.*examples \\[0\\]"):
        result = parameter_randomization(small_cnn(), black, IMAGES, similarity="spearman")
    wanted = torch.ones(3, 5, dtype=torch.float64)
    wanted[0, 2] = float("nan")
    torch.testing.assert_close(result.similarities, wanted, rtol=0, atol=0, equal_nan=True)
    assert result.curve.tolist() == [1.0] * 5 and result.per_sample.tolist() == [1.0] * 3


@pytest.mark.parametrize("error", [StatisticsError, RuntimeError, AssertionError])
def test_a_failing_attribution_leaves_a_gap(error):
    """At a randomised stage: NaN there, the reason kept, one warning; the other stages count."""

    def broken(model, inputs, target):
        raise error("no features left")

    with pytest.warns(CaptumIBAWarning) as warned:
        result = parameter_randomization(small_cnn(), at_call(3, broken), IMAGES)
    assert len(warned) == 1 and "3 of 15 pairs" in str(warned[0].message)
    assert result.failures == {"2": f"{error.__name__}: no features left"}
    assert result.similarities.isnan().tolist() == [[False, False, False, True, False]] * 3
    assert result.per_sample.tolist() == [1.0] * 3 and result.curve_stderr.isnan().tolist() == [
        *[False] * 3,
        True,
        False,
    ]
    with pytest.raises(error, match="no features left"):
        parameter_randomization(small_cnn(), at_call(0, broken), IMAGES)


def test_nan_in_single_maps_leaves_gaps():
    """On a randomised model for these examples, on the trained model an error."""

    def spoiled(model, inputs, target):
        maps = edges(model, inputs, target).clone()
        maps[1, 2, 3] = float("inf")
        return maps

    with pytest.warns(CaptumIBAWarning, match="1 of 15 pairs"):
        result = parameter_randomization(small_cnn(), at_call(1, spoiled), IMAGES)
    assert result.similarities.isnan().nonzero().tolist() == [[1, 1]]
    assert list(result.failures) == ["8"]
    with pytest.raises(InvalidArgumentError, match=r"NaN or infinity for examples \[1\]"):
        parameter_randomization(small_cnn(), spoiled, IMAGES)


def test_no_value_at_all_is_an_error():
    """Where each stage fails, the reason of the first is told."""
    counter = itertools.count()

    def only_once(model, inputs, target):
        if next(counter):
            raise RuntimeError("worn out")
        return edges(model, inputs, target)

    with pytest.raises(InvalidArgumentError, match=r"undefined for all 3 examples.*'8': RuntimeError: worn out"):
        parameter_randomization(small_cnn(), only_once, IMAGES)


def test_sign_invariance():
    """A map that only flips its sign counts as unchanged, if that is asked for."""
    flipped = at_call(1, lambda m, x, t: -edges(m, x, t))
    result = parameter_randomization(small_cnn(), flipped, IMAGES, sign_invariant=True)
    torch.testing.assert_close(result.similarities, torch.ones(3, 5, dtype=torch.float64), rtol=0, atol=1e-12)
    flipped = at_call(1, lambda m, x, t: -edges(m, x, t))
    assert (parameter_randomization(small_cnn(), flipped, IMAGES).similarities[:, 1] < 0).all()


def test_the_seed_decides():
    """The same seed, the same values, whatever the global state; another seed, other ones."""
    torch.manual_seed(1)
    first = parameter_randomization(small_cnn(), gradient, IMAGES, 0, seed=4).similarities
    torch.manual_seed(2)
    assert torch.equal(parameter_randomization(small_cnn(), gradient, IMAGES, 0, seed=4).similarities, first)
    other = parameter_randomization(small_cnn(), gradient, IMAGES, 0, seed=5).similarities
    assert not torch.isclose(other[:, 1:], first[:, 1:]).any()


def test_noise_is_the_same_at_every_stage():
    """Methods that draw from torch's global generator do not lose similarity by that; the reference says how much."""

    def noise(model, inputs, target):
        return torch.rand(len(inputs), 10, 10)

    result = parameter_randomization(small_cnn(), noise, IMAGES, reference_func=noise)
    assert torch.equal(result.similarities, torch.ones(3, 5, dtype=torch.float64))
    assert (result.reference.abs() < 0.5).all()
    assert parameter_randomization(small_cnn(), edges, IMAGES).reference is None
    reference = parameter_randomization(small_cnn(), edges, IMAGES, reference_func=gradient, target=1).reference
    maps = (edges(None, IMAGES, 1), gradient(small_cnn(), IMAGES, 1).sum(1))
    torch.testing.assert_close(reference, ssim(*map(normalize_maps, maps)), rtol=0, atol=1e-12)


def test_recalibrated_statistics():
    """After each stage the norms reached so far hold the random model's own statistics, and the others the old ones."""
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Flatten()]
    model = trained(nn.Sequential(*layers, nn.Linear(144, 2))).double()
    batches, features = [normal(5, 3, 10, 10, seed=seed) for seed in (1, 2)], []

    def record(model, inputs, target):
        features.append(model[:3](torch.cat(batches)) if len(features) == 2 else None)
        return edges(model, inputs, target)

    spy = Spy(record)
    momentum = model[3].momentum
    result = parameter_randomization(model, spy, IMAGES, recalibration_data=batches)
    assert result.stages == ("original", "5", "3", "2", "1", "0")
    found = features[2].detach().unflatten(0, (2, 5))
    mean = found.mean(dim=(1, 3, 4)).mean(dim=0)
    variance = torch.stack([f.transpose(0, 1).flatten(1).var(dim=1) for f in found]).mean(dim=0)
    torch.testing.assert_close(spy.seen[2]["3.running_mean"], mean)
    torch.testing.assert_close(spy.seen[2]["3.running_var"], variance)
    assert all(torch.equal(spy.seen[i]["1.running_mean"], model[1].running_mean) for i in range(4))
    assert not torch.equal(spy.seen[3]["3.running_mean"], spy.seen[2]["3.running_mean"])
    assert model[3].momentum == momentum and not any(module.training for module in model.modules())


def test_recalibration_data_are_needed_again_and_again():
    """A generator would be used up by the first stage, and no batch leaves nothing to estimate from."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    with pytest.raises(InvalidTypeError, match="list_iterator.*gone through only once"):
        parameter_randomization(model, edges, IMAGES.float(), recalibration_data=iter([IMAGES]))
    with pytest.raises(InvalidArgumentError, match="holds no batch"):
        parameter_randomization(model, edges, IMAGES.float(), recalibration_data=[])


def test_named_stages():
    """A module stands for all in it, a parameter for itself; the order is the user's."""
    model, spy = trained(Everything()), Spy()
    stages = ["positions", "stem", "head.bias", "head"]
    result = parameter_randomization(model, spy, normal(2, 1, 8, 8).float(), stages=stages)
    assert result.stages == ("original", *stages)
    changed = [
        {name for name in before if bits(before[name]) != bits(after[name])}
        for before, after in itertools.pairwise(spy.seen)
    ]
    stem = [f"{i}.{kind}" for i in range(3) for kind in ("weight", "bias")] + ["1.running_mean", "1.running_var"]
    assert changed == [{"positions"}, {f"stem.{name}" for name in stem}, {"head.bias"}, {"head.weight"}]


@pytest.mark.parametrize(
    ("stages", "error", "words"),
    [
        (["haed"], InvalidArgumentError, "'haed', which the model does not have. Near it are .*'head'"),
        (["norm", "norm"], InvalidArgumentError, r"\['norm'\] more than once"),
        ([], InvalidArgumentError, "empty"),
        ("head", InvalidTypeError, "list of dotted names"),
        ([nn.Linear(1, 1)], InvalidTypeError, "list of dotted names"),
        (["quiet"], InvalidArgumentError, "'quiet', a Tanh without parameters"),
    ],
)
def test_bad_stages(stages, error, words):
    """What was named and what is near it."""
    model = trained(Everything())
    model.quiet = nn.Tanh().eval()
    with pytest.raises(error, match=words):
        parameter_randomization(model, edges, normal(2, 1, 8, 8).float(), stages=stages)


def test_infinite_outputs_name_the_stage():
    """A randomised model whose output overflows cannot be explained, nor a trained one."""

    class Exploding(nn.Linear):
        def reset_parameters(self):
            nn.init.constant_(self.weight, float("inf"))

    model = nn.Sequential(nn.Linear(4, 4), Exploding(4, 4), nn.Linear(4, 2)).eval()
    trained(model)
    with pytest.raises(NonFiniteError, match="stage '1'.*method='permute'"):
        parameter_randomization(model, lambda m, x, t: x, normal(2, 4).float(), similarity="spearman")
    with pytest.raises(NonFiniteError, match="stage 'original'"):
        parameter_randomization(model, edges, torch.full((2, 4), float("nan")))


def test_tokens_and_several_inputs():
    """Maps over tokens are compared by rank; a tuple of inputs is the model's arguments, and the attribution's."""

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(9, 6), nn.Linear(6, 2)

        def forward(self, ids, weights):
            return self.head((self.embedding(ids) * weights[..., None]).sum(1))

    def contribution(model, inputs, target):
        ids, weights = inputs
        return (model.embedding(ids) @ model.head.weight[target]) * weights

    model, inputs = Pair().eval(), (torch.arange(14).view(2, 7) % 9, torch.rand(2, 7))
    result = parameter_randomization(model, contribution, inputs, 1, similarity="spearman")
    assert result.stages == ("original", "head", "embedding") and result.similarities[:, 0].tolist() == [1.0, 1.0]
    with pytest.raises(InvalidArgumentError, match=r"\[2, 7\].*similarity='spearman'"):
        parameter_randomization(model, contribution, inputs, 1)


def test_maps_must_keep_their_shape():
    """Maps of different models are comparable only if they have one shape."""
    vectors = at_call(1, lambda m, x, t: x[:, :3], lambda m, x, t: x)
    with pytest.raises(InvalidArgumentError, match=r"from \[2, 4\].*to \[2, 3\]"):
        parameter_randomization(nn.Linear(4, 2).eval(), vectors, normal(2, 4).float(), similarity="spearman")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"model": lambda x: x}, InvalidTypeError, "model is a function"),
        ({"model": nn.ReLU().eval()}, InvalidArgumentError, "has no parameters to randomise"),
        ({"method": "xavier"}, InvalidArgumentError, "method='xavier'; wanted 'reset' or 'permute'"),
        ({"similarity": "psnr"}, InvalidArgumentError, "similarity='psnr'"),
        ({"seed": -1}, InvalidArgumentError, "seed=-1; wanted an integer"),
        ({"inputs": [IMAGES]}, InvalidTypeError, "inputs is a list"),
        ({"inputs": torch.tensor(1.0)}, InvalidTypeError, "one entry for each example"),
    ],
)
def test_bad_arguments(changes, error, words):
    """What was found and what was wanted."""
    arguments = {"model": small_cnn(), "attribute_func": edges, "inputs": IMAGES, **changes}
    with pytest.raises(error, match=words):
        parameter_randomization(**arguments)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=3))
@settings(max_examples=10)
def test_any_split_gives_the_same_summary(sizes):
    """Every batch sees the same random models, so batches of any sizes and merged halves make up the whole."""
    model, inputs = small_cnn(), normal(sum(sizes), 3, 10, 10, seed=3)
    options = {"seed": 3, "reference_func": edges}
    whole = parameter_randomization(model, gradient, inputs, 2, **options)
    metric, other = (ParameterRandomization(model, gradient, **options) for _ in range(2))
    parts = inputs.split(sizes)
    for part in parts[:-1]:
        metric.evaluate(part, 2)
    other.evaluate(parts[-1], 2)
    found = metric.merge(other).summary()
    for field in ("per_sample", "similarities", "reference", "curve", "curve_stderr"):
        torch.testing.assert_close(getattr(found, field), getattr(whole, field), rtol=0, atol=1e-9, equal_nan=True)
    assert found.stages == whole.stages and found.mean == pytest.approx(whole.mean)
    metric.reset()
    with pytest.raises(InvalidArgumentError, match="nothing to summarise"):
        metric.summary()


def test_summary_of_unlike_results():
    """Other stages cannot be joined; failures are, and a reference is only there if all batches have one."""
    model = small_cnn()
    metric, named = ParameterRandomization(model, edges), ParameterRandomization(model, edges, stages=["5"])
    metric.evaluate(IMAGES)
    named.evaluate(IMAGES)
    with pytest.raises(InvalidArgumentError, match=r"\('original', '5'\).*\('original', '8', '5', '2', '0'\)"):
        metric.merge(named).summary()
    metric.reset()
    nan, ones = torch.full((1, 2), float("nan")), torch.ones(1, 2)
    metric._results = [
        ParameterRandomizationResult(ones[:, 0], ones, ("original", "fc"), ones[:, 0]),
        ParameterRandomizationResult(nan[:, 0], nan, ("original", "fc"), None, {"fc": "first"}),
        ParameterRandomizationResult(nan[:, 0], nan, ("original", "fc"), None, {"fc": "second"}),
    ]
    summary = metric.summary()
    assert summary.failures == {"fc": "first"} and summary.reference is None and summary.n_valid == 1
    assert ParameterRandomization.higher_is_better is False


def test_unknown_options_are_refused_at_once():
    """Not only when the first batch comes."""
    with pytest.raises(TypeError, match="sead"):
        ParameterRandomization(small_cnn(), edges, sead=3)


def test_curve_leaves_missing_values_out():
    """Mean and sample deviation over the defined values of each column."""
    values = normal(5, 3)
    values[0, 1] = values[2, 1] = float("nan")
    values[1:, 2] = float("nan")
    result = ParameterRandomizationResult(values[:, 0], values, ("original", "a", "b"))
    rest = values[[1, 3, 4], 1]
    torch.testing.assert_close(result.curve, torch.stack([values[:, 0].mean(), rest.mean(), values[0, 2]]))
    torch.testing.assert_close(
        result.curve_stderr,
        torch.stack([values[:, 0].std() / 5**0.5, rest.std() / 3**0.5, torch.tensor(float("nan")).double()]),
        equal_nan=True,
    )


def test_progress_is_shown_if_asked_for(capsys):
    """A bar over the stages, and silence otherwise."""
    parameter_randomization(small_cnn(), edges, IMAGES)
    assert capsys.readouterr().err == ""
    parameter_randomization(small_cnn(), edges, IMAGES, show_progress=True)
    assert "4/4" in capsys.readouterr().err
