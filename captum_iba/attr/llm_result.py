"""What an attribution of a language model's answer gives."""

from __future__ import annotations

from typing import Any

from captum.attr import LLMAttributionResult
from torch import Tensor

from captum_iba.attr.diagnostics import IBADiagnostics


class LLMIBAAttributionResult(LLMAttributionResult):
    """Captum's result, in bits, and what the bottleneck let pass beside the prompt's tokens.

    The plots of Captum's class work; :meth:`plot_token_attr` needs ``per="token"``.

    Args:
        input_tokens (list[str]): the columns: tokens of the prompt, or values of the template.
        output_tokens (list[str]): the answer's tokens.
        seq_attr (Tensor): (n_input_tokens,), bits of the columns for the whole answer.
        token_attr (Tensor, optional): (n_output_tokens, n_input_tokens), bits for each answer token.
        answer_attr (Tensor): (rows, n_output_tokens), bits of the answer's own tokens: the earlier ones are read
            through the bottleneck as well. Row i is zero from token i on, which is not yet there. A row for each
            optimisation: one for each answer token, or a single one for the whole answer.
        total_bits (Tensor): (rows,), bits of all positions: columns, answer, and what is no column, such as skipped
            tokens and a template's own text.
        diagnostics (tuple[IBADiagnostics, ...], optional): of each optimisation.
        inp (InterpretableInput, optional): the input that was explained.

    Attributes:
        input_tokens, output_tokens, seq_attr, token_attr, answer_attr, total_bits, diagnostics, inp: as given.

    Examples::

        >>> import torch
        >>> bits = torch.tensor([[3.0, 1.0]])
        >>> result = LLMIBAAttributionResult(
        ...     input_tokens=["Two", "plus"],
        ...     output_tokens=["two"],
        ...     seq_attr=bits[0],
        ...     token_attr=bits,
        ...     answer_attr=torch.zeros(1, 1),
        ...     total_bits=torch.tensor([4.0]),
        ... )
        >>> result.seq_attr_dict
        {'Two': 3.0, 'plus': 1.0}
    """

    def __init__(
        self,
        *,
        input_tokens: list[str],
        output_tokens: list[str],
        seq_attr: Tensor,
        token_attr: Tensor | None,
        answer_attr: Tensor,
        total_bits: Tensor,
        diagnostics: tuple[IBADiagnostics, ...] | None = None,
        inp: Any = None,
    ) -> None:
        super().__init__(
            input_tokens=input_tokens, output_tokens=output_tokens, seq_attr=seq_attr, token_attr=token_attr
        )
        self.answer_attr, self.total_bits = answer_attr, total_bits
        self.diagnostics, self.inp = diagnostics, inp
