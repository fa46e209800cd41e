"""WordInformation on models: the keyword task, transformers with padding, and what a call leaves behind."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from captum_iba.attr.word_comparison import WordComparison, compare_models
from captum_iba.attr.word_information import WordInformation
from captum_iba.errors import (
    CaptumIBAError,
    GradientModeError,
    InvalidArgumentError,
    InvalidTypeError,
    LayerNotExecutedError,
    MismatchedArgumentsError,
    StatisticsError,
)
from captum_iba.information.word_information import linear_word_noise
from tests.attr import keyword_task
from tests.attr.text_models import ENCODERS, make, padded, sentences

# laws that hold at any number of steps are tested with few
pytestmark = pytest.mark.filterwarnings("ignore:After n_steps")
FEW: dict[str, Any] = {"n_steps": 6, "n_samples": 2, "init_scale": 0.3, "max_scale": 0.5}
LENGTHS = [9, 3, 14, 6]


def corpus() -> list[dict[str, Tensor]]:
    return [{"input_ids": part} for part in sentences([4, 8, 12] * 10, seed=1)]


def calibrated(name: str, **estimate: Any) -> WordInformation:
    model = make(name)
    return WordInformation(model, model.get_submodule(ENCODERS[name][1])).estimate_reference_std(corpus(), **estimate)


def gpt2(seed: int = 0) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=40,
        n_embd=16,
        n_layer=3,
        n_head=2,
        n_positions=32,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.GPT2Model(config).double().eval()


def linear_model(width: int = 64, length: int = 4) -> nn.Sequential:
    """A state that is linear in the words."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = {"words": nn.Embedding(30, width), "flat": nn.Flatten(), "state": nn.Linear(length * width, 20)}
    return nn.Sequential(OrderedDict(parts)).double().eval()


@pytest.fixture(scope="module")
def keywords() -> keyword_task.KeywordClassifier:
    return keyword_task.trained(n_steps=150, seed=1)


def test_the_keyword_is_the_word_that_the_last_layer_keeps(keywords: keyword_task.KeywordClassifier) -> None:
    """Pooled as the classifier pools it, in at least 95 % of sentences; fillers lose bits on the way."""
    ids, labels, place = keyword_task.sentences(25, seed=5)
    assert (keywords(ids).argmax(dim=1) == labels).all()
    words = WordInformation(keywords, list(keywords.blocks)[::2]).estimate_reference_std(
        keyword_task.sentences(300, seed=6)[0], position="mean"
    )
    first, last = words.attribute(ids, position="mean", n_steps=150)
    assert (last.argmax(dim=1) == place).float().mean() >= 0.95
    rows = torch.arange(len(ids))
    fillers = [(bits.sum() - bits[rows, place].sum()) / (bits.numel() - len(ids)) for bits in (first, last)]
    assert fillers[1] < fillers[0] - 5.0


@pytest.mark.parametrize("seed", [0, 3])
def test_the_keyword_is_what_the_logits_keep(seed: int) -> None:
    """At the model's own last layer, whichever way it was initialised, in at least 95 % of sentences."""
    model = keyword_task.trained(n_steps=200, seed=seed)
    ids, labels, place = keyword_task.sentences(40, seed=7)
    assert (model(ids).argmax(dim=1) == labels).all()
    words = WordInformation(model, model.head).estimate_reference_std(keyword_task.sentences(300, seed=6)[0])
    bits = words.attribute(ids, n_steps=120, n_samples=8)
    assert (bits.argmax(dim=1) == place).float().mean() >= 0.95


def test_a_linear_model_has_its_closed_form() -> None:
    """The weights' columns of a word are its gains."""
    model = linear_model()
    ids = torch.randint(30, (3, 4), generator=torch.Generator().manual_seed(1))
    words = WordInformation(model, model.state).estimate_reference_std(torch.randint(30, (200, 4)))
    gains = model.state.weight.detach().unflatten(1, (4, 64)).movedim(1, 0)
    wanted = linear_word_noise(gains, words.reference_std())
    bits, sigma = words.attribute(ids, n_steps=300, n_samples=8, return_sigma=True)
    torch.testing.assert_close(sigma, wanted.expand(3, 4), rtol=0.03, atol=0.0)
    largest = 10 * model.words.weight.detach()
    assert bits.std(dim=0).max() < 5.0 and sigma.max() < largest.std()


def test_the_embedding_itself_keeps_all_words_alike() -> None:
    """As the layer it is the identity: all words get one deviation, but for the noise."""
    model = linear_model()
    words = WordInformation(model, model.words)
    sigma = words.attribute(torch.tensor([[1, 2, 3, 4]]), reference_std=1.0, return_sigma=True)[1]
    wanted = linear_word_noise(torch.eye(256, dtype=torch.float64).view(256, 4, 64).movedim(1, 0), 1.0)
    torch.testing.assert_close(sigma[0], wanted, rtol=0.03, atol=0.0)


# single states are told apart on two models
STATES = [(name, position) for name in ENCODERS for position in (None, "mean")]
STATES += [(name, position) for name in ("BERT", "T5 encoder") for position in (0, -1)]


@pytest.mark.parametrize(("name", "position"), STATES)
def test_a_padded_batch_is_its_sentences(name: str, position: Any) -> None:
    """Bits of the real words are those of the sentence alone; padding has none."""
    words = calibrated(name, position=position)
    parts = sentences(LENGTHS)
    ids, mask = padded(parts, longest=17)
    bits = words.attribute(ids, mask, position=position, **FEW)
    assert bits.shape == (4, 17) and bits[mask == 0].eq(0.0).all()
    exact = 1e-3 if name == "T5 encoder" and transformers.__version__ < "5" else 1e-9
    for row, part in enumerate(parts):
        alone = words.attribute(part, torch.ones_like(part), position=position, **FEW)
        torch.testing.assert_close(bits[row : row + 1, : LENGTHS[row]], alone, rtol=0.0, atol=exact)
        assert alone.std() > 1e-3, "a map that says nothing would be equal too"


def test_padding_in_front_changes_nothing_where_positions_do_not_count() -> None:
    """A sentence's noise follows its own words, wherever they stand in the batch."""
    words, parts = calibrated("T5 encoder", position=-1), sentences(LENGTHS)
    ids, mask = padded(parts, left=True)
    bits = words.attribute(ids, mask, position=-1, **FEW)
    exact = 1e-3 if transformers.__version__ < "5" else 1e-9
    for row, part in enumerate(parts):
        alone = words.attribute(part, torch.ones_like(part), position=-1, **FEW)
        torch.testing.assert_close(bits[row : row + 1, -LENGTHS[row] :], alone, rtol=0.0, atol=exact)


def test_padded_batches_calibrate_as_sentences_do() -> None:
    """Reference deviations, of states and words, do not know of padding."""
    parts = sentences([4, 8, 12] * 10, seed=1)
    model = make("BERT")
    layer = model.get_submodule(ENCODERS["BERT"][1])
    batches = [
        dict(zip(("input_ids", "attention_mask"), padded(parts[i : i + 6], longest=15), strict=True))
        for i in range(0, 30, 6)
    ]
    for position in (None, 0, "mean"):
        one, other = (
            WordInformation(model, layer).estimate_reference_std(data, position=position)
            for data in (corpus(), batches)
        )
        wanted, found = one.reference_std(position=position), other.reference_std(position=position)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0.0)
        ids = parts[0]
        torch.testing.assert_close(
            one.attribute(ids, position=position, **FEW), other.attribute(ids, position=position, **FEW)
        )


def test_causal_models_know_nothing_of_later_words() -> None:
    """At a position of GPT-2 the words behind it have 0 bits, exactly, and those before it some."""
    model = gpt2()
    words = WordInformation(model, model.h[2]).estimate_reference_std(corpus())
    (ids,) = sentences([6])
    found = words.compare_positions({"input_ids": ids}, [0, 2, -1], n_steps=120, n_samples=2, init_scale=0.3)
    assert found.names == ("0", "2", "-1")
    for row, place in enumerate((0, 2, 5)):
        assert found.bits[row, 0, place + 1 :].eq(0.0).all()
        assert found.bits[row, 0, : place + 1].gt(0.5).all()


def test_layers_side_by_side_are_layers_alone() -> None:
    """One call for several layers, by name, with table and plot."""
    model, parts = gpt2(), sentences([5, 3])
    ids, mask = padded(parts)
    words = WordInformation(model, list(model.h)).estimate_reference_std(corpus())
    found = words.compare_layers({"input_ids": ids, "attention_mask": mask}, tokenizer=_Names(), **FEW)
    assert found.names == ("h.0", "h.1", "h.2") and found.bits.shape == (3, 2, 5)
    listed = words.attribute({"input_ids": ids, "attention_mask": mask}, **FEW)
    for row, layer in enumerate(model.h):
        alone = WordInformation(model, layer).estimate_reference_std(corpus())
        bits = alone.attribute({"input_ids": ids, "attention_mask": mask}, **FEW)
        assert torch.equal(bits, found.bits[row]) and torch.equal(bits, listed[row])
    torch.testing.assert_close(found.mean_bits[:, 1], found.bits[:, 1, :3].mean(dim=1))
    assert torch.equal(found.difference, found.bits[1:] - found.bits[0])
    table = found.to_dataframe()
    assert len(table) == 3 * 8 and list(table.columns) == ["layer", "example", "word", "token", "bits", "sigma"]
    row = table[(table.layer == "h.1") & (table.example == 1) & (table.word == 2)].iloc[0]
    assert row.bits == float(found.bits[1, 1, 2]) and row.token == f"t{int(ids[1, 2])}"
    assert [label.get_text() for label in found.plot(1).axes[0].get_xticklabels()] == found.tokens[1]


class _Names:
    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [f"t{number}" for number in ids]


def test_models_side_by_side_have_references_of_their_own() -> None:
    """A model whose states are ten times as large, with its own reference, keeps the same bits."""
    small, other = linear_model(16), linear_model(16)
    with torch.no_grad():
        other.state.weight.mul_(10.0)
        other.state.bias.add_(3.0)
    data = torch.randint(30, (100, 4), generator=torch.Generator().manual_seed(2))
    methods = {
        name: WordInformation(model, model.state).estimate_reference_std(data)
        for name, model in (("small", small), ("large", other))
    }
    found = compare_models(methods, data[:3], **FEW)
    assert isinstance(found, WordComparison) and found.names == ("small", "large") and found.kind == "model"
    torch.testing.assert_close(found.difference, torch.zeros_like(found.difference), rtol=0.0, atol=1e-7)


def test_another_positions_estimate_leaves_the_bits_as_they_are() -> None:
    """Also where its corpus has words of another spread, as 0 to 2 have here: units belong to layer and position."""
    model = linear_model(16)
    with torch.no_grad():
        model.words.weight[:3] *= 20.0
    generator = torch.Generator().manual_seed(4)
    data = torch.randint(30, (50, 4), generator=generator)
    words = WordInformation(model, model.words).estimate_reference_std(data)
    before = words.attribute(data[:3], **FEW)
    words.estimate_reference_std(torch.randint(3, (50, 4), generator=generator), position="mean")
    assert torch.equal(words.attribute(data[:3], **FEW), before)


def test_batches_in_parts_are_the_batch() -> None:
    """internal_batch_size is a matter of memory alone, down to a row."""
    words = calibrated("BERT")
    ids, mask = padded(sentences(LENGTHS))
    whole = words.attribute(ids, mask, **FEW | {"n_samples": 3})
    for rows in (1, 2, 7):
        part = words.attribute(ids, mask, internal_batch_size=rows, **FEW | {"n_samples": 3})
        torch.testing.assert_close(part, whole, rtol=0.0, atol=1e-9)


def test_a_function_picks_the_state() -> None:
    """The position of a token, written as a function, gives that token's bits."""
    model = make("BERT")
    words = WordInformation(model, model.get_submodule(ENCODERS["BERT"][1]))
    ids, mask = padded(sentences([5, 8]))

    def second(states: Tensor, real: Tensor) -> Tensor:
        assert real.shape == states.shape[:2]
        return states[:, 1]

    by_number, by_function = (
        words.estimate_reference_std(corpus(), position=position).attribute(ids, mask, position=position, **FEW)
        for position in (1, second)
    )
    assert torch.equal(by_number, by_function)


def test_the_users_mask_and_a_wrapped_model() -> None:
    """Behind a function whose signature hides the mask, position_mask says what is real."""
    words, parts = calibrated("BERT"), sentences([5, 8])
    ids, mask = padded(parts)
    wanted = words.attribute(ids, mask, **FEW)
    model = words.forward_func
    hidden = WordInformation(lambda x, m: model(x, attention_mask=m), words.layer)
    hidden.estimate_reference_std(corpus(), input_fn=lambda b: (b["input_ids"], torch.ones_like(b["input_ids"])))
    found = hidden.attribute(ids, mask, position_mask=mask, **FEW)
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=1e-9)
    in_tuple = words.attribute((ids, mask), **FEW)
    assert torch.equal(in_tuple, wanted)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails: bool) -> None:
    """Hooks, flags, gradients and the random state are as before, after an error too."""
    model = make("BERT")
    model.train()
    model.bert.embeddings.eval()
    frozen = next(iter(model.parameters()))
    frozen.requires_grad_(False)
    layer = model.get_submodule(ENCODERS["BERT"][1])
    calls = {"left": 10**9}

    def fail(*_: Any) -> None:
        calls["left"] -= 1
        if calls["left"] < 0:
            raise OverflowError("the model's own")

    handle = model.bert.encoder.layer[0].register_forward_pre_hook(fail)
    words = WordInformation(model, layer)
    with pytest.warns(UserWarning, match="training mode"):
        words.estimate_reference_std(corpus())
    before = _state_of(model)
    if fails:
        calls["left"] = 4
        with pytest.raises(OverflowError, match="own"):
            words.attribute(sentences([5])[0], **FEW)
    else:
        words.attribute(sentences([5])[0], **FEW)
    assert _state_of(model) == before
    handle.remove()


def _state_of(model: nn.Module) -> dict[str, Any]:
    return {
        "modes": [module.training for module in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m)) for m in model.modules()],
        "parameters": [(p.requires_grad, p.grad is None, p.detach().sum().item()) for p in model.parameters()],
        "random": torch.random.get_rng_state().tolist(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
    }


def test_recurrent_models() -> None:
    """An LSTM's state at a step knows the words up to it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(30, 16), nn.LSTM(16, 8, batch_first=True)).double().eval()
    ids = torch.randint(30, (60, 5), generator=torch.Generator().manual_seed(0))
    words = WordInformation(model, model[1]).estimate_reference_std(ids)
    bits = words.compare_positions(ids[:2], [1, 4], n_samples=2, n_steps=90, init_scale=0.5).bits
    assert bits[0, :, 2:].eq(0.0).all() and bits[0, :, :2].gt(0.5).all()
    assert (bits[1, :, 4] > bits[1, :, 0]).all()


class _TwoEmbeddings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places, self.head = nn.Embedding(9, 4), nn.Embedding(5, 4), nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.tokens(ids) + self.places(torch.arange(ids.shape[1])))
        return out


IDS = torch.randint(9, (4, 5), generator=torch.Generator().manual_seed(0))


def test_the_words_embedding_has_to_be_told_where_there_are_several() -> None:
    """The message names the candidates; told, it works."""
    model = _TwoEmbeddings().eval()
    with pytest.raises(InvalidArgumentError, match="'tokens', 'places'"):
        WordInformation(model, model.head).attribute(IDS, reference_std=1.0)
    assert WordInformation(model, model.head, model.tokens).attribute(IDS, reference_std=1.0, **FEW).shape == (4, 5)
    with pytest.raises(InvalidArgumentError, match="no nn.Embedding"):
        WordInformation(model.head, model.head).attribute(torch.rand(2, 4), reference_std=1.0)


def _call(**arguments: Any) -> Any:
    model = _TwoEmbeddings().eval()
    made = {"layer": model.head, "embedding_layer": model.tokens}
    for name in made.keys() & arguments.keys():
        made[name] = arguments.pop(name)(model)
    inputs = arguments.pop("inputs", IDS)
    return WordInformation(model, **made).attribute(inputs, **{"reference_std": 1.0, **FEW, **arguments})


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"reference_std": None}, StatisticsError, "estimate_reference_std"),
        ({"reference_std": -1.0}, InvalidArgumentError, "reference_std"),
        ({"reference_std": "a"}, InvalidTypeError, "reference_std='a'"),
        ({"reference_std": [1.0, 1.0]}, MismatchedArgumentsError, "2 entries for 1 layers"),
        ({"lam": 0}, InvalidArgumentError, "lam"),
        ({"reduction": "none"}, InvalidArgumentError, "reduction"),
        ({"position": "cls"}, InvalidArgumentError, "position='cls'"),
        ({"position": 5}, MismatchedArgumentsError, "position=5 is no token"),
        ({"position": lambda states, real: states}, InvalidTypeError, r"wanted a tensor \(rows, width\)"),
        ({"internal_batch_size": 0}, InvalidArgumentError, "internal_batch_size"),
        ({"seed": 1.5}, InvalidArgumentError, "seed"),
        ({"position_mask": torch.ones(4, 4)}, InvalidArgumentError, "position_mask"),
        ({"position_mask": torch.zeros(4, 5)}, InvalidArgumentError, "no token of example 0"),
        ({"inputs": IDS[0]}, InvalidTypeError, r"shape \[5\]"),
        ({"inputs": "a text"}, InvalidTypeError, "a str"),
        ({"layer": lambda model: []}, InvalidTypeError, "at least one"),
        ({"layer": lambda model: [model.head] * 2}, InvalidArgumentError, "twice"),
        ({"layer": lambda model: nn.Linear(4, 2)}, LayerNotExecutedError, "not part of the model"),
        ({"layer": lambda model: model.places}, MismatchedArgumentsError, "first axis must be the batch"),
        ({"embedding_layer": lambda model: model.head}, InvalidArgumentError, "runs before"),
        ({"embedding_layer": lambda model: model.places}, InvalidArgumentError, "taken as the word embedding"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], kind: type[CaptumIBAError], message: str) -> None:
    """Each mistake has an error of its own, which says what was found."""
    if "embedding_layer" in arguments and kind is InvalidArgumentError and message == "runs before":
        arguments = {**arguments, "layer": lambda model: model.tokens}
    with pytest.raises(kind, match=message):
        _call(**arguments)


def test_wrong_comparisons_and_estimates() -> None:
    """What cannot be compared or estimated is refused by name."""
    model = _TwoEmbeddings().eval()
    words = WordInformation(model, [model.tokens, model.head], model.tokens)
    with pytest.raises(InvalidArgumentError, match="wanted one"):
        words.compare_positions(IDS, [0], reference_std=1.0)
    with pytest.raises(InvalidArgumentError, match="no arguments"):
        words.compare_layers(IDS, reference_std=1.0, learning_rate=1.0)
    with pytest.raises(InvalidArgumentError, match="positions="):
        WordInformation(model, model.head, model.tokens).compare_positions(IDS, [], reference_std=1.0)
    with pytest.raises(InvalidArgumentError, match="has 2 layers"):
        compare_models({"one": words}, IDS, reference_std=1.0, **FEW)
    with pytest.raises(InvalidArgumentError, match="empty"):
        compare_models({}, IDS)
    with pytest.raises(StatisticsError, match="at least 2"):
        words.estimate_reference_std(IDS[:1])
    with pytest.raises(StatisticsError, match="the same for all"):
        words.estimate_reference_std(IDS[:1].expand(3, -1), position=0)
    with pytest.raises(StatisticsError, match=r"found those of \['mean'\]"):
        words.estimate_reference_std(IDS, position="mean").attribute(IDS)
    found = words.compare_layers(IDS, reference_std=1.0, **FEW)
    with pytest.raises(InvalidArgumentError, match="index=4"):
        found.of_example(4)
    with torch.inference_mode(), pytest.raises(GradientModeError):
        words.attribute(IDS, reference_std=1.0)
