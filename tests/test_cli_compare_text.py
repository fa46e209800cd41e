"""The command ``captum-iba compare --text``."""

import csv
import json
import subprocess
import sys

import pytest

from captum_iba.cli import main
from captum_iba.comparison import TextFile, compare
from captum_iba.text_models import load_text_classifier
from tests.comparison.text_cases import LABELS, LAYER, TEXTS, bert, calibration, tokenizer

COMMON = ("--layer", LAYER, "--methods", "LayerIBA,GradientNorm", "--metrics", "degradation mask")


@pytest.fixture
def folder(tmp_path):
    """A model, texts to explain and texts to calibrate on."""
    bert().save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    lines = [f"{text}\t{label}" for text, label in zip(TEXTS, LABELS, strict=True)]
    (tmp_path / "dev.tsv").write_text("\n".join(["sentence\tlabel", *lines, "no tab"]))
    (tmp_path / "train.tsv").write_text("".join(f"{text}\t0\n" for text in calibration()))
    return tmp_path


def run(folder, *options):
    files = ("--text", folder / "dev.tsv", "--model", folder / "model", "--calibrate", folder / "train.tsv")
    return main(["compare", *map(str, (*files, "--output", folder / "out", *options))])


def test_the_command_is_the_call(folder, capsys):
    """The same scores as from Python; a line that cannot be read is named, and the exit status says so."""
    assert run(folder, *COMMON) == 1
    printed = capsys.readouterr()
    assert "dev.tsv:6: 'no tab' has no tab" in printed.out
    with (folder / "out/scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    classifier = load_text_classifier(folder / "model")
    data, train = (TextFile(folder / name, classifier.tokenizer) for name in ("dev.tsv", "train.tsv"))
    wanted = compare(
        classifier.model, data, ["LayerIBA", "GradientNorm"], ["degradation mask"], LAYER, calibration=train
    ).results
    for name in ("LayerIBA", "GradientNorm"):
        found = [float(row["degradation mask"]) for row in rows if row["method"] == name]
        assert found == pytest.approx(list(wanted.scores[name]["degradation mask"]), rel=1e-6)
    assert [row["example"] for row in rows[:4]] == [f"dev.tsv:{line}" for line in range(2, 6)]
    known = json.loads((folder / "out/configuration.json").read_text())["configuration"]
    assert known["layer"] == LAYER and known["baseline_token"] == "[MASK]" and known["model"] == "model"
    page = (folder / "out/report.html").read_text()
    assert "LABEL_1" in page and 'id="texts"' in page and "bits per token" in page


def test_two_processes_find_what_one_finds(folder):
    """Under torchrun the texts are shared out; the store of both is one file."""
    assert run(folder, *COMMON) == 1
    alone = (folder / "out/scores.csv").read_text()
    files = ("--text", folder / "dev.tsv", "--model", folder / "model", "--calibrate", folder / "train.tsv")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "captum_iba"]
    command = [*launch, "compare", *files, *COMMON, "--output", folder / "both"]
    subprocess.run([str(part) for part in command], capture_output=True, timeout=300, check=False)
    rows = [list(csv.reader(text.splitlines())) for text in (alone, (folder / "both/scores.csv").read_text())]
    assert [row[:5:4] for row in rows[0]] == [row[:5:4] for row in rows[1]]
    found, wanted = ([float(row[5]) for row in own[1:]] for own in rows)
    assert found == pytest.approx(wanted, rel=1e-5)
    assert [path.name for path in (folder / "both").glob("*.sqlite")] == ["results.sqlite"]


def test_the_sets_for_text_are_the_default(folder):
    """Six methods, four metrics; a limit is spread over the file, and tokens are cut to the length asked for."""
    assert run(folder, "--layer", LAYER, "--limit", 2, "--max-length", 5) == 0
    with (folder / "out/scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["example"] for row in rows} == {"dev.tsv:2", "dev.tsv:4"} and len(rows) == 12
    assert all(
        row[f"{metric} {kind}"] for row in rows for metric in ("degradation", "accuracy") for kind in ("mask", "delete")
    )


MISTAKES = {
    ("--crop", "none"): "--crop does not go with --text",
    ("--boxes", "xml"): "--boxes does not go with --text",
    ("--labels", "predicted"): "--labels does not go with --text",
    ("--baseline", "zero"): "--baseline does not go with --text",
    ("--readout", "a.safetensors"): "a.safetensors",
    ("--model", "resnet50"): "--text needs --model",
    ("--calibrate", "nothing.tsv"): "There is no file 'nothing.tsv'",
    ("--text", "nothing.tsv"): "There is no file 'nothing.tsv'",
    ("--max-length", "0"): "max_length=0",
    ("--methods", "LayerIBAA"): "Did you mean 'LayerIBA'",
}


@pytest.mark.parametrize("options", MISTAKES, ids=lambda options: options[0])
def test_mistakes_are_named(folder, capsys, options):
    """With exit status 2 and one line."""
    assert run(folder, *COMMON, *options) == 2
    assert MISTAKES[options] in capsys.readouterr().err


def test_a_length_is_for_texts(capsys):
    """Not passed over in silence."""
    assert main(["compare", "--demo", "--max-length", "5"]) == 2
    assert "--max-length is for --text" in capsys.readouterr().err
