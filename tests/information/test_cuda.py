"""Defined where there is a GPU; elsewhere there is nothing to test."""

import pytest
import torch

from captum_iba.information import mutual_information, mutual_information_matrix
from captum_iba.information.benchmark import get_tasks

EXACT = ("ksg", "gaussian", "binning", "kde", "noise")

if torch.cuda.is_available():

    @pytest.mark.parametrize("estimator", EXACT)
    def test_the_same_value_as_on_the_cpu(estimator):
        """float64 on both, with the same random numbers."""
        x, y = get_tasks("2-pair 3v3")[0].sample(600)
        here = mutual_information(x, y, estimator, return_details=True)
        there = mutual_information(x.cuda(), y.cuda(), estimator, return_details=True)
        assert there.value.device.type == "cuda"
        assert float(there.value) == pytest.approx(float(here.value), abs=1e-9)
        assert float(there.standard_error) == pytest.approx(float(here.standard_error), abs=1e-9)

    def test_pairs_of_columns():
        """The matrix, too."""
        x, y = get_tasks("2-pair 3v3")[0].sample(600)
        for estimator in ("ksg", "gaussian"):
            here, there = (
                mutual_information_matrix(x.to(device), y.to(device), estimator) for device in ("cpu", "cuda")
            )
            assert torch.allclose(here, there.cpu(), atol=1e-9)

    def test_critics_find_it_there_too():
        """Within two standard errors and the slack of the exact value."""
        (task,) = get_tasks("normal 1v1 rho=.9")
        x, y = task.sample(2000)
        found = mutual_information(x.cuda(), y.cuda(), "neural", "nats", return_details=True)
        assert float(found.interval[0]) <= task.information <= float(found.interval[1])
