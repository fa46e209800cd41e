"""Whether what an attribution keeps is enough: everything else at the layer is replaced by noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from captum_iba._captum import TargetType, _format_additional_forward_args
from captum_iba._warn import Warner
from captum_iba.attr._forward import Forward
from captum_iba.bottleneck.statistics import FeatureStatistics
from captum_iba.errors import InvalidArgumentError, InvalidTypeError
from captum_iba.metrics._accumulate import Accumulator
from captum_iba.metrics._kept import make_choice
from captum_iba.metrics._noisy_layer import noisy_layer
from captum_iba.metrics._options import bound_options
from captum_iba.metrics._output import Output, OutputType
from captum_iba.metrics._result import as_seed
from captum_iba.metrics._rows import RowLimit
from captum_iba.metrics._sufficiency import Batch, SufficiencyResult, assert_map, assert_mask, joined, measured
from captum_iba.metrics._units import Tensors, as_tuple

AREAS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75)


def sufficiency(
    forward_func: Callable[..., Any],
    inputs: Tensors,
    attributions: Tensor,
    layer: nn.Module,
    statistics: FeatureStatistics,
    additional_forward_args: object | None = None,
    target: TargetType = None,
    *,
    areas: Sequence[float] | Tensor = AREAS,
    thresholds: Sequence[float] | None = None,
    mask: Tensor | None = None,
    n_samples: int = 10,
    output: OutputType = "prob",
    attribute_to_layer_input: bool = False,
    max_examples_per_batch: int | None = None,
    seed: int = 0,
    show_progress: bool = False,
) -> SufficiencyResult:
    """Keep a layer's most relevant positions, replace the others by the bottleneck's noise, and look at the decision.

    Any method's map can be tested so: it is resized to the layer's positions, and the same area is kept for all.

    Args:
        forward_func (Callable): the model; returns logits (N, classes).
        inputs (Tensor or tuple[Tensor, ...]): as for :meth:`LayerIBA.attribute`.
        attributions (Tensor): one map an example, of any size for maps: (N, 1, h, w), (N, C, h, w), summed over the
            channels, or (N, h, w); (N, T), (N, T, 1) or (N, T, D) for tokens; (N, F) for layers of F units. Larger maps
            are averaged over areas, smaller ones interpolated bilinearly.
        layer (torch.nn.Module): where the noise replaces the features.
        statistics (FeatureStatistics): of the layer: ``iba.statistics``.
        additional_forward_args (Any, optional): as in Captum. Default: None.
        target (int, tuple, Tensor or list, optional): as in Captum. Default: None.
        areas (Sequence[float] or Tensor, optional): shares of the positions to keep, (A,), or (N, A) for each example,
            such as the ``area`` of another method's result. Positions of equal attribution come in random order.
            Default: 2 % to 75 %.
        thresholds (Sequence[float], optional): instead of areas: keep the positions with at least so many bits; the
            map must be of the layer's own size. Default: None.
        mask (Tensor, optional): the bottleneck's share of signal, ``diagnostics.mask`` of :meth:`LayerIBA.attribute`:
            kept positions then pass what the bottleneck passes rather than everything, which is what :attr:`bound`
            speaks of. Default: None.
        n_samples (int, optional): draws of the noise, the same for all maps. Default: 10.
        output (str or Callable, optional): see :func:`degradation`. Default: ``"prob"``.
        attribute_to_layer_input (bool, optional): at the layer's input. Default: False.
        max_examples_per_batch (int, optional): most rows in one forward pass, in which an example has two or more: the
            examples run in pieces, on which the values do not depend. Default: None, see :func:`degradation`.
        seed (int, optional): of the noise, and of the order of equal attributions. Default: 0.
        show_progress (bool, optional): show a progress bar. Default: False.

    Returns:
        SufficiencyResult: probabilities, ranks, and what was kept.

    Raises:
        InvalidArgumentError: an argument out of range, or shapes that do not fit.
        NonFiniteError: NaN or infinity in the map or the output.
        StatisticsError: the statistics are of another layer.
        CaptumIBAError: as :meth:`LayerIBA.attribute`.

    Reference:
        Schulz et al. 2020, section 3: what is below the threshold may be replaced by noise.

    Examples::

        >>> from captum_iba import LayerIBA
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 3)).eval()
        >>> x = torch.randn(1000, 1, 8, 8)
        >>> iba = LayerIBA(model, model[0]).estimate(x)
        >>> bits = iba.attribute(x[:2], target=1)
        >>> result = sufficiency(model, x[:2], bits, model[0], iba.statistics, target=1, areas=[0.25, 1.0])
        >>> result.area.tolist(), torch.allclose(result.probability[:, 1], result.intact)
        ([[0.25, 1.0], [0.25, 1.0]], True)
    """
    if not isinstance(statistics, FeatureStatistics):
        raise InvalidTypeError(
            f"statistics is a {type(statistics).__name__}; wanted the layer's FeatureStatistics, as in iba.statistics "
            "after iba.estimate(data)."
        )
    as_seed(seed)
    if type(n_samples) is not int or n_samples < 1:
        raise InvalidArgumentError(f"n_samples={n_samples!r}; wanted an integer of at least 1.")
    tensors, warner = as_tuple(inputs, "inputs"), Warner()
    n_examples = Forward(forward_func, tensors, additional_forward_args).n_examples
    Output(output, target, n_examples)
    assert_map(attributions, n_examples)
    assert_mask(mask, n_examples)
    batch = Batch(
        tensors,
        _format_additional_forward_args(additional_forward_args),
        target,
        attributions,
        mask,
        make_choice(areas, thresholds, tensors[0], seed),
    )
    n_rows = (len(batch.choice.settings) + 2) * n_samples
    limit, found, done = RowLimit(max_examples_per_batch, tensors[0], warner), list[SufficiencyResult](), 0
    bar = tqdm(total=n_examples * n_rows, desc=Sufficiency.name, disable=not show_progress, unit="row")

    def measure(rows: int) -> SufficiencyResult:
        """The next examples, so many that no forward pass has more than these rows."""
        bar.update(done * n_rows - bar.n)  # back, where memory did not suffice
        end = min(n_examples, done + max(1, rows // 2))
        part = batch.part(torch.arange(done, end, device=tensors[0].device), n_examples)
        with noisy_layer(
            forward_func,
            layer,
            statistics,
            part.inputs,
            part.additional,
            part.target,
            output,
            attribute_to_layer_input,
            warner,
        ) as noisy:
            return measured(part, noisy, n_samples, seed, rows, bar.update)

    with bar:
        while done < n_examples:
            found.append(limit.attempt(measure, (n_examples - done) * n_rows))
            done += len(found[-1].per_sample)
    limit.report()
    return joined(found)


class Sufficiency(Accumulator[SufficiencyResult]):
    """:func:`sufficiency` over batches.

    Args:
        forward_func (Callable): the model.
        layer (torch.nn.Module): as for :func:`sufficiency`.
        statistics (FeatureStatistics): as for :func:`sufficiency`.
        **options (Any): the keyword-only arguments of :func:`sufficiency`, but for ``mask``.

    Raises:
        InvalidTypeError: an option that the function does not have, or that belongs to :meth:`evaluate`.

    Examples::

        >>> from captum_iba import LayerIBA
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 64, 3)).eval()
        >>> x = torch.randn(1000, 1, 8, 8)
        >>> metric = Sufficiency(model, model[0], LayerIBA(model, model[0]).estimate(x).statistics)
        >>> for batch in x[:3].split(2):
        ...     _ = metric.evaluate(batch, batch.abs(), target=0)
        >>> metric.summary().probability.shape
        torch.Size([3, 7])
    """

    name = "sufficiency"
    higher_is_better = True

    def __init__(
        self, forward_func: Callable[..., Any], layer: nn.Module, statistics: FeatureStatistics, **options: Any
    ) -> None:
        fixed = {"forward_func": forward_func, "layer": layer, "statistics": statistics}
        super().__init__(bound_options(sufficiency, type(self).evaluate, fixed, options))
        self.forward_func, self.layer, self.statistics, self._options = forward_func, layer, statistics, options

    def evaluate(
        self,
        inputs: Tensors,
        attributions: Tensor,
        additional_forward_args: object | None = None,
        target: TargetType = None,
        mask: Tensor | None = None,
    ) -> SufficiencyResult:
        """:func:`sufficiency` of a batch; :meth:`summary` will include it."""
        return self._add(
            sufficiency(
                self.forward_func,
                inputs,
                attributions,
                self.layer,
                self.statistics,
                additional_forward_args,
                target,
                mask=mask,
                **self._options,
            )
        )

    def summary(self) -> SufficiencyResult:
        """All examples since the start or the last :meth:`reset`.

        Raises:
            InvalidArgumentError: nothing was evaluated.
        """
        return joined(self._all())
