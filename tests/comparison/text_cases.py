"""What the tests of texts share: a small random BERT, and a tokenizer that knows a handful of words."""

import functools

import pytest
import torch

from captum_iba.comparison import TextExamples, compare

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ["the", "film", "is", "warm", "flat", "dull", "and", "a", "not", "very", "good", "bad", "plot", "of"]
TEXTS = ["the film is warm and good", "a flat plot", "not very good , not bad", "dull dull dull and the plot is bad"]
LABELS = [1, 0, 2, 0]
CLS, SEP, MASK = 2, 3, 4
LAYER = "bert.encoder.layer.0"


@functools.cache
def tokenizer():
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, model_max_length=32, model_input_names=inputs, **names
    )


def bert(**options):
    """Weights so large that every token counts."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.BertConfig(
        vocab_size=20, num_labels=3, initializer_range=0.6, max_position_embeddings=40, **sizes | options
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.BertForSequenceClassification(config).eval()


def examples(texts=tuple(TEXTS), labels=tuple(LABELS), **options):
    return TextExamples(list(texts), list(labels), tokenizer(), **options)


def calibration():
    """Texts for rough statistics."""
    generator = torch.Generator().manual_seed(1)
    draws = [torch.randint(len(WORDS), (3 + i % 4,), generator=generator).tolist() for i in range(24)]
    return [" ".join(WORDS[i] for i in draw) for draw in draws]


def quick(data=None, methods=("LayerIBA", "GradientNorm", "Random"), metrics=("degradation mask",), **options):
    """A comparison that takes little time."""
    given = {"layer": LAYER, "calibration": calibration()} | options
    return compare(given.pop("model", None) or bert(), data or examples(), methods, metrics, **given)


def batch(example):
    """Ids and further arguments of an example as a batch of one."""
    return example.inputs[None], tuple(example.arguments[name][None] for name in ("attention_mask", "token_type_ids"))
