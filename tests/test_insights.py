"""With captum 0.8 Insights' own server is asked; with captum 0.9, which has none, each test is of what is said."""

import base64
import functools
import gc
import importlib.util
import io
import logging
import threading
import weakref
from dataclasses import replace
from itertools import count, islice

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from captum_iba import IBA, LayerIBA
from captum_iba.bottleneck import FeatureStatistics
from captum_iba.cli import main
from captum_iba.demo import LAYER, load_canvases, load_model, load_readout, to_display
from captum_iba.demo.readout import PATH
from captum_iba.errors import (
    CaptumIBAError,
    InvalidArgumentError,
    InvalidTypeError,
    MissingDependencyError,
    MissingFileError,
    ReadoutFileError,
)
from captum_iba.insights import _checked, _Source, register
from tests.comparison.text_cases import LAYER as TEXT_LAYER
from tests.comparison.text_cases import TEXTS, bert, tokenizer

HAS_INSIGHTS = importlib.util.find_spec("captum.insights") is not None


@pytest.fixture(scope="module")
def canvases():
    test = load_canvases("test", 4)
    return load_canvases("train", 100).images.double(), replace(test, images=test.images.double())


def double_model():
    """In float64, so that equal sums in another order stay equal over the steps."""
    return load_model().double()


@pytest.fixture(autouse=True)
def clean_registry():
    """Captum's lists are global: what a test registers is taken out again."""
    if not HAS_INSIGHTS:
        yield
        return
    from captum.insights.attr_vis import config

    lists = (config.ATTRIBUTION_NAMES_TO_METHODS, config.ATTRIBUTION_METHOD_CONFIG)
    before = [dict(one) for one in lists]
    yield
    for one, own in zip(lists, before, strict=True):
        one.clear()
        one.update(own)


def needs_insights(test):
    """Run a test with Insights; without, the same call must end in the error that says how to get it."""

    @functools.wraps(test)
    def either(*args, **kwargs):
        if HAS_INSIGHTS:
            return test(*args, **kwargs)
        with pytest.raises(ImportError, match=r"went with captum 0\.9.*pip install 'captum_iba\[insights\]'") as found:
            test(*args, **kwargs)
        assert isinstance(found.value, MissingDependencyError)

    return either


def dashboard(model, features, batches, classes):
    from captum.insights import AttributionVisualizer
    from captum.insights.attr_vis import server

    server.visualizer = AttributionVisualizer([model], classes, features, batches)
    return server.app.test_client()


def images_of(model, images, labels, name="canvas"):
    """A dashboard of grey canvases, shown in three channels."""
    from captum.insights import Batch
    from captum.insights.attr_vis.features import ImageFeature

    feature = ImageFeature(name, torch.zeros_like, [], lambda image: to_display(image).expand(-1, 3, -1, -1))
    return dashboard(model, [feature], [Batch(images, labels)], [str(digit) for digit in range(10)])


def fetch(client, name, **arguments):
    settings = {"attribution_method": name, "arguments": arguments, "prediction": "all", "classes": []}
    answer = client.post("/fetch", json=settings)
    assert answer.status_code == 200
    return [example[0] for example in answer.get_json()]


def picture(example):
    content = base64.b64decode(example["feature_outputs"][0]["modified"])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(float)


@pytest.fixture
def drawn(monkeypatch):
    """The attributions that Insights gets to draw."""
    found = []
    if HAS_INSIGHTS:
        from captum.insights.attr_vis import features

        for kind in (features.ImageFeature, features.TextFeature):
            own = kind.visualize

            def spy(self, attribution, data, share, own=own):
                found.append(attribution.clone())
                return own(self, attribution, data, share)

            monkeypatch.setattr(kind, "visualize", spy)
    return found


@needs_insights
def test_the_dashboard_lists_the_methods_with_their_controls():
    """Both by their names among Captum's; the per-sample one with its numbers, the trained one with none."""
    assert register(layer=LAYER, n_steps=7, beta=0.5) == "IBA"
    assert register(method="readout", readout=PATH) == "Readout IBA"
    assert register(layer="stage3", name="IBA, stage 3") == "IBA, stage 3"
    client = images_of(load_model(), torch.zeros(1, 1, 64, 64), torch.zeros(1))
    found = client.get("/init").get_json()
    assert found["methods"][-3:] == ["IBA", "Readout IBA", "IBA, stage 3"] and "Saliency" in found["methods"]
    assert found["method_arguments"]["IBA"] == {
        "n_steps": {"value": 7, "limit": [1, None], "type": "number"},
        "beta": {"value": "0.5", "type": "string"},
    }
    assert found["method_arguments"]["Readout IBA"] == {}


@needs_insights
def test_what_is_drawn_are_the_bits(canvases, drawn):
    """The map that Insights draws is LayerIBA's with the same statistics, class (the predicted one) and numbers, its
    total kept; pictures of examples differ; the model is bit for bit what it was."""
    train, test = canvases
    register(layer=LAYER, statistics=train)
    model = double_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    client = images_of(model, test.images, test.labels)
    shown = fetch(client, "IBA", n_steps=2, beta="3")
    own = LayerIBA(model, model.get_submodule(LAYER)).estimate(train)
    assert len(shown) == len(drawn) == 4
    for row, attribution in enumerate(drawn):
        one, label = test.images[row : row + 1], int(model(test.images[row : row + 1]).argmax())
        assert shown[row]["active_index"] == label
        expected = IBA(model, own.layer, method=own).attribute(one, target=label, n_steps=2, beta=3.0)
        assert attribution.shape == (1, 3, 64, 64)
        torch.testing.assert_close(attribution, expected.expand(-1, 3, -1, -1) / 3)
        bits = own.attribute(one, target=label, n_steps=2, beta=3.0)
        torch.testing.assert_close(attribution.sum(), bits.sum(), rtol=1e-3, atol=0)
    assert picture(shown[0]).std() > 1 and np.abs(picture(shown[0]) - picture(shown[1])).max() > 10
    # another class of the first example
    drawn.clear()
    other = (int(test.labels[0]) + 1) % 10
    answer = client.post("/attribute", json={"inputIndex": 0, "modelIndex": 0, "labelIndex": other}).get_json()
    assert answer["active_index"] == other
    expected = IBA(model, own.layer, method=own).attribute(test.images[:1], target=other, n_steps=2, beta=3.0)
    torch.testing.assert_close(drawn[0], expected.expand(-1, 3, -1, -1) / 3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@needs_insights
def test_a_trained_readout_is_drawn(canvases, drawn):
    """Its map, at the layer that its file names."""
    register(method="readout", readout=PATH)
    model, test, images = load_model(), canvases[1], canvases[1].images.float()
    fetch(images_of(model, images, test.labels), "Readout IBA")
    readout = load_readout(model)
    expected = IBA(model, readout.layer, method=readout).attribute(images)
    torch.testing.assert_close(torch.cat(drawn), expected.expand(-1, 3, -1, -1) / 3)


@needs_insights
def test_images_of_three_channels_keep_theirs(drawn):
    """Bits of the input's shape go on as they are."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)).double().eval()
        images, train = torch.rand(4, 3, 8, 8).double(), torch.rand(100, 3, 8, 8).double()
    register(layer=lambda found: found[0], statistics=train)
    from captum.insights import Batch
    from captum.insights.attr_vis.features import ImageFeature

    client = dashboard(
        model, [ImageFeature("x", None, None)], [Batch(images, torch.tensor([0, 1, 2, 1]))], ["a", "b", "c"]
    )
    shown = fetch(client, "IBA", n_steps=3, beta="1")
    own = IBA(model, model[0]).estimate(train)
    for row, label in enumerate(example["active_index"] for example in shown):
        torch.testing.assert_close(drawn[row], own.attribute(images[row : row + 1], target=label, n_steps=3, beta=1.0))


class Logits(nn.Module):
    """BERT with a tensor for an output, as Insights wants it."""

    def __init__(self):
        super().__init__()
        self.bert = bert()

    def forward(self, input_ids, attention_mask):
        return self.bert(input_ids=input_ids, attention_mask=attention_mask).logits


@needs_insights
def test_text_is_coloured_by_bits_per_token(drawn):
    """One number a token, those of LayerIBA; shown as shares of the largest."""
    model, words = Logits().double().eval(), tokenizer()
    coded = words(TEXTS, padding=True, return_tensors="pt")
    ids, mask = coded["input_ids"], coded["attention_mask"]
    statistics = LayerIBA(model, model.get_submodule(f"bert.{TEXT_LAYER}")).estimate(
        [(ids, mask)], input_fn=lambda b: b
    )
    register(layer=f"bert.{TEXT_LAYER}", statistics=statistics.statistics)
    from captum.insights import Batch
    from captum.insights.attr_vis.features import TextFeature

    feature = TextFeature("text", None, None, lambda data: words.convert_ids_to_tokens(data.squeeze(0).tolist()))
    client = dashboard(model, [feature], [Batch(ids, torch.tensor([1, 2, 0, 0]), (mask,))], ["a", "b", "c"])
    shown = fetch(client, "IBA", n_steps=5, beta="1")
    for row, label in enumerate(example["active_index"] for example in shown):
        one = slice(row, row + 1)
        bits = statistics.attribute(ids[one], target=label, additional_forward_args=mask[one], n_steps=5, beta=1.0)
        torch.testing.assert_close(drawn[row], bits.squeeze(2))
        shares = np.array(shown[row]["feature_outputs"][0]["modified"])
        np.testing.assert_allclose(shares, (100 * bits / bits.max()).flatten().numpy(), rtol=1e-4)
        assert shown[row]["feature_outputs"][0]["base"][1] == TEXTS[row].split()[0]


def test_each_model_is_calibrated_once_and_let_go(canvases, monkeypatch):
    """Requests of several threads at once estimate once a model; what was made does not keep the model alive. (This
    needs no dashboard.)"""
    calls, real = [], LayerIBA.estimate
    monkeypatch.setattr(LayerIBA, "estimate", lambda self, data: calls.append(1) or real(self, data))
    source, trained = _Source(LAYER, canvases[0].float(), "iba", None), _Source(None, None, "readout", PATH)
    first, second = load_model(), load_model()
    one, found = canvases[1].images[:1].float(), []

    def explain(model):
        return source.method_for(model).attribute(one, target=1, n_steps=2)

    threads = [threading.Thread(target=lambda: found.append(explain(first))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and len(found) == 4 and all(torch.equal(maps, found[0]) for maps in found)
    assert torch.equal(explain(second), found[0]) and torch.equal(explain(second), found[0])
    readout = trained.method_for(second)
    assert len(calls) == 2 and torch.equal(readout.attribute(one), trained.method_for(second).attribute(one))
    assert readout.layer is second.get_submodule(LAYER)
    gone = weakref.ref(second)
    del second, readout
    gc.collect()
    assert gone() is None


@needs_insights
def test_an_example_without_bits_is_drawn(canvases, drawn, monkeypatch):
    """Captum cannot scale a map of zeros: the first pixel gets a mark, all else stays empty, and a warning says so."""
    monkeypatch.setattr("captum_iba.insights._warner._given", set())
    monkeypatch.setattr(IBA, "attribute", lambda self, inputs, *args, **kwargs: (torch.zeros_like(inputs[0]),))
    register(layer=LAYER)
    test = canvases[1]
    with pytest.warns(UserWarning, match="has no bits at all"):
        shown = fetch(images_of(double_model(), test.images, test.labels), "IBA", n_steps=1, beta="1")
    assert [int((attribution != 0).sum()) for attribution in drawn] == [3] * 4
    inside = picture(shown[0])[100:-100, 100:-100]
    assert (inside == inside[0, 0]).all()


@needs_insights
def test_what_goes_wrong_later_is_logged(canvases, caplog):
    """A layer that the model has not, a control that holds no number: the dashboard is silent, the log is not."""
    test = canvases[1]
    cases = {
        "layers has 'stage9', which is not in the model": ({"layer": "stage9"}, {"n_steps": 1, "beta": "1"}),
        "wanted numbers n_steps and beta": ({"layer": LAYER}, {"n_steps": 1, "beta": "ten"}),
        "layers is a list": ({"layer": lambda model: 3}, {"n_steps": 1, "beta": "1"}),
    }
    for said, (options, arguments) in cases.items():
        register(**options)
        client = images_of(double_model(), test.images, test.labels)
        caplog.clear()
        with caplog.at_level(logging.ERROR, logger="captum_iba.insights"), pytest.raises(AssertionError):
            fetch(client, "IBA", **arguments)  # 500
        assert said in caplog.text


@needs_insights
def test_mistakes_are_found_at_once(tmp_path):
    """Whatever can be known before there is a model is said at register()."""
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    cases = [
        ({}, InvalidArgumentError, "layer is None"),
        ({"layer": 3}, InvalidTypeError, "layer is a int"),
        ({"layer": LAYER, "method": "best"}, InvalidArgumentError, "method='best'"),
        ({"layer": LAYER, "method": "readout"}, InvalidArgumentError, "with the file of a trained readout"),
        ({"layer": LAYER, "readout": PATH}, InvalidArgumentError, "with the file of a trained readout"),
        ({"method": "readout", "readout": tmp_path / "none"}, MissingFileError, "none"),
        ({"method": "readout", "readout": tmp_path / "broken.safetensors"}, ReadoutFileError, "broken"),
        ({"method": "readout", "readout": PATH, "statistics": []}, InvalidArgumentError, "do not go with"),
        ({"layer": LAYER, "statistics": tmp_path / "none"}, MissingFileError, "No statistics file"),
        ({"layer": LAYER, "statistics": 3}, InvalidTypeError, "statistics is a int"),
        ({"layer": LAYER, "n_steps": 0}, InvalidArgumentError, "n_steps=0"),
        ({"layer": LAYER, "beta": -1.0}, InvalidArgumentError, "beta=-1.0"),
        ({"layer": LAYER, "name": "Saliency"}, InvalidArgumentError, "one of Captum's own"),
    ]
    for options, kind, said in cases:
        with pytest.raises(CaptumIBAError) as found:
            register(**options)
        if isinstance(found.value, MissingDependencyError):
            raise found.value
        assert isinstance(found.value, kind) and said in str(found.value)


def test_a_generator_serves_each_model(canvases):
    """Batches that can be read once give every model the map that their list gives, and a stream without an end is read
    no further than one asks. (This needs no dashboard.)"""
    train, one = canvases[0].float(), canvases[1].images[:1].float()
    batches = train.split(50)
    sources = [_Source(LAYER, data, "iba", None) for data in (batches, (batch for batch in batches))]
    for model in (load_model(), load_model()):
        wanted, found = [source.method_for(model).attribute(one, target=1, n_steps=2) for source in sources]
        assert torch.equal(found, wanted)
    endless = _checked(count())
    assert [list(islice(endless, length)) for length in (2, 4)] == [[0, 1], [0, 1, 2, 3]]


def test_statistics_may_come_as_a_file(canvases, tmp_path):
    """A path, its content, and the data give the same map; a module and a function name the same layer. (This needs no
    dashboard.)"""
    train, test = canvases
    model = double_model()
    own = LayerIBA(model, model.get_submodule(LAYER)).estimate(train)
    path = tmp_path / "statistics.safetensors"
    own.save_statistics(path)
    choices = [
        (LAYER, path),
        (model.get_submodule(LAYER), FeatureStatistics.load(path)),
        (lambda found: list(found.children())[1], [train]),
    ]
    found = [
        _Source(*given, "iba", None).method_for(model).attribute(test.images, target=0, n_steps=1) for given in choices
    ]
    expected = IBA(model, own.layer, method=own).attribute(test.images, target=0, n_steps=1)
    assert all(torch.equal(maps, expected) for maps in found)


def test_the_command_says_what_it_needs(capsys):
    """Without --demo there is nothing to show; without Insights the error says how to get it."""
    assert main(["insights"]) == 2
    assert "--demo" in capsys.readouterr().err
    if not HAS_INSIGHTS:
        assert main(["insights", "--demo"]) == 2
        assert "pip install 'captum_iba[insights]'" in capsys.readouterr().err
    else:
        from captum.insights.attr_vis import config

        from captum_iba._cli_insights import demo_visualizer

        visualizer = demo_visualizer()
        assert {"IBA", "Readout IBA"} < set(config.ATTRIBUTION_NAMES_TO_METHODS)
        assert visualizer.models[0](torch.zeros(1, 3, 64, 64)).shape == (1, 10)
