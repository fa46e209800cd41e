"""Laws of gathering: what is evaluated in parts, in any order of calls and processes, sums up to the whole."""

import dataclasses

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st

from captum_iba import LayerIBA
from captum_iba.errors import CaptumIBAWarning, InvalidArgumentError, InvalidTypeError
from captum_iba.metrics import (
    BoundingBox,
    Degradation,
    ParameterRandomization,
    SensitivityN,
    Sufficiency,
    bounding_box_ratio,
    degradation,
    sensitivity_n,
    sufficiency,
)
from captum_iba.metrics._accumulate import on_cpu
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
    names += [name for name in ("curve", "x", "pooled", "morf_curve") if hasattr(wanted, name)]
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
    gathered = metric.gather()  # without processes the same in a new object
    assert gathered is not metric
    assert_same(gathered.gather().summary(), wanted)
    feed(gathered, slice(0, 1))
    assert_same(metric.summary(), wanted)
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


@pytest.mark.parametrize("name", METRICS)
def test_only_like_objects_are_joined(name):
    """Objects of another class, or with another option, are refused, and the difference is named."""
    metric = feed_all(METRICS[name](), [2])
    for other_name, make in METRICS.items():
        other = make()
        if type(other) is not type(metric):
            names = f"{type(other).__name__} cannot be merged into a {type(metric).__name__}"
            with pytest.raises(InvalidTypeError, match=names):
                metric.merge(other)
        elif other_name != name:
            with pytest.raises(InvalidArgumentError, match="cannot be joined; wanted the same options"):
                metric.merge(other)
    assert metric.summary().per_sample.shape == (2,)


def test_options_are_compared_by_value():
    """Defaults, tensors and functions are equal if they say the same; how the work is done may differ."""
    like = Degradation(MODEL, baselines=torch.zeros(1, 3, 1, 1), output=torch.sigmoid)
    same = Degradation(
        MODEL,
        baselines=torch.zeros(1, 3, 1, 1),
        output=torch.sigmoid,
        tile_size=None,
        max_examples_per_batch=3,
        show_progress=True,
    )
    assert like.merge(same) is like
    for option, words in (
        ({"baselines": torch.full((1, 3, 1, 1), 1e-6)}, r"baselines=tensor \[1, 3, 1, 1\].* and baselines=tensor"),
        ({"baselines": torch.zeros(1, 3, 1)}, r"baselines=tensor \[1, 3, 1, 1\].* and baselines=tensor \[1, 3, 1\]"),
        ({"baselines": (torch.zeros(1, 3, 1, 1),)}, r"and baselines=\(tensor"),
        ({"output": torch.relu}, "output=.*sigmoid.* and output=.*relu"),
        ({"seed": 1}, "seed=0 and seed=1"),
        ({"n_steps": 4}, "n_steps=None and n_steps=4"),
    ):
        options = {"baselines": torch.zeros(1, 3, 1, 1), "output": torch.sigmoid, **option}
        with pytest.raises(InvalidArgumentError, match=words):
            like.merge(Degradation(MODEL, **options))
    one, other = ([lambda x: x][0] for _ in range(2))
    assert one is not other
    Degradation(MODEL, output=one).merge(Degradation(MODEL, output=other))


def test_results_come_to_the_cpu_whatever_holds_them():
    """Dataclasses, tuples, lists and dicts of any depth; what holds no tensor stays, and the original too."""

    @dataclasses.dataclass(frozen=True)
    class Nested:
        values: tuple
        other: dict

    away = torch.ones(2, requires_grad=True)
    value = Nested((away, [away, "b"]), {"c": (away, None), "d": 3})
    found = on_cpu(value)
    assert isinstance(found, Nested) and found.values[1][1] == "b" and found.other["d"] == 3
    for tensor in (found.values[0], found.values[1][0], found.other["c"][0]):
        assert tensor.device.type == "cpu" and not tensor.requires_grad
    assert value.values[0] is away


MISPLACED = {
    "target": 1,
    "feature_mask": torch.zeros(1),
    "additional_forward_args": (1,),
    "mask": torch.zeros(1),
    "inputs": X,
}


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (
            lambda **options: Degradation(MODEL, **options),
            ["target", "feature_mask", "additional_forward_args", "inputs"],
        ),
        (lambda **options: SensitivityN(MODEL, 2, **options), ["target", "feature_mask", "additional_forward_args"]),
        (
            lambda **options: Sufficiency(MODEL, MODEL[2], STATISTICS, **options),
            ["target", "mask", "additional_forward_args"],
        ),
        (lambda **options: ParameterRandomization(MODEL, lambda *x: MAPS, **options), ["target", "inputs"]),
    ],
)
def test_what_belongs_to_a_batch_is_no_option(make, names):
    """It is refused when the object is made, with its name and where it belongs."""
    for name in names:
        with pytest.raises(InvalidTypeError, match=rf"{name} belongs to a batch.*evaluate\(inputs"):
            make(**{name: MISPLACED[name]})
    with pytest.raises(InvalidTypeError, match="tile_sise.*Its options are .*seed"):
        make(tile_sise=3)


def test_classes_describe_themselves():
    """A name, and that higher is better."""
    for name, make in METRICS.items():
        assert make().name == name.split(",")[0] and make().higher_is_better


def work(rank, folder):
    """One of two processes, with 4 and 2 of the examples."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    summaries = {}
    for name, make in METRICS.items():
        metric = feed_all(make(), [1]) if rank == 0 else feed_all(make(), [2], 4)
        early = metric.gather()
        if rank == 0:
            feed_all(metric, [3], 1)
        summaries[name] = metric.gather().summary(), early.summary(), metric.summary()
    torch.save(summaries, f"{folder}/{rank}.pt")
    for other, error in (
        (Degradation(MODEL, tile_size=5 + rank), InvalidArgumentError),
        ((BoundingBox, lambda: Degradation(MODEL))[rank](), InvalidTypeError),
    ):
        with pytest.raises(error, match="cannot be joined"):
            other.gather()
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    """Each of two processes, with unequal shares, sums up all of the examples in order.

    Gathering leaves the objects as they were, so that a second time gathers what there is then, once.
    """
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    for rank, own in enumerate((4, 2)):
        summaries = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        for name, whole in WHOLE.items():
            everything, early, single = summaries[name]
            assert_same(everything, whole())
            assert early.per_sample.shape == (3,) and single.per_sample.shape == (own,)
