"""Laws of the cluttered canvases."""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np
import pytest
import torch

from captum_iba.demo import data
from captum_iba.demo.data import Canvases, load_canvases, to_display
from captum_iba.errors import InvalidArgumentError, InvalidTypeError, MissingDependencyError

pytest.importorskip("sklearn")

SPLITS: tuple[data.Split, ...] = ("train", "test")


def same(left: Canvases, right: Canvases) -> bool:
    """Tell whether two draws agree in everything."""
    pairs = [(left.images, right.images), (left.labels, right.labels), (left.boxes, right.boxes)]
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("split", SPLITS)
def test_shapes_and_types(split: data.Split) -> None:
    canvases = load_canvases(split, 5)
    assert len(canvases) == 5
    assert (canvases.images.shape, canvases.images.dtype) == ((5, 1, 64, 64), torch.float32)
    assert (canvases.labels.shape, canvases.labels.dtype) == ((5,), torch.int64)
    assert (canvases.boxes.shape, canvases.boxes.dtype) == ((5, 4), torch.int64)


@pytest.mark.parametrize("split", SPLITS)
def test_same_seed_same_canvases_and_other_seed_others(split: data.Split) -> None:
    first = load_canvases(split, 8, seed=3)
    assert same(first, load_canvases(split, 8, seed=3))
    other = load_canvases(split, 8, seed=4)
    assert all(not torch.equal(one, two) for one in first.images for two in other.images)


def test_splits_draw_differently() -> None:
    assert not torch.equal(load_canvases("train", 4).boxes, load_canvases("test", 4).boxes)


@pytest.mark.parametrize("k", [1, 7])
def test_long_draw_begins_with_the_short_draw(k: int) -> None:
    short, long = load_canvases("test", k, seed=2), load_canvases("test", 12, seed=2)
    assert same(short, Canvases(long.images[:k], long.labels[:k], long.boxes[:k]))


def test_canvases_of_one_draw_differ() -> None:
    images = load_canvases("test", 30).images.flatten(start_dim=1)
    assert len(torch.unique(images, dim=0)) == 30


def test_no_digit_is_used_in_both_splits() -> None:
    used = {split: {row for i in range(300) for row in data._draw_layers(split, 0, i).sources} for split in SPLITS}
    assert len(used["train"]) > 900 and len(used["test"]) > 450
    assert used["train"] <= set(data._split_rows("train")) and used["test"] <= set(data._split_rows("test"))
    assert used["train"].isdisjoint(used["test"])
    assert set(data._split_rows("train")) | set(data._split_rows("test")) == set(range(1797))


def test_no_pixels_are_shared_between_the_splits() -> None:
    digits, _ = data._all_digits()
    train, test = ({digits[row].tobytes() for row in data._split_rows(split)} for split in SPLITS)
    assert train.isdisjoint(test)


def test_fragments_come_from_other_digits() -> None:
    for index in range(100):
        row, *others = data._draw_layers("test", 1, index).sources
        assert 8 <= len(others) <= 12
        assert row not in others


def test_global_random_states_stay_untouched() -> None:
    def numpy_state() -> str:
        with np.printoptions(threshold=sys.maxsize):
            return repr(np.random.get_state(legacy=False))

    before = random.getstate(), numpy_state(), torch.random.get_rng_state()
    data._all_digits.cache_clear()
    load_canvases("train", 3)
    assert random.getstate() == before[0]
    assert numpy_state() == before[1]
    assert torch.equal(torch.random.get_rng_state(), before[2])


def test_global_seeds_have_no_influence() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    first = load_canvases("train", 3)
    torch.manual_seed(2)
    np.random.seed(2)
    assert same(first, load_canvases("train", 3))


@pytest.mark.parametrize("split", SPLITS)
def test_boxes_bound_the_digit_tightly_and_keep_clutter_out(split: data.Split) -> None:
    canvases = load_canvases(split, 150, seed=7)
    for index, box in enumerate(canvases.boxes.tolist()):
        layers = data._draw_layers(split, 7, index)
        rows, columns = np.nonzero(layers.digit)
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        x0, y0, x1, y1 = box
        assert 0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 64
        assert not layers.clutter[y0:y1, x0:x1].any()
        assert layers.clutter.any()


def test_images_are_the_sum_of_their_layers() -> None:
    canvases = load_canvases("test", 10, seed=5)
    for index in range(10):
        layers = data._draw_layers("test", 5, index)
        grey = torch.from_numpy(layers.digit + layers.clutter + layers.noise)
        torch.testing.assert_close(canvases.images[index, 0] * data.GREY_STD + data.GREY_MEAN, grey)
        assert canvases.labels[index] == layers.label == data._all_digits()[1][layers.sources[0]]


def test_digits_have_their_size_and_are_brighter_than_the_noise() -> None:
    for index in range(200):
        layers = data._draw_layers("train", 0, index)
        x0, y0, x1, y1 = layers.box
        # The raster of 8x8 pixels becomes 18 to 26 wide; up to half an enlarged pixel fades out at either end.
        assert 12 <= max(x1 - x0, y1 - y0) <= 30
        assert layers.digit.max() > 0.7
        assert layers.digit[layers.digit > 0].min() >= data._VISIBLE
        assert np.abs(layers.noise).std() < 0.05


def test_all_labels_occur_and_images_are_centred() -> None:
    canvases = load_canvases("train", 400)
    assert canvases.labels.bincount(minlength=10).min() >= 20
    assert abs(canvases.images.mean().item()) < 0.05
    assert abs(canvases.images.std().item() - 1) < 0.05


def test_upscaling_keeps_mass_and_symmetry() -> None:
    image = np.zeros((10, 10), dtype=np.float32)
    image[1:9, 1:9] = 1
    enlarged = data._upscale(image, 24)
    assert enlarged.shape == (30, 30)
    np.testing.assert_allclose(enlarged, enlarged[::-1, ::-1], atol=1e-6)
    assert enlarged.sum() == pytest.approx(24 * 24, rel=0.02)


def test_display_inverts_the_normalisation_and_clips() -> None:
    greys = torch.tensor([0.0, 0.25, 1.0])
    images = (greys - data.GREY_MEAN) / data.GREY_STD
    torch.testing.assert_close(to_display(images), greys)
    assert to_display(torch.tensor([-50.0, 50.0])).tolist() == [0, 1]


def test_canvases_are_frozen() -> None:
    canvases = load_canvases("test", 1)
    with pytest.raises(AttributeError):
        canvases.labels = canvases.boxes  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"split": "valid", "n": 1}, InvalidArgumentError, ["split", "'valid'", "'train'", "'test'"]),
        ({"split": "test", "n": 0}, InvalidArgumentError, ["n is 0", "at least 1"]),
        ({"split": "test", "n": -3}, InvalidArgumentError, ["n is -3", "at least 1"]),
        ({"split": "test", "n": 1, "seed": -1}, InvalidArgumentError, ["seed is -1", "at least 0"]),
        ({"split": "test", "n": 1.5}, InvalidTypeError, ["n is 1.5", "float", "int"]),
        ({"split": "test", "n": True}, InvalidTypeError, ["n is True", "bool", "int"]),
        ({"split": "test", "n": 1, "seed": "a"}, InvalidTypeError, ["seed is 'a'", "str", "int"]),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as raised:
        load_canvases(**arguments)
    assert all(word in str(raised.value) for word in words)


def test_missing_sklearn_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    data._all_digits.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingDependencyError, match=r"pip install captum_iba\[demo\]"):
        load_canvases("test", 1)
    monkeypatch.undo()
    assert len(load_canvases("test", 1)) == 1
