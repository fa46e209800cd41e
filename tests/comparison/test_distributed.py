"""Laws of several processes: together they find what one finds, and one goes on where several stopped."""

import pickle
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.comparison.comparison_cases import Canvases, assert_same_results, quick
from tests.comparison.comparison_processes import processes, rows_in, run_one_of

N = 5


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def together(tmp_path, store, n=N, world_size=2, **options):
    """Results of each process, and which examples each loaded."""
    port, output = free_port(), tmp_path / f"output{free_port()}"
    arguments = [(rank, world_size, port, n, store, str(output), options) for rank in range(world_size)]
    workers = [processes().Process(target=run_one_of, args=own) for own in arguments]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    return [pickle.loads(Path(f"{output}.{rank}").read_bytes()) for rank in range(world_size)]


@pytest.fixture(scope="module")
def alone():
    return quick(Canvases(N, unreadable=(1,))).results


def shares(found):
    """Which examples each process explained; the first is looked at by all, for its shape."""
    return [loaded[1:] for _, loaded in found]


@pytest.mark.parametrize("world_size", [2, 3])
def test_several_processes_equal_one(tmp_path, alone, world_size):
    """Each gets every result and computes its share; an example that cannot be read is listed once."""
    found = together(tmp_path, None, world_size=world_size)
    for results, _ in found:
        assert_same_results(results, alone, atol=1e-6)
    assert shares(found) == [list(range(rank, N, world_size)) for rank in range(world_size)]
    assert not list(tmp_path.glob("*.db"))


def test_two_store_and_one_goes_on(tmp_path, alone):
    """All results of two processes are in the one file, without traces of the second; one process computes nothing
    again, and adds what is new to neither."""
    path = tmp_path / "results.db"
    found = together(tmp_path, path)
    assert_same_results(found[0][0], alone, atol=1e-6)
    assert [file.name for file in tmp_path.glob("*.db")] == ["results.db"] and rows_in(path)[0] == N
    examples = Canvases(N, unreadable=(1,))
    assert_same_results(quick(examples, store=path).results, found[0][0])
    assert examples.loaded == [0]


def test_one_stores_and_two_go_on(tmp_path, alone):
    """What one process left undone is shared out among two; what is done stays."""
    path = tmp_path / "results.db"

    class Stops(Canvases):
        def load(self, index):
            if index == 2:
                raise KeyboardInterrupt
            return super().load(index)

    with pytest.raises(KeyboardInterrupt):
        quick(Stops(N, unreadable=(1,)), store=path)
    assert rows_in(path)[0] == 2
    found = together(tmp_path, path)
    assert shares(found) == [[2, 4], [3]]
    for results, _ in found:
        assert_same_results(results, alone, atol=1e-6)
    assert shares(together(tmp_path, path)) == [[], []]


def test_what_the_second_of_two_left_behind_is_taken_over(tmp_path, alone):
    """Two that were stopped leave a file each; whoever goes on, one or two, uses both and computes the rest."""
    for number, go_on in enumerate((1, 2)):
        path = tmp_path / f"results{number}.db"
        quick(Canvases(N, unreadable=(1,)), store=path)
        keep(path, path.with_name(f"results{number}.rank1.db"), first={0, 2}, second={1, 3})
        if go_on == 2:
            found = together(tmp_path, path)
            assert shares(found) == [[4], []]
            results = found[1][0]
        else:
            examples = Canvases(N, unreadable=(1,))
            results = quick(examples, store=path).results
            assert examples.loaded == [0, 4]
        assert_same_results(results, alone, atol=1e-6)
        assert rows_in(path)[0] == N and not path.with_name(f"results{number}.rank1.db").exists()


def keep(path, other, first, second):
    """Leave some examples in a store and others in a copy of it."""
    other.write_bytes(path.read_bytes())
    for file, kept in ((path, first), (other, second)):
        connection = sqlite3.connect(file)
        with connection:
            for i in set(range(N)) - kept:
                for table in ("examples", "results"):
                    connection.execute(f"DELETE FROM {table} WHERE key = ?", (f"canvas {i}",))
        connection.close()


READOUT = {
    "methods": ("LayerReadoutIBA", "Random"),
    "metrics": ("degradation 14x14", "bounding box"),
    "method_options": {"LayerReadoutIBA": {"epochs": 2, "hidden_channels": (4, 4)}},
}


@pytest.mark.parametrize("n", [N, 1])
def test_each_process_trains_the_same_readout(tmp_path, n):
    """A method that is trained is trained by each process that has an example, alone: no process waits for one that has
    none, and together they find what one finds."""
    path = tmp_path / "results.db"
    found = together(tmp_path, path, n, **READOUT)
    wanted = quick(Canvases(n, unreadable=(1,)), **READOUT).results
    assert [info.reason for info in wanted.methods] == ["", ""] and shares(found) == [
        list(range(0, n, 2)),
        [1, 3][: n - 1],
    ]
    for results, _ in found:
        assert_same_results(results, wanted, atol=1e-6)
        assert results.methods[0].fit_seconds > 0
    rest = Canvases(n, unreadable=(1,))
    assert_same_results(quick(rest, store=path, **READOUT).results, found[0][0])
    assert rest.loaded == [0]


SCRIPT = """
import os, pickle, sys
sys.path.insert(0, {root!r})
from tests.comparison.comparison_processes import Canvases, quietly
found = [quietly(Canvases({n}, unreadable=(1,)), store=store).results for store in (None, {store!r}, None, {store!r})]
with open({output!r} + os.environ["RANK"], "wb") as file:
    pickle.dump(found, file)
"""


def test_torchrun_starts_it(tmp_path, alone):
    """A script with several comparisons, one after the other, as torchrun runs it: each process has all results."""
    root, output, store = Path(__file__).parents[2], str(tmp_path / "output"), tmp_path / "results.db"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(root), n=N, store=str(store), output=output))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    run = subprocess.run([*command, str(script)], capture_output=True, text=True, timeout=300, cwd=root, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    for rank in (0, 1):
        for results in pickle.loads(Path(f"{output}{rank}").read_bytes()):
            assert_same_results(results, alone, atol=1e-6)
    assert rows_in(store)[0] == N
