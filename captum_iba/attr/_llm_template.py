"""Which tokens of a filled template belong to which of its values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from captum.attr import TextTemplateInput

from captum_iba.errors import InvalidArgumentError, InvalidTypeError

Span = tuple[int, int]

NO_VALUE = -1


def encode_with_offsets(text: str, tokenizer: Any) -> tuple[list[int], list[Span]]:
    """Token ids of a text, and the characters that each stands for.

    Raises:
        InvalidArgumentError: the tokenizer does not tell.
    """
    try:
        encoding = tokenizer(text, return_offsets_mapping=True)
        ids, offsets = list(encoding["input_ids"]), [(int(a), int(b)) for a, b in encoding["offset_mapping"]]
    except (NotImplementedError, TypeError, KeyError, ValueError) as error:
        raise InvalidArgumentError(
            f"{type(tokenizer).__name__} does not say which characters its tokens stand for ({type(error).__name__}: "
            f"{error}), so tokens cannot be counted to the values of a template. Pass a fast tokenizer (a "
            "PreTrainedTokenizerFast), or TextTokenInput."
        ) from error
    if len(ids) != len(offsets):
        raise InvalidArgumentError(
            f"{type(tokenizer).__name__} gives {len(ids)} tokens but the characters of {len(offsets)}. Pass "
            "TextTokenInput."
        )
    return ids, offsets


def value_spans(inp: TextTemplateInput) -> tuple[str, list[list[Span]]]:
    """The filled template, and where each value stands in it; a value may stand in several places, or in none.

    The template is filled once more with marks in place of the values, which works for functions too. That the values
    stand where the marks do is checked by putting them there.

    Raises:
        InvalidTypeError: a value is no text.
        InvalidArgumentError: the template changes its values, or depends on them.
    """
    for index, value in enumerate(inp.values):
        if not isinstance(value, str):
            raise InvalidTypeError(f"values[{index}] is a {type(value).__name__}; wanted a str.")
    text = str(inp.to_model_input())
    unused = next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in text)
    marks = {f"{unused}{index}{unused}": index for index in range(len(inp.values))}
    spans: list[list[Span]] = [[] for _ in inp.values]
    rebuilt = ""
    for piece in re.split("(" + "|".join(marks) + ")", _filled(inp, list(marks))) if marks else []:
        if piece in marks:
            value = inp.values[marks[piece]]
            spans[marks[piece]].append((len(rebuilt), len(rebuilt) + len(value)))
            piece = value
        rebuilt += piece
    if marks and rebuilt != text:
        raise InvalidArgumentError(
            f"The template does not hold its values as they are: it gives {text!r}, and with the values put where they "
            f"stand {rebuilt!r}. Pass the values in their final form, and a template that only puts them in their "
            "places."
        )
    return text, spans


def _filled(inp: TextTemplateInput, values: Sequence[str]) -> str:
    try:
        if inp.dict_keys:
            return str(inp.format_fn(**dict(zip(inp.dict_keys, values, strict=True))))
        return str(inp.format_fn(*values))
    except Exception as error:  # a function of the user's
        raise InvalidArgumentError(
            f"The template cannot be filled with other values ({type(error).__name__}: {error}), so that its values' "
            "places are not known. Pass a template that only puts values in their places."
        ) from error


def owners(offsets: Sequence[Span], spans: Sequence[Sequence[Span]]) -> list[int]:
    """The value that each token belongs to, ``NO_VALUE`` for tokens of the template's own text alone.

    A token with characters of one value belongs to it, however much of the template's own text it holds (tokens often
    begin with the space before a word). Of several values the one with most characters in the token has it, of equal
    ones the first.

    Args:
        offsets (Sequence[tuple[int, int]]): first character of each token, and the one after its last. Tokenizers that
            leave white space out give a token of nothing else no characters; it stands for the one before.
        spans (Sequence[Sequence[tuple[int, int]]]): places of each value.

    Returns:
        list[int]: one entry a token.

    Examples::

        >>> owners([(0, 0), (0, 4), (4, 9), (9, 10)], [[(5, 7)], [(7, 9)]])  # <s> "Take" " abcd" "!"
        [-1, -1, 0, -1]
    """
    value_at = {place: value for value, places in enumerate(spans) for span in places for place in range(*span)}
    found = []
    for start, end in offsets:
        inside = range(start, end) if end > start else range(start - 1, start)
        counts = Counter(value_at[place] for place in inside if place in value_at)
        found.append(counts.most_common(1)[0][0] if counts else NO_VALUE)
    return found
