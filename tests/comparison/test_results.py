"""Laws of what a comparison reports: scales of the whole data, reasons, what is drawn, answers to wrong names."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from captum_iba.comparison import Method, MetricInfo, compare
from captum_iba.comparison.methods import find_methods
from captum_iba.errors import InvalidArgumentError
from tests.comparison.comparison_cases import toy_cnn, toy_images, toy_options


def test_the_scale_of_degradation_is_that_of_all_examples():
    """Failing on some examples does not change a method's score on the others: t1 and b belong to the data."""
    images, calls = toy_images(6), []

    def fails_on_two(x, target):
        calls.append(1)
        if torch.equal(x[0], images[0]) or torch.equal(x[0], images[3]):
            raise RuntimeError("not this one")
        return x

    methods = {"whole": lambda x, target: x, "partly": fails_on_two}
    report = compare(toy_cnn(), (images, [0, 1, 2, 0, 1, 2]), methods, ["degradation 8x8"], **toy_options())
    whole, partly = (report.results.scores[name]["degradation 8x8"] for name in methods)
    there = ~np.isnan(partly)
    assert there.tolist() == [False, True, True, False, True, True]
    np.testing.assert_array_equal(whole[there], partly[there])
    info = report.results.methods[1]
    assert (info.n_failed, info.failure, info.reason) == (2, "RuntimeError: not this one", "")


def test_constant_maps_and_undefined_values_are_told():
    """A constant map is counted, and a metric that has no value for it says why."""
    methods = {"flat": lambda x, target: torch.zeros_like(x)}
    report = compare(toy_cnn(), (toy_images(2), [0, 1]), methods, ["sensitivity-n"], **toy_options())
    assert report.results.methods[0].n_constant == 2
    n, reason = report.results.undefined["flat"]["sensitivity-n"]
    assert n == 2 and "does not vary" in reason


def test_probabilities_are_refused():
    """A second softmax would flatten the decision, and with it the metrics."""
    model = nn.Sequential(toy_cnn(), nn.Softmax(dim=1)).eval()
    with pytest.raises(InvalidArgumentError, match="probabilities"):
        compare(model, (toy_images(2), [0, 1]), {"bright": lambda x, target: x}, ["degradation 8x8"], **toy_options())


def test_a_mask_without_boxes_is_drawn_by_its_rectangle():
    """The smallest box around the mask."""
    masks = torch.zeros(1, 16, 16)
    masks[0, 3:5, 7:12] = 1
    masks[0, 9, 8] = 1
    report = compare(
        toy_cnn(), (toy_images(1), [0], masks), {"bright": lambda x, target: x}, ["bounding box"], **toy_options()
    )
    assert report.results.examples[0].boxes.tolist() == [[7, 3, 12, 10]]


def test_statistics_are_not_estimated_where_nothing_needs_them():
    """Neither statistics nor the warning about them for methods and metrics without a bottleneck."""
    options = toy_options() | {"calibration": None, "statistics": None, "layer": None}
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        report = compare(toy_cnn(), (toy_images(2), [0, 1]), ["Saliency"], ["deletion"], **options)
    assert [str(warning.message) for warning in given] == []
    found = report.results.configuration
    assert (found["statistics"], found["calibration"]) == ("not needed", "not needed")


def test_noise_that_follows_the_image_does_not_count_as_sensitivity():
    """A map that is the same noise for all inputs has sensitivity 0: Random, and a method that draws by itself."""
    methods = [find_methods("Random")[0], Method("drawn", lambda context: lambda x, target: torch.rand(x.shape))]
    report = compare(toy_cnn(), (toy_images(2), [0, 1]), methods, ["sensitivity max"], **toy_options())
    assert [report.mean(name, "sensitivity max") for name in ("Random", "drawn")] == [0.0, 0.0]


@pytest.mark.parametrize("call", ["mean", "stderr", "rank"])
def test_a_report_answers_unknown_names(call):
    """Methods and metrics that were not compared are named, with those that were."""
    report = compare(toy_cnn(), (toy_images(1), [0]), {"bright": lambda x, y: x}, ["deletion"], **toy_options())
    with pytest.raises(InvalidArgumentError, match="'dim' was not compared; wanted one of bright"):
        getattr(report, call)("dim", "deletion")
    with pytest.raises(InvalidArgumentError, match="'insertion' was not compared; wanted one of deletion"):
        report.paired("bright", "bright", "insertion")


def test_a_data_set_without_scale_says_so():
    """Where the degraded images are as sure as the intact ones, the missing scores have a reason."""
    report = compare(
        FlatOnly().eval(), (toy_images(2), [0, 0]), {"bright": lambda x, y: x}, ["degradation 8x8"], **toy_options()
    )
    assert np.isnan(report.mean("bright", "degradation 8x8"))
    n, reason = report.results.undefined["bright"]["degradation 8x8"]
    assert n == 2 and "t1 <= b" in reason and "t1 <= b" in str(report)


class FlatOnly(nn.Module):
    """Sure of class 0 for images of one colour, and of none for others."""

    def forward(self, x):
        flat = 1 / (1 + x.flatten(1).std(dim=1, keepdim=True))
        return torch.cat([8 * flat, flat * 0, flat * 0], dim=1)


class Odd:
    """A metric of a user's own whose records cannot be kept."""

    info = MetricInfo("odd", "")
    needs_boxes = False

    def measure(self, state, maps, explain):
        return {"score": maps.sum()}

    def gather(self, records):
        return np.array([np.nan if record is None else record["score"] for record in records]), None


def test_records_that_cannot_be_kept_are_undefined():
    """A tensor in a record costs that metric's value and tells why, rather than the run."""
    report = compare(toy_cnn(), (toy_images(1), [0]), {"bright": lambda x, y: x}, [Odd(), "deletion"], **toy_options())
    assert "Tensor" in report.results.undefined["bright"]["odd"][1]
    assert report.mean("bright", "deletion") > 0


@pytest.mark.parametrize("display", [lambda x: x.numpy(), lambda x: x.repeat(2, 1, 1)])
def test_pictures_of_another_kind_cost_their_example(display):
    """What to_display gives is checked where it is made."""
    with pytest.raises(InvalidArgumentError, match="to_display"):
        compare(
            toy_cnn(), (toy_images(1), [0]), {"b": lambda x, y: x}, ["deletion"], to_display=display, **toy_options()
        )
