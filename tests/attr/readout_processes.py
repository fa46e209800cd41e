"""Small trainings of a readout bottleneck, alone and in processes of their own, which are killed or share the work."""

import json
import multiprocessing
import os
import pickle
import random
import signal
import sys
import warnings
from contextlib import contextmanager
from dataclasses import asdict, replace

import numpy as np
import torch
import torch._dynamo  # with torch's first optimiser it would be imported in each process anew
from safetensors.torch import load_file
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.data import DataLoader, Dataset, DistributedSampler, RandomSampler, TensorDataset

import captum_iba.attr._training
from captum_iba._files import write_atomically
from captum_iba.attr.layer_readout_iba import LayerReadoutIBA
from tests.literal import normal

N, SIZE, STEPS = 22, 8, 3  # rows, rows of a batch, batches of an epoch: the last one is shorter
FIT = {"epochs": 2, "learning_rate": 1e-2, "beta": 1.0, "show_progress": False}
READ = ("1", "2", "5")


def network(wide=3, dtype=torch.float64):
    """A classifier of 4 x 4 images; the bottleneck sits behind the first two modules."""
    layers = [nn.Conv2d(1, wide, 3, padding=1), nn.Tanh(), nn.Conv2d(wide, 4, 2, stride=2), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 3))
    for number, parameter in enumerate(model.parameters()):
        parameter.data = 0.7 * normal(*parameter.shape, seed=number)
    return model.to(dtype).eval()


IMAGES, LABELS = normal(N, 1, 4, 4, seed=50), torch.arange(N) % 3
_found = {}


def statistics(model, layer, readout_layers, seed=51):
    """Statistics by layer, estimated once."""
    key = (layer, readout_layers, seed)
    if key not in _found:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The feature statistics come from")
            readout = LayerReadoutIBA(model, model[layer], readout_layers=readout_layers)
            _found[key] = readout.estimate(normal(60, 1, 4, 4, seed=seed)).statistics
    return _found[key]


def make(model=None, layer=1, readout_layers=READ, seed=51, inside="", **settings):
    """A bottleneck with statistics, not trained yet; the network may lie inside another module."""
    model = network() if model is None else model
    known = statistics(network(), layer, readout_layers, seed)
    options = {"hidden_channels": (5, 4), **settings}
    names, at = [f"{inside}{name}" for name in readout_layers], model.get_submodule(f"{inside}{layer}")
    known = {f"{inside}{name}": each for name, each in known.items()}
    return LayerReadoutIBA(model, at, readout_layers=names, statistics=known, **options)


def batches(size=SIZE, n=N):
    return list(zip(IMAGES[:n].split(size), LABELS[:n].split(size), strict=True))


def weights(readout):
    return readout._current().network.state_dict()


def assert_same_weights(found, wanted, rtol=0.0):
    """Weights, or anything by name, equal bit for bit, or up to rounding."""
    assert found.keys() == wanted.keys()
    for name in wanted:
        if rtol:
            torch.testing.assert_close(found[name], wanted[name], rtol=rtol, atol=rtol)
        else:
            assert torch.equal(found[name], wanted[name]), name


def numbers(history):
    """A history but for the time it took."""
    return asdict(replace(history, seconds=0.0))


def parts_of(path):
    """Tensors and everything else of a file."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return load_file(path), header["__metadata__"]


def assert_same_training(found, wanted):
    """Two checkpoints hold the same but for the time: weights, Adam's state, position, history, statistics."""
    assert_same_weights(parts_of(found)[0], parts_of(wanted)[0])
    contents = [json.loads(parts_of(path)[1]["content"]) for path in (found, wanted)]
    for content in contents:
        content["seconds"] = None
    assert contents[0] == contents[1]


class Augmented(Dataset):
    """Images that every global generator has a hand in."""

    def __len__(self):
        return N

    def __getitem__(self, index):
        return IMAGES[index] + torch.rand(1) + np.random.rand() + random.random(), LABELS[index]


def own_generator(data=None, seed=5):
    return DataLoader(data or Augmented(), SIZE, shuffle=True, generator=torch.Generator().manual_seed(seed))


def own_sampler():
    data = Augmented()
    return DataLoader(data, SIZE, sampler=RandomSampler(data, generator=torch.Generator().manual_seed(5)))


DATA = {
    "list": batches,
    "shuffled": lambda: DataLoader(TensorDataset(IMAGES, LABELS), SIZE, shuffle=True),
    "augmented": lambda: DataLoader(Augmented(), SIZE, shuffle=True),
    "own generator": own_generator,
    "sampler's generator": own_sampler,
}


class Told:
    """Batches that tell when one is asked for; all else is the loader's."""

    def __init__(self, data, tell):
        self.data, self.tell = data, tell

    def __getattr__(self, name):
        return getattr(self.data, name)

    def __len__(self):
        return len(self.data)

    def __iter__(self):
        for batch in self.data:
            self.tell()
            yield batch
        self.tell()


class CtrlC:
    """Counts events and presses Ctrl-C at one of them."""

    def __init__(self, moment):
        self.left = moment

    def __call__(self, *_anything):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)

    @contextmanager
    def at_work(self, monkeypatch, model):
        """Events are passes of the model, the optimiser's steps from before and behind, and files being written."""
        hooks = [register_optimizer_step_pre_hook(self), register_optimizer_step_post_hook(self)]
        hooks.append(model.register_forward_hook(self))

        def write(path, content):
            self()
            write_atomically(path, content)
            self()

        with monkeypatch.context() as patch:
            patch.setattr("captum_iba.attr._readout_file.write_atomically", write)
            try:
                yield
            finally:
                for hook in hooks:
                    hook.remove()


def interrupted(monkeypatch, path, moment, data, validation, **options):
    """Train until the moment; whether it came before the end."""
    stop, model = CtrlC(moment), network()
    readout = make(model)
    with stop.at_work(monkeypatch, model):
        try:
            validation = None if validation is None else Told(validation, stop)
            readout.fit(Told(data, stop), validation, checkpoint=path, **{**FIT, **options})
        except KeyboardInterrupt:
            return True
    return False


def processes():
    """Processes that start from one which has imported this module, but has run nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


KILLED = {"epochs": 10, "checkpoint_every": 4, "seed": 3}


def run_and_die(path, log, moment):
    """A training that is killed, as by kill -9, at the given call of any function: ours, torch's or the library's.

    The steps that the optimiser has done are written to the log; without a moment, the number of calls.
    """
    torch.set_num_threads(1)
    output = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    left = moment or 0
    readout = make(**{"relu": True})

    def tell(optimizer, *_):
        step = next(iter(optimizer.state.values()))["step"]
        os.write(output, f"{int(step)}\n".encode())

    def count(_frame, event, _argument):
        nonlocal left
        if event in ("call", "c_call"):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_post_hook(tell)
    validation = DataLoader(TensorDataset(IMAGES, LABELS), 10)
    sys.setprofile(count)
    readout.fit(DataLoader(Augmented(), SIZE, shuffle=True), validation, checkpoint=path, **{**FIT, **KILLED})
    sys.setprofile(None)
    os.write(output, f"calls {-left}\n".encode())


def sampled(rank, size, world_size):
    """A loader whose sampler gives each process its own rows."""
    data = TensorDataset(IMAGES, LABELS)
    return DataLoader(data, size, sampler=DistributedSampler(data, world_size, rank, shuffle=False))


SHARED = {
    "even": {"size": 4, "n": 20},
    "uneven": {"size": 5, "n": 20},
    "last of one row": {"size": 7, "n": 22},
    "rows of one": {"size": 1, "n": 3},
}


def run_one_of(rank, world_size, port, folder):
    """One of several processes that share trainings, one after the other; what they find is written to a file."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    write_down(folder, rank, world_size)


def write_down(folder, rank, world_size):
    """Trainings of each kind in this process: weights, history and the steps at which it wrote a checkpoint."""
    found = {}
    write, written = captum_iba.attr._training.write_readout, []

    def note(*arguments):
        written.append(arguments[-1].step)
        write(*arguments)

    captum_iba.attr._training.write_readout = note

    def train(name, data, validation=None, **options):
        written.clear()
        readout = make().fit(data, validation, **{**FIT, **options})
        found[name] = weights(readout), readout.history, list(written)

    for name, sizes in SHARED.items():
        train(name, batches(**sizes), batches(3))
    train("shuffled", DataLoader(Augmented(), 5, shuffle=True))
    train("sampler", sampled(rank, 3, world_size), sampled(rank, 4, world_size))
    path = folder / "checkpoint"
    train("stopped", batches(7), checkpoint=path, max_steps=3, checkpoint_every=2)
    train("resumed", batches(7), checkpoint=path, checkpoint_every=2)
    train("again", batches(7), checkpoint=path)
    train("for one", batches(7), checkpoint=folder / "for one", max_steps=6)
    with open(folder / f"output{rank}", "wb") as file:
        pickle.dump(found, file)
