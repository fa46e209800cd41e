import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from captum_iba.bottleneck.smoothing import GaussianBlur, gaussian_kernel
from tests.literal import normal


@pytest.mark.parametrize("shape", [(17,), (9, 12), (7, 8, 9)])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.5])
def test_equals_scipy(shape, sigma):
    """The blur is scipy's truncated Gaussian filter with mirrored borders, on one, two and three axes."""
    x = normal(2, 3, *shape)
    found = GaussianBlur(sigma, shape)(x)
    radius = round(2 * sigma)
    for n in range(2):
        for c in range(3):
            wanted = gaussian_filter(x[n, c].numpy(), sigma, mode="mirror", radius=radius)
            np.testing.assert_allclose(found[n, c].numpy(), wanted, atol=1e-12)


@pytest.mark.parametrize(("sigma", "size"), [(0.0, 1), (0.2, 1), (0.5, 3), (1.0, 5), (1.5, 7), (2.0, 9)])
def test_window_sizes(sigma, size):
    """The window has 2 round(2 sigma) + 1 entries and sums to one."""
    kernel = gaussian_kernel(sigma)
    assert len(kernel) == size
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-15)


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([0.5, 1.0, 2.0]))
@pytest.mark.filterwarnings("ignore:sigma=")
def test_constants_stay_for_any_shape(height, width, sigma):
    """A constant map stays constant, also where the window has to shrink."""
    x = torch.full((1, 2, height, width), 0.7, dtype=torch.float64)
    torch.testing.assert_close(GaussianBlur(sigma, (height, width))(x), x, rtol=0, atol=1e-14)


def test_small_map_warns():
    """A map too small for the window is blurred less, and one warning says so."""
    with pytest.warns(UserWarning, match="sigma=2.0 needs a window of 9 positions"):
        blur = GaussianBlur(2.0, (4, 4))
    assert [len(kernel) for kernel in blur.kernels] == [7, 7]


def test_sigma_zero_is_the_identity():
    """Switched off, the very tensor comes back."""
    x = normal(1, 1, 3, 3)
    assert GaussianBlur(0.0, (3, 3))(x) is x
