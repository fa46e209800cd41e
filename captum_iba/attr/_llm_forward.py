"""The log-likelihood of a language model's answer, as the forward function that a bottleneck is optimised for."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from captum_iba.errors import InvalidArgumentError, NoTensorError, TargetIndexError


@dataclass(frozen=True)
class Question:
    """What is asked of one forward pass.

    Attributes:
        tokens (tuple[int, ...]): the tokens whose log-probabilities are summed, each after all before it: the last of
            them is read at the sequence's last position.
        others (tuple[int, ...] or None): tokens at the same positions whose log-probabilities are subtracted.
        all_logits (bool): let the model compute the logits of all positions, not only those that are read.
    """

    tokens: tuple[int, ...]
    others: tuple[int, ...] | None = None
    all_logits: bool = False


class AnswerLikelihood(nn.Module):
    """Log-probability of tokens at the end of a sequence, or how far it exceeds that of others.

    The model keeps no cache: one that was filled without noise would lead around the bottleneck.

    Args:
        model (torch.nn.Module): gives logits (N, T, V), or an object with such ``.logits``, for token ids (N, T).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        # this module alone: its mode says nothing, and the model's is the user's
        self.training = False
        parameters = inspect.signature(model.forward).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        # wrappers such as PEFT's hand on all keywords; that there is a cache then stands in the model's config
        has_cache = takes_any and hasattr(getattr(model, "config", None), "use_cache")
        self._keywords = {"use_cache": False} if has_cache or "use_cache" in parameters else {}
        self._picks_logits = "logits_to_keep" in parameters

    def forward(self, input_ids: Tensor, question: Question) -> Tensor:
        """One value a row of token ids (N, T); a Question is no tensor, so that Captum does not repeat it."""
        n = len(question.tokens)
        logits = self._logits(input_ids, n, question.all_logits)
        wanted = self._picked(logits, question.tokens)
        if question.others is not None:
            # the normalisation is that of both, and cancels
            return (wanted - self._picked(logits, question.others)).sum(dim=1)
        return (wanted - logits.logsumexp(dim=2)).sum(dim=1)

    def _logits(self, input_ids: Tensor, n: int, all_logits: bool) -> Tensor:
        picked = {"logits_to_keep": n} if self._picks_logits and not all_logits else {}
        output = self.model(input_ids, **self._keywords, **picked)
        logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
        if not isinstance(logits, Tensor):
            raise NoTensorError(
                f"{type(self.model).__name__} returned {type(output).__name__}, wanted an object with a tensor "
                ".logits, as transformers' models for causal language modelling return. Set config.return_dict=True, "
                "or pass the model with its head."
            )
        if logits.ndim == 4 and logits.shape[1] == 1:
            logits = logits[:, 0]
        if logits.ndim != 3 or logits.shape[1] < n:
            raise InvalidArgumentError(
                f"{type(self.model).__name__} returned logits of shape {list(logits.shape)} for token ids of shape "
                f"{list(input_ids.shape)}; wanted one row of logits for each position. Pass a model for causal "
                "language modelling, such as one of transformers.AutoModelForCausalLM."
            )
        return logits[:, -n:].to(torch.promote_types(logits.dtype, torch.float32))

    def _picked(self, logits: Tensor, tokens: tuple[int, ...]) -> Tensor:
        size = logits.shape[2]
        if not all(0 <= token < size for token in tokens):
            wrong = next(token for token in tokens if not 0 <= token < size)
            raise TargetIndexError(
                f"Token {wrong} is none of the {size} that the model gives logits for. Pass the model's own tokenizer "
                "and token ids."
            )
        index = torch.tensor(tokens, device=logits.device).expand(len(logits), -1)
        return logits.gather(2, index.unsqueeze(2)).squeeze(2)
