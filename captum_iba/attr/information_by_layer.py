"""The bottleneck at one layer after another: where in the network the decision becomes a few tokens' affair."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from captum_iba._captum import TargetType, _format_additional_forward_args
from captum_iba._warn import Warner
from captum_iba.attr._batches_by_length import PaddedBatch, as_batch, names_of_tokens
from captum_iba.attr._calibration import LayersCollector, forward_calls, length_of, stream
from captum_iba.attr._forward import Forward
from captum_iba.attr._model import device_of, evaluation_mode, exclusive, frozen_parameters, locate, unwrap_parallel
from captum_iba.attr._positions import padding_of
from captum_iba.attr._problem import Arguments, Problem
from captum_iba.attr.blocks import named_layers
from captum_iba.attr.diagnostics import IBADiagnostics
from captum_iba.attr.layer_information import LayerInformation
from captum_iba.bottleneck.replay import Site
from captum_iba.bottleneck.statistics import FeatureStatistics
from captum_iba.bottleneck.tail import SharedPrefix
from captum_iba.errors import InvalidArgumentError, InvalidTypeError, StatisticsError

# Rows at once where the user sets no limit: on the CPU more fall out of its caches.
_ROWS = {"cpu": 40}
_ROWS_ELSE = 320
_OPTIONS = frozenset(Arguments.__dataclass_fields__) - {"relu", "position_mask", "internal_batch_size"}


def information_by_layer(
    model: nn.Module,
    layers: str | Sequence[nn.Module | str],
    inputs: Tensor | Mapping[str, Any],
    target: TargetType = None,
    additional_forward_args: object | None = None,
    calibration: Iterable[Any] | None = None,
    statistics: Mapping[str, FeatureStatistics] | None = None,
    tokenizer: object | None = None,
    position_mask: Tensor | None = None,
    cls_position: int = 0,
    internal_batch_size: int | None = None,
    show_progress: bool = False,
    **kwargs: Any,
) -> LayerInformation:
    r"""Bits per token at each of several layers of a transformer, for a batch of sentences.

    The same as :meth:`LayerIBA.attribute` at one layer after another, at less cost: sentences of about the same length
    run together, without the padding that they do not need, and what comes before the layers is computed once for all.

    Args:
        model (torch.nn.Module): returns logits, or an object with ``.logits``.
        layers (str or Sequence[nn.Module or str]): ``"all"`` blocks of the model (:func:`find_blocks`); or modules and
            dotted names. Token layers of the same positions.
        inputs (Tensor or Mapping): token ids (N, T), or all the model's arguments by name, as a tokenizer gives them.
        target (int, tuple, Tensor or list, optional): as for :meth:`LayerIBA.attribute`. Default: None.
        additional_forward_args (Any, optional): further arguments in order; not with a mapping. Default: None.
        calibration (Iterable, optional): data for the feature statistics, as for :meth:`LayerIBA.estimate`; one pass
            serves all layers. Padding is left out by the ``attention_mask``; for any other mask pass ``statistics`` of
            :meth:`LayerIBA.estimate`. Default: None.
        statistics (Mapping[str, FeatureStatistics], optional): by layer, from an earlier result. Default: None; with
            neither, each sentence's own stand in, and a warning says so.
        tokenizer (optional): anything with ``convert_ids_to_tokens``, which names the tokens. Default: None.
        position_mask (Tensor, optional): (N, T), nonzero at real tokens. Default: None: the model's ``attention_mask``.
        cls_position (int, optional): the token whose share of the bits is reported, counted among an example's real
            ones, negative from its end. Default: 0, where BERT has [CLS].
        internal_batch_size (int, optional): most rows that go through the model at once. Default: None: 40 on the CPU,
            320 elsewhere.
        show_progress (bool, optional): show a progress bar. Default: False.
        **kwargs (Any): the numbers of :meth:`LayerIBA.attribute`: ``beta``, ``n_steps``, ``n_samples``, ``seed``,
            ``mask_granularity``, ``protected_positions`` (numbers), ``objective`` and so on.

    Returns:
        LayerInformation: bits (L, N, T), and totals, shares, table, plot and page made of them.

    Raises:
        InvalidTypeError: model or an argument of another type.
        InvalidArgumentError: no such layer, an unknown argument, or a layer with other positions.
        CaptumIBAError: everything :meth:`LayerIBA.attribute` raises.

    Reference:
        Ramezani 2023, figure 2.

    Examples::

        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> model = nn.Sequential(nn.Embedding(20, 8), nn.TransformerEncoder(block, 2, enable_nested_tensor=False),
        ...                       nn.Flatten(), nn.Linear(5 * 8, 3)).eval()
        >>> ids = torch.randint(20, (100, 5))
        >>> found = information_by_layer(model, "all", ids[:4], target=1, calibration=[ids])
        >>> found.layers, found.bits.shape
        (('1.layers.0', '1.layers.1'), torch.Size([2, 4, 5]))
        >>> found.most_informative_layer in found.layers
        True
    """
    if not isinstance(model, nn.Module):
        raise InvalidTypeError(f"model is a {type(model).__name__}; wanted a torch.nn.Module, whose layers have names.")
    unknown = sorted(set(kwargs) - _OPTIONS)
    if unknown:
        raise InvalidArgumentError(f"{unknown} are no arguments; wanted some of {sorted(_OPTIONS)}.")
    if not isinstance(kwargs.get("seed", 0), int):
        raise InvalidTypeError(f"seed is {kwargs['seed']!r}; wanted one integer here: sentences are not kept in order.")
    if isinstance(kwargs.get("protected_positions"), Tensor):
        raise InvalidTypeError("protected_positions is a tensor; wanted numbers of tokens here, such as [0, -1].")
    forward_func = unwrap_parallel(model, None)
    names = named_layers(model, layers)
    batch = as_batch(
        forward_func,
        inputs,
        _format_additional_forward_args(additional_forward_args),
        lambda x, more: padding_of(forward_func, (x,), more) if position_mask is None else position_mask,
        target,
    )
    arguments = Arguments(internal_batch_size=internal_batch_size, **kwargs)
    warner = Warner()
    with exclusive([model]), evaluation_mode([model], warner), frozen_parameters([model]):
        sites = {name: locate(forward_func, layer, False)[0] for name, layer in names.items()}
        found = _statistics(model, forward_func, sites, calibration, statistics, arguments.channel_dim, show_progress)
        rows = arguments.internal_batch_size or _ROWS.get(batch.inputs.device.type, _ROWS_ELSE)
        solver = _Solver(model, forward_func, sites, found, arguments, int(rows), warner)
        bar = tqdm(
            total=len(batch.inputs) * len(sites),
            desc="Information by layer",
            unit="map",
            disable=not show_progress,
        )
        with bar:
            records = [
                (own_rows, solver.solve(part, bar.update))
                for own_rows, part in batch.parts(max(1, int(rows) // int(arguments.n_samples)))
            ]
    return _gather(records, batch, tuple(sites), found, tokenizer, cls_position)


def _statistics(
    model: nn.Module,
    forward_func: Callable[..., Any],
    sites: Mapping[str, Site],
    calibration: Iterable[Any] | None,
    given: Mapping[str, FeatureStatistics] | None,
    channel_dim: int | None,
    show_progress: bool,
) -> dict[str, FeatureStatistics]:
    if given is not None and calibration is not None:
        raise InvalidArgumentError("calibration and statistics are both there; wanted one of them.")
    if given is not None:
        missing = [name for name in sites if name not in given]
        if missing:
            raise StatisticsError(f"statistics has none of {missing}, found {list(given)}; pass calibration instead.")
        return {name: given[name] for name in sites}
    if calibration is None:
        return {}
    found: dict[str, FeatureStatistics] = {}
    names = {site: name for name, site in sites.items()}

    def keep(statistics: dict[Site, FeatureStatistics]) -> None:
        found.update({names[site]: own for site, own in statistics.items()})

    with torch.inference_mode(False):
        keep(
            stream(
                LayersCollector(list(sites.values()), "auto", channel_dim, 10_000, [model]),
                forward_calls(forward_func, calibration, None, device_of([model])),
                keep,
                length_of(calibration),
                "Layer statistics" if show_progress else "",
            )
        )
    return found


class _Solver:
    """The bottleneck at each layer for one part of the batch after another."""

    def __init__(
        self,
        model: nn.Module,
        forward_func: Callable[..., Any],
        sites: Mapping[str, Site],
        statistics: Mapping[str, FeatureStatistics],
        arguments: Arguments,
        rows: int,
        warner: Warner,
    ) -> None:
        self._rows = rows
        self._model, self._forward_func, self._sites = model, forward_func, sites
        self._statistics, self._arguments, self._warner = statistics, arguments, warner

    def solve(self, part: PaddedBatch, done: Callable[[int], object]) -> list[tuple[Tensor, IBADiagnostics]]:
        """Bits (n, T) and diagnostics at each layer."""
        forward = Forward(self._forward_func, part.inputs, part.additional)
        # a copy of a part is never cut
        rows = max(self._rows, len(part.inputs))
        shared = SharedPrefix(list(self._sites.values()), forward, [self._model])
        solved: list[tuple[Tensor, IBADiagnostics]] = []
        for name, site in self._sites.items():
            # the user's autocast is for the model; everything else runs in full precision
            with torch.autocast(forward.device_type, enabled=False):
                problem = Problem(
                    arguments=replace(self._arguments, position_mask=part.mask, internal_batch_size=rows),
                    forward=forward,
                    site=site,
                    modules=[self._model],
                    statistics=self._statistics.get(name),
                    target=part.target,
                    warner=self._warner,
                    record=partial(shared.recording, site),
                )
                bits, record = problem.explain(lambda: None)
            assert record is not None
            if bits.ndim != 3 or record.channel_dim != 2:
                raise InvalidArgumentError(
                    f"{site.name} gives bits of shape {list(bits.shape)}; wanted a layer of tokens (N, T, D)."
                )
            if solved and bits.shape[1] != solved[0][0].shape[1]:
                raise InvalidArgumentError(
                    f"{site.name} has {bits.shape[1]} positions and the first of the layers {solved[0][0].shape[1]}; "
                    "wanted layers of the same tokens."
                )
            solved.append((bits[..., 0], record))
            done(len(bits))
        return solved


def _fewest(batch: PaddedBatch, n_tokens: int) -> int:
    """Tokens of the shortest example."""
    return n_tokens if batch.mask is None else int((batch.mask != 0).sum(dim=1).min())


def _gather(
    records: list[tuple[list[int], list[tuple[Tensor, IBADiagnostics]]]],
    batch: PaddedBatch,
    names: tuple[str, ...],
    statistics: dict[str, FeatureStatistics],
    tokenizer: object | None,
    cls_position: int,
) -> LayerInformation:
    longest = max(bits.shape[1] for _, solved in records for bits, _ in solved)
    n_tokens = longest if batch.mask is None else batch.mask.shape[1]
    first = records[0][1][0][0]
    if not 0 <= (cls_position if cls_position >= 0 else ~cls_position) < _fewest(batch, n_tokens):
        raise InvalidArgumentError(
            f"cls_position={cls_position} is no token of an example with {_fewest(batch, n_tokens)}; wanted one that "
            "all have."
        )
    bits = first.new_zeros(len(names), len(batch.inputs), n_tokens)
    probabilities = first.new_zeros(len(names), len(batch.inputs))
    has_probability = True
    for rows, solved in records:
        for layer, (own, record) in enumerate(solved):
            if own.shape[1] > n_tokens:
                raise InvalidArgumentError(f"{names[layer]} has {own.shape[1]} positions, wanted {n_tokens}.")
            bits[layer, rows, : own.shape[1]] = own
            if record.target_probability is None:
                has_probability = False
            else:
                probabilities[layer, rows] = record.target_probability.to(probabilities)
    mask = torch.ones_like(bits[0], dtype=torch.bool) if batch.mask is None else batch.mask != 0
    ids = batch.inputs if batch.inputs.shape[:2] == mask.shape and batch.inputs.ndim == 2 else None
    tokens = names_of_tokens(tokenizer if ids is not None else None, mask if ids is None else ids, mask)
    return LayerInformation(
        layers=names,
        bits=bits,
        position_mask=mask.to(bits.device),
        target_probability=probabilities if has_probability else None,
        tokens=tokens,
        cls_position=cls_position,
        statistics=statistics,
    )
