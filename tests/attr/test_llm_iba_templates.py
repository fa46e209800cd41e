"""Templates: each value carries the bits of its tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captum.attr import TextTemplateInput, TextTokenInput
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from captum_iba import LayerIBA
from captum_iba.attr import LLMIBAAttribution
from captum_iba.attr._llm_template import encode_with_offsets, owners, value_spans
from captum_iba.errors import CaptumIBAWarning, InvalidArgumentError, InvalidTypeError
from tests.language_models import layer_of, random_ids, sharp, word_tokenizer

KNOBS = {"n_steps": 3, "n_samples": 2, "beta": 1.0, "target": "mat and"}
TOKENIZER = word_tokenizer(begins=True)
TEXT = "the cat sat on the mat and ran far ."


@pytest.fixture(scope="module")
def iba() -> LLMIBAAttribution:
    model = sharp("gpt2")
    return LLMIBAAttribution(LayerIBA(model, layer_of(model, "h.0")).estimate(random_ids(1000, 8)), TOKENIZER)


@pytest.fixture(scope="module")
def by_token(iba: LLMIBAAttribution) -> Any:
    """Bits of each token of the filled template."""
    return iba.attribute(TextTokenInput(TEXT, TOKENIZER), **KNOBS)


def spread(first: str, second: str) -> str:
    return f"{first} on {second} ."


# template, values, the tokens (after <s>) of each value
CASES: dict[str, tuple[Any, Any, list[list[int]]]] = {
    "words": ("{} sat on {} and ran far .", ["the cat", "the mat"], [[1, 2], [5, 6]]),
    "names": ("{who} sat on {what} and {how} .", {"how": "ran far", "who": "the cat", "what": "the mat"},
              [[8, 9], [1, 2], [5, 6]]),
    "twice": ("{0} cat sat on {0} mat and {1} .", ["the", "ran far"], [[1, 5], [8, 9]]),
    "function": (spread, ["the cat sat", "the mat and ran far"], [[1, 2, 3], [5, 6, 7, 8, 9]]),
    "empty": ("the {}cat {} on the mat and ran far .", ["", "sat"], [[], [3]]),
    "all": ("{}", [TEXT], [list(range(1, 11))]),
    "spaces": ("the cat{}on the mat{}", [" sat ", " and ran far ."], [[3], [7, 8, 9, 10]]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_value_has_the_sum_over_its_tokens(iba: LLMIBAAttribution, by_token: Any, case: str) -> None:
    """Columns are sums of the tokens' bits; the total is that of all tokens."""
    template, values, tokens = CASES[case]
    result = iba.attribute(TextTemplateInput(template, values), **KNOBS)
    wanted = torch.stack([by_token.token_attr[:, places].sum(dim=1) for places in tokens], dim=1)
    torch.testing.assert_close(result.token_attr, wanted)
    torch.testing.assert_close(result.total_bits, by_token.total_bits)
    torch.testing.assert_close(result.answer_attr, by_token.answer_attr)
    assert result.input_tokens == (list(values.values()) if isinstance(values, dict) else values)


def test_whole_answer(iba: LLMIBAAttribution) -> None:
    """The same sums for one optimisation."""
    whole = iba.attribute(TextTokenInput(TEXT, TOKENIZER), per="sequence", **KNOBS)
    result = iba.attribute(TextTemplateInput("the {} on the {} .", ["cat sat", "mat and ran far"]),
                           per="sequence", **KNOBS)  # fmt: skip
    wanted = torch.stack([whole.seq_attr[[2, 3]].sum(), whole.seq_attr[[6, 7, 8, 9]].sum()])
    torch.testing.assert_close(result.seq_attr, wanted)


def test_a_mask_groups_values(iba: LLMIBAAttribution, by_token: Any) -> None:
    """Each value of a group gets the group's sum, as Captum's inputs have it; baselines change nothing."""
    values = ["the cat", "sat", "mat"]
    inp = TextTemplateInput("{} {} on the {} and ran far .", values, baselines=["Anna", "", "dog"], mask=[7, 3, 7])
    result = iba.attribute(inp, **KNOBS)
    group = by_token.token_attr[:, [1, 2, 6]].sum(dim=1)
    wanted = torch.stack([group, by_token.token_attr[:, 3], group], dim=1)
    torch.testing.assert_close(result.token_attr, wanted)
    assert result.input_tokens == values


def test_generation_continues_the_filled_template(iba: LLMIBAAttribution, by_token: Any) -> None:
    """What the model says after the filled template is what it says after the same text."""
    keywords = {key: value for key, value in KNOBS.items() if key != "target"}
    keywords["gen_args"] = {"max_new_tokens": 2, "do_sample": False}
    found = iba.attribute(TextTemplateInput("{} on {}", ["the cat sat", "the mat and ran far ."]), **keywords)
    wanted = iba.attribute(TextTokenInput(TEXT, TOKENIZER), **keywords)
    assert found.output_tokens == wanted.output_tokens and len(found.output_tokens) == 2


def byte_pairs(trim: bool, merges: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """Byte-level tokens, as GPT-2's; a space belongs to the word after it, and merges may cross borders of values."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *("".join(pair) for pair in merges)]
    inner = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.post_processor = processors.ByteLevel(trim_offsets=trim)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def owned(template: Any, values: list[str], tokenizer: Any) -> list[tuple[str, int]]:
    """(token, value it belongs to) of each token."""
    text, spans = value_spans(TextTemplateInput(template, values))
    ids, offsets = encode_with_offsets(text, tokenizer)
    return list(zip(tokenizer.convert_ids_to_tokens(ids), owners(offsets, spans), strict=True))


@pytest.mark.parametrize("trim", [True, False])
def test_tokens_across_borders(trim: bool) -> None:
    """The value with most characters has a shared token, the first of equal ones; template text never has one."""
    tokenizer = byte_pairs(trim, [("a", "b"), ("ab", "c"), ("Ġ", "abc"), ("d", "e")])
    assert owned("x{}", [" abc"], tokenizer) == [("x", -1), ("Ġabc", 0)]
    assert owned("x {}y", ["abc"], tokenizer) == [("x", -1), ("Ġabc", 0), ("y", -1)]
    assert owned("{}{}", ["a", "bc"], tokenizer) == [("abc", 1)]
    assert owned("{}{}", ["ab", "c"], tokenizer) == [("abc", 0)]
    assert owned("{}{}", ["d", "e"], tokenizer) == [("de", 0)]
    assert owned("ab{}", ["c"], tokenizer) == [("abc", 0)]
    assert owned("{1}{0}", ["d", "e"], tokenizer) == [("e", 1), ("d", 0)]


@pytest.mark.parametrize("trim", [True, False])
def test_white_space_and_letters_of_several_tokens(trim: bool) -> None:
    """Tokens of white space, and the bytes of one letter, belong to the value that they stand in."""
    tokenizer = byte_pairs(trim, [])
    assert owned("x{}y", ["a  b"], tokenizer) == [("x", -1), ("a", 0), ("Ġ", 0), ("Ġ", 0), ("b", 0), ("y", -1)]
    assert owned("a{}a", ["é"], tokenizer) == [("a", -1), ("Ã", 0), ("©", 0), ("a", -1)]
    assert owned("a {}{}", ["b ", "c"], tokenizer) == [("a", -1), ("Ġ", -1), ("b", 0), ("Ġ", 0), ("c", 1)]


@given(st.lists(st.text("ab {}\ue000", max_size=4), min_size=1, max_size=4), st.text("ab \ue000", max_size=3))
def test_spans_are_where_the_values_stand(values: list[str], between: str) -> None:
    """Whatever the values and the text between them, each span holds its value, in order."""
    text, spans = value_spans(TextTemplateInput(between.join(["{}"] * len(values)), values))
    assert text == between.join(values)
    assert [[text[start:end] for start, end in places] for places in spans] == [[value] for value in values]
    starts = [places[0][0] for places in spans]
    assert starts == sorted(starts)


def test_a_value_without_tokens_is_told(iba: LLMIBAAttribution) -> None:
    """A value whose characters lie in another's token has no bits of its own, and the user hears of it."""
    with pytest.warns(CaptumIBAWarning, match="'m' of the template's values have no token"):
        result = iba.attribute(TextTemplateInput("the {}{}", ["m", "at"]), **KNOBS)
    assert (result.token_attr[:, 0] == 0).all() and (result.token_attr[:, 1] > 0).all()


def test_templates_that_cannot_be_followed(iba: LLMIBAAttribution) -> None:
    """A template that changes its values, looks at them, or has none; values that are no text."""
    for template in (str.upper, lambda value: value[:3], "{:>30}", lambda value: value + str(len(value))):
        with pytest.raises(InvalidArgumentError, match="does not hold its values as they are"):
            iba.attribute(TextTemplateInput(template, ["the cat"]), **KNOBS)
    with pytest.raises(InvalidArgumentError, match=r"cannot be filled with other values \(KeyError"):
        iba.attribute(TextTemplateInput(lambda value: {"the": "the cat"}[value], ["the"]), **KNOBS)
    with pytest.raises(InvalidArgumentError, match="1 tokens in 0 columns|3 tokens in 0 columns"):
        iba.attribute(TextTemplateInput("the cat", []), **KNOBS)
    with pytest.raises(InvalidTypeError, match=r"values\[0\] is a int"):
        iba.attribute(TextTemplateInput("{} cat", [3]), **KNOBS)


def test_tokenizers_without_offsets(iba: LLMIBAAttribution) -> None:
    """A tokenizer in Python does not tell where its tokens stand: an error for templates; token inputs work."""
    model = sharp("gpt2", vocabulary=400)
    slow = ByT5Tokenizer()
    method = LayerIBA(model, layer_of(model, "h.0")).estimate(torch.randint(0, 300, (1000, 6)))
    wrapper = LLMIBAAttribution(method, slow)
    with pytest.raises(InvalidArgumentError, match="ByT5Tokenizer does not say which characters"):
        wrapper.attribute(TextTemplateInput("{} b", ["a"]), **KNOBS)
    result = wrapper.attribute(TextTokenInput("a b", slow), **(KNOBS | {"target": "cd"}))
    assert result.output_tokens == ["c", "d"] and result.token_attr.shape == (2, 4)
