"""From a user's call to the noise of each word, one state after another, one part of the batch after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_iba._warn import Warner
from captum_iba.attr._batches_by_length import PaddedBatch
from captum_iba.attr._forward import Forward
from captum_iba.attr._model import evaluation_mode, exclusive, frozen_parameters
from captum_iba.attr._positions import find_positions
from captum_iba.attr._word_states import NoisyStates, Pick, Position, assert_words
from captum_iba.bottleneck.reading import read
from captum_iba.bottleneck.replay import Site
from captum_iba.information.word_information import WordNoise, WordNoiseSettings, word_noise

# Numbers of noisy embeddings that go through the model at once: on the CPU more fall out of its caches.
_NUMBERS = {"cpu": 2**19}
_NUMBERS_ELSE = 2**23


@dataclass(frozen=True)
class State:
    """What the words are explained for.

    Attributes:
        site (Site): the layer.
        position: which of its states, see :class:`captum_iba.attr._word_states.Pick`.
        reference_std (Tensor or float): deviation of the state's numbers.
        embedding_std (float, optional): unit of the noise's scales.
    """

    site: Site
    position: Position
    reference_std: Tensor | float
    embedding_std: float | None


@contextmanager
def borrowed(modules: Sequence[nn.Module], warner: Warner) -> Iterator[None]:
    """The model for one call: in evaluation mode, without gradients of parameters, and given back as it was."""
    has_recurrent = any(isinstance(inner, nn.RNNBase) for root in modules for inner in root.modules())
    with ExitStack() as stack:
        stack.enter_context(exclusive(modules))
        stack.enter_context(evaluation_mode(modules, warner))
        stack.enter_context(frozen_parameters(modules))
        if has_recurrent:  # cuDNN has no way back through them in evaluation mode
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


class WordSolver:
    """The noise of each word for parts of one batch.

    Args:
        forward_func (Callable): the model.
        embedding (Site): of its word embedding.
        batch (PaddedBatch): the call's arguments.
        is_users_mask (bool): the batch's mask is the user's, which has to fit.
        settings (WordNoiseSettings): parameters of the optimisation.
        internal_batch_size (int, optional): most rows that go through the model at once.
        warner (Warner): remembers the warnings given.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        embedding: Site,
        batch: PaddedBatch,
        is_users_mask: bool,
        settings: WordNoiseSettings,
        internal_batch_size: int | None,
        warner: Warner,
    ) -> None:
        self._forward_func, self._embedding = forward_func, embedding
        self._batch, self._is_users_mask, self._settings, self._warner = batch, is_users_mask, settings, warner
        self._words = self._read(self._forward(batch))  # the whole batch, so that what is wrong shows at once
        assert_words(self._words, len(batch.inputs), embedding.name)
        rows = internal_batch_size
        if rows is None:
            rows = _NUMBERS.get(self._words.device.type, _NUMBERS_ELSE) // self._words[0].numel()
        self._examples = max(1, rows // settings.n_samples)
        self._copies = min(settings.n_samples, max(1, rows // self._examples))

    @property
    def real(self) -> Tensor:
        """(N, L), bool; False on padding."""
        return self._real(self._batch, self._words)

    def solve(self, state: State, after_step: Callable[[int], object]) -> WordNoise:
        """The noise of the whole batch; ``after_step`` is given the number of examples that took a step."""
        n, length, width = self._words.shape
        whole: dict[str, Tensor] = {}
        for rows, part in self._batch.parts(self._examples):
            own = self._solve_part(state, part, lambda part=part: after_step(len(part.inputs)))  # type: ignore[misc]
            for name in ("log_sigma", "log_sigma_max", "drift"):
                value = getattr(own, name)
                whole.setdefault(name, value.new_zeros(n, 1 if name == "log_sigma_max" else length))
                whole[name][rows, : value.shape[1]] = value
        real = self.real
        log_sigma = whole["log_sigma"].where(real, whole["log_sigma_max"])
        return WordNoise(log_sigma, whole["log_sigma_max"], real, width, whole["drift"])

    def _solve_part(self, state: State, part: PaddedBatch, after_step: Callable[[], object]) -> WordNoise:
        forward = self._forward(part)
        words = self._read(forward)
        real = self._real(part, words)
        pick = Pick(state.position, real, state.site.name)
        # the user's autocast is for the model; everything else runs in full precision
        with (
            torch.autocast(forward.device_type, enabled=False),
            NoisyStates(forward, self._embedding, state.site, pick) as states,
        ):
            with torch.no_grad():
                state_mask = pick.mask(states.features(words))
            return word_noise(
                words,
                states,
                state.reference_std,
                self._settings,
                mask=real,
                state_mask=state_mask,
                embedding_std=state.embedding_std,
                copies_per_run=self._copies,
                after_step=after_step,
                warner=self._warner,
            )

    def _forward(self, part: PaddedBatch) -> Forward:
        return Forward(self._forward_func, part.inputs, part.additional)

    def _read(self, forward: Forward) -> Tensor:
        try:
            return read([self._embedding], lambda: forward(1)).features[0]
        except (TypeError, RuntimeError, ValueError, IndexError) as error:
            forward.explain(error)
            raise

    def _real(self, part: PaddedBatch, words: Tensor) -> Tensor:
        users, found = (part.mask, None) if self._is_users_mask else (None, part.mask)
        real = find_positions(users, found, None, words, 2, self._embedding.name).real
        return torch.ones_like(words[..., 0], dtype=torch.bool) if real is None else real[..., 0]
