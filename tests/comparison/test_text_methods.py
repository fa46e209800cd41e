"""Laws of the methods for text: each against a direct call or its formula, and the layer that embeds the ids."""

import captum.attr
import pytest
import torch
from torch import nn

from captum_iba import LayerIBA
from captum_iba._warn import Warner
from captum_iba.attr import TOKEN_RANKING
from captum_iba.attr.attention_rollout import AttentionRollout
from captum_iba.comparison import compare
from captum_iba.comparison._arguments import logits_of
from captum_iba.comparison._column import ExampleState
from captum_iba.comparison._embedding import find_embedding
from captum_iba.comparison._text_calibration import TextCalibration
from captum_iba.comparison.captum_methods import seed_of
from captum_iba.comparison.context import Context
from captum_iba.comparison.methods import TEXT, find_methods
from captum_iba.errors import InvalidArgumentError
from tests.comparison.text_cases import LAYER, batch, bert, calibration, examples, quick, transformers

SEED = 3


def context(model, data, **options):
    example = data.load(0)
    ids, additional = batch(example)
    given = {"layer": model.get_submodule(LAYER), "additional_forward_args": additional, "seed": SEED} | options
    texts = TextCalibration(calibration(), data, model, ids.device, Warner())
    return Context(model, ids, texts, **given)


def built(name, model, data, **options):
    """The method's map of an example, as a comparison asks for it."""
    (method,) = find_methods([name], "text")
    own = context(model, data, **options)
    explain = method.build(own)

    def map_of(example):
        state = ExampleState.of(own, example)
        names = {"LayerIntegratedGradients": ("baselines",), "Random": (), "AttentionRollout": ()}.get(name, ())
        more = () if name == "Random" else ("additional_forward_args",)
        keywords = {key: value for key, value in state.keywords.items() if key in (*names, *more)}
        return example.fitted(explain(state.inputs, state.target, **keywords)).detach()

    return map_of


def gradients(model, example):
    """Embeddings of the ids, and the gradient of the class's logit with respect to them."""
    ids, (mask, types) = batch(example)
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    logits = model(inputs_embeds=embedded, attention_mask=mask, token_type_ids=types).logits
    return embedded, torch.autograd.grad(logits[0, example.target], embedded)[0]


def at_the_layer(model, example):
    """Activation of the layer, and the gradient of the class's logit with respect to it."""
    kept = []

    def keep(_module, _inputs, output):
        kept.append(output[0] if isinstance(output, tuple) else output)

    handle = model.get_submodule(LAYER).register_forward_hook(keep)
    ids, additional = batch(example)
    logits = model(ids, *additional).logits
    handle.remove()
    return kept[0], torch.autograd.grad(logits[0, example.target], kept[0])[0]


def bits(model, example, data):
    ids, additional = batch(example)
    iba = LayerIBA(model, model.get_submodule(LAYER), statistics=context(model, data).statistics)
    options = {"target": example.target, "additional_forward_args": additional, "seed": SEED}
    return iba.attribute(ids, **options, **TOKEN_RANKING).squeeze(2)


def integrated(model, example, _data):
    ids, additional = batch(example)
    method = captum.attr.LayerIntegratedGradients(
        lambda *arguments: model(*arguments).logits, model.bert.embeddings.word_embeddings
    )
    values = method.attribute(
        ids, baselines=example.baselines[None], target=example.target, additional_forward_args=additional, n_steps=50
    )
    return values.sum(dim=2)


def shuffled(_model, example, _data):
    ids = example.inputs
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed_of(ids, SEED)))
    return torch.linspace(-1, 1, len(ids))[order][None]


DIRECT = {
    "LayerIBA": bits,
    "LayerIntegratedGradients": integrated,
    "LayerGradientXActivation": lambda m, e, _data: torch.stack(at_the_layer(m, e)).prod(dim=0).sum(dim=2),
    "GradientNorm": lambda m, e, _data: gradients(m, e)[1].pow(2).sum(dim=2).sqrt(),
    "AttentionRollout": lambda m, e, _data: AttentionRollout(m).attribute(batch(e)[0]).squeeze(2),
    "Random": shuffled,
}


def test_every_method_for_text_is_known():
    """The set and the table of this test name the same methods."""
    assert set(TEXT) == set(DIRECT)


@pytest.mark.parametrize("name", TEXT)
def test_a_method_is_its_formula(name):
    """Each token's value is that of a direct call, text by text, without padding."""
    model, data = bert(), examples()
    map_of = built(name, model, data)
    for index in range(len(data.keys)):
        example = data.load(index)
        wanted = DIRECT[name](model, example, data).detach()
        torch.testing.assert_close(map_of(example), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_integrated_gradients_are_complete():
    """Their sum is the class's logit minus that of the baseline, and tokens that the baseline keeps get nothing."""
    model, data = bert().double(), examples()
    # weights as large as these need many points
    map_of = built("LayerIntegratedGradients", model, data, options={"LayerIntegratedGradients": {"n_steps": 600}})
    for index in range(len(data.keys)):
        example = data.load(index)
        ids, additional = batch(example)
        with torch.no_grad():
            ends = [model(x, *additional).logits[0, example.target] for x in (ids, example.baselines[None])]
        found = map_of(example)
        assert float(found.sum()) == pytest.approx(float(ends[0] - ends[1]), abs=1e-3)
        assert found[0, example.special].abs().max() == 0


def test_options_reach_the_method():
    """Those of Captum's attribute; one of an unknown name is the row's reason."""
    options = {"LayerIntegratedGradients": {"n_steps": 2}, "LayerIBA": {"beta": 1e-3}}
    plain = quick(methods=list(options))
    changed = quick(methods=list(options), method_options=options)
    for name in options:
        assert (
            plain.results.scores[name]["degradation mask"] != changed.results.scores[name]["degradation mask"]
        ).any()
    wrong = quick(methods=["GradientNorm", "Random"], method_options={"GradientNorm": {"steps": 3}})
    assert "steps" in wrong.results.methods[0].reason and not wrong.results.methods[1].reason


class Bag(nn.Module):
    """A classifier without get_input_embeddings; positions have an embedding of their own."""

    def __init__(self, twice=False):
        super().__init__()
        self.positions, self.words, self.head = nn.Embedding(32, 4), nn.Embedding(20, 4), nn.Linear(4, 3)
        self.twice = twice

    def forward(self, ids):
        places = torch.arange(ids.shape[1]).expand_as(ids)
        embedded = self.words(ids) + (self.positions(ids) if self.twice else self.positions(places))
        return self.head(embedded.mean(dim=1))


def test_the_embedding_is_the_one_that_is_given_the_ids():
    """By the model's own word for it, else by what reaches each embedding; where that leaves a choice it is said."""
    model, ids = Bag(), torch.tensor([[5, 1, 2]])
    assert find_embedding(model, ids) is model.words
    own = bert()
    assert find_embedding(own, ids) is own.bert.embeddings.word_embeddings
    with pytest.raises(InvalidArgumentError, match=r"2 embeddings are given the token ids \(words, positions\)"):
        find_embedding(Bag(twice=True), ids)
    with pytest.raises(InvalidArgumentError, match=r"no nn.Embedding is given the token ids; pass embedding="):
        find_embedding(nn.Linear(3, 2), ids.float())


def test_a_given_embedding_is_used():
    """By name; without one, methods that need it are rows with the reason, the others run."""
    torch.manual_seed(0)
    model, methods = Bag(twice=True).eval(), ["GradientNorm", "Random"]
    without = compare(model, examples(), methods, layer="head")
    assert "pass embedding=" in without.results.methods[0].reason and not without.results.methods[1].reason
    assert compare(model, examples(), methods, layer="head", embedding="words").results.methods[0].reason == ""


def test_arguments_go_where_the_signature_has_them():
    """GPT-2 takes the attention mask behind its cache: the same logits as by keyword, and all methods run."""
    sizes = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 40}
    config = transformers.GPT2Config(vocab_size=20, num_labels=3, pad_token_id=0, initializer_range=0.5, **sizes)
    torch.manual_seed(0)
    model, data = transformers.GPT2ForSequenceClassification(config).eval(), examples()
    state = ExampleState.of(Context(model, data.load(0).inputs[None], None), data.load(0))
    arguments = {name: value[None] for name, value in data.load(0).arguments.items()}
    found = logits_of(model, state.inputs, state.additional_forward_args)
    torch.testing.assert_close(found, model(input_ids=state.inputs, **arguments).logits)
    report = compare(model, data, layer="transformer.h.0", calibration=calibration(), metrics=["degradation delete"])
    assert [info.reason for info in report.results.methods] == [""] * len(TEXT)
