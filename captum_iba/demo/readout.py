"""The readout bottleneck that comes with the package, trained on the embedded canvases."""

from __future__ import annotations

from pathlib import Path

from captum_iba.attr import LayerReadoutIBA
from captum_iba.demo.model import LAYER, DigitsNet, load_model

PATH = Path(__file__).with_name("digits_readout.safetensors")
"""The packaged file."""


def load_readout(model: DigitsNet | None = None) -> LayerReadoutIBA:
    """Load the trained readout that comes with the package.

    Args:
        model: The network to explain, or None for a fresh copy of the embedded one.

    Returns:
        The readout, at :data:`captum_iba.demo.LAYER`.

    Raises:
        MissingFileError: The file is missing; ``python -m captum_iba.demo.train_readout`` makes it anew.

    Examples::

        >>> from captum_iba.demo import load_canvases, load_readout
        >>> load_readout().attribute(load_canvases("test", 2).images).shape
        torch.Size([2, 1, 16, 16])
    """
    model = load_model() if model is None else model
    return LayerReadoutIBA(model, model.get_submodule(LAYER)).load(PATH)
