"""The stages: which there are, in which order, and under which names."""

import itertools

import pytest
import torch
from torch import nn

from captum_iba.errors import InvalidArgumentError, InvalidTypeError, NonFiniteError
from captum_iba.metrics import parameter_randomization
from tests.literal import normal, small_cnn
from tests.metrics.randomized_models import IMAGES, Everything, Spy, bits, edges, gradient, one, trained


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


def test_a_stage_that_reaches_nothing_new_is_left_out():
    """A layer all of whose parameters are tied to a later one is no stage."""
    model = nn.Sequential(nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)).eval()
    model[0].weight = model[1].weight
    result = parameter_randomization(model, lambda m, x, t: x, normal(2, 5).float(), similarity="spearman")
    assert result.stages == ("original", "1")


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
