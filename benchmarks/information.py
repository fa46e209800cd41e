"""Estimators of mutual information on tasks with closed-form answers: error, standard error and time.

    python -m benchmarks.information tasks [--estimators ksg gaussian neural] [--n 5000] [--draws 5] [--unit nats]
        [--tasks one-dimensional "normal 5v5 rho=.9"] [--csv FILE]
    python -m benchmarks.information speed [--n 5000] [--repeats 5]

``tasks`` prints a table for each estimator; tasks are names or groups of ``captum_iba.information.benchmark``.
``speed`` times the nearest-neighbour estimate beside scikit-learn's on the same columns, in turn, with the processor's
time of one thread, and prints the medians and their ratio (needs scikit-learn).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from captum_iba.information import mutual_information
from captum_iba.information.benchmark import get_tasks, run_benchmark


def tasks(arguments: argparse.Namespace) -> None:
    frames = []
    for estimator in arguments.estimators:
        result = run_benchmark(
            estimator,
            arguments.tasks,
            arguments.n,
            arguments.draws,
            arguments.unit,
            seed=arguments.seed,
            show_progress=True,
        )
        print(result)
        done = [row for row in result.rows if not row.failure]
        errors = [row.absolute_error for row in done]
        covered = [row.covered for row in done if row.covered is not None]
        if errors:  # an estimator may suit none of the tasks
            print(
                f"{'mean':24}{'':24}{sum(errors) / len(errors):8.3f}   median {statistics.median(errors):.3f}, "
                f"worst {max(errors):.3f}, covered {sum(covered)}/{len(covered) * arguments.draws}\n",
                flush=True,
            )
        frames.append((estimator, result))
    if arguments.csv:
        import pandas as pd

        table = pd.concat([result.to_dataframe().assign(estimator=name) for name, result in frames])
        table.to_csv(arguments.csv, index=False)


def speed(arguments: argparse.Namespace) -> None:
    from sklearn.feature_selection import mutual_info_regression

    torch.set_num_threads(1)
    x, y = get_tasks("normal 1v1 rho=.9")[0].sample(arguments.n)
    columns = x.numpy(), y[:, 0].numpy()
    variants = {
        "KSG": lambda: mutual_information(x, y, "ksg"),
        "scikit-learn": lambda: mutual_info_regression(*columns, n_neighbors=3, random_state=0),
    }
    times = {name: [] for name in variants}
    for _ in range(arguments.repeats + 1):
        for name, run in variants.items():
            times[name].append(_seconds(run))
    medians = {name: statistics.median(found[1:]) for name, found in times.items()}  # the first ones warm up
    for name, median in medians.items():
        print(f"{name:14}{median:8.3f} s")
    print(f"{'ratio':14}{medians['KSG'] / medians['scikit-learn']:8.2f}")


def _seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("tasks")
    one.add_argument("--estimators", nargs="+", default=["ksg", "gaussian", "neural"])
    one.add_argument("--tasks", nargs="+", default=["all"])
    one.add_argument("--n", type=int, default=5000)
    one.add_argument("--draws", type=int, default=5)
    one.add_argument("--unit", choices=("bits", "nats"), default="nats")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--csv", help="write all rows there (needs pandas)")
    one.set_defaults(run=tasks)
    two = commands.add_parser("speed")
    two.add_argument("--n", type=int, default=5000)
    two.add_argument("--repeats", type=int, default=5)
    two.set_defaults(run=speed)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
