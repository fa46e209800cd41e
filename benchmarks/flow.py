"""Neural Information Flow on small tables: units removed, features ranked, and pruning beside simpler orders.

    python -m benchmarks.flow units [--seeds 5] [--estimator ksg] [--csv banknote.csv]
    python -m benchmarks.flow features [--seeds 5] [--estimator ksg] [--csv banknote.csv]
    python -m benchmarks.flow contest [--seeds 5] [--estimator ksg]
    python -m benchmarks.flow null [--draws 1000]
    python -m benchmarks.flow plot FILE

``units``: constant units removed, by how much an output changed, accuracy before and after on the data of the fit and
on held-out data; then the same for units without flow. ``features``: Spearman's correlation with raw mutual information
of a feature and the label, for NIF, NIF times weights, and Captum's IntegratedGradients and ShapleyValueSampling, and
the Kolmogorov-Smirnov test of the same. ``contest``: how many of 32 hidden units go, weakest first, before held-out
accuracy falls below the whole network's. ``null``: estimates of independent columns. ``plot``: a graph. Data: Iris and
breast cancer (its four columns of highest mutual information with the label) of scikit-learn, and for the contest Wine
and all of breast cancer; ``--csv`` adds a table of numbers whose last column is the label.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from captum.attr import IntegratedGradients, ShapleyValueSampling
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.feature_selection import mutual_info_classif
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from captum_iba.errors import CaptumIBAWarning
from captum_iba.information import NeuralInformationFlow, ks_test, read_labelled_csv, spearman
from captum_iba.information._flow_null import independent_estimates
from captum_iba.information.estimator import as_estimator
from captum_iba.information.generators import generator_of

STEPS, LEARNING_RATE = 500, 1e-2
HIDDEN = ((10,), (8, 6))


@dataclass
class Table:
    """Rows to train on and rows held out, standardised by the first."""

    name: str
    x: Tensor
    y: Tensor
    held_x: Tensor
    held_y: Tensor


def split(name: str, values: object, labels: object, columns: int | None = None) -> Table:
    x, held_x, y, held_y = train_test_split(values, labels, test_size=0.3, random_state=0, stratify=labels)
    if columns is not None:
        best = mutual_info_classif(x, y, random_state=0).argsort()[::-1][:columns]
        x, held_x = x[:, best], held_x[:, best]
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    x, held_x = (torch.tensor((part - mean) / deviation, dtype=torch.float32) for part in (x, held_x))
    return Table(name, x, torch.tensor(y), held_x, torch.tensor(held_y))


def small_tables(csv: str | None) -> list[Table]:
    tables = [
        split("Iris", *load_iris(return_X_y=True)),
        split("breast cancer, 4 columns", *load_breast_cancer(return_X_y=True), columns=4),
    ]
    if csv:
        read = read_labelled_csv(csv)
        tables.append(split(csv, read.inputs.numpy(), read.labels.numpy()))
    return tables


def trained(table: Table, hidden: tuple[int, ...], seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in pairwise([table.x.shape[1], *hidden, int(table.y.max()) + 1]):
        layers += [nn.Linear(a, b), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(table.x), table.y).backward()
        optimizer.step()
    return model.eval()


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(dim=1) == y).double().mean())


def units(options: argparse.Namespace) -> None:
    print("accuracies: before -> after; difference: largest of an output, on the data of the fit")
    for table in small_tables(options.csv):
        for hidden in HIDDEN:
            print(f"\n{table.name}, {len(table.x)} rows, hidden {hidden}")
            for seed in range(options.seeds):
                model = trained(table, hidden, seed)
                start = time.perf_counter()
                flow = NeuralInformationFlow(model, estimator=options.estimator).fit((table.x, table.y))
                seconds = time.perf_counter() - start
                at_cap = sum(int(part.sum()) for part in flow.result.saturated)
                print(f"  seed {seed}: fit {seconds:.2f} s, {at_cap} edges at the cap")
                for what in ("constant", "null"):
                    smaller, report = flow.prune(what)
                    if not report.n_units:
                        print(f"    {what:8}: {report.describe()}")
                        continue
                    before, after = (accuracy(m, table.held_x, table.held_y) for m in (model, smaller))
                    print(
                        f"    {what:8}: {report.n_units} removed, difference {report.largest_difference:.1e} (largest "
                        f"output {report.largest_output:.1f}), accuracy {report.accuracy_before:.3f} -> "
                        f"{report.accuracy_after:.3f}, held out {before:.3f} -> {after:.3f}"
                    )


def scores_of_features(table: Table, model: nn.Module, options: argparse.Namespace, seed: int) -> dict[str, Tensor]:
    rows = table.x[torch.randperm(len(table.x), generator=torch.Generator().manual_seed(0))[:200]]
    with torch.no_grad():
        target = model(rows).argmax(dim=1)
    torch.manual_seed(seed)
    captum = {
        "ShapleyValueSampling": ShapleyValueSampling(model).attribute(rows, target=target, n_samples=24),
        "IntegratedGradients": IntegratedGradients(model).attribute(rows, target=target),
    }
    flows = {
        name: NeuralInformationFlow(model, estimator=options.estimator, weighted=weighted).fit(table.x)
        for name, weighted in (("NIF", False), ("NIF * |w|", True))
    }
    return {
        **{name: flow.result.attribution.sum(dim=1) for name, flow in flows.items()},
        **{name: values.abs().mean(dim=0).detach().double() for name, values in captum.items()},
    }


def features(options: argparse.Namespace) -> None:
    for table in small_tables(options.csv):
        raw = torch.tensor(mutual_info_classif(table.x.numpy(), table.y.numpy(), random_state=0))
        for hidden in HIDDEN:
            found: dict[str, list[tuple[float, float, float]]] = {}
            for seed in range(options.seeds):
                scores = scores_of_features(table, trained(table, hidden, seed), options, seed)
                for name, score in scores.items():
                    test = ks_test(score / score.sum(), raw / raw.sum())
                    found.setdefault(name, []).append((spearman(score, raw), test.statistic, test.p_value))
            print(f"\n{table.name}, hidden {hidden}: with raw mutual information, means over {options.seeds} seeds")
            for name, rows in found.items():
                rho, distance, p_value = (statistics.mean(column) for column in zip(*rows, strict=True))
                print(f"  {name:22} Spearman {rho:5.2f}   K-S distance {distance:.2f}, p {p_value:.2f}")
    print(f"\nThe reading of a single K-S test of four values against four: {test.describe()}")


def orders_of(table: Table, model: nn.Sequential, estimator: str, seed: int) -> dict[str, Tensor]:
    fits = [NeuralInformationFlow(model, estimator=estimator, weighted=w).fit(table.x) for w in (False, True)]
    weights = model[0].weight.detach().abs().sum(dim=1) * model[2].weight.detach().abs().sum(dim=0)
    return {
        "NIF": fits[0].result.node_flow[1].argsort(),
        "NIF * |w|": fits[1].result.node_flow[1].argsort(),
        "|w|": weights.argsort(),
        "random": torch.randperm(len(weights), generator=torch.Generator().manual_seed(seed)),
    }


def contest(options: argparse.Namespace) -> None:
    tables = [
        split("Iris", *load_iris(return_X_y=True)),
        split("Wine", *load_wine(return_X_y=True)),
        split("breast cancer", *load_breast_cancer(return_X_y=True)),
    ]
    for table in tables:
        removed: dict[str, list[int]] = {}
        for seed in range(options.seeds):
            model = trained(table, (32,), seed)
            flow = NeuralInformationFlow(model, estimator="gaussian").fit(table.x)
            whole = accuracy(model, table.held_x, table.held_y)
            for name, order in orders_of(table, model, options.estimator, seed).items():
                count = 0
                while count < len(order):
                    smaller, _ = flow.prune({"1": order[: count + 1].tolist()})
                    if accuracy(smaller, table.held_x, table.held_y) < whole:
                        break
                    count += 1
                removed.setdefault(name, []).append(count)
        text = ", ".join(f"{name} {statistics.mean(counts):.1f}" for name, counts in removed.items())
        print(f"{table.name}: of 32 units removed without loss, means over {options.seeds} seeds: {text}")


def null(options: argparse.Namespace) -> None:
    for name in ("ksg", "gaussian"):
        for n in (150, 1372):
            draws = independent_estimates(as_estimator(name), n, options.draws, generator_of(0))
            print(f"{name:9} n={n:5}: mean {draws.mean():.4f}, 95 % quantile {draws.quantile(0.95):.4f} nats")


def plot(options: argparse.Namespace) -> None:
    table = small_tables(None)[0]
    model = trained(table, HIDDEN[1], 0)
    flow = NeuralInformationFlow(model, estimator=options.estimator).fit(table.x)
    flow.plot().savefig(options.file, dpi=150)
    print(flow.result.describe())


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "units": units,
    "features": features,
    "contest": contest,
    "null": null,
    "plot": plot,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("file", nargs="?", default="flow.png")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--estimator", default="ksg")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", CaptumIBAWarning)  # saturated edges are counted in the tables
    COMMANDS[options.command](options)


if __name__ == "__main__":
    main()
