"""The noise that words bear: the closed form for linear states, and what must not change it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from captum_iba.errors import (
    CaptumIBAWarning,
    GradientModeError,
    InvalidArgumentError,
    InvalidTypeError,
    MismatchedArgumentsError,
    NonFiniteError,
    StatisticsError,
)
from captum_iba.information.word_information import WordNoiseSettings, linear_word_noise, word_noise

# laws that hold at any number of steps are tested with few
pytestmark = pytest.mark.filterwarnings("ignore:After n_steps")

WEIGHTS = torch.tensor([10.0, 20.0, 5.0, -20.0, -10.0], dtype=torch.float64)
# of the published example, which prints sigma to four digits
STD, WANTED = 0.32016, [0.0032, 0.0016, 0.0064, 0.0016, 0.0032]


def words(n: int, length: int, width: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, length, width, generator=generator, dtype=torch.float64)


def weighted_sum(noisy: Tensor) -> Tensor:
    return (WEIGHTS[:, None] * noisy).sum(dim=1)


def short(**more: Any) -> WordNoiseSettings:
    """Few steps from near by, for laws that hold at any number of them."""
    return WordNoiseSettings(**{"n_steps": 25, "n_samples": 4, "init_scale": 0.3, "max_scale": 0.5} | more)


def network(seed: int = 0, width: int = 6, length: int = 5, size: int = 7) -> Any:
    """A bounded state of all words together, with a mask."""
    generator = torch.Generator().manual_seed(seed)
    inner = torch.randn(width, size, generator=generator, dtype=torch.float64)
    places = torch.rand(length, 1, generator=generator, dtype=torch.float64) + 0.5

    def states(noisy: Tensor) -> Tensor:
        return torch.tanh((noisy * places[: noisy.shape[1]]) @ inner).sum(dim=1)

    return states


def test_the_closed_form_of_the_published_example() -> None:
    """w = (10, 20, 5, -20, -10), 256 numbers, lam 0.1."""
    gains = WEIGHTS[:, None, None] * torch.eye(256, dtype=torch.float64)
    found = linear_word_noise(gains, STD)
    assert [round(value, 4) for value in found.tolist()] == WANTED
    assert torch.allclose(found, STD * math.sqrt(0.1 / 10) / WEIGHTS.abs(), rtol=1e-12)


def test_linear_states_reach_the_closed_form() -> None:
    """The published example at default settings, every word within 1 %."""
    gains = WEIGHTS[:, None, None] * torch.eye(256, dtype=torch.float64)
    found = word_noise(words(1, 5, 256, scale=0.01), weighted_sum, STD)
    torch.testing.assert_close(found.sigma[0], linear_word_noise(gains, STD), rtol=0.01, atol=0.0)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_any_linear_map_reaches_the_closed_form(reduction: Any) -> None:
    """Full matrices, a deviation of its own for each number of the state, both reductions."""
    generator = torch.Generator().manual_seed(3)
    gains = (
        torch.randn(3, 20, 64, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 3.0, 0.5])[:, None, None]
    )
    std = torch.rand(20, generator=generator, dtype=torch.float64) + 0.5
    wanted = linear_word_noise(gains, std, lam=0.3, reduction=reduction)
    chosen = WordNoiseSettings(lam=0.3, reduction=reduction, n_steps=250, n_samples=8)
    found = word_noise(words(1, 3, 64), lambda x: torch.einsum("ndk,rnk->rd", gains, x), std, chosen)
    torch.testing.assert_close(found.sigma[0], wanted, rtol=0.03, atol=0.0)


def test_information_of_linear_states_follows_from_lam() -> None:
    """A tenfold lam lets every word bear root ten times the noise, K/2 log2 10 bits less."""
    few, many = (
        word_noise(words(1, 5, 64, scale=0.1), weighted_sum, STD, WordNoiseSettings(lam=lam)).information()
        for lam in (0.1, 0.01)
    )
    torch.testing.assert_close(many - few, torch.full_like(few, 32 * math.log2(10)), rtol=0.02, atol=0.0)


def test_a_word_outside_the_state_has_no_information() -> None:
    """Its noise is the largest one, exactly; a word inside has some."""
    found = word_noise(words(2, 3, 8), lambda x: x[:, 0] + 2 * x[:, 2], 1.0)
    assert found.information()[:, 1].eq(0.0).all() and torch.equal(found.log_sigma[:, 1:2], found.log_sigma_max)
    assert found.information()[:, [0, 2]].gt(8.0).all()


def test_bits_and_entropy_say_the_same() -> None:
    """Information is the entropy at the largest deviation less that at the word's own; a bit is ln 2 nats."""
    found = word_noise(words(2, 5, 6), network(), 1.0, short())
    largest = 3 * math.log(2 * math.pi * math.e) + 6 * found.log_sigma_max
    torch.testing.assert_close(found.information("nats"), largest - found.entropy("nats"))
    torch.testing.assert_close(found.information("bits"), found.information("nats") / math.log(2))
    torch.testing.assert_close(found.entropy("bits"), found.entropy("nats") / math.log(2))


@settings(max_examples=20)
@given(st.integers(1, 6), st.floats(1e-3, 1e3))
def test_the_sum_over_words_is_the_mean_with_lam_times_their_number(length: int, lam: float) -> None:
    """The two reductions are one law."""
    x, states = words(1, length, 4), network(width=4, length=length)
    mean = word_noise(x, states, 1.0, short(n_steps=3, lam=lam, reduction="mean"))
    total = word_noise(x, states, 1.0, short(n_steps=3, lam=lam / length, reduction="sum"))
    torch.testing.assert_close(mean.log_sigma, total.log_sigma, rtol=0.0, atol=1e-6)


@settings(max_examples=20)
@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_units_do_not_count(of_state: float, of_words: float) -> None:
    """States in another unit with their reference, and embeddings in another unit, have the same information."""
    x, states = words(2, 5, 6), network()
    wanted = word_noise(x, states, 0.7, short(n_steps=3))
    scaled = word_noise(x * of_words, lambda z: of_state * states(z / of_words), 0.7 * of_state, short(n_steps=3))
    torch.testing.assert_close(scaled.information(), wanted.information(), rtol=0.0, atol=1e-7)
    torch.testing.assert_close(scaled.sigma, of_words * wanted.sigma, rtol=1e-8, atol=0.0)


def test_turning_the_state_changes_nothing() -> None:
    """The error is that of all numbers together, where they have one reference."""
    turn, _ = torch.linalg.qr(words(1, 7, 7, seed=4)[0])
    x, states = words(2, 5, 6), network()
    wanted = word_noise(x, states, 0.7, short())
    turned = word_noise(x, lambda z: states(z) @ turn + 3.0, 0.7, short())
    torch.testing.assert_close(turned.information(), wanted.information(), rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("left", [False, True])
def test_a_padded_batch_is_its_sentences(left: bool) -> None:
    """Information of a sentence alone, wherever its padding stands and whatever is in it."""
    x, lengths = words(3, 7, 6), [7, 2, 5]
    places = torch.arange(7)
    mask = torch.stack([places >= 7 - n if left else places < n for n in lengths])

    def pooled(noisy: Tensor, real: Tensor) -> Tensor:
        return (torch.tanh(noisy).cumsum(dim=-1) * real[..., None]).sum(dim=1)

    def of_all(noisy: Tensor) -> Tensor:
        return pooled(noisy, mask.repeat(len(noisy) // 3, 1))

    found = word_noise(x, of_all, 1.0, short(), mask)
    assert found.information()[~mask].eq(0.0).all() and found.sigma[~mask].eq(0.0).all()
    for row, n in enumerate(lengths):
        alone = word_noise(x[row][mask[row]][None], lambda z, n=n: pooled(z, torch.ones(len(z), n)), 1.0, short())
        torch.testing.assert_close(found.information()[row][mask[row]], alone.information()[0], rtol=0.0, atol=1e-9)
        assert alone.information().std() > 1e-2, "a map that says nothing would be equal too"


def test_states_of_padding_do_not_count() -> None:
    """With a mask of the states, those outside change nothing."""
    x, mask = words(2, 4, 6), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])

    def states(noisy: Tensor, behind: float) -> Tensor:
        found = torch.tanh(noisy * 2)
        changed = found.clone()
        changed[::2, 3] = behind * noisy[::2].sum(dim=1)
        return changed

    few, many = (
        word_noise(x, lambda z, b=b: states(z, b), 1.0, short(), mask, mask[..., None]).information()
        for b in (0.0, 9.0)
    )
    assert torch.equal(few, many)


def test_copies_in_parts_are_the_copies() -> None:
    """How many go through the model at once is a matter of memory alone."""
    x, states = words(2, 5, 6), network()
    whole = word_noise(x, states, 1.0, short(n_samples=5)).log_sigma
    for copies in (1, 2, 3):
        parts = word_noise(x, states, 1.0, short(n_samples=5), copies_per_run=copies).log_sigma
        torch.testing.assert_close(parts, whole, rtol=0.0, atol=1e-9)


def test_the_seed_alone_decides() -> None:
    """Another seed, another draw; the global random state stays where it was."""
    x, states = words(2, 5, 6), network()
    before = torch.random.get_rng_state()
    first, again, other = (word_noise(x, states, 1.0, short(seed=seed)).log_sigma for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_noise_that_has_not_settled_is_told_of() -> None:
    """Too few steps from a far start."""
    with pytest.warns(CaptumIBAWarning, match="n_steps=12 .* not settled"):
        found = word_noise(words(1, 5, 64), weighted_sum, 30.0, WordNoiseSettings(n_steps=12, init_scale=1e-4))
    assert found.mean_drift.item() > 0.08
    settled = word_noise(words(1, 5, 64), weighted_sum, 30.0)
    assert settled.mean_drift.item() < 0.08


def test_half_precision_words() -> None:
    """The noise is found in float32, and the model sees its own precision."""
    seen = set()

    def states(noisy: Tensor) -> Tensor:
        seen.add(noisy.dtype)
        return (WEIGHTS[:, None] * noisy.float()).sum(dim=1).to(torch.bfloat16)

    x = words(1, 5, 64, scale=1.0)
    found = word_noise(x.bfloat16(), states, 30.0, WordNoiseSettings(n_steps=60))
    wanted = word_noise(x.float(), lambda z: (WEIGHTS[:, None] * z).sum(dim=1), 30.0, WordNoiseSettings(n_steps=60))
    assert seen == {torch.bfloat16} and found.log_sigma.dtype == torch.float32
    torch.testing.assert_close(found.log_sigma, wanted.log_sigma.float(), rtol=0.0, atol=0.05)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lam", 0.0),
        ("lam", float("nan")),
        ("init_scale", -1.0),
        ("init_scale", 20.0),
        ("max_scale", float("inf")),
        ("n_steps", 0),
        ("n_samples", 1.5),
        ("reduction", "max"),
        ("seed", -1),
    ],
)
def test_settings_out_of_range(name: str, value: Any) -> None:
    """The message names the argument and what was found."""
    with pytest.raises(InvalidArgumentError, match=name):
        WordNoiseSettings(**{name: value})


X = words(2, 5, 6)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((X.long(), weighted_sum, 1.0), InvalidTypeError, "floating-point"),
        ((X[0], weighted_sum, 1.0), InvalidArgumentError, r"\[5, 6\]"),
        ((X * math.nan, weighted_sum, 1.0), NonFiniteError, "embeddings"),
        ((torch.ones_like(X), weighted_sum, 1.0), StatisticsError, "embedding_std"),
        ((X, weighted_sum, 0.0), InvalidArgumentError, "reference_std"),
        ((X, weighted_sum, torch.ones(5)), InvalidArgumentError, r"reference_std has shape \[5\]"),
        ((X, lambda z: z.sum(), 1.0), MismatchedArgumentsError, "a row for each"),
        ((X, lambda z: z[:1], 1.0), MismatchedArgumentsError, "a row for each"),
        ((X, lambda z: weighted_sum(z) * math.inf, 1.0), NonFiniteError, "states"),
        ((X, lambda z: weighted_sum(z.detach()), 1.0), GradientModeError, "does not depend"),
        ((X, weighted_sum, 1.0, None, torch.ones(2, 4)), InvalidArgumentError, r"mask has shape \[2, 4\]"),
        ((X, weighted_sum, 1.0, None, torch.tensor([[0] * 5, [1] * 5])), InvalidArgumentError, "no word"),
        ((X, weighted_sum, "a"), InvalidTypeError, "reference_std='a'"),
        ((X, weighted_sum, 1.0, None, [[1] * 5] * 2), InvalidTypeError, "mask is a list"),
        ((X, weighted_sum, 1.0, None, None, [1]), InvalidTypeError, "state_mask is a list"),
        ((X, weighted_sum, 1.0, None, None, torch.ones(2, 7)), InvalidArgumentError, r"state_mask has shape \[2, 7\]"),
        (
            (X, lambda z: z, 1.0, None, None, torch.tensor([1.0, 0.0])[:, None, None]),
            InvalidArgumentError,
            "no number of example 1",
        ),
        (
            (X, weighted_sum, 1.0, None, None, None, torch.ones(3)),
            InvalidArgumentError,
            r"embedding_std has shape \[3\]",
        ),
        ((X, weighted_sum, 1.0, None, None, None, "a"), InvalidTypeError, "embedding_std='a'"),
        ((X, weighted_sum, 1.0, None, None, None, None, 0), InvalidArgumentError, "copies_per_run=0"),
    ],
)
def test_wrong_tensors(arguments: tuple[Any, ...], kind: type[Exception], message: str) -> None:
    """Each mistake has an error of its own, which says what was found."""
    with pytest.raises(kind, match=message):
        word_noise(*arguments)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((torch.ones(2, 3, 4, dtype=torch.long), 1.0), InvalidTypeError, "gains is torch.int64"),
        (([[[1.0]]], 1.0), InvalidTypeError, "gains is list"),
        ((torch.ones(2, 0, 4), 1.0), InvalidArgumentError, r"gains has shape \[2, 0, 4\]"),
        ((torch.full((2, 3, 4), math.nan), 1.0), NonFiniteError, "gains"),
        ((torch.ones(2, 3, 4), 0.0), InvalidArgumentError, "wanted positive"),
        ((torch.ones(2, 3, 4), torch.ones(5)), InvalidArgumentError, r"reference_std has shape \[5\]"),
        ((torch.ones(2, 3, 4), "a"), InvalidTypeError, "reference_std='a'"),
        ((torch.ones(2, 3, 4), 1.0, -1.0), InvalidArgumentError, "lam=-1.0"),
    ],
)
def test_the_closed_form_refuses_what_has_none(arguments: tuple[Any, ...], kind: type[Exception], message: str) -> None:
    """No deviation of 0 and no NaN comes of arguments that mean nothing."""
    with pytest.raises(kind, match=message):
        linear_word_noise(*arguments)


def test_gains_of_another_shape() -> None:
    """The closed form wants a matrix for each word."""
    with pytest.raises(InvalidArgumentError, match="gains"):
        linear_word_noise(torch.ones(3), 1.0)
    with pytest.raises(InvalidArgumentError, match="reduction"):
        linear_word_noise(torch.ones(3, 2, 2), 1.0, reduction="max")  # type: ignore[arg-type]
    assert linear_word_noise(torch.zeros(1, 2, 2), 1.0).isinf().all()
