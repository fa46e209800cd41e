"""Small language models of three families, and a tokenizer of words, for the tests."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

WORDS = ("<unk>", "<s>", "the", "cat", "sat", "on", "mat", "and", "dog", "ran", "far", "Anna", "Ben", "sees", ".")
N_POSITIONS = 32
FAMILIES = ("gpt2", "llama", "qwen2")
# of each family: the embeddings' output, a block, modules inside one, the last block, the last norm
LAYERS = {
    "gpt2": ("drop", "h.0", "h.1.attn", "h.1.mlp", "h.2", "ln_f"),
    "llama": ("embed_tokens", "layers.0", "layers.1.self_attn", "layers.1.mlp", "layers.2", "norm"),
    "qwen2": ("embed_tokens", "layers.0", "layers.1.self_attn", "layers.1.mlp", "layers.2", "norm"),
}


def build(family: str, vocabulary: int = len(WORDS), width: int = 16, n_layers: int = 3, **config: Any) -> nn.Module:
    """A model with random weights, in evaluation mode."""
    common = {"vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": None}
    if family == "gpt2":
        common |= {"n_positions": N_POSITIONS, "n_embd": width, "n_layer": n_layers, "n_head": 4}
        return GPT2LMHeadModel(GPT2Config(**(common | config))).eval()
    common |= {
        "max_position_embeddings": N_POSITIONS,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": n_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**(common | config))).eval()
    return Qwen2ForCausalLM(Qwen2Config(**(common | config))).eval()


def sharp(family: str, **config: Any) -> nn.Module:
    """A random model in double precision whose answer depends on its input."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(family, **config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0 if "emb" in name or "wte" in name else 4.0)
    return model


def layer_of(model: nn.Module, name: str) -> nn.Module:
    """A layer by its name within the model's body."""
    return model.get_submodule(f"{model.base_model_prefix}.{name}")


def word_tokenizer(begins: bool = False) -> PreTrainedTokenizerFast:
    """One token a word; texts may begin with ``<s>``."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if begins:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>")


def random_ids(n: int, length: int, seed: int = 1) -> torch.Tensor:
    """Token ids for statistics."""
    return torch.randint(2, len(WORDS), (n, length), generator=torch.Generator().manual_seed(seed))
