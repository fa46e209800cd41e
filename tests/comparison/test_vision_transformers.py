"""Comparisons on vision transformers: layer methods' tokens become maps, and outputs with ``logits`` will do."""

import functools
import warnings

import numpy as np
import pytest
import torch

from captum_iba import LayerIBA, LayerReadoutIBA, compare
from captum_iba.attr import AttentionRollout, tokens_to_map
from captum_iba.attr._readout_fit import SHORT_TRAINING
from captum_iba.comparison._gradcam_layer import last_feature_map
from captum_iba.comparison.captum_methods import _grad_cam, _guided_grad_cam, _layer_iba
from captum_iba.comparison.context import Context
from captum_iba.comparison.readout_method import _readout
from captum_iba.comparison.rollout_method import _rollout
from captum_iba.errors import CaptumIBAError, InvalidArgumentError, UnsupportedModelError
from tests.attr.test_bad_input import state_of
from tests.attr.vision_models import FAMILIES, GRIDS, SIZE, images, token_layer, vision_model
from tests.comparison.comparison_cases import toy, toy_images

SHORT = {"n_steps": 2, "n_samples": 2}
TARGETS = torch.tensor([1, 0])
METRICS = ("bounding box", "insertion", "deletion", "infidelity")
LAYERS = ("LayerIBA", "LayerGradCam", "AttentionRollout")


class Calibration:
    summary = "noise"

    def __call__(self):
        return [images(8, seed=2)]


@functools.cache
def statistics(family):
    return LayerIBA(vision_model(family), token_layer(family)).estimate(Calibration()()).statistics


def context(family, method=None, **options):
    given = {"layer": token_layer(family), "statistics": statistics(family), "rows": 40}
    given |= {"options": {method: options}} if method else options
    return Context(vision_model(family), images(1), Calibration(), **given)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def grid_of(family):
    return GRIDS.get(family, (4, 4))


def test_a_whole_comparison_runs_on_every_family(family):
    """Only what the model has no rule for is a row with its reason; the model is left as it was."""
    model, mask = vision_model(family), torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    mask[:, 8:24, 8:24] = True
    before = state_of(model)
    report = compare(
        model,
        (images(2), TARGETS, mask),
        [*LAYERS, "Saliency", "Occlusion-14x14", "Random"],
        METRICS,
        token_layer(family),
        statistics=statistics(family),
        method_options={"LayerIBA": SHORT},
        n_steps=2,
    )
    reasons = {info.name: info.reason for info in report.results.methods}
    assert bool(reasons.pop("AttentionRollout")) == ("swin" in family)
    assert set(reasons.values()) == {""} and not any(info.failure for info in report.results.methods)
    for name in reasons:
        assert not report.results.undefined.get(name), report.results.undefined[name]
        assert all(np.isfinite(report.results.scores[name][metric]).all() for metric in METRICS)
    assert state_of(model) == before


def test_maps_of_the_bottleneck_are_its_patches_bits(family):
    x = images(2)
    bits = LayerIBA(vision_model(family), token_layer(family), statistics=statistics(family)).attribute(
        x, target=TARGETS, **SHORT
    )
    found = _layer_iba(context(family, "LayerIBA", **SHORT))(x, TARGETS)
    wanted = bits.movedim(3, 1) if bits.ndim == 4 else tokens_to_map(bits).map
    assert found.shape == (2, 1, *grid_of(family))
    torch.testing.assert_close(found, wanted)


def test_layouts_are_options_of_the_methods():
    x = images(1)
    for name, build in (("LayerIBA", _layer_iba), ("AttentionRollout", _rollout), ("LayerGradCam", _grad_cam)):
        own = SHORT if name == "LayerIBA" else {}
        square = build(context("vit", name, **own))(x, TARGETS[:1])
        flat = build(context("vit", name, grid=(2, 8), n_prefix=1, **own))(x, TARGETS[:1])
        assert flat.shape == (1, 1, 2, 8)
        torch.testing.assert_close(flat.flatten(), square.flatten())
    with pytest.raises(InvalidArgumentError, match="grid is for tokens"):
        _layer_iba(context("torchvision swin", "LayerIBA", grid=(4, 16), **SHORT))(x, TARGETS[:1])
    with pytest.raises(InvalidArgumentError, match="attr_dim_summation cannot be used"):
        _grad_cam(context("vit", "LayerGradCam", attr_dim_summation=False))


def test_a_readouts_tokens_are_laid_out_too():
    layer = token_layer("vit")
    options = {"readout_layers": [layer], "epochs": 1, "hidden_channels": (4, 4)}
    readout = LayerReadoutIBA(vision_model("vit"), layer, readout_layers=[layer], hidden_channels=(4, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one step of training leaves the bottleneck open
        explain = _readout(context("vit", "LayerReadoutIBA", **options))
        readout.estimate(Calibration()())
        chosen = {**SHORT_TRAINING, "epochs": 1, "seed": 0, "warmup_steps": 0}
        readout.fit(Calibration()(), targets="predictions", show_progress=False, **chosen)
    found = explain(images(2), TARGETS)
    assert found.shape == (2, 1, 4, 4)
    torch.testing.assert_close(found, tokens_to_map(readout.attribute(images(2))).map)


def test_rollout_is_that_of_the_attribution_class():
    x = images(2)
    wanted = tokens_to_map(AttentionRollout(vision_model("deit")).attribute(x)).map
    torch.testing.assert_close(_rollout(context("deit"))(x, TARGETS), wanted)
    later = tokens_to_map(AttentionRollout(vision_model("deit")).attribute(x, position=1)).map
    torch.testing.assert_close(_rollout(context("deit", "AttentionRollout", position=1))(x, TARGETS), later)


def gradcam_by_hand(family, layer, x):
    """Activations and gradients of the patches, as a grid, weighted by the mean gradient of each channel."""
    taken, model = [], vision_model(family)
    handle = layer.register_forward_hook(lambda _m, _a, out: taken.append(out[0] if isinstance(out, tuple) else out))
    output = model(x)
    handle.remove()
    logits = getattr(output, "logits", output)
    (slope,) = torch.autograd.grad(sum(logits[i, c] for i, c in enumerate(TARGETS.tolist())), taken[0])
    n_prefix = FAMILIES[family][2]
    weight = slope[:, n_prefix:].mean(dim=1, keepdim=True)
    values = (weight * taken[0][:, n_prefix:]).sum(dim=2).relu()
    side = int(values.shape[1] ** 0.5)
    return values.reshape(len(x), 1, side, side).detach()


@pytest.mark.parametrize("family", ["torchvision vit", "vit", "deit", "swin"])
def test_gradcam_weighs_the_patches_channels(family):
    """At the layer that is found: the last one whose patches the class depends on."""
    x, own = images(2), context(family)
    found = _grad_cam(own)(x, TARGETS)
    torch.testing.assert_close(found, gradcam_by_hand(family, own.gradcam_layer, x))
    assert float(found.sum()) > 0


def test_gradcams_layer_is_the_last_one_that_the_class_depends_on():
    """Behind the last block only the class token is read; where the patches' mean is read, the last stage is it."""
    model = vision_model("torchvision vit")
    assert last_feature_map(model, images(1)) is model.encoder.layers.encoder_layer_0
    assert last_feature_map(vision_model("vit"), images(1)) is token_layer("vit")
    swin = vision_model("swin")
    assert last_feature_map(swin, images(1)) is swin.swin.encoder.layers[-1]
    of_torchvision = vision_model("torchvision swin")
    assert last_feature_map(of_torchvision, images(1)) is of_torchvision.permute


def test_rows_of_a_flattened_map_are_no_tokens():
    """16 channels of a CNN, flattened, look like 4 x 4 tokens; GradCAM stays at the convolution."""
    flat = torch.nn.Flatten(2)
    cnn = toy(torch.nn.Conv2d(1, 16, 3), flat, torch.nn.Linear(196, 3), torch.nn.Flatten(), torch.nn.Linear(48, 3))
    assert last_feature_map(cnn, toy_images(1)) is cnn[0]


def test_gradcam_says_where_it_has_nothing_to_weigh():
    model = vision_model("torchvision vit")
    explain = _grad_cam(context("torchvision vit", gradcam_layer=model.encoder.layers.encoder_layer_1))
    with pytest.raises(InvalidArgumentError, match="earlier gradcam_layer"):
        explain(images(1), TARGETS[:1])
    with pytest.raises(CaptumIBAError, match=r"ReLU|GELU|no feature map"):
        _guided_grad_cam(context("torchvision vit"))


def test_channels_last_features_are_weighted_by_their_channels():
    """torchvision's Swin: (N, H, W, C) inside, and (N, C, H, W) behind its permutation, have the same GradCAM."""
    model, x = vision_model("torchvision swin"), images(2)
    found = _grad_cam(context("torchvision swin", gradcam_layer=model.norm))(x, TARGETS)
    torch.testing.assert_close(found, _grad_cam(context("torchvision swin"))(x, TARGETS))


def test_functions_may_return_tokens():
    """A user's method (B, T, 1): the grid, not a column of T rows."""
    rollout = AttentionRollout(vision_model("vit"))
    mask = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    mask[:, :16, :16] = True
    options = {"statistics": statistics("vit"), "layer": token_layer("vit")}
    report = compare(
        vision_model("vit"),
        (images(2), TARGETS, mask),
        {"own": lambda x, y: rollout.attribute(x), "map": lambda x, y: tokens_to_map(rollout.attribute(x)).map},
        ["bounding box"],
        **options,
    )
    assert (
        report.results.scores["own"]["bounding box"].tolist() == report.results.scores["map"]["bounding box"].tolist()
    )


def test_networks_without_attention_are_a_row_with_the_reason():
    cnn = toy(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 14 * 14, 3))
    with pytest.raises(UnsupportedModelError, match="LayerIBA"):
        _rollout(Context(cnn, toy_images(1), Calibration()))
