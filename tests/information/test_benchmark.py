import math

import pytest
import torch

from benchmarks.information import main
from captum_iba.errors import InvalidArgumentError, InvalidTypeError
from captum_iba.information import KSG
from captum_iba.information.benchmark import Task, get_tasks, maps, run_benchmark, samplers


@pytest.mark.parametrize(
    ("name", "nats"),
    [
        ("normal 1v1 rho=.75", 0.413339),
        ("swiss roll 2v1", 0.413339),
        ("additive 1v1 e=0.1", 1.709438),
        ("additive 1v1 e=0.75", 0.333333),
        ("student 1v1 nu=1", 0.224171),
        ("dense 2v2", 0.293893),
        ("dense 25v25", 1.292184),
        ("2-pair 25v25", 1.021651),
        ("student 2v2 nu=1", 0.431946),
        ("student 3v3 nu=2", 0.290922),
        ("student 5v5 nu=2", 0.448151),
        ("normal 5v5 rho=.9", -2.5 * math.log(0.19)),
        ("noise channel 5v5 s2=1", 2.5 * math.log(2)),
        ("xor", math.log(2)),
        ("independent 5v5", 0.0),
    ],
)
def test_exact_values(name, nats):
    """Closed forms of the literature."""
    (task,) = get_tasks(name)
    assert task.information == pytest.approx(nats, abs=5e-7)


def test_student_s_information_by_integration():
    """The closed form of two Cauchy variables equals the integral over their density."""
    edges = torch.linspace(-math.pi / 2, math.pi / 2, 1502, dtype=torch.float64)
    u = (edges[1:] + edges[:-1]) / 2  # x = tan u has density 1 / pi in u
    x, y = u.tan()[:, None], u.tan()
    ratio = (2 * math.pi) ** -1 * (1 + x**2 + y**2) ** -1.5 * math.pi**2 * (1 + x**2) * (1 + y**2)
    integral = float((ratio * ratio.log()).mean())
    assert samplers.student_information(1, 1) == pytest.approx(integral, abs=2e-3)


def test_additive_noise_by_entropies():
    """I = h(Y) - h(Y|X), with the density of Y integrated numerically."""
    for noise in (0.1, 0.5, 0.75):
        y = torch.linspace(-noise, 1 + noise, 200001, dtype=torch.float64)
        density = ((y + noise).clamp(max=1) - (y - noise).clamp(min=0)).clamp_min(0) / (2 * noise)
        entropy = -torch.trapezoid(torch.special.xlogy(density, density), y)
        assert float(entropy) - math.log(2 * noise) == pytest.approx(samplers.additive_information(noise), abs=1e-6)


@pytest.mark.parametrize("name", ["normal 5v5 rho=.5", "dense 3v3", "noise channel 2v2 s2=0.1", "2-pair 5v5"])
def test_samples_have_the_task_s_covariance(name):
    """The Gaussian formula on the sample's covariance agrees with the exact information."""
    (task,) = get_tasks(name)
    x, y = task.sample(100_000, seed=3)
    covariance = torch.cat([x, y], dim=1).T.cov()
    assert samplers.gaussian_information(covariance, x.shape[1]) == pytest.approx(task.information, abs=0.02)


@pytest.mark.parametrize("function", [maps.half_cube, maps.asinh, maps.wiggly_x, maps.wiggly_y, maps.normal_cdf])
def test_maps_keep_the_order(function):
    """Each map of single numbers rises everywhere, so that it can be inverted."""
    x = torch.linspace(-6, 6, 20001, dtype=torch.float64)
    assert bool((function(x).diff() > 0).all())


def test_a_spiral_keeps_lengths_and_can_be_unwound():
    """Turning back by the angle of the row's length, which stays, gives the columns again."""
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turned = maps.spiral(x, 1)
    assert torch.allclose(turned.norm(dim=1), x.norm(dim=1))
    angle = turned.square().sum(dim=1) / 3
    back = turned.clone()
    back[:, 1] = angle.cos() * turned[:, 1] + angle.sin() * turned[:, 2]
    back[:, 2] = -angle.sin() * turned[:, 1] + angle.cos() * turned[:, 2]
    assert torch.allclose(back, x)


def test_a_swiss_roll_does_not_cross_itself():
    """Its distance from the centre rises with the number that is rolled up."""
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)[:, None]
    assert bool((maps.swiss_roll(u).norm(dim=1).diff() > 0).all())


def test_draws_depend_on_the_seed_alone():
    """Equal seeds draw equal examples, others do not."""
    for task in get_tasks():
        first, again, other = (task.sample(20, seed) for seed in (0, 0, 1))
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])
        assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_function_of_one_s_own():
    """The exact value has no error, one that is wrong by 0.1 nats has that, and neither has intervals."""
    (task,) = get_tasks("dense 2v2")
    for offset in (0.0, 0.1):
        (row,) = run_benchmark(lambda x, y, offset=offset: task.information + offset, [task], 100, 3, "nats").rows
        assert row.error == pytest.approx(offset)
        assert row.absolute_error == row.largest_error == pytest.approx(offset)
        assert row.covered is None
        assert row.deviation == 0.0


def test_an_estimator_s_row_is_its_estimates():
    """Mean, deviation and coverage are those of the draws with the seeds that follow each other."""
    (task,) = get_tasks("normal 1v1 rho=.9")
    (row,) = run_benchmark(KSG(k=4), ["normal 1v1 rho=.9"], 300, 4, "nats", seed=2).rows
    found = [KSG(k=4).estimate(*task.sample(300, seed), torch.Generator()) for seed in range(2, 6)]
    values = torch.stack([one.value for one in found])
    assert row.mean == pytest.approx(float(values.mean()), abs=0.03)  # ranked there, not here
    assert row.covered == 4
    assert row.standard_error == pytest.approx(
        float(torch.stack([one.standard_error for one in found]).mean()), rel=0.1
    )


def test_a_task_that_is_refused_is_a_row_with_the_reason():
    """Labels are not for the Gaussian: the table says why, and the frame too."""
    result = run_benchmark("gaussian", ["table 2x3", "dense 2v2"], 200, 2)
    assert "integer dtype" in result.rows[0].failure
    assert not result.rows[1].failure
    assert "integer dtype" in str(result)
    assert list(result.to_dataframe().task) == ["table 2x3", "dense 2v2"]


def test_interrupted_it_returns_what_is_done():
    """The tasks before the interruption are rows of the result."""
    calls = []

    def interrupted(x, y):
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return 0.0

    result = run_benchmark(interrupted, "one-dimensional", 50, 1)
    assert [row.task for row in result.rows] == [task.name for task in get_tasks("one-dimensional")][:2]


def test_mistakes_are_answered():
    """Unknown tasks, and estimators that are none."""
    with pytest.raises(InvalidArgumentError, match="'sphere'; there are"):
        get_tasks("sphere")
    with pytest.raises(InvalidTypeError, match="returned a str"):
        run_benchmark(lambda x, y: "much", "dense 2v2", 50, 1)
    with pytest.raises(InvalidTypeError, match="int"):
        run_benchmark(3, "dense 2v2", 50, 1)
    with pytest.raises(InvalidArgumentError, match="n=0"):
        get_tasks("dense 2v2")[0].sample(0)
    assert isinstance(get_tasks("dense 2v2")[0], Task)


def test_a_table_without_any_answer_is_printed(monkeypatch, capsys):
    """The script says why an estimator can do none of the tasks, where there is nothing to take a mean of."""
    options = ["tasks", "--estimators", "gaussian", "--tasks", "labels", "--n", "200", "--draws", "1"]
    monkeypatch.setattr("sys.argv", ["information", *options])
    main()
    shown = capsys.readouterr().out
    rows = run_benchmark("gaussian", "labels", 200, 1).rows
    assert rows and all(row.failure and row.failure in shown for row in rows) and "median" not in shown
