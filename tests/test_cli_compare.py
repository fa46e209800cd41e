"""The command ``captum-iba compare``."""

import csv
import json
import sqlite3

import pytest
import torch
from PIL import Image

from captum_iba.cli import main

CLASSIFIER = "squeezenet1_1"
FILES = {"table.md", "report.html", "scores.csv", "curves.png", "configuration.json", "results.sqlite"}
CHEAP = ("--methods", "Random,Saliency", "--metrics", "degradation 14x14,bounding box", "--n-steps", "3")


@pytest.fixture
def weights(squeezenet_weights):
    return squeezenet_weights


@pytest.fixture
def photos(tmp_path):
    """Two classes, by WordNet id and by index."""
    generator = torch.Generator().manual_seed(0)
    for folder in ("n01440764", "7"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        pixels = torch.randint(0, 255, (300, 300, 3), generator=generator, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / "photos" / folder / f"{folder}_1.png")
    return tmp_path / "photos"


def annotate(path, box=(100, 100, 200, 200), name="n01440764"):
    x0, y0, x1, y1 = box
    path.write_text(
        f"<annotation><size><width>300</width><height>300</height></size><object><name>{name}</name><bndbox>"
        f"<xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object></annotation>"
    )


def run(*options):
    return main(["compare", *map(str, options)])


def compare_photos(photos, weights, tmp_path, *options):
    common = ("--model", CLASSIFIER, "--weights", weights, "--calibrate", photos, "--output", tmp_path / "out")
    return run("--data", photos, *common, *CHEAP, *options)


def scores(folder):
    with (folder / "scores.csv").open() as file:
        return list(csv.DictReader(file))


def test_demo_writes_the_report(tmp_path, capsys):
    """The embedded digits: the table is printed, every file is named and there."""
    assert run("--demo", "--limit", 2, *CHEAP, "--output", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert {"Random", "Saliency"} <= {line.split(" ")[0] for line in printed.splitlines()}
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written >= FILES | {"maps.png"}
    assert all(name in printed for name in FILES - {"results.sqlite"})
    assert {row["method"] for row in scores(tmp_path / "out")} == {"Random", "Saliency"}


def test_photos_with_annotations_of_their_own(photos, weights, tmp_path):
    """Classes come from the folders, boxes from the annotations; a photo without them has no bounding-box ratio."""
    boxes = tmp_path / "xml"
    boxes.mkdir()
    annotate(boxes / "n01440764_1.xml")
    assert compare_photos(photos, weights, tmp_path, "--boxes", boxes) == 0
    found = {(row["example"], row["method"]): row for row in scores(tmp_path / "out")}
    assert found["n01440764/n01440764_1.png", "Random"]["bounding box"] != ""
    assert found["7/7_1.png", "Random"]["bounding box"] == ""
    assert all(row["degradation 14x14"] != "" for row in found.values())
    assert {row["target"] for row in found.values()} == {"tench", "cock"}


def test_boxes_folder_with_photos_of_its_own(photos, weights, tmp_path):
    """Such photos serve the bounding box alone, with a class of their own."""
    boxes = tmp_path / "boxed"
    boxes.mkdir()
    annotate(boxes / "one.xml", name="something")
    Image.open(photos / "7" / "7_1.png").save(boxes / "one.png")
    assert compare_photos(photos, weights, tmp_path, "--boxes", boxes, "--boxes-target", "goldfish") == 0
    own = [row for row in scores(tmp_path / "out") if row["example"] == "one.png"]
    assert [row["target"] for row in own] == ["goldfish"] * 2
    assert all(row["degradation 14x14"] == "" and row["bounding box"] != "" for row in own)


def test_the_same_command_goes_on(photos, weights, tmp_path, capsys):
    """Stored examples are not computed again, and other arguments are refused by name."""
    assert compare_photos(photos, weights, tmp_path) == 0
    first = scores(tmp_path / "out")
    with sqlite3.connect(tmp_path / "out" / "results.sqlite") as store:
        store.execute("UPDATE results SET seconds = 77.0")
    assert compare_photos(photos, weights, tmp_path) == 0
    assert scores(tmp_path / "out") == first
    assert (tmp_path / "out" / "table.md").read_text().count("| 77.0 |") == 2
    capsys.readouterr()
    assert compare_photos(photos, weights, tmp_path, "--seed", 1) == 2
    assert "seed was 0, is 1" in capsys.readouterr().err


def test_configuration_is_kept(photos, weights, tmp_path):
    """Seed, layers and versions stand beside the figures."""
    assert compare_photos(photos, weights, tmp_path, "--layer", "features.6", "--target", "tench", "--seed", 3) == 0
    kept = json.loads((tmp_path / "out" / "configuration.json").read_text())
    assert kept["configuration"]["layer"] == "features.6"
    assert kept["configuration"]["seed"] == 3
    assert kept["versions"]["torch"] == torch.__version__


def test_unreadable_photo_is_a_reason(photos, weights, tmp_path, capsys):
    """A broken file is named in the report and costs only itself."""
    (photos / "7" / "broken.jpg").write_bytes(b"no photo")
    assert compare_photos(photos, weights, tmp_path) == 1
    assert "broken.jpg" in (tmp_path / "out" / "report.html").read_text()
    assert {row["example"] for row in scores(tmp_path / "out")} == {"7/7_1.png", "n01440764/n01440764_1.png"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--demo", "--data-is-not", "x"), None),
        (("--demo", "--methods", "Salency"), "Saliency"),
        (("--demo", "--metrics", "degradation"), "degradation 8x8"),
        (("--demo", "--layer", "stage9"), "stage1"),
        (("--demo", "--boxes", "x"), "--boxes"),
        (("--demo", "--device", "gpu"), "cuda"),
        (("--demo", "--baseline", "black"), "'mean'"),
        (("--demo", "--model", "resnet18"), "--model"),
        (("--demo", "--limit", "0"), "n is 0"),
        (("--demo", "--methods", "Random", "--beta", "3"), "LayerIBA"),
        (("--data", "nowhere", "--model", "resnet5"), "'nowhere' is no folder"),
    ],
)
def test_mistakes_are_answered(options, message, tmp_path, capsys):
    """A mistake ends with status 2 and says what would be right."""
    try:
        status = run(*options, "--output", tmp_path / "out")
    except SystemExit as stop:  # argparse's own
        status = stop.code
    assert status == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert message is None or message in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--labels", "folder", "--target", "tench"), "--target"),
        (("--target", "kangaroo!"), "kangaroo!"),
        (("--model", "resnet5"), "resnet50"),
        (("--boxes", "nowhere"), "no folder"),
        (("--boxes-target", "tench"), "--boxes"),
        (("--labels", "none.csv"), "none.csv"),
        (("--layer", "features"), ""),
    ],
)
def test_mistakes_with_photos(options, message, photos, weights, tmp_path, capsys):
    """Labels, boxes and layers that do not fit the photos or the model."""
    status = compare_photos(photos, weights, tmp_path, *options)
    error = capsys.readouterr().err
    assert status == (0 if options == ("--layer", "features") else 2)
    assert message in error and "Traceback" not in error
