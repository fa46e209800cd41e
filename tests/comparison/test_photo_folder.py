"""Laws of photo folders: boxes follow the photos, labels lead to classes, and a broken file costs only itself."""

import dataclasses
import json
import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import max_pool2d, pad

from captum_iba.comparison.photo_folder import PhotoFolder
from captum_iba.errors import InvalidArgumentError, InvalidTypeError, UnreadableExampleError
from captum_iba.photos import load_classifier
from tests.comparison.photo_cases import GOLDFISH, TENCH, annotation, photo, small


@pytest.fixture(scope="module")
def classifier(squeezenet_weights):
    return load_classifier("squeezenet1_1", str(squeezenet_weights))


def assert_red_is_masked(example):
    """Red and mask agree, but for the pixels that an edge of the box runs through."""
    red = example.display[0] > 0.5
    if example.mask is None:
        assert not red[1:-1, 1:-1].any()
        return
    inside, outside = pad(example.mask.float()[None], [1] * 4), pad((~example.mask).float()[None], [1] * 4, value=1)
    near_edge = (max_pool2d(inside, 3, 1) * max_pool2d(outside, 3, 1))[0] > 0
    assert not ((red != example.mask) & ~near_edge).any()


@st.composite
def boxed_photos(draw):
    """Size of a photo, and a box of at least a quarter of each side.

    Enlarged more than about twice, the box's painted corners are rounded by more than a pixel.
    """
    size = draw(st.tuples(st.integers(20, 150), st.integers(20, 150)))
    edges = []
    for side in size:
        length = draw(st.integers(side // 4 + 1, side))
        edges.append((start := draw(st.integers(0, side - length)), start + length))
    return size, (edges[0][0], edges[1][0], edges[0][1], edges[1][1])


@pytest.mark.parametrize("crop", ["center", "none"])
@pytest.mark.parametrize("resize", [40, 32, 24])
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=boxed_photos())
def test_boxes_follow_the_photo(tmp_path, crop, resize, drawn):
    """Whatever size the photo has, larger or smaller than the input, its box covers what is painted in it."""
    size, box = drawn
    photo(tmp_path / "a.png", [box], size)
    annotation(tmp_path / "a.xml", [box], size)
    assert_red_is_masked(PhotoFolder(tmp_path, small(resize), 0, annotations=tmp_path, crop=crop).load(0))


@pytest.mark.parametrize("crop", ["center", "none"])
@pytest.mark.parametrize("size", [(333, 251), (251, 333), (100, 117), (224, 224), (1000, 301)])
def test_boxes_follow_real_preprocessing(tmp_path, classifier, crop, size):
    """So it is for torchvision's own preprocessing, with several boxes; the input is its result."""
    width, height = size
    boxes = [(0, 0, width // 3, height // 2), (width // 2, height // 3, width - 3, height)]
    photo(tmp_path / "a.png", boxes, size)
    annotation(tmp_path / "a.xml", boxes, size)
    example = PhotoFolder(tmp_path, classifier, 0, annotations=tmp_path, crop=crop).load(0)
    assert_red_is_masked(example)
    assert example.mask.shape == (224, 224) and example.inputs.shape == (3, 224, 224)
    assert example.boxes.min() >= 0 and example.boxes.max() <= 224 and example.boxes.dtype == torch.float32
    assert torch.equal(example.boxes, example.boxes.trunc())
    if crop == "center":
        with Image.open(tmp_path / "a.png") as image:
            assert torch.equal(example.inputs, classifier.preprocess(image.convert("RGB")))


def test_boxes_are_truncated_to_whole_pixels(tmp_path):
    """Known numbers: 60 x 40 at 40 pixels' height, of which the centre 32 x 32 stays; or squeezed to 32 x 32."""
    photo(tmp_path / "a.png")
    annotation(tmp_path / "a.xml", [(20, 5, 41.9, 39), (0, 0, 13, 40)])
    center = PhotoFolder(tmp_path, small(), 0, annotations=tmp_path).load(0)
    assert center.boxes.tolist() == [[6, 1, 27, 32]], "the second box ends before the crop begins"
    squeezed = PhotoFolder(tmp_path, small(), 0, annotations=tmp_path, crop="none").load(0)
    assert squeezed.boxes.tolist() == [[10, 4, 22, 31], [0, 0, 6, 32]]


@pytest.mark.parametrize("crop", ["center", "none"])
def test_boxes_scale_with_the_annotations_size(tmp_path, crop):
    """An annotation made on the photo at twice the size means the same boxes; without a size, the photo's counts."""
    photo(tmp_path / "a.png", size=(60, 40))
    found = []
    for factor, size in ((1, (60, 40)), (2, (120, 80)), (1, None), (1, (0, 0))):
        annotation(tmp_path / "a.xml", [[factor * x for x in (13, 3, 40, 31)]], size)
        found.append(PhotoFolder(tmp_path, small(), 0, annotations=tmp_path, crop=crop).load(0).boxes.tolist())
    assert all(boxes == found[0] for boxes in found)


def test_photos_without_boxes_inside(tmp_path):
    """No annotation, no object, or boxes outside: no mask; for a set of boxes alone these photos are left out."""
    for name in "abcde":
        photo(tmp_path / f"{name}.png")
    annotation(tmp_path / "a.xml", [])
    annotation(tmp_path / "b.xml", [(60, 0, 70, 20), (0, 0, 0, 40)])
    annotation(tmp_path / "c.xml", [(20, 10, 30, 20)])
    annotation(tmp_path / "d.xml", [(0, 0, 60, 40)])
    photos = PhotoFolder(tmp_path, small(), 0, annotations=tmp_path)
    assert [photos.load(i).mask is None for i in range(5)] == [True, True, False, False, True]
    assert not photos.load(2).only_boxes
    limited = PhotoFolder(tmp_path, small(), 0, annotations=tmp_path, largest_coverage=0.33)
    assert [limited.load(i).boxes is None for i in range(5)] == [True, True, False, True, True]
    only = PhotoFolder(tmp_path, small(), 0, annotations=tmp_path, largest_coverage=0.33, only_boxes=True)
    assert list(only.keys) == ["c.png"] and only.load(0).only_boxes
    exact = float(only.load(0).mask.float().mean())
    with pytest.raises(InvalidArgumentError, match="None of the 5 photos"):
        PhotoFolder(tmp_path, small(), 0, annotations=tmp_path, largest_coverage=exact, only_boxes=True)


def test_keys_are_sorted_paths(tmp_path, monkeypatch):
    """Keys are the sorted paths in the folder, whatever order the file system lists them in."""
    names = ["b/1.png", "a/2.jpg", "a-b/1.PNG", "a/10.png", "z.png"]
    for name in names:
        photo(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("")
    before = PhotoFolder(tmp_path, small(), 0)
    assert list(before.keys) == sorted(names)
    for seed in range(3):
        shuffled = [tmp_path / name for name in names]
        random.Random(seed).shuffle(shuffled)
        monkeypatch.setattr("captum_iba.comparison.photo_folder.photos_in", lambda _folder, files=shuffled: files)
        again = PhotoFolder(tmp_path, small(), 0)
        assert again.keys == before.keys and again.fingerprint == before.fingerprint
    assert [before.load(i).key for i in range(5)] == list(before.keys)


def test_a_limit_takes_from_all_folders(tmp_path):
    """A limit spreads over the sorted photos, and twice the limit keeps what the limit had."""
    for i in range(12):
        photo(tmp_path / f"{i // 4}" / f"{i}.png")
    photos = {limit: PhotoFolder(tmp_path, small(), "folder", limit=limit).keys for limit in (3, 6, 12, 99)}
    assert [key[0] for key in photos[3]] == ["0", "1", "2"]
    assert set(photos[3]) < set(photos[6]) and len(photos[6]) == 6
    assert photos[12] == photos[99] and len(photos[99]) == 12


def test_imagenets_layout(tmp_path, classifier):
    """Photos and annotations in subfolders by WordNet id, in trees of their own."""
    for wnid in (TENCH, GOLDFISH):
        for i, box in ((1, (10, 10, 30, 30)), (2, (20, 0, 50, 40))):
            photo(tmp_path / "photos" / wnid / f"{wnid}_{i}.JPEG", [box])
            annotation(tmp_path / "xml" / "train" / wnid / f"{wnid}_{i}.xml", [box], names=[wnid])
    for targets in ("folder", "annotation"):
        photos = PhotoFolder(tmp_path / "photos", classifier, targets, annotations=tmp_path / "xml")
        examples = [photos.load(i) for i in range(4)]
        assert [example.target for example in examples] == [0, 0, 1, 1]
        for example in examples:
            assert_red_is_masked(example)


def test_annotations_of_one_name(tmp_path):
    """Folders with files of the same names do not mix; where one cannot tell, the photo says so."""
    boxes = {"ant": (10, 0, 30, 40), "bee": (25, 5, 50, 30)}
    for name, box in boxes.items():
        photo(tmp_path / "photos" / name / "1.png", [box])
        annotation(tmp_path / "xml" / name / "1.xml", [box])
    photo(tmp_path / "photos" / "1.png")
    photo(tmp_path / "photos" / "ant" / "2.png")
    annotation(tmp_path / "xml" / "more" / "2.xml", [(10, 0, 30, 40)])
    photos = PhotoFolder(tmp_path / "photos", small(), 0, annotations=tmp_path / "xml")
    assert list(photos.keys) == ["1.png", "ant/1.png", "ant/2.png", "bee/1.png"]
    assert photos.load(0).mask is None, "both annotations belong to other photos"
    assert photos.load(2).mask is not None, "the only one of this name, wherever it is"
    for i in (1, 3):
        assert_red_is_masked(photos.load(i))
    annotation(tmp_path / "xml" / "other" / "2.xml", [(10, 0, 30, 40)])
    photos = PhotoFolder(tmp_path / "photos", small(), 0, annotations=tmp_path / "xml", only_boxes=True)
    assert "ant/2.png" in photos.keys and photos.fingerprint
    with pytest.raises(UnreadableExampleError, match=r"ant/2\.png.*2 annotations and 1 photos"):
        photos.load(photos.keys.index("ant/2.png"))


def test_one_annotation_for_two_photos(tmp_path):
    """It is given to neither."""
    for folder in "ab":
        photo(tmp_path / "photos" / folder / "1.png")
    annotation(tmp_path / "xml" / "1.xml", [(10, 10, 20, 20)])
    photos = PhotoFolder(tmp_path / "photos", small(), 0, annotations=tmp_path / "xml")
    for i in range(2):
        with pytest.raises(UnreadableExampleError, match="1 annotations and 2 photos are named '1'"):
            photos.load(i)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<annotation><object>", "no element found"),
        (b"", "no element found"),
        (b"\xff\xd8 no text", "not well-formed"),
        (b"<a><object><bndbox><xmin>1</xmin></bndbox></object></a>", "ymin is None"),
        (b"<a><object><bndbox><xmin>x</xmin></bndbox></object></a>", "xmin is 'x', no number"),
        (b"<a><size><width>nan</width></size></a>", "width is 'nan'"),
        (b'<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>', "document type"),
        (b"<a>" + b" " * 1_000_001 + b"</a>", "larger than"),
        (b'<?xml version="1.0" encoding="nowhere"?><a/>', "encoding"),
    ],
)
def test_broken_annotations_cost_their_photo(tmp_path, content, words):
    """The file and the reason are named when the photo is loaded, not before; other photos load."""
    for name in "ab":
        photo(tmp_path / f"{name}.png")
    annotation(tmp_path / "a.xml", [(10, 10, 20, 20)])
    (tmp_path / "b.xml").write_bytes(content)
    photos = PhotoFolder(tmp_path, small(), 0, annotations=tmp_path, only_boxes=True)
    assert photos.load(0).mask.any()
    with pytest.raises(UnreadableExampleError, match=f"b\\.xml.*{words}"):
        photos.load(1)


def test_boxes_that_end_before_they_start(tmp_path):
    photo(tmp_path / "a.png")
    annotation(tmp_path / "a.xml", [(30, 10, 20, 20)])
    with pytest.raises(UnreadableExampleError, match=r"\[30\.0, 10\.0, 20\.0, 20\.0\] ends before"):
        PhotoFolder(tmp_path, small(), 0, annotations=tmp_path).load(0)


@pytest.mark.parametrize("damage", ["no photo", "truncated", "folder", "gone"])
def test_broken_photos_cost_only_themselves(tmp_path, damage):
    for name in "ab":
        photo(tmp_path / f"{name}.png")
    path = tmp_path / "b.png"
    content = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(b"no photo" if damage == "no photo" else content[: len(content) // 2])
    annotation(tmp_path / "x" / "a.xml", [(10, 10, 20, 20)])
    annotation(tmp_path / "x" / "b.xml", [(10, 10, 20, 20)])
    photos = PhotoFolder(tmp_path, small(), 0, annotations=tmp_path / "x", only_boxes=True)
    if damage == "gone":
        path.unlink()
    assert photos.load(0).key == "a.png" and photos.fingerprint
    with pytest.raises(UnreadableExampleError, match=r"b\.png.*cannot be read"):
        photos.load(1)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"targets": "wasp"}, InvalidArgumentError, "'wasp' is not 'folder', 'predicted'.*0 to 2.*such as"),
        ({"targets": 3}, InvalidArgumentError, "targets=3.*0 to 2"),
        ({"targets": "9" * 5000}, InvalidArgumentError, "0 to 2"),
        ({"targets": None}, InvalidTypeError, "NoneType"),
        ({"targets": True}, InvalidTypeError, "bool"),
        ({"targets": "annotation"}, InvalidArgumentError, "'annotation' needs annotations"),
        ({"only_boxes": True}, InvalidArgumentError, "only_boxes=True needs annotations"),
        ({"annotations": "missing"}, InvalidArgumentError, "'missing' is no folder"),
        ({"annotations": "empty"}, InvalidArgumentError, "no .xml files"),
        ({"crop": "middle"}, InvalidArgumentError, "crop='middle'.*'center'"),
        ({"largest_coverage": 0}, InvalidArgumentError, "largest_coverage=0"),
        ({"largest_coverage": 33}, InvalidArgumentError, "largest_coverage=33"),
        ({"limit": 0}, InvalidArgumentError, "limit=0"),
        ({"limit": 2.5}, InvalidTypeError, "float"),
        ({"folder": "missing"}, InvalidArgumentError, "'missing' is no folder"),
    ],
)
def test_mistakes_are_named(tmp_path, monkeypatch, options, error, words):
    photo(tmp_path / "photos" / "a.png")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        PhotoFolder(**{"folder": "photos", "classifier": small(), "targets": 0} | options)


def test_preprocessing_of_unknown_sizes(tmp_path):
    """Boxes cannot follow a preprocessing that does not say what it does."""
    photo(tmp_path / "a.png")
    other = dataclasses.replace(small(), preprocess=torch.nn.Identity())
    with pytest.raises(InvalidArgumentError, match="small is a Identity without resize_size"):
        PhotoFolder(tmp_path, other, 0)


def test_fingerprints_tell_folders_apart(tmp_path):
    """Every option, file and annotation shows; the same folder read again gives the same, fit for JSON."""
    for name in "ab":
        photo(tmp_path / f"{name}.png")
    annotation(tmp_path / "a.xml", [(10, 10, 20, 20)])
    (tmp_path / "labels.csv").write_text("a.png,bee\n")
    boxed = {"annotations": tmp_path}
    options = [{}, boxed, {"crop": "none"}, {"limit": 1}, {"largest_coverage": 0.5}, boxed | {"only_boxes": True}]
    sets = [PhotoFolder(tmp_path, small(), 0, **option) for option in options]
    sets += [PhotoFolder(tmp_path, small(), spec) for spec in (1, "folder", "predicted", tmp_path / "labels.csv")]
    sets += [PhotoFolder(tmp_path, small(resize=36), 0), PhotoFolder(tmp_path, small(), "annotation", **boxed)]
    prints = [json.dumps(photos.fingerprint) for photos in sets]
    assert len(set(prints)) == len(prints)
    assert json.dumps(PhotoFolder(tmp_path, small(), 0).fingerprint) == prints[0]
    photo(tmp_path / "b.png", size=(90, 90))
    assert json.dumps(PhotoFolder(tmp_path, small(), 0).fingerprint) != prints[0]
