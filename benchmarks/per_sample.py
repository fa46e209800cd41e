"""Speed and memory of LayerIBA against the method as the paper writes it.

    python -m benchmarks.per_sample                 # CPU, one thread; about 15 minutes
    python -m benchmarks.per_sample --device cuda

Random weights, 224 x 224, the paper's layers and parameters. Variants run in turn in one process and the ratios are of
their medians; peak memory is measured in a process of its own for each variant.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torchvision
from torch import nn

from captum_iba import FeatureStatistics, LayerIBA
from tests.literal import literal_iba

LAYERS = {"resnet50": "layer2", "vgg16": "features.17"}
# The documented faster setting: fewer noise copies, and the model in bfloat16.
FAST = {"n_samples": 2}


def build(name: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval().to(device, dtype)
    return model, model.get_submodule(LAYERS[name])


def calibrate(model: nn.Module, layer: nn.Module, device: str, dtype: torch.dtype) -> FeatureStatistics:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = LayerIBA(model, layer).estimate(torch.randn(16, 3, 224, 224, dtype=dtype, device=device).split(1))
    assert found.statistics is not None
    return found.statistics


@contextlib.contextmanager
def bfloat16(device: str) -> Iterator[None]:
    with torch.autocast(device, dtype=torch.bfloat16):
        yield


def variants(name: str, batch: int = 1) -> dict[str, Callable[[], object]]:
    model, layer = build(name)
    found = calibrate(model, layer, "cpu", torch.float32)
    x = torch.randn(batch, 3, 224, 224)
    iba = LayerIBA(model, layer, statistics=found)
    mean, std = found.mean.float(), found.std.float()

    def literal() -> object:
        model.zero_grad()
        return literal_iba(model, layer, x, 1, mean, std)

    def fast() -> object:
        with bfloat16("cpu"):
            return iba.attribute(x, target=1, **FAST)

    def few_copies() -> object:
        return iba.attribute(x, target=1, **FAST)

    return {
        "literal": literal,
        "LayerIBA": lambda: iba.attribute(x, target=1),
        f"LayerIBA {FAST}": few_copies,
        f"LayerIBA {FAST} bfloat16": fast,
    }


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(name: str, repeats: int) -> None:
    runs = variants(name)
    times: dict[str, list[float]] = {label: [] for label in runs}
    for label, run in runs.items():
        if label != "literal":
            run()  # first calls load kernels
    for _ in range(repeats):
        for label, run in runs.items():
            times[label].append(seconds(run))
    base = statistics.median(times["literal"])
    for label, values in times.items():
        middle = statistics.median(values)
        print(
            f"{name:10s} {label:42s} {middle:8.2f} s {base / middle:6.2f}x   {peak_megabytes(name, label):7.0f} MB",
            flush=True,
        )


def peak_megabytes(name: str, label: str) -> float:
    command = [sys.executable, "-m", "benchmarks.per_sample", "--peak", name, label]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(name: str, label: str) -> None:
    """Growth of the peak resident memory over what model, statistics and one forward pass take."""
    run = variants(name)[label]
    before = peak_kilobytes()
    run()
    print((peak_kilobytes() - before) / 1024)


def peak_kilobytes() -> int:
    """Peak resident memory of this program alone; getrusage would count what its parent held before starting it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1])


def batches(name: str) -> None:
    for batch in (1, 4, 16):
        run = variants(name, batch)["LayerIBA"]
        print(f"{name:10s} LayerIBA, batch {batch:3d} {seconds(run) / batch:8.2f} s an image", flush=True)


def cuda(repeats: int) -> None:
    for name in LAYERS:
        model, layer = build(name, device="cuda")
        iba = LayerIBA(model, layer, statistics=calibrate(model, layer, "cuda", torch.float32))
        x = torch.randn(64, 3, 224, 224, device="cuda")
        for label, keywords, context in (
            ("LayerIBA", {}, contextlib.nullcontext()),
            (f"LayerIBA {FAST} bfloat16", FAST, bfloat16("cuda")),
        ):
            with context:
                iba.attribute(x, target=1, **keywords)
                torch.cuda.reset_peak_memory_stats()
                run = functools.partial(iba.attribute, x, target=1, **keywords)
                middle = statistics.median(seconds(run) for _ in range(repeats))
            peak = torch.cuda.max_memory_allocated() / 2**30
            print(f"{name:10s} {label:42s} batch 64: {64 / middle:8.1f} images/s, peak {peak:.1f} GiB")
        agreement(name)


def agreement(name: str) -> None:
    """CPU and CUDA in float64 share the noise, so that they agree up to rounding."""
    model, layer = build(name, torch.float64)
    found = calibrate(model, layer, "cpu", torch.float64)
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    on_cpu = LayerIBA(model, layer, statistics=found).attribute(x, target=1, n_samples=2)
    model.cuda()
    on_cuda = LayerIBA(model, layer, statistics=found).attribute(x.cuda(), target=1, n_samples=2).cpu()
    difference = (on_cpu - on_cuda).abs().max()
    print(f"{name:10s} float64, CPU against CUDA: largest difference {difference:.1e} bits of {on_cpu.max():.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--models", nargs="+", choices=list(LAYERS), default=list(LAYERS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peak", nargs=2, metavar=("MODEL", "VARIANT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        return print_peak(*options.peak)
    print(f"torch {torch.__version__}, {options.device}, one thread, median of {options.repeats}")
    if options.device == "cuda":
        return cuda(options.repeats)
    print("model      variant                                    time an image  speed-up   peak memory above the model")
    for name in options.models:
        compare(name, options.repeats)
        batches(name)
    return None


if __name__ == "__main__":
    main()
