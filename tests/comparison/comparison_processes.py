"""Comparisons in processes of their own, which are killed or share the work."""

import multiprocessing
import os
import pickle
import signal
import sqlite3
import warnings

import torch
import torch._dynamo  # with torch's first optimiser it would be imported in each process anew

from captum_iba.comparison.store import Store
from captum_iba.demo import load_model
from tests.comparison.comparison_cases import Canvases, calibration, quick

# drawn once, before processes are forked; nothing may run backwards here, which torch forbids before a fork
calibration(), Canvases(12)


def processes():
    """Processes that start from one which has imported this module, but has run nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def rows_in(path):
    """Numbers of examples and of results in a store."""
    if not path.exists() or path.stat().st_size == 0:
        return 0, 0
    connection = sqlite3.connect(path)
    counts = [connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("examples", "results")]
    connection.close()
    return tuple(counts)


def quietly(dataset, **options):
    """A comparison without the warning that its statistics are rough."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The feature statistics come from")
        return quick(dataset, **options)


def run_and_die(path, n, moment):
    """A comparison that is killed, as by kill -9, at the given event.

    Events are what the store is told and what goes through the head of the network, so that it may happen in the
    middle of a transaction as well as of an attribution.
    """
    torch.set_num_threads(1)
    left = moment

    def count(*_anything):
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    make = Store.__init__

    def fragile(self, *arguments):
        make(self, *arguments)
        self._connection.set_trace_callback(count)

    Store.__init__ = fragile
    model = load_model()
    model.head.register_forward_hook(count)
    quietly(Canvases(n), store=path, model=model)


def run_one_of(rank, world_size, port, n, path, output, options):
    """One of several processes that share a comparison; what it returns and what it loaded is written to a file."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    examples = Canvases(n, unreadable=(1,))
    results = quietly(examples, store=path, **options).results
    with open(f"{output}.{rank}", "wb") as file:
        pickle.dump((results, examples.loaded), file)
