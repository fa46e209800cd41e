"""A small convolutional network that names the digit on a cluttered canvas."""

from __future__ import annotations

from importlib.resources import files

import torch
from safetensors.torch import load
from torch import Tensor, nn

LAYER = "stage2"
"""Dotted name of the module whose 16x16 feature maps are a good place for a bottleneck."""

WEIGHTS = "digits_cnn.safetensors"
"""Name of the packaged file with the trained weights."""


def _block(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    """Give the modules of one Conv-BN-ReLU block.

    An even kernel for stride 2 and an odd one for stride 1 keep every feature centred on the pixels it stands for; a
    3x3 kernel of stride 2 would shift the maps by half a pixel each time.
    """
    convolution = nn.Conv2d(inputs, outputs, kernel_size=2 + stride, stride=stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


class DigitsNet(nn.Module):
    """Four stages of Conv-BN-ReLU blocks, global average pooling and a linear head.

    The feature maps of the stages measure 32x32, 16x16, 8x8 and 8x8 and are aligned with the 64x64 pixels: the feature
    in row i and column j of a map of side s sees a neighbourhood centred on the middle of the (i, j)-th of the s x s
    equal tiles of the canvas.

    Examples::

        >>> import torch
        >>> from captum_iba.demo.model import DigitsNet
        >>> DigitsNet().eval()(torch.zeros(2, 1, 64, 64)).shape
        torch.Size([2, 10])
    """

    def __init__(self) -> None:
        """Build the network with fresh random weights."""
        super().__init__()
        self.stage1 = nn.Sequential(*_block(1, 16, stride=2), *_block(16, 16))
        self.stage2 = nn.Sequential(*_block(16, 32, stride=2), *_block(32, 32))
        self.stage3 = nn.Sequential(*_block(32, 64, stride=2), *_block(64, 64))
        self.stage4 = nn.Sequential(*_block(64, 64))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Score the ten digits.

        Args:
            images: Centred and scaled canvases, (n, 1, 64, 64).

        Returns:
            The logits, (n, 10).

        Examples::

            >>> import torch
            >>> from captum_iba.demo.model import DigitsNet
            >>> DigitsNet().eval().forward(torch.zeros(1, 1, 64, 64)).shape
            torch.Size([1, 10])
        """
        features = self.stage4(self.stage3(self.stage2(self.stage1(images))))
        logits: Tensor = self.head(self.pool(features).flatten(start_dim=1))
        return logits


def load_model() -> DigitsNet:
    """Load the trained network that comes with the package.

    Returns:
        The network in eval mode, on the CPU. The global random state stays as it is.

    Raises:
        FileNotFoundError: The weights file is missing; ``python -m captum_iba.demo.train`` makes it anew.

    Examples::

        >>> from captum_iba.demo.data import load_canvases
        >>> from captum_iba.demo.model import load_model
        >>> canvases = load_canvases("test", n=20)
        >>> hits = load_model()(canvases.images).argmax(dim=1) == canvases.labels
        >>> hits.float().mean().item() > 0.8
        True
    """
    state = load(files(__package__).joinpath(WEIGHTS).read_bytes())
    # On the meta device no random weights are drawn, only to be overwritten; the loaded tensors take their place.
    with torch.device("meta"):
        model = DigitsNet()
    model.load_state_dict(state, assign=True)
    return model.eval()
