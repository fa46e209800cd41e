"""An estimator on the suite: error, standard error, coverage and time of each task."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from captum_iba._numbers import assert_integer
from captum_iba._pandas import as_dataframe
from captum_iba.errors import CaptumIBAError, CaptumIBAWarning, InvalidTypeError
from captum_iba.information.benchmark.tasks import Task, get_tasks
from captum_iba.information.estimate import BITS_PER_NAT, Estimate, Unit, assert_unit
from captum_iba.information.estimator import Estimator
from captum_iba.information.mutual_information import mutual_information

Function = Callable[[Tensor, Tensor], Any]


@dataclass(frozen=True)
class Row:
    """An estimator's record on one task.

    Attributes:
        task (str): its name.
        exact (float): the true information.
        mean (float): of the estimates.
        error (float): mean less exact.
        absolute_error (float): mean of the draws' absolute errors.
        largest_error (float): the largest of them.
        deviation (float): standard deviation of the estimates; NaN for one draw.
        standard_error (float): mean of the standard errors that the estimator itself gave; NaN without.
        covered (int or None): in how many draws the estimator's interval holds the exact value; None without intervals.
        seconds (float): mean time of an estimate.
        failure (str): why the estimator cannot do the task, or nothing.
    """

    task: str
    exact: float
    mean: float = math.nan
    error: float = math.nan
    absolute_error: float = math.nan
    largest_error: float = math.nan
    deviation: float = math.nan
    standard_error: float = math.nan
    covered: int | None = None
    seconds: float = math.nan
    failure: str = ""


@dataclass(frozen=True)
class BenchmarkResult:
    """An estimator's record on the suite; prints as a table.

    Attributes:
        estimator (str): its name.
        n (int): examples of a draw.
        n_draws (int): draws of each task.
        unit (str): of all informations.
        rows (tuple[Row, ...]): a task each.
    """

    estimator: str
    n: int
    n_draws: int
    unit: Unit
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        head = f"{self.estimator}: {self.n_draws} draws of {self.n} examples, {self.unit}"
        names = (
            ("exact", 8),
            ("mean", 8),
            ("error", 8),
            ("|error|", 8),
            ("sd", 7),
            ("s.e.", 7),
            ("covers", 8),
            ("s", 8),
        )
        columns = f"{'task':24}" + "".join(f"{name:>{width}}" for name, width in names)
        return "\n".join([head, columns, *(self._line(row) for row in self.rows)])

    def _line(self, row: Row) -> str:
        if row.failure:
            return f"{row.task:24}{row.exact:8.3f}  {row.failure}"
        covers = "-" if row.covered is None else f"{row.covered}/{self.n_draws}"
        return (
            f"{row.task:24}{row.exact:8.3f}{row.mean:8.3f}{row.error:+8.3f}{row.absolute_error:8.3f}"
            f"{row.deviation:7.3f}{row.standard_error:7.3f}{covers:>8}{row.seconds:8.2f}"
        )

    def to_dataframe(self) -> Any:
        """A row for each task (needs pandas).

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        return as_dataframe([asdict(row) for row in self.rows])


def run_benchmark(
    estimator: str | Estimator | Function = "auto",
    tasks: str | Iterable[str | Task] = "all",
    n: int = 5000,
    n_draws: int = 5,
    unit: Unit = "bits",
    *,
    seed: int = 0,
    show_progress: bool = False,
) -> BenchmarkResult:
    """Run an estimator, of the package or your own, on tasks with closed-form answers.

    Args:
        estimator (str, Estimator or callable, optional): as for :func:`~captum_iba.information.mutual_information`; or
            a function of x (n, dx) and y (n, dy) that returns nats. Default: ``"auto"``.
        tasks (str or iterable, optional): as for :func:`get_tasks`, or :class:`Task` objects. Default: ``"all"``.
        n (int, optional): examples of a draw. Default: 5000.
        n_draws (int, optional): draws of each task; single ones scatter more than good estimators err. Default: 5.
        unit (str, optional): ``"bits"`` or ``"nats"``. Default: ``"bits"``.
        seed (int, optional): of the first draw; the next ones follow. Default: 0.
        show_progress (bool, optional): show a bar. Interrupted, the tasks that are done are returned. Default: False.

    Returns:
        BenchmarkResult: a row for each task. A task that the estimator refuses is a row with the reason.

    Raises:
        InvalidArgumentError: an unknown task or unit.
        InvalidTypeError: the estimator is none, or returns no number.

    Examples::

        >>> import torch
        >>> from captum_iba.information.benchmark import run_benchmark
        >>> def by_correlation(x, y):
        ...     rho = torch.corrcoef(torch.cat([x, y], dim=1).T)[0, 1]
        ...     return -0.5 * torch.log(1 - rho**2)
        >>> row, = run_benchmark(by_correlation, "normal 1v1 rho=.75", n=20000).rows
        >>> abs(row.error) < 0.01
        True
    """
    assert_unit(unit)
    assert_integer("n", n)
    assert_integer("n_draws", n_draws)
    if isinstance(tasks, str):
        chosen: list[Task] = list(get_tasks(tasks))
    else:
        chosen = [one for task in tasks for one in ([task] if isinstance(task, Task) else get_tasks(task))]
    rows: list[Row] = []
    bar = _bar(len(chosen), show_progress)
    try:
        for task in chosen:
            rows.append(_row(task, estimator, n, range(seed, seed + n_draws), unit))
            bar.update()
    except KeyboardInterrupt:
        if not rows:
            raise
    finally:
        bar.close()
    name = estimator if isinstance(estimator, str) else getattr(estimator, "__name__", repr(estimator))
    return BenchmarkResult(name, n, n_draws, unit, tuple(rows))


def _bar(total: int, show_progress: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="Benchmark", unit="task", disable=not show_progress)


def _row(task: Task, estimator: str | Estimator | Function, n: int, seeds: range, unit: Unit) -> Row:
    factor = BITS_PER_NAT if unit == "bits" else 1.0
    found, seconds = [], 0.0
    for seed in seeds:
        x, y = task.sample(n, seed)
        start = time.perf_counter()
        try:
            found.append(_estimate(estimator, x, y, seed))
        except InvalidTypeError:
            raise
        except CaptumIBAError as error:
            return Row(task.name, factor * task.information, failure=str(error))
        seconds += time.perf_counter() - start
    values = factor * torch.tensor([value for value, _ in found], dtype=torch.float64)
    exact = factor * task.information
    errors = (values - exact).abs()
    details = [one for _, one in found if one is not None]
    own = [factor * float(one.standard_error) for one in details]
    inside = [bool(one.interval[0] <= task.information <= one.interval[1]) for one in details]
    return Row(
        task.name,
        exact,
        float(values.mean()),
        float(values.mean()) - exact,
        float(errors.mean()),
        float(errors.max()),
        float(values.std()) if len(values) > 1 else float("nan"),
        sum(own) / len(own) if own else float("nan"),
        sum(inside) if details else None,
        seconds / len(seeds),
    )


def _estimate(estimator: str | Estimator | Function, x: Tensor, y: Tensor, seed: int) -> tuple[float, Estimate | None]:
    """One estimate in nats, and its details if it has any."""
    if isinstance(estimator, (str, Estimator)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CaptumIBAWarning)  # traps are what is measured here
            details = mutual_information(x, y, estimator, "nats", return_details=True, seed=seed)
        return float(details.value), details
    if not callable(estimator):
        raise InvalidTypeError(f"estimator is a {type(estimator).__name__}; wanted a name, an Estimator or a function.")
    value = estimator(x, y)
    try:
        return float(value), None
    except (TypeError, ValueError) as error:
        raise InvalidTypeError(f"The estimator returned a {type(value).__name__}; wanted a number, in nats.") from error
