"""Captum's methods for text: one value for each token.

Values of a token's hidden units are reduced as in Captum's tutorials: their sum for methods that share out the output,
their L2 norm for the plain gradient, which ranks tokens by how sensitive the output is to them.
"""

from __future__ import annotations

from typing import Any

import captum.attr
import torch
from torch import Tensor

from captum_iba._captum import _select_targets
from captum_iba.bottleneck.reading import read
from captum_iba.bottleneck.replay import Site, run_with
from captum_iba.comparison._arguments import Additional
from captum_iba.comparison.context import Context
from captum_iba.comparison.example import Kind
from captum_iba.comparison.methods import Explainer, Method, add_method
from captum_iba.errors import InvalidArgumentError

_STEPS = 50
_ONLY_TEXT: tuple[Kind, ...] = ("text",)


def _integrated_gradients(context: Context) -> Explainer:
    method: Any = captum.attr.LayerIntegratedGradients(context.forward, context.embedding)
    chosen = {"n_steps": _STEPS} | context.options_of("LayerIntegratedGradients")

    def explain(
        x: Tensor, y: Tensor, baselines: Tensor | None = None, additional_forward_args: Additional = None
    ) -> Tensor:
        if baselines is None:
            raise InvalidArgumentError("The example has no baselines: ids that stand for nothing at each token.")
        options = {"internal_batch_size": max(context.rows, len(x)), "baselines": baselines} | chosen
        values: Tensor = method.attribute(x, target=y, additional_forward_args=additional_forward_args, **options)
        return values.sum(dim=2)

    return explain


def _gradient_x_activation(context: Context) -> Explainer:
    # Captum's own refuses layers that return None beside their features, as blocks of transformers 4 do
    options = context.options_of("LayerGradientXActivation")
    site = Site(context.layer, "the layer", options.pop("attribute_to_layer_input", False))
    if options:
        raise InvalidArgumentError(
            f"method_options of LayerGradientXActivation: {', '.join(options)} cannot be used here; wanted "
            "attribute_to_layer_input alone."
        )

    def explain(x: Tensor, y: Tensor, additional_forward_args: Additional = None) -> Tensor:
        def call() -> Tensor:
            return context.forward(x, *(additional_forward_args or ()))

        features = read([site], call).features[0].requires_grad_()
        with torch.enable_grad(), run_with(site, call, features) as logits:
            (gradient,) = torch.autograd.grad(_select_targets(logits, y).sum(), features)
        return _features(features.detach() * gradient).sum(dim=2)

    return explain


def _gradient_norm(context: Context) -> Explainer:
    # without the activation's factor it is the gradient
    method: Any = captum.attr.LayerGradientXActivation(context.forward, context.embedding, multiply_by_inputs=False)
    options = context.options_of("GradientNorm")

    def explain(x: Tensor, y: Tensor, additional_forward_args: Additional = None) -> Tensor:
        values = method.attribute(x, target=y, additional_forward_args=additional_forward_args, **options)
        norms: Tensor = _features(values).norm(dim=2)
        return norms

    return explain


def _features(values: Any) -> Tensor:
    """Of a layer that returns a tuple, as blocks of transformers 4 do, the first: its features (1, T, D)."""
    features: Tensor = values[0] if isinstance(values, (tuple, list)) else values
    if features.ndim != 3:
        raise InvalidArgumentError(
            f"The layer's features have shape {list(features.shape)}; wanted tokens (1, T, D). Pass another layer."
        )
    return features


for _name, _build, _description in (
    (
        "LayerIntegratedGradients",
        _integrated_gradients,
        f"Integrated gradients of the token embeddings, {_STEPS} steps from the embedding of the token that stands "
        "for nothing, special tokens kept; summed over the hidden units.",
    ),
    (
        "LayerGradientXActivation",
        _gradient_x_activation,
        "Gradient times activation at the bottleneck's layer, summed over the hidden units.",
    ),
    ("GradientNorm", _gradient_norm, "L2 norm of the gradient of the class score at each token's embedding."),
):
    add_method(Method(_name, _build, _description, kinds=_ONLY_TEXT))
