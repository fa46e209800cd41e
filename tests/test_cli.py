import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from captum_iba import LayerIBA
from captum_iba.cli import main
from captum_iba.demo import load_canvases
from captum_iba.demo.run import run_demo, share_inside
from captum_iba.errors import CaptumIBAWarning
from captum_iba.photos import Classifier, load_classifier, photos_in
from tests.attr.vision_models import SIZE, vision_model

CLASSIFIER = "squeezenet1_1"


@pytest.fixture
def weights(squeezenet_weights):
    return squeezenet_weights


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for name in ("one.png", "two.jpg", "three.png"):
        pixels = torch.randint(0, 255, (40, 60, 3), generator=generator, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / name)
    return folder


def explain(photos, weights, tmp_path, *extra):
    options = ["--model", CLASSIFIER, "--weights", str(weights), "--output", str(tmp_path / "out"), *extra]
    return main(["explain", *map(str, photos), *options])


def test_photos_are_explained(photos, weights, tmp_path, capsys):
    """Each photo gives a line with class, probability and bits, and a picture; the statistics can be used again."""
    files = [photos / "one.png", photos / "two.jpg"]
    assert explain(files, weights, tmp_path, "--calibrate", str(photos), "--target", "tench") == 0
    out = capsys.readouterr().out
    number = r"(\d\.\d+)"
    line = rf"(\S+): tench \(0\), p = {number} \({number} through the bottleneck\), (\d+) bits -> (\S+)"
    lines = re.findall(line, out)
    assert [found[0] for found in lines] == [str(file) for file in files]
    for _, _, _, bits, picture in lines:
        assert int(bits) > 0
        assert Image.open(picture).width > 300
    statistics = tmp_path / "out" / "statistics.safetensors"
    assert explain(files, weights, tmp_path, "--statistics", str(statistics), "--target", "0") == 0
    again = re.findall(r"(\d+) bits", capsys.readouterr().out)
    assert again == [found[3] for found in lines]


def test_a_vision_transformers_patches_are_drawn(photos, tmp_path, capsys, monkeypatch):
    """The printed bits are those of the patches, and beside them those of the class token; together all the layer's."""

    def preprocess(photo):
        return torch.tensor(np.asarray(photo.convert("RGB").resize((SIZE, SIZE)))).permute(2, 0, 1) / 255

    stretch = (torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
    classifier = Classifier(
        "ViT", vision_model("torchvision vit"), preprocess, ["tench", "goldfish", "shark"], *stretch
    )
    monkeypatch.setattr("captum_iba._cli_explain.load_classifier", lambda *_: classifier)
    layer = "encoder.layers.encoder_layer_0"
    assert explain([photos / "one.png"], "none", tmp_path, "--layer", layer, "--target", "1", "--beta", "0.01") == 0
    shown, beside = re.findall(
        r"goldfish.* (\d+) bits \(and (\d+) in tokens that are no patches\)", capsys.readouterr().out
    )[0]
    with pytest.warns(CaptumIBAWarning, match="no feature statistics"):
        bits = LayerIBA(classifier.model, classifier.model.get_submodule(layer)).attribute(
            preprocess(Image.open(photos / "one.png"))[None], target=1, beta=0.01
        )
    assert [int(shown), int(beside)] == [round(float(part)) for part in (bits[:, 1:].sum(), bits[:, 0].sum())]
    assert Image.open(tmp_path / "out" / "one.png").width > 300


def test_unreadable_photos_are_named_and_skipped(photos, weights, tmp_path, capsys):
    """A broken file costs only itself, and the exit status says that something is missing."""
    broken = photos / "broken.jpg"
    broken.write_bytes(b"no photo")
    assert explain([broken, photos / "one.png", tmp_path / "none.png"], weights, tmp_path, "--beta", "1") == 1
    captured = capsys.readouterr()
    assert "broken.jpg" in captured.err
    assert "none.png" in captured.err
    assert "2 of 3 images skipped" in captured.err
    assert "one.png" in captured.out
    assert "--calibrate" in captured.err


def test_photos_of_one_name_do_not_overwrite_each_other(photos, weights, tmp_path, capsys):
    """Two folders' one.png become two pictures."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "one.png").write_bytes((photos / "one.png").read_bytes())
    explain([photos / "one.png", other / "one.png"], weights, tmp_path)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["one.png", "one_2.png"]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--target", "no such class"], ["no such class", "0 to 999"]),
        (["--target", "egyptian_catt"], ["egyptian_catt", "'Egyptian cat'"]),
        (["--target", "1000"], ["1000", "999"]),
        (["--layer", "nowhere"], ["nowhere", "features"]),
        (["--layer", "classifier"], ["classifier"]),
        (["--statistics", "missing.safetensors"], ["missing.safetensors", "--calibrate FOLDER"]),
        (["--calibrate", "missing"], ["missing", "folder"]),
        (["--beta", "-1"], ["beta=-1"]),
        (["--model", "resnet99"], ["resnet99", "resnet50"]),
        (["--weights", "missing.pth"], ["missing.pth"]),
    ],
)
def test_mistakes_are_named(photos, weights, tmp_path, capsys, extra, words):
    """A mistake in the arguments gives one message that names it, exit status 2 and no traceback."""
    status = explain([photos / "one.png"], weights, tmp_path, *extra)
    captured = capsys.readouterr()
    if extra == ["--layer", "classifier"]:  # a 1 x 1 map of the classes: it can be explained, and says little
        assert status == 0
        return
    assert status == 2
    assert all(word in captured.err for word in words)
    assert "Traceback" not in captured.err


def test_weights_of_another_model(photos, tmp_path, capsys):
    """A state dict that does not fit is refused with the model's name, in either format."""
    for name in ("other.safetensors", "other.pth"):
        path = tmp_path / name
        if path.suffix == ".pth":
            torch.save({"weight": torch.ones(2)}, path)
        else:
            save_file({"weight": torch.ones(2)}, path)
        assert explain([photos / "one.png"], path, tmp_path) == 2
        assert "cannot be loaded into squeezenet1_1" in capsys.readouterr().err


def test_safetensors_weights_are_read(weights, tmp_path):
    """The same weights in safetensors give the same model, with the preprocessing of torchvision's own."""
    path = tmp_path / "weights.safetensors"
    save_file(torch.load(weights, weights_only=True), path)
    first, second = load_classifier(CLASSIFIER, str(weights)), load_classifier(CLASSIFIER, str(path))
    x = first.preprocess(Image.new("RGB", (300, 260), (255, 0, 128)))[None]
    assert x.shape == (1, 3, 224, 224)
    assert torch.equal(first.model(x), second.model(x))
    shown = first.to_display(x)[0, :, 100, 100]
    torch.testing.assert_close(shown, torch.tensor([1.0, 0.0, 128 / 255]), rtol=0, atol=1e-5)


def test_folders_without_photos(tmp_path):
    """An empty folder is an error that names the endings looked for."""
    from captum_iba.errors import InvalidArgumentError

    with pytest.raises(InvalidArgumentError, match=r"no photos.*\.jpg"):
        photos_in(tmp_path)


def test_demo_prints_and_draws(tmp_path, capsys):
    """The demo explains held-out canvases; both bottlenecks' shares inside the digit's box exceed LayerGradCam's."""
    assert main(["demo", "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    shares = {name.strip(): float(value) for name, value in re.findall(r"^  (.+?)\s+(\d\.\d+) \(standard", out, re.M)}
    assert len(shares) == 4
    ours = [shares.pop(name) for name in ("LayerIBA", "LayerReadoutIBA")]
    assert min(ours) > max(shares.values())
    assert Image.open(tmp_path / "digits.png").width > 800


def test_share_inside_is_the_boxs_sum():
    """The share inside is the sum over the half-open box by the sum over all."""
    maps = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    boxes = load_canvases("test", 3).boxes
    for i, share in enumerate(share_inside(maps, boxes)):
        x0, y0, x1, y1 = boxes[i].tolist()
        torch.testing.assert_close(share, maps[i, 0, y0:y1, x0:x1].sum() / maps[i].sum())
    assert callable(run_demo)


def test_missing_network_is_named(monkeypatch, photos, tmp_path, capsys):
    """Weights that cannot be downloaded give a line that names the way without a network."""
    from urllib.error import URLError

    def fail(*_args, **_kwargs):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models.get_model", fail)
    assert main(["explain", str(photos / "one.png"), "--model", CLASSIFIER, "--output", str(tmp_path / "out")]) == 2
    assert "could not be downloaded" in capsys.readouterr().err


def test_unwritable_output_is_named(photos, weights, tmp_path, capsys):
    """A folder that cannot be made is named, without a traceback."""
    (tmp_path / "out").write_text("a file, not a folder")
    assert explain([photos / "one.png"], weights, tmp_path) == 2
    assert "out" in capsys.readouterr().err


def test_interruption_is_reported(monkeypatch, capsys, tmp_path):
    """Ctrl-C ends with status 130 and a line, not a traceback."""

    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("captum_iba.demo.run.run_demo", interrupt)
    assert main(["demo", "--output", str(tmp_path)]) == 130
    assert "interrupted" in capsys.readouterr().err
