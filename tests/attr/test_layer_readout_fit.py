"""LayerReadoutIBA.fit: the paper's training written out, step by step, and what it learns."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from captum_iba.attr import LayerReadoutIBA
from captum_iba.attr._training_data import stream_seed
from captum_iba.errors import CaptumIBAWarning
from tests.literal import normal, small_cnn

READ = ("2", "5", "8")
WIDTHS = (7, 6)
SHORT = {"max_steps": 3, "learning_rate": 1e-2, "show_progress": False}


def with_dead_channels(relu_after=True):
    """The small network, with one channel that is always zero and one that is always three."""
    model = small_cnn()
    if not relu_after:  # so that a clamp at zero shows
        model[3] = nn.Tanh().eval()
    with torch.no_grad():
        model[2].weight[:2] = 0
        model[2].bias[0], model[2].bias[1] = 0.0, 3.0
    return model


def labelled(n=12, size=4, seed=3):
    """Batches of images with a class each."""
    x = normal(n, 3, 10, 10, seed=seed)
    labels = torch.randint(0, 4, (n,), generator=torch.Generator().manual_seed(seed))
    return list(zip(x.split(size), labels.split(size), strict=True))


def ready(model, **kwargs):
    return LayerReadoutIBA(model, model[2], hidden_channels=WIDTHS, **kwargs).estimate(normal(1200, 3, 10, 10, seed=9))


def network_of(readout):
    return readout._state.readouts[readout.layer, False].network


def weights_of(readout):
    return {name: value.clone() for name, value in network_of(readout).state_dict().items()}


class Literal:
    """The readout bottleneck of the paper in plain formulas, with torch's Adam, on two-dimensional maps."""

    def __init__(self, model, data, beta, lr, seed, sigma=1.0, initial_alpha=5.0, relu=False, align_corners=False):
        self.model, self.beta, self.seed, self.sigma = model, beta, seed, sigma
        self.relu, self.align_corners = relu, align_corners
        self.moments = {}
        for name, features in self.features(data).items():
            mean, std = features.mean(dim=0), features.std(dim=0)
            typical = std[std > 0].square().mean().sqrt()
            dead = std <= 1e-6 * torch.maximum(typical, mean.abs())
            self.moments[name] = mean, std.clamp_min(0.01 * typical), dead
        channels = [self.moments[name][0].shape[0] for name in READ]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            widths = (sum(channels), *WIDTHS, channels[0])
            self.layers = [nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)]
        with torch.no_grad():
            self.layers[2].weight.mul_(1e-3)
            self.layers[2].bias.fill_(initial_alpha)
        self.layers = [layer.double() for layer in self.layers]
        self.optimizer = torch.optim.Adam([p for layer in self.layers for p in layer.parameters()], lr=lr)

    def features(self, x):
        """Outputs of the layers that are read, before their in-place successors."""
        found, handles = {}, []
        for name in READ:
            module = self.model.get_submodule(name)
            note = lambda _m, _i, output, name=name: found.update({name: output.detach().clone()})  # noqa: E731
            handles.append(module.register_forward_hook(note))
        with torch.no_grad():
            self.model(x)
        for handle in handles:
            handle.remove()
        return found

    def blur(self, mask):
        if self.sigma == 0:
            return mask
        radius = round(2 * self.sigma)
        line = torch.tensor([math.exp(-0.5 * (i / self.sigma) ** 2) for i in range(-radius, radius + 1)])
        window = torch.outer(line, line).double()
        window = (window / window.sum()).expand(mask.shape[1], 1, -1, -1)
        return F.conv2d(F.pad(mask, [radius] * 4, mode="reflect"), window, groups=mask.shape[1])

    def loss(self, x, labels, noise_seed):
        """(cross-entropy, nats (N, ...), logits) of a batch."""
        normalized, size = {}, None
        features = self.features(x)
        for name, r in features.items():
            mean, std, dead = self.moments[name]
            r = ((r - mean) / std).masked_fill(dead, 0.0)
            normalized[name] = r if r.ndim == 4 else r[:, :, None, None]
            size = size or r.shape[2:]
        everything = torch.cat(
            [
                r.expand(-1, -1, *size)
                if r.shape[2] == 1
                else F.interpolate(r, size, mode="bilinear", align_corners=self.align_corners)
                for r in normalized.values()
            ],
            dim=1,
        )
        one, two, three = (
            lambda x, layer=layer: F.conv2d(x, layer.weight[:, :, None, None], layer.bias) for layer in self.layers
        )
        alpha = three(two(one(everything).relu()).relu())
        lam = self.blur(torch.sigmoid(alpha))
        (mean, std, dead), r = self.moments["2"], features["2"]
        eps = torch.randn(r.shape, generator=torch.Generator().manual_seed(noise_seed), dtype=torch.float32).double()
        z = torch.where(dead, mean, lam * r + (1 - lam) * (mean + std * eps))
        z = z.relu() if self.relu else z
        nats = -0.5 * (1 + ((1 - lam) ** 2).log() - (lam * normalized["2"]) ** 2 - (1 - lam) ** 2)
        handle = self.model[2].register_forward_hook(lambda _m, _i, _o: z.clone())
        logits = self.model(x)
        handle.remove()
        return F.cross_entropy(logits, labels), nats.masked_fill(dead, 0.0), logits

    def step(self, x, labels, index):
        self.optimizer.zero_grad()
        loss, nats, _ = self.loss(x, labels, stream_seed(self.seed, "training noise", index))
        (loss + self.beta * nats.mean()).backward()
        self.optimizer.step()
        return loss.item(), nats.flatten(1).sum(dim=1).mean().item() / math.log(2)

    @property
    def weights(self):
        one, two, three = self.layers
        pieces = one.weight.split([self.moments[name][0].shape[0] for name in READ], dim=1)
        return {f"first.{i}": piece for i, piece in enumerate(pieces)} | {
            "first_bias": one.bias,
            "second.weight": two.weight,
            "second.bias": two.bias,
            "third.weight": three.weight,
            "third.bias": three.bias,
        }


@pytest.mark.parametrize(
    ("shape", "fit"),
    [
        ({}, {}),
        ({"sigma": 0.0, "initial_alpha": 0.5, "relu": True}, {"beta": 0.1, "seed": 7}),
        ({"sigma": 0.5, "initial_alpha": -1.0, "align_corners": True}, {"beta": 100.0, "learning_rate": 1e-3}),
    ],
)
def test_steps_equal_the_literal_implementation(shape, fit):
    """Same noise, same first weights, float64: after one step and after three the weights are the literal ones."""
    model = with_dead_channels(relu_after=not shape.get("relu"))
    data = labelled()
    arguments = SHORT | {"beta": 10.0, "seed": 0} | fit
    literal = Literal(
        model,
        normal(1200, 3, 10, 10, seed=9),
        arguments["beta"],
        arguments["learning_rate"],
        arguments["seed"],
        **shape,
    )
    readout = ready(model, **shape)
    before = {name: value.clone() for name, value in literal.weights.items()}
    expected = []
    for n_steps in (1, 2, 3):
        expected.append(literal.step(*data[n_steps - 1], n_steps - 1))
        readout.fit(data, **arguments | {"max_steps": n_steps})
        for name, found in weights_of(readout).items():
            torch.testing.assert_close(found, literal.weights[name].detach(), rtol=0, atol=1e-9, msg=name)
    assert all((literal.weights[name] - value).abs().max() > 1e-4 for name, value in before.items())
    recorded = [(measures.loss, measures.bits) for measures in readout.history.training]
    np.testing.assert_allclose(recorded, expected, rtol=1e-9)
    assert [m.objective - m.loss for m in readout.history.training] == pytest.approx(
        [arguments["beta"] * m.bits * math.log(2) / 800 for m in readout.history.training]
    )


def test_evaluate_equals_the_literal_implementation():
    """Means over all examples, one draw of noise each, with the accuracy through the bottleneck and without it."""
    model = with_dead_channels()
    data = labelled(n=10)  # the last batch is smaller
    readout = ready(model, initial_alpha=-1.0).fit(data, seed=5, beta=2.0, **SHORT)
    literal = Literal(model, normal(1200, 3, 10, 10, seed=9), 2.0, 1e-2, 5, initial_alpha=-1.0)
    for step, batch in enumerate(data):
        literal.step(*batch, step)
    found = readout.evaluate(data, beta=2.0, seed=11)
    totals = np.zeros(4)
    with torch.no_grad():
        for i, (x, labels) in enumerate(data):
            loss, nats, logits = literal.loss(x, labels, stream_seed(11, "validation noise", i))
            own = model(x).argmax(dim=1)
            hits = [float((values == labels).sum()) for values in (logits.argmax(dim=1), own)]
            totals += [loss.item() * len(x), nats.sum().item() / math.log(2), *hits]
    wanted = totals / 10
    np.testing.assert_allclose([found.loss, found.bits, found.accuracy, found.model_accuracy], wanted, rtol=1e-9)
    assert found.objective == pytest.approx(wanted[0] + 2.0 * wanted[1] * math.log(2) / 800, rel=1e-9)
    assert found.n == 10
    assert readout.evaluate(data, beta=2.0, seed=11) == found != readout.evaluate(data, beta=2.0, seed=12)


def test_validation_is_evaluate_before_and_after_each_epoch():
    """The history's validation is what evaluate gives with the same seed, at step 0 and at the end of each epoch."""
    model = small_cnn()
    data, held_out = labelled(), labelled(seed=4)
    arguments = SHORT | {"max_steps": None, "epochs": 2, "seed": 3}
    readout = ready(model).fit(data, held_out, **arguments)
    history = readout.history
    assert [(m.step, m.epoch, m.n) for m in history.validation] == [(0, 0, 12), (3, 1, 12), (6, 2, 12)]
    assert [(m.step, m.epoch, m.n) for m in history.training] == [(i, i // 3, 4) for i in range(6)]
    last, found = history.validation[-1], readout.evaluate(held_out, seed=3)
    assert (found.loss, found.bits, found.accuracy) == (last.loss, last.bits, last.accuracy)
    without = ready(model).fit(data, **arguments)
    assert all(torch.equal(value, weights_of(without)[name]) for name, value in weights_of(readout).items())


def test_seed_and_data_decide_the_weights():
    """The same call gives the same weights, from a shuffled loader too; another seed gives others."""
    model = small_cnn()
    x, y = (torch.cat(parts) for parts in zip(*labelled(), strict=True))
    loader = DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True)
    readout = ready(model)
    one, again, other = (weights_of(readout.fit(loader, seed=seed, **SHORT)) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["third.bias"], other["third.bias"])


def test_labels_come_in_any_of_their_forms():
    """Labels as the second entry, as a list, in a mapping, from a function, or the model's own predictions."""
    model = small_cnn()

    def by_keyword(input):
        return model(input)

    x = normal(4, 3, 10, 10, seed=3)
    y = model(x).argmax(dim=1)
    wanted = weights_of(ready(model).fit([(x, y)], **SHORT))
    readout = LayerReadoutIBA(by_keyword, model[2], readout_layers=list(READ), hidden_channels=WIDTHS)
    readout.estimate(normal(1200, 3, 10, 10, seed=9))
    found = [
        ready(model).fit([(x, y.tolist())], **SHORT),
        ready(model).fit([x], targets="predictions", **SHORT),
        ready(model).fit([("text", x)], targets=lambda _batch: y, input_fn=lambda batch: (batch[1], None), **SHORT),
        readout.fit([{"input": x, "labels": y}], **SHORT),
        readout.fit([{"input": x, "label": y}], **SHORT),
    ]
    for other in found:
        assert all(torch.equal(value, wanted[name]) for name, value in weights_of(other).items())


def test_objectives_of_the_users_own_equal_cross_entropy():
    """Logits, probabilities, log-probabilities and a callable that computes the cross-entropy train alike."""
    model = small_cnn()
    data = labelled()

    def trained(end, **kwargs):
        layers = list(READ)
        whole = nn.Sequential(*model, end).double().eval()
        readout = LayerReadoutIBA(whole, model[2], readout_layers=layers, hidden_channels=WIDTHS)
        return readout.estimate(normal(1200, 3, 10, 10, seed=9)).fit(data, **SHORT, **kwargs)

    wanted = trained(nn.Identity())
    own = trained(nn.Identity(), objective=lambda output, y: F.cross_entropy(output, y, reduction="none"))
    for other in (
        own,
        trained(nn.Softmax(dim=1), objective="probability"),
        trained(nn.LogSoftmax(dim=1), objective="log_probability"),
    ):
        for name, value in weights_of(other).items():
            torch.testing.assert_close(value, weights_of(wanted)[name], rtol=0, atol=1e-9)
    assert own.history.training[0].accuracy is None
    assert wanted.history.training[0].accuracy is not None


def test_relu_in_front_of_an_in_place_successor():
    """Negative features are cut off from the model's in-place ReLU too: the weights are those of a plain one."""
    trained = []
    for inplace in (False, True):
        model = small_cnn(inplace=inplace)
        trained.append(weights_of(ready(model, relu=True).fit(labelled(), **SHORT)))
    assert all(torch.equal(value, trained[1][name]) for name, value in trained[0].items())


# what it learns


class Pointed(nn.Module):
    """Decides by the value at the one position that a second channel marks, and by nothing else."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(2, 2, 1, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.eye(2)[:, :, None, None])

    def forward(self, x):
        value = (self.layer(x)[:, 0] * x[:, 1]).sum(dim=(1, 2))
        return torch.stack([-3 * value, 3 * value], dim=1)


def pointed_batches(n_batches, seed, size=5):
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(n_batches):
        x = torch.randn(32, 2, size, size, generator=generator, dtype=torch.float64)
        x[:, 1] = 0.0
        places = torch.randint(0, size * size, (32,), generator=generator)
        x[:, 1].flatten(1)[torch.arange(32), places] = 1.0
        label = x[:, 0].flatten(1)[torch.arange(32), places] > 0
        batches.append((x, label.long()))
    return batches


def test_the_bits_come_to_lie_where_the_label_is():
    """Of 25 positions one carries the label: trained, it holds most of the bits, and the decisions stand."""
    model, data = Pointed().double().eval(), pointed_batches(150, seed=0)
    readout = LayerReadoutIBA(model, model.layer, readout_layers=["layer"], hidden_channels=(16, 16), sigma=0.0)
    readout.estimate(data, per="channel")
    readout.fit(data, epochs=2, learning_rate=1e-2, beta=3.0, show_progress=False)
    training = readout.history.training
    assert training[-1].objective < 0.1 * training[0].objective
    ((x, label),) = pointed_batches(1, seed=1)
    measures = readout.evaluate([(x, label)], beta=3.0)
    assert measures.model_accuracy == 1.0 and measures.accuracy > 0.85
    bits = readout.attribute(x)
    share = (bits * x[:, 1:]).sum(dim=(1, 2, 3)) / bits.sum(dim=(1, 2, 3))
    assert share.median() > 0.7
    full = readout.attribute(x, attr_dim_summation=False).sum(dim=(0, 2, 3))
    assert full[0] > 5 * full[1]  # the value, not the mark


def test_beta_grows_a_hundredfold_over_the_warmup():
    """At step t of w the weight of the information is beta / 100 ** (1 - t / w), and beta from step w on."""
    model = small_cnn()
    readout = ready(model)
    readout.fit(labelled(n=24), max_steps=6, beta=7.0, warmup_steps=4, learning_rate=1e-3, show_progress=False)
    k = readout.statistics["2"].mean.numel()
    for step, measures in enumerate(readout.history.training):
        beta = 7.0 / 100 ** max(0.0, 1 - step / 4)
        nats = measures.bits * math.log(2) / k
        assert math.isclose(measures.objective, measures.loss + beta * nats, rel_tol=1e-9)


def test_a_warmup_of_no_steps_changes_nothing():
    """With warmup_steps=0, the default, the weights are those of constant beta; with more they are others."""
    weights = [weights_of(ready(small_cnn()).fit(labelled(), warmup_steps=n, **SHORT)) for n in (0, 0, 2)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_a_training_without_effect_says_so():
    """Where more than half of the first information still passes at the end, fit warns, with what to do."""
    with pytest.warns(CaptumIBAWarning, match=r"still lets \d+ % .*Train longer, or raise it"):
        ready(small_cnn()).fit(labelled(), epochs=1, show_progress=False)


def test_a_closed_bottleneck_says_so():
    """Where the accuracy through the bottleneck is far below the model's, fit warns, with what to do."""
    model = small_cnn()
    x = normal(120, 3, 10, 10, seed=4)
    data = [(part, model(part).argmax(dim=1)) for part in x.split(40)]
    with pytest.warns(CaptumIBAWarning, match=r"part of the decision is lost.*smaller beta.*warmup_steps"):
        ready(model).fit(data, data, epochs=20, beta=1e6, learning_rate=0.1, show_progress=False)
