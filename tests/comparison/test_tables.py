import builtins

import numpy as np
import pytest

from captum_iba.comparison._types import ExampleInfo, MethodInfo, MetricInfo, Results
from captum_iba.comparison.tables import scores_dataframe, to_dataframe, to_markdown
from captum_iba.errors import MissingDependencyError

NAN = float("nan")


@pytest.fixture
def results():
    """Two methods and one that could not run, three examples; means and errors are computed by hand below."""
    return Results(
        methods=[
            MethodInfo("IBA", "", "bits per pixel", "", 0, 0.5, 1234.6),
            MethodInfo("A|B", "", "relevance, no unit", "no <hooks>\nhere"),
            MethodInfo("LRP", "", "relevance, no unit", "", 1, 0.0123, NAN),
        ],
        metrics=[MetricInfo("up", "", True), MetricInfo("down", "", False), MetricInfo("size", "", None)],
        examples=[ExampleInfo(key, "cat", "dog", 0.25) for key in "abc"],
        scores={
            "IBA": {
                "up": np.array([1.0, 2.0, 3.0]),
                "down": np.array([4.0, 4.0, 4.0]),
                "size": np.array([1.0, NAN, NAN]),
            },
            "A|B": {name: np.full(3, NAN) for name in ("up", "down", "size")},
            "LRP": {"up": np.array([0.1, 0.3, NAN]), "down": np.array([1.0, 2.0, NAN]), "size": np.full(3, NAN)},
        },
        curves={},
        maps={},
    )


def test_markdown_by_hand(results):
    """Means, errors, ranks and the best in bold, as computed by hand; failures beneath."""
    assert to_markdown(results) == "\n".join(
        [
            "| method | up ↑ | down ↓ | size | seconds an image ↓ | peak memory, MB ↓ |",
            "| :-- | --: | --: | --: | --: | --: |",
            # 1 / sqrt(3) = 0.577
            "| IBA | **2.00 ± 0.58 (1)** | 4.000 ± 0 (2) | 1.000 ± – | 0.500 | 1235 |",
            # sqrt(0.02) / sqrt(2) = 0.1; sqrt(0.5) / sqrt(2) = 0.5
            "| LRP | 0.20 ± 0.10 (2) | **1.50 ± 0.50 (1)** | – | 0.0123 | – |",
            "| A\\|B | – | – | – | – | – |",
            "",
            "Mean ± standard error (rank) over 3 examples.",
            "",
            "- LRP failed on 1 of them",
            "- A\\|B could not run: no &lt;hooks> here",
        ]
    )


def test_dataframe(results):
    """One row a method in the order asked for, with mean, error, rank and number of examples."""
    frame = to_dataframe(results)
    assert list(frame.index) == ["IBA", "A|B", "LRP"]
    assert frame.shape == (3, 4 * 3 + 4)
    assert frame.loc["IBA", "up"].tolist() == [2.0, pytest.approx(3**-0.5), 1.0, 3]
    assert frame.loc["LRP", "down"].tolist() == [1.5, pytest.approx(0.5), 1.0, 2]
    assert frame.loc["A|B", ("up", "n")] == 0 and np.isnan(frame.loc["A|B", ("up", "mean")])
    assert frame["reason"].tolist() == ["", "no <hooks>\nhere", ""]
    assert frame[("seconds", "")].tolist()[0] == 0.5 and frame[("peak memory", "")].tolist()[0] == 1234.6
    assert frame[("failed examples", "")].tolist() == [0, 0, 1]


def test_scores_dataframe(results):
    """One row for each example and method, methods that could not run among them."""
    frame = scores_dataframe(results)
    assert frame.shape == (9, 5 + 3)
    assert frame[frame.method == "LRP"]["up"].tolist()[:2] == [0.1, 0.3]
    assert frame[frame.method == "A|B"]["up"].isna().all()
    assert frame.iloc[0][["example", "target", "predicted", "probability"]].tolist() == ["a", "cat", "dog", 0.25]
    means = frame.groupby("method")["up"].mean()
    assert means["IBA"] == results.mean("IBA", "up")


def test_no_methods():
    """A comparison without methods has tables without rows."""
    empty = Results([], [], [], {}, {}, {})
    assert len(to_dataframe(empty)) == len(scores_dataframe(empty)) == 0
    assert to_markdown(empty).startswith("| method |")


@pytest.mark.parametrize("function", [to_dataframe, scores_dataframe])
def test_missing_pandas(monkeypatch, results, function):
    """Without pandas the message says what to install."""
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "pandas":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"captum_iba\[report\]"):
        function(results)
