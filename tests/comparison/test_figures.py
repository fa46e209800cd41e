import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from captum_iba.comparison._palette import DARK, LIGHT, MARK_PATHS, MARKS, style_of
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
    assert len(curves.lines) == 4 * len(ran) == 2 * len(curves.collections)  # with marks, and with bands
    assert [text.get_text() for text in curves.get_legend().get_texts()] == [
        "most relevant first",
        "least relevant first",
    ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ran


def test_maps_keep_their_unit_and_place(results):
    """Photos, then maps in their own values over the photo's pixels, each with its unit; none where it failed."""
    figure = plot_maps(results, n=6)
    grid = [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]
    assert len(grid) == 6 * (1 + 5)
    assert sum(len(axis.child_axes) for axis in grid) == 6 * 5 - 1
    assert figure.get_suptitle() == "Colour bars: bits per pixel (LayerIBA); relevance, no unit (all but LayerIBA)"
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


def test_many_methods_have_curves_without_bands():
    """From six methods on, a note stands in place of the bands; LayerIBA is thicker and in front."""
    results = example_results(n_examples=2, n_methods=7)
    methods = [*results.methods[1:], results.methods[0]]
    figure = plot_results(replace(results, methods=methods[::-1]))
    axis = figure.axes[-1]
    assert len(axis.collections) == 0
    assert "at most 5 methods" in figure.legends[0].get_title().get_text()
    lines = [line for line in axis.lines if line.get_linestyle() != "None"]
    widths = sorted((line.get_linewidth(), line.get_zorder()) for line in lines)
    assert widths[-1][0] > widths[-3][0] and widths[-1][1] > widths[-3][1]
    marks = [line for line in axis.lines if line.get_linestyle() == "None"]
    assert min(line.get_zorder() for line in marks) > max(line.get_zorder() for line in lines)


def test_equal_curves_show_all_their_marks(results):
    """Curves that lie on each other have marks at different places."""
    curve = results.curves["LayerIBA"]
    figure = plot_results(replace(results, curves=dict.fromkeys(results.curves, curve)))
    marks = [tuple(line.get_xdata()) for line in figure.axes[6].lines if line.get_linestyle() == "None"]
    assert len(set(marks)) == len(marks) == 5


@pytest.mark.parametrize(("n_methods", "rows"), [(5, 1), (7, 2), (14, 3)])
def test_maps_are_readable(n_methods, rows):
    """At most six maps stand beside or below their photo, each under its method's name, within 2000 pixels."""
    results = example_results(n_examples=2, n_methods=n_methods)
    figure = plot_maps(results)
    assert figure.get_size_inches()[0] * 110 <= 2000
    titles = [axis.get_title() for axis in figure.axes]
    names = [info.name for info in results.methods if not info.reason]
    assert titles == [title for e in results.examples for title in (_photo_title(e), *names)]
    lefts = [round(axis.get_position().x0, 4) for axis in figure.axes]
    tops = [round(axis.get_position().y0, 4) for axis in figure.axes]
    assert len(set(tops)) == 2 * rows
    assert lefts[0] == min(lefts) and lefts.count(lefts[0]) == 2
    assert len(set(lefts)) == 1 + min(n_methods, 6)


def _photo_title(example):
    return f"{example.key}\n{example.target}, p = {example.probability:.3f}"


def test_styles_are_told_apart():
    """No two of 100 methods share colour, dash and mark, no two of 20 the colour; all stand out from the page."""
    assert len({style_of(place) for place in range(100)}) == 100
    assert len({style_of(place).colour for place in range(20)}) == 20
    assert len(MARKS) == len(MARK_PATHS)
    for colours, back in ((LIGHT, "#ffffff"), (DARK, "#14171b")):
        assert len(set(colours)) == 20
        assert min(_contrast(colour, back) for colour in colours) >= 3


def _contrast(one, other):
    values = []
    for colour in (one, other):
        rgb = np.array(to_rgb(colour))
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        values.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(values) + 0.05) / (min(values) + 0.05)


def test_nothing_to_draw(results):
    """Without methods that ran the figure says why; no photos, or no number of them, are refused."""
    nothing = Results([], [], [], {}, {}, {})
    assert "no metrics" in plot_results(nothing).get_suptitle()
    stopped = [info for info in results.methods if info.reason]
    figure = plot_results(replace(results, methods=stopped))
    assert figure.axes == []
    assert f"{stopped[0].name} could not run: RuntimeError" in figure.get_suptitle()
    with pytest.raises(InvalidArgumentError, match="n=8 of 0 photos"):
        plot_maps(nothing)
    with pytest.raises(InvalidArgumentError, match="n=0"):
        plot_maps(results, n=0)
