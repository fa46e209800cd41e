"""A planted task: models that copy six symbols; the bits of each answer token lie at the symbol that it copies."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import pytest
import torch
from captum.attr import TextTokenInput
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from captum_iba import LayerIBA
from captum_iba.attr import LLMIBAAttribution
from tests.language_models import build, layer_of

N_SYMBOLS, N_OTHERS, LENGTH = 16, 16, 6
WORDS = ["<s>", *(f"s{i}" for i in range(N_SYMBOLS)), *(f"o{i}" for i in range(N_OTHERS))]
SHAPES = {"gpt2": {"n_layer": 1, "n_head": 4}, "llama": {"num_hidden_layers": 1, "num_attention_heads": 2}}
CANDIDATES = {"gpt2": ("drop", "h.0"), "llama": ("embed_tokens", "layers.0")}
N_CHOOSING, N_HELD_OUT = 2, 10


def draw(n: int, generator: torch.Generator, distinct: bool = False) -> Tensor:
    """Token ids (n, 2 * LENGTH + 2): the start, symbols, a separator, the symbols again.

    The separator is any token, so that a model learns to look away from the token it answers after, whose features
    would be needed otherwise: the last token of the prompt is where the first answer token is read.
    """
    scores = torch.rand(n, N_SYMBOLS, generator=generator)
    any_symbols = torch.randint(0, N_SYMBOLS, (n, LENGTH), generator=generator)
    symbols = 1 + (scores.argsort(dim=1)[:, :LENGTH] if distinct else any_symbols)
    separator = torch.randint(0, len(WORDS), (n, 1), generator=generator)
    return torch.cat([torch.zeros(n, 1, dtype=torch.long), symbols, separator, symbols], dim=1)


def answers(model: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the copied symbols, and these symbols."""
    return model(ids).logits[:, LENGTH + 1 : -1], ids[:, LENGTH + 2 :]


def train(family: str, seed: int = 0) -> nn.Module:
    """A model that copies."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(family, len(WORDS), width=48, n_layers=1, tie_word_embeddings=False,
                      bos_token_id=0, **SHAPES[family]).eval()  # fmt: skip
    generator, n_steps = torch.Generator().manual_seed(seed), 200
    adam = torch.optim.AdamW(model.parameters(), lr=5e-3)
    rates = torch.optim.lr_scheduler.OneCycleLR(adam, max_lr=5e-3, total_steps=n_steps, pct_start=0.1)
    for _ in range(n_steps):
        logits, symbols = answers(model, draw(64, generator))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), symbols.flatten())
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        rates.step()
    return model.requires_grad_(False)


@dataclass
class Copying:
    """A trained model and the prompts it is explained on."""

    family: str
    model: nn.Module
    choosing: Tensor
    held_out: Tensor

    def hits(self, layer: str, ids: Tensor) -> Tensor:
        """(prompts, answer tokens): whether the most bits lie at the token that is copied."""
        tokenizer = copy_tokenizer()
        method = LayerIBA(self.model, layer_of(self.model, layer))
        method.estimate(draw(1000, torch.Generator().manual_seed(2)))
        iba = LLMIBAAttribution(method, tokenizer)
        found = []
        for row in ids.tolist():
            prompt = TextTokenInput(" ".join(WORDS[i] for i in row[: LENGTH + 2]), tokenizer)
            result = iba.attribute(prompt, target=" ".join(WORDS[i] for i in row[LENGTH + 2 :]))
            found.append(result.token_attr.argmax(dim=1) == torch.arange(1, LENGTH + 1))
        return torch.stack(found)


@functools.cache
def copy_tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<s>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<s>")


@pytest.fixture(scope="module", params=CANDIDATES)
def copying(request: pytest.FixtureRequest) -> Copying:
    """Both families, trained in a few seconds."""
    prompts = draw(N_CHOOSING + N_HELD_OUT, torch.Generator().manual_seed(3), distinct=True)
    return Copying(request.param, train(request.param), prompts[:N_CHOOSING], prompts[N_CHOOSING:])


def test_the_models_copy(copying: Copying) -> None:
    """The planted rule is what the models do."""
    logits, symbols = answers(copying.model, draw(500, torch.Generator().manual_seed(4)))
    assert (logits.argmax(dim=-1) == symbols).double().mean() > 0.99


def test_most_bits_lie_at_the_token_that_is_copied(copying: Copying) -> None:
    """At the layer that does best on some prompts, on others: in at least 95 % of all answer tokens, each its own."""
    on_choosing = {layer: copying.hits(layer, copying.choosing) for layer in CANDIDATES[copying.family]}
    best = max(on_choosing, key=lambda layer: float(on_choosing[layer].double().mean()))
    assert best == CANDIDATES[copying.family][0]  # before attention has moved anything
    assert copying.hits(best, copying.held_out).double().mean() >= 0.95


def test_generated_answers_are_explained_alike(copying: Copying) -> None:
    """What the model generates is the copy, and its first column of bits is that of the same answer given."""
    tokenizer, ids = copy_tokenizer(), copying.held_out[0].tolist()
    prompt = TextTokenInput(" ".join(WORDS[i] for i in ids[: LENGTH + 2]), tokenizer)
    method = LayerIBA(copying.model, layer_of(copying.model, CANDIDATES[copying.family][0]))
    iba = LLMIBAAttribution(method.estimate(draw(1000, torch.Generator().manual_seed(2))), tokenizer)
    found = iba.attribute(prompt, gen_args={"max_new_tokens": LENGTH, "do_sample": False})
    wanted = iba.attribute(prompt, target=ids[LENGTH + 2 :])
    assert found.output_tokens == [WORDS[i] for i in ids[1 : LENGTH + 1]]
    assert torch.equal(found.token_attr, wanted.token_attr)


def test_a_whole_copy_needs_all_its_sources(copying: Copying) -> None:
    """One bottleneck for the whole answer: each of the copied tokens has more bits than what is not copied."""
    tokenizer = copy_tokenizer()
    method = LayerIBA(copying.model, layer_of(copying.model, CANDIDATES[copying.family][0]))
    iba = LLMIBAAttribution(method.estimate(draw(1000, torch.Generator().manual_seed(2))), tokenizer)
    for ids in copying.held_out[:5].tolist():
        prompt = TextTokenInput(" ".join(WORDS[i] for i in ids[: LENGTH + 2]), tokenizer)
        bits = iba.attribute(prompt, target=ids[LENGTH + 2 :], per="sequence").seq_attr
        assert bits[1 : LENGTH + 1].min() > bits[0]
