"""The attention weights of one forward pass, from models that do not return them unless they are asked to.

torch's ``nn.MultiheadAttention`` is asked again by a hook, with the arguments that it was called with. The encoders of
transformers are asked through their config, and return the weights in ``attentions``.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from captum_iba.bottleneck.replay import plain_attention
from captum_iba.errors import UnsupportedModelError

Weights = tuple[Tensor, ...]


class AttentionWeights:
    """Collects the attention weights of the pass that runs inside :func:`attention_weights`."""

    def __init__(self) -> None:
        self._by_module: list[Tensor] = []
        self._by_encoder: list[Weights] = []

    def of(self, n_examples: int) -> Weights:
        """The weights of each layer in order, (N, heads, T, T).

        Raises:
            UnsupportedModelError: there are none, or not those of one sequence of tokens.
        """
        sources = [*([tuple(self._by_module)] if self._by_module else []), *self._by_encoder]
        if not sources:
            raise UnsupportedModelError(
                "The forward pass gave no attention weights: it has neither torch.nn.MultiheadAttention nor a "
                "transformers encoder that returns attentions. Take LayerIBA, which needs none; or load a transformers "
                "model with attn_implementation='eager', and call it without output_attentions."
            )
        if len(sources) > 1:
            raise UnsupportedModelError(
                f"The forward pass ran {len(sources)} encoders with attention of their own, and rollout follows one. "
                "Pass the encoder that is meant, or a function that runs it alone."
            )
        (found,) = sources
        self._assert_one_sequence([list(weights.shape) for weights in found], n_examples)
        return found

    @staticmethod
    def _assert_one_sequence(shapes: Sequence[Sequence[int]], n_examples: int) -> None:
        n_tokens = shapes[0][-1]
        for index, shape in enumerate(shapes):
            if len(shape) != 4 or [shape[0], *shape[2:]] != [n_examples, n_tokens, n_tokens]:
                raise UnsupportedModelError(
                    f"Layer {index} has attention weights of shape {list(shape)}; wanted ({n_examples}, heads, "
                    f"{n_tokens}, {n_tokens}), as each layer must attend from all tokens to the same tokens. Windows, "
                    "cross-attention and merged tokens have no rollout; take LayerIBA."
                )

    def note_module(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: object) -> None:
        """Hook of ``nn.MultiheadAttention``: the same call with its weights, while the model gets what it asked for."""
        call = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        _, weights = module.forward(**{**call, "need_weights": True, "average_attn_weights": False})
        self._by_module.append(weights.detach())

    def note_encoder(self, _module: nn.Module, _args: object, output: object) -> None:
        """Hook of transformers' modules: what an encoder returns, which the model around it returns again."""
        weights = _attentions_in(output)
        if weights and not any(weights[0] is known[0] for known in self._by_encoder):
            self._by_encoder.append(weights)


def _attentions_in(output: object) -> Weights:
    """The attentions of a model output, or of the tuple that stands for one; empty where there are none."""
    attentions = getattr(output, "attentions", None)
    if attentions is None and isinstance(output, tuple) and output:
        attentions = output[-1]
    if not isinstance(attentions, (tuple, list)) or not all(isinstance(weights, Tensor) for weights in attentions):
        return ()
    # the last entry may also be hidden states, with three axes, or a layer's keys and values, which are not square
    is_square = all(weights.ndim == 4 and weights.shape[2] == weights.shape[3] for weights in attentions)
    return tuple(attentions) if is_square or not isinstance(output, tuple) else ()


@contextmanager
def attention_weights(roots: Sequence[nn.Module]) -> Iterator[AttentionWeights]:
    """Collect the weights of the pass inside; modules and configs are left as they were found.

    Args:
        roots (Sequence[nn.Module]): modules that the pass runs.

    Yields:
        AttentionWeights: filled by the pass.
    """
    modules = list(dict.fromkeys(module for root in roots for module in root.modules()))
    found = AttentionWeights()
    with ExitStack() as stack:
        stack.enter_context(plain_attention())
        stack.enter_context(_hooks_restored(modules))
        stack.enter_context(_returning_attentions(modules))
        for module in modules:
            if isinstance(module, nn.MultiheadAttention):
                module.register_forward_hook(found.note_module, with_kwargs=True)
            elif _config_of(module) is not None:
                module.register_forward_hook(found.note_encoder)
        yield found


def _config_of(module: nn.Module) -> Any:
    config = getattr(module, "config", None)
    return config if hasattr(config, "_attn_implementation") else None


@contextmanager
def _returning_attentions(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Have transformers compute attention step by step, as fused kernels have no weights, and return them."""
    configs: dict[int, Any] = {}
    waiting = [config for module in modules if (config := _config_of(module)) is not None]
    while waiting:
        config = waiting.pop()
        if id(config) not in configs:
            configs[id(config)] = config
            waiting += [inner for inner in vars(config).values() if hasattr(inner, "_attn_implementation")]
    before = [(config, dict(vars(config))) for config in configs.values()]
    try:
        for config in configs.values():
            config._attn_implementation = "eager"  # first: the other is refused with fused kernels
            config.output_attentions = True
        yield
    finally:
        for config, entries in before:
            vars(config).clear()
            vars(config).update(entries)


@contextmanager
def _hooks_restored(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Remove the hooks set inside: ours, and what transformers leaves behind.

    Version 5 installs hooks for good, with a mark of having, and the late 4 puts modules' own ``forward`` back as an
    attribute of the instance.
    """
    marks = ("_output_capturing_hooks_installed", "forward")
    before = [(m, set(m._forward_hooks), [mark for mark in marks if mark not in vars(m)]) for m in modules]
    try:
        yield
    finally:
        for module, known, unmarked in before:
            for hooks in (
                module._forward_hooks,
                module._forward_hooks_with_kwargs,
                module._forward_hooks_always_called,
            ):
                for key in hooks.keys() - known:
                    del hooks[key]
            for mark in unmarked:
                vars(module).pop(mark, None)
