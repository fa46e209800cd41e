"""Laws of texts as examples: what a file's lines become, and what cannot be read."""

import copy

import pytest
import torch

from captum_iba.comparison import JoinedExamples, TextExamples, TextFile, as_examples
from captum_iba.errors import (
    CaptumIBAWarning,
    InvalidArgumentError,
    InvalidTypeError,
    MismatchedArgumentsError,
    MissingFileError,
    UnreadableExampleError,
)
from tests.comparison.text_cases import CLS, LABELS, MASK, SEP, TEXTS, examples, tokenizer


def write(path, lines, end="\n"):
    path.write_bytes(end.join(lines).encode())
    return path


def lines(texts=TEXTS, labels=LABELS):
    return [f"{text}\t{label}" for text, label in zip(texts, labels, strict=True)]


def same(a, b):
    assert torch.equal(a.inputs, b.inputs) and a.tokens == b.tokens and a.target == b.target
    assert a.arguments.keys() == b.arguments.keys()
    assert all(torch.equal(value, b.arguments[name]) for name, value in a.arguments.items())


def test_an_example_is_what_the_tokenizer_says():
    """Ids, special tokens and further arguments are those of a direct call; nothing is padded."""
    data = examples()
    for index, (text, label) in enumerate(zip(TEXTS, LABELS, strict=True)):
        example, direct = data.load(index), tokenizer()(text, return_special_tokens_mask=True)
        assert example.inputs.tolist() == direct["input_ids"] and example.target == label
        assert example.inputs.dtype == torch.long and example.special.int().tolist() == direct["special_tokens_mask"]
        assert {name: value.tolist() for name, value in example.arguments.items()} == {
            name: direct[name] for name in ("attention_mask", "token_type_ids")
        }
        assert example.tokens == tuple(tokenizer().convert_ids_to_tokens(direct["input_ids"]))


def test_special_tokens_are_units_of_nothing():
    """They are negative in the units, and the baseline keeps them; every other token is masked, one unit each."""
    example = examples(["a warm film"], [0]).load(0)
    assert example.feature_mask.tolist() == [-1, 1, 2, 3, -1]
    assert example.baselines.tolist() == [CLS, MASK, MASK, MASK, SEP]
    padded = examples(["a warm film"], [0], baseline_token="[PAD]").load(0)
    assert padded.baselines.tolist() == [CLS, 0, 0, 0, SEP]


def test_without_a_mask_token_another_one_stands_for_nothing():
    """The padding token, else the unknown one; where there is none of them it has to be named."""
    for gone, wanted in (((), MASK), (("mask",), 0), (("mask", "pad"), 1)):
        own = copy.deepcopy(tokenizer())
        for name in gone:
            setattr(own, f"{name}_token", None)
        assert TextExamples(["a film"], [0], own).load(0).baselines.tolist() == [CLS, wanted, wanted, SEP]
    own.unk_token = None
    with pytest.raises(InvalidArgumentError, match="neither a mask token nor one for padding or unknown words"):
        TextExamples(["a film"], [0], own)


def test_a_word_that_is_not_known_is_no_special_token():
    """It stands for a word of the text, so metrics may remove it."""
    example = examples(["a zebra"], [0]).load(0)
    assert example.tokens == ("[CLS]", "a", "[UNK]", "[SEP]") and example.special.tolist() == [True, False, False, True]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_file_holds_the_texts_in_memory(tmp_path, end):
    """Line by line, whatever the line's end, a mark at its start, quotes in it and blank lines."""
    texts = [*TEXTS, 'a "good" film', "tabs\tare text too"]
    labels = [*LABELS, 1, 0]
    path = write(tmp_path / "dev.tsv", ["\ufeff" + lines(texts, labels)[0], "", *lines(texts, labels)[1:], ""], end)
    data, wanted = TextFile(path, tokenizer()), examples(texts, labels)
    assert data.keys == ("dev.tsv:1", *(f"dev.tsv:{i}" for i in range(3, 8)))
    for index in range(len(texts)):
        same(data.load(index), wanted.load(index))


@pytest.mark.parametrize(
    ("first", "header", "categories", "n"),
    [
        ("sentence\tlabel", None, None, 4),
        ("sentence\tlabel", True, None, 4),
        ("sentence\tlabel", False, None, 5),
        ("a good film\t1", None, None, 5),
        ("a good film\t1", True, None, 4),
        ("a good film\tWarm", None, ["cold", "warm", "hot"], 5),
        ("text\twarmth", None, ["cold", "warm", "hot"], 4),
    ],
)
def test_a_heading_is_told_by_its_label(tmp_path, first, header, categories, n):
    """By rule a first line whose label is neither number nor category is one; the argument decides otherwise."""
    path = write(tmp_path / "a.tsv", [first, *lines()])
    data = TextFile(path, tokenizer(), header=header, categories=categories)
    assert len(data.keys) == n
    if n == 5 and header is not False:
        assert data.load(0).target == 1


def test_the_limit_is_spread_over_the_file(tmp_path):
    """Not the first ones, which may be of one kind."""
    path = write(tmp_path / "a.tsv", [f"film\t{i}" for i in range(10)])
    data = TextFile(path, tokenizer(), limit=5)
    assert [data.load(i).target for i in range(5)] == [0, 2, 4, 6, 8] and len(data.keys) == 5


def test_long_texts_are_cut_and_it_is_said():
    """To max_length with the special tokens kept; by default to the tokenizer's own limit."""
    with pytest.warns(CaptumIBAWarning, match=r"^0 has 12 tokens and is cut to 6"):
        cut = examples(["film " * 10, "a film"], [0, 0], max_length=6).load(0)
    assert cut.inputs.tolist() == [CLS, *[6] * 4, SEP] and cut.special.tolist() == [True, *[False] * 4, True]
    with pytest.warns(CaptumIBAWarning, match="cut to 32"):
        assert len(examples(["film " * 50], [0]).load(0).inputs) == 32


def test_a_text_of_just_the_limit_is_not_called_cut(recwarn):
    """Nothing is left out of it."""
    assert len(examples(["film " * 4], [0], max_length=6).load(0).inputs) == 6
    assert not [w for w in recwarn if issubclass(w.category, CaptumIBAWarning)]


UNREADABLE = {
    b"no tab here": "a.tsv:2: 'no tab here' has no tab",
    b"a film\tseven": "a.tsv:2: label 'seven' is no class; wanted an index from 0",
    b"a film\t-1": "label '-1' is no class",
    b"\t1": "a.tsv:2: '' has no tokens but the tokenizer's own",
    b"a \xff film\t1": "a.tsv:2: it is no text in UTF-8",
}


@pytest.mark.parametrize("line", UNREADABLE)
def test_a_line_that_cannot_be_read_is_named(tmp_path, line):
    """With its place and what is wrong; the others can be read."""
    path = tmp_path / "a.tsv"
    path.write_bytes(b"a film\t1\n" + line + b"\na plot\t0\n")
    data = TextFile(path, tokenizer())
    assert len(data.keys) == 3 and data.load(0).target == 1 and data.load(2).target == 0
    with pytest.raises(UnreadableExampleError) as caught:
        data.load(1)
    assert UNREADABLE[line] in str(caught.value)


def test_labels_may_be_names():
    """Of the categories, in any case; an index beyond them is no class."""
    names = ["bad", "Good"]
    assert [examples(["a film"], [label], categories=names).load(0).target for label in ("good", "Bad", 1)] == [1, 0, 1]
    with pytest.raises(UnreadableExampleError, match="label 2 is no class; wanted an index from 0 or one of bad, Good"):
        examples(["a film"], [2], categories=names).load(0)


def test_the_fingerprint_tells_data_apart(tmp_path):
    """Equal for equal data; another text, label, limit, length or baseline gives another one."""
    path = write(tmp_path / "a.tsv", lines())
    one = TextFile(path, tokenizer()).fingerprint
    assert one == TextFile(path, tokenizer()).fingerprint
    others = [
        TextFile(path, tokenizer(), **options).fingerprint
        for options in ({"limit": 2}, {"max_length": 8}, {"baseline_token": "[PAD]"}, {"categories": ["a", "b", "c"]})
    ]
    write(path, lines(labels=[1, 0, 2, 1]))
    others.append(TextFile(path, tokenizer()).fingerprint)
    assert all(other != one for other in others)


def test_two_files_join(tmp_path):
    """One after the other, under keys of their own."""
    write(tmp_path / "a.tsv", lines())
    data = TextFile(tmp_path / "a.tsv", tokenizer())
    both = JoinedExamples(data, data)
    assert both.keys[4] == "2/a.tsv:1" and both.load(4).key == "2/a.tsv:1"
    same(both.load(5), data.load(1))


def test_mistakes_are_named(tmp_path):
    """Each with what was found."""
    write(tmp_path / "a.tsv", lines())
    (tmp_path / "empty.tsv").write_text("\n\n")
    mistakes = [
        (InvalidTypeError, "dataset holds texts; pass TextExamples", lambda: as_examples((TEXTS, LABELS))),
        (InvalidTypeError, "tokenizer is a str", lambda: TextExamples(["a"], [0], "bert")),
        (InvalidTypeError, "texts is a str", lambda: TextExamples("abc", [0, 0, 0], tokenizer())),
        (MismatchedArgumentsError, "2 labels do not fit 1 texts", lambda: examples(["a"], [0, 1])),
        (InvalidArgumentError, "0 texts", lambda: examples([], [])),
        (InvalidArgumentError, "1 different keys", lambda: examples(["a", "b"], [0, 0], keys=["x", "x"])),
        (InvalidArgumentError, "max_length=0", lambda: examples(max_length=0)),
        (InvalidArgumentError, "baseline_token='zebra'", lambda: examples(baseline_token="zebra")),
        (MissingFileError, "There is no file", lambda: TextFile(tmp_path / "b.tsv", tokenizer())),
        (InvalidArgumentError, "has no lines", lambda: TextFile(tmp_path / "empty.tsv", tokenizer())),
        (InvalidArgumentError, "limit=0", lambda: TextFile(tmp_path / "a.tsv", tokenizer(), limit=0)),
        (InvalidTypeError, "header is a str", lambda: TextFile(tmp_path / "a.tsv", tokenizer(), header="yes")),
    ]
    for error, said, call in mistakes:
        with pytest.raises(error, match=said):
            call()
