"""Laws of gathering: what is evaluated in parts, in any order of calls and processes, sums up to the whole."""

import dataclasses

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st

from captum_iba import LayerIBA
from captum_iba.errors import CaptumIBAWarning, InvalidArgumentError
from captum_iba.metrics import (
    BoundingBox,
    Degradation,
    SensitivityN,
    Sufficiency,
    bounding_box_ratio,
    degradation,
    sensitivity_n,
    sufficiency,
)
from tests.literal import normal, small_cnn

N = 6
MODEL = small_cnn()
STATISTICS = LayerIBA(MODEL, MODEL[2]).estimate(normal(40, 3, 10, 10, seed=9)).statistics
X, MAPS, TARGET = normal(N, 3, 10, 10), normal(N, 1, 10, 10, seed=1).round(decimals=1), torch.tensor([0, 1, 2, 3, 1, 1])
MASKS = torch.zeros(N, 10, 10)
for number in range(N):
    MASKS[number, number : number + 4, 2:8] = 1

METRICS = {
    "degradation": lambda: Degradation(MODEL, tile_size=5, baselines="zero"),
    "degradation, fixed scale": lambda: Degradation(MODEL, tile_size=5, normalizer=(0.9, 0.2)),
    "bounding box": BoundingBox,
    "sensitivity-n": lambda: SensitivityN(MODEL, [2, 3], tile_size=5, n_perturb_samples=5),
    "sensitivity-n, pooled": lambda: SensitivityN(MODEL, tile_size=3, n_perturb_samples=5, pool="pooled"),
    "sufficiency": lambda: Sufficiency(MODEL, MODEL[2], STATISTICS, areas=[0.1, 0.5], n_samples=2),
}
WHOLE = {
    "degradation": lambda: degradation(MODEL, X, MAPS, "zero", target=TARGET, tile_size=5),
    "degradation, fixed scale": lambda: degradation(MODEL, X, MAPS, target=TARGET, tile_size=5, normalizer=(0.9, 0.2)),
    "bounding box": lambda: bounding_box_ratio(MAPS, MASKS),
    "sensitivity-n": lambda: sensitivity_n(MODEL, X, MAPS, [2, 3], target=TARGET, tile_size=5, n_perturb_samples=5),
    "sensitivity-n, pooled": lambda: sensitivity_n(
        MODEL, X, MAPS, target=TARGET, tile_size=3, n_perturb_samples=5, pool="pooled"
    ),
    "sufficiency": lambda: sufficiency(
        MODEL, X, MAPS, MODEL[2], STATISTICS, target=TARGET, areas=[0.1, 0.5], n_samples=2
    ),
}


def feed(metric, rows):
    if isinstance(metric, BoundingBox):
        return metric.evaluate(MAPS[rows], MASKS[rows])
    return metric.evaluate(X[rows], MAPS[rows], target=TARGET[rows])


def feed_all(metric, sizes, start=0):
    for size in sizes:
        feed(metric, slice(start, start + size))
        start += size
    return metric


def assert_same(found, wanted):
    """All fields, and all that follows from them."""
    names = [field.name for field in dataclasses.fields(wanted) if field.name != "pool"] + ["mean", "stderr", "n_valid"]
    names += [name for name in ("curve", "x", "pooled", "bound", "morf_curve") if hasattr(wanted, name)]
    for name in names:
        values = getattr(found, name), getattr(wanted, name)
        torch.testing.assert_close(
            *values, rtol=0, atol=1e-9, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=8)
@given(sizes=st.permutations([1, 2, 3]) | st.lists(st.integers(1, N), max_size=N), at=st.integers(0, N))
def test_any_split_gives_the_same_summary(name, sizes, at):
    """Batches of any sizes, in one object or in two that are merged, sum up to one call with all examples."""
    sizes = [size for size, end in zip(sizes, torch.tensor(sizes).cumsum(0).tolist(), strict=True) if end <= N]
    sizes += [1] * (N - sum(sizes))
    wanted = WHOLE[name]()
    assert_same(feed_all(METRICS[name](), sizes).summary(), wanted)
    first, second = sizes[:at], sizes[at:]
    metric, other = feed_all(METRICS[name](), first), feed_all(METRICS[name](), second, sum(first))
    assert metric.merge(other) is metric
    assert_same(metric.summary(), wanted)
    assert_same(metric.gather().summary(), wanted)  # without processes nothing to gather
    if second:
        assert other.summary().per_sample.shape == (sum(second),)


@pytest.mark.parametrize("name", METRICS)
def test_reset_and_nothing_to_summarise(name):
    """Evaluate returns the batch's own result; reset forgets; without a batch there is no summary."""
    metric = METRICS[name]()
    with pytest.raises(InvalidArgumentError, match="nothing to summarise"):
        metric.summary()
    batch = feed(metric, slice(0, 4))
    assert batch.per_sample.shape == (4,)
    metric.reset()
    with pytest.raises(InvalidArgumentError, match="nothing to summarise"):
        metric.summary()
    assert_same(feed_all(metric, [6]).summary(), WHOLE[name]())


def test_a_batch_without_boxes_does_not_end_the_run():
    """Its examples are left out; only a run without any box is refused."""
    metric = BoundingBox()
    metric.evaluate(MAPS[:2], MASKS[:2])
    with pytest.warns(CaptumIBAWarning, match="undefined for all 1"):
        metric.evaluate(MAPS[2:3], 0 * MASKS[2:3])
    with pytest.warns(CaptumIBAWarning, match="undefined for 1 of 3"):
        summary = metric.summary()
    assert summary.n_valid == 2 and summary.per_sample.isnan().tolist() == [False, False, True]
    metric.reset()
    with pytest.warns(CaptumIBAWarning):
        metric.evaluate(MAPS[2:3], 0 * MASKS[2:3])
    with pytest.raises(InvalidArgumentError, match="undefined for all 1"):
        metric.summary()


def test_classes_describe_themselves():
    """A name, and that higher is better; an option that does not exist is refused at once."""
    for name, make in METRICS.items():
        assert make().name == name.split(",")[0] and make().higher_is_better
    for make in (
        Degradation,
        SensitivityN,
        lambda model, **options: Sufficiency(model, model[2], STATISTICS, **options),
    ):
        with pytest.raises(TypeError, match="tile_sise"):
            make(MODEL, tile_sise=3)


def work(rank, folder):
    """One of two processes, with 4 and 2 of the examples."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    summaries = {}
    for name, make in METRICS.items():
        metric = feed_all(make(), [1, 3]) if rank == 0 else feed_all(make(), [2], 4)
        summaries[name] = metric.gather().summary()
    torch.save(summaries, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    """Each of two processes, with unequal shares, sums up all of the examples in order."""
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        summaries = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        for name, whole in WHOLE.items():
            assert_same(summaries[name], whole())
