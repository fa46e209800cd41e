"""The classical experiment of the information plane: its data, by a rule, its network, and its training."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from captum_iba._numbers import as_path, assert_integer, assert_number
from captum_iba.errors import InvalidArgumentError, MismatchedArgumentsError, MissingFileError

N_INPUTS = 12
HIDDEN = (10, 7, 5, 4, 3)
THRESHOLD = 98.5


def icosahedron() -> Tensor:
    """An icosahedron's vertices on the unit sphere, (12, 3): cyclic permutations of (0, +-1, +-golden ratio)."""
    golden = (1 + 5**0.5) / 2
    corners = [torch.tensor([0.0, a, b * golden], dtype=torch.float64) for a in (1, -1) for b in (1, -1)]
    vertices: Tensor = torch.stack([corner.roll(shift) for shift in range(3) for corner in corners])
    unit: Tensor = vertices / vertices[0].norm()
    return unit


def szt_score(x: Tensor) -> Tensor:
    """The rotation-invariant score of patterns on the icosahedron's vertices.

    It is 23 n - 5 a + s - 8 p, with n the number of active vertices and a, s, p the numbers of pairs of them at cosine
    1/sqrt 5 (neighbours), -1/sqrt 5 and -1 (opposite). The same number is the weighted power spectrum
    sum_l w_l sum_ij x_i x_j P_l(v_i v_j) for l = 0 to 3, w = (0.75, 6.75 - 0.75 sqrt 5, 8.75, 6.75 + 0.75 sqrt 5).

    Args:
        x (Tensor): (n, 12), zeros and ones.

    Returns:
        Tensor: (n,), int64.
    """
    vertices = icosahedron()
    cosines = vertices @ vertices.T
    x = x.double()
    pairs = torch.zeros_like(cosines)
    for cosine, weight in ((5**-0.5, -5), (-(5**-0.5), 1), (-1.0, -8)):
        pairs += weight * ((cosines - cosine).abs() < 1e-9)
    # each pair stands twice in the matrix
    return (23 * x.sum(dim=1) + torch.einsum("ni,ij,nj->n", x, pairs.to(x), x) / 2).round().long()


def szt_dataset() -> tuple[Tensor, Tensor]:
    """All 4096 patterns of 12 bits with the classes of Shwartz-Ziv and Tishby 2017, by a rule.

    Their patterns mark which of 12 points on a sphere are present, and the class depends on them in a way that
    rotations do not change. With the points at the vertices of an icosahedron, ``y = szt_score(x) > 98.5`` gives the
    published classes up to the numbering of the inputs. The classes are without noise: H(Y) = 0.999 bit is I(X;Y).

    Returns:
        tuple[Tensor, Tensor]: x (4096, 12), float32, zeros and ones; y (4096,), int64.

    Examples::

        >>> x, y = szt_dataset()
        >>> x.shape, int(y.sum())
        (torch.Size([4096, 12]), 2118)
    """
    patterns = torch.arange(2**N_INPUTS)[:, None] >> torch.arange(N_INPUTS) & 1
    return patterns.float(), (szt_score(patterns) > THRESHOLD).long()


def read_szt(path: str | os.PathLike[str]) -> tuple[Tensor, Tensor]:
    """Read patterns and classes from a file of your own: 12 binary columns and a label.

    Args:
        path (str or os.PathLike): a CSV file with 13 columns, the last of which is the label, with or without a line of
            headings; or a NumPy archive (.npz) with arrays ``x`` (n, 12) and ``y`` (n,).

    Returns:
        tuple[Tensor, Tensor]: x (n, 12), float32; y (n,), int64.

    Raises:
        MissingFileError: there is no such file.
        InvalidArgumentError: it holds something else.
    """
    file = as_path(path)
    if not file.is_file():
        raise MissingFileError(f"There is no file {file}.")
    x, y = _from_archive(file) if file.suffix == ".npz" else _from_csv(file)
    if x.ndim != 2 or x.shape[1] != N_INPUTS or y.shape != x.shape[:1] or len(x) == 0:
        raise InvalidArgumentError(
            f"{file} holds x of shape {x.shape} and y of shape {y.shape}; wanted (n, {N_INPUTS}) and (n,)."
        )
    for name, values in (("the columns of x", x), ("the labels", y)):
        if not np.isin(values, (0, 1)).all():
            odd = values[~np.isin(values, (0, 1))].tolist()[0]
            raise InvalidArgumentError(f"{file}: {name} hold {odd!r}; wanted zeros and ones.")
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.int64))


def _from_archive(file: Path) -> tuple[Any, Any]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            return np.asarray(archive["x"]), np.asarray(archive["y"]).squeeze()
    except (KeyError, ValueError, OSError) as error:
        raise InvalidArgumentError(f"{file} cannot be read as an archive with arrays x and y: {error}") from error


def _from_csv(file: Path) -> tuple[Any, Any]:
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if lines and not _are_numbers(lines[0].split(",")):
        lines = lines[1:]
    rows = [line.split(",") for line in lines]
    for number, row in enumerate(rows):
        if len(row) != N_INPUTS + 1 or not _are_numbers(row):
            raise InvalidArgumentError(
                f"{file}, row {number + 1} of the data is {','.join(row)[:60]!r}; wanted {N_INPUTS} zeros or ones and "
                "a label, with commas between them."
            )
    table = np.array(rows, dtype=np.float64).reshape(len(rows), N_INPUTS + 1)
    return table[:, :-1], table[:, -1]


def _are_numbers(cells: list[str]) -> bool:
    try:
        return bool([float(cell) for cell in cells])
    except ValueError:
        return False


def tishby_network(
    activation: Literal["tanh", "relu"] = "tanh", hidden: tuple[int, ...] = HIDDEN, seed: int = 0
) -> nn.Sequential:
    """The network of Shwartz-Ziv and Tishby 2017: 12-10-7-5-4-3-2, with logits at the end.

    Weights are normal with deviation 1/sqrt(fan-in), cut at two deviations; biases are 0, as in the authors' code.

    Args:
        activation (str, optional): ``"tanh"`` or ``"relu"``. Default: ``"tanh"``, theirs.
        hidden (tuple[int, ...], optional): units of the hidden layers. Default: (10, 7, 5, 4, 3).
        seed (int, optional): of the weights. Default: 0.

    Returns:
        nn.Sequential: its hidden layers' activations are named ``"hidden1"``, ``"hidden2"``, ...

    Raises:
        InvalidArgumentError: another activation, no layers.

    Examples::

        >>> network = tishby_network("relu")
        >>> [name for name, _ in network.named_children() if name.startswith("hidden")]
        ['hidden1', 'hidden2', 'hidden3', 'hidden4', 'hidden5']
    """
    if activation not in ("tanh", "relu"):
        raise InvalidArgumentError(f'activation={activation!r}; wanted "tanh" or "relu".')
    for units in hidden:
        assert_integer("hidden", units)
    assert_integer("seed", seed, least=0)
    generator = torch.Generator().manual_seed(seed)
    network, sizes = nn.Sequential(), (N_INPUTS, *hidden, 2)
    for number, (fan_in, fan_out) in enumerate(pairwise(sizes), start=1):
        linear = nn.Linear(fan_in, fan_out, device="meta").to_empty(device="cpu")  # its own start would draw
        deviation = fan_in**-0.5
        nn.init.trunc_normal_(linear.weight, 0.0, deviation, -2 * deviation, 2 * deviation, generator=generator)
        nn.init.zeros_(linear.bias)
        network.add_module(f"linear{number}", linear)
        if number <= len(hidden):
            network.add_module(f"hidden{number}", nn.Tanh() if activation == "tanh" else nn.ReLU())
    return network


def train_epochs(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    n_epochs: int = 4000,
    batch_size: int | None = 256,
    learning_rate: float = 4e-4,
    orthonormal: float = 0.0,
    seed: int = 0,
) -> Iterator[int]:
    """Train with Adam on the cross-entropy, and hand over after each epoch.

    Args:
        model (nn.Module): is trained in place.
        x (Tensor): (n, ...), inputs.
        y (Tensor): (n,), int64, classes.
        n_epochs (int, optional): Default: 4000, by when tanh has compressed.
        batch_size (int, optional): rows of a step, shuffled anew each epoch. None is full-batch training. Default: 256.
        learning_rate (float, optional): of Adam. Default: 4e-4, as in the authors' code.
        orthonormal (float, optional): weight of the penalty :func:`orthonormal_penalty`. Default: 0, none.
        seed (int, optional): of the order of rows. Default: 0.

    Yields:
        int: number of epochs done: 0 before training, then 1, 2, ..., n_epochs. Log, or stop, as you like.

    Raises:
        InvalidArgumentError: an argument that cannot be used.
        MismatchedArgumentsError: x and y differ in length.

    Examples::

        >>> x, y = szt_dataset()
        >>> [epoch for epoch in train_epochs(tishby_network(), x, y, n_epochs=2)]
        [0, 1, 2]
    """
    assert_integer("n_epochs", n_epochs, least=0)
    size = len(x) if batch_size is None else batch_size
    assert_integer("batch_size", size)
    assert_number("learning_rate", learning_rate, lambda value: value > 0, "above 0")
    assert_number("orthonormal", orthonormal, lambda value: value >= 0, "of at least 0")
    if len(x) != len(y):
        raise MismatchedArgumentsError(f"x has {len(x)} rows and y has {len(y)}; wanted as many.")
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), learning_rate, fused=True)
    yield 0
    for epoch in range(1, n_epochs + 1):
        order = torch.arange(len(x)) if size >= len(x) else torch.randperm(len(x), generator=generator)
        order = order.to(x.device)
        for start in range(0, len(x), size):
            rows = order[start : start + size]
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            if orthonormal > 0:
                loss = loss + orthonormal * orthonormal_penalty(model)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        yield epoch


def orthonormal_penalty(model: nn.Module) -> Tensor:
    """Squared distance of the linear layers' weights from orthonormal rows (or columns, where these are fewer), summed.

    It keeps singular values near 1, so that tanh units are not driven into saturation. Goldfeld et al. 2019 find that
    this keeps the representation from clustering.

    Args:
        model (nn.Module): with linear layers.

    Returns:
        Tensor: 0-dimensional, differentiable.
    """
    total = torch.zeros(())
    for module in model.modules():
        if isinstance(module, nn.Linear):
            weight = module.weight if module.out_features <= module.in_features else module.weight.T
            total = total.to(weight) + (weight @ weight.T - torch.eye(len(weight)).to(weight)).square().sum()
    return total
