"""Laws of processes: a training that is killed goes on as if it had not been, and several processes train as one."""

import pickle
import random
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from tests.attr.readout_processes import (
    FIT,
    IMAGES,
    KILLED,
    LABELS,
    SHARED,
    STEPS,
    Augmented,
    assert_same_training,
    assert_same_weights,
    batches,
    make,
    numbers,
    processes,
    run_and_die,
    run_one_of,
    weights,
)

RTOL = 1e-10


def run(path, log, moment=None):
    """Exit status of a training in a process of its own, the steps it had done, and the last line of its log."""
    process = processes().Process(target=run_and_die, args=(path, log, moment))
    process.start()
    process.join(120)
    lines = log.read_text().split("\n")
    return process.exitcode, [int(line) for line in lines if line.isdigit()], lines[-2] if len(lines) > 1 else ""


def test_killed_five_times_it_ends_as_if_never_killed(tmp_path):
    """kill -9 at five random calls of any function: a checkpoint is whole at any time, at most the steps since the
    last one are lost, and weights, Adam's state and history are those of an uninterrupted training, bit for bit."""
    path, wanted, log, generator = tmp_path / "killed", tmp_path / "whole", tmp_path / "log", random.Random(1)
    exitcode, steps, last = run(wanted, log)
    assert exitcode == 0 and steps == list(range(1, STEPS * KILLED["epochs"] + 1))
    calls, done = int(last.removeprefix("calls ")), []
    for _ in range(5):
        before = done[-1] if done else 0
        exitcode, steps, _ = run(path, log, int(calls * generator.uniform(0.02, 0.25)))
        assert exitcode == -signal.SIGKILL
        assert steps == list(range(before + 1, before + len(steps) + 1))
        # a step that is told is done, but for its checkpoint, which comes next
        whole = (steps[-1] - 1 if steps else before) // KILLED["checkpoint_every"] * KILLED["checkpoint_every"]
        found = len(make().load(path).history.training) if path.exists() else 0
        assert whole <= found <= max([before, *steps])
        done.append(found)
    assert done == sorted(done) and 0 < done[-1] < STEPS * KILLED["epochs"], done
    assert run(path, log)[0] == 0
    assert_same_training(path, wanted)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def together(folder):
    """What each of two processes found."""
    port = free_port()
    workers = [processes().Process(target=run_one_of, args=(rank, 2, port, folder)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    return [pickle.loads((folder / f"output{rank}").read_bytes()) for rank in range(2)]


def assert_same_history(found, wanted):
    """Curves equal up to rounding; steps, epochs, rows and hits exactly."""
    for kind in ("training", "validation"):
        ours, theirs = numbers(found)[kind], numbers(wanted)[kind]
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert one == pytest.approx(other, rel=RTOL, abs=RTOL)


def assert_as_alone(together, name, readout):
    for found in together:
        assert_same_weights(found[name][0], weights(readout), RTOL)
        assert_same_history(found[name][1], readout.history)


@pytest.mark.parametrize("name", SHARED)
def test_two_processes_equal_one(together, name):
    """Batches that split evenly, unevenly or not at all: each process has the weights and curves of one alone."""
    assert_as_alone(together, name, make().fit(batches(**SHARED[name]), batches(3), **FIT))


def test_two_processes_draw_the_same(together):
    """Where the data are shuffled and augmented, both processes see the same, as one alone does."""
    assert_as_alone(together, "shuffled", make().fit(DataLoader(Augmented(), 5, shuffle=True), **FIT))


def test_each_process_trains_on_its_samplers_rows(together):
    """With a DistributedSampler the batches of both are one batch, its rows those of the first, then of the second."""

    def joined(size):
        order = [
            torch.cat([torch.arange(start + rank, min(start + 2 * size, 22), 2) for rank in range(2)])
            for start in range(0, 22, 2 * size)
        ]
        return [(IMAGES[rows], LABELS[rows]) for rows in order]

    assert_as_alone(together, "sampler", make().fit(joined(3), joined(4), **FIT))


def test_the_first_process_writes_and_both_go_on(together, folder, tmp_path):
    """Of two only the first writes; stopped after three steps they go on to what one alone finds, and a third time
    there is nothing left to do or to write."""
    alone = make().fit(batches(7), **FIT)
    assert [found["stopped"][2] for found in together] == [[2, 3], []]
    assert [sorted(set(found["resumed"][2])) for found in together] == [[4, 6, 8], []]
    assert [found["again"][2] for found in together] == [[], []]
    for name in ("resumed", "again"):
        assert_as_alone(together, name, alone)
    copy = shutil.copy(folder / "for one", tmp_path / "checkpoint")
    one = make().fit(batches(7), checkpoint=copy, **FIT)
    assert_as_alone(together, "resumed", one)
    assert {file.name for file in folder.iterdir()} == {"checkpoint", "for one", "output0", "output1"}


SCRIPT = """
import os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.attr.readout_processes import write_down
write_down(Path({folder!r}), int(os.environ["RANK"]), 2)
"""


def test_torchrun_starts_it(tmp_path, together):
    """Several trainings, one after the other, as torchrun runs them, are those of processes started by hand."""
    root, script = Path(__file__).parents[2], tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(root), folder=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    result = subprocess.run([*command, str(script)], capture_output=True, text=True, timeout=300, cwd=root, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    for rank in (0, 1):
        found = pickle.loads((tmp_path / f"output{rank}").read_bytes())
        assert found.keys() == together[rank].keys()
        for name, (state, history, written) in together[rank].items():
            assert_same_weights(found[name][0], state, RTOL)
            assert_same_history(found[name][1], history)
            assert found[name][2] == written
