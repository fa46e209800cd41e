"""Laws of resuming: killed or interrupted at any moment, a comparison goes on and ends as if nothing had happened."""

import random
import signal

import numpy as np
import pytest
import torch

from captum_iba.comparison import MetricInfo
from captum_iba.comparison.store import Store
from captum_iba.demo import load_model
from tests.comparison.comparison_cases import CHEAP, Canvases, assert_same_results, quick
from tests.comparison.comparison_processes import processes, rows_in, run_and_die

N = 12


def test_killed_ten_times_it_ends_as_if_never_killed(tmp_path):
    """kill -9 at ten random moments, in the middle of attributions and of transactions: scores, curves, maps and
    examples are those of an uninterrupted run, no example is lost, and none is half there."""
    path, generator = tmp_path / "results.db", random.Random(0)
    done = []
    for _ in range(10):
        process = processes().Process(target=run_and_die, args=(path, N, generator.randint(5, 75)))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        examples, results = rows_in(path)
        assert results == examples * len(CHEAP)
        done.append(examples)
    assert done == sorted(done) and 0 < done[-1] < N, done
    examples = Canvases(N)
    found = quick(examples, store=path)
    # the first is looked at in any case, for its shape
    assert examples.loaded == [0, *range(done[-1], N)] and rows_in(path) == (N, N * len(CHEAP))
    assert_same_results(found.results, quick(Canvases(N)).results)


@pytest.mark.parametrize("where", ["method", "metric", "store"])
def test_interrupted_it_keeps_what_it_has(tmp_path, monkeypatch, where):
    """Ctrl-C ends the run at once; what was computed is stored, and the next run computes only the rest."""
    path, calls = tmp_path / "results.db", []

    def interrupt(wanted):
        calls.append(wanted)
        if where == wanted and calls.count(wanted) == 3:
            raise KeyboardInterrupt

    def method(x, _y):
        interrupt("method")
        return x

    class Metric:
        info, needs_boxes = MetricInfo("m", "...", None), False

        def measure(self, state, maps, explain):
            interrupt("metric")
            return {"score": float(maps.sum())}

        def gather(self, records):
            return np.array([record["score"] for record in records]), None

    write = Store.add
    monkeypatch.setattr(Store, "add", lambda self, record: (interrupt("store"), write(self, record)))
    with pytest.raises(KeyboardInterrupt):
        quick(Canvases(5), {"own": method}, [Metric()], store=path)
    assert rows_in(path) == (2, 2)
    where, calls = "", []
    found = quick(Canvases(5), {"own": method}, [Metric()], store=path)
    assert calls == ["method", "metric", "store"] * 3
    assert_same_results(found.results, quick(Canvases(5), {"own": method}, [Metric()]).results)


def test_a_finished_comparison_is_read_and_not_computed(tmp_path):
    """The third run equals the first, with its time and memory, and runs the model only to know its layers."""
    path = tmp_path / "results.db"
    first = quick(Canvases(2, unreadable=(1,)), store=path).results
    model, seen = load_model(), []
    model.head.register_forward_hook(lambda *_: seen.append(1))
    examples = Canvases(2, unreadable=(1,))
    again = quick(examples, store=str(path), model=model).results
    assert_same_results(again, first)
    assert again.methods == first.methods and examples.loaded == [0] and len(seen) <= 2


def test_what_a_method_draws_does_not_depend_on_the_interruption(tmp_path):
    """A method that draws from the global generators gives an example the same map before and after."""
    draw = {"draws": lambda x, _y: torch.rand_like(x) + float(np.random.rand())}
    whole = quick(Canvases(3), draw, ["sensitivity-n"]).results
    path, stop = tmp_path / "results.db", []

    class Stops(Canvases):
        def load(self, index):
            stop.append(index)
            if len(stop) == 3:  # once for its shape, then two examples
                raise KeyboardInterrupt
            return super().load(index)

    with pytest.raises(KeyboardInterrupt):
        quick(Stops(3), draw, ["sensitivity-n"], store=path)
    assert rows_in(path) == (1, 1)
    assert_same_results(quick(Canvases(3), draw, ["sensitivity-n"], store=path).results, whole)
