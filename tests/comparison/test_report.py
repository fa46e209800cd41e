"""Laws of a comparison's report: pictures are those of the maps, files are written, ties share their rank."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from captum_iba import LayerIBA, resize_bits
from captum_iba.comparison import _cost, compare
from captum_iba.comparison._pictures import to_heat_map
from captum_iba.demo import LAYER, load_canvases, load_model
from captum_iba.demo.data import to_display
from captum_iba.errors import InvalidArgumentError
from tests.comparison.comparison_cases import (
    CHEAP,
    METRICS,
    Canvases,
    quick,
    statistics,
    toy_cnn,
    toy_images,
    toy_options,
)


@pytest.fixture(scope="module")
def report():
    return quick(Canvases(3, unreadable=(2,)), n_pictures=1, statistics=statistics())


def values_of(heat_map):
    return heat_map.low + heat_map.levels / 255 * (heat_map.high - heat_map.low)


def test_pictures_are_those_of_the_first_examples(report):
    """Photos, boxes and maps of as many examples as asked for, to a level of 256; bits per position become bits per
    pixel."""
    canvases, model = load_canvases("test", 2), load_model()
    first, second = report.results.examples
    pixels = np.asarray(Image.open(io.BytesIO(first.photo)).convert("L"), dtype=np.float64)
    shown = np.asarray(to_display(canvases.images[0, 0]) * 255, dtype=np.float64)
    assert second.photo == b"" and np.abs(pixels - shown).mean() < 4  # JPEG
    assert np.array_equal(first.boxes, canvases.boxes[:1]) and np.array_equal(second.boxes, canvases.boxes[1:2])
    maps = report.results.maps
    assert {name: list(by_key) for name, by_key in maps.items()} == {name: ["canvas 0"] for name in CHEAP}
    bits = LayerIBA(model, model.stage2, statistics=statistics()).attribute(canvases.images[:1], canvases.labels[:1])
    whole = resize_bits(bits.double(), (64, 64))[0, 0].numpy()
    found = maps["LayerIBA"]["canvas 0"]
    assert found.low == 0 and found.high == pytest.approx(whole.max(), rel=1e-6)
    np.testing.assert_allclose(values_of(found), whole, atol=found.high / 255 * 0.51)
    assert values_of(found).sum() == pytest.approx(float(bits.sum()), rel=0.01)
    leaf = canvases.images[:1].requires_grad_()
    gradient = torch.autograd.grad(model(leaf)[0, canvases.labels[0]], leaf)[0][0, 0].abs().numpy()
    found = maps["Saliency"]["canvas 0"]
    np.testing.assert_allclose(values_of(found), gradient, atol=found.high / 255 * 0.51)


def test_large_maps_are_kept_small_and_negative_values_negative():
    """At most 112 positions a side, means over areas; the scale contains 0."""
    x = torch.randn(1, 2, 224, 112, generator=torch.Generator().manual_seed(0))
    found = to_heat_map(x, "none", (224, 112))
    wanted = F.avg_pool2d(x.double().sum(dim=1, keepdim=True), 2)[0, 0].numpy()
    assert found.levels.shape == (112, 56) and found.low == wanted.min() < 0
    np.testing.assert_allclose(values_of(found), wanted, atol=(found.high - found.low) / 255 * 0.51)
    above, flat = to_heat_map(x.abs() + 1, "none", (224, 112)), to_heat_map(torch.zeros(1, 1, 2, 2), "none", (2, 2))
    assert above.low == 0 and (flat.low, flat.high, flat.levels.max()) == (0, 0, 0)


def test_examples_say_what_the_model_thinks(report):
    """Target, prediction and probability are the model's own; categories give them names."""
    canvases, model = load_canvases("test", 2), load_model()
    probabilities = model(canvases.images).double().softmax(dim=1).detach()
    names = [f"digit {i}" for i in range(10)]
    named = quick(Canvases(2), ["Random"], ["bounding box"], statistics=statistics(), categories=names)
    for i, (plain, info) in enumerate(zip(report.results.examples, named.results.examples, strict=True)):
        target, predicted = int(canvases.labels[i]), int(probabilities[i].argmax())
        assert (plain.target, plain.predicted) == (str(target), str(predicted))
        assert (info.target, info.predicted) == (f"digit {target}", f"digit {predicted}")
        assert info.probability == pytest.approx(float(probabilities[i, target]), abs=1e-6)


def test_the_configuration_is_what_was_asked_for(report):
    """Layers by name, methods with their parameters, metrics with theirs, seeds; versions beside it."""
    found = report.results.configuration
    assert (found["layer"], found["gradcam_layer"], found["seed"], found["n_pictures"]) == (LAYER, "stage4", 0, 1)
    assert found["model"] == "DigitsNet" and found["examples"] == 3
    assert [text.split(":")[0] for text in found["methods"]] == list(CHEAP)
    assert "n_steps=4" in found["metrics"][0] and "versions" not in found
    assert found["statistics"].startswith("48 examples, mean ")
    assert report.results.versions["torch"] == torch.__version__


def test_save_writes_every_file(report, tmp_path):
    """What is listed is there, and holds the report's values."""
    folder = tmp_path / "new" / "folder"
    files = report.save(folder)
    names = ["table.md", "scores.csv", "configuration.json", "report.html", "curves.png", "maps.png"]
    assert sorted(file.name for file in files) == sorted(names) == sorted(f.name for f in folder.iterdir())
    assert (folder / "table.md").read_text() == report.to_markdown() + "\n"
    pandas = pytest.importorskip("pandas")
    scores = pandas.read_csv(folder / "scores.csv").set_index(["method", "example"])
    for method, by_metric in report.results.scores.items():
        for metric, values in by_metric.items():
            np.testing.assert_allclose(scores.loc[method][metric], values, rtol=1e-12)
    known = json.loads((folder / "configuration.json").read_text())
    assert known["configuration"] == report.results.configuration and known["versions"] == report.results.versions
    page = (folder / "report.html").read_text()
    assert all(name in page for name in (*CHEAP, *METRICS, "canvas 0", "a torn file"))
    assert all(Image.open(folder / name).size > (100, 100) for name in ("curves.png", "maps.png"))
    assert report.save(folder) == files, "a second time the files are replaced"


def test_a_report_without_pictures(tmp_path):
    """Images that cannot be shown leave out the pictures, and nothing else."""
    report = compare(
        toy_cnn(), (toy_images(2), [0, 1]), ["Saliency", "LRP"], ["degradation 8x8"], **toy_options(layer="3")
    )
    assert all(info.photo == b"" for info in report.results.examples)
    assert report.results.maps == {"Saliency": {}, "LRP": {}}
    names = {"table.md", "scores.csv", "configuration.json", "report.html", "curves.png"}
    assert {file.name for file in report.save(tmp_path)} == names
    with pytest.raises(InvalidArgumentError):
        report.plot_maps()


def test_the_table_has_every_method_and_the_paired_difference_is_that_of_the_scores(report):
    """One row a method, in the text as in the frame."""
    rows = [line.split(" | ")[0].strip("| ") for line in report.to_markdown().splitlines() if line.startswith("| ")]
    assert all(any(line.startswith(name) for line in str(report).splitlines()) for name in CHEAP)
    assert rows[2:] == list(CHEAP) == list(report.to_dataframe().index)
    a, b = (report.results.scores[name]["sensitivity-n"] for name in ("LayerIBA", "Random"))
    difference, error, n = report.paired("LayerIBA", "Random", "sensitivity-n")
    assert n == 2 and difference == pytest.approx((a - b).mean())
    assert error == pytest.approx(abs((a - b)[0] - (a - b)[1]) / 2)


def test_equal_methods_share_their_rank():
    """1, then three in places 2 to 4 which are all 3, then 5; where lower is better the other way round."""
    good = {"best": lambda x, y: x.abs() + 5 * x, "worst": lambda x, y: -x.abs() - 5 * x}
    same = {f"same {i}": lambda x, y: torch.zeros_like(x) for i in range(3)}
    images = toy_images(2).abs() + 0.1
    model = toy_cnn()
    model.forward = lambda x: torch.stack([x.sum(dim=(1, 2, 3)) / 50, -x.sum(dim=(1, 2, 3)) / 50], dim=1)
    options = toy_options(layer="0", statistics=None)
    report = compare(model, (images, [0, 0]), good | same, ["sensitivity-n", "insertion", "deletion"],
                     **(options | {"calibration": [toy_images(20)]}))  # fmt: skip
    ranks = {name: report.results.rank(name, "deletion") for name in good | same}
    assert ranks == {"best": 1, "worst": 5, "same 0": 3, "same 1": 3, "same 2": 3}
    assert (
        np.isnan(report.results.rank("same 0", "sensitivity-n")) and report.results.rank("best", "sensitivity-n") == 1
    )


def test_time_and_memory_are_those_of_the_attribution(monkeypatch):
    """Both are medians over the examples: of the time, and of the most MB above what was in use."""
    ticks = iter([0, 2, 10, 16])
    monkeypatch.setattr(_cost, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    held = []

    def large(x, _y):
        held.append(torch.ones(2 ** (24 + len(held))))  # 64 MB, then 128
        return x

    info = compare(toy_cnn(), (toy_images(2), [0, 1]), {"large": large}, ["degradation 8x8"], **toy_options())
    (info,) = info.results.methods
    assert info.seconds == 4
    assert np.isnan(info.peak_memory) or 90 < info.peak_memory < 110  # where the peak cannot be set, it is unknown
