"""Laws of a readout's file: what is read is what was written, or a ReadoutFileError; and it is there wholly or not."""

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn

from captum_iba.attr.layer_readout_iba import LayerReadoutIBA
from captum_iba.errors import (
    CaptumIBAWarning,
    InvalidArgumentError,
    MissingFileError,
    NotTrainedError,
    ReadoutFileError,
    StatisticsError,
)
from tests.attr.readout_processes import (
    FIT,
    IMAGES,
    READ,
    assert_same_weights,
    batches,
    make,
    network,
    weights,
)

OPTIONS = {
    **{"hidden_channels": (6, 5), "sigma": 0.7, "initial_alpha": 4.0, "relu": True, "align_corners": True},
    "seed": 52,
}


def empty(model=None, layer=1, **settings_):
    """A bottleneck that knows nothing."""
    model = network() if model is None else model
    return LayerReadoutIBA(model, model[layer], **settings_)


@pytest.fixture(scope="module")
def trained():
    return make(**OPTIONS).fit(batches(), batches(15), **FIT)


@pytest.fixture(scope="module")
def files(tmp_path_factory, trained):
    """A saved readout, a checkpoint in the middle of an epoch, and statistics alone, as bytes."""
    folder = tmp_path_factory.mktemp("files")
    trained.save(folder / "readout")
    options = {**FIT, "max_steps": 4, "checkpoint": folder / "checkpoint"}
    make(**OPTIONS).fit(batches(), batches(15), **options)
    make(**OPTIONS).save(folder / "statistics")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def everything(readout):
    """All that a readout consists of: tensors by name, and the rest."""
    current, statistics = readout._current(), readout.statistics
    tensors = {} if current.network is None else dict(weights(readout))
    for name, known in statistics.items():
        tensors |= {f"{name}.mean": known.mean, f"{name}.m2": known.m2}
    known = current.settings
    shape = [known.widths(9, 9), known.sigma, known.initial_alpha, known.relu, known.align_corners]
    names = [source.name for source in current.sources], {key: each.metadata for key, each in statistics.items()}
    return tensors, [readout.history, current.site.at_input, *shape, *names]


def assert_same(found, wanted):
    ours, theirs = everything(found), everything(wanted)
    assert_same_weights(ours[0], theirs[0])
    assert ours[1] == theirs[1]


def test_what_is_read_is_what_was_written(tmp_path, trained):
    """Weights, statistics, history, settings and bits are exactly those before, in an object made with other settings;
    written again they give the same content."""
    trained.save(tmp_path / "first")
    found = empty(network()).load(tmp_path / "first")
    assert_same(found, trained)
    assert torch.equal(found.attribute(IMAGES), trained.attribute(IMAGES))
    found.save(tmp_path / "second")
    (first, *plain), (second, *again) = (parts((tmp_path / name).read_bytes()) for name in ("first", "second"))
    assert_same_weights(first, second)
    assert plain == again
    assert not any(parameter.requires_grad for parameter in found._current().network.parameters())
    assert {file.name for file in tmp_path.iterdir()} == {"first", "second"}


def test_a_bottleneck_at_the_input_is_read_as_one(tmp_path):
    """The side goes with the file, and has to be asked for."""
    model = network()
    readout = LayerReadoutIBA(model, model[2], readout_layers=["2", "5"], hidden_channels=(5, 4))
    readout.estimate(batches(), attribute_to_layer_input=True, channel_dim=1)
    readout.fit(batches(), attribute_to_layer_input=True, **FIT).save(tmp_path / "input")
    found = empty(layer=2).load(tmp_path / "input", attribute_to_layer_input=True)
    assert_same(found, readout)
    bits = [each.attribute(IMAGES, attribute_to_layer_input=True) for each in (found, readout)]
    assert torch.equal(*bits) and bits[0].shape == (22, 1, 4, 4)
    with pytest.raises(ReadoutFileError, match="of the input of layer '2', and this object is at the output of '2'"):
        empty(layer=2).load(tmp_path / "input")


def test_statistics_alone_are_read_and_trained_with(tmp_path):
    """Before fit the file holds statistics: they are exact, there are no bits yet, and fit gives the same weights."""
    make().save(tmp_path / "statistics")
    found = empty(hidden_channels=(5, 4)).load(tmp_path / "statistics")
    assert_same(found, make())
    with pytest.raises(NotTrainedError):
        found.attribute(IMAGES)
    assert_same_weights(weights(found.fit(batches(), **FIT)), weights(make().fit(batches(), **FIT)))
    with pytest.raises(StatisticsError, match="nothing to save"):
        empty().save(tmp_path / "nothing")
    assert [file.name for file in tmp_path.iterdir()] == ["statistics"]


def test_a_checkpoint_is_a_readout(tmp_path):
    """load takes a checkpoint, and finds what the training object has."""
    path = tmp_path / "checkpoint"
    readout = make().fit(batches(), batches(15), checkpoint=path, max_steps=4, **FIT)
    assert_same(empty().load(path), readout)


def test_a_model_that_hides_its_modules_is_refused(tmp_path):
    """Where the function's modules have no names, neither a file nor a checkpoint is written."""
    model = network()
    hidden = Hides(model)
    readout = LayerReadoutIBA(hidden, model[1], readout_layers=[model[1], model[2]], hidden_channels=(5, 4))
    readout.estimate(batches(), channel_dim=1).fit(batches(), **FIT)
    with pytest.raises(InvalidArgumentError, match="hides its modules"):
        readout.save(tmp_path / "hidden")
    with pytest.raises(InvalidArgumentError, match="hides its modules"):
        readout.fit(batches(), checkpoint=tmp_path / "hidden", **FIT)
    assert not list(tmp_path.iterdir())


class Hides:
    """A function in which no module can be found."""

    __slots__ = ("_function",)

    def __init__(self, function):
        self._function = function

    def __call__(self, x):
        return self._function(x)


def wider():
    return network(wide=4)


def shorter():
    return nn.Sequential(*list(network())[:4], nn.Flatten(start_dim=1)).eval()


def without_names():
    return nn.Sequential(nn.Sequential(*network())).eval()


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (wider, {}, r"another network: in layer '2' \(Conv2d\), 'weight' has shape \[4, 3, 2, 2\] there and \[4, 4,"),
        (shorter, {}, r"another network: it has a layer '5' \(Linear\), which this one has not"),
        (without_names, {"layer": 0}, r"another network: it has a layer '1' \(Tanh\), which this one has not"),
        (network, {"layer": 2}, "readout of the output of layer '1', and this object is at the output of '2'"),
        (network, {"at_input": True}, "output of layer '1', and this object is at the input of '1'"),
    ],
    ids=["widths", "missing layer", "other names", "other layer", "other side"],
)
def test_files_for_something_else_are_refused(tmp_path, trained, model, options, message):
    """Another network, by a layer's name or shapes, another layer and another side: each is named, and the object
    stays as it was."""
    trained.save(tmp_path / "file")
    options = dict(options)
    at_input = options.pop("at_input", False)
    readout = empty(model(), **options)
    with pytest.raises(ReadoutFileError, match=message):
        readout.load(tmp_path / "file", attribute_to_layer_input=at_input)
    assert readout.statistics is None


def test_a_refused_file_leaves_the_trained_readout(tmp_path, trained):
    """Loading something else into an object that is trained changes nothing."""
    trained.save(tmp_path / "file")
    readout = empty().load(tmp_path / "file")
    (tmp_path / "damaged").write_bytes((tmp_path / "file").read_bytes()[:-1])
    with pytest.raises(ReadoutFileError, match="truncated"):
        readout.load(tmp_path / "damaged")
    assert_same(readout, trained)


def test_no_file(tmp_path):
    """A missing file and a folder are missing files."""
    for path in (tmp_path / "missing", tmp_path, tmp_path / "missing" / "file"):
        with pytest.raises(MissingFileError, match="No readout at .*save"):
            empty().load(path)


def parts(data):
    """Tensors, metadata and content of a file."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return load(data), header["__metadata__"], json.loads(header["__metadata__"]["content"])


def keys_in(value, path=()):
    """Paths to all keys of nested mappings; of a list the first entry stands for all."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            yield from keys_in(inner, (*path, key))
    elif isinstance(value, list) and value:
        yield from keys_in(value[0], (*path, 0))


def changed(content, path, change):
    """A copy with one entry changed; ``change`` gets its container and key."""
    content = json.loads(json.dumps(content))
    place = content
    for key in path[:-1]:
        place = place[key]
    change(place, path[-1])
    return content


def drop(place, key):
    del place[key]


def written(tensors, values, **others):
    metadata = {"format": "captum_iba.readout", "version": "1", "content": json.dumps(values)} | others
    return save(tensors, {key: value for key, value in metadata.items() if value is not None})


def damaged_files(data):
    """Everything that can be missing, and tensors that no training leaves behind, by name."""
    tensors, metadata, content = parts(data)
    for key in metadata:
        yield f"no {key}", written(tensors, content, **{key: None})
    for path in keys_in(content):
        yield f"no {'.'.join(map(str, path))}", written(tensors, changed(content, path, drop))
    for name, tensor in tensors.items():
        yield f"no {name}", written({key: each for key, each in tensors.items() if key != name}, content)
        if tensor.ndim:
            yield f"half of {name}", written({**tensors, name: tensor[: len(tensor) // 2].clone()}, content)
            yield f"NaN in {name}", written({**tensors, name: torch.full_like(tensor, float("nan"))}, content)


def outcome(path, data, attempt, wanted, fine=()):
    """What is wrong about the way a damaged file is received: nothing, if it is refused or makes no difference."""
    path.write_bytes(data)
    try:
        found = attempt()
    except (ReadoutFileError, *fine):
        return None
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:100]
    try:
        assert_same(found, wanted)
    except AssertionError:
        return "read as something else"
    return None


@pytest.mark.parametrize("kind", ["readout", "checkpoint", "statistics"])
def test_what_is_missing_is_refused_or_makes_no_difference(tmp_path, files, kind):
    """Without one of the metadata, of the content's keys or of the tensors, or with half of one or NaN in it, load
    raises ReadoutFileError, or finds exactly what was written."""
    path = tmp_path / "file"
    path.write_bytes(files[kind])
    wanted = empty().load(path)
    cases = dict(damaged_files(files[kind]))
    found = {name: outcome(path, data, lambda: empty().load(path), wanted) for name, data in cases.items()}
    assert "\n".join(f"{name}: {problem}" for name, problem in found.items() if problem) == ""


def test_a_damaged_checkpoint_is_refused_or_makes_no_difference(tmp_path, files):
    """The same for fit: it goes on to exactly what it would have been, or says that the file is damaged, or of another
    training."""
    path = tmp_path / "file"

    def go_on():
        return make(**OPTIONS).fit(batches(), batches(15), checkpoint=path, **FIT)

    path.write_bytes(files["checkpoint"])
    wanted = go_on()
    wanted.history.seconds = 0.0

    def timeless():
        readout = go_on()
        readout.history.seconds = 0.0
        return readout

    cases = dict(damaged_files(files["checkpoint"]))
    found = {name: outcome(path, data, timeless, wanted, [InvalidArgumentError]) for name, data in cases.items()}
    assert "\n".join(f"{name}: {problem}" for name, problem in found.items() if problem) == ""


@pytest.mark.parametrize("metadata", [{"version": "2"}, {"format": "captum_iba.statistics"}], ids=["version", "format"])
def test_other_formats_are_refused(tmp_path, files, metadata):
    """A newer version and another format: the message says what was found and what is wanted."""
    tensors, _, content = parts(files["readout"])
    (tmp_path / "file").write_bytes(written(tensors, content, **metadata))
    with pytest.raises(
        ReadoutFileError, match=f"found format and version .*'{next(iter(metadata.values()))}'.* wanted"
    ):
        empty().load(tmp_path / "file")


def test_a_file_of_any_other_length_is_refused(tmp_path, files):
    """Cut off at each length of the header's start and at many others, or with more behind it."""
    data, path = files["checkpoint"], tmp_path / "file"
    for part in [*(data[:n] for n in (*range(64), *range(64, len(data), 97), len(data) - 1)), data + b"\0"]:
        path.write_bytes(part)
        with pytest.raises(ReadoutFileError, match="truncated"):
            empty().load(path)


VALUES = st.one_of(st.none(), st.booleans(), st.integers(-3, 10**19), st.floats(), st.text(max_size=3), st.just([]))


@pytest.mark.filterwarnings("ignore:.*trained for other weights")
@settings(max_examples=300, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_content_of_any_kind_is_read_or_refused(tmp_path, files, data):
    """Any value in any place of the content, or any byte of the header changed: a readout or ReadoutFileError."""
    kind = data.draw(st.sampled_from(["readout", "checkpoint"]))
    tensors, _, content = parts(files[kind])
    if data.draw(st.booleans()):
        path, value = data.draw(st.sampled_from(list(keys_in(content)))), data.draw(VALUES)
        found = written(tensors, changed(content, path, lambda place, key: place.__setitem__(key, value)))
    else:
        found = bytearray(files[kind])
        end = 8 + int.from_bytes(found[:8], "little")
        found[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "file").write_bytes(found)
    readout = empty()
    try:
        readout.load(tmp_path / "file")
    except ReadoutFileError:
        assert readout.statistics is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("where", ["writing", "replacing"])
@pytest.mark.parametrize("by", ["save", "fit"])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch, trained, error, where, by):
    """Half the bytes on the disk, or all but not in their place: the file is the old one, and there is no other."""
    path, write = tmp_path / "file", Path.write_bytes
    make().fit(batches(), checkpoint=path, max_steps=1, **FIT)
    before = path.read_bytes()

    def half(self, content):
        write(self, content[: len(content) // 2])
        raise error

    def never(*_paths):
        raise error

    if where == "writing":
        monkeypatch.setattr(Path, "write_bytes", half)
    else:
        monkeypatch.setattr(os, "replace", never)
    with pytest.raises(error):
        trained.save(path) if by == "save" else make().fit(batches(), checkpoint=path, **FIT)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["file"]


OTHERS = {
    "learning_rate": {"learning_rate": 2e-2},
    "beta": {"beta": 2.0},
    "seed": {"seed": 1},
    "targets": {"targets": "predictions"},
    "objective": {"objective": "log_probability"},
    "class_dim": {"class_dim": -1},
    "hidden_channels": {"hidden_channels": (4, 5)},
    "sigma": {"sigma": 0.5},
    "initial_alpha": {"initial_alpha": 4.0},
    "relu": {"relu": True},
    "align_corners": {"align_corners": True},
    "readout_layers": {"readout_layers": ("2", "1", "5")},
    "layer": {"layer": 2},
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, name):
    """The argument that differs is named, and only that; the file stays as it is."""
    path, options = tmp_path / "checkpoint", OTHERS[name]
    make().fit(batches(), checkpoint=path, **FIT)
    before, is_fit = path.read_bytes(), name in {"learning_rate", "beta", "seed", "targets", "objective", "class_dim"}
    readout = make() if is_fit else make(**options)
    with pytest.raises(InvalidArgumentError, match=rf"another training \({name}: [^;]* there, [^;]* here\)"):
        readout.fit(batches(), checkpoint=path, **{**FIT, **(options if is_fit else {})})
    assert path.read_bytes() == before


def test_what_does_not_belong_to_a_training_may_differ(tmp_path):
    """Statistics are the checkpoint's, whatever the object has, none included; validation may come later."""
    path, wanted = tmp_path / "checkpoint", make().fit(batches(), **FIT)
    model = network()
    without = type(wanted)(model, model[1], readout_layers=list(READ), hidden_channels=(5, 4))
    for other in (make(seed=52), without):
        path.unlink(missing_ok=True)
        make().fit(batches(), checkpoint=path, max_steps=4, **FIT)
        found = other.fit(batches(), batches(15), checkpoint=path, **FIT)
        assert_same_weights(weights(found), weights(wanted))
        assert [each.step for each in found.history.validation] == [4, 6]
        assert all(torch.equal(found.statistics[name].mean, wanted.statistics[name].mean) for name in READ)


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    """A file of save(), half a checkpoint and something else: ReadoutFileError, and the file stays as it is."""
    path = tmp_path / "checkpoint"
    make().fit(batches(), checkpoint=path, **FIT)
    whole = path.read_bytes()
    make().load(path).save(path)
    contents = {path.read_bytes(): "no training to go on with", whole[: len(whole) // 2]: "truncated"}
    for content, message in {**contents, b"": "truncated", b"weights" * 99: "not a readable"}.items():
        path.write_bytes(content)
        with pytest.raises(ReadoutFileError, match=message):
            make().fit(batches(), checkpoint=path, **FIT)
        assert path.read_bytes() == content


def test_a_checkpoint_that_cannot_be_written_is_refused_before_the_first_step(tmp_path):
    """A missing folder is found out before anything is computed."""
    model, passes = network(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    with pytest.raises(MissingFileError, match="does not exist; create it first"):
        make(model).fit(batches(), checkpoint=tmp_path / "missing" / "checkpoint", **FIT)
    assert not passes


def test_other_weights_of_the_same_network_are_noticed(tmp_path):
    """A file loads without a word into the network it was trained for, and with a warning into one of other weights; a
    training that goes on there is refused."""
    readout = make(**OPTIONS).fit(batches(), checkpoint=tmp_path / "training", **FIT)
    readout.save(tmp_path / "file")
    empty().load(tmp_path / "file")
    other = network()
    with torch.no_grad():
        other[5].weight[0, 0] += 1e-3
    fresh = make(other, **OPTIONS)
    with pytest.warns(CaptumIBAWarning, match="other weights of this network"):
        fresh.load(tmp_path / "file")
    with pytest.raises(InvalidArgumentError, match="weights of the model"):
        fresh.fit(batches(), checkpoint=tmp_path / "training", **FIT)


def test_a_history_of_a_million_steps_is_a_few_megabytes(tmp_path):
    """The history is kept in tables, which a file of any length of training can hold."""
    readout = make(**OPTIONS).fit(batches(), **FIT)
    first = readout.history.training[0]
    readout.history.training[:] = [first] * 10**6
    readout.save(tmp_path / "file")
    loaded = empty().load(tmp_path / "file")
    assert len(loaded.history.training) == 10**6 and loaded.history.training[-1] == first
    assert (tmp_path / "file").stat().st_size < 10**6 * 8 * 8 + 10**5
