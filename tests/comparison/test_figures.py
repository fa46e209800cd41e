import io

import numpy as np
import pytest
from PIL import Image

from captum_iba.comparison._types import Results
from captum_iba.comparison.figures import plot_maps, plot_results
from captum_iba.errors import InvalidArgumentError
from tests.comparison.results_example import METRICS, example_results


@pytest.fixture(scope="module")
def results():
    return example_results()


def test_means_and_curves_are_the_results(results):
    """A panel for each metric with the means at their places, then one for each metric with curves."""
    figure = plot_results(results)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[0] == "insertion ↑" and titles[4] == "infidelity ↓" and titles[5] == "effective size"
    assert titles[6:] == ["insertion", "degradation 8x8"]
    ran = [info.name for info in results.methods if not info.reason]
    first = figure.axes[0]
    assert [tick.get_text() for tick in first.get_yticklabels()] == ran
    drawn = [container.lines[0].get_xdata()[0] for container in first.containers]
    assert drawn == [results.mean(name, "insertion") for name in ran]
    assert [text.get_text() for text in figure.axes[3].texts] == ["– no value"]
    curves = figure.axes[7]
    assert (curves.get_xlabel(), curves.get_ylabel()) == (METRICS[1].x_label, METRICS[1].y_label)
    mean, _ = results.curves[ran[0]]["degradation 8x8"].lines["most relevant first"]
    np.testing.assert_array_equal(curves.lines[0].get_ydata(), mean)
    assert len(curves.lines) == 2 * len(ran) == len(curves.collections)
    assert [text.get_text() for text in curves.get_legend().get_texts()] == [
        "most relevant first",
        "least relevant first",
    ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ran


def test_maps_keep_their_unit_and_place(results):
    """Photos, then maps in their own values over the photo's pixels, each with its unit; none where it failed."""
    figure = plot_maps(results, n=6)
    grid = [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]
    bars = [axis for axis in figure.axes if axis.get_label() == "<colorbar>"]
    assert len(grid) == 6 * (1 + 5)
    assert len(bars) == 6 * 5 - 1
    assert bars[0].get_ylabel() == "bits per pixel" and bars[1].get_ylabel() == "relevance, no unit"
    example = results.examples[0]
    heatmap = results.maps["LayerIBA"][example.key]
    picture = grid[1].images[0]
    np.testing.assert_allclose(picture.get_array(), heatmap.levels / 255.0 * heatmap.high)
    assert picture.get_extent() == [-0.5, 223.5, 223.5, -0.5]
    assert grid[0].get_title().startswith(example.key)
    x0, y0, _, _ = example.boxes[0]
    assert (grid[1].patches[0].get_x(), grid[1].patches[0].get_y()) == (x0 - 0.5, y0 - 0.5)
    assert [text.get_text() for text in grid[-1].texts] == ["no map"]


def test_figures_can_be_saved_without_pyplot(results, tmp_path):
    """Saving works, and pyplot knows nothing of the figures."""
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    for figure in (plot_results(results), plot_maps(results, n=2)):
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=40)
        assert Image.open(buffer).width > 100
    assert plt.get_fignums() == before


def test_nothing_to_draw_is_refused(results):
    """No metrics, no methods that ran, no photos, no number of them."""
    nothing = Results([], [], [], {}, {}, {})
    with pytest.raises(InvalidArgumentError, match="0 metrics and 0 methods"):
        plot_results(nothing)
    with pytest.raises(InvalidArgumentError, match="n=8 of 0 photos"):
        plot_maps(nothing)
    with pytest.raises(InvalidArgumentError, match="n=0"):
        plot_maps(results, n=0)
