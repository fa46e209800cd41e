"""Information of each word for several states side by side: layers, positions or models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from captum_iba._pandas import as_dataframe
from captum_iba.attr._batches_by_length import names_of_tokens
from captum_iba.attr._real_tokens import bits_of_example
from captum_iba.attr._word_states import Position
from captum_iba.errors import InvalidArgumentError
from captum_iba.information.word_information import WordNoise

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from captum_iba.attr.word_information import WordInformation

Kind: TypeAlias = Literal["layer", "position", "model"]


@dataclass(frozen=True)
class WordComparison:
    """Outcome of the comparisons of :class:`captum_iba.attr.word_information.WordInformation`.

    Attributes:
        kind (str): ``"layer"``, ``"position"`` or ``"model"``: what ``names`` are.
        names (tuple[str, ...]): of the R states, in the order asked for.
        bits (Tensor): (R, N, L), information of each word; 0 on padding.
        sigma (Tensor): (R, N, L), deviation of each word's noise; 0 on padding.
        position_mask (Tensor): (N, L), bool; False on padding.
        tokens (list[list[str]]): each example's real tokens; their numbers where no tokenizer was given.
    """

    kind: Kind
    names: tuple[str, ...]
    bits: Tensor
    sigma: Tensor
    position_mask: Tensor
    tokens: list[list[str]]

    @classmethod
    def of(
        cls, kind: Kind, names: Sequence[str], found: Sequence[WordNoise], inputs: Tensor, tokenizer: object | None
    ) -> WordComparison:
        """The words' noise for one state after another, laid together.

        Args:
            kind (str): what the names are.
            names (Sequence[str]): of the states.
            found (Sequence[WordNoise]): one for each.
            inputs (Tensor): token ids (N, L), if they are such.
            tokenizer (optional): anything with ``convert_ids_to_tokens``.
        """
        real = found[0].mask
        fits = inputs.shape == real.shape
        tokens = names_of_tokens(tokenizer if fits else None, inputs if fits else real, real.to(inputs.device))
        bits = torch.stack([noise.information() for noise in found])
        return cls(kind, tuple(names), bits, torch.stack([noise.sigma for noise in found]), real, tokens)

    @property
    def mean_bits(self) -> Tensor:
        """(R, N), mean over an example's words."""
        return self.bits.sum(dim=2) / self.position_mask.sum(dim=1)

    @property
    def difference(self) -> Tensor:
        """(R - 1, N, L), bits of each state less those of the first one."""
        return self.bits[1:] - self.bits[:1]

    def of_example(self, index: int) -> Tensor:
        """(R, real tokens), one example's bits without padding.

        Raises:
            InvalidArgumentError: there is no such example.
        """
        return bits_of_example(self.bits, self.position_mask, index)

    def to_dataframe(self) -> DataFrame:
        """One row for each state, example and real word: its number, token, bits and sigma.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        example, _ = self.position_mask.nonzero(as_tuple=True)
        place = (self.position_mask.cumsum(dim=1) - 1)[self.position_mask]
        states, count = len(self.names), len(example)
        return as_dataframe(
            {
                self.kind: [name for name in self.names for _ in range(count)],
                "example": example.cpu().repeat(states).numpy(),
                "word": place.cpu().repeat(states).numpy(),
                "token": [token for tokens in self.tokens for token in tokens] * states,
                "bits": self.bits[:, self.position_mask].double().cpu().flatten().numpy(),
                "sigma": self.sigma[:, self.position_mask].double().cpu().flatten().numpy(),
            }
        )

    def plot(self, index: int = 0) -> Figure:
        """One example's bits as states x words, with a colour bar.

        Args:
            index (int, optional): of the example. Default: 0.

        Returns:
            matplotlib.figure.Figure: drawn without pyplot; ``figure.savefig(path)`` writes it.

        Raises:
            InvalidArgumentError: there is no such example.

        Examples::

            >>> bits = torch.rand(2, 1, 3)
            >>> found = WordComparison(
            ...     "layer", ("0", "1"), bits, bits, torch.ones(1, 3) > 0, [["good", "movie", "."]]
            ... )
            >>> [axis.get_ylabel() for axis in found.plot().axes]
            ['layer', 'bits per word']
        """
        from captum_iba._text_pictures import token_heat_map

        return token_heat_map(self.of_example(index), self.tokens[index], self.names, self.kind, "bits per word")


def compare_models(
    methods: Mapping[str, WordInformation],
    inputs: Tensor | tuple[Tensor, ...] | Mapping[str, Any],
    additional_forward_args: object | None = None,
    tokenizer: object | None = None,
    position: Position = None,
    **kwargs: Any,
) -> WordComparison:
    """The words' bits in several models with the same tokenizer, such as one before and after fine-tuning.

    Each model is measured against the reference deviations of its own :meth:`WordInformation.estimate_reference_std`,
    as ``lam``, ``max_scale`` and these set the zero point of the bits.

    Args:
        methods (Mapping[str, WordInformation]): by the models' names, one layer each.
        inputs (Tensor, tuple or Mapping): as in :meth:`WordInformation.attribute`, the same for all.
        additional_forward_args (Any, optional): likewise.
        tokenizer (optional): anything with ``convert_ids_to_tokens``, which names the words. Default: None.
        position (optional): as in :meth:`WordInformation.attribute`. Default: None.
        **kwargs (Any): as in :meth:`WordInformation.compare_layers`.

    Returns:
        WordComparison: bits (R, N, L) of R models; ``difference`` is that to the first one.

    Raises:
        InvalidArgumentError: a method has several layers, or the models split the inputs into words differently.
        CaptumIBAError: all that :meth:`WordInformation.attribute` raises.
    """
    found: list[WordComparison] = []
    for name, method in methods.items():
        own = method.compare_layers(inputs, additional_forward_args, tokenizer, position=position, **kwargs)
        if len(own.names) != 1:
            raise InvalidArgumentError(f"{name!r} has {len(own.names)} layers; wanted one for each model.")
        if found and not torch.equal(own.position_mask, found[0].position_mask.to(own.bits.device)):
            raise InvalidArgumentError(f"{name!r} has other words than {next(iter(methods))!r}; wanted one tokenizer.")
        found.append(own)
    if not found:
        raise InvalidArgumentError("methods is empty; wanted at least one model.")
    bits, sigma = (torch.cat([getattr(own, name).to(found[0].bits) for own in found]) for name in ("bits", "sigma"))
    return WordComparison("model", tuple(methods), bits, sigma, found[0].position_mask, found[0].tokens)
