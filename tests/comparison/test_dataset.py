"""Laws of the input side: what counts as a data set, and what each of its examples holds."""

import json
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from captum_iba.comparison.dataset import Example, JoinedExamples, TensorExamples, as_examples
from captum_iba.demo import load_canvases
from captum_iba.demo.data import to_display
from captum_iba.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    MismatchedArgumentsError,
    UnreadableExampleError,
)

IMAGES = torch.rand(3, 3, 6, 8, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([4, 0, 2])
MASKS = torch.zeros(3, 6, 8)
MASKS[0, 1:3, 2:5] = 7


class Pairs(Dataset):
    """Yields what it was given; an exception is raised."""

    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        if isinstance(self.items[index], Exception):
            raise self.items[index]
        return self.items[index]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


def test_tensors_give_their_examples():
    """Image, class, mask and picture of an example are those of its row."""
    examples = TensorExamples(IMAGES, TARGETS, MASKS, display=IMAGES[:, :1], keys=["a", "b", "c"])
    for i, key in enumerate(examples.keys):
        example = examples.load(i)
        assert (example.key, example.target) == ("abc"[i], TARGETS[i]) and key == example.key
        assert type(example.target) is int and not example.only_boxes
        assert torch.equal(example.inputs, IMAGES[i]) and torch.equal(example.display, IMAGES[i, :1])
    mask = examples.load(0).mask
    assert mask.dtype == torch.bool and torch.equal(mask, MASKS[0] > 0)
    assert examples.load(1).mask is None, "an empty mask counts as none"


def test_boxes_become_masks():
    """Boxes alone are drawn; beside a mask they leave it as it is; outside the image they count as none."""
    boxes = [[[1, 2, 3, 4], [0, 0, 1, 1]], [[20, 20, 30, 30]], torch.zeros(0, 4)]
    examples = TensorExamples(IMAGES, TARGETS, boxes=boxes)
    first = examples.load(0)
    assert first.boxes.tolist() == boxes[0] and first.boxes.dtype == torch.float32
    assert first.mask.sum() == 5 and first.mask[2:4, 1:3].all() and first.mask[0, 0]
    assert all(examples.load(i).mask is None and examples.load(i).boxes is None for i in (1, 2))
    both = TensorExamples(IMAGES, TARGETS, MASKS, boxes=boxes).load(0)
    assert torch.equal(both.mask, MASKS[0] > 0) and both.boxes.tolist() == boxes[0]


def test_a_function_can_make_the_pictures():
    """display is applied to the image that is loaded."""
    example = TensorExamples(IMAGES, TARGETS, display=lambda image: image[:1] * 2).load(1)
    assert torch.equal(example.display, IMAGES[1, :1] * 2)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"images": IMAGES.tolist()}, InvalidTypeError, "images is a list of 3.*Tensor"),
        ({"images": IMAGES.int()}, InvalidTypeError, "int32.*float"),
        ({"images": IMAGES[0]}, InvalidArgumentError, r"\[3, 6, 8\].*\(N, C, H, W\)"),
        ({"images": IMAGES[:0]}, InvalidArgumentError, r"\[0, 3, 6, 8\]"),
        ({"targets": TARGETS.float()}, InvalidTypeError, "float32.*class indices"),
        ({"targets": 4}, InvalidTypeError, "int.*class indices"),
        ({"targets": [1, -1, 0]}, InvalidArgumentError, "-1.*from 0"),
        ({"targets": [1, 0]}, MismatchedArgumentsError, "2 targets.*3 images"),
        ({"masks": MASKS[:2]}, MismatchedArgumentsError, "2 masks"),
        ({"masks": MASKS[:, :5]}, InvalidArgumentError, r"\[3, 5, 8\].*6, 8"),
        ({"masks": [1, 2, 3]}, InvalidTypeError, "masks is a list"),
        ({"boxes": [[]]}, MismatchedArgumentsError, "1 boxes"),
        ({"boxes": [[], [[1, 2, 3]], []]}, InvalidArgumentError, r"boxes\[1\].*x0, y0"),
        ({"boxes": [[[1, 2, 0, 3]], [], []]}, InvalidArgumentError, r"boxes\[0\].*before it starts"),
        ({"boxes": [[[1, 2, float("nan"), 3]], [], []]}, InvalidArgumentError, r"boxes\[0\].*NaN"),
        ({"display": IMAGES[:, :2]}, InvalidArgumentError, r"display.*\[3, 2, 6, 8\]"),
        ({"display": IMAGES[:2]}, MismatchedArgumentsError, "2 display"),
        ({"display": 1}, InvalidTypeError, "display is a int"),
        ({"keys": ["a", "b", "a"]}, InvalidArgumentError, "'a'"),
        ({"keys": ["a", "b"]}, MismatchedArgumentsError, "2 keys"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, error, words):
    with pytest.raises(error, match=words):
        TensorExamples(**{"images": IMAGES, "targets": TARGETS} | change)


def test_images_with_nan_are_unreadable():
    """NaN costs the example that has it."""
    images = IMAGES.clone()
    images[1, 0, 0, 0] = float("nan")
    examples = TensorExamples(images, TARGETS)
    assert examples.load(0).target == 4
    with pytest.raises(UnreadableExampleError, match="1: .*NaN"):
        examples.load(1)


def test_fingerprints_tell_data_apart():
    """Equal data have equal fingerprints that JSON can hold; any other value, class, mask, box or key shows."""
    boxes = [[[0, 0, 1, 1]], [], []]
    variants = [
        TensorExamples(IMAGES, TARGETS),
        TensorExamples(IMAGES + 1, TARGETS),
        TensorExamples(IMAGES, TARGETS + 1),
        TensorExamples(IMAGES, TARGETS, MASKS),
        TensorExamples(IMAGES, TARGETS, boxes=boxes),
        TensorExamples(IMAGES, TARGETS, keys="abc"),
        as_examples(Pairs(*zip(IMAGES, TARGETS, strict=True))),
        as_examples(Pairs((IMAGES[0], 1))),
        JoinedExamples(TensorExamples(IMAGES, TARGETS), TensorExamples(IMAGES, TARGETS)),
    ]
    prints = [json.dumps(examples.fingerprint) for examples in variants]
    assert len(set(prints)) == len(prints)
    assert json.dumps(TensorExamples(IMAGES.clone(), TARGETS.tolist()).fingerprint) == prints[0]


def test_the_same_data_in_any_form():
    """Tuples, torch's data sets and their subsets give the same examples."""
    triples = list(zip(IMAGES, TARGETS, MASKS, strict=True))
    forms = [
        (IMAGES, TARGETS, MASKS),
        TensorDataset(IMAGES, TARGETS, MASKS),
        Pairs(*triples),
        Pairs(*[(x, int(y), m[None].numpy()) for x, y, m in triples]),
        Subset(Pairs(*triples), range(3)),
        TensorExamples(IMAGES, TARGETS, MASKS),
    ]
    for form in forms:
        examples = as_examples(form)
        assert list(examples.keys) == ["0", "1", "2"]
        for i in range(3):
            example = examples.load(i)
            assert isinstance(example, Example) and example.target == TARGETS[i]
            assert torch.equal(example.inputs, IMAGES[i]) and (example.mask is None) == (i > 0)
        assert torch.equal(examples.load(0).mask, MASKS[0] > 0)
    assert as_examples((IMAGES, TARGETS)).load(0).mask is None
    assert as_examples(forms[-1]) is forms[-1]
    for form in forms[:5]:
        assert torch.equal(as_examples(form, to_display=lambda x: x / 2).load(2).display, IMAGES[2] / 2)


def test_canvases_come_with_boxes_and_pictures():
    """The demo's canvases give their labels, the boxes of the digits and the greys."""
    canvases = load_canvases("test", 2)
    examples = as_examples(canvases)
    for i in range(2):
        example = examples.load(i)
        x0, y0, x1, y1 = canvases.boxes[i].tolist()
        assert example.target == canvases.labels[i] and example.boxes.tolist() == [[x0, y0, x1, y1]]
        assert example.mask[y0:y1, x0:x1].all() and example.mask.sum() == (x1 - x0) * (y1 - y0)
        assert torch.equal(example.display, to_display(canvases.images[i]))


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (OSError("broken file"), "OSError: broken file"),
        (IMAGES[0], r"Tensor \[3, 6, 8\]; wanted \(image, class\)"),
        ((IMAGES[0],), "tuple of 1"),
        (("photo", 1), "str.*transform"),
        ((IMAGES, 1), r"\[3, 3, 6, 8\].*\(C, H, W\)"),
        ((IMAGES[0], "tench"), "class indices"),
        ((IMAGES[0], -1), "-1"),
        ((IMAGES[0], 1, torch.zeros(2, 2)), r"masks.*6, 8"),
        ((IMAGES[0], 1, "mask"), "1: "),
        ((IMAGES[0] / 0, 1), "NaN or infinity"),
    ],
)
def test_bad_items_cost_only_themselves(item, words):
    """What is wrong with an item of a data set is said when it is loaded, with its key; the others load."""
    examples = as_examples(Pairs((IMAGES[0], 1), item))
    assert examples.load(0).target == 1
    with pytest.raises(UnreadableExampleError, match=f"^1: .*{words}|^{words}"):
        examples.load(1)


@pytest.mark.parametrize(
    ("dataset", "error", "words"),
    [
        (DataLoader(Pairs((IMAGES[0], 1))), InvalidTypeError, r"loader\.dataset"),
        (Stream(), InvalidTypeError, "Stream.*with a length"),
        (IMAGES, InvalidTypeError, r"Tensor \[3, 3, 6, 8\].*\(images, targets\)"),
        ((IMAGES,), InvalidTypeError, "tuple of 1"),
        ("photos", InvalidTypeError, "str.*PhotoFolder"),
        ({"images": IMAGES}, InvalidTypeError, "dict"),
        (None, InvalidTypeError, "NoneType"),
        (Pairs(), InvalidArgumentError, "empty"),
    ],
)
def test_anything_else_is_refused(dataset, error, words):
    """The message says what was passed and what can be."""
    with pytest.raises(error, match=words):
        as_examples(dataset)


def test_joined_sets_keep_order_and_have_unique_keys():
    """The second set follows the first; whichever keys they share, all keys differ and the first's stay."""
    first = TensorExamples(IMAGES, TARGETS, keys=["a", "2/a", "b"])
    second = TensorExamples(IMAGES, TARGETS + 10, keys=["a", "2/a", "c"])
    both = JoinedExamples(first, second)
    assert list(both.keys[:3]) == list(first.keys) and both.keys[5] == "c"
    assert len(set(both.keys)) == 6
    loaded = [both.load(i) for i in range(6)]
    assert [example.key for example in loaded] == list(both.keys)
    assert [example.target for example in loaded] == [4, 0, 2, 14, 10, 12]
    with pytest.raises(IndexError):
        both.load(6)


def test_importing_does_not_import_torchvision():
    """Comparisons of tensors work without torchvision and pillow."""
    code = (
        "import sys, captum_iba.comparison.dataset, captum_iba.comparison.photo_folder;"
        "sys.exit('torchvision' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
