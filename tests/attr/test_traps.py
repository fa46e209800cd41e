"""Models that go about their tensors in unusual ways: what replay must not get wrong, and what calls must not leave."""

import copy
import dataclasses
import gc
import threading
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from captum_iba import IBA, LayerIBA
from captum_iba.bottleneck.tail import Tail
from captum_iba.errors import CaptumIBAWarning, InvalidArgumentError, InvalidTypeError, TargetIndexError
from tests.literal import normal

SHORT = {"n_steps": 4, "n_samples": 3}


class Encoder(nn.Module):
    """Hands its maps on in a container of the caller's choice."""

    def __init__(self, pack):
        super().__init__()
        self.first, self.second, self.pack = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), pack

    def forward(self, x):
        one = self.first(x).tanh()
        return self.pack([one, self.second(one).tanh()])


class Skipping(nn.Module):
    """A network around a layer ``mid``; ``use(encoded, mid)`` does with the encoder's container as it likes."""

    def __init__(self, use, pack=list):
        super().__init__()
        self.encoder, self.mid, self.use = Encoder(pack), nn.Conv2d(4, 4, 3, padding=1), use
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.use(self.encoder(x), self.mid).mean(dim=(2, 3)))


def pops(encoded, mid):
    x = mid(encoded.pop())
    while encoded:
        x = x + encoded.pop()
    return x


def appends(encoded, mid):
    encoded.append(mid(encoded[-1]))
    return sum(encoded)


def nested(encoded, mid):
    encoded["maps"].append(mid(encoded["maps"][-1]))
    encoded["more"] = encoded["maps"][-1]
    return sum(encoded["maps"]) + encoded["more"]


@dataclasses.dataclass
class Record:
    maps: list


class Opaque:
    """No plain data: whoever gets it may change it unseen."""

    def __init__(self, maps):
        self.maps = maps


def of_record(encoded, mid):
    encoded.maps.append(mid(encoded.maps[-1]))
    return sum(encoded.maps)


class Checkpointed(nn.Module):
    """Recomputes a block in the backward pass; with a skip past the layer."""

    def __init__(self, skip):
        super().__init__()
        self.before, self.head, self.skip = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3), skip
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1))

    def forward(self, x):
        x = self.before(x).tanh()
        out = checkpoint(self.block, x, use_reentrant=False)
        return self.head((out + x if self.skip else out).mean(dim=(2, 3)))


def ready(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model.double().eval()


def calibrated(model, layer):
    return LayerIBA(model, layer).estimate(normal(1000, 3, 6, 6, seed=1))


CASES = {
    "list popped": (lambda: Skipping(pops), "mid"),
    "list appended to": (lambda: Skipping(appends), "mid"),
    "mapping changed": (lambda: Skipping(nested, lambda maps: {"maps": maps}), "mid"),
    "ordered mapping changed": (lambda: Skipping(nested, lambda maps: OrderedDict(maps=maps)), "mid"),
    "data class changed": (lambda: Skipping(of_record, Record), "mid"),
    "opaque object changed": (lambda: Skipping(of_record, Opaque), "mid"),
    "checkpoint": (lambda: Checkpointed(skip=False), "block.1"),
    "checkpoint and skip": (lambda: Checkpointed(skip=True), "block.1"),
    "checkpoint, layer first in it": (lambda: Checkpointed(skip=True), "block.0"),
}


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:What comes before")
def test_the_whole_models_bits(name, n, monkeypatch):
    """Whatever the model does with what its modules return, the bits are those of the plain computation."""
    make, layer = CASES[name]
    model = ready(make())
    iba = calibrated(model, model.get_submodule(layer))
    x = normal(n, 3, 6, 6, seed=2)
    found = iba.attribute(x, target=1, **SHORT)
    monkeypatch.setattr("torch.utils.checkpoint.checkpoint", lambda f, *a, **_k: f(*a))
    monkeypatch.setitem(globals(), "checkpoint", lambda f, *a, **_k: f(*a))

    def plain(self, z, copies):
        self._mode = "whole model"
        return original(self, z, copies)

    original = Tail.run
    monkeypatch.setattr(Tail, "run", plain)
    wanted = iba.attribute(x, target=1, **SHORT)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def test_opaque_objects_are_not_replayed():
    """An object that may hide state means the whole model, said once for all calls."""
    model = ready(Skipping(of_record, Opaque))
    iba = calibrated(model, model.mid)
    with pytest.warns(CaptumIBAWarning, match="cannot be replayed.*Opaque") as caught:
        for _ in range(3):
            _, record = iba.attribute(normal(2, 3, 6, 6), target=1, return_diagnostics=True, **SHORT)
    assert record.forward_mode == "whole model"
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_all_modules_of_a_closure_are_switched_and_replayed():
    """A function of two modules: both run in evaluation mode and are put back, and what comes before is replayed."""
    stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).double()
    body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3)).double()
    before = copy.deepcopy([stem.state_dict(), body.state_dict()])
    iba = LayerIBA(lambda x: body(stem(x)), body[0])
    with pytest.warns(CaptumIBAWarning, match="modules are in training mode"):
        iba.estimate(normal(1000, 3, 6, 6))
    _, record = iba.attribute(normal(2, 3, 6, 6), target=1, return_diagnostics=True, **SHORT)
    assert record.forward_mode == "replay"
    assert stem.training
    assert body[1].training
    for state, module in zip(before, (stem, body), strict=True):
        assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())


def test_self_attention_gets_the_noise_everywhere():
    """At the input of self-attention query, key and value are one tensor: all three are exchanged."""

    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.attend = nn.Linear(3, 4), nn.MultiheadAttention(4, 2, batch_first=True)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            x = self.embed(x)
            return self.head(self.attend(x, x, x, need_weights=False)[0].mean(dim=1))

    model = ready(Attending())
    x = normal(2, 5, 3)
    inner, before = LayerIBA(model, model.attend), LayerIBA(model, model.embed)
    inner.estimate(normal(100, 5, 3, seed=1), attribute_to_layer_input=True)
    before.estimate(normal(100, 5, 3, seed=1))
    found = inner.attribute(x, target=1, attribute_to_layer_input=True)
    torch.testing.assert_close(found, before.attribute(x, target=1), rtol=0, atol=1e-9)
    assert inner.statistics is not None


def test_threads_share_a_model_and_the_attention_switch():
    """Calls from several threads wait for each other, give the usual result and leave torch's switch as it was."""
    models = [ready(Skipping(pops), seed) for seed in range(2)]
    methods = [calibrated(model, model.mid) for model in models]
    x = normal(1, 3, 6, 6)
    wanted = [method.attribute(x, target=1, **SHORT) for method in methods]
    results = [None] * 8

    def work(i):
        results[i] = methods[i % 2].attribute(x, target=1, **SHORT)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(result, wanted[i % 2]) for i, result in enumerate(results))
    assert torch.backends.mha.get_fastpath_enabled()


def test_no_tensor_outlives_its_call():
    """Without the garbage collector's help: a call leaves no cycle that holds its tensors."""
    model = ready(Skipping(pops))
    iba = calibrated(model, model.mid)
    x = normal(1, 3, 6, 6)
    iba.attribute(x, target=1, **SHORT)
    gc.collect()

    def tensors():
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    gc.disable()
    try:
        before = tensors()
        for _ in range(3):
            iba.attribute(x, target=1, **SHORT)
        assert tensors() == before
    finally:
        gc.enable()


def test_default_device_does_not_matter():
    """Noise is drawn on the CPU whatever torch's default device is."""
    model = ready(Skipping(pops))
    iba = calibrated(model, model.mid)
    x = normal(1, 3, 6, 6)
    wanted = iba.attribute(x, target=1, **SHORT)
    with torch.device("meta"):
        found = iba.attribute(x, target=1, **SHORT)
    assert torch.equal(found, wanted)


def test_statistics_made_in_inference_mode_serve():
    """Estimating under inference_mode gives statistics like any others."""
    model = ready(Skipping(pops))
    with torch.inference_mode():
        iba = calibrated(model, model.mid)
    wanted = calibrated(model, model.mid)
    x = normal(1, 3, 6, 6)
    assert torch.equal(iba.attribute(x, target=1, **SHORT), wanted.attribute(x, target=1, **SHORT))


@pytest.mark.parametrize("target", [4, -5, [0, 4], torch.tensor([0, -1]), (4,), torch.tensor(7)])
def test_classes_that_do_not_exist(target):
    """Integer targets are compared with the output's size before anything is gathered."""
    model = ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 4)))
    with pytest.raises(TargetIndexError, match="does not fit the model's output"):
        calibrated(model, model[0]).attribute(normal(2, 3, 6, 6), target=target)


def test_objective_must_give_one_loss_a_row():
    """A mean over the batch is refused, for one example too, with the way out."""
    model = ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 4)))
    iba = calibrated(model, model[0])

    def mean_loss(output, target):
        return nn.functional.cross_entropy(output, torch.zeros(len(output), dtype=torch.long))

    for n in (1, 2):
        with pytest.raises(InvalidArgumentError, match=r"objective.*reduction='none'"):
            iba.attribute(normal(n, 3, 6, 6), target=0, objective=mean_loss)


def test_log_likelihoods_above_zero_are_no_probabilities():
    """A regression's output has no probability; the record says None rather than a number above one."""
    model = ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 1)))
    model[2].bias.data += 1000
    _, record = calibrated(model, model[0]).attribute(normal(2, 3, 6, 6), return_diagnostics=True, **SHORT)
    assert record.target_probability is None


def test_torchscript_is_refused():
    """Scripted modules keep no hooks; the message says what to pass instead."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 4)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather not have it either
        traced = torch.jit.trace(model, torch.zeros(1, 3, 6, 6))
    with pytest.raises(InvalidTypeError, match="TorchScript"):
        LayerIBA(traced, model[0]).attribute(torch.zeros(1, 3, 6, 6), target=0)


def test_layers_returning_mappings_with_any_keys():
    """A layer's output may be a mapping with integer keys."""

    class Numbered(nn.Module):
        def forward(self, x):
            return {0: x.tanh(), 1: "a note"}

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.layer, self.head = nn.Conv2d(3, 4, 3), Numbered(), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.layer(self.conv(x))[0].mean(dim=(2, 3)))

    model = ready(Model())
    assert calibrated(model, model.layer).attribute(normal(1, 3, 6, 6), target=0, **SHORT).std() > 0


def test_large_beta_is_refused_where_it_would_overflow():
    """Beyond 1e12 gradients overflow in float32, and more beta would give more bits."""
    model = ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 4)))
    with pytest.raises(InvalidArgumentError, match="beta=1e"):
        calibrated(model, model[0]).attribute(normal(1, 3, 6, 6), target=0, beta=1e38)


def test_warnings_point_at_the_users_line():
    """A warning names the file of the caller, through Captum's decorator and our own layers."""
    model = ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 4)))
    for method in (LayerIBA(model, model[0]), IBA(model, model[0])):
        with pytest.warns(CaptumIBAWarning, match="no feature statistics") as caught:
            method.attribute(normal(1, 3, 6, 6), target=0, **SHORT)
        assert [warning.filename for warning in caught] == [__file__]


def test_objective_must_fit_the_output():
    """Logits are no probabilities, probabilities are no logits: the first is refused, the second said once."""
    model = ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 4)))
    x = normal(2, 3, 6, 6)
    for objective in ("probability", "log_probability"):
        with pytest.raises(InvalidArgumentError, match=f"objective='{objective}'.*values from"):
            calibrated(model, model[0]).attribute(x, target=1, objective=objective)
    ending = nn.Sequential(*model, nn.Softmax(dim=1)).eval()
    iba = calibrated(ending, ending[0])
    with pytest.warns(CaptumIBAWarning, match="It seems to end in softmax") as caught:
        for _ in range(2):
            iba.attribute(x, target=1, **SHORT)
    assert len(caught) == 1
    assert iba.attribute(x, target=1, objective="probability", **SHORT).std() > 0


def test_statistics_passed_in_the_place_of_device_ids():
    """The third positional argument is Captum's device_ids; statistics there are recognised."""
    model = ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 4)))
    statistics = calibrated(model, model[0]).statistics
    assert repr(statistics).startswith("FeatureStatistics(count=1000, n_samples=1000, shape=(4, 4, 4), kind='feature'")
    with pytest.raises(InvalidTypeError, match="statistics="):
        LayerIBA(model, model[0], statistics)


def test_a_hidden_layer_is_switched_beside_the_modules_in_sight():
    """Where a function shows its head but hides the network of the layer, the layer runs in evaluation mode too."""
    hidden = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).double()
    head = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).double()
    out_of_sight = {"net": hidden}
    before = copy.deepcopy(hidden[1].state_dict())
    iba = LayerIBA(lambda x: head(out_of_sight["net"](x)), hidden[1])
    with pytest.warns(CaptumIBAWarning, match="in training mode"):
        iba.estimate(normal(1000, 3, 6, 6))
    iba.attribute(normal(2, 3, 6, 6), target=1, **SHORT)
    assert all(torch.equal(before[name], value) for name, value in hidden[1].state_dict().items())
    assert hidden[1].training
    assert head.training
