"""What ``captum-iba demo`` does: explain held-out canvases and compare with LayerGradCam."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from captum.attr import LayerGradCam
from torch import Tensor

from captum_iba.attr import IBADiagnostics, LayerIBA, resize_bits
from captum_iba.demo.data import SIZE, Canvases, load_canvases, to_display
from captum_iba.demo.model import LAYER, DigitsNet, load_model
from captum_iba.demo.readout import load_readout
from captum_iba.visualization import Heatmap, plot_attributions

N_CALIBRATION, N_EXPLAINED, N_PRINTED, N_DRAWN = 2000, 100, 8, 4
# GradCAM is usually put at the last feature map; both places are shown, so that it is compared at its best.
_GRADCAM_LAYERS = (LAYER, "stage4")


@dataclass(frozen=True)
class DemoResult:
    """What the demo found on the explained canvases.

    Attributes:
        inside (dict[str, Tensor]): share of each method's attribution inside the digit's box, (N,).
        bits (Tensor): (N, 1, 64, 64), bits per pixel.
        probability (Tensor): (N,), of the predicted digit, without the bottleneck.
        diagnostics (IBADiagnostics): of the bottleneck.
        picture (Path): the figure written.
        seconds (float): time the demo took.
    """

    inside: dict[str, Tensor]
    bits: Tensor
    probability: Tensor
    diagnostics: IBADiagnostics
    picture: Path
    seconds: float


def run_demo(output: Path, show_progress: bool = True) -> DemoResult:
    """Explain the predicted digit on held-out canvases, write a picture and return the figures.

    Args:
        output (Path): folder, made if it is not there.
        show_progress (bool, optional): show progress bars. Default: True.

    Returns:
        DemoResult: shares inside the box, bits and probabilities.

    Raises:
        MissingDependencyError: scikit-learn, which bundles the digits, is not installed.
    """
    start = time.perf_counter()
    output.mkdir(parents=True, exist_ok=True)
    model, canvases = load_model(), load_canvases("test", N_EXPLAINED)
    probability, predicted = model(canvases.images).softmax(dim=1).detach().max(dim=1)
    iba = LayerIBA(model, model.get_submodule(LAYER))
    iba.estimate(torch.split(load_canvases("train", N_CALIBRATION).images, 250), show_progress=show_progress)
    bits, record = iba.attribute(
        canvases.images, target=predicted, return_diagnostics=True, show_progress=show_progress
    )
    maps = {"LayerIBA": resize_bits(bits, (SIZE, SIZE))}
    readout: Any = load_readout(model)
    maps["LayerReadoutIBA"] = resize_bits(readout.attribute(canvases.images), (SIZE, SIZE))
    for name in _GRADCAM_LAYERS:
        maps[f"LayerGradCam {name}"] = _gradcam(model, name, canvases.images, predicted)
    inside = {name: share_inside(values, canvases.boxes) for name, values in maps.items()}
    picture = output / "digits.png"
    _draw(canvases, maps, predicted, record, picture)
    seconds = time.perf_counter() - start
    return DemoResult(inside, maps["LayerIBA"], probability, record, picture, seconds)


def share_inside(maps: Tensor, boxes: Tensor) -> Tensor:
    """Share of each non-negative map (N, 1, H, W) that lies inside its box; a map of zeros has the share 0."""
    rows = torch.arange(maps.shape[2])[None, :, None]
    columns = torch.arange(maps.shape[3])[None, None, :]
    x0, y0, x1, y1 = (edge[:, None, None] for edge in boxes.unbind(dim=1))
    inside = (rows >= y0) & (rows < y1) & (columns >= x0) & (columns < x1)
    total = maps.flatten(1).sum(dim=1).clamp_min(1e-12)
    return (maps[:, 0] * inside).flatten(1).sum(dim=1) / total


def _gradcam(model: DigitsNet, layer: str, images: Tensor, target: Tensor) -> Tensor:
    method = LayerGradCam(model, model.get_submodule(layer))
    values = method.attribute(images, target=target, relu_attributions=True).detach()
    return resize_bits(values, (SIZE, SIZE))


def _draw(canvases: Canvases, maps: dict[str, Tensor], predicted: Tensor, record: IBADiagnostics, path: Path) -> None:
    columns = {
        name: Heatmap(values[:N_DRAWN], "relevance, no unit" if "GradCam" in name else "bits per pixel")
        for name, values in maps.items()
    }
    titles = [
        f"digit {int(c)}, LayerIBA {float(b):.0f} bits"
        for c, b in zip(predicted[:N_DRAWN], record.total_bits, strict=False)
    ]
    figure = plot_attributions(to_display(canvases.images[:N_DRAWN]), columns, titles, canvases.boxes[:N_DRAWN])
    figure.savefig(path, dpi=110)


def report(result: DemoResult) -> str:
    """The figures as text."""
    record = result.diagnostics
    through = torch.as_tensor(record.target_probability)
    lines = ["canvas   bits   p(digit)   p(digit) through the bottleneck   share of bits inside the box"]
    for i in range(N_PRINTED):
        lines.append(
            f"{i:6d} {float(record.total_bits[i]):6.0f} {float(result.probability[i]):10.3f} "
            f"{float(through[i]):33.3f} {float(result.inside['LayerIBA'][i]):31.3f}"
        )
    lines.append(f"\nShare inside the digit's box, mean over {len(result.probability)} held-out canvases:")
    for name, share in result.inside.items():
        error = float(share.std()) / len(share) ** 0.5
        lines.append(f"  {name:22s} {float(share.mean()):.3f} (standard error {error:.3f})")
    lines.append(f"\nPicture: {result.picture}\n{result.seconds:.1f} s")
    return "\n".join(lines)
