"""What the tests of comparisons share: small models and data, and equality of results."""

import functools
from dataclasses import fields

import numpy as np
import torch
from torch import nn

from captum_iba import LayerIBA
from captum_iba.comparison import Example, compare
from captum_iba.comparison.context import Context
from captum_iba.demo import LAYER, load_canvases, load_model
from captum_iba.demo.data import to_display
from captum_iba.errors import UnreadableExampleError
from captum_iba.metrics import boxes_to_mask

CHEAP = ("LayerIBA", "Random", "Saliency", "LayerGradCam")
METRICS = ("degradation 14x14", "bounding box", "sensitivity-n")


@functools.cache
def calibration():
    """A few canvases, enough for rough statistics."""
    return load_canvases("train", 48).images


@functools.cache
def statistics():
    model = load_model()
    return LayerIBA(model, model.get_submodule(LAYER)).estimate(calibration()).statistics


class _Calibration:
    summary = "a few canvases"

    def __call__(self):
        return [calibration()]


def context(model, example, **options):
    """What methods for the demo's network are built from."""
    given = {} if "layer" in options else {"layer": model.stage2, "statistics": statistics()}
    return Context(model, example, _Calibration(), **given, **options)


def toy(*layers, seed=0):
    """A chain of modules with weights from a generator of their own, in evaluation mode."""
    return weighted(nn.Sequential(*layers), seed)


def weighted(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / max(1, parameter[0].numel()) ** 0.5
    return model.eval()


def toy_cnn():
    return toy(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 64, 3),
    )  # fmt: skip


def toy_images(n, seed=0):
    return torch.randn(n, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def toy_options(**options):
    """For a quick comparison of a toy network."""
    return {"calibration": [toy_images(20, seed=1)], "n_steps": 3, "n_perturb_samples": 4} | options


class Canvases:
    """The demo's canvases as an ExampleSet; some cannot be read, some serve the bounding box alone, some have none."""

    def __init__(self, n, unreadable=(), only_boxes=(), without_boxes=()):
        self.canvases = load_canvases("test", n)
        self.unreadable, self.only_boxes, self.without_boxes = unreadable, only_boxes, without_boxes
        self.keys = [f"canvas {i}" for i in range(n)]
        self.fingerprint = {"class": "Canvases", "n": n}
        self.loaded = []

    def load(self, index):
        self.loaded.append(index)
        key = self.keys[index]
        if index in self.unreadable:
            raise UnreadableExampleError(f"{key}: a torn file")
        image, boxes = self.canvases.images[index], self.canvases.boxes[index][None].float()
        if index in self.without_boxes:
            return Example(key, image, int(self.canvases.labels[index]), display=to_display(image))
        mask = boxes_to_mask(boxes, (64, 64))
        target = int(self.canvases.labels[index])
        return Example(key, image, target, boxes, mask, to_display(image), index in self.only_boxes)


def quick(
    dataset, methods=CHEAP, metrics=("degradation 14x14", "bounding box", "sensitivity-n"), model=None, **options
):
    """A comparison on the demo's network that takes little time."""
    given = {"layer": LAYER, "calibration": [calibration()], "n_steps": 4, "n_perturb_samples": 5} | options
    return compare(model or load_model(), dataset, methods, metrics, **given)


def assert_same_results(found, wanted, atol=0.0):
    """Equal in all but time and memory."""
    assert [info.name for info in found.methods] == [info.name for info in wanted.methods]
    for a, b in zip(found.methods, wanted.methods, strict=True):
        assert (a.description, a.unit, a.reason, a.n_failed) == (b.description, b.unit, b.reason, b.n_failed)
    assert found.metrics == wanted.metrics and found.skipped == wanted.skipped
    assert found.configuration == wanted.configuration and found.versions == wanted.versions
    assert_same_examples(found.examples, wanted.examples, atol)
    assert found.scores.keys() == wanted.scores.keys() and found.curves.keys() == wanted.curves.keys()
    for method, by_metric in wanted.scores.items():
        for metric, values in by_metric.items():
            _assert_close(found.scores[method][metric], values, atol)
        assert found.curves[method].keys() == wanted.curves[method].keys()
        for metric, curve in wanted.curves[method].items():
            own = found.curves[method][metric]
            _assert_close(own.x, curve.x, 0)
            assert own.lines.keys() == curve.lines.keys()
            for line, values in curve.lines.items():
                _assert_close(own.lines[line], values, atol)
        assert found.maps[method].keys() == wanted.maps[method].keys()
        for key, heat_map in wanted.maps[method].items():
            own = found.maps[method][key]
            _assert_close([own.low, own.high], [heat_map.low, heat_map.high], atol)
            # rounding may move a value over the edge of one of 256 levels
            _assert_close(own.levels, heat_map.levels, 1 if atol else 0)


def assert_same_examples(found, wanted, atol=0.0):
    for a, b in zip(found, wanted, strict=True):
        assert (a.key, a.target, a.predicted, a.photo) == (b.key, b.target, b.predicted, b.photo)
        assert (a.boxes is None) == (b.boxes is None) and (a.boxes is None or np.array_equal(a.boxes, b.boxes))
        _assert_close(a.probability, b.probability, atol)


def _assert_close(found, wanted, atol):
    # the difference is taken in float64: levels are unsigned
    found, wanted = (np.asarray(values, dtype=np.float64) for values in (found, wanted))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=atol, equal_nan=True)


def assert_same_record(found, wanted):
    """Two stored records, bit by bit."""
    assert found.skipped == wanted.skipped and found.methods.keys() == wanted.methods.keys()
    assert_same_examples([found.info], [wanted.info])
    for name, record in wanted.methods.items():
        own = found.methods[name]
        for field in fields(record):
            if field.name != "heat_map":
                assert getattr(own, field.name) == getattr(record, field.name), field.name
        assert (own.heat_map is None) == (record.heat_map is None)
        if record.heat_map is not None:
            assert np.array_equal(own.heat_map.levels, record.heat_map.levels)
            assert (own.heat_map.low, own.heat_map.high) == (record.heat_map.low, record.heat_map.high)
