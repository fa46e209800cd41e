"""Padding, protected positions, one lambda a token, and a mask that several layers share: against plain loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_iba import LayerIBA
from captum_iba.bottleneck import Noise
from captum_iba.bottleneck.noise import derived_seed
from captum_iba.errors import InvalidArgumentError, InvalidTypeError, MismatchedArgumentsError, StatisticsError
from tests.attr.text_models import VOCABULARY, make, padded, sentences

SHARED = {"mask_granularity": "token", "n_steps": 2, "n_samples": 2}
WIDTH, SETTINGS = 6, {"beta": 3.0, "n_steps": 4, "n_samples": 3, "seed": 7}


class Tagger(nn.Module):
    """Three layers over tokens, mixed by their mean over what the mask allows; one answer a sentence."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        weight = attention_mask[..., None].to(self.head.weight)
        hidden = self.embedding(ids)
        for layer in self.layers:
            mean = (weight * hidden).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True)
            hidden = torch.tanh(layer(hidden + 2 * mean))
        return self.head((weight * hidden.square()).sum(dim=1))


@pytest.fixture
def model() -> Tagger:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Tagger().double().eval()


def data(n: int = 60) -> list[dict[str, Tensor]]:
    return [{"ids": part, "attention_mask": torch.ones_like(part)} for part in sentences([5, 9] * (n // 2), seed=1)]


def literal(
    model: Tagger,
    layers: list[nn.Module],
    ids: Tensor,
    target: int,
    statistics: list[Any],
    covered: Tensor,
    token: bool,
) -> Tensor:
    """Bits of one sentence (1, T), in a plain loop: the whole model on all copies; (T, WIDTH)."""
    mask_of_all, seen = torch.ones_like(ids), []
    handle = layers[0].register_forward_hook(lambda _m, _i, out: seen.append(out.detach()))
    with torch.no_grad():
        model(ids, mask_of_all)
    handle.remove()
    r = (seen[0][0] - statistics[0].mean) / statistics[0].std
    alpha = nn.Parameter(torch.full((len(r), 1 if token else WIDTH), 5.0, dtype=torch.float64))
    adam = torch.optim.Adam([alpha], lr=1.0)
    seeds = [SETTINGS["seed"], *(derived_seed(SETTINGS["seed"], 1, n) for n in range(1, len(layers)))]
    noises = [Noise((len(r), WIDTH), r, seed, by_position=True) for seed in seeds]

    def kl(lam: Tensor) -> Tensor:
        nats = -(1 - lam).log() - lam + lam**2 * (1 + r**2) / 2
        return torch.where(covered[:, None], nats, 0.0)

    for _ in range(SETTINGS["n_steps"]):
        adam.zero_grad()
        lam = torch.sigmoid(alpha)
        handles = []
        for layer, noise, own in zip(layers, noises, statistics, strict=True):
            eps = own.mean + own.std * noise.draw(SETTINGS["n_samples"])

            def mix(_m: nn.Module, _i: Any, out: Tensor, lam: Tensor = lam, eps: Tensor = eps) -> Tensor:
                return torch.where(covered[:, None], lam * out + (1 - lam) * eps, out)

            handles.append(layer.register_forward_hook(mix))
        logits = model(ids.repeat(SETTINGS["n_samples"], 1), mask_of_all.repeat(SETTINGS["n_samples"], 1))
        for handle in handles:
            handle.remove()
        loss = nn.functional.cross_entropy(logits, torch.full((SETTINGS["n_samples"],), target))
        (loss + SETTINGS["beta"] * kl(lam).sum() / (covered.sum() * WIDTH)).backward()
        adam.step()
    with torch.no_grad():
        return kl(torch.sigmoid(alpha)) / math.log(2)


@pytest.mark.parametrize(("token", "shared"), [(False, False), (True, False), (True, True)])
def test_padded_and_protected_equal_the_plain_loop(model: Tagger, token: bool, shared: bool) -> None:
    """A padded batch with its first and last tokens protected, at one layer and at three, element by element."""
    layers = list(model.layers)
    iba = LayerIBA(model, layers[0], shared_layers=layers[1:] if shared else None).estimate(data())
    every = [iba._state.statistics[layer, False] for layer in (layers if shared else layers[:1])]
    parts = sentences([8, 5, 11])
    ids, mask = padded(parts)
    bits, record = iba.attribute(
        ids,
        target=2,
        additional_forward_args=(mask,),
        protected_positions=[0, -1],
        mask_granularity="token" if token else "element",
        attr_dim_summation=False,
        return_diagnostics=True,
        **SETTINGS,
    )
    for row, part in enumerate(parts):
        n = part.shape[1]
        covered = (torch.arange(n) > 0) & (torch.arange(n) < n - 1)
        wanted = literal(model, layers if shared else layers[:1], part, 2, every, covered, token)
        torch.testing.assert_close(bits[row, :n], wanted, rtol=0.0, atol=1e-9)
        assert bits[row, n:].eq(0.0).all() and wanted[covered].std() > 1e-3
        assert record.mask[row, n:].eq(1.0).all() and record.mask[row, :n][~covered].eq(1.0).all()
        if token:
            assert record.mask[row, :n].std(dim=1).max() == 0.0, "one lambda a token"


def test_positions_are_named_by_number_or_by_mask(model: Tagger) -> None:
    """Numbers count among an example's real tokens, from the front or the back, whatever the padding."""
    iba = LayerIBA(model, model.layers[0]).estimate(data())
    parts = sentences([8, 5, 11])
    ids, mask = padded(parts, left=True)
    protected = torch.zeros_like(mask)
    for row, part in enumerate(parts):
        protected[row, -part.shape[1] + 1] = protected[row, -2] = 1

    def attribute(chosen: Any) -> Tensor:
        return iba.attribute(ids, target=0, additional_forward_args=(mask,), protected_positions=chosen, **SETTINGS)

    assert torch.equal(attribute([1, -2]), attribute(protected))
    assert not torch.equal(attribute([1, -2]), attribute([1]))


def test_a_shared_mask_costs_what_its_first_layer_passes(model: Tagger) -> None:
    """More noise behind needs more signal in front: the bits are not those of the first layer alone."""
    layers = list(model.layers)
    alone = LayerIBA(model, layers[0]).estimate(data())
    shared = LayerIBA(model, layers[0], shared_layers=layers[2:]).estimate(data())
    assert torch.equal(alone.statistics.mean, shared.statistics.mean)
    ids, mask = padded(sentences([8, 8]))
    options = {"target": 1, "additional_forward_args": (mask,), "mask_granularity": "token"} | SETTINGS
    found, record = shared.attribute(ids, return_diagnostics=True, **options)
    again, repeated = shared.attribute(ids, return_diagnostics=True, internal_batch_size=2, **options)
    torch.testing.assert_close(found, again, rtol=0.0, atol=1e-9)
    torch.testing.assert_close(record.target_probability, repeated.target_probability, rtol=0.0, atol=1e-9)
    assert (found - alone.attribute(ids, **options)).abs().max() > 1e-3
    plain = shared.attribute(ids[:1], target=1, additional_forward_args=(mask[:1],), return_diagnostics=True, **SHARED)
    assert plain[1].forward_mode == "replay", "noise behind the layer is no reason to run what is before it again"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_behind_the_last_block_only_the_first_token_speaks() -> None:
    """A classifier that reads [CLS] alone: at its last block the other tokens' bits do not depend on the target."""
    model = make("BERT")
    iba = LayerIBA(model, model.get_submodule("bert.encoder.layer.2")).estimate(
        [{"input_ids": part} for part in sentences([6, 9] * 20, seed=1)]
    )
    ids = torch.cat(sentences([9, 9]))
    first, second = (iba.attribute(ids, target=target, **SETTINGS) for target in (0, 2))
    assert torch.equal(first[:, 1:], second[:, 1:])
    assert (first[:, 0] - second[:, 0]).abs().min() > 1e-6
    weight = iba.attribute(ids, target=0, **SETTINGS | {"beta": 30.0})
    # Adam follows the sign of a gradient that is information alone, whatever its weight
    torch.testing.assert_close(weight[:, 1:], first[:, 1:], rtol=1e-5, atol=0.0)


REFUSED = [
    ({"position_mask": [1, 0]}, InvalidTypeError, "position_mask is a list; wanted a tensor"),
    ({"position_mask": torch.ones(2, 3)}, InvalidArgumentError, r"shape \[2, 3\].*wanted \[2, 5\]"),
    ({"position_mask": torch.tensor([[1] * 5, [0] * 5])}, InvalidArgumentError, "no position of example 1 as real"),
    ({"protected_positions": [5]}, MismatchedArgumentsError, "has 5, but example 0 has 5 positions"),
    ({"protected_positions": [-6]}, MismatchedArgumentsError, "has -6, but example 0 has 5 positions"),
    ({"protected_positions": "CLS"}, InvalidTypeError, "wanted positions such as"),
    ({"protected_positions": torch.ones(2, 5)}, InvalidArgumentError, "every position of example 0"),
    ({"protected_positions": torch.ones(2, 4)}, InvalidArgumentError, r"wanted \[2, 5\]"),
    ({"mask_granularity": "patch"}, InvalidArgumentError, "wanted 'element' or 'token'"),
    ({"sigma": 1.0, "protected_positions": [0]}, InvalidArgumentError, "Pass sigma=0"),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED)
def test_masks_that_do_not_fit_are_refused(model: Tagger, options: Any, error: type[Exception], message: str) -> None:
    """With what was found and what was wanted."""
    iba = LayerIBA(model, model.layers[0]).estimate(data())
    ids, mask = padded(sentences([5, 5]))
    with pytest.raises(error, match=message):
        iba.attribute(ids, target=0, additional_forward_args=(mask,), **options)


def test_beta_without_a_choice_goes_with_the_mask(model: Tagger) -> None:
    """10 for a lambda an element, as in the paper, and 1 for a lambda a token."""
    iba = LayerIBA(model, model.layers[0]).estimate(data())
    ids, mask = padded(sentences([8, 5]))
    for granularity, beta in (("element", 10.0), ("token", 1.0)):
        options = {"target": 1, "additional_forward_args": (mask,), "mask_granularity": granularity}
        assert torch.equal(iba.attribute(ids, **options), iba.attribute(ids, beta=beta, **options))


def test_arguments_in_the_wrong_order_are_noticed() -> None:
    """Token types, all zero, in the place of the attention mask."""
    model = make("BERT")
    ids, mask = padded(sentences([5, 5]))
    iba = LayerIBA(model, model.get_submodule("bert.encoder.layer.1"))
    with pytest.raises(
        InvalidArgumentError, match="The model's attention_mask marks no position of example 0 .* order"
    ):
        iba.attribute(ids, target=0, additional_forward_args=(torch.zeros_like(mask), mask))


def test_vectors_have_no_positions(model: Tagger) -> None:
    """At the head there is nothing to mask position by position."""
    iba = LayerIBA(model, model.head).estimate(data())
    ids, mask = padded(sentences([5, 5]))
    assert iba.attribute(ids, target=0, additional_forward_args=(mask,)).shape == (2, 1)
    for options in ({"position_mask": mask}, {"mask_granularity": "token"}):
        with pytest.raises(InvalidArgumentError, match="no meaning at layer 'head'"):
            iba.attribute(ids, target=0, additional_forward_args=(mask,), **options)


def test_layers_that_cannot_share_are_refused(model: Tagger) -> None:
    """Layers in front, without statistics, of other positions, or no layers."""
    ids, mask = padded(sentences([5, 5]))
    arguments = {"target": 0, "additional_forward_args": (mask,), "mask_granularity": "token"}
    front, middle, last = model.layers
    with pytest.raises(InvalidArgumentError, match=r"'layers.0' .* does not run after .*'layers.1'"):
        LayerIBA(model, middle, shared_layers=[front]).estimate(data()).attribute(ids, **arguments)
    statistics = LayerIBA(model, middle).estimate(data()).statistics
    with pytest.raises(StatisticsError, match=r"no feature statistics of .*'layers.2'"):
        LayerIBA(model, middle, statistics=statistics, shared_layers=[last]).attribute(ids, **arguments)
    with pytest.raises(InvalidArgumentError, match="must have the same positions"):
        LayerIBA(model, middle, shared_layers=[model.head]).estimate(data()).attribute(ids, **arguments)
    with pytest.raises(InvalidArgumentError, match="pass mask_granularity='token'"):
        LayerIBA(model, front, shared_layers=[last]).estimate(data()).attribute(
            ids, target=0, additional_forward_args=(mask,)
        )
    with pytest.raises(InvalidTypeError, match="wanted a list of modules"):
        LayerIBA(model, front, shared_layers=["layers.2"])


def test_estimate_refuses_masks_that_do_not_fit(model: Tagger) -> None:
    """A mask of other positions, statistics per feature with padding, and a tensor in place of a function."""
    iba = LayerIBA(model, model.layers[0])
    ids, mask = padded(sentences([5, 3]))
    batch = [{"ids": ids, "attention_mask": mask}]
    with pytest.raises(InvalidArgumentError, match=r"shape \[2, 4\].*wanted \[2, 5\]"):
        iba.estimate(batch, position_mask=lambda _: mask[:, 1:])
    with pytest.raises(StatisticsError, match="Use per='channel'"):
        iba.estimate(batch, per="feature")
    with pytest.raises(InvalidTypeError, match="wanted a function batch"):
        iba.estimate(batch, position_mask=mask)
