"""What LLMIBAAttribution refuses: the message says what was found, what was wanted and what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captum.attr import LayerIntegratedGradients, TextTokenInput
from torch import Tensor, nn

from captum_iba import LayerIBA
from captum_iba.attr import LayerReadoutIBA, LLMIBAAttribution
from captum_iba.errors import (
    CaptumIBAWarning,
    InvalidArgumentError,
    InvalidTypeError,
    LayerNotExecutedError,
    NoTensorError,
    StatisticsError,
    TargetIndexError,
)
from tests.language_models import WORDS, layer_of, random_ids, sharp, word_tokenizer

KNOBS: dict[str, Any] = {"n_steps": 2, "n_samples": 2}
TOKENIZER = word_tokenizer()
INP = TextTokenInput("the cat sat", TOKENIZER)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return sharp("gpt2")


@pytest.fixture(scope="module")
def iba(model: nn.Module) -> LLMIBAAttribution:
    return LLMIBAAttribution(LayerIBA(model, layer_of(model, "h.0")).estimate(random_ids(1000, 6)), TOKENIZER)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "text as input": ({"inp": "the cat"}, InvalidTypeError, r"inp is a str; wanted .* TextTokenInput\(text"),
    "ids as input": ({"inp": torch.ones(1, 3)}, InvalidTypeError, "inp is a Tensor; wanted"),
    "empty prompt": ({"inp": TextTokenInput("", TOKENIZER)}, InvalidArgumentError, "inp has 0 tokens in 0 columns"),
    "nothing to explain": (
        {"inp": TextTokenInput("the cat", TOKENIZER, skip_tokens=["the", "cat"])},
        InvalidArgumentError,
        "inp has 2 tokens in 0 columns",
    ),
    "empty answer": ({"target": ""}, InvalidArgumentError, "target='' has no tokens; wanted"),
    "no ids": ({"target": []}, InvalidArgumentError, r"target=\[\] has no tokens"),
    "all skipped": (
        {"skip_tokens": ["mat"]},
        InvalidArgumentError,
        r"target='mat' has no tokens but skip_tokens=\['mat'\]",
    ),
    "answer too long": ({"target": "mat " * 31}, InvalidArgumentError, "3 tokens and the answer's 31 .* take 33 .* 32"),
    "unknown token": ({"target": [15]}, TargetIndexError, "target holds token id 15, and GPT2LMHeadModel has 15"),
    "negative token": ({"target": [-1]}, TargetIndexError, "token id -1"),
    "numbers": ({"target": 1.5}, InvalidTypeError, "target=1.5; wanted a str, or token ids"),
    "a list of words": ({"target": ["mat"]}, InvalidTypeError, r"target=\['mat'\]; wanted"),
    "float ids": ({"target": torch.ones(2)}, InvalidArgumentError, "tensor .* torch.float32; wanted token ids"),
    "batched ids": ({"target": torch.ones(1, 2, dtype=torch.long)}, InvalidArgumentError, r"shape \[1, 2\] .* wanted"),
    "gen_args with target": ({"gen_args": {"max_new_tokens": 2}}, InvalidArgumentError, "gen_args is for an answer"),
    "gen_args in third place": ({"skip_tokens": {"a": 1}}, InvalidTypeError, "Pass gen_args by name"),
    "one skipped word": ({"skip_tokens": "mat"}, InvalidTypeError, "skip_tokens is a str; wanted a list"),
    "skipped numbers": ({"skip_tokens": [1.5]}, InvalidTypeError, r"skip_tokens=\[1.5\]; wanted"),
    "per": ({"per": "word"}, InvalidArgumentError, "per='word'; wanted 'token' or 'sequence'"),
    "additional_forward_args": ({"additional_forward_args": 1}, InvalidArgumentError, "additional_forward_args is set"),
    "position_mask": ({"position_mask": torch.ones(1, 3)}, InvalidArgumentError, "position_mask is set from inp"),
    "contrast of another length": ({"contrast": "dog far"}, InvalidArgumentError, r"has 2 tokens and the answer 1: \["),
    "contrast too short": (
        {"target": "mat and", "contrast": "dog", "per": "sequence"},
        InvalidArgumentError,
        "has 1 tokens and the answer 2: .* Wanted one for each answer token\\.",
    ),
    "contrast with itself": ({"contrast": "mat"}, InvalidArgumentError, "own token 6 at position 0.* per=\"sequence\""),
    "answer against itself": (
        {"target": "mat and", "contrast": "mat and", "per": "sequence"},
        InvalidArgumentError,
        "own token 6 at position 0",
    ),
    "unknown contrast": ({"contrast": 99}, TargetIndexError, "Token 99 is none of the 15"),
    "two objectives": (
        {"contrast": "dog", "objective": "probability"},
        InvalidArgumentError,
        "contrast is an objective already",
    ),
    "beta": ({"beta": -1.0}, InvalidArgumentError, "beta=-1.0"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_refused_arguments(iba: LLMIBAAttribution, case: str) -> None:
    """Each is refused with its reason."""
    arguments, error, message = BAD[case]
    with pytest.raises(error, match=message):
        iba.attribute(**({"inp": INP, "target": "mat"} | KNOBS | arguments))


def test_the_longest_answer(model: nn.Module, iba: LLMIBAAttribution) -> None:
    """The last token is not read, so prompt and answer may have a token more than the model has positions."""
    result = iba.attribute(INP, target="mat " * 30, per="sequence", **KNOBS)
    assert result.answer_attr.shape == (1, 30)


def test_layer_of_another_model(model: nn.Module) -> None:
    """A layer that is not part of the model is named before anything runs, with the model's own name."""
    iba = LLMIBAAttribution(LayerIBA(model, nn.Linear(2, 2)), TOKENIZER)
    with pytest.raises(LayerNotExecutedError, match=r"Linear.* is not part of the model \(GPT2LMHeadModel\)"):
        iba.attribute(INP, target="mat")


def test_layer_without_an_axis_of_tokens() -> None:
    """Features that are not one row a token have no map over tokens."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.pool, self.head = nn.Embedding(15, 8), nn.Linear(8, 8), nn.Linear(8, 15)

        def forward(self, ids: Tensor) -> Any:
            hidden = self.pool(self.embed(ids).mean(dim=1))
            return self.head(hidden)[:, None].expand(-1, ids.shape[1], -1)

    pooled = Pooled().eval()
    iba = LLMIBAAttribution(LayerIBA(pooled, pooled.pool).estimate(random_ids(1000, 6)), TOKENIZER)
    with pytest.raises(InvalidArgumentError, match=r"map has shape \[1, 1\] for 3 tokens; wanted \[1, 3, channels\]"):
        iba.attribute(INP, target="mat", **KNOBS)


def test_unsupported_methods(model: nn.Module) -> None:
    """Other methods are refused by Captum; functions around the model here."""
    layer = layer_of(model, "h.0")
    with pytest.raises(AssertionError, match="LLMIBAAttribution does not support"):
        LLMIBAAttribution(LayerIntegratedGradients(model, layer), TOKENIZER)
    with pytest.raises(InvalidTypeError, match=r"made for a function; wanted .* LayerIBA\(model, layer\)"):
        LLMIBAAttribution(LayerIBA(lambda ids: model(ids).logits, layer), TOKENIZER)


def test_models_without_logits() -> None:
    """A body without its head, a tuple, and logits of the last position alone are told apart from language models."""
    whole = sharp("gpt2")
    body = whole.transformer
    iba = LLMIBAAttribution(LayerIBA(body, body.h[0]).estimate(random_ids(1000, 6)), TOKENIZER)
    with pytest.raises(NoTensorError, match="GPT2Model returned BaseModelOutput.* pass the model with its head"):
        iba.attribute(INP, target="mat", **KNOBS)
    flat = nn.Sequential(nn.Embedding(15, 8), nn.Flatten(), nn.Linear(24, 15)).eval()
    iba = LLMIBAAttribution(LayerIBA(flat, flat[0]).estimate(random_ids(1000, 3)), TOKENIZER)
    with pytest.raises(InvalidArgumentError, match=r"logits of shape \[1, 15\] for token ids of shape \[1, 3\]"):
        iba.attribute(INP, target="mat", **KNOBS)


def test_model_that_cannot_generate() -> None:
    """Without target the model has to generate; Captum says so."""
    plain = nn.Sequential(nn.Embedding(15, 8), nn.Linear(8, 15)).eval()
    iba = LLMIBAAttribution(LayerIBA(plain, plain[0]).estimate(random_ids(1000, 6)), TOKENIZER)
    with pytest.raises(AssertionError, match="Target must be given"):
        iba.attribute(INP)


def test_texts_for_statistics(model: nn.Module) -> None:
    """One text, no text, and what is no text."""
    iba = LLMIBAAttribution(LayerIBA(model, layer_of(model, "h.0")), TOKENIZER)
    with pytest.raises(InvalidTypeError, match="texts is a str; wanted several texts"):
        iba.estimate("the cat sat")
    with pytest.raises(InvalidTypeError, match="texts yields a int"):
        iba.estimate([3])
    with pytest.raises(StatisticsError):
        iba.estimate(["", ""])


def test_no_statistics(model: nn.Module) -> None:
    """Without statistics each sequence's own stand in, as in LayerIBA, with its warning."""
    iba = LLMIBAAttribution(LayerIBA(model, layer_of(model, "h.0")), TOKENIZER)
    with pytest.warns(CaptumIBAWarning, match="There are no feature statistics"):
        assert (iba.attribute(INP, target="mat", **KNOBS).token_attr > 0).all()


def test_training_mode_is_told_and_put_back() -> None:
    """Generation and maps run in evaluation mode; the model is left in its own."""
    model = sharp("gpt2", resid_pdrop=0.5, embd_pdrop=0.5)
    method = LayerIBA(model, layer_of(model, "h.0")).estimate(random_ids(1000, 6))
    wanted = LLMIBAAttribution(method, TOKENIZER).attribute(INP, gen_args={"max_new_tokens": 3}, **KNOBS)
    model.train()
    with pytest.warns(CaptumIBAWarning, match="in training mode") as told:
        found = LLMIBAAttribution(method, TOKENIZER).attribute(INP, gen_args={"max_new_tokens": 3}, **KNOBS)
    assert len([warning for warning in told if "training mode" in str(warning.message)]) == 1
    assert all(module.training for module in model.modules())
    assert torch.equal(found.token_attr, wanted.token_attr)


def test_a_readout_has_no_contrast(model: nn.Module) -> None:
    """A map that does not depend on the answer cannot contrast two."""
    readout = LayerReadoutIBA(model, layer_of(model, "h.0"))
    with pytest.raises(InvalidArgumentError, match="does not depend on the answer, so contrast"):
        LLMIBAAttribution(readout, TOKENIZER).attribute(INP, target="mat", contrast="dog")


def test_future(iba: LLMIBAAttribution) -> None:
    """As in Captum, there is no asynchronous form."""
    assert len(WORDS) == 15
    with pytest.raises(NotImplementedError):
        iba.attribute_future()
