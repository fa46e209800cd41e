"""The tokens of a vision transformer as the grid of patches that they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from captum_iba._numbers import is_integer
from captum_iba.errors import InvalidArgumentError, InvalidTypeError

# A class token and four registers: the most that common vision transformers put before the patches.
_MOST_PREFIX_TOKENS = 5

Grid = tuple[int, int]


class TokenMap(NamedTuple):
    """What :func:`tokens_to_map` makes of tokens.

    Attributes:
        map (Tensor): (N, 1, h, w), of the patches, row by row.
        prefix (Tensor): (N, n_prefix), of the tokens before the patches: class token, distillation token, registers.
    """

    map: Tensor
    prefix: Tensor


def tokens_to_map(
    bits: Tensor,
    grid: Grid | None = None,
    n_prefix: int | None = None,
    image_size: Grid | None = None,
) -> TokenMap:
    """Lay the patches' values out as a map, apart from those of the tokens before them.

    The total is kept: map and prefix together sum to ``bits``. Without ``grid`` the patches are taken to be a square,
    and the tokens before them to be as few as possible, up to 5: none in Swin, the class token in ViT, two tokens in
    DeiT, five with registers. So 5 tokens are a class token and 2 x 2 patches. With ``image_size``, patches may also be
    the squares that tile a rectangular image.

    Args:
        bits (Tensor): (N, T, 1) or (N, T), such as those of :meth:`LayerIBA.attribute`; of (N, T, D), bits per neuron,
            the D are summed. Relevance of any sign will do.
        grid (tuple[int, int], optional): rows and columns of patches. Default: None: found.
        n_prefix (int, optional): number of tokens before the patches. Default: None: found, or what ``grid`` leaves.
        image_size (tuple[int, int], optional): (H, W) of the image. Default: None: square.

    Returns:
        TokenMap: ``map`` (N, 1, h, w) and ``prefix`` (N, n_prefix).

    Raises:
        InvalidTypeError: bits is no tensor.
        InvalidArgumentError: the tokens fit no grid, or not the one passed, or two that are equally likely.

    Examples::

        >>> import torch
        >>> patches, prefix = tokens_to_map(torch.arange(10.0).view(1, 10, 1))
        >>> patches.shape, prefix
        (torch.Size([1, 1, 3, 3]), tensor([[0.]]))
        >>> tokens_to_map(torch.rand(1, 8), grid=(2, 3)).prefix.shape
        torch.Size([1, 2])
    """
    if not isinstance(bits, Tensor):
        raise InvalidTypeError(f"bits is a {type(bits).__name__}; wanted a tensor (N, T, 1) or (N, T).")
    if bits.ndim not in (2, 3) or bits.shape[1] == 0:
        raise InvalidArgumentError(f"bits has shape {list(bits.shape)}; wanted tokens: (N, T, 1), (N, T) or (N, T, D).")
    tokens = bits.sum(dim=2) if bits.ndim == 3 else bits
    rows, columns = _layout(tokens.shape[1], _checked(grid, "grid"), n_prefix, _checked(image_size, "image_size"))
    first = tokens.shape[1] - rows * columns
    return TokenMap(tokens[:, first:].reshape(len(tokens), 1, rows, columns), tokens[:, :first])


def _checked(size: object, name: str) -> Grid | None:
    if size is None:
        return None
    sides = tuple(size) if isinstance(size, Iterable) else ()
    if len(sides) != 2 or not all(is_integer(side, least=1) for side in sides):
        raise InvalidArgumentError(f"{name}={size!r}; wanted two positive integers, rows and columns.")
    return int(sides[0]), int(sides[1])


def _layout(n_tokens: int, grid: Grid | None, n_prefix: int | None, image_size: Grid | None) -> Grid:
    """Rows and columns of patches."""
    if n_prefix is not None and not (is_integer(n_prefix, least=0) and n_prefix < n_tokens):
        raise InvalidArgumentError(
            f"n_prefix={n_prefix!r}; wanted an integer from 0 to {n_tokens - 1}, as there are {n_tokens} tokens."
        )
    if grid is None:
        return _found(n_tokens, n_prefix, image_size)
    left = n_tokens - _area(grid)
    if left < 0 or n_prefix not in (None, left):
        before = "" if n_prefix is None else f", with {n_prefix} tokens before them"
        raise InvalidArgumentError(
            f"grid={grid} has {_area(grid)} patches{before}, but there are {n_tokens} tokens. Pass the rows and "
            "columns of this layer's patches: the image's sides divided by the patch's."
        )
    return grid


def _found(n_tokens: int, n_prefix: int | None, image_size: Grid | None) -> Grid:
    """The grid that fits with the fewest tokens before it."""
    choices = range(_MOST_PREFIX_TOKENS + 1) if n_prefix is None else [n_prefix]
    squares = _first_fit(n_tokens, choices, {(side, side) for side in range(2, int(n_tokens**0.5) + 1)})
    is_rectangle = image_size is not None and image_size[0] != image_size[1]
    tilings = _first_fit(n_tokens, choices, _tilings(image_size)) if image_size and is_rectangle else set()
    # a square with fewer tokens before it may be that of a model that resizes rectangular images to squares
    is_clear = tilings and max(map(_area, squares), default=0) <= max(map(_area, tilings))
    found = tilings if is_clear else squares | tilings
    if len(found) == 1:
        return found.pop()
    before = f"up to {_MOST_PREFIX_TOKENS} tokens" if n_prefix is None else f"{n_prefix} tokens"
    of_image = f" of an image of {image_size[0]} x {image_size[1]} pixels" if image_size else ""
    fits = " and ".join(f"{rows} x {columns}" for rows, columns in sorted(found))
    raise InvalidArgumentError(
        f"There are {n_tokens} tokens{of_image}. With {before} before the patches, "
        + (f"both {fits} patches fit." if found else "no square of patches fits.")
        + " Pass grid=(rows, columns), or n_prefix, the number of tokens before the patches. Tokens that are no "
        "patches, such as words, have no map."
    )


def _area(grid: Grid) -> int:
    return grid[0] * grid[1]


def _first_fit(n_tokens: int, choices: Iterable[int], grids: set[Grid]) -> set[Grid]:
    """The grids that fit with the fewest tokens before them; none without any."""
    for n_prefix in choices:
        fits = {grid for grid in grids if _area(grid) == n_tokens - n_prefix}
        if fits:
            return fits
    return set()


def _tilings(image_size: Grid) -> set[Grid]:
    """Grids of square patches over an image, whose last row and column may be cut off or padded."""
    height, width = image_size
    sides = range(1, min(height, width) + 1)
    whole = {(height // side, width // side) for side in sides}
    return whole | {(-(-height // side), -(-width // side)) for side in sides}
