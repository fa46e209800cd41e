"""A recording holds what a replay needs, and no more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_iba import LayerIBA
from captum_iba.bottleneck import Recording, Site

WIDTH = 4


class Chain(nn.Module):
    """Blocks in a row, with what ``forward`` makes of them."""

    def __init__(self, n: int = 6) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Residual(Chain):
    """Adds each block's output to what went in: the sum is made outside of the blocks."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


class Skip(Chain):
    """The last block gets the first one's output too."""

    def __init__(self) -> None:
        super().__init__()
        self.join = nn.Bilinear(WIDTH, WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        first = self.blocks[0](x)
        x = first
        for block in self.blocks[1:]:
            x = block(x)
        return self.join(x, first)


class Shapes(Chain):
    """Looks at shape, type and device of every output, and computes with none."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
            assert x.shape[-1] == WIDTH and x.dtype == torch.float32 and x.dim() == 2 and x.device.type == "cpu"
        return x


def recorded(model: nn.Module, layer: nn.Module, x: Tensor) -> Recording:
    return Recording.make(Site(layer, "layer"), lambda: model(x), [model])


def held(recording: Recording) -> list[bool]:
    """Of each recorded output, whether its values are still there."""
    return [bool(torch.isfinite(call.output).all()) for call in recording._calls]


@pytest.fixture(autouse=True)
def weights() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (Chain, [False, False, False, True]),
        (Shapes, [False, False, False, True]),
        (Residual, [True, True, True, True]),
        (Skip, [True, False, False, True]),
    ],
)
def test_only_what_is_computed_with_is_kept(kind: type[Chain], wanted: list[bool]) -> None:
    """Outputs that only replayed blocks take are let go of; sums and skips past the layer need theirs."""
    model, x = kind(), torch.randn(3, WIDTH)
    recording = recorded(model, model.blocks[3], x)
    assert held(recording) == wanted
    for first_time in (True, False):
        with recording.run(lambda: model(x), recording.features.clone(), first_time) as output:
            assert torch.equal(output, model(x))


def test_what_is_let_go_of_takes_no_memory() -> None:
    """In its place stands a single number, of the output's shape."""
    model, x = Chain(), torch.randn(3, WIDTH)
    first = recorded(model, model.blocks[3], x)._calls[0].output
    assert first.shape == (3, WIDTH) and first.untyped_storage().nbytes() == first.element_size()


def test_sites_keep_what_they_need_each() -> None:
    """Of one pass for several layers, each recording holds the outputs that its own replay needs."""
    model, x = Skip(), torch.randn(3, WIDTH)
    sites = [Site(model.blocks[n], str(n)) for n in (1, 4)]
    early, late = Recording.make_all(sites, lambda: model(x), [model])
    assert held(early) == [True, True]
    assert held(late) == [True, False, False, False, True]
    for recording in (late, early):
        with recording.run(lambda: model(x), recording.features.clone(), True) as output:
            assert torch.equal(output, model(x))


def test_outputs_that_someone_holds_stay() -> None:
    """A hook that stores features does so in the replay too, and finds the same."""
    model, x = Chain(), torch.randn(3, WIDTH)
    stored: list[Tensor] = []
    model.blocks[1].register_forward_hook(lambda _m, _i, output: stored.append(output))
    recording = recorded(model, model.blocks[3], x)
    assert held(recording) == [False, True, False, True]
    with recording.run(lambda: model(x), recording.features.clone(), True):
        pass
    assert torch.equal(stored[0], stored[1])


def test_what_is_held_to_the_end_stays_when_it_is_let_go_of() -> None:
    """Once the pass is over, nothing is taken out of the recording."""
    model, x = Chain(), torch.randn(3, WIDTH)
    stored: list[Tensor] = []
    handle = model.blocks[1].register_forward_hook(lambda _m, _i, output: stored.append(output))
    recording = recorded(model, model.blocks[3], x)
    handle.remove()
    stored.clear()
    assert held(recording) == [False, True, False, True]


def test_a_pass_that_needs_it_after_all_does_not_pass_unseen() -> None:
    """NaN stands where an output was: nothing wrong looks right."""

    class Later(Chain):
        uses = False

        def forward(self, x: Tensor) -> Tensor:
            first = x = self.blocks[0](x)
            for block in self.blocks[1:]:
                x = block(x)
            return x + first if self.uses else x

    model, x = Later(), torch.randn(3, WIDTH)
    recording = recorded(model, model.blocks[2], x)
    assert held(recording) == [False, False, True]
    model.uses = True
    with recording.run(lambda: model(x), recording.features.clone()) as output:
        assert output.isnan().all()


def test_a_module_that_hands_its_input_on_is_followed() -> None:
    """Dropout in evaluation returns what it was given: one tensor, recorded twice."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(), nn.Linear(WIDTH, WIDTH), nn.Tanh()).eval()
    x = torch.randn(3, WIDTH)
    recording = recorded(model, model[2], x)
    assert held(recording) == [False, False, True]
    with recording.run(lambda: model(x), recording.features.clone(), True) as output:
        assert torch.equal(output, model(x))


def test_compiled_models_replay() -> None:
    """No mode of ours gets into compiled code; all outputs are kept."""
    torch.compiler.reset()
    model, x = Residual(3), torch.randn(3, WIDTH)
    compiled = torch.compile(model, backend="eager")
    recording = Recording.make(Site(model.blocks[1], "layer"), lambda: compiled(x), [compiled])
    for first_time in (True, False):
        with recording.run(lambda: compiled(x), recording.features.clone(), first_time) as output:
            torch.testing.assert_close(output, model(x))


@pytest.mark.filterwarnings("ignore:What comes before")
def test_compiled_functions_end_with_the_right_bits() -> None:
    """What code compiled around the modules needs is not seen; the check of the replay finds that out."""
    torch.compiler.reset()
    model, x = Residual(3).eval(), torch.randn(3, WIDTH)
    iba = LayerIBA(model, model.blocks[1]).estimate(torch.randn(50, WIDTH))
    compiled = LayerIBA(torch.compile(lambda x: model(x), backend="eager"), model.blocks[1], statistics=iba.statistics)
    found, wanted = (method.attribute(x, target=1, beta=0.1, n_steps=3) for method in (compiled, iba))
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=1e-4)
    assert wanted.std() > 1e-2
