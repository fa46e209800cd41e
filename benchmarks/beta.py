"""The paper's Table 1: information and accuracy through the bottleneck for several beta.

    python -m benchmarks.beta DATA --weights FILE --calibrate FOLDER

DATA is a folder of photos named INDEX_..., INDEX being the class. For each beta: information per element in nats (the
paper's L_I / k) and bits per photo, and how often the photo's class is among the first one and five of the mean
prediction over noisy copies through the final bottleneck. The published table was made with another formula for the
noise, so that only its trends compare.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks._photos import add_model_arguments, calibrated, cropped, start
from captum_iba import LayerIBA
from captum_iba.bottleneck import GaussianBlur, Noise, Settings, Site, Tail, optimize
from captum_iba.bottleneck.information import signal_and_noise_scale
from captum_iba.photos import photos_in

BETAS = (0.01, 0.1, 1.0, 10.0, 100.0)
PIECE, COPIES = 8, 10


def explain(iba: LayerIBA, x: Tensor, y: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Bits per element, and the mean prediction over noisy copies through the final mask."""
    model = iba.forward_func
    tail = Tail(Site(iba.layer, "layer"), lambda copies: model(x.repeat(copies, 1, 1, 1)), [model], lambda out: out)
    features = tail.features
    assert iba.statistics is not None
    reference = iba.statistics.reference(features)
    settings = Settings(beta=beta)
    noise = Noise(tuple(features.shape[1:]), features, seed=0)

    @contextmanager
    def loss(z: Tensor, copies: int) -> Iterator[Tensor]:
        with tail.run(z, copies) as output:
            yield nn.functional.cross_entropy(output, y.repeat(copies), reduction="none")

    solved = optimize(features, reference, loss, settings, noise, GaussianBlur(1.0, tuple(features.shape[2:])))
    mean, deviation = signal_and_noise_scale(solved.mask, features, reference)
    total = torch.zeros(())
    for eps in noise.draw(COPIES):
        with torch.no_grad(), tail.run(mean + deviation * eps, 1) as output:
            total = total + output.softmax(dim=1) / COPIES
    return solved.bits, total


def hits(prediction: Tensor, y: Tensor, k: int) -> float:
    return float((prediction.topk(k, dim=1).indices == y[:, None]).any(dim=1).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    add_model_arguments(parser)
    parser.add_argument("--photos", type=int, default=40)
    options = parser.parse_args()
    classifier = start(options)
    paths = photos_in(options.data)
    paths = paths[:: max(1, len(paths) // options.photos)][: options.photos]
    x, y = cropped(paths, classifier), torch.tensor([int(path.name.split("_")[0]) for path in paths])
    iba = calibrated(classifier, classifier.model.get_submodule(options.layer), options.calibrate)
    with torch.no_grad():
        own = classifier.model(x)
    print(f"{options.model} {options.layer}, {len(x)} photos\n{'beta':>8s} {'L_I/k':>9s} {'bits':>10s}   top-5  top-1")
    print(f"{'model':>8s} {'-':>9s} {'-':>10s}   {hits(own, y, 5):.3f}  {hits(own, y, 1):.3f}")
    for beta in BETAS:
        bits, predictions = [], []
        for images, labels in zip(x.split(PIECE), y.split(PIECE), strict=True):
            found, prediction = explain(iba, images, labels, beta)
            bits.append(found)
            predictions.append(prediction)
        total, prediction = torch.cat(bits), torch.cat(predictions)
        nats = float(total.mean()) * math.log(2)
        row = f"{beta:8.2f} {nats:9.4f} {float(total.flatten(1).sum(dim=1).mean()):10.0f}"
        print(f"{row}   {hits(prediction, y, 5):.3f}  {hits(prediction, y, 1):.3f}", flush=True)


if __name__ == "__main__":
    main()
