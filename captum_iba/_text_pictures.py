"""Text coloured by bits, as a figure and as a page of its own."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from captum_iba.attr.layer_information import LayerInformation
from captum_iba.errors import InvalidArgumentError

# perceptually uniform, and told apart by the colour-blind and in print
_COLORMAP = "viridis"
_CELL_INCHES = 0.42
_CONTINUES = "##"
_SPACES = ("Ġ", "▁")

_STYLE = """
:root { color-scheme: light dark; --mark: 30 110 210; --ink: #16181d; --paper: #fff; --faint: #666 }
@media (prefers-color-scheme: dark) {
  :root { --mark: 90 160 250; --ink: #eceef2; --paper: #15171b; --faint: #a0a4ad }
}
body { font: 16px/1.9 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 72rem;
       margin: 1.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .4rem; }
.row { display: grid; grid-template-columns: minmax(8rem, 15rem) 1fr; gap: .2rem 1rem; padding: .35rem 0;
       border-top: 1px solid color-mix(in srgb, var(--faint) 35%, transparent); }
.name { font-size: .8rem; line-height: 1.35; color: var(--faint); overflow-wrap: anywhere; }
.name b { color: var(--ink); display: block; }
.text { overflow-wrap: anywhere; }
.text span { border-radius: .2em; padding: .15em 0; background: rgb(var(--mark) / calc(var(--share) * .55)); }
.note { color: var(--faint); font-size: .9rem; line-height: 1.5; }
@media (max-width: 40rem) { .row { grid-template-columns: 1fr; } }
@media print { .text span { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


def plot_layers(information: LayerInformation, index: int = 0) -> Figure:
    """One sentence's bits as layers x tokens, with a colour bar in bits.

    Args:
        information (LayerInformation): from :func:`captum_iba.information_by_layer`.
        index (int, optional): of the sentence. Default: 0.

    Returns:
        matplotlib.figure.Figure: drawn without pyplot; ``figure.savefig(path)`` writes it.

    Raises:
        InvalidArgumentError: there is no such sentence.

    Examples::

        >>> import torch
        >>> bits = torch.rand(2, 1, 3)
        >>> found = LayerInformation(("0", "1"), bits, torch.ones(1, 3) > 0, None, [["good", "movie", "."]])
        >>> [axis.get_ylabel() for axis in plot_layers(found).axes]
        ['layer', 'bits per token']
    """
    bits, tokens = information.of_example(index), information.tokens[index]
    return token_heat_map(bits, tokens, information.layers, "layer", "bits per token")


def token_heat_map(bits: Tensor, tokens: Sequence[str], rows: Sequence[str], row_label: str, unit: str) -> Figure:
    """Rows x tokens in colours, from zero.

    Args:
        bits (Tensor): (rows, tokens), not negative.
        tokens (Sequence[str]): under the columns.
        rows (Sequence[str]): names of the rows; what all begin with is left out.
        row_label (str): what the rows are.
        unit (str): of the colour bar.
    """
    n_rows, n_tokens = bits.shape
    longest = max(map(len, tokens))
    figure = Figure(
        figsize=(2.6 + _CELL_INCHES * n_tokens, 0.9 + 0.11 * longest + _CELL_INCHES * n_rows), layout="constrained"
    )
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    image: Any = axis.imshow(bits.detach().double().cpu().numpy(), cmap=_COLORMAP, vmin=0.0, aspect="auto")
    axis.set_xticks(
        range(n_tokens), tokens, rotation=60, ha="right", rotation_mode="anchor", fontsize=8, parse_math=False
    )
    axis.set_yticks(range(n_rows), _short(rows), fontsize=8, parse_math=False)
    axis.set_ylabel(row_label)
    figure.colorbar(image, ax=axis, pad=0.02).set_label(unit)
    return figure


def layers_to_html(information: LayerInformation, title: str = "Information by layer") -> str:
    """A page of its own: each sentence once for each layer, its tokens coloured by their bits.

    Each line has a scale of its own, from zero to the bits of its darkest token, which stands beside it, because the
    totals of layers differ by far. Nothing is loaded from elsewhere.

    Args:
        information (LayerInformation): from :func:`captum_iba.information_by_layer`.
        title (str, optional): heading of the page.

    Returns:
        str: HTML; write it with ``Path("layers.html").write_text(page, encoding="utf-8")``.

    Examples::

        >>> import torch
        >>> bits = torch.tensor([[[1.0, 4.0]]])
        >>> found = LayerInformation(("0",), bits, torch.ones(1, 2) > 0, None, [["good", "<movie>"]])
        >>> page = layers_to_html(found)
        >>> "&lt;movie&gt;" in page and "4.00 bits" in page
        True
    """
    examples = "".join(_example(information, index) for index in range(len(information.tokens)))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
        '<p class="note">The darker a token, the more bits of it the decision needs at that layer. Each line has its '
        "own scale; the bits of its darkest token stand beside it.</p>"
        f"{examples}</body></html>"
    )


def _example(information: LayerInformation, index: int) -> str:
    bits, tokens = information.of_example(index), information.tokens[index]
    probability = information.target_probability
    lines = []
    for layer, name in enumerate(information.layers):
        through = "" if probability is None else f"<br>p(target) = {float(probability[layer, index]):.2f}"
        lines.append(
            f'<div class="row"><div class="name"><b>{html.escape(name)}</b>{float(bits[layer].sum()):.1f} bits, '
            f"at most {float(bits[layer].max()):.1f} a token{through}</div>"
            f'<div class="text">{coloured_tokens(tokens, bits[layer], "bits")}</div></div>'
        )
    return f"<h2>Sentence {index + 1}</h2>{''.join(lines)}"


def coloured_tokens(tokens: Sequence[str], values: Tensor, unit: str) -> str:
    """Tokens as HTML, joined to words; the share of the largest value is the CSS variable ``--share``.

    Args:
        tokens (Sequence[str]): of one sentence.
        values (Tensor): (T,), not negative.
        unit (str): of the values, shown when pointed at.

    Raises:
        InvalidArgumentError: another number of values than of tokens.
    """
    numbers = values.detach().double().cpu().flatten().tolist()
    if len(numbers) != len(tokens):
        raise InvalidArgumentError(f"There are {len(numbers)} values for {len(tokens)} tokens; wanted as many.")
    high = max(numbers, default=0.0) or 1.0  # a line of zeros stays white
    spans = []
    for place, (token, value) in enumerate(zip(tokens, numbers, strict=True)):
        space, text = _spaced(token, place)
        spans.append(
            f'{space}<span style="--share:{value / high:.3f}" title="{html.escape(token)}: {value:.2f} {unit}">'
            f"{html.escape(text)}</span>"
        )
    return "".join(spans)


def _spaced(token: str, place: int) -> tuple[str, str]:
    """What stands before a token, and the token without the marks that tokenizers put on pieces of words."""
    if token.startswith(_CONTINUES) and len(token) > len(_CONTINUES):
        return "", token[len(_CONTINUES) :]
    if token.startswith(_SPACES):
        return " ", token[1:] or "\N{OPEN BOX}"
    return ("" if place == 0 else " "), token


def _short(names: Sequence[str]) -> list[str]:
    """Names without the beginning that all have in common."""
    parts = [name.split(".") for name in names]
    shared = 0
    while len(parts) > 1 and all(len(own) > shared + 1 and own[shared] == parts[0][shared] for own in parts):
        shared += 1
    return [".".join(own[shared:]) for own in parts]
