"""A call leaves nothing behind: no hook, no replaced forward, no changed tensor, mode or random state."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from captum_iba import LayerIBA
from captum_iba.errors import TargetIndexError
from tests.conformance._adapter import (
    BAD_TARGET,
    QUICK,
    REAL_NAMES,
    STOCK_NAMES,
    Entry,
    Residual,
    Snapshot,
    assert_no_hooks,
    find_entry,
    hook_tables,
    stock_entries,
)

WITHOUT_TUNNEL = [name for name in REAL_NAMES if name != "noise_tunnel"]


class Broken(nn.Module):
    """Fails when it is run."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        raise AssertionError("this module cannot run")


class BlownError(AssertionError):
    """Raised by a fuse."""


class Fuse(nn.Module):
    """Passes its input on until call number ``blows_at``, from which on it raises."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.blows_at, self.blows_with = 0, 10**9, BlownError

    def arm(self, at: int, error: type[BaseException]) -> None:
        self.calls, self.blows_at, self.blows_with = 0, at, error

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > self.blows_at:
            raise self.blows_with("blown")
        return x


class FusedResidual(Residual):
    """Needs an expanded prefix, with a fuse on either side of the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = Fuse(), Fuse()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.before(self.stem(x)).relu()
        return self.head(self.after(hidden + self.branch(hidden)).relu().reshape(x.shape[0], 6))


class FusedChain(nn.Module):
    """A plain chain with a fuse on either side of the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.before, self.branch = nn.Linear(3, 6), Fuse(), nn.Linear(6, 6)
        self.after, self.head = Fuse(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.after(self.branch(self.before(self.stem(x)).relu()).relu()))


def numpy_state() -> bytes:
    """State of numpy's global generator, which is the legacy one."""
    return np.random.get_state()[1].tobytes()


def replace_layer(entry: Entry, module: nn.Module) -> None:
    """Put a module in the layer's place."""
    parent, _, name = entry.layer.rpartition(".")
    setattr(entry.model.get_submodule(parent), name, module)


def test_the_table_holds_every_stock_entry_of_layer_grad_cam() -> None:
    """Captum lists LayerGradCam in exactly these entries, so none is left out here."""
    assert set(stock_entries()) == set(STOCK_NAMES)


def test_the_check_sees_the_tables_of_hooks_with_keywords() -> None:
    """A hook with keywords shows in a table of its own, which the check compares too."""
    module = nn.Identity()
    before = Snapshot(module)
    module.register_forward_pre_hook(lambda _m, args, kwargs: (args, kwargs), with_kwargs=True)
    module.register_forward_hook(lambda _m, args, kwargs, output: output, with_kwargs=True)
    tables = hook_tables(module)
    assert [len(tables[key]) for key in ("_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs")] == [1, 1]
    with pytest.raises(AssertionError):
        before.assert_unchanged()
    with pytest.raises(AssertionError):
        assert_no_hooks(module)


def test_a_normal_call_leaves_no_trace(entry: Entry) -> None:
    """After a call, all modules, tensors and arguments are as before, bit for bit, and no hook is left."""
    method, before = entry.method(), Snapshot(entry.model, entry.args)
    method.attribute(**entry.args)
    before.assert_unchanged()
    assert_no_hooks(entry.model)


def test_an_incorrect_target_leaves_no_trace(entry: Entry) -> None:
    """A target with too many indices is an AssertionError, after which everything is as before."""
    method, before = entry.method(), Snapshot(entry.model, entry.args)
    with pytest.raises(AssertionError):
        method.attribute(**{**entry.args, "target": BAD_TARGET})
    before.assert_unchanged()
    assert_no_hooks(entry.model)


def test_an_invalid_module_leaves_no_trace(entry: Entry) -> None:
    """The model's own AssertionError comes out unwrapped, and everything is as before."""
    replace_layer(entry, Broken())
    method, before = entry.method(), Snapshot(entry.model, entry.args)
    with pytest.raises(AssertionError, match=r"^this module cannot run$"):
        method.attribute(**entry.args)
    before.assert_unchanged()
    assert_no_hooks(entry.model)


@pytest.mark.parametrize("form", ["int", "list", "tensor", "one-element tensor"])
def test_a_class_out_of_range_is_an_index_error_without_trace(real_entry_of_any_kind: Entry, form: str) -> None:
    """A class that the output lacks gives TargetIndexError, an IndexError, and everything is as before."""
    real_entry = real_entry_of_any_kind
    if real_entry.name == "tuple_targets":
        target: Any = (7, 0, 0) if form == "int" else [(7, 0, 0)] * 4
    else:
        inputs = real_entry.args["inputs"]
        n = len(inputs[0] if isinstance(inputs, tuple) else inputs)
        target = {
            "int": 3,
            "list": [0] * (n - 1) + [3],
            "tensor": torch.tensor([0] * (n - 1) + [3]),
            "one-element tensor": torch.tensor(3),
        }[form]
    method, before = real_entry.method(), Snapshot(real_entry.model, real_entry.args)
    with pytest.raises(IndexError) as caught:
        method.attribute(**{**real_entry.args, "target": target})
    assert isinstance(caught.value, TargetIndexError)
    before.assert_unchanged()
    assert_no_hooks(real_entry.model)


@pytest.mark.parametrize("name", WITHOUT_TUNNEL)
def test_global_random_states_are_left_alone(name: str, kind: str) -> None:
    """Neither calibration nor training nor attribution draws from, or reseeds, a global generator."""
    entry = find_entry(name, kind)
    python, numpy, torch_state = random.getstate(), numpy_state(), torch.get_rng_state()
    entry.method().attribute(**entry.args)
    assert random.getstate() == python
    assert numpy_state() == numpy
    assert torch.equal(torch.get_rng_state(), torch_state)


@pytest.mark.filterwarnings("ignore:What comes before.*cannot be replayed")
@pytest.mark.parametrize("error", [BlownError, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("build", [FusedChain, FusedResidual])
def test_a_failure_at_any_forward_pass_leaves_no_trace(build: type, place: str, error: type[BaseException]) -> None:
    """Whichever of its forward passes fails, attribute raises the model's error itself and restores everything."""
    model = build().double().eval()
    model.stem.weight.grad = torch.randn_like(model.stem.weight)
    iba = LayerIBA(model, model.branch).estimate(torch.randn(20, 3, dtype=torch.float64))
    fuse, x = getattr(model, place), torch.randn(2, 3, dtype=torch.float64)
    fuse.arm(10**9, error)
    iba.attribute(x, target=1, **QUICK)
    n_calls = fuse.calls
    assert n_calls >= (1 if place == "before" else QUICK["n_steps"])
    before = Snapshot(model, x)
    for at in range(n_calls):
        fuse.arm(at, error)
        with pytest.raises(error) as caught:
            iba.attribute(x, target=1, **QUICK)
        assert type(caught.value) is error
        before.assert_unchanged()
        assert_no_hooks(model)


def test_a_failure_during_calibration_leaves_no_trace_and_no_statistics() -> None:
    """A batch that fails in estimate raises the model's error, restores everything and sets no statistics."""
    model = FusedChain().eval()
    iba, before = LayerIBA(model, model.branch), Snapshot(model)
    for at in (0, 1):
        model.before.arm(at, BlownError)
        with pytest.raises(BlownError):
            iba.estimate([torch.randn(4, 3), torch.randn(4, 3)])
        before.assert_unchanged()
        assert_no_hooks(model)
        assert iba.statistics is None


@pytest.mark.parametrize("at_input", [False, True])
def test_hooks_and_forwards_of_the_user_stay(at_input: bool, kind: str) -> None:
    """Hooks that the user registered, and a forward that the user replaced, are still there and the same objects."""
    entry = find_entry("linear", kind)
    model, seen = entry.model, []
    model[0].register_forward_hook(lambda *_: seen.append("post"))
    model[1].register_forward_pre_hook(lambda *_: seen.append("pre"))
    model[0].forward = lambda x, plain=model[0].forward: plain(x) + 1.0
    before = Snapshot(model, entry.args)
    entry.method().attribute(**entry.args, attribute_to_layer_input=at_input)
    before.assert_unchanged()
    assert {"post", "pre"} <= set(seen)


def test_modules_outside_the_model_are_left_alone() -> None:
    """A function that runs several modules gets all of them back as they were, whether the call succeeds or fails."""
    entry = find_entry("linear")
    body, head = entry.model, nn.Linear(3, 4).double()
    iba = LayerIBA(lambda x: head(body(x)), body[1]).estimate(entry.args["inputs"])
    before = Snapshot(nn.ModuleList([body, head]), entry.args)
    iba.attribute(entry.args["inputs"], target=3, **QUICK)
    with pytest.raises(TargetIndexError):
        iba.attribute(entry.args["inputs"], target=4, **QUICK)
    before.assert_unchanged()
    assert_no_hooks(nn.ModuleList([body, head]))
