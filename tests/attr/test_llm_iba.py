"""LLMIBAAttribution: each answer token's map is LayerIBA's, on real decoders of transformers."""

from __future__ import annotations

import contextlib
from typing import Any

import matplotlib
import pytest
import torch
from captum.attr import TextTokenInput
from torch import Tensor, nn

from captum_iba import LayerIBA
from captum_iba.attr import LLMIBAAttribution
from tests.language_models import FAMILIES, LAYERS, WORDS, layer_of, random_ids, sharp, word_tokenizer

KNOBS = {"n_steps": 4, "n_samples": 3, "beta": 1.0}
PROMPT, ANSWER = "the cat sat on", "mat and far"
ANSWER_IDS = [WORDS.index(word) for word in ANSWER.split()]
TOKENIZER = word_tokenizer()
INP = TextTokenInput(PROMPT, TOKENIZER)


def calibrated(model: nn.Module, layer: nn.Module) -> LayerIBA:
    return LayerIBA(model, layer).estimate(random_ids(1000, 6))


@pytest.fixture(scope="module")
def gpt2() -> nn.Module:
    return sharp("gpt2")


@pytest.fixture(scope="module")
def iba(gpt2: nn.Module) -> LLMIBAAttribution:
    return LLMIBAAttribution(calibrated(gpt2, layer_of(gpt2, "h.0")), TOKENIZER)


def explain(iba: LLMIBAAttribution, **keywords: Any) -> Any:
    return iba.attribute(INP, **({"target": ANSWER} | KNOBS | keywords))


def plain_map(iba: LLMIBAAttribution, ids: Tensor, loss: Any, **keywords: Any) -> Tensor:
    """LayerIBA called by hand on the model's own forward pass, without any wrapper: bits of each position."""
    method = iba.attr_method
    alone = LayerIBA(lambda ids: iba.model(ids, use_cache=True).logits, method.layer, statistics=method.statistics)
    bits = alone.attribute(ids, objective=lambda logits, _: loss(logits), **KNOBS, **keywords)
    return bits[0, :, 0]


def log_p(logits: Tensor, position: int, token: int) -> Tensor:
    return logits[:, position].log_softmax(dim=-1)[:, token]


@pytest.mark.parametrize(("family", "layer"), [(f, layer) for f in FAMILIES for layer in LAYERS[f]])
def test_each_row_is_the_map_of_its_token(family: str, layer: str) -> None:
    """Row i is LayerIBA's map of log p(token i | prompt, tokens before), cut to the prompt; the prefix is replayed."""
    model = sharp(family)
    iba = LLMIBAAttribution(calibrated(model, layer_of(model, layer)), TOKENIZER)
    result = explain(iba, return_diagnostics=True)
    assert [record.forward_mode for record in result.diagnostics] == ["replay"] * 3
    for i, token in enumerate(ANSWER_IDS):
        ids = torch.tensor([TOKENIZER.encode(PROMPT) + ANSWER_IDS[:i]])
        bits = plain_map(iba, ids, lambda logits, token=token: -log_p(logits, -1, token))
        torch.testing.assert_close(result.token_attr[i], bits[:4], rtol=0, atol=1e-8)
        torch.testing.assert_close(result.answer_attr[i, :i], bits[4:], rtol=0, atol=1e-8)
        assert (result.answer_attr[i, i:] == 0).all()
        torch.testing.assert_close(result.total_bits[i], bits.sum())
    torch.testing.assert_close(result.seq_attr, result.token_attr.sum(dim=0))
    assert result.token_attr.std(dim=0).max() > 1e-3
    assert result.input_tokens == PROMPT.split() and result.output_tokens == ANSWER.split()


def test_logits_as_a_layer(gpt2: nn.Module) -> None:
    """At the output embeddings all positions' logits are computed; only the last position's carry information."""
    iba = LLMIBAAttribution(calibrated(gpt2, gpt2.lm_head), TOKENIZER)
    result = explain(iba, target="mat", n_steps=10)
    assert result.token_attr[0, 3] > 10 * result.token_attr[0, :3].max()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("keep", [False, True])
def test_whole_answer_in_one_optimisation(family: str, keep: bool) -> None:
    """The map of log p(answer | prompt), read in one pass on prompt and answer; it has no rows."""
    model = sharp(family)
    iba = LLMIBAAttribution(calibrated(model, layer_of(model, LAYERS[family][1])), TOKENIZER)
    result = explain(iba, per="sequence", return_diagnostics=keep)
    ids = torch.tensor([TOKENIZER.encode(PROMPT) + ANSWER_IDS[:-1]])

    def loss(logits: Tensor) -> Tensor:
        return -sum(log_p(logits, 3 + i, token) for i, token in enumerate(ANSWER_IDS))

    bits = plain_map(iba, ids, loss)
    torch.testing.assert_close(result.seq_attr, bits[:4], rtol=0, atol=1e-8)
    torch.testing.assert_close(result.answer_attr[0, :2], bits[4:], rtol=0, atol=1e-8)
    assert result.token_attr is None and result.answer_attr[0, 2] == 0
    assert result.output_tokens == ANSWER.split()
    assert (result.diagnostics is not None) == keep
    if keep:
        (record,) = result.diagnostics
        assert record.forward_mode == "replay"
        torch.testing.assert_close(record.total_bits, result.total_bits)


def test_one_token_is_a_sequence_of_one(iba: LLMIBAAttribution) -> None:
    """For an answer of one token both ways are the same optimisation."""
    one, whole = explain(iba, target="mat"), explain(iba, target="mat", per="sequence")
    assert torch.equal(one.seq_attr, whole.seq_attr) and torch.equal(one.total_bits, whole.total_bits)


@pytest.mark.parametrize("contrast", ["dog", "dog ran the", 8, [8, 9, 2], torch.tensor([8, 9, 2])])
def test_contrast_is_the_difference_of_log_probabilities(iba: LLMIBAAttribution, contrast: Any) -> None:
    """Row i is the map of log p(token i) - log p(other i), both after the answer's own earlier tokens."""
    result = explain(iba, contrast=contrast, return_diagnostics=True)
    others = [8, 9, 2] if isinstance(contrast, (list, Tensor)) or len(str(contrast)) > 3 else [8, 8, 8]
    for i, (token, other) in enumerate(zip(ANSWER_IDS, others, strict=True)):
        ids = torch.tensor([TOKENIZER.encode(PROMPT) + ANSWER_IDS[:i]])
        bits = plain_map(iba, ids, lambda x, token=token, other=other: log_p(x, -1, other) - log_p(x, -1, token))
        torch.testing.assert_close(result.token_attr[i], bits[:4], rtol=0, atol=1e-8)
    # a difference is no likelihood
    assert [record.target_probability for record in result.diagnostics] == [None] * 3
    assert (result.token_attr - explain(iba).token_attr).abs().max() > 0.1


def test_contrast_of_whole_answers(iba: LLMIBAAttribution) -> None:
    """The differences are summed over positions; where both have the same token nothing is added."""
    result = explain(iba, contrast="mat ran far", per="sequence")
    ids = torch.tensor([TOKENIZER.encode(PROMPT) + ANSWER_IDS[:-1]])
    bits = plain_map(iba, ids, lambda x: log_p(x, 4, WORDS.index("ran")) - log_p(x, 4, WORDS.index("and")))
    torch.testing.assert_close(result.seq_attr, bits[:4], rtol=0, atol=1e-8)


def test_forms_of_target(iba: LLMIBAAttribution) -> None:
    """A text, ids as a list, ids as a tensor and one id: the same answer; skipped tokens are as if not there."""
    wanted = explain(iba)
    for target in (ANSWER_IDS, torch.tensor(ANSWER_IDS), torch.tensor(ANSWER_IDS, dtype=torch.int32)):
        assert torch.equal(explain(iba, target=target).token_attr, wanted.token_attr)
    assert torch.equal(explain(iba, target=ANSWER_IDS[0]).token_attr, wanted.token_attr[:1])
    for skip in (["<s>", "dog"], [1, 8]):
        found = explain(iba, target="<s> mat dog and far", skip_tokens=skip)
        assert torch.equal(found.token_attr, wanted.token_attr) and found.output_tokens == wanted.output_tokens


def test_generates_where_there_is_no_target(gpt2: nn.Module, iba: LLMIBAAttribution) -> None:
    """Without target the model's own greedy continuation is explained."""
    ids = TOKENIZER(PROMPT, return_tensors="pt")["input_ids"]
    said: list[int] = []
    for _ in range(3):
        said.append(int(gpt2(torch.cat([ids, torch.tensor([said], dtype=torch.long)], dim=1)).logits[0, -1].argmax()))
    found = explain(iba, target=None, gen_args={"max_new_tokens": 3, "do_sample": False})
    assert torch.equal(found.token_attr, explain(iba, target=said).token_attr)


def test_a_token_that_begins_texts(gpt2: nn.Module) -> None:
    """The tokenizer's first token is a column unless Captum's input skips it; in the prompt it is either way."""
    tokenizer = word_tokenizer(begins=True)
    iba = LLMIBAAttribution(calibrated(gpt2, layer_of(gpt2, "h.0")), tokenizer)
    shown = iba.attribute(TextTokenInput(PROMPT, tokenizer), target=ANSWER, **KNOBS)
    hidden = iba.attribute(TextTokenInput(PROMPT, tokenizer, skip_tokens=["<s>", "cat"]), target=ANSWER, **KNOBS)
    assert shown.input_tokens == ["<s>", *PROMPT.split()] and shown.output_tokens == ANSWER.split()
    assert hidden.input_tokens == ["the", "sat", "on"]
    assert torch.equal(hidden.token_attr, shown.token_attr[:, [1, 3, 4]])
    assert torch.equal(hidden.total_bits, shown.total_bits)


@pytest.mark.parametrize("per", ["token", "sequence"])
def test_no_cache_leads_around_the_bottleneck(gpt2: nn.Module, iba: LLMIBAAttribution, per: str) -> None:
    """No pass keeps keys and values, and the map does not depend on whether the configuration asks for it."""
    kept = []
    handle = gpt2.register_forward_hook(lambda _m, _i, output: kept.append(output.get("past_key_values")))
    try:
        wanted = explain(iba, per=per)
        gpt2.config.use_cache = not gpt2.config.use_cache
        found = explain(iba, per=per)
    finally:
        gpt2.config.use_cache = True
        handle.remove()
    assert kept and set(kept) == {None}
    assert torch.equal(found.seq_attr, wanted.seq_attr)


def test_a_closed_bottleneck_gives_no_information_whatever_was_cached(gpt2: nn.Module, iba: LLMIBAAttribution) -> None:
    """With a heavy beta the answer's probability falls to what noise gives; a cache without noise would keep it up."""
    with torch.no_grad():
        logits = gpt2(torch.tensor([TOKENIZER.encode(PROMPT)])).logits[0, -1]
    token = int(logits.argmax())
    keywords = {"target": token, "return_diagnostics": True, "n_steps": 30, "n_samples": 50}
    shut = explain(iba, **(keywords | {"beta": 1e6}))
    through = float(shut.diagnostics[0].target_probability)
    assert float(shut.total_bits[0]) < 0.1
    assert through < 0.5 * float(logits.softmax(dim=-1)[token])


def test_statistics_from_texts(gpt2: nn.Module) -> None:
    """Estimating from texts is estimating from their tokens, one text a batch, and reaches the user's own method."""
    texts = ["the cat sat", "", "dog ran far and ran", "Anna sees Ben . the cat sat " * 8]
    method = LayerIBA(gpt2, layer_of(gpt2, "h.0"))
    iba = LLMIBAAttribution(method, TOKENIZER)
    assert iba.estimate(texts) is iba
    encoded = [TOKENIZER(text, return_tensors="pt") for text in texts if text]
    tokens = [{key: mapping[key][:, :32] for key in ("input_ids", "attention_mask")} for mapping in encoded]
    by_hand = LayerIBA(gpt2, layer_of(gpt2, "h.0")).estimate(tokens).statistics
    for found in (method.statistics, iba.attr_method.statistics):
        torch.testing.assert_close(found.mean, by_hand.mean)
        torch.testing.assert_close(found.std, by_hand.std)
        assert found.n_samples == 3


def test_captums_plots(iba: LLMIBAAttribution) -> None:
    """The plots of Captum's result show the bits."""
    matplotlib.use("Agg", force=True)
    result = explain(iba)
    _, axes = result.plot_token_attr()
    assert torch.equal(torch.as_tensor(axes.images[0].get_array().data), result.token_attr)
    assert [label.get_text() for label in axes.get_xticklabels()] == PROMPT.split()
    _, axes = result.plot_seq_attr()
    heights = torch.tensor([bar.get_height() for bar in axes.patches[:4]], dtype=torch.float64)
    torch.testing.assert_close(heights, result.seq_attr)
    with pytest.raises(ValueError, match="token_attr is None"):
        explain(iba, per="sequence").plot_token_attr()
    matplotlib.pyplot.close("all")


def test_half_precision(gpt2: nn.Module) -> None:
    """A model in bfloat16 gives float32 bits."""
    model = sharp("gpt2").to(torch.bfloat16)
    result = explain(LLMIBAAttribution(calibrated(model, layer_of(model, "h.0")), TOKENIZER))
    assert result.token_attr.dtype == torch.float32 and (result.token_attr > 0).all()


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(gpt2: nn.Module, fails: bool) -> None:
    """Afterwards, and after an error, the model has no hooks, gradients or changed flags; the method has its function.

    While maps are computed no parameter asks for a gradient, so that nothing is kept for one.
    """
    method = calibrated(gpt2, layer_of(gpt2, "h.1"))
    gpt2.transformer.wpe.weight.requires_grad_(False)
    before = [parameter.requires_grad for parameter in gpt2.parameters()]
    asking = []

    def note(*_: Any) -> None:
        asking.append(any(parameter.requires_grad for parameter in gpt2.parameters()))
        if fails:
            raise KeyError("from the model")

    handle = gpt2.transformer.ln_f.register_forward_hook(note)
    try:
        with pytest.raises(KeyError, match="from the model") if fails else contextlib.nullcontext():
            explain(LLMIBAAttribution(method, TOKENIZER), per="sequence")
    finally:
        handle.remove()
        after = [parameter.requires_grad for parameter in gpt2.parameters()]
        gpt2.transformer.wpe.weight.requires_grad_(True)
    assert asking and not any(asking)
    assert after == before and any(before) and not all(before)
    assert method.forward_func is gpt2
    assert not any(module._forward_hooks or "forward" in vars(module) for module in gpt2.modules())
    assert all(parameter.grad is None for parameter in gpt2.parameters())
    assert not any(module.training for module in gpt2.modules())
