"""Attention rollout: the attention weights of all layers multiplied, as a simple map to compare with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_iba._captum import Attribution, TargetType, log_usage
from captum_iba._warn import Warner
from captum_iba.attr._attention_weights import attention_weights
from captum_iba.attr._forward import Forward
from captum_iba.attr._model import evaluation_mode, exclusive, find_modules, unwrap_parallel
from captum_iba.errors import InvalidArgumentError, InvalidTypeError, NonFiniteError


class AttentionRollout(Attribution):
    r"""How much of each token reaches the token that a transformer is read at, by its attention weights alone.

    Each layer is taken as A' = (A + I) / 2: the weights A, averaged over the heads, for its attention, and the identity
    I for its skip connection. The row of the reading position in the product of all layers' A' is the relevance of the
    input's tokens (Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers", section 3). It is one pass,
    ignores values, feed-forward layers and the head, and so does not depend on the class.

    Works on models made of ``torch.nn.MultiheadAttention``, such as torchvision's vision transformers, and on the
    encoders and decoders of transformers whose layers attend to all tokens: BERT, RoBERTa, DistilBERT, ELECTRA,
    DeBERTa, ViT, DeiT, GPT-2 and others. Models with attention in windows, such as Swin, have no rollout.

    Args:
        forward_func (Callable): a transformer, or a function that runs one.
        device_ids (Sequence[int], optional): as for :class:`LayerIBA`. Default: None.

    Raises:
        InvalidTypeError: forward_func cannot be called.

    Examples::

        >>> from torchvision.models import VisionTransformer
        >>> model = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32).eval()
        >>> relevance = AttentionRollout(model).attribute(torch.randn(2, 3, 32, 32))
        >>> relevance.shape, torch.allclose(relevance.sum(dim=1), torch.ones(2, 1))
        (torch.Size([2, 17, 1]), True)
    """

    def __init__(self, forward_func: Callable[..., Any], device_ids: Sequence[int] | None = None) -> None:
        if not callable(forward_func):
            raise InvalidTypeError(f"forward_func is a {type(forward_func).__name__}; wanted a module or a function.")
        Attribution.__init__(self, forward_func)
        self.device_ids = device_ids
        self._warner = Warner()

    @classmethod
    def get_name(cls) -> str:
        """Name for progress bars and tables."""
        return "Attention Rollout"

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object | None = None,
        position: int | Sequence[int] | Tensor = 0,
    ) -> Tensor:
        """Return the relevance of each token.

        Padding that the model masks gets 0, and a padded batch has the values of the single sentences.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): as for :meth:`LayerIBA.attribute`; token ids too.
            target: not used, as attention does not depend on it; here so that the method takes a call of any other.
                Default: None.
            additional_forward_args (Any, optional): further arguments of the forward function, such as the attention
                mask. Default: None.
            position (int, Sequence[int] or Tensor, optional): the token that the model is read at, one for all
                examples or one each; negative ones count from the end. For a decoder the last real token:
                ``attention_mask.sum(dim=1) - 1`` with padding on the right, -1 on the left. Default: 0, the class
                token.

        Returns:
            *Tensor* of **attributions**: (N, T, 1), without unit, never negative, of sum 1 over the T tokens.

        Raises:
            UnsupportedModelError: the pass gives no attention weights, or not those of one sequence of tokens.
            InvalidArgumentError: position is no token of the sequence, or inputs is empty.
            NonFiniteError: attention weights of a token that the position depends on are NaN or infinite.
            CaptumIBAError: inputs or additional_forward_args that do not fit the model.
        """
        forward_func = unwrap_parallel(self.forward_func, self.device_ids)
        forward = Forward(forward_func, inputs, additional_forward_args, needs_gradient=False)
        modules = find_modules(forward_func)
        with (
            exclusive(modules),
            evaluation_mode(modules, self._warner),
            torch.autocast(forward.device_type, enabled=False),
            torch.no_grad(),
            attention_weights(modules) as found,
        ):
            try:
                forward(copies=1)
            except (TypeError, RuntimeError, ValueError, IndexError) as error:
                forward.explain(error)
                raise
        weights = found.of(forward.n_examples)
        return rollout(weights, _positions(position, forward.n_examples, weights[0])).unsqueeze(2)


def rollout(weights: Sequence[Tensor], positions: Tensor) -> Tensor:
    """Rows of the product of (A + I) / 2 over the layers.

    Args:
        weights (Sequence[Tensor]): of each layer in order, (N, heads, T, T), whose rows sum to 1.
        positions (Tensor): (N,), integer: the row of each example.

    Returns:
        Tensor: (N, T), in float32 at least.

    Raises:
        NonFiniteError: a row that the result depends on is not finite.

    Examples::

        >>> to_the_first = torch.tensor([[1.0, 0.0], [1.0, 0.0]])[None, None]
        >>> rollout([to_the_first, to_the_first], torch.tensor([1]))
        tensor([[0.7500, 0.2500]])
    """
    wide = torch.promote_types(weights[0].dtype, torch.float32)
    row = torch.nn.functional.one_hot(positions, weights[0].shape[-1]).to(wide)
    # the row of a product needs no product of matrices: it goes through the layers from the last one on
    for index, heads in reversed(list(enumerate(weights))):
        attention = heads.to(wide).mean(dim=1)
        undefined = ~torch.isfinite(attention).all(dim=2)
        if bool((undefined & (row > 0)).any()):
            raise NonFiniteError(
                f"The attention weights of layer {index} are NaN or infinite. Look at the model's weights, and at "
                "whether the attention mask leaves every token something to attend to."
            )
        # rows of padding may be undefined, as it may have nothing to attend to; nothing depends on them
        attention = attention.masked_fill(undefined.unsqueeze(2), 0.0)
        own = torch.eye(attention.shape[-1], dtype=wide, device=attention.device)
        layer = (attention + own) / 2
        layer = layer / layer.sum(dim=2, keepdim=True)
        row = (row.unsqueeze(1) @ layer).squeeze(1)
    return row.contiguous()


def _positions(position: object, n_examples: int, weights: Tensor) -> Tensor:
    """One token an example, from 0 on."""
    n_tokens = weights.shape[-1]
    try:
        chosen = torch.as_tensor(position, device=weights.device)
    except (TypeError, ValueError, RuntimeError):
        chosen = torch.empty(0)
    is_integer = not (chosen.is_floating_point() or chosen.is_complex() or chosen.dtype == torch.bool)
    if not is_integer or tuple(chosen.shape) not in ((), (n_examples,)):
        raise InvalidArgumentError(
            f"position={position!r}; wanted a token's index, or one for each of the {n_examples} examples."
        )
    if bool((chosen < -n_tokens).any()) or bool((chosen >= n_tokens).any()):
        raise InvalidArgumentError(f"position={position!r} is none of the {n_tokens} tokens, counted from 0.")
    return (chosen.long() % n_tokens).expand(n_examples)
