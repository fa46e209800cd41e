"""A small, self-contained playground: cluttered handwritten digits and a network that reads them.

Every canvas holds one whole digit among fragments of other digits, together with the box around the digit, so that one
can see, and measure, whether an attribution finds the part of the picture that the network has to use. Nothing is
downloaded: the digits come with scikit-learn (``pip install captum_iba[demo]``), the weights with this package.

Examples::

    >>> from captum_iba.demo import LAYER, load_canvases, load_model
    >>> model, canvases = load_model(), load_canvases("test", n=2)
    >>> model(canvases.images).shape
    torch.Size([2, 10])
    >>> model.get_submodule(LAYER).__class__.__name__
    'Sequential'
"""

from __future__ import annotations

from captum_iba.demo.data import Canvases, load_canvases, to_display
from captum_iba.demo.model import LAYER, DigitsNet, load_model
from captum_iba.demo.readout import load_readout

__all__ = ["LAYER", "Canvases", "DigitsNet", "load_canvases", "load_model", "load_readout", "to_display"]
