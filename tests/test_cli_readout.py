"""The readout bottleneck on the command line: ``captum-iba explain --method readout`` and ``captum-iba compare``."""

import csv
import json
import re

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from captum_iba import LayerReadoutIBA, resize_bits
from captum_iba._cli_photos import FolderBatches
from captum_iba.cli import main
from captum_iba.demo import load_canvases, load_readout
from captum_iba.demo.readout import PATH
from captum_iba.metrics import bounding_box_ratio, boxes_to_mask
from captum_iba.photos import load_classifier

CLASSIFIER, LAYER = "squeezenet1_1", "features.7"
NUMBER = r"(\d\.\d+)"
LINE = rf"(\S+): (.+) \((\d+)\), p = {NUMBER} \({NUMBER} through the bottleneck\), (\d+) bits -> (\S+)"
WARMUP = 3  # half of three epochs of two batches
TRAINING = ("--epochs", 3, "--learning-rate", 1e-3, "--beta", 1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Ten photos, which are two batches."""
    folder, generator = tmp_path_factory.mktemp("photos"), torch.Generator().manual_seed(0)
    for number in range(10):
        pixels = torch.randint(0, 255, (6, 9, 3), generator=generator, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).resize((90, 60)).save(folder / f"{number}.png")
    return folder


def run(command, weights, output, *options):
    given = ("--model", CLASSIFIER, "--weights", weights, "--output", output, *options)
    return main([command, *map(str, given)])


def explain(photos, weights, output, *options):
    return run("explain", weights, output, photos / "0.png", photos / "1.png", "--method", "readout", *options)


@pytest.fixture(scope="module")
def file(photos, squeezenet_weights, tmp_path_factory):
    """What ``--train`` writes."""
    output = tmp_path_factory.mktemp("trained")
    assert explain(photos, squeezenet_weights, output, "--train", photos, *TRAINING) == 0
    return output / "readout.safetensors"


@pytest.fixture(scope="module")
def by_hand(photos, squeezenet_weights):
    """Classifier, and the readout trained with nothing of the command line."""
    classifier = load_classifier(CLASSIFIER, str(squeezenet_weights))
    images = [classifier.preprocess(Image.open(photos / f"{number}.png").convert("RGB")) for number in range(10)]
    batches = torch.stack(images).split(8)
    readout = LayerReadoutIBA(classifier.model, classifier.model.get_submodule(LAYER)).estimate(batches)
    readout.fit(
        batches, targets="predictions", epochs=3, learning_rate=1e-3, beta=1.0, warmup_steps=WARMUP, show_progress=False
    )
    return classifier, readout, batches[0][:2]


def tensors(path, prefix="network."):
    return {name: value for name, value in load_file(path).items() if name.startswith(prefix)}


def assert_same_tensors(found, wanted):
    assert found.keys() == wanted.keys() and wanted
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_training_is_fit_on_the_predictions(file, by_hand, tmp_path):
    """The file of ``--train`` is the one that estimate, fit and save write by hand, weights and statistics."""
    by_hand[1].save(tmp_path / "readout")
    for prefix in ("network.", "statistics."):
        assert_same_tensors(tensors(file, prefix), tensors(tmp_path / "readout", prefix))


def test_trained_once_it_explains_again(photos, squeezenet_weights, tmp_path, file, by_hand, capsys):
    """With ``--readout`` each photo's line has the bits and probabilities of the readout, and a picture is written."""
    assert explain(photos, squeezenet_weights, tmp_path, "--readout", file) == 0
    said = capsys.readouterr()
    assert f"{CLASSIFIER}, layer {LAYER}" in said.out and "--calibrate" not in said.err
    classifier, readout, images = by_hand
    probability, classes = classifier.model(images).softmax(dim=1).max(dim=1)
    bits, record = readout.attribute(images, target=classes, return_diagnostics=True)
    lines = re.findall(LINE, said.out)
    assert [line[0] for line in lines] == [str(photos / "0.png"), str(photos / "1.png")]
    for i, (_, label, index, own, through, total, picture) in enumerate(lines):
        assert (label, int(index)) == (classifier.categories[classes[i]], int(classes[i]))
        assert (own, through) == (f"{probability[i]:.3f}", f"{record.target_probability[i]:.3f}")
        assert total == f"{bits[i].sum():.0f}" and Image.open(picture).width > 300


def test_the_map_does_not_depend_on_the_target(photos, squeezenet_weights, tmp_path, file, capsys):
    """Another ``--target`` has another name and probability, and the same bits."""
    found = []
    for target in ("tench", "goldfish"):
        assert explain(photos, squeezenet_weights, tmp_path, "--readout", file, "--target", target) == 0
        found.append(re.findall(LINE, capsys.readouterr().out))
    assert [line[1] for line in found[0]] == ["tench"] * 2 and [line[1] for line in found[1]] == ["goldfish"] * 2
    assert [line[5] for line in found[0]] == [line[5] for line in found[1]]


def test_the_layer_is_the_readouts(photos, squeezenet_weights, tmp_path, capsys):
    """A readout of a layer that was chosen finds it again, and refuses another one that is named."""
    options = ("--train", photos, "--layer", "features.4", "--epochs", 1)
    assert explain(photos, squeezenet_weights, tmp_path, *options) == 0
    trained = re.findall(LINE, capsys.readouterr().out)
    path = tmp_path / "readout.safetensors"
    assert explain(photos, squeezenet_weights, tmp_path, "--readout", path) == 0
    out = capsys.readouterr().out
    assert f"{CLASSIFIER}, layer features.4" in out and re.findall(LINE, out) == trained
    assert explain(photos, squeezenet_weights, tmp_path, "--readout", path, "--layer", LAYER) == 2
    assert "'features.4'" in capsys.readouterr().err


def passes_until(monkeypatch, last=None):
    """A list of the photos' passes; the first batch that comes after ``last`` is an interruption."""
    begun, batches, read = [], [], FolderBatches.__iter__

    def interrupted(self):
        begun.append(1)
        for batch in read(self):
            batches.append(1)
            if last is not None and len(batches) > last:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(FolderBatches, "__iter__", interrupted)
    return begun


@pytest.mark.parametrize("batches", [3, 4, 7])
def test_interrupted_training_goes_on(photos, squeezenet_weights, tmp_path, file, monkeypatch, capsys, batches):
    """Ctrl-C within or between epochs ends with status 130; the same command makes no statistics again, goes on, and
    ends with the file of an uninterrupted training."""
    with monkeypatch.context() as patch:
        passes_until(patch, batches)
        assert explain(photos, squeezenet_weights, tmp_path, "--train", photos, *TRAINING) == 130
    assert "what is written stays" in capsys.readouterr().err
    path = tmp_path / "readout.safetensors"
    assert path.is_file() and not list(tmp_path.glob("*.png"))
    done = (batches - 2) // 2  # epochs; the first two batches are those of the statistics
    begun = passes_until(monkeypatch)
    assert explain(photos, squeezenet_weights, tmp_path, "--train", photos, *TRAINING) == 0
    assert len(begun) == 3 - done
    assert_same_tensors(load_file(path), load_file(file))


def test_a_finished_training_is_used(photos, squeezenet_weights, tmp_path, file, monkeypatch, capsys):
    """The same command again trains nothing, and with more epochs goes on; another rate is refused by name."""
    path, options = tmp_path / "readout.safetensors", ("--learning-rate", 1e-3, "--beta", 1)
    path.write_bytes(file.read_bytes())
    assert explain(photos, squeezenet_weights, tmp_path, "--train", photos, "--epochs", 3, *options) == 0
    assert_same_tensors(load_file(path), load_file(file))
    begun = passes_until(monkeypatch)
    assert explain(photos, squeezenet_weights, tmp_path, "--train", photos, "--epochs", 4, *options) == 0
    assert len(begun) == 1
    capsys.readouterr()
    assert explain(photos, squeezenet_weights, tmp_path, "--train", photos, "--epochs", 4, "--beta", 1) == 2
    assert "learning_rate: 0.001 there, 0.002 here" in capsys.readouterr().err


def test_photos_that_cannot_be_read(photos, squeezenet_weights, tmp_path, file, capsys):
    """Left out of the training one is named once and the training is that without it; to be explained it makes the
    status 1."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for photo in photos.iterdir():
        (folder / photo.name).write_bytes(photo.read_bytes())
    broken = folder / "broken.jpg"
    broken.write_bytes(b"no photo")
    assert explain(photos, squeezenet_weights, tmp_path, "--train", folder, *TRAINING) == 0
    assert capsys.readouterr().err.count(f"left out of the training {broken}") == 1
    assert_same_tensors(tensors(tmp_path / "readout.safetensors"), tensors(file))
    options = ("--method", "readout", "--readout", file)
    assert run("explain", squeezenet_weights, tmp_path, photos / "0.png", broken, *options) == 1
    assert "1 of 2 images skipped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--train", "x"), ["--train goes with --method readout", "this is --method iba"]),
        (("--readout", "x"), ["--readout goes with --method readout"]),
        (("--epochs", "3"), ["--epochs goes with --method readout"]),
        (("--learning-rate", "1"), ["--learning-rate goes with --method readout"]),
        (("--method", "readout", "--statistics", "x"), ["--statistics goes with --method iba"]),
        (("--method", "readout", "--calibrate", "x"), ["--calibrate goes with --method iba"]),
        (("--method", "readout", "--epochs", "3"), ["--epochs", "--train FOLDER"]),
        (("--method", "readout", "--readout", "x", "--learning-rate", "1"), ["--learning-rate", "--train FOLDER"]),
        (("--method", "readout", "--readout", "x", "--train", "y"), ["--train", "not allowed"]),
        (("--method", "readouts"), ["iba", "readout"]),
        (("--method", "readout", "--readout", "missing"), ["'missing'", "--train FOLDER trains a readout"]),
    ],
)
def test_what_does_not_go_together_is_refused(options, words, tmp_path, capsys):
    """Before any weights are looked for, with status 2 and the flag's name; the method's own hint tells what to do."""
    try:
        status = run("explain", "no-weights.pth", tmp_path / "out", "photo.png", *options)
    except SystemExit as stop:  # argparse's own
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2 and all(word in error for word in words) and "Traceback" not in error
    assert "no-weights.pth" not in error and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), ["no trained readout", "--train FOLDER trains a readout"]),
        (("--train", "missing"), ["missing", "folder"]),
        (("--train", "PHOTOS", "--epochs", "0"), ["epochs=0"]),
        (("--train", "PHOTOS", "--learning-rate", "-1"), ["learning_rate=-1"]),
        (("--readout", PATH), ["of another network", "stage2"]),
        (("--readout", PATH, "--layer", LAYER), ["of another network"]),
        (("--readout", "OTHER"), ["does not hold a readout"]),
    ],
)
def test_mistakes_are_answered(options, words, photos, squeezenet_weights, tmp_path, capsys):
    """Status 2, what is wrong, and nothing written."""
    save_file({"weight": torch.ones(2)}, tmp_path / "other")
    stands_for = {"PHOTOS": photos, "OTHER": tmp_path / "other"}
    options = [stands_for.get(option, option) for option in options]
    assert explain(photos, squeezenet_weights, tmp_path / "out", *options) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words) and "Traceback" not in error
    assert not list((tmp_path / "out").glob("*"))


def test_the_hint_is_the_methods_own(photos, squeezenet_weights, tmp_path, capsys):
    """Who asks for the readout is told of ``--train``, and who asks for the search of ``--calibrate``."""
    assert explain(photos, squeezenet_weights, tmp_path) == 2
    error = capsys.readouterr().err
    assert "--readout FILE" in error and "--calibrate" not in error
    assert run("explain", squeezenet_weights, tmp_path, photos / "0.png", "--statistics", "missing") == 2
    error = capsys.readouterr().err
    assert "--calibrate FOLDER" in error and "--train" not in error


def scores(folder):
    with (folder / "scores.csv").open() as found:
        return list(csv.DictReader(found))


def compared(photos, weights, output, *options):
    """A comparison on two photos."""
    quick = ("--metrics", "degradation 14x14", "--n-steps", 3, "--limit", 2, "--calibrate", photos)
    return run("compare", weights, output, "--data", photos, "--labels", "predicted", *quick, *options)


@pytest.mark.parametrize("methods", ["Random", "Random,LayerReadoutIBA"])
def test_a_readout_joins_the_methods(photos, squeezenet_weights, tmp_path, file, methods):
    """``compare --readout`` has its row once, asked for or not, and the file stands in the configuration."""
    assert compared(photos, squeezenet_weights, tmp_path, "--methods", methods, "--readout", file) == 0
    rows = scores(tmp_path)
    assert sorted(row["method"] for row in rows) == ["LayerReadoutIBA"] * 2 + ["Random"] * 2
    assert all(row["degradation 14x14"] != "" for row in rows)
    kept = json.loads((tmp_path / "configuration.json").read_text())["configuration"]
    assert str(file) in str(kept["method_options"]["LayerReadoutIBA"]["path"])


def test_another_file_is_refused_when_a_comparison_goes_on(photos, squeezenet_weights, tmp_path, file, capsys):
    """The same command goes on with the same file, and not with one that was trained further."""
    path = tmp_path / "own.safetensors"
    path.write_bytes(file.read_bytes())
    given = (photos, squeezenet_weights, tmp_path, "--methods", "Random", "--readout", path)
    assert compared(*given) == 0
    first = scores(tmp_path)
    assert compared(*given) == 0 and scores(tmp_path) == first
    data = bytearray(file.read_bytes())
    data[-1] ^= 1  # the last bit of a number
    path.write_bytes(data)
    assert compared(*given) == 2
    assert "method_options" in capsys.readouterr().err


def test_a_missing_readout_is_a_mistake(tmp_path, capsys):
    """``--readout`` with a file that is not there ends with status 2, as ``--statistics`` does."""
    options = ("--demo", "--limit", 1, "--methods", "Random", "--metrics", "bounding box", "--output", tmp_path)
    assert main(["compare", *map(str, options), "--readout", "missing"]) == 2
    assert "'missing'" in capsys.readouterr().err


def demo(output, *options):
    given = ("--demo", "--limit", 2, "--metrics", "bounding box", "--output", output, *options)
    return main(["compare", *map(str, given)])


def test_demo_compares_the_embedded_readout(tmp_path, capsys):
    """Asked for by name it is loaded and not trained: its ratios are those of the demo's readout."""
    assert demo(tmp_path, "--methods", "LayerReadoutIBA") == 0
    seconds = f"{load_readout().history.seconds:.3g}"
    assert f"training LayerReadoutIBA took {seconds} s" in capsys.readouterr().out
    assert demo(tmp_path / "again", "--methods", "LayerReadoutIBA", "--readout", PATH) == 0
    assert scores(tmp_path) == scores(tmp_path / "again")
    canvases = load_canvases("test", 2)
    maps = resize_bits(load_readout().attribute(canvases.images), (64, 64))
    masks = torch.stack([boxes_to_mask(box[None], (64, 64)) for box in canvases.boxes])
    wanted = bounding_box_ratio(maps, masks).per_sample
    assert [float(row["bounding box"]) for row in scores(tmp_path)] == pytest.approx(wanted.tolist(), abs=1e-6)


def test_demo_has_the_readout_among_the_papers_methods(tmp_path, monkeypatch):
    """The paper's methods and the readout are what the demo compares; named methods are compared alone."""
    monkeypatch.setattr("captum_iba.comparison.methods.PAPER", ("Random", "Saliency"))
    assert demo(tmp_path) == 0
    assert {row["method"] for row in scores(tmp_path)} == {"Random", "Saliency", "LayerReadoutIBA"}
    assert demo(tmp_path / "alone", "--methods", "Random") == 0
    assert {row["method"] for row in scores(tmp_path / "alone")} == {"Random"}
