"""Laws of labels: folders, files, annotations and tables lead to classes, or say why not."""

import pytest

from captum_iba.comparison.photo_folder import PhotoFolder, Targets
from captum_iba.errors import InvalidArgumentError, UnreadableExampleError
from captum_iba.photos import load_classifier
from tests.comparison.photo_cases import GOLDFISH, TENCH, annotation, photo, small


@pytest.fixture(scope="module")
def classifier(squeezenet_weights):
    return load_classifier("squeezenet1_1", str(squeezenet_weights))


@pytest.mark.parametrize(
    ("name", "target"),
    [
        (f"{GOLDFISH}/a.png", 1),
        ("388/a.png", 388),
        ("giant_panda/a.png", 388),
        ("Giant panda/001_a.png", 388),
        (f"{GOLDFISH}/000_{TENCH}_tench.png", 1),
        (f"photos/000_{TENCH}_tench.png", 0),
        (f"photos/{GOLDFISH}_10026.png", 1),
        ("photos/388_anything.png", 388),
        ("photos/7-b.png", 7),
        ("Cardigan/a.png", 264),
        ("cardigan/a.png", 474),
    ],
)
def test_targets_by_folder(tmp_path, classifier, name, target):
    """The folder's name says the class by WordNet id, index or name; if it does not, the file's name does."""
    photo(tmp_path / name)
    assert PhotoFolder(tmp_path, classifier, "folder").load(0).target == target


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("1000/5_a.png", "'1000' is no class.*0 to 999"),
        ("n00000001/5_a.png", "'n00000001' is no class"),
        ("photos/1000_a.png", "'1000' is no class"),
        ("egyptian_catt/a.png", "'egyptian_catt'.*'Egyptian cat'"),
        ("CARDIGAN/a.png", "'CARDIGAN'.*'Cardigan', .*'cardigan'"),
        ("photos/00012.png", "neither its folder 'photos'.*WordNet"),
        (f"photos/x{TENCH}.png", "neither its folder"),
    ],
)
def test_folders_that_name_no_class(tmp_path, classifier, name, words):
    """The photo is unreadable, with the label and near names; a number alone is no class, for it may only count."""
    photo(tmp_path / name)
    with pytest.raises(UnreadableExampleError, match=f"{name.split('/')[1]}.*{words}"):
        PhotoFolder(tmp_path, classifier, "folder").load(0)


def test_wordnet_ids_need_imagenets_classes(tmp_path):
    """A model of other classes does not know them."""
    photo(tmp_path / TENCH / "a.png")
    photo(tmp_path / "photos" / f"2_{TENCH}.png")
    photos = PhotoFolder(tmp_path, small(), "folder")
    with pytest.raises(UnreadableExampleError, match=f"'{TENCH}' is no class of small; wanted an index from 0 to 2"):
        photos.load(0)
    assert photos.load(1).target == 2


@pytest.mark.parametrize(("spec", "target"), [("predicted", 1), (2, 2), ("0", 0), ("HOUSE_FLY", 2), ("bee", 1)])
def test_targets_for_all_photos(tmp_path, spec, target):
    """The model's own choice, or one class by index or name."""
    photo(tmp_path / "a.png")
    assert PhotoFolder(tmp_path, small(), spec).load(0).target == target


def test_predictions_that_are_no_numbers(tmp_path):
    photo(tmp_path / "a.png")
    broken = small()
    broken.model[2].bias.data[0] = float("nan")
    with pytest.raises(UnreadableExampleError, match=r"a\.png.*NaN"):
        PhotoFolder(tmp_path, broken, "predicted").load(0)


def test_targets_by_annotation(tmp_path):
    """The first object's class is explained, and only the boxes of that name count."""
    for name in "abc":
        photo(tmp_path / f"{name}.png")
    annotation(tmp_path / "a.xml", [(10, 0, 20, 9), (30, 20, 40, 30)], names=["bee", "ant"])
    annotation(tmp_path / "b.xml", [(10, 0, 20, 9)], names=["wasp"])
    photos = PhotoFolder(tmp_path, small(), "annotation", annotations=tmp_path)
    assert photos.load(0).target == 1 and len(photos.load(0).boxes) == 1
    assert len(PhotoFolder(tmp_path, small(), 0, annotations=tmp_path).load(0).boxes) == 2
    with pytest.raises(UnreadableExampleError, match=r"b\.png.*'wasp' is no class of small"):
        photos.load(1)
    with pytest.raises(UnreadableExampleError, match=r"c\.png.*no annotation"):
        photos.load(2)


@pytest.mark.parametrize(
    "content",
    [
        "a.png,bee\nsub/b.png,0\n",
        "\ufefffile,label\r\na.png,Bee\r\n\r\nsub/b.png,0\r\n",
        'label,note,File\n1,"x, y",./a.png\n"ant",,sub\\b.png\n',
        "a.png,1\nb.png,ant\n",
    ],
)
def test_targets_by_table(tmp_path, monkeypatch, content):
    """With or without header, by path or by name."""
    photo(tmp_path / "photos" / "a.png")
    photo(tmp_path / "photos" / "sub" / "b.png")
    table = tmp_path / "labels.csv"
    table.write_bytes(content.encode())
    monkeypatch.chdir(tmp_path)
    for folder, spec in ((tmp_path / "photos", table), ("photos", str(table)), ("photos", "labels.csv")):
        photos = PhotoFolder(folder, small(), spec)
        assert [photos.load(i).target for i in range(2)] == [1, 0]
    absolute = Targets.parse(table, small(), tmp_path / "photos")
    assert PhotoFolder("photos", small(), absolute).load(1).target == 0


def test_labels_missing_from_the_table(tmp_path):
    """A photo without a line, or with an unknown label, costs only itself."""
    for name in "abc":
        photo(tmp_path / f"{name}.png")
    (tmp_path / "labels.csv").write_text("a.png,bee\nb.png,wasp\n")
    photos = PhotoFolder(tmp_path, small(), tmp_path / "labels.csv")
    assert photos.load(0).target == 1
    with pytest.raises(UnreadableExampleError, match=r"b\.png.*'wasp'"):
        photos.load(1)
    with pytest.raises(UnreadableExampleError, match=r"no line for it; wanted one with 'c\.png'"):
        photos.load(2)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        (b"", "no rows"),
        (b"file,label\n", "no rows"),
        (b"a.png,bee\nb.png\n", r"row 2 is \['b.png'\]"),
        (b"a.png,house,fly\n", "row 1.*2 columns.*comma"),
        (b"a.png,\n", "row 1"),
        (b"a.png,bee\na.png,ant\n", "row 2: 'a.png' has another label"),
        (b"a.png,b\xff\n", "UTF-8"),
        (b'a.png,"bee\n', "cannot be read"),
    ],
)
def test_broken_tables_are_refused(tmp_path, content, words):
    """A table that cannot be read costs everything, so it is refused at once."""
    photo(tmp_path / "a.png")
    if content is not None:
        (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(InvalidArgumentError, match=f"labels\\.csv.*{words}"):
        PhotoFolder(tmp_path, small(), tmp_path / "labels.csv")
