"""Laws of training a readout bottleneck: repeatable, resumable bit for bit, and clear about what went wrong."""

import itertools
import random
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as recompute
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import captum_iba.attr._training
from captum_iba.attr._training_data import stream_seed
from captum_iba.errors import (
    CaptumIBAWarning,
    InvalidArgumentError,
    InvalidTypeError,
    NonFiniteError,
)
from tests.attr.readout_processes import (
    DATA,
    FIT,
    IMAGES,
    LABELS,
    SIZE,
    STEPS,
    Augmented,
    assert_same_training,
    assert_same_weights,
    batches,
    interrupted,
    make,
    network,
    numbers,
    own_generator,
    weights,
)
from tests.literal import blur_matrix

TOTAL = STEPS * FIT["epochs"]


MOMENTS = [("list", 1, True), *itertools.product([kind for kind in DATA if kind != "list"], [3], [True, False])]


@pytest.mark.parametrize(("kind", "every", "anew"), MOMENTS)
def test_interrupted_at_any_moment_it_ends_as_if_never(tmp_path, monkeypatch, kind, every, anew):
    """Ctrl-C at any event in the data, the model, the validation, the optimiser's step and the writing of files: gone
    on with, the checkpoint at the end is that of an uninterrupted training, bit for bit; with new loaders, as after a
    restart, and with those that were interrupted."""
    wanted, different = tmp_path / "wanted", []
    validation = batches(15) if kind == "list" else None
    make().fit(DATA[kind](), validation, checkpoint=wanted, **FIT)
    for moment in itertools.count(1, every):
        path, data = tmp_path / str(moment), DATA[kind]()
        if not interrupted(monkeypatch, path, moment, data, validation, checkpoint_every=2):
            break
        if not path.exists() and not anew:
            continue  # before the first step: what comes is a new training, with a loader in another state
        make().fit(DATA[kind]() if anew else data, validation, checkpoint=path, **FIT)
        try:
            assert_same_training(path, wanted)
        except AssertionError:
            different.append(moment)
    # each step has an event in the data, two passes of the model, and two of the optimiser
    assert moment > 5 * TOTAL and not different, (moment, different)


def test_held_out_data_may_be_shuffled_too(tmp_path, monkeypatch):
    """A validation loader with a generator of its own gives the same curve after an interruption."""
    wanted, path = tmp_path / "wanted", tmp_path / "stopped"
    make().fit(batches(), own_generator(), checkpoint=wanted, **FIT)
    assert interrupted(monkeypatch, path, 15, batches(), own_generator())
    assert len(make().load(path).history.validation) == 1
    make().fit(batches(), own_generator(), checkpoint=path, **FIT)
    assert_same_training(path, wanted)


def test_workers_change_nothing(tmp_path, monkeypatch):
    """Loaded by two processes, what is augmented repeats, and goes on after an interruption, all the same."""

    def data():
        return DataLoader(Augmented(), SIZE, shuffle=True, num_workers=2, multiprocessing_context="fork")

    wanted, path = tmp_path / "wanted", tmp_path / "stopped"
    make().fit(data(), checkpoint=wanted, **FIT)
    assert interrupted(monkeypatch, path, 27, data(), None)
    assert STEPS < len(make().load(path).history.training) < TOTAL
    make().fit(data(), checkpoint=path, **FIT)
    assert_same_training(path, wanted)


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize(
    "limit", [{"max_steps": 1}, {"max_steps": 2}, {"max_steps": 3}, {"max_steps": 4}, {"epochs": 1}]
)
def test_longer_later_equals_long_at_once(tmp_path, kind, limit):
    """A training that was to be shorter goes on to more steps or epochs, in a new process, as if it had been to be so
    long from the start."""
    path, wanted = tmp_path / "parts", tmp_path / "whole"
    make().fit(DATA[kind](), checkpoint=path, **{**FIT, **limit})
    assert len(make().load(path).history.training) == limit.get("max_steps", STEPS)
    make().fit(DATA[kind](), checkpoint=path, **FIT)
    make().fit(DATA[kind](), checkpoint=wanted, **FIT)
    assert_same_training(path, wanted)


def test_a_finished_training_is_read_and_not_written(tmp_path):
    """The third call runs no pass of the model and leaves the file as it is; the object is the trained one."""
    path, model, passes = tmp_path / "checkpoint", network(), []
    first = make().fit(batches(), batches(15), checkpoint=path, **FIT)
    before = path.read_bytes()
    model.register_forward_hook(lambda *_: passes.append(1))
    again = make(model).fit(batches(), batches(15), checkpoint=path, **FIT)
    assert not passes and path.read_bytes() == before and again.history == first.history
    assert_same_weights(weights(again), weights(first))
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"]


def global_states():
    return torch.random.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())


@pytest.mark.parametrize("kind", DATA)
def test_global_seeds_change_nothing_and_are_not_changed(kind):
    """Whatever the global generators' states are, weights are the same; and the states stay as they were."""
    found = []
    for number in (0, 1):
        readout, data = make(), DATA[kind]()
        torch.manual_seed(number), random.seed(number), np.random.seed(number)
        before = global_states()
        found.append(weights(readout.fit(data, batches(15), **FIT)))
        assert global_states() == before
    assert_same_weights(*found)


def test_the_seed_decides():
    """The same seed gives the same weights; another one gives other first weights, noise and order of the data."""
    orders, found = [], []
    for seed in (0, 0, 1):
        seen = []
        targets = lambda batch, seen=seen: seen.append(batch[0]) or batch[1]  # noqa: E731
        readout = make().fit(DATA["shuffled"](), targets=targets, seed=seed, **FIT)
        orders.append(torch.cat(seen))
        found.append(readout)
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0][: len(IMAGES)], orders[0][len(IMAGES) :]), "each epoch has an order of its own"
    assert numbers(found[0].history) == numbers(found[1].history)
    for name, tensor in weights(found[0]).items():
        assert torch.equal(tensor, weights(found[1])[name]) and not torch.equal(tensor, weights(found[2])[name])


def test_training_does_not_depend_on_validation(tmp_path):
    """With held-out data, shuffled by the global generators, the weights are those without; nor is the model touched:
    its parameters, their gradients, its hooks."""
    model = network()
    found = make(model).fit(DATA["augmented"](), DATA["augmented"](), **FIT)
    assert_same_weights(weights(found), weights(make().fit(DATA["augmented"](), **FIT)))
    assert_same_weights(model.state_dict(), network().state_dict())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or "forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize(("every", "steps"), [(2, [2, 3, 4, 6]), (1, [1, 2, 3, 4, 5, 6]), (100, [3, 6])])
def test_checkpoints_are_written_when_they_should(tmp_path, monkeypatch, every, steps):
    """After each checkpoint_every steps and each epoch, and at no other time."""
    written, write = [], captum_iba.attr._training.write_readout
    note = lambda *arguments: (write(*arguments), written.append(arguments[-1].step))  # noqa: E731
    monkeypatch.setattr("captum_iba.attr._training.write_readout", note)
    make().fit(batches(), checkpoint=tmp_path / "checkpoint", checkpoint_every=every, **FIT)
    assert sorted(set(written)) == steps


class Named(nn.Module):
    """Takes its images by name, and would compute a loss of its own if it were given labels."""

    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, images, **more):
        assert not more, f"was given {list(more)}"
        return self.inner(images)


@pytest.mark.parametrize("key", ["labels", "label", "another"])
def test_labels_in_mappings(key):
    """Keyword arguments with labels among them train to the same weights as tuples, and the model does not get the
    labels; nor where a function names them."""
    model, options = Named().eval(), {}
    data = [{"images": x, key: y} for x, y in batches()]
    if key == "another":
        options = {"targets": lambda batch: batch["another"], "input_fn": lambda batch: (batch["images"], None)}
    found = make(model, inside="inner.").fit(data, data, **FIT, **options)
    assert_same_weights(weights(found), weights(make().fit(batches(), **FIT)))


def test_targets_by_any_way_are_the_same():
    """The model's predictions as labels, as targets="predictions", as a function, and as plain lists."""
    model = network()
    labelled = [(x, model(x).argmax(dim=1)) for x, _ in batches()]
    wanted = make().fit(labelled, **FIT)
    assert all(measures.model_accuracy == 1.0 for measures in wanted.history.training)
    ways = [
        make().fit(batches(), targets="predictions", **FIT),
        make().fit([x for x, _ in batches()], targets="predictions", **FIT),
        make().fit(batches(), targets=lambda batch: model(batch[0]).argmax(dim=1), **FIT),
        make().fit([(x, y.tolist()) for x, y in labelled], **FIT),
    ]
    for found in ways:
        assert_same_weights(weights(found), weights(wanted))
        assert numbers(found.history) == numbers(wanted.history)
    with pytest.raises(InvalidTypeError, match="train_data has no labels.*predictions"):
        make().fit([x for x, _ in batches()], **FIT)


def test_held_out_data_are_measured_with_the_same_noise():
    """Before the first step and after each epoch; with weights that stay, the numbers stay. They are evaluate's."""
    options = {**FIT, "learning_rate": 1e-300, "epochs": 3}
    history = make().fit(batches(), batches(15), seed=4, **options).history
    assert [(each.step, each.epoch, each.n) for each in history.validation] == [(3 * k, k, 22) for k in range(4)]
    assert len({each.objective for each in history.validation}) == 1
    readout = make().fit(batches(), batches(15), seed=4, **FIT)
    last, found = readout.history.validation[-1], readout.evaluate(batches(15), beta=FIT["beta"], seed=4)
    names = ("n", "objective", "loss", "bits", "accuracy", "model_accuracy")
    assert [getattr(found, name) for name in names] == [getattr(last, name) for name in names]
    assert last.objective < readout.history.validation[0].objective


def test_the_first_record_is_the_papers_formula():
    """Network, resize, smoothing, noise, information and cross-entropy in plain tensors give the first step's record,
    to 1e-9."""
    options = {**FIT, "learning_rate": 1e-300, "max_steps": 1}
    readout, model, (x, y) = make(align_corners=True).fit(batches(), seed=6, **options), network(), batches()[0]
    with torch.no_grad():
        features = list(itertools.accumulate(model, lambda values, module: module(values), initial=x))[1:]
        normal = {name: (features[int(name)] - known.mean) / known.std for name, known in readout.statistics.items()}
        large = nn.functional.interpolate(normal["2"], (4, 4), mode="bilinear", align_corners=True)
        read = torch.cat([normal["1"], large, normal["5"][:, :, None, None].expand(-1, -1, 4, 4)], dim=1)
        state = weights(readout)
        first = torch.cat([state[f"first.{index}"] for index in range(3)], dim=1)
        h = torch.einsum("oc,nchw->nohw", first, read) + state["first_bias"][:, None, None]
        for name in ("second", "third"):
            h = torch.einsum("oc,nchw->nohw", state[f"{name}.weight"], h.relu()) + state[f"{name}.bias"][:, None, None]
        blur = blur_matrix(1.0, 4)
        lam = blur @ torch.sigmoid(h) @ blur.T
        nats = -0.5 * (1 + (1 - lam).square().log() - (lam * normal["1"]).square() - (1 - lam).square())
        eps = torch.randn(
            x.shape[0], 3, 4, 4, generator=torch.Generator().manual_seed(stream_seed(6, "training noise", 0))
        )
        known = readout.statistics["1"]
        output = model[2:](lam * features[1] + (1 - lam) * (known.mean + known.std * eps.double()))
        loss = float(nn.functional.cross_entropy(output, y))
        wanted = {
            **{"step": 0, "epoch": 0, "n": 8, "objective": loss + FIT["beta"] * float(nats.mean()), "loss": loss},
            "bits": float(nats.flatten(1).sum(dim=1).mean()) / np.log(2),
            "accuracy": float((output.argmax(dim=1) == y).double().mean()),
            "model_accuracy": float((features[5].argmax(dim=1) == y).double().mean()),
        }
    assert numbers(readout.history)["training"] == [pytest.approx(wanted, rel=1e-9)]


NAN, STOP = float("nan"), 4


class Once:
    """Batches of which one brings a change: to its images, or as a hook or an objective to its noisy output."""

    def __init__(self, change, of_images):
        self.change, self.of_images, self.step = change, of_images, -1

    def __iter__(self):
        for x, y in batches():
            self.step += 1
            yield self.change(x) if self.of_images and self.step == STOP else x, y

    def __len__(self):
        return STEPS

    def hook(self, _module, _inputs, output):
        return self.change(output) if self.step == STOP and output.requires_grad else output

    def __call__(self, output, target):
        return nn.functional.cross_entropy(self.hook(None, None, output), target, reduction="none")


def with_nan_gradient(values):
    values.register_hook(lambda gradient: gradient * NAN)
    return values


LARGEST = 1.7e308 / float(IMAGES.abs().max())
FAULTS = {
    "data": (lambda values: values * NAN, "train_data holds NaN or infinity"),
    "features": (lambda values: values * LARGEST, "features of layer '0' .* NaN or infinity"),
    "information": (lambda values: values * 1e160, "information|bits|features"),
    "output": (lambda values: values * NAN, "the model's output for noisy features became NaN"),
    "gradient": (with_nan_gradient, "the gradient became NaN or infinite"),
    "objective": (lambda values: values * NAN, "the objective became NaN or infinite. Look at whether objective fits"),
}


def train_with(once, kind, **options):
    """A training with the fault in its place."""
    model = network()
    if kind == "objective":
        options["objective"] = once
    elif not once.of_images:
        model[5].register_forward_hook(once.hook)
    readout = make(model, layer=0, readout_layers=("2", "5"))
    try:
        readout.fit(once, **{**FIT, **options})
    except NonFiniteError as error:
        return readout, str(error)
    return readout, ""


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.filterwarnings("ignore:100 % of the features:captum_iba.errors.CaptumIBAWarning")
def test_it_stops_at_what_is_not_finite_and_names_it(tmp_path, kind):
    """NaN or infinity in the data, the features, the information, the output for noisy features, the gradient or the
    user's objective: the weights are those before that step, the checkpoint goes on to what it would have been, and
    the message names the cause, the step, and no process that there is not."""
    (change, message), path, of_images = (
        FAULTS[kind],
        tmp_path / "checkpoint",
        kind in ("data", "features", "information"),
    )
    once, sound = Once(change, of_images), [Once(lambda values: values, of_images) for _ in range(2)]
    stopped, found = train_with(once, kind, checkpoint=path)
    assert_same_weights(weights(stopped), weights(train_with(sound[0], kind, max_steps=STOP)[0]))
    assert len(make(layer=0, readout_layers=("2", "5")).load(path).history.training) == STOP
    gone_on, nothing = train_with(once, kind, checkpoint=path)
    whole, _ = train_with(sound[1], kind)
    assert not nothing and numbers(gone_on.history) == numbers(whole.history)
    assert_same_weights(weights(gone_on), weights(whole))
    pattern = re.compile(message)
    assert pattern.search(found) and "another process" not in found, found
    assert f"step {STOP} (epoch 1, batch 1)" in found and "The weights are those before this step." in found, found


def test_a_generator_is_used_up():
    """A one-shot generator trains an epoch; a second one finds nothing, and the message says what to pass."""
    once = make().fit((batch for batch in batches()), **{**FIT, "epochs": 1})
    assert_same_weights(weights(once), weights(make().fit(batches(), **{**FIT, "epochs": 1})))
    twice = make()
    message = (
        "train_data has 0 batches in epoch 1, .* generator can be used only once: pass a list of batches or a Data"
    )
    with pytest.raises(InvalidArgumentError, match=message):
        twice.fit((batch for batch in batches()), **FIT)
    assert_same_weights(weights(twice), weights(once))


class Box:
    def __init__(self, value):
        self.value = value


class Boxes(nn.Module):
    """Hands the network's first features on in an object, which replaying does not look into."""

    def __init__(self):
        super().__init__()
        self.inner, self.pack = network(), Pack()
        self.eval()

    def forward(self, x):
        return self.inner[1:](self.pack(self.inner[0](x)).value)


class Pack(nn.Module):
    def forward(self, x):
        return Box(x)


class Recomputes(nn.Module):
    """Recomputes activations in the backward pass, with or without the bottleneck's layer among them."""

    def __init__(self, until):
        super().__init__()
        self.inner, self.until = network(), until
        self.eval()

    def forward(self, x):
        return self.inner[self.until :](recompute(self.inner[: self.until], x, use_reentrant=False))


@pytest.mark.parametrize("model", [Boxes(), Recomputes(1), Recomputes(3), Recomputes(6)], ids=["boxes", "1", "3", "6"])
@pytest.mark.filterwarnings("ignore:What comes before:captum_iba.errors.CaptumIBAWarning")
def test_what_cannot_be_replayed_trains_to_the_same_weights(model):
    """Models that hand on objects, or recompute activations before or around the layer, give the weights of one that
    is replayed."""
    found = make(model, inside="inner.").fit(batches(), **FIT)
    assert_same_weights(weights(found), weights(make().fit(batches(), **FIT)))


def test_what_cannot_be_replayed_is_said():
    """One warning, with the reason."""
    with pytest.warns(CaptumIBAWarning, match="cannot be replayed .Pack returns a Box.* only slower") as given:
        make(Boxes(), inside="inner.").fit(batches(), **FIT)
    assert sum("replayed" in str(each.message) for each in given) == 1


def test_mixed_precision_is_the_models_alone():
    """The model runs in bfloat16, both with and without noise; network, bits and history are float32's and finite."""
    model, seen = network(dtype=torch.float32), []
    model[5].register_forward_hook(lambda _m, _i, output: seen.append((output.dtype, output.requires_grad)))
    data = [(x.float(), y) for x, y in batches()]
    readout = make(model).fit(data, data, mixed_precision=True, **FIT)
    assert set(seen) == {(torch.bfloat16, False), (torch.bfloat16, True)}
    assert {tensor.dtype for tensor in weights(readout).values()} == {torch.float32}
    history = numbers(readout.history)
    assert np.isfinite([[*each.values()] for kind in ("training", "validation") for each in history[kind]]).all()
    plain = make(network(dtype=torch.float32)).fit(data, data, **FIT)
    assert history["validation"][-1]["bits"] == pytest.approx(plain.history.validation[-1].bits, rel=0.05)
    assert history != numbers(plain.history)


def test_the_sampler_is_told_the_epoch(tmp_path):
    """A DistributedSampler gets every epoch's number, also the one that is gone on with; so it shuffles anew."""
    data, told = TensorDataset(IMAGES, LABELS), []

    class Sampler(DistributedSampler):
        def set_epoch(self, epoch):
            told.append(epoch)
            super().set_epoch(epoch)

    def loader():
        return DataLoader(data, SIZE, sampler=Sampler(data, 1, 0))

    whole = make().fit(loader(), checkpoint=tmp_path / "whole", **FIT)
    assert told == [0, 1] and len(whole.history.training) == TOTAL
    told.clear()
    make().fit(loader(), checkpoint=tmp_path / "parts", max_steps=4, **FIT)
    make().fit(loader(), checkpoint=tmp_path / "parts", **FIT)
    assert told == [0, 1, 1]
    assert_same_training(tmp_path / "parts", tmp_path / "whole")
