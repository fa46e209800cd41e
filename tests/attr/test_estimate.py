"""Laws of estimate: mean and unbiased deviation over all examples, from any kind of data, at the layer's cost only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from captum_iba import FeatureStatistics, LayerIBA

pytestmark = pytest.mark.filterwarnings("ignore:The feature statistics come from")
N = 11


class TwoInputs(nn.Module):
    """A convolution of the weighted sum of two images; a part after it counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.layer = nn.Conv2d(3, 4, 3, padding=1)
        self.later, self.classify = nn.ReLU(), nn.Linear(4, 2)

    def forward(self, x: Tensor, other: Tensor | None = None, factor: float = 2.0) -> Tensor:
        mixed = x if other is None else x + factor * other
        return self.classify(self.later(self.layer(self.norm(mixed))).mean(dim=(2, 3)))


def network() -> TwoInputs:
    torch.manual_seed(0)
    model = TwoInputs().double().eval()
    model.norm.running_mean.normal_()
    return model


def images(n: int = N, height: int = 6, width: int = 7, seed: int = 1) -> Tensor:
    return 3.0 + torch.randn(n, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X, Y, LABELS = images(), images(seed=2), torch.arange(N)
CUTS = [slice(0, 4), slice(4, 5), slice(5, N)]


def features(*inputs: Tensor, **kwargs: Any) -> Tensor:
    """The truth: what the layer returns for all examples at once."""
    found: list[Tensor] = []
    model = network()
    model.layer.register_forward_hook(lambda _module, _args, output: found.append(output.detach()))
    model(*inputs, **kwargs)
    return found[0]


def estimate(data: Any, **kwargs: Any) -> FeatureStatistics:
    model = network()
    found = LayerIBA(model, model.layer).estimate(data, **kwargs).statistics
    assert found is not None
    return found


def assert_moments(statistics: FeatureStatistics, values: Tensor) -> None:
    """Compare with numpy's moments over the first axis, unbiased."""
    mean, std = values.numpy().mean(axis=0), values.numpy().std(axis=0, ddof=1)
    assert statistics.mean.dtype == statistics.std.dtype == torch.float64
    assert torch.allclose(statistics.mean.squeeze(), torch.from_numpy(mean), rtol=1e-12, atol=1e-12)
    assert torch.allclose(statistics.std.squeeze(), torch.from_numpy(std), rtol=1e-12, atol=1e-12)


def by_channel(maps: list[Tensor], channel_dim: int = 1) -> Tensor:
    """(values, channels) of maps of several sizes."""
    return torch.cat([m.movedim(channel_dim, -1).flatten(0, -2) for m in maps])


ONE_INPUT: dict[str, Callable[[], Any]] = {
    "one tensor": lambda: X,
    "list of tensors": lambda: [X[cut] for cut in CUTS],
    "generator": lambda: (X[cut] for cut in CUTS),
    "loader with labels": lambda: DataLoader(TensorDataset(X, LABELS), batch_size=4),
    "loader without labels": lambda: DataLoader(TensorDataset(X), batch_size=3),
    "tuples with labels": lambda: [(X[cut], LABELS[cut], "name") for cut in CUTS],
    "one mapping": lambda: {"x": X},
    "mappings": lambda: [{"x": X[cut]} for cut in CUTS],
    "mappings with labels": lambda: [({"x": X[cut]}, LABELS[cut]) for cut in CUTS],
}


@pytest.mark.parametrize("kind", ONE_INPUT)
def test_moments_of_all_examples(kind: str) -> None:
    """However the data come, the statistics are the moments of the features of all examples."""
    statistics = estimate(ONE_INPUT[kind]())
    assert_moments(statistics, features(X))
    assert (statistics.kind, statistics.n_samples, statistics.count) == ("feature", N, N)
    assert (statistics.shape, statistics.channel_dim) == ((4, 6, 7), 1)


@pytest.mark.parametrize("kind", ["tuple", "list", "mapping"])
def test_several_inputs(kind: str) -> None:
    """A nested tuple or list in a batch, or a mapping, holds several inputs."""
    pack = {
        "tuple": lambda cut: ((X[cut], Y[cut]), LABELS[cut]),
        "list": lambda cut: [[X[cut], Y[cut]], LABELS[cut]],
        "mapping": lambda cut: {"other": Y[cut], "x": X[cut]},
    }[kind]
    assert_moments(estimate([pack(cut) for cut in CUTS]), features(X, Y))


def test_input_fn_splits_a_batch() -> None:
    """input_fn tells inputs and additional arguments apart, for batches of any type."""
    data = [f"{cut.start} {cut.stop}" for cut in CUTS]

    def read(batch: str) -> tuple[Any, Any]:
        cut = slice(*map(int, batch.split()))
        return X[cut], (Y[cut], -1.0)

    assert_moments(estimate(data, input_fn=read), features(X, Y, factor=-1.0))


@pytest.mark.parametrize("limit", [2, 4, 5, 8, N, 10 * N])
def test_max_examples_cuts_inside_a_batch(limit: int) -> None:
    """Exactly the first max_examples count, and no batch is drawn that is not needed."""
    drawn: list[slice] = []

    def data() -> Iterator[Tensor]:
        for cut in CUTS:
            drawn.append(cut)
            yield X[cut]

    statistics = estimate(data(), max_examples=limit)
    assert_moments(statistics, features(X)[:limit])
    assert statistics.n_samples == min(limit, N)
    assert drawn == [cut for cut in CUTS if cut.start < limit]


def test_per_channel_pools_over_positions() -> None:
    """per='channel' gives one mean and deviation per channel, over examples and positions."""
    statistics = estimate([X[cut] for cut in CUTS], per="channel")
    assert_moments(statistics, by_channel([features(X)]))
    assert statistics.mean.shape == (4, 1, 1)
    assert (statistics.kind, statistics.n_samples, statistics.count) == ("channel", N, N * 6 * 7)


@pytest.mark.parametrize("per", ["channel", "auto"])
@pytest.mark.parametrize("sizes", [[(6, 7), (6, 7), (5, 9)], [(4, 4), (1, 1), (6, 7)], [(1, 1), (8, 8), (8, 8)]])
def test_images_of_varying_size_are_pooled(per: Any, sizes: list[tuple[int, int]]) -> None:
    """With images of several sizes every position counts once, whatever size came first."""
    batches = [images(3, *size, seed=seed) for seed, size in enumerate(sizes)]
    statistics = estimate(batches, per=per)
    assert_moments(statistics, by_channel([features(batch) for batch in batches]))
    assert (statistics.kind, statistics.n_samples) == ("channel", 9)
    wanted = tuple(size[0] if len(set(size)) == 1 else None for size in zip(*sizes, strict=True))
    assert statistics.shape == (4, *wanted)


@pytest.mark.parametrize("per", ["channel", "auto"])
def test_tokens_of_varying_length_are_pooled(per: Any) -> None:
    """Token features are pooled per channel, whatever the lengths."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 5)).double()
    batches = [torch.randn(2, length, 3, dtype=torch.float64) for length in (4, 5, 9)]
    statistics = LayerIBA(model.eval(), model[0]).estimate(batches, per=per).statistics
    with torch.no_grad():
        assert_moments(statistics, by_channel([model[0](batch) for batch in batches], channel_dim=2))
    assert (statistics.mean.shape, statistics.shape, statistics.channel_dim) == ((1, 5), (None, 5), 2)


def test_the_layers_input() -> None:
    """attribute_to_layer_input gives the moments of what enters the layer, kept apart from those of its output."""
    model = network()
    iba = LayerIBA(model, model.layer).estimate(X)
    at_output = iba.statistics
    iba.estimate([X[cut] for cut in CUTS], attribute_to_layer_input=True)
    with torch.no_grad():
        assert_moments(iba.statistics, model.norm(X))
    assert at_output is not None
    assert torch.equal(iba.estimate(X).statistics.mean, at_output.mean)


@pytest.mark.filterwarnings("ignore:.*in training mode")
def test_the_model_is_left_as_it_was() -> None:
    """Batch statistics do not move, modes are put back, no gradient and no hook is left; numbers are eval mode's."""
    model = network().train()
    model.later.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    statistics = LayerIBA(model, model.layer).estimate([X[cut] for cut in CUTS]).statistics
    assert_moments(statistics, features(X))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [m for m in model.modules() if not m.training] == [model.later]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())
    assert not statistics.mean.requires_grad


def test_the_model_runs_only_as_far_as_the_layer() -> None:
    """Nothing after the layer runs; the layer itself runs once for each batch."""
    model, later, layer = network(), [], []
    model.later.register_forward_hook(lambda *_: later.append(1))
    model.layer.register_forward_hook(lambda *_: layer.append(1))
    LayerIBA(model, model.layer).estimate([X] * 5)
    assert (len(later), len(layer)) == (0, 5)


def interrupted(after: int) -> Iterator[Tensor]:
    """Batches, until the user presses Ctrl-C."""
    for cut in CUTS[:after]:
        yield X[cut]
    raise KeyboardInterrupt


def test_an_interruption_keeps_what_was_seen() -> None:
    """KeyboardInterrupt goes on to the caller, and the statistics of the batches before it stay."""
    model = network()
    iba = LayerIBA(model, model.layer)
    with pytest.raises(KeyboardInterrupt):
        iba.estimate(interrupted(2))
    assert_moments(iba.statistics, features(X)[:5])


def test_an_interruption_before_anything_keeps_the_older_statistics() -> None:
    """Interrupted before two examples, estimate leaves the earlier statistics alone."""
    model = network()
    iba = LayerIBA(model, model.layer).estimate(X)
    older = iba.statistics
    with pytest.raises(KeyboardInterrupt):
        iba.estimate(interrupted(0))
    assert iba.statistics is older


def test_a_failure_of_the_data_keeps_the_older_statistics() -> None:
    """Any other exception of the data goes on to the caller and changes nothing."""

    def broken() -> Iterator[Tensor]:
        yield Y
        raise OSError("disk")

    model = network()
    iba = LayerIBA(model, model.layer).estimate(X)
    older = iba.statistics
    with pytest.raises(OSError, match="disk"):
        iba.estimate(broken())
    assert iba.statistics is older


@pytest.mark.parametrize("per", ["feature", "channel"])
def test_saved_statistics_give_identical_bits(per: Any, tmp_path: Path) -> None:
    """Statistics read from a file are those that were written, and attributions are the same bit for bit."""
    model = network()
    iba = LayerIBA(model, model.layer).estimate([X, images(3, seed=4)], per=per)
    iba.save_statistics(tmp_path / "layer.safetensors")
    other = LayerIBA(model, model.layer).load_statistics(tmp_path / "layer.safetensors")
    for name in ("count", "n_samples", "shape", "kind", "channel_dim"):
        assert getattr(other.statistics, name) == getattr(iba.statistics, name)
    assert torch.equal(other.statistics.mean, iba.statistics.mean)
    assert torch.equal(other.statistics.m2, iba.statistics.m2)
    bits = [method.attribute(Y[:2], 1, n_steps=3, n_samples=2) for method in (iba, other)]
    assert torch.equal(*bits)
    assert [path.name for path in tmp_path.iterdir()] == ["layer.safetensors"]


def test_a_failed_save_keeps_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is replaced only once the new one is complete, and nothing half-written stays."""

    def full(*_args: Any) -> None:
        raise OSError("disk full")

    path = tmp_path / "layer.safetensors"
    estimate(X).save(path)
    older = path.read_bytes()
    monkeypatch.setattr("captum_iba._files.os.replace", full)
    with pytest.raises(OSError, match="disk full"):
        estimate(Y).save(path)
    assert path.read_bytes() == older
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("show", [False, True])
def test_progress_is_shown_on_request_only(show: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is written unless show_progress asks for it; then a bar to the error stream, with the method's name."""
    estimate([X[cut] for cut in CUTS], show_progress=show)
    written = capsys.readouterr()
    assert written.out == ""
    assert ("Layer IBA statistics" in written.err and "3/3" in written.err) if show else written.err == ""


def test_few_examples_are_warned_about_per_feature_only() -> None:
    """Few examples make rough statistics per feature, and the warning names the remedy."""
    with pytest.warns(UserWarning, match=rf"come from {N} examples.*per='channel'"):
        estimate(X)
