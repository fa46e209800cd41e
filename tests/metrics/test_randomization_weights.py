"""New weights: where they come from, what they leave alone, and that the old ones come back."""

import itertools
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from captum_iba.errors import CaptumIBAWarning, InvalidArgumentError, InvalidTypeError
from captum_iba.metrics import parameter_randomization
from tests.literal import normal
from tests.metrics.randomized_models import IMAGES, Everything, Spy, at_call, bits, edges, one, trained


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


def run_out(model, inputs, target):
    raise torch.OutOfMemoryError


@pytest.mark.parametrize("method", ["reset", "permute"])
@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: meddling, None),
        (lambda: at_call(0, fail), ZeroDivisionError),
        (lambda: at_call(3, run_out, meddling), torch.OutOfMemoryError),
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
