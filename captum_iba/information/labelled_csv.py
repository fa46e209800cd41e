"""A table of numbers with a label in each row, from a file."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from captum_iba._numbers import as_path, is_integer
from captum_iba.errors import InvalidArgumentError, MissingFileError


class LabelledTable(NamedTuple):
    """Rows of numbers with labels.

    Attributes:
        inputs (Tensor): (n, columns), float32.
        labels (Tensor): (n,), int64: index of the row's class.
        names (tuple[str, ...]): of the columns; from the file's head, or ``"0"``, ``"1"``, ...
        classes (tuple[str, ...]): of the classes, in order of their index.
    """

    inputs: Tensor
    labels: Tensor
    names: tuple[str, ...]
    classes: tuple[str, ...]


def read_labelled_csv(path: str | PathLike[str], label_column: int = -1, delimiter: str = ",") -> LabelledTable:
    r"""Read numeric columns and one column of labels, such as the banknote data's rows of numbers and a class.

    A first row in which a column beside the label's is no number names the columns. Labels are numbers or words; their
    classes are numbered in ascending order, of numbers if all are.

    Args:
        path (str or os.PathLike): a text file.
        label_column (int, optional): the labels' column. Default: -1, the last.
        delimiter (str, optional): between columns. Default: ``","``.

    Returns:
        LabelledTable: inputs, labels, and the names of both; ``NeuralInformationFlow.fit`` takes the first two.

    Raises:
        MissingFileError: there is no such file.
        InvalidArgumentError: rows of different lengths, something that is no finite number, or no such column.

    Examples::

        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "notes.csv"
        >>> _ = path.write_text("3.5,8.75,0\n-1.25,2.5,1\n")
        >>> table = read_labelled_csv(path)
        >>> table.inputs.tolist(), table.labels.tolist(), table.classes
        ([[3.5, 8.75], [-1.25, 2.5]], [0, 1], ('0', '1'))
    """
    file = as_path(path)
    if not file.is_file():
        raise MissingFileError(f"There is no file {file}.")
    rows = _read(file, delimiter)
    width = rows.shape[1]
    if not isinstance(label_column, int) or not is_integer(label_column, -width) or label_column >= width or width < 2:
        raise InvalidArgumentError(
            f"label_column={label_column!r} in {file}, which has {width} columns; wanted one of them beside another."
        )
    values = np.delete(rows, label_column, axis=1)
    names = tuple(str(place) for place in range(width - 1))
    if not all(map(_is_number, values[0])):
        names, values, rows = tuple(map(str, values[0])), values[1:], rows[1:]
    if not len(values):
        raise InvalidArgumentError(f"{file} holds no row of numbers.")
    labels = rows[:, label_column]
    classes = sorted(set(map(str, labels)), key=float if all(map(_is_number, labels)) else None)
    index = {name: place for place, name in enumerate(classes)}
    return LabelledTable(
        torch.from_numpy(_as_numbers(values, file, names)).float(),
        torch.tensor([index[str(label)] for label in labels]),
        names,
        tuple(classes),
    )


def _read(file: Path, delimiter: str) -> np.ndarray:
    if not file.read_bytes().strip():
        raise InvalidArgumentError(f"{file} is empty.")
    try:
        rows: np.ndarray = np.loadtxt(file, dtype=str, delimiter=delimiter, ndmin=2, comments=None, encoding="utf-8")
    except (ValueError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"{file} is no table with {delimiter!r} between its columns: {error}.") from error
    return np.char.strip(np.char.strip(np.char.strip(rows), '"'))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _as_numbers(values: np.ndarray, file: Path, names: tuple[str, ...]) -> np.ndarray:
    numbers = np.empty(values.shape)
    for row, texts in enumerate(values):
        for column, text in enumerate(texts):
            if not _is_number(text) or not np.isfinite(float(text)):
                raise InvalidArgumentError(
                    f"{file} has {str(text)!r} in row {row + 1} of column {names[column]}; wanted a finite number. "
                    "Leave such rows out."
                )
            numbers[row, column] = float(text)
    return numbers
