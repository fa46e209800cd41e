"""Captum's wrapper for language models drives LayerIBA: one map per generated token, each for its own token."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from captum.attr import LLMAttributionResult, LLMGradientAttribution, TextTokenInput
from torch import Tensor, nn

from captum_iba import LayerIBA
from captum_iba.attr import LLMIBAAttribution
from tests.conformance._adapter import FittedLayerReadoutIBA

WORDS = ("<unk>", "the", "cat", "sat", "on", "mat", "and", "dog", "ran", "far")
PROMPT, ANSWER = "the cat sat on", ("mat", "and", "far")
KNOBS = {"n_steps": 4, "n_samples": 3, "beta": 0.1}


class WordTokenizer:
    """One token a word, with what Captum's wrapper asks of a tokenizer."""

    def encode(self, text: str, add_special_tokens: bool = True, return_tensors: str | None = None) -> Any:
        ids = [WORDS.index(word) for word in text.split()]
        return torch.tensor([ids]) if return_tensors == "pt" else ids

    def decode(self, ids: Any, **kwargs: Any) -> str:
        return " ".join(WORDS[int(i)] for i in torch.as_tensor(ids).reshape(-1))

    def convert_ids_to_tokens(self, ids: Any) -> list[str]:
        return [WORDS[int(i)] for i in ids]

    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]:
        return [WORDS.index(token) for token in tokens]

    def __call__(self, text: str, add_special_tokens: bool = True, return_offsets_mapping: bool = False) -> dict:
        ends, end = [], -1
        for word in text.split():
            ends.append((end + 1, end + 1 + len(word)))
            end += 1 + len(word)
        return {"input_ids": self.encode(text), "offset_mapping": ends}


class CausalLM(nn.Module):
    """Each position sees the mean of what came before; only ``input_ids`` go in, an object with logits comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.block = nn.Embedding(len(WORDS), 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, len(WORDS))

    def mix(self, hidden: Tensor, ids: Tensor) -> Tensor:
        count = torch.arange(1, hidden.shape[1] + 1, dtype=hidden.dtype)
        return hidden + hidden.cumsum(dim=1) / count[:, None]

    def forward(self, ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.mix(self.block(self.embedding(ids)), ids).tanh()))


class CountingLM(CausalLM):
    """Asks its input for the number of rows, so that the prefix has to be run on all noisy copies."""

    def mix(self, hidden: Tensor, ids: Tensor) -> Tensor:
        return super().mix(hidden.reshape(*ids.shape, 8), ids)


@pytest.fixture(params=[CausalLM, CountingLM])
def language_model(request: pytest.FixtureRequest) -> CausalLM:
    """Both kinds of model, in double precision."""
    model = request.param().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


@pytest.fixture
def iba(language_model: CausalLM) -> LayerIBA:
    """Calibrated per channel on random sequences."""
    return LayerIBA(language_model, language_model.block).estimate(torch.randint(1, len(WORDS), (64, 6)))


def explain(iba: LayerIBA, wrapper: LLMIBAAttribution | None = None) -> Any:
    wrapper = wrapper or LLMIBAAttribution(iba, WordTokenizer())
    return wrapper.attribute(TextTokenInput(PROMPT, WordTokenizer()), target=" ".join(ANSWER), **KNOBS)


def spy_on(wrapper: LLMIBAAttribution) -> list[tuple[int, int, int]]:
    """Record (answer tokens read, token whose probability is returned, rows of the input) of each forward pass."""
    seen: list[tuple[int, int, int]] = []
    function = wrapper.attr_method.forward_func
    plain = function.forward

    def forward(ids: Tensor, question: Any) -> Tensor:
        (token,) = question.tokens
        seen.append((ids.shape[1] - len(PROMPT.split()), token, len(ids)))
        return plain(ids, question)

    function.forward = forward
    return seen


def test_each_step_explains_its_own_token(language_model: CausalLM, iba: LayerIBA) -> None:
    """In every forward pass of step i the model is asked for target token i, on copies of the input too."""
    wrapper = LLMIBAAttribution(iba, WordTokenizer())
    seen = spy_on(wrapper)
    explain(iba, wrapper)
    wanted = [WORDS.index(word) for word in ANSWER]
    assert len(set(wanted)) == 3
    assert list(dict.fromkeys((step, token) for step, token, _ in seen)) == list(enumerate(wanted))
    assert [step for step, _, _ in seen] == sorted(step for step, _, _ in seen)
    needs_copies = isinstance(language_model, CountingLM)
    assert (KNOBS["n_samples"] in {rows for _, _, rows in seen}) == needs_copies


def test_each_row_is_the_map_of_its_token(language_model: CausalLM, iba: LayerIBA) -> None:
    """Row i is LayerIBA's map for token i after the prompt and the tokens before it, cut to the prompt."""
    result = explain(iba)
    ids, answer = WordTokenizer().encode(PROMPT, return_tensors="pt"), WordTokenizer().encode(" ".join(ANSWER))
    logits, layer = (lambda tokens: language_model(tokens).logits[:, -1]), language_model.block
    alone = LayerIBA(logits, layer, statistics=iba.statistics)
    for i, token in enumerate(answer):
        sequence = torch.cat([ids, torch.tensor([answer[:i]], dtype=torch.long)], dim=1)
        bits = alone.attribute(sequence, target=token, **KNOBS)[0, : ids.shape[1], 0]
        torch.testing.assert_close(result.token_attr[i].to(bits), bits, rtol=0.0, atol=1e-6)


def test_the_result_has_a_row_per_token_and_a_column_per_word(iba: LayerIBA) -> None:
    """The result is finite, differs from token to token, names the words, and sums to the sequence's map."""
    result = explain(iba)
    assert isinstance(result, LLMAttributionResult)
    assert issubclass(LLMIBAAttribution, LLMGradientAttribution)
    assert result.token_attr.shape == (3, 4)
    assert torch.isfinite(result.token_attr).all()
    assert result.token_attr.std(dim=0).min() > 1e-3
    torch.testing.assert_close(result.seq_attr, result.token_attr.sum(dim=0))
    assert list(result.input_tokens) == PROMPT.split()
    assert [token.strip() for token in result.output_tokens] == list(ANSWER)


def test_the_wrapper_leaves_the_method_alone(language_model: CausalLM, iba: LayerIBA) -> None:
    """The wrapper works on a shallow copy: the method keeps its function, and both share the statistics."""
    before = iba.statistics
    wrapper = LLMIBAAttribution(iba, WordTokenizer())
    explain(iba, wrapper)
    assert iba.forward_func is language_model
    assert wrapper.attr_method.forward_func is not language_model
    assert wrapper.attr_method.statistics is before
    renewed = iba.estimate(torch.randint(1, len(WORDS), (32, 5))).statistics
    assert wrapper.attr_method.statistics is renewed
    assert renewed is not before


def test_a_readout_explains_each_step_with_what_came_before(language_model: CausalLM) -> None:
    """Row i is the readout's map of the prompt and the tokens before token i, cut to the prompt."""
    readout = FittedLayerReadoutIBA(language_model, language_model.block, readout_layers=["block", "head"])
    result = explain(readout.estimate(torch.randint(1, len(WORDS), (64, 6))))
    ids, answer = WordTokenizer().encode(PROMPT, return_tensors="pt"), WordTokenizer().encode(" ".join(ANSWER))
    for i in range(len(answer)):
        sequence = torch.cat([ids, torch.tensor([answer[:i]], dtype=torch.long)], dim=1)
        bits = readout.attribute(sequence)[0, : ids.shape[1], 0]
        torch.testing.assert_close(result.token_attr[i].to(bits), bits, rtol=0.0, atol=1e-6)
        assert bits.std() > 1e-3


def test_a_readout_explains_a_whole_answer_in_one_pass(language_model: CausalLM) -> None:
    """One map of the prompt and all tokens but the last, cut to the prompt; the target does not change it."""
    readout = FittedLayerReadoutIBA(language_model, language_model.block, readout_layers=["block", "head"])
    readout.estimate(torch.randint(1, len(WORDS), (64, 6)))
    wrapper, tokenizer = LLMIBAAttribution(readout, WordTokenizer()), WordTokenizer()
    result = wrapper.attribute(TextTokenInput(PROMPT, tokenizer), target=" ".join(ANSWER), per="sequence")
    sequence = torch.tensor([tokenizer.encode(PROMPT) + tokenizer.encode(" ".join(ANSWER[:-1]))])
    bits = readout.attribute(sequence)[0, :, 0]
    torch.testing.assert_close(result.seq_attr, bits[:4])
    torch.testing.assert_close(result.answer_attr[0, :2], bits[4:])
    assert result.token_attr is None
