import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

from captum_iba import LayerIBA
from captum_iba.errors import InvalidArgumentError
from captum_iba.visualization import plot_time_series


def test_lines_over_their_bits():
    """What LayerIBA finds at a convolution over time, its unit at the colour bar, and no pyplot figure left open."""
    model = nn.Sequential(nn.Conv1d(2, 4, 5, stride=2, padding=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 20, 3)).eval()
    series = torch.randn(2, 2, 40)
    bits = LayerIBA(model, model[0]).estimate(torch.randn(1000, 2, 40)).attribute(series, target=1)
    before = plt.get_fignums()
    figure = plot_time_series(series, bits, titles=["first", "second"], channels=["x", "y"])
    assert plt.get_fignums() == before
    drawn = figure.axes[0]
    assert [line.get_label() for line in drawn.lines] == ["x", "y"]
    assert torch.allclose(torch.tensor(drawn.lines[1].get_ydata()).float(), series[0, 1])
    assert float(drawn.images[0].get_array().sum()) == pytest.approx(float(bits[0].sum()), rel=1e-5)
    assert figure.axes[-1].get_ylabel() == "bits per step"


@pytest.mark.parametrize(
    ("series", "bits", "options", "message"),
    [
        (torch.zeros(2, 8), torch.zeros(2, 1, 8), {}, "series has shape"),
        (torch.zeros(2, 1, 8), torch.zeros(1, 1, 8), {}, "bits has shape"),
        (torch.zeros(2, 1, 8), -torch.ones(2, 1, 8), {}, "negative"),
        (torch.zeros(2, 1, 8), torch.zeros(2, 1, 8), {"titles": ["one"]}, "titles has 1"),
        (torch.zeros(2, 1, 8), torch.zeros(2, 1, 8), {"channels": []}, "channels has 0"),
    ],
)
def test_mistakes_are_answered(series, bits, options, message):
    """The message names what does not fit."""
    with pytest.raises(InvalidArgumentError, match=message):
        plot_time_series(series, bits, **options)
