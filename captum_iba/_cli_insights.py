"""``captum-iba insights --demo``: Captum Insights' dashboard with the bottlenecks, on the embedded digits."""

from __future__ import annotations

import argparse
import importlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from captum_iba.errors import InvalidArgumentError
from captum_iba.insights import register, serve

# canvases, and how many at once
_CALIBRATION, _SHOWN = (1000, 250), (200, 4)


def add_parser(commands: Any) -> None:
    """Add ``insights`` to the command line."""
    parser = commands.add_parser(
        "insights", help="show Captum Insights' dashboard with our methods (captum 0.8: captum_iba[insights])"
    )
    parser.add_argument("--demo", action="store_true", help="on the embedded digits; nothing is downloaded")
    parser.add_argument("--port", type=int, default=0, help="of 127.0.0.1, default: any that is free")
    parser.set_defaults(run=run_insights)


def run_insights(options: argparse.Namespace) -> int:
    """Show the dashboard until interrupted; returns the exit status."""
    if not options.demo:
        raise InvalidArgumentError(
            "What is to be shown? --demo shows the embedded digits. For a model of yours call captum_iba.insights's "
            "register and serve."
        )
    warnings.filterwarnings("ignore", module=r"captum\.")  # what Captum tells of its own methods at each fetch
    serve(demo_visualizer(), options.port, _print_address)
    return 0


def _print_address(address: str) -> None:
    print(f"Captum Insights: {address} (Ctrl-C ends it)", flush=True)


def demo_visualizer() -> Any:
    """Captum's ``AttributionVisualizer`` of the embedded digits, with IBA and the embedded readout registered.

    Raises:
        MissingDependencyError: there is no Captum Insights, or no scikit-learn, which has the digits.
    """
    from captum_iba.demo import LAYER, DigitsNet, load_canvases, load_model, to_display
    from captum_iba.demo.readout import PATH

    class ColourDigitsNet(DigitsNet):
        """The embedded network for images of three channels, which Insights needs for all its methods."""

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.mean(dim=1, keepdim=True))

    def coloured(split: Any, n: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        canvases = load_canvases(split, n)
        images = canvases.images.expand(-1, 3, -1, -1)
        yield from zip(torch.split(images, size), torch.split(canvases.labels, size), strict=True)

    register(layer=LAYER, statistics=[images for images, _ in coloured("train", *_CALIBRATION)])
    register(method="readout", readout=PATH)
    model = ColourDigitsNet()
    model.load_state_dict(load_model().state_dict())
    insights: Any = importlib.import_module("captum.insights")
    features: Any = importlib.import_module("captum.insights.attr_vis.features")
    return insights.AttributionVisualizer(
        models=[model.eval()],
        score_func=lambda logits: logits.softmax(dim=1),
        classes=[str(digit) for digit in range(10)],
        features=[features.ImageFeature("canvas", torch.zeros_like, [], visualization_transform=to_display)],
        dataset=(insights.Batch(images, labels) for images, labels in coloured("test", *_SHOWN)),
    )
