"""What LayerIBA's faster settings cost in quality, on photos with Pascal-VOC boxes.

    python -m benchmarks.quality DATA --weights FILE --calibrate FOLDER --target 104 [--metrics "bounding box"]

DATA holds ``images`` and ``annots``. Photos are resized to 224 x 224 without a crop; those whose boxes cover 33 % or
more are left out, as in the paper. Printed are each setting's mean and standard error, and the paired difference of the
default to it. For other methods on photos of your own there is ``captum-iba compare``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from benchmarks._photos import add_model_arguments, calibrated, mean_and_error, start
from captum_iba import LayerIBA, compare
from captum_iba.comparison import Method, PhotoFolder
from captum_iba.comparison.methods import BITS

DEFAULT = "LayerIBA"
SETTINGS = {
    DEFAULT: {},
    "seed=1": {"seed": 1},
    "n_samples=4": {"n_samples": 4},
    "n_samples=2": {"n_samples": 2},
    "n_samples=1": {"n_samples": 1},
    "n_samples=4, bfloat16": {"n_samples": 4},
    "n_samples=2, bfloat16": {"n_samples": 2},
}


def variant(iba: LayerIBA, name: str) -> Method:
    def explain(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled="bfloat16" in name):
            return iba.attribute(x, target=y, **SETTINGS[name])

    return Method(name, lambda context: explain, name, BITS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    add_model_arguments(parser)
    parser.add_argument("--target", default="predicted", help="class of all photos; default: the predicted one")
    parser.add_argument("--largest", type=float, default=0.33, help="largest share of a photo that its boxes may cover")
    parser.add_argument("--metrics", nargs="+", default=["bounding box", "degradation 14x14"])
    parser.add_argument("--n-steps", type=int, default=40, help="points on the degradation curves")
    options = parser.parse_args()
    classifier = start(options)
    photos = PhotoFolder(
        options.data / "images",
        classifier,
        options.target,
        annotations=options.data / "annots",
        crop="none",
        largest_coverage=options.largest,
        only_boxes=options.metrics == ["bounding box"],
    )
    iba = calibrated(classifier, classifier.model.get_submodule(options.layer), options.calibrate)
    methods = [variant(iba, name) for name in SETTINGS]
    report = compare(
        classifier.model,
        photos,
        methods,
        options.metrics,
        options.layer,
        statistics=iba.statistics,
        n_steps=options.n_steps,
        n_pictures=0,
        show_progress=True,
    )
    for metric in options.metrics:
        print(f"\n{options.model} {options.layer}, {metric}")
        print(f"{'setting':24s} {'mean (s.e.)':>18s} {'default minus it':>19s} {'photos':>7s} {'s a photo':>10s}")
        for info in report.results.methods:
            difference, error, n = report.paired(DEFAULT, info.name, metric)
            values = report.results.scores[info.name][metric]
            own = mean_and_error(torch.from_numpy(values[values == values]))
            print(f"{info.name:24s} {own:>18s} {difference:+10.4f} ({error:.4f}) {n:7d} {info.seconds:10.2f}")


if __name__ == "__main__":
    main()
