import builtins
from dataclasses import replace

import numpy as np
import pytest

from captum_iba.comparison._types import ExampleInfo, MethodInfo, MetricInfo, Results
from captum_iba.comparison.tables import scores_dataframe, to_dataframe, to_markdown, to_text
from captum_iba.errors import MissingDependencyError

NAN = float("nan")


@pytest.fixture
def results():
    """Two methods and one that could not run, three examples; means and errors are computed by hand below."""
    return Results(
        methods=[
            MethodInfo("IBA", "", "bits per pixel", seconds=0.5, peak_memory=1234.6),
            MethodInfo("A|B", "", "relevance, no unit", "no <hooks>\nhere"),
            MethodInfo("LRP", "", "relevance, no unit", n_failed=1, failure="no [1, 1]", seconds=0.0123),
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
    """Means, errors, ranks, smaller numbers of examples and the best in bold, as computed by hand; notes beneath."""
    assert to_markdown(results).splitlines() == [
        "| method | up ↑ | down ↓ | size | seconds an image ↓ | peak memory, MB ↓ |",
        "| :-- | --: | --: | --: | --: | --: |",
        # 1 / sqrt(3) = 0.577
        "| IBA | **2.00 ± 0.58 (1)** | 4.000 ± 0 (2) | 1.000 ± – | 0.500 | 1235 |",
        # sqrt(0.02) / sqrt(2) = 0.1; sqrt(0.5) / sqrt(2) = 0.5
        "| LRP | 0.20 ± 0.10 (2), n=2 | **1.50 ± 0.50 (1), n=2** | – | 0.0123 | – |",
        "| A\\|B | – | – | – | – | – |",
        "",
        "Mean ± standard error (rank, 1 the best) over 3 examples; n: where a value, and so its rank, rests on fewer.",
        "",
        "- A\\|B could not run: no &lt;hooks> here",
        "- LRP failed on 1 of 3 examples: no \\[1, 1\\]",
        "- size: no example has a value for LRP",
        "- size: over 1 of 3 examples",
        "- peak memory was not measured for LRP",
        "",
        "Best mean of each metric; not told apart from it: a paired difference within two standard errors:",
        "",
        # on the two examples of both: 0.9 and 1.7, 1.3 ± 0.4; 3 and 2, 2.5 ± 0.5
        "- up: IBA, ahead of LRP by more than two standard errors",
        "- down: LRP (n=2), ahead of IBA by more than two standard errors",
    ]


def test_text_says_what_markdown_says(results):
    """Plain text has the same cells and notes, without an escape."""
    results = replace(results, skipped={"x.jpg": "broken"})
    text = to_text(results)
    plain = to_markdown(results).replace("&lt;", "<").replace("\\", "").replace("**", "")
    assert "\\" not in text and "&lt;" not in text and "**" not in text
    for line in plain.splitlines():
        cells = line.strip("|- ").split(" | ")
        assert line.startswith("| :--") or "A|B" in line or all(cell.strip() in text for cell in cells)
    table = text.split("\n\n")[0].splitlines()
    assert [line.split("  ")[0].strip() for line in table[2:]] == ["IBA", "LRP", "A|B"]


@pytest.mark.parametrize("n_metrics", [1, 9, 30])
def test_text_is_aligned_and_fits_a_terminal(n_metrics):
    """Each block of metrics has lines of one length, at most 150, and begins with the methods."""
    metrics = [MetricInfo(f"degradation {number}x{number}", "") for number in range(n_metrics)]
    methods = [MethodInfo(name, "", "") for name in ("LayerIBA", "PatternAttribution")]
    scores = {info.name: {m.name: np.array([0.1, 0.2]) for m in metrics} for info in methods}
    examples = [ExampleInfo(key, "cat", "dog", 0.25) for key in "ab"]
    blocks = to_text(Results(methods, metrics, examples, scores, {}, {})).split("\n\nMean")[0].split("\n\n")
    for block in blocks:
        (length,) = {len(line) for line in block.splitlines()}
        assert length <= 150
        assert [line.split()[0].strip("-") for line in block.splitlines()] == ["method", "", *scores]
    assert sum(block.count("degradation") for block in blocks) == n_metrics


def test_text_cannot_steer_a_terminal(results):
    """Control characters and bytes that are no text are replaced."""
    text = to_text(replace(results, skipped={"\x1b[2J\udcff.jpg": "broken\nhere"}))
    assert "?[2J?.jpg: broken here" in text
    text.encode()


def _notes(text):
    return [line.strip("- ") for line in text.splitlines()]


@pytest.mark.parametrize("render", [to_markdown, to_text])
def test_left_out_examples_are_listed(results, render):
    """Ten of them with their reasons, and the number of the others."""
    few = render(replace(results, skipped={"x.jpg": "broken", "y.jpg": "too small"}))
    assert "Left out 2 of 5 examples:" in _notes(few) and "y.jpg: too small" in _notes(few)
    many = _notes(render(replace(results, skipped={f"{i}.jpg": "broken" for i in range(13)})))
    assert [line for line in many if ".jpg" in line] == [f"{i}.jpg: broken" for i in range(10)]
    assert "Left out 13 of 16 examples:" in many and "and 3 more" in many
    assert "Left out" not in render(results)


@pytest.mark.parametrize("render", [to_markdown, to_text])
def test_every_missing_value_has_its_reason(results, render):
    """Undefined metrics, constant maps and a bounding box without boxes are explained; one example is singular."""
    metrics = [MetricInfo("bounding box", ""), MetricInfo("up", "")]
    scores = {info.name: {"bounding box": np.full(1, NAN), "up": np.full(1, NAN)} for info in results.methods}
    methods = [results.methods[0], MethodInfo("LRP", "", "", n_constant=1, seconds=1.0, peak_memory=1.0)]
    undefined = {name: {"up": (1, "flat")} for name in ("IBA", "LRP")}
    lines = _notes(render(Results(methods, metrics, results.examples[:1], scores, {}, {}, undefined=undefined)))
    assert lines[-3:] == [
        "LRP's map is constant on 1 example, where it ranks nothing",
        "bounding box: no example has boxes (or masks)",
        "up is undefined on 1 example for all methods: flat",
    ]
    assert "Mean ± standard error (rank, 1 the best) over 1 example." in lines


def test_bounding_box_counts_examples_with_boxes(results):
    """Only a cell with fewer examples than have boxes carries their number."""
    scores = {"IBA": np.array([0.5, NAN, 0.7]), "LRP": np.array([0.5, NAN, NAN])}
    methods = [MethodInfo(name, "", "") for name in scores]
    own = {name: {"bounding box": values} for name, values in scores.items()}
    text = to_markdown(Results(methods, [MetricInfo("bounding box", "")], results.examples, own, {}, {}))
    assert "| **0.60 ± 0.10 (1)** |" in text and "(2), n=1 |" in text
    assert "bounding box: over 2 of 3 examples; it needs boxes (or masks)" in text


def test_summary_names_a_method_that_is_better_on_common_examples(results):
    """The best mean may rest on easy examples only, where another method is ahead."""
    scores = {"IBA": {"up": np.array([0.90, 0.92, NAN])}, "LRP": {"up": np.array([0.95, 0.96, 0.1])}}
    methods = [MethodInfo(name, "", "") for name in scores]
    text = to_text(Results(methods, [MetricInfo("up", "")], results.examples, scores, {}, {}))
    assert "up: IBA (n=2); better on the examples that both have: LRP" in text


def test_dataframe(results):
    """One row a method in the order asked for, with mean, error, rank and number of examples."""
    frame = to_dataframe(results)
    assert list(frame.index) == ["IBA", "A|B", "LRP"]
    assert frame.shape == (3, 4 * 3 + 5)
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
    assert to_markdown(empty).startswith("| method |") and to_text(empty).startswith("method")


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
