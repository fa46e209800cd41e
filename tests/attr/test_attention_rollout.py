"""Attention rollout against a literal loop over the weights that models return when asked, and hand-written ones."""

import copy
import functools
import math

import pytest
import torch
from torch import nn

from captum_iba.attr.attention_rollout import AttentionRollout, rollout
from captum_iba.errors import (
    CaptumIBAError,
    CaptumIBAWarning,
    InvalidArgumentError,
    InvalidTypeError,
    MismatchedArgumentsError,
    NonFiniteError,
    UnsupportedModelError,
)

TEXT = ("bert", "roberta", "distilbert", "electra", "deberta-v2")
VISION = {"vit": ["ViTForImageClassification"], "deit": ["DeiTForImageClassificationWithTeacher"]}


def literal(attentions, position=0):
    """Equation by equation: mean over heads, half identity, rows normalised, layers multiplied from the input on."""
    product = None
    for weights in attentions:
        layer = 0.5 * weights.mean(dim=1) + 0.5 * torch.eye(weights.shape[-1], dtype=weights.dtype)
        layer = layer / layer.sum(dim=-1, keepdim=True)
        product = layer if product is None else torch.bmm(layer, product)
    return product[:, position].unsqueeze(2)


@functools.cache
def encoder(kind, attention=None):
    transformers = pytest.importorskip("transformers")
    sizes = {"num_hidden_layers": 3, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 16}
    if kind == "distilbert":
        sizes = {"n_layers": 3, "n_heads": 2, "dim": 8, "hidden_dim": 16}
    if kind == "electra":
        sizes["embedding_size"] = 8
    if kind == "deberta-v2":
        sizes |= {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_position_embeddings": 20}
    if kind == "gpt2":
        sizes = {"n_layer": 3, "n_head": 2, "n_embd": 8}
    own = (
        {"image_size": 16, "patch_size": 4, "architectures": VISION[kind]}
        if kind in VISION
        else {"vocab_size": 20, "pad_token_id": 1}
    )
    config = transformers.AutoConfig.for_model(kind, num_labels=3, initializer_range=0.5, **sizes, **own)
    family = "ImageClassification" if kind in VISION else "SequenceClassification"
    of_kind = getattr(transformers, f"AutoModelFor{family}")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = {} if attention is None else {"attn_implementation": attention}
        return of_kind.from_config(config, **options).double().eval()


def tokens(n=3, length=7):
    """Ids, and the attention mask of sequences of falling length."""
    ids = torch.randint(2, 20, (n, length), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(length) < length - 2 * torch.arange(n)[:, None]).long()
    return torch.where(mask.bool(), ids, torch.ones_like(ids)), mask


def images(n=2):
    return torch.randn(n, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def state(model):
    """All of a model that a call may change: attributes, hooks, flags, configs."""
    seen = []
    for name, module in model.named_modules():
        entries = {key: dict(value) if isinstance(value, dict) else value for key, value in vars(module).items()}
        config = entries.pop("config", None)
        seen.append((name, entries, None if config is None else copy.deepcopy(vars(config)), config))
    return seen


def same_state(one, two):
    def same(a, b):
        return a is b or (type(a) is type(b) and not isinstance(a, torch.Tensor) and a == b)

    return len(one) == len(two) and all(
        a[0] == b[0]
        and a[1].keys() == b[1].keys()
        and all(
            a[1][key].keys() == b[1][key].keys() and all(same(a[1][key][k], b[1][key][k]) for k in a[1][key])
            if isinstance(a[1][key], dict)
            else same(a[1][key], b[1][key])
            for key in a[1]
        )
        and a[2] == b[2]
        and a[3] is b[3]
        for a, b in zip(one, two, strict=True)
    )


@pytest.mark.parametrize("kind", TEXT)
def test_text_encoders_match_the_loop_over_returned_attentions(kind):
    """Also of models that were loaded with fused attention, which returns no weights."""
    ids, mask = tokens()
    with torch.no_grad():
        reference = copy.deepcopy(encoder(kind, "eager"))(ids, attention_mask=mask, output_attentions=True).attentions
    assert len(reference) == 3
    model = encoder(kind)
    # of these two, some versions of transformers know eager attention alone
    assert kind in ("deberta-v2", "electra") or model.config._attn_implementation == "sdpa"
    before = state(model)
    found = AttentionRollout(model).attribute(ids, target=0, additional_forward_args=mask)
    torch.testing.assert_close(found, literal(reference), rtol=0, atol=1e-12)
    assert same_state(state(model), before)


@pytest.mark.parametrize("kind", [*TEXT, "gpt2"])
def test_padding_gets_nothing_and_a_padded_batch_equals_single_sentences(kind):
    ids, mask = tokens()
    method, lengths = AttentionRollout(encoder(kind)), mask.sum(dim=1)
    position = lengths - 1 if kind == "gpt2" else 0
    together = method.attribute(
        ids, additional_forward_args=(mask,) if kind != "gpt2" else (None, mask), position=position
    )
    assert bool((together[mask == 0] == 0).all())
    torch.testing.assert_close(together.sum(dim=(1, 2)), torch.ones(3, dtype=torch.float64))
    for row, length in enumerate(lengths.tolist()):
        alone = method.attribute(ids[row : row + 1, :length], position=-1 if kind == "gpt2" else 0)
        torch.testing.assert_close(together[row : row + 1, :length], alone, rtol=0, atol=1e-12)


def test_a_decoder_is_read_at_any_token_and_sees_none_after_it():
    ids, _ = tokens()
    method = AttentionRollout(encoder("gpt2"))
    with torch.no_grad():
        reference = copy.deepcopy(encoder("gpt2", "eager"))(ids, output_attentions=True).attentions
    for position in (0, 3, -1):
        found = method.attribute(ids, position=position)
        torch.testing.assert_close(found, literal(reference, position), rtol=0, atol=1e-12)
        assert bool((found[:, position % 7 + 1 :] == 0).all())
    one_each = method.attribute(ids, position=[0, 3, -1])
    torch.testing.assert_close(one_each[2:], method.attribute(ids[2:], position=-1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", VISION)
def test_vision_encoders_match_the_loop_over_returned_attentions(kind):
    x, model = images(), encoder(kind)
    with torch.no_grad():
        reference = copy.deepcopy(encoder(kind, "eager"))(x, output_attentions=True).attentions
    before = state(model)
    found = AttentionRollout(model).attribute(x)
    torch.testing.assert_close(found, literal(reference), rtol=0, atol=1e-12)
    assert found.shape == (2, 17 + (kind == "deit"), 1)
    assert same_state(state(model), before)


def test_a_function_around_a_model_and_tuples_as_output_change_nothing():
    ids, mask = tokens()
    model = encoder("bert")
    wanted = AttentionRollout(model).attribute(ids, additional_forward_args=mask)
    for function in (
        lambda ids, mask: model(ids, attention_mask=mask).logits,
        lambda ids, mask: model(ids, attention_mask=mask, return_dict=False)[0],
        model.bert,
    ):
        found = AttentionRollout(function).attribute(ids, additional_forward_args=mask)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_hooks_that_transformers_keeps_for_its_own_users_stay():
    """After output_attentions=True transformers 5 leaves hooks on the model; they work on, and are not ours."""
    ids, _ = tokens()
    model = copy.deepcopy(encoder("bert", "eager"))
    attentions = model(ids, output_attentions=True).attentions
    before = state(model)
    found = AttentionRollout(model).attribute(ids)
    torch.testing.assert_close(found, literal(attentions), rtol=0, atol=1e-12)
    assert same_state(state(model), before)
    torch.testing.assert_close(model(ids, output_attentions=True).attentions, attentions)


def vision_transformer():
    from torchvision.models import VisionTransformer

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VisionTransformer(16, 4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=3)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.5)
    return model.double().eval()


def by_hand(attention, x):
    """Softmax of the scaled products of queries and keys, with the weights of nn.MultiheadAttention; and the output."""
    n, length, width = x.shape
    heads, size = attention.num_heads, width // attention.num_heads
    projected = x @ attention.in_proj_weight.T + attention.in_proj_bias
    q, k, v = (part.view(n, length, heads, size).transpose(1, 2) for part in projected.split(width, dim=2))
    weights = (q @ k.transpose(2, 3) / math.sqrt(size)).softmax(dim=3)
    mixed = (weights @ v).transpose(1, 2).reshape(n, length, width)
    return weights, attention.out_proj(mixed)


def test_torchvisions_vit_matches_attention_written_by_hand():
    model, x = vision_transformer(), images()
    with torch.no_grad():
        z = model._process_input(x)
        z = torch.cat([model.class_token.expand(len(x), -1, -1), z], dim=1) + model.encoder.pos_embedding
        attentions = []
        for block in model.encoder.layers:
            weights, mixed = by_hand(block.self_attention, block.ln_1(z))
            attentions.append(weights)
            z = z + mixed
            z = z + block.mlp(block.ln_2(z))
        logits = model.heads(model.encoder.ln(z)[:, 0])
    torch.testing.assert_close(model(x), logits)
    before = state(model)
    found = AttentionRollout(model).attribute(x, target=1)
    torch.testing.assert_close(found, literal(attentions), rtol=0, atol=1e-12)
    assert same_state(state(model), before)


def test_torchs_encoder_layers_with_padding_equal_single_sentences():
    """Without gradient torch takes a fused path that skips the attention modules; the switch is put back."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double().eval()
    x, (_, mask) = torch.randn(3, 7, 8, dtype=torch.float64), tokens()

    def run(x, padding):
        return model(x, src_key_padding_mask=padding)[:, 0]

    with torch.no_grad():
        output = run(x, mask == 0)
    found = AttentionRollout(run).attribute(x, additional_forward_args=mask == 0)
    assert torch.backends.mha.get_fastpath_enabled()
    assert bool((found[mask == 0] == 0).all())
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        alone = AttentionRollout(model).attribute(x[row : row + 1, :length])
        torch.testing.assert_close(found[row : row + 1, :length], alone, rtol=0, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(run(x, mask == 0), output)


def test_attention_that_is_uniform_leaves_half_where_it_was_at_each_layer():
    """Closed form: after L layers the own share is 2^-L, plus its part of the rest."""
    uniform = torch.full((1, 2, 4, 4), 0.25, dtype=torch.float64)
    row = rollout([uniform] * 3, torch.tensor([2]))
    rest = (1 - 2**-3) / 4
    torch.testing.assert_close(row, torch.tensor([[rest, rest, rest + 2**-3, rest]], dtype=torch.float64))


def test_undefined_rows_count_only_where_something_depends_on_them():
    """Left padding attends to nothing, and its softmax is NaN; the sentence does not see it."""
    weights = torch.tensor([[float("nan")] * 2, [0.0, 1.0]])[None, None]
    assert rollout([weights, weights], torch.tensor([1])).tolist() == [[0.0, 1.0]]
    with pytest.raises(NonFiniteError, match="layer 1"):
        rollout([weights, weights], torch.tensor([0]))


class Failing(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        self.inner(x)
        raise AssertionError("the model's own")


@pytest.mark.parametrize("kind", ["bert", "vit", "torchvision"])
def test_a_model_that_fails_is_left_as_it_was(kind):
    model = vision_transformer() if kind == "torchvision" else encoder(kind)
    failing = Failing(model)
    failing.train()
    before = state(failing)
    with pytest.warns(CaptumIBAWarning, match="training mode"), pytest.raises(AssertionError, match="the model's own"):
        AttentionRollout(failing).attribute(tokens()[0] if kind == "bert" else images())
    assert same_state(state(failing), before)
    model.eval()


def test_models_without_one_sequence_of_attention_are_refused():
    transformers = pytest.importorskip("transformers")
    sizes = {"depths": [1, 1], "num_heads": [1, 2], "embed_dim": 8, "image_size": 16, "patch_size": 2, "window_size": 4}
    swin = transformers.SwinForImageClassification(transformers.SwinConfig(**sizes)).double().eval()
    before = state(swin)
    with pytest.raises(UnsupportedModelError, match=r"shape \[8, 1, 16, 16\]; wanted \(2, heads"):
        AttentionRollout(swin).attribute(images())
    assert same_state(state(swin), before)
    cnn = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).double()
    with pytest.raises(UnsupportedModelError, match="LayerIBA"):
        AttentionRollout(cnn.eval()).attribute(images())
    one, two = encoder("vit"), vision_transformer()
    with pytest.raises(UnsupportedModelError, match="2 encoders"):
        AttentionRollout(lambda x: one(x).logits + two(x)).attribute(images())


def test_bad_arguments_are_named():
    ids, mask = tokens()
    method = AttentionRollout(encoder("bert"))
    for position, message in (
        (7, "none of the 7 tokens"),
        (-8, "none of"),
        (0.5, "a token's index"),
        ([0, 1], "of the 3"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            method.attribute(ids, position=position)
    with pytest.raises(InvalidArgumentError, match="empty batch"):
        method.attribute(ids[:0])
    with pytest.raises(MismatchedArgumentsError, match=r"additional_forward_args\[0\]"):
        method.attribute(ids, additional_forward_args=mask[1:, :5])
    with pytest.raises(InvalidTypeError, match="a module or a function"):
        AttentionRollout(3)
    assert issubclass(UnsupportedModelError, CaptumIBAError)


def test_the_callers_grad_mode_and_the_target_do_not_matter():
    model, x = vision_transformer(), images()
    wanted = AttentionRollout(model).attribute(x)
    with torch.no_grad():
        assert torch.equal(AttentionRollout(model).attribute(x, target=[0, 2]), wanted)
    assert not wanted.requires_grad and wanted.is_contiguous()
