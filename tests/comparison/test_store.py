"""Laws of the store: what goes in comes out, other configurations and other files are refused, nothing is lost."""

import functools
import os
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

import captum_iba
from captum_iba.comparison import ExampleInfo, HeatMap, Method, compare
from captum_iba.comparison.store import ExampleRecord, MethodRecord, Store
from captum_iba.errors import CaptumIBAError, InvalidArgumentError, MissingFileError, StoreError
from tests.comparison.comparison_cases import assert_same_record, toy_cnn, toy_images, toy_options

NAN = float("nan")
CONFIGURATION = {
    "seed": 0,
    "methods": ["A: first", "B: second"],
    "data": {"class": "Images", "shape": [2, 3], "inner": {"n": 5}},
    "layer": None,
}


def record(key, value=0.5):
    """A record with all that may occur: numbers, none, lists with holes, a map, a failure."""
    levels = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    metrics = {
        "m": {"score": value, "x": [0, 0.1 + 0.2, 1.0], "holes": [None, 1e-300, -1 / 3]},
        "u": {"undefined": "é"},
    }
    return ExampleRecord(
        ExampleInfo(key, "cat", "dog ø", 1 / 3, b"\xff\xd8\x00photo", np.array([[0.5, 1, 2, 3], [4, 5, 6, 7.25]])),
        "",
        {
            "A": MethodRecord("", 0.1, 12.5, metrics, HeatMap(levels, -0.1, 1e-30)),
            "B": MethodRecord("why 'not'; DROP TABLE", None, None, {}, None),
        },
    )


BARE = ExampleRecord(ExampleInfo("bare", "", "", NAN, b"", None), "torn", {})
NO_BOXES = ExampleRecord(
    ExampleInfo("none", "1", "2", 0.0, b"", np.zeros((0, 4))), "", {"A": MethodRecord("", 0.0, 0.0, {})}
)


@pytest.mark.parametrize("in_memory", [True, False])
def test_what_goes_in_comes_out(tmp_path, in_memory):
    """Photos, boxes, maps, numbers to their last bit, NaN and what is missing."""
    path = None if in_memory else tmp_path / "results.db"
    wanted = {r.info.key: r for r in (record("a/b.jpg"), BARE, NO_BOXES)}
    with Store(path, CONFIGURATION) as store:
        for r in wanted.values():
            store.add(r)
        if in_memory:
            found = {r.info.key: r for r in store.read()}
    if not in_memory:
        with Store(path, CONFIGURATION) as store:
            assert store.keys() == wanted.keys()
            found = {r.info.key: r for r in store.read()}
    assert found.keys() == wanted.keys()
    for key, r in wanted.items():
        assert_same_record(found[key], r)


def test_an_example_that_comes_again_replaces_itself(tmp_path):
    """There are no doubled rows, and the last value counts."""
    with Store(tmp_path / "results.db", CONFIGURATION) as store:
        for value in (0.25, 0.75):
            store.add(record("a", value))
        (found,) = store.read()
        assert_same_record(found, record("a", 0.75))
        assert store._connection.execute("SELECT count(*) FROM results").fetchone() == (2,)


def test_half_a_record_is_none(tmp_path):
    """An example whose results fail to be written leaves nothing behind."""
    broken = ExampleRecord(record("a").info, "", {"A": MethodRecord("", metrics={"m": {"score": NAN}})})
    with Store(tmp_path / "results.db", CONFIGURATION) as store:
        with pytest.raises(ValueError, match="not JSON compliant"):
            store.add(broken)
        assert store.keys() == set() and list(store.read()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"layer": "conv"}, 'layer was null, is "conv"'),
        ({"methods": ["A: first", "C: third"]}, r'methods had "B: second"; methods has "C: third" now'),
        ({"methods": ["B: second", "A: first"]}, "methods had another order"),
        ({"data": {"class": "Images", "shape": [2, 3], "inner": {"n": 6}}}, r"data\.inner\.n was 5, is 6"),
        ({"more": 1}, "more was null, is 1"),
    ],
)
def test_another_configuration_is_refused_and_the_difference_named(tmp_path, change, said):
    """The message has what differs and nothing else, and the file goes on to serve its own configuration."""
    path = tmp_path / "results.db"
    with Store(path, CONFIGURATION) as store:
        store.add(record("a"))
    before = path.read_bytes()
    with pytest.raises(InvalidArgumentError, match=rf"another configuration: {said}\. Use the old") as caught:
        Store(path, CONFIGURATION | change)
    assert isinstance(caught.value, CaptumIBAError) and path.read_bytes() == before
    with Store(path, CONFIGURATION) as store:
        assert store.keys() == {"a"}


def test_other_files_are_refused_and_stay_as_they_are(tmp_path):
    """Text, a database of something else, a folder, a file in no folder."""
    text, other = tmp_path / "notes.txt", tmp_path / "other.db"
    text.write_text("Dear diary, " * 20)
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE birds (name TEXT)")
        connection.execute("INSERT INTO birds VALUES ('wren')")
    connection.close()
    for path, said in ((text, "not a database"), (other, "something else, with tables birds")):
        before = path.read_bytes()
        with pytest.raises(InvalidArgumentError, match=f"cannot be used: .*{said}.* Pass another file"):
            Store(path, CONFIGURATION)
        assert path.read_bytes() == before
    with pytest.raises(InvalidArgumentError, match="cannot be used: unable to open"):
        Store(tmp_path, CONFIGURATION)
    with pytest.raises(MissingFileError, match="does not exist; create it first"):
        Store(tmp_path / "nowhere" / "results.db", CONFIGURATION)
    assert sorted(os.listdir(tmp_path)) == ["notes.txt", "other.db"]


def test_writers_at_the_same_time_lose_nothing(tmp_path):
    """Several connections make the file together and write to it in turn; every row is there once."""
    path, failures, start = tmp_path / "results.db", [], threading.Barrier(4)

    def write(number):
        try:
            start.wait()
            with Store(path, CONFIGURATION) as store:
                for i in range(15):
                    store.add(record(f"{number}-{i}"))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with Store(path, CONFIGURATION) as store:
        assert not failures and store.keys() == {f"{n}-{i}" for n in range(4) for i in range(15)}
        assert store._connection.execute("SELECT count(*) FROM results").fetchone() == (120,)


def bright(x, _y):
    return x


def dark(x, _y):
    return -x


class Thing:
    """A value whose repr has its place in memory."""


def run(path, model=None, images=None, methods=None, **options):
    methods = methods or {"bright": bright}
    given = toy_options(store=path, layer="0") | options
    images = toy_images(2) if images is None else images
    return compare(model or toy_cnn(), (images, [0, 1]), methods, ["degradation 8x8"], **given)


def with_default(x, _y, _power=1):
    return x


def changed_weights():
    model = toy_cnn()
    model[0].bias.data[0] += 1e-6
    return model


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_steps": 2}, r"metrics had .*n_steps=3.* has .*n_steps=2"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"n_pictures": 1}, "n_pictures was 40, is 1"),
        ({"methods": {"bright": bright, "dark": dark}}, 'methods has "dark: '),
        ({"model": changed_weights()}, "weights was"),
        ({"images": toy_images(2) + 1e-6}, r"data\.digest was"),
        ({"categories": ["a", "b", "c"]}, "categories was null"),
        ({"layer": "3"}, 'layer was "0", is "3"'),
        ({"gradcam_layer": "0"}, "gradcam_layer was"),
        ({"methods": {"bright": functools.partial(bright)}}, r"methods had .*; methods has"),
        ({"methods": {"bright": with_default}}, r"methods had .*; methods has"),
        ({"methods": {"bright": dark}}, r'methods had "bright:  \[\w+\]"; methods has "bright:'),
        ({"method_options": {"bright": {"power": 2}}}, r"method_options\.bright was null"),
    ],
)
def test_a_comparison_with_other_arguments_does_not_go_on(tmp_path, change, said):
    """What the results depend on must be as it was."""
    run(tmp_path / "results.db")
    with pytest.raises(InvalidArgumentError, match=said):
        run(tmp_path / "results.db", **change)


@pytest.mark.parametrize("methods", [["LayerIBA"], ["PatternAttribution"]])
def test_other_calibration_data_do_not_go_on(tmp_path, methods):
    """Statistics and patterns come from the calibration data, statistics that are given notwithstanding."""
    run(tmp_path / "results.db", methods=methods)
    for changed in (toy_images(21, seed=1), toy_images(20, seed=1).flip(2)):
        with pytest.raises(InvalidArgumentError, match='calibration was "20 images'):
            run(tmp_path / "results.db", methods=methods, calibration=[changed])


def test_other_items_of_a_data_set_do_not_go_on(tmp_path):
    """Two data sets of one class and length are told apart by what they hold."""
    items = [(image, 0) for image in toy_images(6)]
    options = toy_options(store=tmp_path / "results.db", layer="0")
    compare(toy_cnn(), Listed(items[:3]), {"bright": bright}, ["degradation 8x8"], **options)
    with pytest.raises(InvalidArgumentError, match=r"data\.digest was"):
        compare(toy_cnn(), Listed(items[3:]), {"bright": bright}, ["degradation 8x8"], **options)


def test_a_store_without_results_takes_new_arguments(tmp_path):
    """A run that was wrong from the start leaves nothing that stands in the way of the right one."""
    with pytest.raises(InvalidArgumentError, match="target"):
        compare(toy_cnn(), (toy_images(1), [9]), {"bright": bright}, ["deletion"], **toy_options(store=tmp_path / "a"))
    found = compare(
        toy_cnn(), (toy_images(1), [2]), {"bright": bright}, ["deletion"], **toy_options(store=tmp_path / "a")
    )
    assert len(found.results.examples) == 1


def test_code_is_told_apart_in_every_process():
    """A set among the constants of a function has another order in each process, and the same description."""
    code = (
        "from captum_iba.comparison._configuration import _function\n"
        "def f(x, y): return x if y in {'alpha', 'beta', 'gamma'} else y\n"
        "print(_function(f))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1 and "gamma" in found.pop()


class Listed(torch.utils.data.Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def test_a_disk_that_is_full_is_named(tmp_path):
    """What cannot be written is an error of ours, and what was written before is kept."""
    store = Store(tmp_path / "results.db", {"a": 1})
    store.add(ExampleRecord(ExampleInfo("one", "0", "0", 0.5), "", {}))
    store._connection.execute("PRAGMA max_page_count = 1")
    with pytest.raises(StoreError, match="full"):
        store.add(ExampleRecord(ExampleInfo("two", "0", "0", 0.5, photo=bytes(10**6)), "", {}))
    assert store.keys() == {"one"}


def test_another_version_does_not_go_on(tmp_path, monkeypatch):
    """Results of two versions are not mixed."""
    run(tmp_path / "results.db")
    monkeypatch.setattr(captum_iba, "__version__", "0.0.0")
    with pytest.raises(InvalidArgumentError, match=r'versions\.captum_iba was .*, is "0\.0\.0"'):
        run(tmp_path / "results.db")


def test_what_the_results_do_not_depend_on_may_change(tmp_path):
    """Rows at once, the order and the batches of the calibration data, an object's place in memory."""

    def method(x, _y):
        return calls.append(1) or x

    calls, power = [], Method("own", lambda context: context.options_of("own") and method)
    first = run(tmp_path / "results.db", methods=[power], method_options={"own": {"thing": Thing()}})
    data = toy_images(20, seed=1)
    other = {"calibration": iter(torch.split(data.flip(0), 3)), "max_examples_per_batch": 2}
    again = run(tmp_path / "results.db", methods=[power], method_options={"own": {"thing": Thing()}}, **other)
    assert len(calls) == 2 and again.mean("own", "degradation 8x8") == first.mean("own", "degradation 8x8")


def test_a_file_with_other_columns_is_refused(tmp_path):
    """One of another version is not filled half; nothing is written to it."""
    path = tmp_path / "old.db"
    Store(path, {"a": 1}).__exit__()
    connection = sqlite3.connect(path)
    connection.execute("ALTER TABLE examples DROP COLUMN tokens")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(InvalidArgumentError, match="another version of captum_iba, with other columns"):
        Store(path, {"a": 1})
    assert path.read_bytes() == before
