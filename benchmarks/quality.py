"""Bounding-box ratio of IBA and Captum's methods on photos with Pascal-VOC boxes.

    python -m benchmarks.quality DATA --weights FILE --calibrate FOLDER --target 104

DATA holds ``images`` and ``annots``. Photos are resized to 224 x 224 without a crop; those whose boxes cover 33 % or
more are left out, as in the paper. Printed are mean and standard error, and the paired difference of LayerIBA to each
method. Parameters of Captum's methods are those of the paper's appendix.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path

import captum.attr
import torch
from torch import Tensor, nn

from benchmarks._photos import (
    SIZE,
    add_model_arguments,
    calibrated,
    mean_and_error,
    start,
    with_boxes,
)
from captum_iba import resize_bits
from captum_iba.metrics import bounding_box_ratio

Method = Callable[[Tensor, Tensor], Tensor]

PIECE = 8


def iba_methods(method: captum.attr.LayerAttribution) -> dict[str, Method]:
    def run(**keywords: object) -> Method:
        return lambda x, y: resize_bits(method.attribute(x, target=y, **keywords), (SIZE, SIZE))

    def reduced(**keywords: object) -> Method:
        def explain(x: Tensor, y: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return run(**keywords)(x, y)

        return explain

    return {
        "LayerIBA": run(),
        "LayerIBA seed=1": run(seed=1),
        "LayerIBA n_samples=4": run(n_samples=4),
        "LayerIBA n_samples=4 bfloat16": reduced(n_samples=4),
        "LayerIBA n_samples=2": run(n_samples=2),
        "LayerIBA n_samples=2 bfloat16": reduced(n_samples=2),
        "LayerIBA n_samples=1": run(n_samples=1),
    }


def captum_methods(model: nn.Module, layers: list[str]) -> dict[str, Method]:
    # GuidedBackprop needs activations that do not overwrite their input
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    saliency, guided = captum.attr.Saliency(model), captum.attr.GuidedBackprop(model)
    multiplied = captum.attr.IntegratedGradients(model)
    integrated = captum.attr.IntegratedGradients(model, multiply_by_inputs=False)
    smooth, occlusion = captum.attr.NoiseTunnel(saliency), captum.attr.Occlusion(model)

    def strongest(values: Tensor) -> Tensor:
        return values.abs().amax(dim=1, keepdim=True)

    def mean_colour(x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3), keepdim=True).expand_as(x)

    def integrate(method: captum.attr.IntegratedGradients) -> Method:
        options = {"n_steps": 50, "method": "riemann_right", "internal_batch_size": 50}
        return lambda x, y: strongest(method.attribute(x, mean_colour(x), target=y, **options))

    def smooth_gradients(absolute: bool) -> Method:
        def explain(x: Tensor, y: Tensor) -> Tensor:
            rows = []
            for image, label in zip(x.split(1), y.split(1), strict=True):  # the noise follows the image's own range
                spread = 0.15 * float(image.max() - image.min())
                options = {"nt_samples": 50, "nt_samples_batch_size": 25, "stdevs": spread, "abs": absolute}
                rows.append(smooth.attribute(image, target=label, **options))
            return strongest(torch.cat(rows))

        return explain

    def occlude(side: int) -> Method:
        window = (3, side, side)
        return lambda x, y: occlusion.attribute(
            x, window, strides=window, baselines=mean_colour(x), target=y, perturbations_per_eval=32
        )[:, :1]

    methods: dict[str, Method] = {
        "Saliency": lambda x, y: saliency.attribute(x, target=y).amax(dim=1, keepdim=True),
        "IntegratedGradients": integrate(multiplied),
        "IntegratedGradients, unmultiplied": integrate(integrated),
        "SmoothGrad": smooth_gradients(absolute=False),
        "SmoothGrad of Saliency": smooth_gradients(absolute=True),
        "GuidedBackprop": lambda x, y: strongest(guided.attribute(x, target=y)),
        "Occlusion 8x8": occlude(8),
        "Occlusion 14x14": occlude(14),
    }
    for name in layers:
        methods |= gradcam_methods(model, name, strongest)
    return methods


def gradcam_methods(model: nn.Module, name: str, strongest: Callable[[Tensor], Tensor]) -> dict[str, Method]:
    plain = captum.attr.LayerGradCam(model, model.get_submodule(name))
    guided = captum.attr.GuidedGradCam(model, model.get_submodule(name))

    def gradcam(x: Tensor, y: Tensor) -> Tensor:
        values = plain.attribute(x, target=y, relu_attributions=True)
        return nn.functional.interpolate(values, (SIZE, SIZE), mode="bilinear", align_corners=False)

    return {
        f"LayerGradCam {name}": gradcam,
        f"GuidedGradCam {name}": lambda x, y: strongest(guided.attribute(x, target=y, interpolate_mode="bilinear")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    add_model_arguments(parser)
    parser.add_argument("--target", type=int, help="class of all photos; default: the predicted one")
    parser.add_argument("--gradcam-layers", nargs="+", default=["features.7", "features.12"])
    parser.add_argument("--largest", type=float, default=0.33, help="largest share of a photo that its boxes may cover")
    options = parser.parse_args()
    classifier = start(options)
    photos = with_boxes(options.data, classifier, options.target, options.largest)
    x = torch.stack([photo.inputs for photo in photos])
    masks = torch.stack([photo.mask for photo in photos])
    y = torch.tensor([photo.target for photo in photos])
    iba = calibrated(classifier, classifier.model.get_submodule(options.layer), options.calibrate)
    methods = iba_methods(iba) | captum_methods(classifier.model, options.gradcam_layers)
    print(f"{options.model} {options.layer}, {len(x)} photos, boxes cover {float(masks.float().mean()):.3f} on average")
    print(f"{'method':34s} {'box ratio (s.e.)':>18s} {'LayerIBA minus it':>19s} {'s an image':>11s}")
    reference: Tensor | None = None
    for name, method in methods.items():
        begin = time.perf_counter()
        maps = torch.cat([method(a, b).detach() for a, b in zip(x.split(PIECE), y.split(PIECE), strict=True)])
        elapsed = (time.perf_counter() - begin) / len(x)
        ratio = bounding_box_ratio(maps, masks).per_sample
        reference = ratio if reference is None else reference
        print(
            f"{name:34s} {mean_and_error(ratio):>18s} {mean_and_error(reference - ratio):>19s} {elapsed:11.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
