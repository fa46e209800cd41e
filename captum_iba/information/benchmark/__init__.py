"""A suite of tasks with known mutual information, on which any estimator can be judged."""

from captum_iba.information.benchmark.run import BenchmarkResult, Row, run_benchmark
from captum_iba.information.benchmark.tasks import Task, get_tasks

__all__ = ["BenchmarkResult", "Row", "Task", "get_tasks", "run_benchmark"]
