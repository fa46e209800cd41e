"""Information Bottleneck Attribution of what a language model answers."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from captum.attr import InterpretableInput, LLMGradientAttribution, TextTemplateInput, TextTokenInput
from torch import Tensor, nn
from tqdm.auto import tqdm

from captum_iba._captum import log_usage
from captum_iba.attr._llm_forward import AnswerLikelihood, Question
from captum_iba.attr._llm_tokens import (
    Prompt,
    Tokens,
    as_tokens,
    assert_fits,
    contrast_tokens,
    n_positions,
    readable,
    without_skipped,
)
from captum_iba.attr._model import evaluation_mode, exclusive, locate, unwrap_parallel
from captum_iba.attr.diagnostics import IBADiagnostics
from captum_iba.attr.layer_iba import LayerIBA
from captum_iba.attr.layer_readout_iba import LayerReadoutIBA
from captum_iba.attr.llm_result import LLMIBAAttributionResult
from captum_iba.errors import InvalidArgumentError, InvalidTypeError

Map = tuple[Tensor, IBADiagnostics | None]


class LLMIBAAttribution(LLMGradientAttribution):
    r"""Bits that a language model's answer needs from each token of the prompt.

    Captum's wrapper for layer methods and language models, for :class:`LayerIBA` and :class:`LayerReadoutIBA`. For
    each answer token a bottleneck is optimised that lets as little as possible pass at the layer while the token keeps
    its log-probability given the prompt and the answer tokens before it.

    What the map says:

    - The answer's earlier tokens go through the bottleneck too, and have bits of their own: ``answer_attr`` of the
      result. A copied word may be needed from the prompt, or from where the answer already repeats it.
    - Attention is causal: what the layer holds at a position comes from there and from before. At the embeddings'
      output a position is its token; in later layers it holds what attention has brought there, and the bits gather at
      the last positions. Early layers name the tokens of the prompt, late layers the positions at which the model keeps
      what it took from them.
    - The last token of the prompt is where the first answer token is read, so its own features are needed as well.
    - The model runs without a key-value cache: one that was filled without noise would lead around the bottleneck.
      What comes before the layer is computed once for each optimisation.

    Args:
        attr_method (LayerIBA or LayerReadoutIBA): made for the language model itself; a shallow copy is used, which
            shares its statistics. The model takes token ids (N, T) and returns an object with ``.logits``, as
            transformers' models do.
        tokenizer (Tokenizer): of the model.

    Raises:
        AssertionError: another attribution method (Captum's own check).
        InvalidTypeError: the method was made for a function around the model.
        DeviceError: the model is replicated over several devices.

    Examples::

        >>> import torch
        >>> from captum.attr import TextTokenInput
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({w: i for i, w in enumerate("<unk> a b c d e".split())}, "<unk>"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
        >>> config = GPT2Config(vocab_size=6, n_positions=16, n_embd=8, n_layer=2, n_head=2, bos_token_id=None)
        >>> model = GPT2LMHeadModel(config).eval()
        >>> iba = LLMIBAAttribution(LayerIBA(model, model.transformer.h[0]), tokenizer)
        >>> iba = iba.estimate(["a b c d e", "e d c b a"] * 500)
        >>> result = iba.attribute(TextTokenInput("a b c d", tokenizer), target="e a")
        >>> result.token_attr.shape, result.input_tokens, result.output_tokens
        (torch.Size([2, 4]), ['a', 'b', 'c', 'd'], ['e', 'a'])
    """

    # Captum's types name its own methods and inputs alone
    SUPPORTED_METHODS: Any = (LayerIBA, LayerReadoutIBA)
    SUPPORTED_INPUTS: Any = (TextTokenInput, TextTemplateInput)

    def __init__(self, attr_method: LayerIBA | LayerReadoutIBA, tokenizer: Any) -> None:
        method: Any = attr_method
        if isinstance(method, self.SUPPORTED_METHODS):
            method = copy.copy(method)
            method.forward_func = unwrap_parallel(method.forward_func, method.device_ids)
            if not isinstance(method.forward_func, nn.Module):
                raise InvalidTypeError(
                    f"attr_method was made for a {type(method.forward_func).__name__}; wanted the language model "
                    f"itself: {type(method).__name__}(model, layer)."
                )
        super().__init__(method, tokenizer)
        self.attr_method: Any
        self.attr_method.forward_func = AnswerLikelihood(self.model)

    @classmethod
    def get_name(cls) -> str:
        """Name for progress bars and tables."""
        return "LLM IBA Attribution"

    def estimate(
        self,
        texts: Iterable[str],
        max_examples: int = 10_000,
        attribute_to_layer_input: bool = False,
        show_progress: bool = False,
    ) -> LLMIBAAttribution:
        """Estimate the layer's feature statistics from texts; short for the method's own ``estimate``.

        Each text goes through the model by itself, so that there is no padding, cut to the model's positions; texts
        without tokens are left out. For anything else call ``LayerIBA(model, layer).estimate(batches)``, before this
        object is made or after, since statistics are shared: with token ids, or with mappings of ``input_ids`` and
        ``attention_mask`` (not of all that a tokenizer returns: GPT-2 would add an embedding of ``token_type_ids``).

        Args:
            texts (Iterable[str]): texts like the prompts and answers to be explained, but not the same.
            max_examples (int, optional): texts to stop at. Default: 10_000, as :meth:`LayerIBA.estimate`.
            attribute_to_layer_input (bool, optional): the layer's input instead of its output. Default: False.
            show_progress (bool, optional): show a progress bar. Default: False.

        Returns:
            LLMIBAAttribution: self.

        Raises:
            InvalidTypeError: not several texts.
            StatisticsError: fewer than two texts with tokens.
            CaptumIBAError: everything else that the method's ``estimate`` raises.
        """
        if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
            raise InvalidTypeError(f"texts is a {type(texts).__name__}; wanted several texts, such as a list of str.")
        method = copy.copy(self.attr_method)
        method.forward_func = self.model
        method.estimate(
            self._encoded(texts),
            max_examples=max_examples,
            attribute_to_layer_input=attribute_to_layer_input,
            show_progress=show_progress,
        )
        return self

    def _encoded(self, texts: Iterable[str]) -> Iterator[Tensor]:
        for text in texts:
            if not isinstance(text, str):
                raise InvalidTypeError(f"texts yields a {type(text).__name__}; wanted str.")
            ids = list(self.tokenizer.encode(text))[: n_positions(self.model)]
            if ids:
                yield torch.tensor([ids], dtype=torch.long)

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inp: InterpretableInput,
        target: Tokens | None = None,
        skip_tokens: Sequence[int] | Sequence[str] | None = None,
        gen_args: dict[str, Any] | None = None,
        per: Literal["token", "sequence"] = "token",
        contrast: Tokens | None = None,
        return_diagnostics: bool = False,
        show_progress: bool = False,
        **kwargs: Any,
    ) -> LLMIBAAttributionResult:
        r"""Optimise a bottleneck for each token of an answer, or one for the whole answer.

        Args:
            inp (TextTokenInput or TextTemplateInput): the prompt. Nothing is taken out of it: ``baselines`` are not
                used. Of a TextTokenInput each token is a column but ``skip_tokens``, which stay in the prompt (such as
                the token that begins a text). Of a TextTemplateInput each value is a column, with the sum over its
                tokens: those with any of its characters; a token with characters of several values belongs to the one
                with most of them, of equal ones to the first. Tokens of the template's own text are in no column, only
                in ``total_bits``. With ``mask`` all values of a group get the group's sum, as in Captum.
            target (str, int, Sequence[int] or Tensor, optional): the answer, a text or token ids (n,). A text is
                tokenized by itself without special tokens: begin it with a space where the tokenizer counts that to
                the word. Default: None, what the model generates.
            skip_tokens (list[int] or list[str], optional): tokens to leave out of the answer, as if they were not
                there (as in captum 0.8). Default: None.
            gen_args (dict, optional): for ``model.generate`` where there is no target. Default: None, Captum's:
                at most 25 tokens, the most likely at each step.
            per (str, optional): ``"token"``: an optimisation for each answer token, with objective
                :math:`\log p(y_i | x, y_{<i})`; ``seq_attr`` is the sum of these maps, as in Captum. ``"sequence"``:
                a single optimisation with objective :math:`\log p(y | x) = \sum_i \log p(y_i | x, y_{<i})`, all
                read in one forward pass; ``token_attr`` is None. The sum counts a position's information once for each
                token that needs it, the single map once. Each token's bottleneck may drop what only the others need;
                the single one has to keep it all, and weighs it against the same ``beta``, though its objective is a
                sum of n terms. Default: ``"token"``.
            contrast (str, int, Sequence[int] or Tensor, optional): why this answer rather than that one. The objective
                is :math:`\log p(y_i | x, y_{<i}) - \log p(z_i | x, y_{<i})` at each position (summed for
                ``per="sequence"``): the other tokens z are weighed in the context of the answer, not of their own.
                One token for each answer token; for ``per="token"`` a single one may stand at each. Default: None.
            return_diagnostics (bool, optional): keep each optimisation's :class:`IBADiagnostics` in the result. With
                a contrast, ``target_probability`` is None. Default: False.
            show_progress (bool, optional): show a progress bar over the answer's tokens, or over the steps for
                ``per="sequence"``. Default: False.
            **kwargs: for the method's own ``attribute``: ``beta``, ``n_steps``, ``n_samples``,
                ``internal_batch_size``, ``seed`` and so on. The readout's map depends on the sequence alone, so that
                there its rows differ only in what has been answered so far.

        Returns:
            LLMIBAAttributionResult: Captum's result with bits: ``token_attr`` (n_output_tokens, n_input_tokens),
            ``seq_attr`` (n_input_tokens,), and ``answer_attr``, ``total_bits``, ``diagnostics``. Row i of
            ``token_attr`` is exactly the method's map for token i after the prompt and the tokens before it, cut to
            the prompt.

        Raises:
            InvalidTypeError: an input, target, contrast or skip_tokens of another type.
            InvalidArgumentError: no tokens in prompt or answer, more than the model has positions, a contrast that
                does not fit the answer, a tokenizer without offsets for a template, an unknown ``per``, or features
                without an axis for the tokens.
            TargetIndexError: a token that the model does not have.
            LayerNotExecutedError: the layer is not part of the model.
            CaptumIBAError: everything that the method's own ``attribute`` raises.

        Examples::

            >>> import torch
            >>> from captum.attr import TextTemplateInput
            >>> from tokenizers import Tokenizer, models, pre_tokenizers
            >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
            >>> words = {w: i for i, w in enumerate("<unk> Anna Ben sees calls gladly .".split())}
            >>> words = Tokenizer(models.WordLevel(words, "<unk>"))
            >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
            >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
            >>> config = LlamaConfig(
            ...     vocab_size=7, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
            ... )
            >>> model = LlamaForCausalLM(config).eval()
            >>> iba = LLMIBAAttribution(LayerIBA(model, model.model.layers[0]), tokenizer)
            >>> iba = iba.estimate(["Anna calls Ben .", "Ben sees Anna ."] * 500)
            >>> prompt = TextTemplateInput("{} sees {} .", ["Anna", "Ben"])
            >>> result = iba.attribute(prompt, target="Ben calls", contrast="Anna sees", per="sequence")
            >>> result.input_tokens, result.seq_attr.shape, bool(result.total_bits[0] > result.seq_attr.sum())
            (['Anna', 'Ben'], torch.Size([2]), True)
        """
        self._check(per, contrast, kwargs)
        site, _ = locate(self.model, self.attr_method.layer, kwargs.get("attribute_to_layer_input", False))
        # the method locks its own forward function, which is not the same for two objects with one model
        with exclusive([self.model]):
            prompt = Prompt.of(inp, self.tokenizer, self.attr_method._state.warner)
            answer = self._answer(prompt, target, skip_tokens, gen_args)
            others = None
            if contrast is not None:
                others = contrast_tokens(contrast, answer, per == "token", self.tokenizer)
                kwargs["objective"] = _margin  # a difference is no likelihood
            maps = self._maps(
                prompt.ids.to(self.device),
                self._questions(answer, others, per, site.layer),
                show_progress,
                {"return_diagnostics": return_diagnostics, **kwargs},
            )
        return self._result(prompt, answer, maps, per)

    def _check(self, per: str, contrast: Tokens | None, kwargs: Mapping[str, Any]) -> None:
        if per not in ("token", "sequence"):
            raise InvalidArgumentError(f"per={per!r}; wanted 'token' or 'sequence'.")
        for name in ("inputs", "additional_forward_args", "position_mask"):  # one prompt has no padding
            if name in kwargs:
                raise InvalidArgumentError(f"{name} is set from inp and target here; leave it out.")
        if contrast is None:
            return
        if isinstance(self.attr_method, LayerReadoutIBA):
            raise InvalidArgumentError(
                "The readout's map does not depend on the answer, so contrast would change nothing. Use LayerIBA."
            )
        if kwargs.get("objective") is not None:
            raise InvalidArgumentError("contrast is an objective already; leave out objective, or contrast.")

    def _answer(
        self,
        prompt: Prompt,
        target: Tokens | None,
        skip_tokens: Sequence[int] | Sequence[str] | None,
        gen_args: dict[str, Any] | None,
    ) -> Tensor:
        """Token ids of the answer, (n,), on the CPU."""
        if target is None:
            with evaluation_mode([self.model], self.attr_method._state.warner):
                answer = self._get_target_tokens(prompt.inp, None, gen_args=gen_args).cpu()
        elif gen_args is not None:
            raise InvalidArgumentError("gen_args is for an answer that the model generates; leave it out, or target.")
        else:
            answer = as_tokens(target, "target", self.tokenizer)
        answer = without_skipped(answer, skip_tokens, self.tokenizer)
        if len(answer) == 0:
            raise InvalidArgumentError(
                f"target={target!r} has no tokens"
                + (f" but skip_tokens={skip_tokens!r}" if skip_tokens else "")
                + "; wanted an answer of at least one token."
            )
        assert_fits(self.model, prompt.ids, answer)
        return answer

    def _questions(self, answer: Tensor, others: Tensor | None, per: str, layer: nn.Module) -> list[Question]:
        """One for each optimisation."""
        tokens = tuple(answer.tolist())
        against = None if others is None else tuple(others.tolist())
        all_logits = _contains(layer, _output_embeddings(self.model))
        if per == "sequence":
            return [Question(tokens, against, all_logits)]
        return [
            Question((token,), None if against is None else (against[i],), all_logits) for i, token in enumerate(tokens)
        ]

    def _maps(self, ids: Tensor, questions: list[Question], show_progress: bool, kwargs: dict[str, Any]) -> list[Map]:
        """Bits of each position, (n_tokens,), for each question; each is asked after what those before it ask for."""
        maps = []
        answered = torch.tensor([q.tokens for q in questions], device=ids.device).reshape(1, -1)
        is_one = len(questions) == 1
        for i, question in enumerate(
            tqdm(questions, f"{self.get_name()}", unit="token", disable=is_one or not show_progress)
        ):
            sequence = torch.cat([ids, answered[:, : i + len(question.tokens) - 1]], dim=1)
            maps.append(self._map(sequence, question, {"show_progress": is_one and show_progress, **kwargs}))
        return maps

    def _map(self, sequence: Tensor, question: Question, kwargs: dict[str, Any]) -> Map:
        found = self.attr_method.attribute(sequence, additional_forward_args=(question,), **kwargs)
        bits, record = found if isinstance(found, tuple) else (found, None)
        if bits.ndim < 3 or bits.shape[1] != sequence.shape[1]:
            raise InvalidArgumentError(
                f"The layer's map has shape {list(bits.shape)} for {sequence.shape[1]} tokens; wanted "
                f"[1, {sequence.shape[1]}, channels]. Choose a layer with features for each token, such as a block, "
                "and leave channel_dim at its last axis."
            )
        return bits[0].flatten(1).sum(dim=1), record

    def _result(self, prompt: Prompt, answer: Tensor, maps: list[Map], per: str) -> LLMIBAAttributionResult:
        n_prompt = prompt.ids.shape[1]
        rows = prompt.in_columns(torch.stack([bits[:n_prompt] for bits, _ in maps]))
        answer_attr = rows.new_zeros(len(maps), len(answer))
        for row, (bits, _) in zip(answer_attr, maps, strict=True):
            row[: len(bits) - n_prompt] = bits[n_prompt:]
        records = tuple(record for _, record in maps if record is not None)
        return LLMIBAAttributionResult(
            input_tokens=prompt.names,
            output_tokens=readable(answer, self.tokenizer),
            seq_attr=rows.sum(dim=0),
            token_attr=rows if per == "token" else None,
            answer_attr=answer_attr,
            total_bits=torch.stack([bits.sum() for bits, _ in maps]),
            diagnostics=records or None,
            inp=prompt.inp,
        )


def _margin(output: Tensor, _target: object) -> Tensor:
    """Loss of a difference of log-probabilities."""
    return -output


def _output_embeddings(model: nn.Module) -> nn.Module | None:
    """What turns features into logits; None where the model does not tell."""
    try:
        found = model.get_output_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    return found if isinstance(found, nn.Module) else None


def _contains(outer: nn.Module, inner: nn.Module | None) -> bool:
    return inner is not None and any(module is inner for module in outer.modules())
