import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from captum_iba import LayerIBA
from captum_iba.errors import (
    CaptumIBAError,
    CaptumIBAWarning,
    InvalidArgumentError,
    TargetError,
    TargetIndexError,
)
from captum_iba.metrics import Sufficiency, sufficiency
from tests.literal import normal, small_cnn

MODEL = small_cnn(inplace=False)
LAYER = MODEL[3]  # (N, 8, 10, 10), behind a ReLU
STATISTICS = LayerIBA(MODEL, LAYER).estimate(normal(64, 3, 10, 10, seed=9)).statistics
X, MAPS = normal(3, 3, 10, 10), normal(3, 1, 10, 10, seed=1)


def measure(maps=MAPS, x=X, target=1, **options):
    return sufficiency(MODEL, x, maps, LAYER, STATISTICS, target=target, **options)


def softmax(x, target=1):
    with torch.no_grad():
        return MODEL(x).softmax(dim=1)[:, target]


def test_everything_kept_is_the_model_itself():
    """Area 1 gives the model's own probability and rank without any noise; area 0 is the layer's noise alone."""
    result = measure(areas=[0.0, 1.0])
    torch.testing.assert_close(result.probability[:, 1], softmax(X), rtol=0, atol=1e-12)
    torch.testing.assert_close(result.intact, softmax(X), rtol=0, atol=1e-12)
    assert torch.equal(result.rank[:, 1], result.intact_rank)
    assert float(result.noise_error[:, 1].max()) < 1e-12
    assert torch.equal(result.probability[:, 0], result.noise)
    assert torch.equal(result.bottleneck, result.probability[:, 1])
    # the noise does not know the image
    torch.testing.assert_close(result.noise, result.noise[:1].expand(3), rtol=0, atol=1e-12)
    torch.testing.assert_close(result.removed[:, 0], MAPS.flatten(1).sum(dim=1), rtol=0, atol=1e-12)


def test_equals_replacing_by_hand():
    """Positions outside the top half are drawn from the layer's own mean and deviation: a mean over many draws."""
    n = 4000
    result = measure(areas=[0.5], n_samples=n, max_examples_per_batch=4000)
    kept = torch.zeros(3, 1, 100, dtype=torch.bool).scatter_(2, MAPS.flatten(2).topk(50, dim=2).indices, True)
    with torch.no_grad():
        features = MODEL[:4](X)
        reference = STATISTICS.reference(features, "")
        for i in range(3):
            drawn = reference.mean + reference.scale * normal(n, 8, 10, 10, seed=77)
            drawn = torch.where(reference.active, drawn, reference.mean)
            z = torch.where(kept[i].view(1, 10, 10), features[i], drawn)
            p = MODEL[4:](z).softmax(dim=1)[:, 1]
            error = (float(p.var()) / n + float(result.noise_error[i, 0]) ** 2) ** 0.5
            assert abs(float(p.mean() - result.probability[i, 0])) < 4 * error
            assert abs(float(p.mean() - result.intact[i])) > 5 * error


def test_increasing_transforms_change_nothing():
    """Only the order of the positions counts; ties come in an order of their own, the same for all maps."""
    one, other = measure(MAPS), measure((MAPS * 2).exp() - 7)
    assert torch.equal(one.probability, other.probability)
    assert not torch.equal(one.probability, measure(-MAPS).probability)
    flat = measure(torch.zeros_like(MAPS), areas=[0.3])
    assert torch.equal(flat.probability, measure(torch.ones(3, 10, 10), areas=[0.3]).probability)
    assert not torch.equal(flat.probability, measure(torch.zeros_like(MAPS), areas=[0.3], seed=1).probability)


def test_ties_are_kept_at_random_places():
    """A flat map keeps positions everywhere, the same for all examples, and others for another seed."""
    seen, kept = [], []
    handle = MODEL[4].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].clone()))
    try:
        for seed in (0, 1):
            measure(torch.zeros_like(MAPS), areas=[0.3], n_samples=1, seed=seed, max_examples_per_batch=6)
            rows = next(rows[:3] for rows in reversed(seen) if 0.2 < float((rows[:3] == seen[0]).double().mean()) < 0.9)
            kept.append((rows == seen[0][:3]).all(dim=1))
            seen.clear()
    finally:
        handle.remove()
    for places in kept:
        assert places.sum(dim=(1, 2)).tolist() == [30] * 3
        assert torch.equal(places[0], places[1]) and torch.equal(places[0], places[2])
        assert 3 < int(places[0, :5].sum()) < 27 and 3 < int(places[0, :, :5].sum()) < 27
    assert not torch.equal(*kept)


def test_ranks():
    """One for the highest class; equal classes share the mean of their ranks."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Identity()).double().eval()
    with torch.no_grad():
        model[0].weight.fill_(1e-3)
        model[0].bias.copy_(torch.tensor([1.0, 3.0, 1.0, 2.0]))
    iba = LayerIBA(model, model[1]).estimate(normal(50, 4, seed=1))
    for target, rank, top1 in ((1, 1, 1), (3, 2, 0), (0, 3.5, 0), (2, 3.5, 0)):
        result = sufficiency(
            model, normal(1, 4), torch.ones(1, 4), model[1], iba.statistics, target=target, areas=[1.0]
        )
        assert result.intact_rank.tolist() == [rank] and result.rank.tolist() == [[rank]]
        assert result.top1.tolist() == [[top1]]


@settings(max_examples=20)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=3), st.integers(1, 3), st.integers(3, 25))
def test_the_same_area_is_kept_for_every_map(areas, levels, side):
    """The rounded share of 100 positions, whatever the map: with ties, of other sizes, with channels."""
    generator = torch.Generator().manual_seed(side)
    ties = torch.randint(0, levels, (3, side, side), generator=generator).double()
    wanted = (torch.tensor(areas, dtype=torch.float64) * 100).round().div(100).expand(3, -1)
    for maps in (ties, normal(3, 3, 10, 10), MAPS):
        torch.testing.assert_close(measure(maps, areas=areas, n_samples=1).area, wanted, rtol=0, atol=1e-12)


def test_thresholds_and_areas_say_the_same():
    """Keeping what reaches a threshold is keeping that area; areas may be each example's own."""
    levels = [-0.5, 0.2, 1.0]
    by_bits = measure(thresholds=levels)
    assert by_bits.x.tolist() == levels
    for i in range(3):
        shares = [float((MAPS[i] >= level).double().mean()) for level in levels]
        assert by_bits.area[i].tolist() == pytest.approx(shares)
        kept = [float(MAPS[i][MAPS[i] >= level].sum()) for level in levels]
        assert by_bits.kept[i].tolist() == pytest.approx(kept)
        assert (by_bits.kept + by_bits.removed)[i].tolist() == pytest.approx([float(MAPS[i].sum())] * 3)
    by_area = measure(areas=by_bits.area)
    for name in ("probability", "area", "rank", "top1", "kept"):
        assert torch.equal(getattr(by_area, name), getattr(by_bits, name))
    torch.testing.assert_close(by_bits.per_sample, by_bits.probability.mean(dim=1))
    torch.testing.assert_close(by_bits.curve, by_bits.probability.mean(dim=0))


def test_larger_maps_are_averaged_and_channels_summed():
    """A pixel map counts as its mean over each position, a coloured one as its sum over the colours."""
    fine = MAPS.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3) + 0.01 * normal(3, 1, 30, 30, seed=5)
    means = fine.unfold(2, 3, 3).unfold(3, 3, 3).mean(dim=(4, 5))
    assert torch.equal(measure(fine).probability, measure(means).probability)
    colours = normal(3, 3, 10, 10, seed=6)
    assert torch.equal(measure(colours).probability, measure(colours.sum(dim=1)).probability)


def test_examples_are_independent():
    """A batch equals its examples, however many rows run at once; the global generator stays."""
    before = torch.get_rng_state()
    whole = measure(target=[0, 1, 2])
    for i in range(3):
        part = measure(MAPS[i : i + 1], X[i : i + 1], target=[i], max_examples_per_batch=2 + i)
        for name in ("probability", "noise_error", "rank", "intact", "noise", "bottleneck", "kept"):
            torch.testing.assert_close(getattr(part, name)[0], getattr(whole, name)[i], rtol=0, atol=1e-12)
    assert torch.equal(torch.get_rng_state(), before)


def tiny(seed):
    """A layer of 4 channels and 36 positions whose few bits matter."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(3 * torch.randn(parameter.shape, generator=generator) / fan**0.5)
    return model.double().eval()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("place", [0, 1])
def test_removed_bits_bound_the_change(seed, place):
    """Positions of few bits may be replaced by noise: no probability moves by more than the bound of their bits.

    Over many draws, in front of and behind the ReLU; an inactive feature, which the data never showed, is no way
    around the bottleneck.
    """
    model, x = tiny(seed), normal(4, 1, 6, 6, seed=seed)
    data = normal(400, 1, 6, 6, seed=seed + 50)
    if place == 1:  # channel 0 is dead for the data, and on for one example
        weight = model[0].weight.detach()[0, 0]
        with torch.no_grad():
            model[0].bias[0] -= model[0](data)[:, 0].max() + 0.01
        x[0, 0, 1:4, 1:4] = 8 * weight / weight.norm()
        assert float(model[:2](x)[0, 0].detach().max()) > 1
    iba = LayerIBA(model, model[place]).estimate(data)
    bits, record = iba.attribute(x, target=1, beta=3.0, n_steps=25, return_diagnostics=True, sigma=0.0)
    ordered = bits.flatten().sort().values
    thresholds = [-1.0, *(float(ordered[int(share * len(ordered))]) for share in (0.2, 0.4, 0.6, 0.8, 0.95)), 1e9]
    results = [
        sufficiency(
            model,
            x,
            bits,
            model[place],
            iba.statistics,
            target=1,
            thresholds=thresholds,
            mask=record.mask,
            n_samples=150,
            max_examples_per_batch=3000,
            seed=draw,
        )
        for draw in range(10)
    ]
    result = results[0]
    changes = torch.stack([r.probability - r.bottleneck[:, None] for r in results])
    change, error = changes.mean(dim=0).abs(), changes.std(dim=0) / 10**0.5
    assert float(change[:, 0].max()) == 0
    assert bool((change <= result.bound + 4 * error).all())
    informative = (result.bound < 0.6) & (change > 0)
    assert bool((informative.sum(dim=1) >= 3).all())  # the law says something here
    assert float(change[:, -1].max()) > 0.05  # and removing more does change things
    nats = result.removed * np.log(2)
    wanted = torch.minimum((nats / 2).sqrt(), (1 - (-nats).exp()).sqrt())
    torch.testing.assert_close(result.bound, wanted)


def test_a_mask_lets_pass_what_the_bottleneck_does():
    """Through the mask, with nothing removed, the mean probability is what the bottleneck's own draws gave."""
    model, x = tiny(0), normal(4, 1, 6, 6)
    iba = LayerIBA(model, model[1]).estimate(normal(400, 1, 6, 6, seed=50))
    bits, record = iba.attribute(x, target=1, return_diagnostics=True, n_samples=400)
    result = sufficiency(
        model, x, bits, model[1], iba.statistics, target=1, areas=[1.0], mask=record.mask, n_samples=400, seed=3
    )
    error = result.noise_error[:, 0]
    assert bool(((result.bottleneck - record.target_probability).abs() < 6 * error).all())
    assert bool(((result.bottleneck - result.intact).abs() > 6 * error).any())


class Words(nn.Module):
    """Tokens whose order matters, and a layer of vectors."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(20, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.hidden = nn.Identity()

    def forward(self, ids, scale=None):
        h = torch.tanh(self.mix(self.embed(ids))) * torch.linspace(1, 3, ids.shape[1])[:, None]
        h = self.hidden(h.sum(dim=1))
        return self.head(h if scale is None else h * scale[:, None])


def test_tokens_and_vectors():
    """The positions are tokens, or the units of a vector; maps of LayerIBA fit as they are."""
    torch.manual_seed(0)
    model, ids = Words().double().eval(), torch.randint(0, 20, (4, 7))
    data = torch.randint(0, 20, (50, 7))
    scale = torch.tensor([1.0, 2.0, 0.5, 1.5], dtype=torch.float64)
    iba = LayerIBA(model, model.embed).estimate(data)
    bits = iba.attribute(ids, target=1)
    options = {"additional_forward_args": scale, "target": [0, 1, 2, 0], "areas": [3 / 7, 1.0]}
    results = [
        sufficiency(model, ids, maps, model.embed, iba.statistics, **options)
        for maps in (bits, bits[..., 0], bits.expand(-1, -1, 6))
    ]
    assert results[0].area[:, 0].tolist() == pytest.approx([3 / 7] * 4)
    for result in results[1:]:
        assert torch.equal(result.probability, results[0].probability)
    with torch.no_grad():
        own = model(ids, scale).softmax(dim=1)[torch.arange(4), [0, 1, 2, 0]]
    torch.testing.assert_close(results[0].probability[:, 1], own, rtol=0, atol=1e-12)
    iba = LayerIBA(model, model.hidden).estimate(data)
    bits = iba.attribute(ids, target=1, attr_dim_summation=False)
    result = sufficiency(model, ids, bits, model.hidden, iba.statistics, **{**options, "areas": [0.5, 1.0]})
    assert result.area[:, 0].tolist() == [0.5] * 4
    torch.testing.assert_close(result.probability[:, 1], own, rtol=0, atol=1e-12)
    assert not torch.allclose(result.probability[:, 0], own, atol=1e-3)


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.lift, self.same, self.head = nn.Linear(3, 5), nn.Identity(), nn.Linear(180, 4)

    def forward(self, x):
        return self.head(self.same(torch.tanh(self.lift(x.movedim(1, 3)))).flatten(1))


def test_layers_with_channels_last():
    """The layer's own maps (N, H, W, 1), and maps (N, 1, h, w) of other methods, mean the same positions."""
    torch.manual_seed(0)
    model, x = ChannelsLast().double().eval(), normal(2, 3, 6, 6)
    iba = LayerIBA(model, model.same).estimate(normal(40, 3, 6, 6, seed=1), channel_dim=3)
    bits = iba.attribute(x, target=1)
    assert bits.shape == (2, 6, 6, 1)
    fine = bits.movedim(3, 1).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    found = [
        sufficiency(model, x, maps, model.same, iba.statistics, target=1).probability
        for maps in (bits, bits[..., 0], bits.movedim(3, 1), fine, fine.expand(-1, 3, -1, -1) / 3)
    ]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-12)


def test_training_mode_is_left_as_it_was():
    """The model runs in evaluation mode, with a warning, and goes back."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.9), nn.Linear(6, 3)).double()
    x = normal(3, 4)
    iba = LayerIBA(model.eval(), model[0]).estimate(normal(50, 4, seed=1))
    options = {"target": 1, "areas": [0.5, 1.0]}
    wanted = sufficiency(model, x, normal(3, 6), model[0], iba.statistics, **options)
    model.train()
    with pytest.warns(CaptumIBAWarning, match="training mode"):
        result = sufficiency(model, x, normal(3, 6), model[0], iba.statistics, **options)
    assert torch.equal(result.probability, wanted.probability)
    assert all(module.training for module in model.modules())


def test_batches_sum_up():
    """The class joins batches of any size."""
    metric = Sufficiency(MODEL, LAYER, STATISTICS, areas=[0.1, 0.4])
    for part in (slice(0, 2), slice(2, 3)):
        metric.evaluate(X[part], MAPS[part], target=1)
    whole, summary = measure(areas=[0.1, 0.4]), metric.summary()
    torch.testing.assert_close(summary.probability, whole.probability, rtol=0, atol=1e-12)
    assert torch.equal(summary.x, whole.x) and summary.n_valid == 3


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"maps": MAPS[:2]}, InvalidArgumentError, r"\[2, 1, 10, 10\] do not fit"),
        ({"maps": MAPS.numpy()}, CaptumIBAError, "attributions is a ndarray"),
        ({"maps": MAPS * float("nan")}, CaptumIBAError, "NaN or infinity"),
        ({"maps": MAPS[..., :5], "thresholds": [1.0]}, InvalidArgumentError, "of the layer's own size"),
        ({"x": X.numpy()}, CaptumIBAError, "inputs is a ndarray"),
        ({"areas": 0.5}, InvalidArgumentError, "areas"),
        ({"areas": "0.5"}, InvalidArgumentError, "areas"),
        ({"areas": []}, InvalidArgumentError, "areas"),
        ({"areas": [1.5]}, InvalidArgumentError, "areas"),
        ({"areas": torch.rand(2, 3)}, InvalidArgumentError, "areas"),
        ({"areas": torch.rand(3, 2, 2)}, InvalidArgumentError, "areas"),
        ({"thresholds": 0.5}, InvalidArgumentError, "thresholds"),
        ({"thresholds": ["a"]}, InvalidArgumentError, "thresholds"),
        ({"thresholds": []}, InvalidArgumentError, "thresholds"),
        ({"mask": torch.ones(3, 8, 10, 9)}, InvalidArgumentError, "mask has shape"),
        ({"mask": [1]}, InvalidArgumentError, "mask is a list"),
        ({"n_samples": "a"}, InvalidArgumentError, "n_samples='a'"),
        ({"max_examples_per_batch": 0}, InvalidArgumentError, "max_examples_per_batch=0"),
        ({"seed": "a"}, InvalidArgumentError, "seed='a'"),
        ({"output": "p"}, InvalidArgumentError, "output='p'"),
        ({"target": 4}, TargetIndexError, "output of shape"),
        ({"target": None}, TargetError, "Target not provided"),
        ({"target": [1, 2]}, TargetError, "list of 2 for 3 examples"),
    ],
)
def test_bad_options(options, error, words):
    """Wrong options are named."""
    with pytest.raises(error, match=words):
        measure(**options)


def test_statistics_of_another_layer():
    """Statistics, and layers, that do not fit are named."""
    for layer, statistics in ((MODEL[1], STATISTICS), (LAYER, None), (nn.ReLU(), STATISTICS)):
        with pytest.raises(CaptumIBAError, match=r"statistics|not part of the model"):
            sufficiency(MODEL, X, MAPS, layer, statistics, target=1)
