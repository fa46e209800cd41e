"""The command ``captum-iba explain-text``."""

import copy
import csv

import pytest
import torch
import transformers

from captum_iba import information_by_layer
from captum_iba.cli import main
from captum_iba.text_models import load_text_classifier
from tests.comparison.text_cases import TEXTS, bert, calibration, tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and texts to calibrate on."""
    path = tmp_path_factory.mktemp("text")
    bert().save_pretrained(path / "model")
    tokenizer().save_pretrained(path / "model")
    (path / "train.tsv").write_text("".join(f"{text}\t0\n\n" for text in calibration()))
    return path


def run(folder, *arguments, model="model"):
    return main(["explain-text", *map(str, arguments), "--model", str(folder / model), "--output", str(folder / "out")])


def test_the_command_is_the_call(folder, capsys):
    """Table, page and pictures hold what information_by_layer says of the predicted classes."""
    assert run(folder, *TEXTS[:2], "--calibrate", folder / "train.tsv", "--beta", "0.5") == 0
    printed = capsys.readouterr().out
    classifier = load_text_classifier(folder / "model")
    batch = dict(tokenizer()(TEXTS[:2], padding=True, return_tensors="pt"))
    with torch.no_grad():
        probability = classifier.model(**batch).logits.softmax(dim=1)
    corpus = dict(tokenizer()(calibration(), padding=True, return_tensors="pt"))
    wanted = information_by_layer(
        classifier.model, "all", batch, probability.argmax(dim=1), calibration=[corpus], beta=0.5
    )
    with (folder / "out/layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == [name for name in wanted.layers for _ in range(2)]
    found = [float(row["total_bits"]) for row in rows]
    assert found == pytest.approx(wanted.total_bits.flatten().tolist(), rel=1e-3)
    for index, text in enumerate(TEXTS[:2]):
        label = int(probability[index].argmax())
        assert f"{text}\nLABEL_{label} ({label}), p = {float(probability[index].max()):.3f}" in printed
        assert (folder / f"out/sentence_{index + 1}.png").read_bytes().startswith(b"\x89PNG")
    assert f"most bits pass {wanted.most_informative_layer}" in printed
    page = (folder / "out/layers.html").read_text(encoding="utf-8")
    assert page.count("--share:") == 2 * int(batch["attention_mask"].sum()) and ">warm</span>" in page


def test_layers_and_class_are_chosen_by_name(folder, capsys):
    """One layer, a class by its name; without texts to calibrate on a line says what the bits are not."""
    assert run(folder, TEXTS[0], "--layers", "bert.encoder.layer.1", "--target", "label_2") == 0
    printed = capsys.readouterr()
    assert "LABEL_2 (2)" in printed.out and "layer.0" not in printed.out
    assert "upper bound: --calibrate FILE" in printed.err and "no upper bound on information" in printed.err


def test_a_long_sentence_is_cut_and_named(folder, capsys):
    """At the tokenizer's limit."""
    assert run(folder, "film " * 50, "--layers", "bert.encoder.layer.1") == 0
    assert "sentence 1 has 52 tokens and is cut to 32" in capsys.readouterr().err


def test_a_lost_decision_is_named(folder, capsys):
    """A large beta gives the class up, a small one does not."""
    for beta, is_lost in ((1000, True), (0.01, False)):
        run(folder, TEXTS[0], "--calibrate", folder / "train.tsv", "--beta", beta, "--layers", "bert.encoder.layer.0")
        printed = capsys.readouterr().err
        assert ("at bert.encoder.layer.0 the class keeps less than 80% of its probability" in printed) == is_lost


def test_models_that_take_less_and_tokenizers_that_cannot_pad(folder, capsys):
    """Arguments that the model does not name are left out; without a padding token one sentence goes at a time."""
    sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 10}
    config = transformers.DistilBertConfig(vocab_size=20, num_labels=3, **sizes)
    transformers.DistilBertForSequenceClassification(config).save_pretrained(folder / "small")
    words = copy.deepcopy(tokenizer())
    words.pad_token, words.model_max_length = None, 10**30
    words.save_pretrained(folder / "small")
    common = ("--calibrate", folder / "train.tsv", "--layers", "distilbert.transformer.layer.0")
    assert run(folder, "film " * 20, *common, model="small") == 0
    assert "sentence 1 has 22 tokens and is cut to 10" in capsys.readouterr().err
    assert run(folder, *TEXTS[:2], *common, model="small") == 2
    assert "has no padding token, so its texts go one at a time" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["  "], "Sentence 1, '  ', has no tokens"),
        ([TEXTS[0], "--target", "warm"], "target='warm' is no class"),
        ([TEXTS[0], "--layers", "bert.layer.9"], "layers has 'bert.layer.9', which is not in the model"),
        ([TEXTS[0], "--calibrate", "nowhere.tsv"], "There is no file 'nowhere.tsv'"),
        ([TEXTS[0], "--beta", "-1"], "beta=-1.0"),
    ],
)
def test_mistakes_end_with_a_line(folder, capsys, arguments, message):
    """And with exit status 2."""
    assert run(folder, *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_a_model_is_named(folder, capsys):
    """With what was wanted in it."""
    assert run(folder, TEXTS[0], model="out") == 2
    assert "cannot be loaded as a text classifier" in capsys.readouterr().err


def test_too_few_texts_to_calibrate_on(folder, capsys):
    """One line is no data set."""
    (folder / "one.tsv").write_text("the film\n")
    assert run(folder, TEXTS[0], "--calibrate", folder / "one.tsv") == 2
    assert "holds 1 texts; wanted at least two" in capsys.readouterr().err
