"""Cost and quality of LayerReadoutIBA, against LayerIBA and LayerGradCam.

    python -m benchmarks.readout cost                # an explanation against a plain forward pass, ResNet-50, batch 8
    python -m benchmarks.readout digits              # the embedded readout on the embedded canvases
    python -m benchmarks.readout beta                # trained with several beta on the embedded data; half an hour
    python -m benchmarks.readout widths              # trained with several widths on the embedded data; half an hour
    python -m benchmarks.readout photos DATA --weights FILE --boxes FOLDER --boxes-target 104

Times are processor times on one thread, ratios of medians of variants that run in turn in one process. DATA of
``photos`` is a folder of photos named INDEX_..., INDEX being the class: three quarters of them are trained on, several
joined to an image, the others held out; the bounding-box ratio is measured on the photos of another folder.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks._photos import Mosaics, cropped, mean_and_error
from captum_iba import LayerIBA, LayerReadoutIBA, Report, compare
from captum_iba.attr import Measures
from captum_iba.comparison import Method, PhotoFolder
from captum_iba.comparison.dataset import TensorExamples
from captum_iba.comparison.methods import BITS
from captum_iba.demo import load_canvases, load_model, load_readout
from captum_iba.demo.data import GREY_MEAN, GREY_STD
from captum_iba.demo.train_readout import BETA, EPOCHS, train
from captum_iba.photos import load_classifier, photos_in

METRICS = ["bounding box", "degradation 8x8", "degradation 14x14"]
WIDTHS = {"64, 64": (64, 64), "128, 128": (128, 128), "256, 256": (256, 256), "published": "published"}
# paper, Table 4
LAYERS = {
    "resnet50": ("layer1", ["layer1", "layer2", "layer3", "layer4", "fc"]),
    "vgg16": ("features.10", ["features.10", "features.17", "features.24", "features.28", "classifier.6"]),
}


def cost(options: argparse.Namespace) -> None:
    """Processor time of one explanation of a batch beside the model's own forward pass."""
    torch.manual_seed(0)
    name, read = LAYERS[options.model]
    model = torchvision.models.get_model(options.model, weights=None).eval()
    x = torch.randn(options.batch, 3, 224, 224)
    print(f"{options.model} {name}, reading {', '.join(read)}; batch {options.batch}, {options.threads} threads")
    variants: dict[str, Callable[[], object]] = {"forward pass": torch.no_grad()(lambda: model(x))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few examples, which do not change the cost
        layer = model.get_submodule(name)
        found = LayerReadoutIBA(model, layer, readout_layers=read).estimate(torch.randn(16, 3, 224, 224).split(4))
        data = [(x[:1], torch.zeros(1, dtype=torch.long))]
        for widths, hidden in WIDTHS.items():
            readout = LayerReadoutIBA(model, layer, None, read, found.statistics, hidden)
            readout.fit(data, epochs=1, show_progress=False)
            variants[f"LayerReadoutIBA {widths}"] = lambda readout=readout: readout.attribute(x)
        iba = LayerIBA(model, layer, statistics=found.statistics[name])
        if options.per_sample:
            variants["LayerIBA"] = lambda: iba.attribute(x, target=0)
        seconds = in_turn(variants, options.repeats)
    base = statistics.median(seconds["forward pass"])
    for variant, values in seconds.items():
        print(f"{variant:28s} {statistics.median(values):8.3f} s {statistics.median(values) / base:8.2f} times")


def in_turn(variants: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Processor times of each variant, one after the other, a warm-up first."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats + 1):
        for name, run in variants.items():
            start = time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()
            run()
            stop = time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()
            if repeat:
                seconds[name].append(stop - start)
    return seconds


def digits(options: argparse.Namespace) -> None:
    """The embedded readout on the canvases that the demo explains."""
    readout = load_readout(model := load_model())
    canvases = load_canvases("test", 500, seed=1)
    print(f"trained in {readout.history.seconds:.0f} s, {len(readout.history.training)} steps")
    print_measures("held out", readout.evaluate([(canvases.images, canvases.labels)], beta=BETA))
    print_report(
        compare_on_digits(model, [as_method("LayerReadoutIBA", readout), "LayerIBA", "LayerGradCam", "Saliency"])
    )


def beta(options: argparse.Namespace) -> None:
    """The paper's Table 1 for the readout: more beta, fewer bits, less accuracy."""
    for value in options.values:
        readout = train(options.epochs, beta=value)
        print_measures(f"beta {value:g}", readout.history.validation[-1])


def widths(options: argparse.Namespace) -> None:
    """What the widths of the readout network are worth."""
    methods: list[Method | str] = []
    for name, hidden in {"16, 16": (16, 16), "32, 32": (32, 32), **WIDTHS}.items():
        readout = train(options.epochs, hidden_channels=hidden)
        print_measures(name, readout.history.validation[-1])
        methods.append(as_method(name, readout))
    print_report(compare_on_digits(load_model(), [*methods, "LayerGradCam"]))


def photos(options: argparse.Namespace) -> None:
    """Trained on a few photos, held out others, boxes of others again."""
    classifier = load_classifier(options.model, options.weights)
    paths = photos_in(options.data)
    x, y = cropped(paths, classifier), torch.tensor([int(path.name.split("_")[0]) for path in paths])
    held_out = torch.arange(len(paths)) % 4 == 3
    layer = classifier.model.get_submodule(options.layer)
    readout = LayerReadoutIBA(
        classifier.model,
        layer,
        readout_layers=options.readout_layers,
        hidden_channels=tuple(options.hidden_channels),
        sigma=options.sigma,
        relu=options.relu,
    )
    torch.manual_seed(0)
    readout.estimate(Mosaics(x[~held_out], options.batch, 20), per="channel")
    training = Mosaics(x[~held_out], options.batch, options.steps_per_epoch)
    held = DataLoader(TensorDataset(x[held_out], y[held_out]), 25)
    readout.fit(
        training,
        held,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        beta=options.beta,
        warmup_steps=options.warmup_steps,
        targets="predictions",
        checkpoint=options.checkpoint,
        seed=options.seed,
    )
    print(f"trained in {readout.history.seconds:.0f} s on {int((~held_out).sum())} photos")
    for measures in readout.history.validation:
        print_measures(f"epoch {measures.epoch}", measures)
    boxed = PhotoFolder(
        options.boxes / "images",
        classifier,
        options.boxes_target,
        annotations=options.boxes / "annots",
        crop="none",
        largest_coverage=0.33,
        only_boxes=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = LayerIBA(classifier.model, layer).estimate(x[~held_out].split(20)).statistics
    report = compare(
        classifier.model,
        boxed,
        [as_method("LayerReadoutIBA", readout), "LayerIBA", "LayerGradCam", "Saliency", "Random"],
        METRICS[:1],
        options.layer,
        statistics=found,
        calibration=x[~held_out].split(20),
        n_pictures=0,
        show_progress=True,
    )
    print_report(report)


def as_method(name: str, readout: LayerReadoutIBA) -> Method:
    def explain(x: Tensor, _target: Tensor) -> Tensor:
        bits: Tensor = readout.attribute(x)
        return bits

    return Method(name, lambda context: explain, name, BITS)


def compare_on_digits(model: torch.nn.Module, methods: Sequence[Method | str]) -> Report:
    canvases = load_canvases("test", 100)
    return compare(
        model,
        TensorExamples(canvases.images, canvases.labels, boxes=canvases.boxes),
        methods,
        METRICS,
        "stage2",
        calibration=torch.split(load_canvases("train", 2000).images, 250),
        baselines=-GREY_MEAN / GREY_STD,
        n_pictures=0,
    )


def print_report(report: Report) -> None:
    """Each metric's means, and the first method's paired difference to each other one."""
    first = report.results.methods[0].name
    for metric in (info.name for info in report.results.metrics):
        print(f"\n{metric:24s} {'mean (s.e.)':>18s}   {first} minus it {'n':>10s} {'s an image':>12s}")
        for info in report.results.methods:
            values = report.results.scores[info.name][metric]
            difference, error, n = report.paired(first, info.name, metric)
            own = mean_and_error(torch.from_numpy(values[values == values]))
            print(f"{info.name:24s} {own:>18s} {difference:+12.4f} ({error:.4f}) {n:6d} {info.seconds:12.4f}")


def print_measures(name: str, measures: Measures) -> None:
    print(
        f"{name:12s} objective {measures.objective:.3f}, loss {measures.loss:.3f}, {measures.bits:.0f} bits, accuracy "
        f"{measures.accuracy:.3f} through the bottleneck, {measures.model_accuracy:.3f} without, {measures.n} examples",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    commands = parser.add_subparsers(required=True)
    add(commands, "cost", cost)
    commands.choices["cost"].add_argument("--model", choices=tuple(LAYERS), default="resnet50")
    commands.choices["cost"].add_argument("--batch", type=int, default=8)
    commands.choices["cost"].add_argument("--repeats", type=int, default=5)
    commands.choices["cost"].add_argument("--per-sample", action="store_true", help="LayerIBA too, which takes minutes")
    add(commands, "digits", digits)
    add(commands, "beta", beta)
    commands.choices["beta"].add_argument("--values", type=float, nargs="+", default=[0.1, 1.0, 10.0, 100.0])
    add(commands, "widths", widths)
    for name in ("beta", "widths"):
        commands.choices[name].add_argument("--epochs", type=int, default=EPOCHS)
    add(commands, "photos", photos)
    of_photos = commands.choices["photos"]
    of_photos.add_argument("data", type=Path)
    of_photos.add_argument("--model", default="squeezenet1_0")
    of_photos.add_argument("--weights", default="DEFAULT", help="DEFAULT or the file of a state dict")
    of_photos.add_argument("--layer", default="features.9")
    of_photos.add_argument("--boxes", type=Path, required=True, help="folder with images and annots (Pascal VOC)")
    of_photos.add_argument("--boxes-target", default="predicted", help="their class; default: the predicted one")
    # the logits of classes with a single photo each are learned by heart
    of_photos.add_argument("--readout-layers", nargs="+", default=["features.9", "features.10", "features.12"])
    of_photos.add_argument("--hidden-channels", type=int, nargs=2, default=[256, 256])
    of_photos.add_argument("--sigma", type=float, default=2.0)
    of_photos.add_argument("--no-relu", dest="relu", action="store_false")
    of_photos.add_argument("--batch", type=int, default=16)
    of_photos.add_argument("--epochs", type=int, default=4)
    of_photos.add_argument("--steps-per-epoch", type=int, default=40)
    of_photos.add_argument("--seed", type=int, default=0)
    of_photos.add_argument("--learning-rate", type=float, default=1e-3)
    of_photos.add_argument("--beta", type=float, default=10.0)
    of_photos.add_argument("--warmup-steps", type=int, default=80)
    of_photos.add_argument("--checkpoint", type=Path, help="file to keep the training in")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.run(options)


def add(commands: Any, name: str, run: Callable[[argparse.Namespace], None]) -> None:
    commands.add_parser(name, help=(run.__doc__ or "").rstrip(".")).set_defaults(run=run)


if __name__ == "__main__":
    main()
