"""Targets: every form means what Captum says, and an example's result does not depend on its batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_iba import LayerIBA
from captum_iba.errors import TargetError
from tests.conformance._adapter import (
    HAS_STOCK,
    QUICK,
    REAL_PER_EXAMPLE,
    STOCK_PER_EXAMPLE,
    Cube,
    Entry,
    find_entry,
    reseed,
    stock_entries,
)

SINGLE_DELTA = 1e-4


def row_of(value: Any, i: int, n: int) -> Any:
    """Example i of an argument; what has no row per example stays."""
    if isinstance(value, tuple):
        return tuple(row_of(part, i, n) for part in value)
    return value[i : i + 1] if isinstance(value, Tensor) and value.ndim > 0 and len(value) == n else value


def run(method: Any, args: dict[str, Any]) -> Tensor:
    """Attribute from the same random state each time."""
    reseed()
    return method.attribute(**args)


@pytest.mark.parametrize("name", [*STOCK_PER_EXAMPLE, *REAL_PER_EXAMPLE])
def test_batch_and_single_examples_agree(name: str, kind: str) -> None:
    """One example alone, with its target as it is or in a list of one, gives its row of the batch's result."""
    entry = find_entry(name, kind)
    method, args, targets = entry.method(), entry.args, entry.args["target"]
    batch = run(method, args)
    assert len(batch) == len(targets)
    for i, target in enumerate(targets):
        inputs, more = (row_of(args.get(key), i, len(targets)) for key in ("inputs", "additional_forward_args"))
        single = {**args, "inputs": inputs, "additional_forward_args": more}
        for one in (target, targets[i : i + 1]):
            alone = run(method, {**single, "target": one})
            assert alone.shape == batch[i : i + 1].shape
            assert (alone - batch[i : i + 1]).abs().max() <= SINGLE_DELTA


def test_no_target_for_two_classes_is_an_assertion_error() -> None:
    """Without target, more than one value per example is refused, with TargetError."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(4, 3)
    iba = LayerIBA(model, model[0]).estimate(x)
    with pytest.raises(AssertionError, match="Target not provided when necessary") as caught:
        iba.attribute(x)
    assert isinstance(caught.value, TargetError)


def test_a_target_with_too_few_indices_is_an_assertion_error() -> None:
    """An index tuple that leaves two values per example is refused, with TargetError."""
    model, x = Cube(), torch.randn(4, 3)
    iba = LayerIBA(model, model.body).estimate(x)
    with pytest.raises(AssertionError, match="leaves 8 values") as caught:
        iba.attribute(x, target=(1, 0))
    assert isinstance(caught.value, TargetError)


if HAS_STOCK:

    @pytest.mark.parametrize(("target", "further"), [(None, None), ((1, 0), (None, True))])
    def test_missing_indices_are_refused_on_the_stock_model(target: Any, further: Any) -> None:
        """The two fixed cases of Captum's suite: no target for two classes, and two values per example left."""
        entry = stock_entries()["basic_layer_multiple_target"].fresh()
        with pytest.raises(AssertionError):
            entry.method().attribute(entry.args["inputs"], target=target, additional_forward_args=further)


@pytest.mark.parametrize(
    "same",
    [(1,), torch.tensor(1), torch.tensor([1]), torch.tensor([1, 1, 1, 1]), [1, 1, 1, 1], [(1,), (1,), (1,), (1,)]],
    ids=["tuple", "0-d tensor", "1-element tensor", "1-d tensor", "list", "list of tuples"],
)
def test_all_forms_of_one_class_are_the_same_target(same: Any) -> None:
    """Every form that names class 1 for all examples gives, bit for bit, the result of ``target=1``."""
    for name in ("linear", "residual"):
        entry = find_entry(name)
        method = entry.method()
        wanted = method.attribute(**{**entry.args, "target": 1})
        assert torch.equal(method.attribute(**{**entry.args, "target": same}), wanted)
        assert not torch.allclose(method.attribute(**{**entry.args, "target": 2}), wanted, rtol=0.01)


@pytest.mark.parametrize(
    "same", [torch.tensor([0, 1, 1, 0]), [(0,), (1,), (1,), (0,)]], ids=["1-d tensor", "list of tuples"]
)
def test_all_forms_of_one_class_each_are_the_same_target(same: Any) -> None:
    """Every form that names one class for each example gives the result of the list."""
    entry = find_entry("residual")
    method = entry.method()
    wanted = method.attribute(**{**entry.args, "target": [0, 1, 1, 0]})
    assert torch.equal(method.attribute(**{**entry.args, "target": same}), wanted)
    for i, target in enumerate([0, 1, 1, 0]):
        for_all = method.attribute(**{**entry.args, "target": target})
        torch.testing.assert_close(for_all[i], wanted[i], rtol=0.0, atol=1e-12)


def test_one_index_tuple_for_all_equals_a_list_of_it() -> None:
    """On outputs with several axes, one tuple for all examples is that tuple for each."""
    entry = find_entry("tuple_targets")
    method = entry.method()
    one = method.attribute(**{**entry.args, "target": (1, 0, 1)})
    assert torch.equal(one, method.attribute(**{**entry.args, "target": [(1, 0, 1)] * 4}))


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_one_value_per_example_is_a_log_likelihood(shape: tuple[int, ...]) -> None:
    """A model that returns log p(class 2), as (N,) or (N, 1), needs no target and gives what its logits do."""
    entry = find_entry("linear")
    model, x = entry.model, entry.args["inputs"]
    iba = LayerIBA(model, model[1]).estimate(x)
    wanted = iba.attribute(x, target=2, **QUICK)
    iba.forward_func = lambda inputs: model(inputs).log_softmax(dim=1)[:, 2].reshape(shape)
    torch.testing.assert_close(iba.attribute(x, **QUICK), wanted, rtol=0.0, atol=1e-10)
    if len(shape) == 2:
        torch.testing.assert_close(iba.attribute(x, target=0, **QUICK), wanted, rtol=0.0, atol=1e-10)


def test_the_objective_of_the_real_entries_depends_on_the_input(real_entry: Entry) -> None:
    """The log-probability of the first target varies over the examples, so the other tests here are not vacuous."""
    inputs, more = real_entry.args["inputs"], real_entry.args.get("additional_forward_args") or ()
    logits = real_entry.model.eval()(*(inputs if isinstance(inputs, tuple) else (inputs,)), *more)
    values = logits.log_softmax(dim=1).flatten(1)[:, 0]
    assert values.max() - values.min() > 0.3


def test_the_map_of_the_real_entries_is_not_constant(real_entry: Entry) -> None:
    """The bits of each example differ from element to element, and from example to example."""
    bits = real_entry.method().attribute(**{**real_entry.args, "attr_dim_summation": False}).flatten(1)
    spread = bits.max(dim=1).values - bits.min(dim=1).values
    assert (spread > 0.1 * bits.max(dim=1).values).all()
    assert (bits[1:] - bits[:1]).abs().max() > 0.1 * bits.max()


def test_the_map_of_the_real_entries_changes_with_the_target(real_entry: Entry) -> None:
    """Another class gives another map for every example."""
    method = real_entry.method()
    args = {**real_entry.args, "attr_dim_summation": False}
    first, second = method.attribute(**args), method.attribute(**{**args, "target": real_entry.other})
    changed = (first - second).flatten(1).abs().max(dim=1).values
    assert (changed > 0.01 * first.flatten(1).max(dim=1).values).all()


def test_the_readouts_map_varies_and_does_not_depend_on_the_target() -> None:
    """A trained readout's bits differ between examples, and are bit for bit the same for any class."""
    for name in REAL_PER_EXAMPLE:
        entry = find_entry(name, "LayerReadoutIBA")
        method = entry.method()
        first, second = method.attribute(**entry.args), method.attribute(**{**entry.args, "target": entry.other})
        if not entry.noise_tunnel:
            assert torch.equal(first, second)
        assert (first[1:] - first[:1]).abs().max() > 0.01 * first.max()
