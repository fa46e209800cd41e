import numpy as np
import pytest
import torch
from captum.attr import visualization as viz

from captum_iba.errors import InvalidArgumentError, InvalidTypeError
from captum_iba.visualization import Heatmap, plot_attributions, to_heatmap


def test_colour_bar_carries_the_values_and_the_unit():
    """The drawn values are the map's own, and the colour bar is labelled with their unit."""
    values = torch.rand(1, 1, 6, 8, generator=torch.Generator().manual_seed(0)) * 7
    figure = plot_attributions(torch.zeros(1, 1, 6, 8), {"IBA": Heatmap(values, "bits per pixel")}, ["a title"])
    image_axis, map_axis, bar_axis = figure.axes
    assert image_axis.get_title() == "a title"
    assert map_axis.get_title() == "IBA"
    np.testing.assert_allclose(map_axis.images[0].get_array(), values[0, 0].numpy())
    assert map_axis.images[0].get_clim() == pytest.approx((0.0, float(values.max())))
    assert bar_axis.get_ylabel() == "bits per pixel"


def test_boxes_are_drawn_around_their_pixels():
    """A half-open box 2..5 x 1..4 is a rectangle from the edge of its first pixel to the edge of its last."""
    figure = plot_attributions(
        torch.zeros(1, 3, 6, 8), {"m": Heatmap(torch.zeros(1, 1, 6, 8), "u")}, boxes=torch.tensor([[2, 1, 5, 4]])
    )
    patch = figure.axes[0].patches[0]
    assert (patch.get_x(), patch.get_y(), patch.get_width(), patch.get_height()) == (1.5, 0.5, 3.0, 3.0)
    assert len(figure.axes[1].patches) == 2


def test_no_figure_reaches_pyplot():
    """Drawing leaves pyplot's figures alone."""
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    plot_attributions(torch.zeros(1, 1, 4, 4), {"m": Heatmap(torch.zeros(1, 1, 4, 4), "u")})
    assert plt.get_fignums() == before


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 4, 8, 8)])
def test_images_of_another_shape(shape):
    """Images that cannot be drawn are refused with their shape."""
    with pytest.raises(InvalidArgumentError, match="images has shape"):
        plot_attributions(torch.zeros(shape), {})


def test_maps_of_another_size_name_the_remedy():
    """A map that does not cover the image is refused."""
    with pytest.raises(InvalidArgumentError, match=r"maps\['IBA'\].*resize_bits"):
        plot_attributions(torch.zeros(1, 1, 8, 8), {"IBA": Heatmap(torch.zeros(1, 1, 4, 4), "bits per pixel")})


def test_heatmap_is_what_captum_draws():
    """The array has Captum's layout (H, W, 1), keeps the total, and every method of Captum draws it."""
    bits = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    heatmap = to_heatmap(bits, (16, 16))
    assert heatmap.shape == (1, 16, 16, 1)
    assert heatmap.sum() == pytest.approx(float(bits.sum()), rel=1e-6)
    image = np.random.default_rng(0).random((16, 16, 3))
    for method in ("heat_map", "blended_heat_map", "masked_image", "alpha_scaling"):
        figure, _ = viz.visualize_image_attr(heatmap[0], image, method, sign="positive", use_pyplot=False)
        assert figure.axes


def test_zero_maps_are_dark():
    """A map without bits is drawn at the bottom of the scale, not in its middle."""
    figure = plot_attributions(torch.zeros(1, 1, 4, 4), {"m": Heatmap(torch.zeros(1, 1, 4, 4), "u")})
    assert figure.axes[1].images[0].get_clim() == (0.0, 1.0)


def test_channels_are_summed():
    """Attributions of the input's shape can be drawn: a pixel's bits are the sum over its channels."""
    values = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    figure = plot_attributions(torch.zeros(1, 3, 4, 4), {"m": Heatmap(values, "u")})
    np.testing.assert_allclose(figure.axes[1].images[0].get_array(), values.sum(1)[0].numpy(), rtol=1e-6)


def test_mistakes_in_plots_are_named():
    """Tensors without a unit, normalised photos and missing titles are refused with the way out."""
    grey = torch.zeros(2, 1, 4, 4)
    with pytest.raises(InvalidTypeError, match=r"Heatmap\(values"):
        plot_attributions(grey, {"m": grey})
    with pytest.raises(InvalidArgumentError, match="images \\* std"):
        plot_attributions(grey - 2, {})
    with pytest.raises(InvalidArgumentError, match="1 entries for 2 images"):
        plot_attributions(grey, {}, titles=["one"])
