"""The layer that turns token ids into vectors."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from captum_iba.comparison._arguments import Additional
from captum_iba.errors import InvalidArgumentError


def find_embedding(model: nn.Module, ids: Tensor, additional: Additional = None) -> nn.Module:
    """The embedding of a model's token ids.

    Args:
        model (nn.Module): in evaluation mode.
        ids (Tensor): (1, T), token ids.
        additional (tuple, optional): further arguments of the model. Default: None.

    Returns:
        nn.Module: ``model.get_input_embeddings()`` where the model has that, as those of transformers do; else the one
        ``nn.Embedding`` that is given the ids.

    Raises:
        InvalidArgumentError: there is none, or more than one.

    Examples::

        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
        >>> find_embedding(model, torch.tensor([[1, 5, 2]])) is model[0]
        True
    """
    known = getattr(model, "get_input_embeddings", None)
    if callable(known):
        with suppress(NotImplementedError):  # as transformers has it where a model leaves it open
            embedding: Any = known()
            if isinstance(embedding, nn.Module):
                return embedding
    found: list[str] = []

    def note(name: str) -> Any:
        def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            given = arguments[0] if arguments else None
            if isinstance(given, Tensor) and given.shape == ids.shape and bool((given == ids).all()):
                found.append(name)

        return hook

    modules: dict[str, nn.Module] = dict(model.named_modules())
    candidates = {name: module for name, module in modules.items() if isinstance(module, nn.Embedding)}
    handles = [module.register_forward_pre_hook(note(name)) for name, module in candidates.items()]
    try:
        with torch.no_grad():
            model(ids, *(additional or ()))
    finally:
        for handle in handles:
            handle.remove()
    names = list(dict.fromkeys(found))
    if len(names) != 1:
        listed = f"{len(names)} embeddings are given the token ids ({', '.join(names)})"
        raise InvalidArgumentError(
            f"In {type(model).__name__} {listed if names else 'no nn.Embedding is given the token ids'}; pass "
            "embedding=..., the layer or its name."
        )
    return modules[names[0]]
