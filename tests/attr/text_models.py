"""Small random text models of transformers, with sentences of different lengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

VOCABULARY, WIDTH = 40, 16
_COMMON: dict[str, Any] = {"vocab_size": VOCABULARY, "num_labels": 3, "pad_token_id": 0, "initializer_range": 0.4}
_BERT = _COMMON | {
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 48,
}


def _bert() -> nn.Module:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**_BERT))


def _distilbert() -> nn.Module:
    sizes = {"dim": WIDTH, "n_layers": 3, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 48}
    return transformers.DistilBertForSequenceClassification(transformers.DistilBertConfig(**_COMMON | sizes))


def _roberta() -> nn.Module:
    config = transformers.RobertaConfig(**_BERT, bos_token_id=1, eos_token_id=2)
    return transformers.RobertaForSequenceClassification(config)


def _deberta() -> nn.Module:
    relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
    config = transformers.DebertaV2Config(**_BERT | relative)
    return transformers.DebertaV2ForSequenceClassification(config)


def _electra() -> nn.Module:
    return transformers.ElectraForSequenceClassification(transformers.ElectraConfig(**_BERT, embedding_size=WIDTH))


def _t5() -> nn.Module:
    sizes = {"d_model": WIDTH, "d_kv": 8, "d_ff": 24, "num_layers": 3, "num_heads": 2, "initializer_factor": 2.0}
    return transformers.T5ForTokenClassification(transformers.T5Config(**_COMMON | sizes))


# (builder, name of the second block, target, axis of the classes)
ENCODERS: dict[str, tuple[Callable[[], nn.Module], str, Any, int]] = {
    "BERT": (_bert, "bert.encoder.layer.1", 1, 1),
    "DistilBERT": (_distilbert, "distilbert.transformer.layer.1", 1, 1),
    "RoBERTa": (_roberta, "roberta.encoder.layer.1", 1, 1),
    "DeBERTa-v2": (_deberta, "deberta.encoder.layer.1", 1, 1),
    "ELECTRA": (_electra, "electra.encoder.layer.1", 1, 1),
    "T5 encoder": (_t5, "transformer.encoder.block.1", (0, 1), 2),
}


def make(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """One of the models, always with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ENCODERS[name][0]().to(dtype).eval()


def sentences(lengths: list[int], seed: int = 0) -> list[Tensor]:
    """Token ids of sentences of these lengths, (1, length) each."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (1, length), generator=generator) for length in lengths]


def padded(parts: list[Tensor], left: bool = False, longest: int | None = None) -> tuple[Tensor, Tensor]:
    """Ids and attention mask of sentences in one batch, padded behind, or in front."""
    size = longest or max(part.shape[1] for part in parts)
    ids = torch.zeros(len(parts), size, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, part in enumerate(parts):
        place = slice(size - part.shape[1], None) if left else slice(part.shape[1])
        ids[row, place], mask[row, place] = part[0], 1
    return ids, mask
