"""What degradation costs beside its forward passes, and beside Quantus on the same work.

    python -m benchmarks.metrics [--model squeezenet1_1|resnet18|tiny] [--images 8] [--repeats 3] [--threads 1]

Both curves, most and least relevant first, over all tiles. The variants run in turn in one process, and the medians of
their times on the processor are compared, which other programs do not disturb. "bare" is the model alone on as many
rows of the same size, in batches of four, which run fastest here; captum_iba and Quantus choose theirs.
Needs Quantus 0.6.0 (``pip install --group oracle``).
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from captum_iba.metrics import degradation

SIZE, TILE, ROWS = 224, 16, 4


def tiny() -> nn.Module:
    """A convolution, a pooling and a linear layer: little to hide the metric's own cost behind."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 10)
    )


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "tiny":
        return tiny().eval()
    from torchvision import models

    return models.get_model(name, weights=None, num_classes=10).eval()


def bare(model: nn.Module, x: Tensor) -> Callable[[], None]:
    n_tiles = (SIZE // TILE) ** 2
    rows = len(x) * (2 * (n_tiles - 1) + 2)

    def run() -> None:
        batch = x.repeat(-(-ROWS // len(x)), 1, 1, 1)[:ROWS]
        with torch.no_grad():
            for start in range(0, rows, ROWS):
                model(batch[: min(ROWS, rows - start)])

    return run


def ours(model: nn.Module, x: Tensor, maps: Tensor, y: Tensor) -> Callable[[], None]:
    def run() -> None:
        degradation(model, x, maps, "zero", target=y, tile_size=TILE, normalizer="none")

    return run


def quantus_curves(model: nn.Module, x: Tensor, maps: Tensor, y: Tensor) -> Callable[[], None]:
    import quantus

    n_tiles = (SIZE // TILE) ** 2
    options = {"patch_size": TILE, "regions_evaluation": n_tiles, "perturb_baseline": 0.0, "normalise": False}

    def run() -> None:
        for order in ("morf", "lerf"):
            metric = quantus.RegionPerturbation(order=order, disable_warnings=True, **options)
            metric(
                model=model,
                x_batch=x.numpy(),
                y_batch=y.numpy(),
                a_batch=maps.numpy(),
                device="cpu",
                batch_size=len(x),
                softmax=True,
            )

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="squeezenet1_1", help="tiny, or one of torchvision's")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    model = build(options.model)
    generator = np.random.default_rng(0)
    x = torch.from_numpy(generator.standard_normal((options.images, 3, SIZE, SIZE), dtype=np.float32))
    maps = torch.from_numpy(generator.standard_normal((options.images, 1, SIZE, SIZE), dtype=np.float32))
    y = torch.arange(options.images) % 10
    variants = {
        "bare": bare(model, x),
        "captum_iba": ours(model, x, maps, y),
        "Quantus": quantus_curves(model, x, maps, y),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(options.repeats):
        for name, run in variants.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{options.model}, {options.images} images, {(SIZE // TILE) ** 2} tiles, both curves")
    for name, seconds in medians.items():
        print(f"{name:12s} {seconds:8.2f} s   {seconds / medians['bare']:5.2f} x the bare forward passes")


if __name__ == "__main__":
    main()
