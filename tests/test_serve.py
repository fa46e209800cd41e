"""What ``captum-iba serve`` computes and says, without a browser."""

import argparse
import builtins
import socket
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import VisionTransformer

from captum_iba import LayerIBA, information_by_layer
from captum_iba._cli_serve import load_photo_models, load_text_models
from captum_iba._ports import listening
from captum_iba.cli import main
from captum_iba.demo import LAYER, load_canvases, load_model, to_display
from captum_iba.errors import CaptumIBAError, CaptumIBAWarning, InvalidArgumentError, MissingDependencyError
from captum_iba.photos import Classifier, load_classifier
from captum_iba.serve import PhotoModel, TextModel, digits_model, explain_photo, explain_text
from captum_iba.serve.page import _or_line, build_page, figures_to_html, serve
from captum_iba.serve.text import tokens_to_html
from captum_iba.text_models import load_text_classifier
from tests.comparison.text_cases import TEXTS, bert, calibration, tokenizer

OPTIONS = {
    "demo": False, "model": [], "weights": [], "layer": None, "statistics": None, "calibrate": None, "text_model": [],
    "calibrate_text": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def digits():
    return digits_model()


@pytest.fixture(scope="module")
def canvas():
    """A held-out canvas as a picture."""
    grey = to_display(load_canvases("test", 1).images)[0, 0]
    return Image.fromarray((grey * 255).byte().numpy())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A text model, and texts to calibrate on."""
    path = tmp_path_factory.mktemp("text")
    bert().save_pretrained(path / "model")
    tokenizer().save_pretrained(path / "model")
    (path / "train.tsv").write_text("".join(f"{text}\t0\n" for text in calibration()))
    return path


def test_a_photos_bits_are_the_layers(digits, canvas):
    """Map, total and probabilities are LayerIBA's at that layer, class and beta, with statistics of the training
    canvases; the colour bar is in bits per pixel; a class can be asked for."""
    found = explain_photo(digits, canvas, target="4", beta=2.0)
    model = load_model()
    own = LayerIBA(model, model.get_submodule(LAYER), statistics=digits.method(LAYER).statistics)
    assert own.statistics.n_samples == 1000
    image = digits.classifier.preprocess(canvas)[None]
    bits, record = own.attribute(image, target=4, beta=2.0, return_diagnostics=True)
    assert (found.label, found.index, found.layer) == ("4", 4, LAYER)
    assert found.total_bits == pytest.approx(float(bits.sum()), rel=1e-4)
    assert float(found.pixels.sum()) == pytest.approx(float(bits.sum()), rel=1e-3) and found.pixels.shape[2:] == (
        64,
        64,
    )
    assert found.probability_through == pytest.approx(float(record.target_probability[0]), rel=1e-4)
    assert found.probability == pytest.approx(float(model(image).softmax(1)[0, 4].detach()), rel=1e-4)
    assert "bits per pixel" in [axis.get_ylabel() for axis in found.figure.axes]
    assert found.notes[0].startswith("Feature statistics of 1000 images: in the mean, the bits are an upper bound.")
    assert explain_photo(digits, canvas).label == "7" == str(int(model(image).argmax()))


def test_a_canvas_survives_being_a_picture(digits, canvas):
    """Enlarged by a whole factor, as the page's button gives it, a canvas is read as it was, to a grey of 256."""
    large = canvas.resize((256, 256), Image.Resampling.NEAREST).convert("RGB")
    back = to_display(digits.classifier.preprocess(large))
    assert np.abs(back[0].numpy() * 255 - np.asarray(canvas)).max() < 1


def test_each_layer_is_calibrated_once(digits, canvas):
    """At its first explanation, over batches that can be counted; the others wait."""
    seen = []

    def over(batches):
        for batch in batches:
            seen.append(len(batch))
            yield batch

    model = PhotoModel(digits.classifier, LAYER, torch.split(load_canvases("train", 200).images, 100))
    for layer in ("", "stage3", "stage2", "stage3"):
        explain_photo(model, canvas, layer, over=over)
    assert seen == [100] * 4


def test_without_calibration_the_page_says_so(digits, canvas):
    """And names the way out."""
    model = PhotoModel(digits.classifier, LAYER)
    with pytest.warns(CaptumIBAWarning, match="no upper bound"):
        found = explain_photo(model, canvas)
    assert found.notes[0].startswith("Not calibrated") and "no upper bound" in found.notes[0]


def test_a_lost_decision_is_named(digits, canvas):
    """With a large beta nothing passes, and a line says that these are not the bits of the decision."""
    found = explain_photo(digits, canvas, beta=1e5)
    assert found.probability_through < 0.8 * found.probability and "a smaller beta" in found.notes[-1]
    assert not any("a smaller beta" in note for note in explain_photo(digits, canvas, beta=1.0).notes)


def test_a_vision_transformer_is_offered_by_its_blocks():
    """Layers are its blocks; bits of the class token are not on the map, and a line has them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VisionTransformer(32, 8, 4, 2, 8, 16, num_classes=3).eval()
        torch.nn.init.normal_(model.heads.head.weight)
    one = torch.ones(3, 1, 1)
    photos = PhotoModel(
        Classifier(
            "vit", model, lambda photo: torch.linspace(0, 1, 3072).view(3, 32, 32), ["a", "b", "c"], one * 0, one
        )
    )
    assert photos.layers == [f"encoder.layers.encoder_layer_{number}" for number in range(4)]
    assert photos.layer == photos.layers[1]
    with pytest.warns(CaptumIBAWarning, match="no upper bound"):
        found = explain_photo(photos, Image.new("RGB", (8, 8)), target="0")
    assert any("in tokens that are no patches" in note for note in found.notes)
    assert float(found.pixels.sum()) < found.total_bits


def test_mistakes_are_lines(digits, canvas, folder):
    """Whatever one can type on the page that is wrong: an error of ours, shown as one line of escaped text."""
    texts = TextModel(load_text_classifier(folder / "model"))
    cases = [
        (lambda: explain_photo(digits, None), "no photo yet"),
        (lambda: explain_photo(digits, canvas, "<stage9>"), "layer='<stage9>' is not in the model"),
        (lambda: explain_photo(digits, canvas, target="cat"), "target='cat' is no class"),
        (lambda: explain_photo(digits, canvas, target="²"), "target='²' is no class"),  # a digit, and no number
        (lambda: explain_photo(digits, canvas, beta=None), "beta=None"),
        (lambda: explain_photo(digits, canvas, beta=-1), "beta=-1"),
        (lambda: explain_photo(digits, canvas, "head"), "no map"),
        (lambda: explain_text(texts, "  "), "no sentence yet"),
        (lambda: explain_text(texts, "the film", "nowhere"), "'nowhere', which is not in the model"),
        (lambda: explain_text(texts, "the film", target="cat"), "target='cat' is no class"),
        (lambda: explain_text(texts, "the film", target="²"), "target='²' is no class"),
        (lambda: explain_text(texts, "the film", beta=float("nan")), "beta=nan"),
    ]
    for explain, said in cases:
        with pytest.raises(CaptumIBAError) as found:
            explain()
        assert said in str(found.value)
        line, figure = _or_line(explain)
        assert figure is None and line.count("<") == 2 and 'role="alert"' in line


def test_a_sentences_bits_are_information_by_layers(folder):
    """Bits of the chosen layer, probabilities, and the map of all layers; the texts are read once for all of them."""
    classifier = load_text_classifier(folder / "model")
    texts, seen = TextModel(classifier, calibration=folder / "train.tsv"), []

    def over(batches):
        seen.append(len(batches))
        return batches

    found = explain_text(texts, TEXTS[0], target="1", beta=0.5, over=over)
    corpus = dict(tokenizer()(calibration(), padding=True, return_tensors="pt"))
    batch = dict(tokenizer()([TEXTS[0]], return_tensors="pt"))
    wanted = information_by_layer(classifier.model, "all", batch, 1, calibration=[corpus], beta=0.5)
    assert texts.layers == list(wanted.layers) and found.layer == wanted.layers[1] == texts.layer
    torch.testing.assert_close(found.bits, wanted.of_example(0)[1], rtol=1e-3, atol=1e-4)
    assert found.probability_through == pytest.approx(float(wanted.target_probability[1, 0]), rel=1e-3)
    assert found.tokens[:3] == ["[CLS]", "the", "film"] and len(found.bits) == len(found.tokens)
    assert found.figure.axes[1].get_ylabel() == "bits per token"
    assert found.notes[0].startswith(f"Feature statistics of {len(calibration())} texts")
    alone = explain_text(texts, TEXTS[0], wanted.layers[0], target="1", beta=0.5, every_layer=False, over=over)
    torch.testing.assert_close(alone.bits, wanted.of_example(0)[0], rtol=1e-3, atol=1e-4)
    assert alone.figure is None and seen == [1]


def test_a_long_sentence_is_cut_and_a_line_says_so(folder):
    """The tokenizer takes 32 tokens."""
    texts = TextModel(load_text_classifier(folder / "model"))
    with pytest.warns(CaptumIBAWarning, match="no upper bound"):
        found = explain_text(texts, "film " * 40, every_layer=False)
    assert len(found.tokens) == 32 and found.notes[0] == "sentence 1 has 42 tokens and is cut to 32"
    assert found.notes[1].startswith("Not calibrated")


def test_markup_in_words_is_text(digits, canvas):
    """Tokens, names of classes and notes cannot write HTML."""
    assert tokens_to_html(["<i>", "b"], torch.tensor([0.0, 0.0])).count("<") == 10  # our own tags: five pairs
    found = explain_photo(digits, canvas)
    object.__setattr__(found, "label", "<script>")
    found.notes.append("<img src=x>")
    shown = figures_to_html(found)
    assert "&lt;script&gt;, 0." in shown and "&lt;img src=x&gt;" in shown and f"{found.total_bits:.0f}</b>" in shown


def test_models_come_from_the_arguments(squeezenet_weights, tmp_path, folder):
    """Models by name with the weights in their order, the digits where nothing is asked for, statistics from a file."""
    named = {"model": ["squeezenet1_1"], "weights": [str(squeezenet_weights)]}
    classifier = load_classifier("squeezenet1_1", str(squeezenet_weights))
    own = LayerIBA(classifier.model, classifier.model.features[5]).estimate([torch.rand(4, 3, 224, 224)])
    own.save_statistics(tmp_path / "statistics.safetensors")
    options = OPTIONS | named | {"layer": "features.5", "statistics": tmp_path / "statistics.safetensors"}
    models = load_photo_models(argparse.Namespace(**options))
    assert list(models) == ["squeezenet1_1"] and models["squeezenet1_1"].layer == "features.5"
    assert models["squeezenet1_1"].method("features.5").statistics.n_samples == 4
    assert models["squeezenet1_1"].method("features.7").statistics is None
    assert {"features.0", "features.12"} < set(models["squeezenet1_1"].layers)
    assert list(load_photo_models(argparse.Namespace(**OPTIONS))) == ["embedded digits"]
    text = OPTIONS | {"text_model": [folder / "model", folder / "model"], "calibrate_text": folder / "train.tsv"}
    assert list(load_text_models(argparse.Namespace(**text))) == ["model", "model (2)"]
    assert load_photo_models(argparse.Namespace(**text)) == {}


def test_mistakes_in_the_command_are_named(capsys):
    """Options without their model, too many weights, and a port that another program has."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        cases = {
            ("--weights", "x"): "are for a --model",
            ("--calibrate-text", "x"): "is for a --text-model",
            ("--model", "resnet18", "--weights", "a", "--weights", "b"): "2 --weights for 1 --model",
            ("--demo", "--port", str(taken.getsockname()[1])): "wanted another --port",
        }
        for arguments, said in cases.items():
            assert main(["serve", *arguments]) == 2
            assert said in capsys.readouterr().err.replace("Wanted", "wanted")


def test_an_address_is_checked_first():
    """No such port, no such host."""
    for address, said in ((("127.0.0.1", 700000), "from 0 to 65535"), (("no.such.host.invalid", 0), "no host=")):
        with pytest.raises(InvalidArgumentError, match=said), listening(*address):
            pass


def test_the_page_is_wired_to_the_functions(digits, canvas, folder):
    """The buttons' functions give figures and picture, or a line; another model brings its own layers; the demo's
    button draws canvases; nothing of gradio's reports home."""
    other = PhotoModel(digits.classifier, "stage3", torch.split(load_canvases("train", 200).images, 100))
    texts = TextModel(load_text_classifier(folder / "model"), calibration=folder / "train.tsv")
    page = build_page({"embedded digits": digits, "other": other}, {"words": texts})
    assert page.analytics_enabled is False
    draw, choose, run_photo, _, run_text = [function.fn for function in page.fns.values()]
    shown, figure = run_photo(canvas, "other", "stage3", "", 10.0)
    assert "bits at stage3" in shown and "bits per pixel" in [axis.get_ylabel() for axis in figure.axes]
    assert run_photo(None, "other", "stage3", "", 10.0)[0].startswith('<p class="iba-error"')
    assert choose("other").value == "stage3" and choose("embedded digits").value == LAYER
    back = to_display(digits.classifier.preprocess(draw()))
    assert np.abs(back[0].numpy() * 255 - np.asarray(canvas)).max() < 1
    shown, figure = run_text(TEXTS[0], "words", None, None, 0.5, True)
    assert shown.count("<small>") == len(tokenizer()(TEXTS[0])["input_ids"]) and figure is not None


def test_the_page_is_served_on_loopback(digits, capsys):
    """What comes from the address is the page, until an interruption, which ends it and frees the port."""
    found = []

    def visit(address):
        found.append((address, urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address).read()))
        raise KeyboardInterrupt

    serve({"embedded digits": digits}, {}, when_ready=visit)
    ((address, content),) = found
    assert address.startswith("http://127.0.0.1:") and b"captum-iba" in content
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", int(address.rstrip("/").rsplit(":")[-1])), timeout=5)


def test_a_page_needs_gradio_and_a_model(monkeypatch):
    """Without gradio the extra is named; without a model there is nothing to show."""
    with pytest.raises(InvalidArgumentError, match="no model to serve"):
        build_page({}, {})
    real = builtins.__import__

    def refuse(name, *rest):
        if name == "gradio":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingDependencyError, match=r"pip install 'captum_iba\[serve\]'"):
        build_page({}, {})
