"""LayerReadoutIBA leaves no trace: not in the network, in random states or modes, and not where training fails."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from captum_iba.attr import LayerReadoutIBA
from captum_iba.errors import (
    GradientModeError,
    InvalidArgumentError,
    InvalidTypeError,
    MissingFileError,
    NonFiniteError,
    NotTrainedError,
    ReadoutFileError,
    TargetIndexError,
)
from tests.attr.test_architectures import ChangingOrder
from tests.attr.test_layer_readout_fit import SHORT, WIDTHS, labelled, ready, weights_of
from tests.conformance._adapter import Snapshot, assert_no_hooks
from tests.literal import normal, small_cnn


class Moody(nn.Module):
    """Batch normalisation and dropout in training mode, a frozen weight, a gradient, and a module that may fail."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.last, self.dropout, self.classify = nn.Conv2d(4, 4, 3, stride=2), nn.Dropout(), nn.Linear(4, 3)
        self.norm.running_mean.normal_()
        self.conv.weight.requires_grad_(False)
        self.last.weight.grad = torch.randn_like(self.last.weight)
        self.calls, self.blows_at, self.blows_with = 0, 10**9, KeyError

    def forward(self, x):
        self.calls += 1
        x = self.relu(self.norm(self.conv(x)))
        if self.calls > self.blows_at:
            raise self.blows_with("blown")
        return self.classify(self.dropout(self.last(x)).amax(dim=(2, 3)))


def moody():
    torch.manual_seed(0)
    model = Moody().double()
    model.relu.eval()
    return model


def moody_data():
    return [(normal(4, 3, 6, 6, seed=i), torch.tensor([0, 1, 2, 0])) for i in range(3)]


@pytest.mark.filterwarnings("ignore:.*in training mode")
def test_the_analysed_network_stays_bit_for_bit():
    """Neither estimate nor fit, evaluate or attribute changes a tensor, a flag, a gradient or a hook."""
    model, x = moody(), normal(2, 3, 6, 6)
    readout, before = LayerReadoutIBA(model, model.conv, hidden_channels=WIDTHS), Snapshot(model, x)
    data = moody_data()
    calls = [
        lambda: readout.estimate(data),
        lambda: readout.fit(data, data, epochs=2, show_progress=False),
        lambda: readout.evaluate(data),
        lambda: readout.attribute(x),
        lambda: readout.attribute(x, target=1, return_diagnostics=True),
    ]
    for call in calls:
        call()
        before.assert_unchanged()
        assert_no_hooks(model)


@pytest.mark.filterwarnings("ignore:.*in training mode")
@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_a_failure_at_any_forward_pass_of_fit_leaves_no_trace(error):
    """Whichever forward pass fails, fit raises the model's error itself and puts everything back."""
    model = moody()
    readout = LayerReadoutIBA(model, model.conv, hidden_channels=WIDTHS).estimate(moody_data())
    model.calls = 0
    readout.fit(moody_data(), epochs=1, show_progress=False)
    n_calls = model.calls
    assert n_calls >= 6
    before = Snapshot(model)
    for at in range(n_calls):
        model.calls, model.blows_at, model.blows_with = 0, at, error
        with pytest.raises(error, match="blown"):
            readout.fit(moody_data(), epochs=1, show_progress=False)
        before.assert_unchanged()
        assert_no_hooks(model)


def test_global_random_states_are_left_alone():
    """Loaders that draw from the global generators of torch, numpy and Python leave them as they were."""

    class Augmented(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, i):
            noise = torch.randn(3, 6, 6) + random.random() + np.random.rand()
            return noise.double(), i % 3

    model = moody().eval()
    readout = LayerReadoutIBA(model, model.conv, hidden_channels=WIDTHS).estimate(moody_data())
    loader = DataLoader(Augmented(), batch_size=4, shuffle=True)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()
    readout.fit(loader, loader, epochs=2, show_progress=False)
    first = weights_of(readout)
    readout.evaluate(loader)
    readout.attribute(normal(2, 3, 6, 6), target=1, return_diagnostics=True)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1] and np.random.get_state()[1].tobytes() == states[2]
    torch.manual_seed(99)
    again = weights_of(readout.fit(loader, loader, epochs=2, show_progress=False))
    assert all(torch.equal(value, again[name]) for name, value in first.items())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_does_not_matter(mode):
    """Under no_grad and inference_mode, also with data made there, training gives the usual weights."""
    model = small_cnn()
    wanted = weights_of(ready(model).fit(labelled(), **SHORT))
    with mode():
        readout = ready(model).fit(labelled(), labelled(), **SHORT)
        found = readout.evaluate(labelled())
    assert all(torch.equal(value, wanted[name]) for name, value in weights_of(readout).items())
    assert readout.evaluate(labelled()) == found


def test_the_default_device_does_not_matter():
    """Statistics, first weights, noise and labels are made on the model's device, whatever torch's default is."""
    model, data = small_cnn(), [(x, y.tolist()) for x, y in labelled()]
    calibration = normal(1200, 3, 10, 10, seed=9)
    wanted = ready(model).fit(data, **SHORT)
    readout = LayerReadoutIBA(model, model[2], hidden_channels=WIDTHS)
    with torch.device("meta"):
        readout.estimate(calibration).fit(data, **SHORT)
        found = readout.evaluate(data)
    assert all(torch.equal(value, weights_of(readout)[name]) for name, value in weights_of(wanted).items())
    assert found == wanted.evaluate(data)


def test_data_made_in_inference_mode_train_like_any_others():
    """Inputs that a skip connection takes past the layer are saved for the backward pass, wherever they come from."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.layer(x) * x)

    torch.manual_seed(0)
    model, calibration = Gated().eval(), torch.randn(50, 3)
    labels = torch.arange(50) % 2
    readout = LayerReadoutIBA(model, model.layer, hidden_channels=WIDTHS).estimate(calibration)
    wanted = weights_of(readout.fit([(calibration, labels)], **SHORT))
    with torch.inference_mode():
        made_there = [(calibration.clone(), labels.clone())]
    found = weights_of(readout.fit(made_there, **SHORT))
    assert all(torch.equal(value, found[name]) for name, value in wanted.items())


# what goes wrong on the way


@pytest.mark.filterwarnings("ignore:What comes before")
@pytest.mark.parametrize("since", [0, 2, 3, 6])
def test_a_prefix_that_changes_its_order_falls_back_to_the_whole_model(since):
    """A model that takes another way now and then is run as a whole, and training goes on."""
    torch.manual_seed(0)
    model = ChangingOrder(since).double().eval()
    data = [(normal(4, 3, 6, 6, seed=i), torch.tensor([0, 1, 2, 0])) for i in range(4)]
    readout = LayerReadoutIBA(model, model.layer, readout_layers=["layer"], hidden_channels=WIDTHS).estimate(data)
    model.since = 10**9
    wanted = weights_of(readout.fit(data, epochs=1, show_progress=False))
    model.calls, model.since = 0, since
    found = weights_of(readout.fit(data, epochs=1, show_progress=False))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-9)


def test_a_layer_without_influence_is_refused():
    """Where the output is cut off from the layer, fit says so, whether the weights after it are frozen or not."""

    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.layer(x).detach())

    model, x = Detached().eval(), normal(20, 3).float()
    readout = LayerReadoutIBA(model, model.layer, hidden_channels=WIDTHS).estimate(x)
    for requires_grad in (False, True):
        model.requires_grad_(requires_grad)
        with pytest.raises(GradientModeError, match="does not depend on the layer"):
            readout.fit([x], targets="predictions", **SHORT)


def test_training_that_diverges_names_the_step_and_keeps_the_weights_before():
    """A loss that becomes NaN at step 2 stops training there; network and history are those of two steps."""
    model, calls = small_cnn(), []

    def breaks(output, target):
        calls.append(1)
        loss = F.cross_entropy(output, target, reduction="none")
        return loss * (float("nan") if len(calls) > 5 else 1.0)  # two calls a step: without noise, and with

    readout = ready(model).fit(
        labelled(), objective=lambda o, t: F.cross_entropy(o, t, reduction="none"), **SHORT | {"max_steps": 2}
    )
    wanted = weights_of(readout)
    with pytest.raises(NonFiniteError, match=r"step 2 \(epoch 0, batch 2\).*objective"):
        readout.fit(labelled(), objective=breaks, **SHORT)
    assert all(torch.equal(value, weights_of(readout)[name]) for name, value in wanted.items())
    assert len(readout.history.training) == 2


def test_a_training_that_never_began_leaves_nothing_to_explain_with():
    """Where the first batch already is refused there is no trained network, and one that was there before stays."""
    model, x = small_cnn(), normal(2, 3, 10, 10)
    bad = [(x, torch.tensor([0, 9]))]
    readout = ready(model)
    with pytest.raises(TargetIndexError):
        readout.fit(bad, **SHORT)
    with pytest.raises(NotTrainedError):
        readout.attribute(x)
    wanted = readout.fit(labelled(), **SHORT).attribute(x)
    with pytest.raises(TargetIndexError):
        readout.fit(bad, **SHORT)
    assert torch.equal(readout.attribute(x), wanted)


def test_a_function_that_hides_its_modules_has_no_names_to_save(tmp_path):
    """Statistics of layers out of sight do not fall together, and nothing is written that could not be loaded."""
    model = small_cnn()

    def hidden(x, box=(model,)):
        return box[0](x)

    arguments = {"readout_layers": [model[2], model[5]], "hidden_channels": WIDTHS}
    readout = LayerReadoutIBA(hidden, model[2], **arguments).estimate(normal(1200, 3, 10, 10, seed=9))
    readout.fit(labelled(), **SHORT)
    assert len(readout.statistics) == 2
    with pytest.raises(InvalidArgumentError, match="hides its modules"):
        readout.save(tmp_path / "readout")
    assert not list(tmp_path.iterdir())


def test_numpy_numbers_are_numbers(tmp_path):
    """Numbers that pass the checks serve everywhere: as seeds, as widths, and in a file."""
    model = small_cnn()
    plain = {"hidden_channels": (4, 5), "initial_alpha": 4.0, "sigma": 0.5}
    others = {"hidden_channels": (np.int64(4), np.int32(5)), "initial_alpha": np.float32(4), "sigma": np.float32(0.5)}
    calibration = normal(1200, 3, 10, 10, seed=9)
    wanted = LayerReadoutIBA(model, model[2], **plain).estimate(calibration).fit(labelled(), seed=3, **SHORT)
    found = LayerReadoutIBA(model, model[2], **others).estimate(calibration)
    found.fit(labelled(), seed=np.int64(3), checkpoint=tmp_path / "training", **SHORT).save(tmp_path / "readout")
    assert all(torch.equal(value, weights_of(found)[name]) for name, value in weights_of(wanted).items())


def test_layers_passed_in_the_place_of_device_ids_are_recognised():
    """The third positional argument is Captum's device_ids; layers or statistics there are refused, not unused."""
    model = small_cnn()
    for third in (["2"], [model[2], model[5]], {"2": None}):
        with pytest.raises(InvalidTypeError, match="device_ids"):
            LayerReadoutIBA(model, model[2], third)


def test_a_checkpoint_that_cannot_be_written_is_refused_before_the_first_step(tmp_path):
    """A folder that does not exist, or a file that is one, is an error at once, not after hours of training."""
    readout = ready(small_cnn())
    for path in (tmp_path / "none" / "training", tmp_path):
        with pytest.raises((MissingFileError, InvalidArgumentError, ReadoutFileError)):
            readout.fit(labelled(), checkpoint=path, **SHORT)
        assert readout.history.training == []
