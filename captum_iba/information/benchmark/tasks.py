"""Tasks with known answers: a name, a sampler and the exact mutual information."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from captum_iba._numbers import assert_integer
from captum_iba.errors import InvalidArgumentError
from captum_iba.information.benchmark import maps, samplers
from captum_iba.information.benchmark.samplers import Pair

Sampler = Callable[[int, torch.Generator], Pair]
OneMap = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Task:
    """Two variables whose mutual information is known.

    Attributes:
        name (str): what it is, with the dimensions of both.
        information (float): exact, in nats.
        groups (tuple[str, ...]): groups of tasks that it belongs to.
    """

    name: str
    information: float
    groups: tuple[str, ...]
    _sampler: Sampler = field(repr=False)

    def sample(self, n: int, seed: int = 0) -> Pair:
        """Draw n examples.

        Args:
            n (int): how many.
            seed (int, optional): of the draw. Default: 0.

        Returns:
            tuple[Tensor, Tensor]: (n, dx) and (n, dy), float64, or labels.
        """
        assert_integer("n", n)
        return self._sampler(n, torch.Generator("cpu").manual_seed(seed))

    def through(self, name: str, x_map: OneMap, y_map: OneMap, *groups: str) -> Task:
        """The same task seen through maps that can be inverted, so that the information stays."""

        def sampler(n: int, generator: torch.Generator) -> Pair:
            x, y = self._sampler(n, generator)
            return x_map(x), y_map(y)

        return Task(name, self.information, groups, sampler)


def get_tasks(names: str | Iterable[str] = "all") -> tuple[Task, ...]:
    """Tasks by group or name.

    Args:
        names (str or iterable of str, optional): ``"all"``; a group: ``"one-dimensional"`` (nine tasks with one
            coordinate each, one of them rolled up), ``"gaussian"``, ``"multivariate"``, ``"independent"``,
            ``"labels"``; a name; or several of these. Default: ``"all"``.

    Returns:
        tuple[Task, ...]: in the order of the suite.

    Raises:
        InvalidArgumentError: no such task or group.

    Examples::

        >>> from captum_iba.information.benchmark import get_tasks
        >>> len(get_tasks("one-dimensional"))
        9
        >>> task, = get_tasks("normal 5v5 rho=.9")
        >>> f"{task.information:.4f} nats", task.sample(100)[0].shape
        ('4.1518 nats', torch.Size([100, 5]))
    """
    wanted = [names] if isinstance(names, str) else list(names)
    suite = _suite()
    known = {"all"} | {task.name for task in suite} | {group for task in suite for group in task.groups}
    missing = [name for name in wanted if name not in known]
    if missing:
        raise InvalidArgumentError(f"No task or group has the name {missing[0]!r}; there are {sorted(known)}.")
    return tuple(task for task in suite if {"all", task.name, *task.groups} & set(wanted))


@functools.cache
def _suite() -> tuple[Task, ...]:
    return (*_one_dimensional(), *_gaussian(), *_multivariate(), *_independent(), *_labels())


def _normal_task(name: str, covariance: Tensor, *groups: str) -> Task:
    dx = len(covariance) // 2
    information = samplers.gaussian_information(covariance, dx)
    return Task(name, information, groups, lambda n, g: samplers.gaussian(covariance, dx, n, g))


def _student_task(name: str, d: int, dof: int, *groups: str) -> Task:
    information = samplers.student_information(d, dof)
    return Task(name, information, groups, lambda n, g: samplers.student(d, dof, n, g))


def _additive_task(noise: float, *groups: str) -> Task:
    name, information = f"additive 1v1 e={noise:g}", samplers.additive_information(noise)
    return Task(name, information, groups, lambda n, g: samplers.additive(noise, n, g))


def _one_dimensional() -> list[Task]:
    group = "one-dimensional"
    normal = _normal_task("normal 1v1 rho=.75", samplers.paired(1, 0.75), group)
    cauchy = _student_task("student 1v1 nu=1", 1, 1, group)
    return [
        normal,
        normal.through("normal cdf 1v1", maps.normal_cdf, maps.normal_cdf, group),
        normal.through("wiggly 1v1", maps.wiggly_x, maps.wiggly_y, group),
        normal.through("half-cube 1v1", maps.half_cube, maps.half_cube, group),
        normal.through("swiss roll 2v1", lambda x: maps.swiss_roll(maps.normal_cdf(x)), maps.normal_cdf, group),
        _additive_task(0.1, group),
        _additive_task(0.75, group),
        cauchy,
        cauchy.through("asinh student 1v1", maps.asinh, maps.asinh, group),
    ]


def _gaussian() -> list[Task]:
    pairs = [(d, rho) for d in (1, 5) for rho in (0.5, 0.9)]
    tasks = [
        _normal_task(f"normal {d}v{d} rho={rho:g}".replace("0.", "."), samplers.paired(d, rho), "gaussian")
        for d, rho in pairs
    ]
    for d, noise_var in ((1, 0.1), (2, 0.1), (5, 1.0)):
        exact = d / 2 * math.log(1 + 1 / noise_var)
        draw = functools.partial(samplers.noise_channel, d, noise_var)
        tasks.append(Task(f"noise channel {d}v{d} s2={noise_var:g}", exact, ("gaussian",), draw))
    return tasks


def _multivariate() -> list[Task]:
    group = "multivariate"
    tasks = [_normal_task(f"dense {d}v{d}", samplers.dense(d), group) for d in (2, 3, 5, 25)]
    for d in (3, 5, 25):
        pairs = _normal_task(f"2-pair {d}v{d}", samplers.paired(d, 0.8, 2), group)
        tasks += [
            pairs,
            pairs.through(f"2-pair cdf {d}v{d}", maps.normal_cdf, maps.normal_cdf, group),
            pairs.through(f"half-cube {d}v{d}", maps.half_cube, maps.half_cube, group),
            pairs.through(f"spiral {d}v{d}", lambda x: maps.spiral(x, 0), lambda y: maps.spiral(y, 1), group),
            pairs.through(
                f"spiral cdf {d}v{d}",
                lambda x: maps.spiral(maps.normal_cdf(x), 0),
                lambda y: maps.spiral(maps.normal_cdf(y), 1),
                group,
            ),
        ]
    for d, dof in ((2, 1), (3, 2), (5, 2)):
        student = _student_task(f"student {d}v{d} nu={dof}", d, dof, group)
        tasks += [student, student.through(f"asinh student {d}v{d} nu={dof}", maps.asinh, maps.asinh, group)]
    return tasks


def _independent() -> list[Task]:
    return [_normal_task(f"independent {d}v{d}", samplers.paired(d, 0.0), "independent") for d in (1, 5)]


def _labels() -> list[Task]:
    shares = torch.tensor([[0.30, 0.05, 0.05], [0.05, 0.20, 0.35]], dtype=torch.float64)
    draw = functools.partial(samplers.table, shares)
    return [
        Task("table 2x3", samplers.table_information(shares), ("labels",), draw),
        Task("xor", math.log(2), ("labels",), samplers.xor),
    ]
