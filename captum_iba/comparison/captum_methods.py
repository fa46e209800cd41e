"""The paper's methods, built from Captum; parameters are those of its appendix.

Maps of three channels are reduced as there: the largest absolute value for methods that rank pixels by how sensitive
the output is to them, the mean for signed gradients, the sum for methods that share out the output.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import captum.attr
import numpy as np
import torch
from torch import Tensor

from captum_iba.attr import TOKEN_RANKING, LayerIBA
from captum_iba.attr.pattern_attribution import PatternAttribution
from captum_iba.comparison._arguments import Additional
from captum_iba.comparison._graph import assert_deep_lift_modules, assert_relu_modules
from captum_iba.comparison._layer_maps import features_of, grad_cam, is_plain_map, pop_layout
from captum_iba.comparison._types import BITS
from captum_iba.comparison.context import Context
from captum_iba.comparison.lrp import prepare_lrp
from captum_iba.comparison.methods import Explainer, Method, add_method
from captum_iba.errors import InvalidArgumentError, UnsupportedModelError

_STEPS = 50
_NOISE = 0.15


def strongest(values: Tensor) -> Tensor:
    """Largest absolute value over the channels."""
    return values.abs().amax(dim=1, keepdim=True)


def seed_of(image: Tensor, seed: int) -> int:
    """A seed of an image's own, so that its result depends neither on the batch nor on the order of examples."""
    return zlib.crc32(image.detach().float().cpu().contiguous().numpy().tobytes(), seed)


def _noise_seed(image: Tensor, context: Context) -> int:
    return seed_of(image, context.seed) if context.fixed_seed is None else context.fixed_seed


@contextmanager
def seeded(seed: int, like: Tensor) -> Iterator[None]:
    """Give the global generators of torch, numpy and Python a seed, and put their states back.

    Captum, and methods of users, draw from them.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (the generator that others draw from)
    with torch.random.fork_rng(devices=[like.device] if like.is_cuda else []):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def _random(context: Context) -> Explainer:
    def explain(x: Tensor, _target: Tensor) -> Tensor:
        # (1, h, w) for an image, (T,) for token ids
        shape = (1, *x.shape[2:]) if x.is_floating_point() else x.shape[1:]
        values = torch.linspace(-1, 1, math.prod(shape))
        maps = []
        for one in x:
            generator = torch.Generator("cpu").manual_seed(_noise_seed(one, context))
            maps.append(values[torch.randperm(len(values), generator=generator)].view(shape))
        return torch.stack(maps).to(x.device, x.dtype if x.is_floating_point() else values.dtype)

    return explain


def _gradient(context: Context) -> Explainer:
    method: Any = captum.attr.Saliency(context.copy)
    options = {"abs": False} | context.options_of("Gradient")
    return lambda x, y: method.attribute(x, target=y, **options).mean(dim=1, keepdim=True)


def _saliency(context: Context) -> Explainer:
    method: Any = captum.attr.Saliency(context.copy)
    options = context.options_of("Saliency")
    return lambda x, y: strongest(method.attribute(x, target=y, **options))


def _input_x_gradient(context: Context) -> Explainer:
    method: Any = captum.attr.InputXGradient(context.copy)
    options = context.options_of("InputXGradient")
    return lambda x, y: method.attribute(x, target=y, **options).sum(dim=1, keepdim=True)


def _integrated_gradients(context: Context) -> Explainer:
    method: Any = captum.attr.IntegratedGradients(context.copy, multiply_by_inputs=False)
    chosen = {"n_steps": _STEPS, "method": "riemann_right"} | context.options_of("IntegratedGradients")

    def explain(x: Tensor, y: Tensor) -> Tensor:
        options = {"baselines": context.baseline(x), "internal_batch_size": max(context.rows, len(x))} | chosen
        return strongest(method.attribute(x, target=y, **options))

    return explain


def _smooth_grad(context: Context) -> Explainer:
    method: Any = captum.attr.NoiseTunnel(captum.attr.Saliency(context.copy))
    chosen = {"nt_samples": _STEPS, "abs": False} | context.options_of("SmoothGrad")

    def explain(x: Tensor, y: Tensor) -> Tensor:
        maps = []
        # one by one: the noise follows each image's own range
        for image, label in zip(torch.split(x, 1), torch.split(y, 1), strict=True):
            spread = _NOISE * float(image.max() - image.min())
            options = {"stdevs": spread, "nt_samples_batch_size": context.rows} | chosen
            with seeded(_noise_seed(image, context), image):
                maps.append(method.attribute(image, target=label, **options))
        return strongest(torch.cat(maps))

    return explain


def _with_relu_rule(name: str, method_class: Callable[..., Any]) -> Callable[[Context], Explainer]:
    def build(context: Context) -> Explainer:
        assert_relu_modules(context.copy, context.example)
        method: Any = method_class(context.copy)
        options = context.options_of(name)
        return lambda x, y: strongest(method.attribute(x, target=y, **options))

    return build


def _grad_cam(context: Context) -> Explainer:
    layer = context.in_copy(context.gradcam_layer)
    options = {"relu_attributions": True} | context.options_of("LayerGradCam")
    to_map = pop_layout(options)
    features = features_of(context.copy, layer, context.example)
    if is_plain_map(layer, features):
        method: Any = captum.attr.LayerGradCam(context.copy, layer)
        return lambda x, y: to_map(method.attribute(x, target=y, **options), x, 1)
    relu = options.pop("relu_attributions")
    if options:
        raise InvalidArgumentError(
            f"method_options of LayerGradCam: {', '.join(options)} cannot be used at {type(layer).__name__}, which "
            f"gives features {list(features.shape)}; wanted relu_attributions, grid or n_prefix."
        )

    def explain(x: Tensor, y: Tensor) -> Tensor:
        values = grad_cam(context.copy, layer, x, y, to_map)
        return values.relu() if relu else values

    return explain


def _guided_grad_cam(context: Context) -> Explainer:
    layer = context.in_copy(context.gradcam_layer)
    features = features_of(context.copy, layer, context.example)
    if not is_plain_map(layer, features):
        raise UnsupportedModelError(
            f"The layer of GradCAM ({type(layer).__name__}) gives features {list(features.shape)}, no feature map "
            "(B, C, H, W). Pass a gradcam_layer that does, or take LayerGradCam, which lays tokens out."
        )
    assert_relu_modules(context.copy, context.example)
    method: Any = captum.attr.GuidedGradCam(context.copy, layer)
    options = {"interpolate_mode": "bilinear"} | context.options_of("GuidedGradCam")
    return lambda x, y: strongest(method.attribute(x, target=y, **options))


def _occlusion(name: str, side: int) -> Callable[[Context], Explainer]:
    def build(context: Context) -> Explainer:
        method: Any = captum.attr.Occlusion(context.copy)
        chosen = context.options_of(name)

        def explain(x: Tensor, y: Tensor) -> Tensor:
            window = (x.shape[1], side, side)
            options = {
                "sliding_window_shapes": window,
                "strides": window,
                "baselines": context.baseline(x),
                "perturbations_per_eval": max(1, context.rows // len(x)),
            } | chosen
            with torch.no_grad():
                values: Tensor = method.attribute(x, target=y, **options)
            return values[:, :1]

        return explain

    return build


def _deep_lift(context: Context) -> Explainer:
    assert_deep_lift_modules(context.copy, context.example)
    method: Any = captum.attr.DeepLift(context.copy)
    chosen = context.options_of("DeepLift")

    def explain(x: Tensor, y: Tensor) -> Tensor:
        options = {"baselines": context.baseline(x)} | chosen
        values: Tensor = method.attribute(x, target=y, **options)
        return values.sum(dim=1, keepdim=True)

    return explain


def _lrp(context: Context) -> Explainer:
    method: Any = captum.attr.LRP(prepare_lrp(context.model, context.example, **context.options_of("LRP")))
    return lambda x, y: method.attribute(x, target=y).sum(dim=1, keepdim=True)


def _pattern_attribution(context: Context) -> Explainer:
    options = context.options_of("PatternAttribution")
    method: Any = context.fit(lambda batches: PatternAttribution(context.copy).fit(batches, **options))
    return lambda x, y: method.attribute(x, target=y).sum(dim=1, keepdim=True)


def _layer_iba(context: Context) -> Explainer:
    method: Any = LayerIBA(context.model, context.layer, statistics=context.statistics)
    is_text = not context.example.is_floating_point() and len(context.statistics.shape) == 2
    chosen = {"seed": context.seed, **(TOKEN_RANKING if is_text else {}), **context.options_of("LayerIBA")}
    to_map = pop_layout(chosen)
    axis = chosen.get("channel_dim", context.statistics.channel_dim)

    def explain(x: Tensor, y: Tensor, additional_forward_args: Additional = None) -> Tensor:
        limit = None if context.limit is None else max(context.limit, len(x))
        options = {"internal_batch_size": limit, "additional_forward_args": additional_forward_args} | chosen
        return to_map(method.attribute(x, target=y, **options), x, axis)

    return explain


add_method(Method("Random", _random, "A random ranking of the positions, without ties."))
for _name, _build, _description in (
    ("Gradient", _gradient, "Gradient of the class score, mean over the channels, with its sign."),
    ("Saliency", _saliency, "Absolute gradient, largest over the channels."),
    ("InputXGradient", _input_x_gradient, "Input times gradient, summed over the channels."),
    (
        "IntegratedGradients",
        _integrated_gradients,
        f"Mean gradient along the path from the baseline, {_STEPS} steps, not multiplied by the input; "
        "largest absolute value over the channels.",
    ),
    (
        "SmoothGrad",
        _smooth_grad,
        f"Mean gradient over {_STEPS} noisy copies, deviation {_NOISE} of the image's range; largest absolute value "
        "over the channels.",
    ),
    (
        "GuidedBackprop",
        _with_relu_rule("GuidedBackprop", captum.attr.GuidedBackprop),
        "Gradient that passes only positive values back through each ReLU; largest absolute value over the channels.",
    ),
    (
        "Deconvolution",
        _with_relu_rule("Deconvolution", captum.attr.Deconvolution),
        "Positive gradients passed back through each ReLU, whatever went forward; largest absolute value over the "
        "channels.",
    ),
    ("LayerGradCam", _grad_cam, "GradCAM at the last feature map, or patches, positive part, of the explained class."),
    ("GuidedGradCam", _guided_grad_cam, "GuidedBackprop times GradCAM; largest absolute value over the channels."),
    (
        "Occlusion-8x8",
        _occlusion("Occlusion-8x8", 8),
        "Fall of the score when a tile of 8 x 8 pixels is replaced by the baseline.",
    ),
    (
        "Occlusion-14x14",
        _occlusion("Occlusion-14x14", 14),
        "Fall of the score when a tile of 14 x 14 pixels is replaced by the baseline.",
    ),
    ("DeepLift", _deep_lift, "DeepLift (rescale) against the baseline, summed over the channels."),
    ("LRP", _lrp, "Layer-wise relevance propagation with the epsilon rule, epsilon 5, summed over the channels."),
    (
        "PatternAttribution",
        _pattern_attribution,
        "Fitted patterns in place of weights on the way back, a layer's bias counting as one more input, summed over "
        "the channels.",
    ),
):
    add_method(Method(_name, _build, _description, is_fitted=_name == "PatternAttribution", kinds=("image",)))
add_method(
    Method(
        "LayerIBA",
        _layer_iba,
        "The per-sample information bottleneck, with the paper's parameters; on texts one lambda a token and the "
        f"log-odds as objective, beta {TOKEN_RANKING['beta']:g}, learning rate {TOKEN_RANKING['learning_rate']}, "
        f"{TOKEN_RANKING['n_steps']} steps.",
        BITS,
        is_fitted=True,
        needs_statistics=True,
    )
)
