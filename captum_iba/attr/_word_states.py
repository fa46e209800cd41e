"""From noisy word embeddings to the hidden state that a user asks about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from captum_iba._numbers import is_integer
from captum_iba.attr._forward import Forward
from captum_iba.attr._model import name_of
from captum_iba.bottleneck.containers import find_features, replace_features
from captum_iba.bottleneck.replay import LayerReached, Site, forward_pass
from captum_iba.errors import InvalidArgumentError, InvalidTypeError, MismatchedArgumentsError

Position: TypeAlias = int | Literal["mean"] | Callable[[Tensor, Tensor], Tensor] | None


def find_embedding(modules: Sequence[nn.Module]) -> nn.Module:
    """The word embedding of a model.

    Args:
        modules (Sequence[nn.Module]): that the forward function runs.

    Returns:
        nn.Module: what ``get_input_embeddings()`` of a model of transformers gives, else the only ``nn.Embedding``.

    Raises:
        InvalidArgumentError: there is none, or more than one.

    Examples::

        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2))
        >>> find_embedding([model]) is model[0]
        True
    """
    for root in modules:
        with suppress(NotImplementedError, AttributeError):
            found = root.get_input_embeddings()  # type: ignore[operator]
            if isinstance(found, nn.Module):
                return _running_twin(found, root)
    candidates = dict.fromkeys(
        inner for root in modules for inner in root.modules() if isinstance(inner, (nn.Embedding, nn.EmbeddingBag))
    )
    if len(candidates) == 1:
        return next(iter(candidates))
    names = [repr(name_of(candidate, modules)) for candidate in candidates]
    found_text = f"several embeddings: {', '.join(names)}" if names else "no nn.Embedding"
    raise InvalidArgumentError(
        f"The model has {found_text}. Pass the words' one as embedding_layer=..., a module whose output is "
        "(examples, words, width)."
    )


def _running_twin(embedding: nn.Module, root: nn.Module) -> nn.Module:
    """The module that runs: of models with an encoder, its own embedding with the same weights, which comes first."""
    weight = getattr(embedding, "weight", None)
    inner = (module for module in root.modules() if isinstance(module, nn.Embedding) and module is not embedding)
    return next((module for module in inner if module.weight is weight), embedding)


def assert_position(position: Any) -> None:
    """Refuse what names no state.

    Raises:
        InvalidArgumentError: it does not.
    """
    is_number = isinstance(position, int) and not isinstance(position, bool)
    if not (position is None or position == "mean" or is_number or callable(position)):
        raise InvalidArgumentError(
            f'position={position!r}; wanted the number of a token such as 0 for [CLS], "mean", a function '
            "(states, real) -> (rows, width), or None for the states at all positions."
        )


@dataclass(frozen=True)
class Pick:
    """Takes the state in question from a layer's features.

    Attributes:
        position (int, str, Callable or None): which.
        real (Tensor): (N, T), bool; False on padding.
        layer_name (str): for messages.
    """

    position: Position
    real: Tensor
    layer_name: str

    def __call__(self, features: Tensor) -> Tensor:
        """The state (R, D), or all states (R, T, D), of R rows, a multiple of N, copy by copy."""
        if self.position is None:
            return features
        if not self.has_positions(features):
            raise InvalidArgumentError(
                f"position={self.position!r} has no meaning at {self.layer_name}, whose output of shape "
                f"{list(features.shape)} does not have the {self.real.shape[1]} positions of the words. Pass "
                "position=None."
            )
        real = self.real.to(features.device).repeat(len(features) // len(self.real), 1)
        if isinstance(self.position, int):
            return features[torch.arange(len(features), device=features.device), self._index(real)]
        if self.position == "mean":
            weights = (real / real.sum(dim=1, keepdim=True)).to(features.dtype)
            return (features.where(real[..., None], 0.0) * weights[..., None]).sum(dim=1)
        assert callable(self.position)
        return self._checked(self.position(features, real), len(features))

    def mask(self, features: Tensor) -> Tensor | None:
        """(N, T, 1), bool, which of all states count; None where one was picked, or the layer has other positions."""
        if self.position is not None or not self.has_positions(features):
            return None
        return self.real[..., None].to(features.device)

    def has_positions(self, features: Tensor) -> bool:
        """Whether the layer's features have a state for each word."""
        return features.ndim == 3 and features.shape[1] == self.real.shape[1]

    def _index(self, real: Tensor) -> Tensor:
        """Where each row's token of that number stands, counted among the real ones."""
        count = real.sum(dim=1)
        number = torch.full_like(count, int(self.position))  # type: ignore[arg-type]
        number = torch.where(number < 0, count + number, number)
        short = ((number < 0) | (number >= count)).nonzero().flatten()
        if len(short):
            row = int(short[0]) % len(self.real)
            raise MismatchedArgumentsError(
                f"position={self.position} is no token of example {row} of its part of the batch, which has "
                f"{int(count[row])}; wanted one that all examples have."
            )
        return ((real.cumsum(dim=1) - 1 == number[:, None]) & real).int().argmax(dim=1)

    def _checked(self, state: Any, rows: int) -> Tensor:
        if not isinstance(state, Tensor) or state.ndim != 2 or len(state) != rows:
            found = list(state.shape) if isinstance(state, Tensor) else type(state).__name__
            raise InvalidTypeError(f"position returned {found} for {rows} rows; wanted a tensor (rows, width).")
        return state


class NoisyStates:
    """Runs the model from given word embeddings as far as the layer.

    Use as a context. A pass's hooks stay until the next one begins, because a backward pass may recompute parts of the
    forward pass.

    Args:
        forward (Forward): the call on N examples.
        embedding, site (Site): what is replaced, and what is read.
        pick (Pick): takes the state from the layer's output.
    """

    def __init__(self, forward: Forward, embedding: Site, site: Site, pick: Pick) -> None:
        self._forward, self._embedding, self._site, self._pick = forward, embedding, site, pick
        self._stack = ExitStack()

    def __enter__(self) -> NoisyStates:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def __call__(self, noisy: Tensor) -> Tensor:
        """The states (R, ...) of R rows of embeddings."""
        return self._pick(self.features(noisy))

    def features(self, noisy: Tensor) -> Tensor:
        """The layer's output for R rows of embeddings."""
        self._stack.close()
        found: list[Tensor] = []

        def take(container: Any) -> Any:
            if not found:
                found.append(find_features(container, self._site.name))
                raise LayerReached
            return container  # recomputed for the backward pass

        # the embedding first: it may be the layer itself
        exchange = forward_pass(self._embedding, lambda container: replace_features(container, noisy))
        replaced = self._stack.enter_context(exchange)
        read = self._stack.enter_context(forward_pass(self._site, take))
        with suppress(LayerReached):
            self._forward(len(noisy) // self._forward.n_examples)
        read.finish()
        if not replaced.layer_calls:
            raise InvalidArgumentError(
                f"{self._site.name} runs before {self._embedding.name}, so the words cannot reach it; wanted a layer "
                "behind the word embedding."
            )
        replaced.finish()
        if len(found[0]) != len(noisy):
            raise MismatchedArgumentsError(
                f"{self._site.name} gives features of shape {list(found[0].shape)} for {len(noisy)} rows; the first "
                "axis must be the batch. Choose a layer that keeps it, such as one with batch_first=True."
            )
        return found[0]


def assert_words(embeddings: Tensor, n_examples: int, name: str) -> None:
    """Refuse embeddings that are not (N, L, K).

    Raises:
        InvalidArgumentError: they are not.
    """
    if embeddings.ndim != 3 or len(embeddings) != n_examples:
        raise InvalidArgumentError(
            f"{name}, taken as the word embedding, gives {list(embeddings.shape)} for {n_examples} examples; wanted "
            "(examples, words, width). Pass the words' one as embedding_layer=..., in a model with the batch first."
        )


def assert_seed(seed: Any) -> None:
    """Refuse what is no seed.

    Raises:
        InvalidArgumentError: it is not.
    """
    if not is_integer(seed, least=0) or seed >= 2**63:
        raise InvalidArgumentError(f"seed={seed!r}; wanted an integer from 0 to 2**63 - 1.")
