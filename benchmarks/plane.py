"""The classical experiment of the information plane: what tanh and ReLU compress, by which estimator.

    python -m benchmarks.plane [--seeds 2] [--epochs 4000] [--threads 1] [--noisy] [--effects] [--skip-estimators]
                               [--data FILE] [--plot FILE]

The 12-10-7-5-4-3-2 network of Shwartz-Ziv and Tishby on 80 % of the icosahedron's 4096 patterns (or of your own file),
Adam, batch 256; information on all rows, in bits. For each activation: the last hidden layer by four estimators over
the epochs; how much of its I(X;T), by the upper bound of KDE, is lost after its maximum; which estimators violate the
data-processing inequality. ``--effects`` adds tanh networks trained on fewer rows, with fewer or more layers, by full
batches, and with an orthonormality penalty. ``--noisy`` trains nothing new: it measures the trained networks with
noise of deviation 0.05 put into each hidden layer and passed on. ``--plot`` draws tanh, the mean of the seeds, with
the limit that the information bottleneck sets.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from captum_iba.information import InformationPlane, noisy_network_information
from captum_iba.information.binning import Binning
from captum_iba.information.estimator import Estimator
from captum_iba.information.noise_channel import KDE, SamplePropagation
from captum_iba.information.szt import HIDDEN, read_szt, szt_dataset, tishby_network, train_epochs

ESTIMATORS: dict[str, Estimator] = {
    "KDE upper": KDE(noise_var=1e-3),
    "floor .07": Binning(width=0.07, correction=False),
    "30 bins": Binning(bins=30, limits=(-1.0, 1.0), correction=False),
}
DRAWN = {"noise": SamplePropagation(noise_var=1e-3, n_draws=2), "KDE lower": KDE(noise_var=1e-3, bound="lower")}


@dataclass
class Setting:
    """One way to train."""

    name: str
    activation: str = "tanh"
    hidden: tuple[int, ...] = HIDDEN
    rows: float = 0.8
    longer: int = 1
    training: dict[str, Any] = field(default_factory=dict)


def checkpoints(n_epochs: int, n_points: int = 25) -> list[int]:
    """Epochs, spread evenly over their logarithm; 0 and the last included."""
    spread = torch.logspace(0, torch.log10(torch.tensor(float(max(n_epochs, 1)))).item(), n_points)
    return sorted({0, *(round(value) for value in spread.tolist()), n_epochs})


def run(setting: Setting, seed: int, data: tuple[Tensor, Tensor], n_epochs: int, log: Callable[..., None]) -> Any:
    """Train one network and log its checkpoints: the network, both accuracies, and the seconds without the logs."""
    x, y = data
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    n_train = round(setting.rows * len(x))
    # the same test rows for all sizes of the training part
    train, test = order[:n_train], order[round(0.8 * len(x)) :]
    model = tishby_network(setting.activation, setting.hidden, seed)
    steps, seconds = set(checkpoints(n_epochs)), 0.0
    start = time.process_time()
    for epoch in train_epochs(model, x[train], y[train], n_epochs, seed=seed, **setting.training):
        if epoch in steps:
            seconds += time.process_time() - start
            log(epoch, model, x, y, run=seed)
            start = time.process_time()
    accuracy = [float((model(x[part]).argmax(1) == y[part]).float().mean()) for part in (train, test)]
    return model, accuracy, seconds


def compare(activation: str, options: argparse.Namespace, data: tuple[Tensor, Tensor]) -> InformationPlane:
    """All estimators on the same networks."""
    layers = [f"hidden{number}" for number in range(1, len(HIDDEN) + 1)]
    planes = {name: InformationPlane(layers, one) for name, one in ESTIMATORS.items()}
    drawn = {name: InformationPlane(layers[-1:], one) for name, one in DRAWN.items()}
    few = {*checkpoints(options.epochs)[::6], options.epochs}

    def log(epoch: int, *args: Any, run: int) -> None:
        for plane in planes.values():
            plane.log(epoch, *args, run=run)
        if epoch in few and run == 0:
            for plane in drawn.values():
                plane.log(epoch, *args, run=run)

    print(f"\n{activation}, {options.epochs} epochs")
    for seed in range(options.seeds):
        start = time.process_time()
        model, accuracy, seconds = run(Setting(activation, activation), seed, data, options.epochs, log)
        whole = time.process_time() - start
        losses = {name: plane.result(seed).loss_after_maximum(layers[-1]) for name, plane in planes.items()}
        print(
            f"  seed {seed}: accuracy {accuracy[0]:.3f} / {accuracy[1]:.3f}; processor time {seconds:.0f} s, with "
            f"all estimates {whole:.0f} s; bits lost after the maximum: "
            + ", ".join(f"{name} {loss:.2f}" for name, loss in losses.items()),
            flush=True,
        )
        if options.noisy:
            noisy(model, data[0], layers)
    table(planes | drawn, layers[-1])
    for name, plane in planes.items():
        print(f"  data-processing inequality, {name}, seed 0: {plane.result(0).check_data_processing()}")
    return planes["KDE upper"]


def noisy(model: nn.Module, x: Tensor, layers: list[str]) -> None:
    start = time.process_time()
    found = noisy_network_information(model, layers, x, n_inputs=32)
    values = ", ".join(f"{float(one.value):.2f} ± {float(one.standard_error):.2f}" for one in found.values())
    print(f"    with noise of deviation 0.05 in each layer: {values} bits ({time.process_time() - start:.0f} s)")


def table(planes: dict[str, InformationPlane], layer: str) -> None:
    """I(X;T) by estimator and I(T;Y) by the first, seed 0."""
    results = {name: plane.result(0) for name, plane in planes.items()}
    cells = {
        name: {result.step[place]: result.i_xt[place] for place in result.path(layer)}
        for name, result in results.items()
    }
    first = next(iter(results.values()))
    about_y = {first.step[place]: first.i_ty[place] for place in first.path(layer)}
    print(f"  seed 0, {layer}, I(X;T) in bits\n  epoch " + "".join(f"{name:>11s}" for name in cells) + "  I(T;Y) KDE")
    for step in first.step[:: len(first.layers)]:
        values = "".join(f"{column[step]:11.2f}" if step in column else " " * 11 for column in cells.values())
        print(f"  {step:5g} {values}{about_y[step]:12.2f}")


def effects(options: argparse.Namespace, data: tuple[Tensor, Tensor]) -> None:
    """What changes the compression of tanh's last hidden layer."""
    settings = [
        Setting("as published"),
        Setting("40 % of the rows", rows=0.4),
        Setting("10 % of the rows", rows=0.1),
        Setting("2 hidden layers (10-3)", hidden=(10, 3)),
        Setting("3 hidden layers (10-5-3)", hidden=(10, 5, 3)),
        Setting("7 hidden layers", hidden=(10, 9, 8, 7, 5, 4, 3)),
        Setting("full batch", training={"batch_size": None}),
        Setting("full batch, as many steps", longer=13, training={"batch_size": None}),
        Setting("orthonormal 0.01", training={"orthonormal": 0.01}),
        Setting("orthonormal 0.1", training={"orthonormal": 0.1}),
        Setting("ReLU", activation="relu"),
        Setting("ReLU, orthonormal 0.1", activation="relu", training={"orthonormal": 0.1}),
    ]
    print(f"\n{'last hidden layer, KDE upper, bits; mean of seeds':50s} maximum   last   lost  train   test")
    for setting in settings:
        last = f"hidden{len(setting.hidden)}"
        plane, accuracies = InformationPlane([last]), []
        for seed in range(options.seeds):
            accuracies.append(run(setting, seed, data, setting.longer * options.epochs, plane.log)[1])
        results = [plane.result(seed) for seed in range(options.seeds)]
        rows = [
            (max(result.i_xt), result.i_xt[-1], result.loss_after_maximum(last), *accuracy)
            for result, accuracy in zip(results, accuracies, strict=True)
        ]
        bits, accuracy = torch.tensor(rows).mean(dim=0).split([3, 2])
        cells = [f"{value:7.2f}" for value in bits] + [f"{value:7.3f}" for value in accuracy]
        print(f"{setting.name:50s}" + "".join(cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--effects", action="store_true", help="the table of what changes compression")
    parser.add_argument("--noisy", action="store_true", help="noise in the network itself")
    parser.add_argument("--skip-estimators", action="store_true", help="with --effects: that table alone")
    parser.add_argument("--data", help="a CSV or npz of 12 binary columns and a label")
    parser.add_argument("--plot", help="where to write the information plane of tanh")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    data = szt_dataset() if options.data is None else read_szt(options.data)
    if not options.skip_estimators:
        planes = {activation: compare(activation, options, data) for activation in ("tanh", "relu")}
        if options.plot:
            joint = torch.stack([(data[1] == label).double() for label in (0, 1)], dim=1)
            planes["tanh"].result().plot(limit=joint).savefig(options.plot, dpi=120)
            print(f"wrote {options.plot}")
    if options.effects:
        effects(options, data)


if __name__ == "__main__":
    main()
