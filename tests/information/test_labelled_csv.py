import numpy as np
import pytest
import torch

from captum_iba.errors import InvalidArgumentError, InvalidTypeError, MissingFileError
from captum_iba.information.labelled_csv import read_labelled_csv


def written(folder, text):
    path = folder / "table.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_numpy_writes_is_read_back(tmp_path):
    """Numbers and labels of a file equal those that were written."""
    values = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    labels = np.arange(50) % 2
    np.savetxt(tmp_path / "notes.csv", np.column_stack([values, labels]), delimiter=",", fmt=["%.9g"] * 4 + ["%d"])
    table = read_labelled_csv(tmp_path / "notes.csv")
    assert torch.equal(table.inputs, torch.from_numpy(values)) and torch.equal(table.labels, torch.from_numpy(labels))
    assert table.names == ("0", "1", "2", "3") and table.classes == ("0", "1")


def test_a_head_words_as_labels_and_another_column(tmp_path):
    """A head names columns; words are numbered in order; the label may stand first, in another delimiter's file."""
    path = written(tmp_path, '"kind";"width";"height"\nrose;1;2\niris;3;4\nrose;5;6\n')
    table = read_labelled_csv(str(path), label_column=0, delimiter=";")
    assert table.names == ("width", "height") and table.classes == ("iris", "rose")
    assert table.labels.tolist() == [1, 0, 1] and table.inputs.tolist() == [[1, 2], [3, 4], [5, 6]]


def test_numbers_as_labels_are_in_the_order_of_numbers(tmp_path):
    """10 comes after 9."""
    assert read_labelled_csv(written(tmp_path, "1,10\n1,9\n1,-1\n")).classes == ("-1", "9", "10")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,0\n1,0\n", "no table"),
        ("1,2,0\n1,x,0\n", "'x' in row 2 of column 1; wanted a finite number"),
        ("1,2,0\n1,nan,0\n", "'nan' in row 2"),
        ("a,b,c\n", "no row of numbers"),
        ("1\n2\n", "which has 1 columns"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, text, message):
    """With what is wrong and where."""
    with pytest.raises(InvalidArgumentError, match=message):
        read_labelled_csv(written(tmp_path, text))


def test_arguments_that_lead_nowhere(tmp_path):
    """A missing file, an empty one, a column that there is not, and no path."""
    with pytest.raises(MissingFileError, match="There is no file"):
        read_labelled_csv(tmp_path / "other.csv")
    with pytest.raises(InvalidArgumentError, match="is empty"):
        read_labelled_csv(written(tmp_path, ""))
    with pytest.raises(InvalidArgumentError, match="label_column=3"):
        read_labelled_csv(written(tmp_path, "1,2,0\n"), label_column=3)
    with pytest.raises(InvalidTypeError, match="path is a int"):
        read_labelled_csv(3)
