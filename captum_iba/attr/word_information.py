"""How much of each word a hidden state keeps, as a Captum method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from captum_iba._captum import InternalAttribution, _format_additional_forward_args, log_usage
from captum_iba._numbers import assert_integer
from captum_iba._warn import Warner
from captum_iba.attr._batches_by_length import PaddedBatch, as_batch
from captum_iba.attr._calibration import InputFn, PositionMask, forward_calls, length_of, stream
from captum_iba.attr._model import device_of, find_modules, locate, name_of, reachable, unwrap_parallel
from captum_iba.attr._positions import padding_of
from captum_iba.attr._word_reference import WordReference, WordReferenceCollector
from captum_iba.attr._word_solver import State, WordSolver, borrowed
from captum_iba.attr._word_states import Position, assert_position, assert_seed, find_embedding
from captum_iba.attr.word_comparison import WordComparison
from captum_iba.bottleneck.replay import Site
from captum_iba.errors import InvalidArgumentError, InvalidTypeError, MismatchedArgumentsError, StatisticsError
from captum_iba.information.word_information import Reduction, WordNoise, WordNoiseSettings

Self = TypeVar("Self", bound="WordInformation")
ReferenceStd = Tensor | float | Sequence[Tensor | float] | None


@dataclass
class _State:
    """What calls leave behind, changed in place, so that shallow copies share it."""

    references: dict[tuple[nn.Module, Position], WordReference] = field(default_factory=dict)
    embeddings: dict[tuple[nn.Module, nn.Module, Position], float] = field(default_factory=dict)
    warner: Warner = field(default_factory=Warner)


class WordInformation(InternalAttribution[Any]):
    r"""The bits of each input word that a hidden state keeps.

    Each word's embedding gets as much noise, of deviation :math:`\sigma_i` in all its K directions, as leaves the state
    :math:`s` as it is. What is reported is the entropy that knowing the state takes from the word,
    :math:`K \log_2(\sigma_\max / \sigma_i)`: **small** :math:`\sigma_i` is **much** information. Words that a layer
    does not need have 0 bits; from layer to layer they become more.

    It attributes to the **input words**, with respect to a state inside the model, which is the direction of Captum's
    neuron methods, not of its layer methods. There is no target: the state is explained, not the decision.

    Limits: ``lam``, ``max_scale`` and the reference deviations set the zero point, so that this is no calibrated mutual
    information; compare words, layers and positions under the same ones, and models each under its own reference. The
    noise is isotropic and leaves the set of embeddings that words have.

    Args:
        forward_func (Callable): the model, or any function of it.
        layer (torch.nn.Module or Sequence[torch.nn.Module]): whose output is the state: (N, D), or (N, T, D) with the
            channels last. Several are explained one after another.
        embedding_layer (torch.nn.Module, optional): whose output (N, L, K) gets the noise. Default: None: the word
            embedding of a model of transformers, before positions and LayerNorm; else the model's only
            ``nn.Embedding``.
        device_ids (Sequence[int], optional): as in Captum; more than one device is refused. Default: None.

    Reference:
        Guan, Wang, Zhang, Chen, He, Xie: Towards a Deep and Unified Understanding of Deep Neural Models in NLP, ICML
        2019. Its code reports a mean over words where the paper has a sum, see ``reduction``.

    Examples::

        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Embedding(20, 8), nn.Flatten(), nn.Linear(5 * 8, 3)).eval()
        >>> ids = torch.randint(20, (100, 5))
        >>> words = WordInformation(model, model[2]).estimate_reference_std(ids)
        >>> bits = words.attribute(ids[:4])
        >>> bits.shape, bool((bits >= 0).all())
        (torch.Size([4, 5]), True)
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | Sequence[nn.Module],
        embedding_layer: nn.Module | None = None,
        device_ids: Sequence[int] | None = None,
    ) -> None:
        ids = None if device_ids is None else list(device_ids)
        InternalAttribution.__init__(self, forward_func, layer, ids)
        self.embedding_layer = embedding_layer
        self._state = _State()

    @classmethod
    def get_name(cls) -> str:
        """Name for progress bars and tables."""
        return "Word Information"

    def estimate_reference_std(
        self: Self,
        data: Iterable[Any],
        position: Position = None,
        input_fn: InputFn | None = None,
        max_examples: int = 1000,
        show_progress: bool = False,
        position_mask: PositionMask | None = None,
    ) -> Self:
        """Estimate how far the numbers of the state, and the word embeddings, vary over a corpus.

        Errors of the state are counted in these deviations, and the noise's scales in that of the embeddings. One pass
        serves all layers. Interrupted, it keeps what it has seen.

        Args:
            data (Iterable): batches, as for :meth:`LayerIBA.estimate`; padding is left out.
            position (int, str or Callable, optional): the state, as in :meth:`attribute`, which looks for the estimate
                of its own one. Default: None.
            input_fn (Callable, optional): ``input_fn(batch) -> (inputs, additional_forward_args)``. Default: None.
            max_examples (int, optional): sentences to stop at. Default: 1000, enough for deviations within some
                percent.
            show_progress (bool, optional): show a progress bar. Default: False.
            position_mask (Callable, optional): ``position_mask(batch) -> (N, L)``, nonzero at real words. Default:
                None: the model's attention mask.

        Returns:
            WordInformation: self.

        Raises:
            StatisticsError: fewer than two sentences, or a state that does not vary.
            InvalidArgumentError, InvalidTypeError: batches or a position that cannot be used.
        """
        assert_position(position)
        assert_integer("max_examples", max_examples, least=2)
        forward_func, embedding, sites, modules = self._locate()
        collector = WordReferenceCollector(embedding, sites, position, max_examples)

        def keep(found: Mapping[Site, WordReference]) -> None:
            for site, reference in found.items():
                self._state.references[site.layer, position] = reference
                self._state.embeddings[embedding.layer, site.layer, position] = reference.embeddings

        calls = forward_calls(forward_func, data, input_fn, device_of(modules), False, position_mask)
        with borrowed(modules, self._state.warner), torch.inference_mode(False):
            name = f"{self.get_name()} reference" if show_progress else ""
            keep(stream(collector, calls, keep, length_of(data), name))
        return self

    def reference_std(self, layer: nn.Module | None = None, position: Position = None) -> Tensor:
        """(D,), the deviations that :meth:`estimate_reference_std` found, float64.

        Args:
            layer (torch.nn.Module, optional): which. Default: None, the first one.
            position (optional): of the state. Default: None.

        Raises:
            StatisticsError: there are none.
        """
        layer = self._layers()[0] if layer is None else layer
        found = self._state.references.get((layer, position))
        if found is None:
            known = [own for other, own in self._state.references if other is layer]
            raise StatisticsError(
                f"There is no reference deviation for position={position!r} of this layer ({type(layer).__name__}), "
                f"found those of {known}. Call estimate_reference_std(data, position={position!r}), or pass "
                "reference_std."
            )
        return found.states

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...] | Mapping[str, Any],
        additional_forward_args: object | None = None,
        reference_std: ReferenceStd = None,
        lam: float = 0.1,
        n_steps: int = 200,
        n_samples: int = 16,
        init_scale: float = 0.05,
        max_scale: float = 10.0,
        reduction: Reduction = "mean",
        position: Position = None,
        return_sigma: bool = False,
        seed: int = 0,
        show_progress: bool = False,
        internal_batch_size: int | None = None,
        position_mask: Tensor | None = None,
    ) -> Any:
        r"""Find the largest noise on each word that leaves the state as it is, and return the information in bits.

        Args:
            inputs (Tensor, tuple or Mapping): token ids (N, L), with further inputs in a tuple; or all the model's
                arguments by name, as a tokenizer gives them.
            additional_forward_args (Any, optional): as in Captum; not with a mapping. Default: None.
            reference_std (Tensor, float or Sequence, optional): deviation of the state's numbers, (D,) or one; for
                several layers one for each. Default: None: that of :meth:`estimate_reference_std`.
            lam (float, optional): weight of the noise's entropy; more lam, fewer bits. Default: 0.1 (the paper's code).
            n_steps (int, optional): steps of Adam. Default: 200, within 1 % of a linear model's exact answer.
            n_samples (int, optional): noisy copies at each step. Default: 16.
            init_scale (float, optional): deviation to start from, in deviations of the embeddings: those that
                :meth:`estimate_reference_std` found with this layer and position, else each sentence's own. Default:
                0.05.
            max_scale (float, optional): largest deviation, at which a word has 0 bits, likewise. Default: 10.0 (the
                paper's code).
            reduction (str, optional): ``"mean"`` over a sentence's words, as in the paper's code, by which a word of a
                longer sentence has more bits; or ``"sum"``, as in the paper. Default: ``"mean"``.
            position (int, str or Callable, optional): which state of a layer (N, T, D): a token's, counted among the
                real ones, negative from the end (0 for [CLS], -1 for a language model's last); ``"mean"`` of the real
                ones; or a function ``(states (R, T, D), real (R, T)) -> (R, D)``. Default: None: all at once, among
                which each word's own state keeps that word.
            return_sigma (bool, optional): return ``(bits, sigma)``. Default: False.
            seed (int, optional): of the noise, which comes from a generator of its own. Default: 0.
            show_progress (bool, optional): show a progress bar. Default: False.
            internal_batch_size (int, optional): most rows that go through the model at once, at least one. Default:
                None: as many as caches and memory bear.
            position_mask (Tensor, optional): (N, L), nonzero at real words; the others get neither noise nor bits.
                Default: None: the model's ``attention_mask``, by its name in the signature.

        Returns:
            *Tensor* of **attributions**: (N, L), bits, never negative, 0 on padding; for several layers a list of
            such. With ``return_sigma`` a tuple of it and the deviations (N, L), in the embedding's own unit, or a list
            of such.

        Raises:
            StatisticsError: there is no reference deviation, or the embeddings do not vary.
            InvalidArgumentError, InvalidTypeError, MismatchedArgumentsError: arguments that cannot be used.
            LayerNotExecutedError, LayerReusedError: layer or embedding run never, or more than once.
            NoTensorError, IntegerFeaturesError: one of them has no floating-point output.
            GradientModeError: under inference_mode, or where the state does not depend on the words by gradient.
            NonFiniteError: NaN or infinity.
            DeviceError: the model is replicated over several devices.
        """
        settings = WordNoiseSettings(lam, n_steps, n_samples, init_scale, max_scale, reduction, seed)
        found, _ = self._solve(
            inputs,
            additional_forward_args,
            lambda sites: self._states(sites, position, reference_std),
            settings,
            internal_batch_size,
            position_mask,
            show_progress,
        )
        bits, sigma = [noise.information() for noise in found], [noise.sigma for noise in found]
        one = isinstance(self.layer, nn.Module) and not isinstance(self.layer, nn.ModuleList)
        result: tuple[Any, Any] = (bits[0], sigma[0]) if one else (bits, sigma)
        return result if return_sigma else result[0]

    def compare_layers(
        self,
        inputs: Tensor | tuple[Tensor, ...] | Mapping[str, Any],
        additional_forward_args: object | None = None,
        tokenizer: object | None = None,
        reference_std: ReferenceStd = None,
        position: Position = None,
        internal_batch_size: int | None = None,
        position_mask: Tensor | None = None,
        show_progress: bool = False,
        **kwargs: Any,
    ) -> WordComparison:
        """The words' bits at each of the layers: which words are dropped where.

        Args:
            inputs (Tensor, tuple or Mapping): as in :meth:`attribute`.
            additional_forward_args (Any, optional): likewise.
            tokenizer (optional): anything with ``convert_ids_to_tokens``, which names the words. Default: None.
            reference_std (Tensor, float or Sequence, optional): likewise.
            position (int, str or Callable, optional): likewise.
            internal_batch_size (int, optional): likewise.
            position_mask (Tensor, optional): likewise.
            show_progress (bool, optional): likewise.
            **kwargs (Any): the numbers of :meth:`attribute`: ``lam``, ``n_steps``, ``seed`` and so on.

        Returns:
            WordComparison: bits (R, N, L) of R layers, with table and plot.

        Raises:
            CaptumIBAError: all that :meth:`attribute` raises.
        """
        found, batch = self._solve(
            inputs,
            additional_forward_args,
            lambda sites: self._states(sites, position, reference_std),
            _settings(kwargs),
            internal_batch_size,
            position_mask,
            show_progress,
        )
        modules = find_modules(unwrap_parallel(self.forward_func, self.device_ids))
        names = [name_of(layer, modules) or f"layer {number}" for number, layer in enumerate(self._layers())]
        return WordComparison.of("layer", names, found, batch.inputs, tokenizer)

    def compare_positions(
        self,
        inputs: Tensor | tuple[Tensor, ...] | Mapping[str, Any],
        positions: Sequence[int],
        additional_forward_args: object | None = None,
        tokenizer: object | None = None,
        reference_std: ReferenceStd = None,
        internal_batch_size: int | None = None,
        position_mask: Tensor | None = None,
        show_progress: bool = False,
        **kwargs: Any,
    ) -> WordComparison:
        """The words' bits for one state after another of a single layer: what is remembered for how long.

        All states are counted in the same deviations, those of all positions together (``position=None``), so that
        their bits have one zero point.

        Args:
            inputs (Tensor, tuple or Mapping): as in :meth:`attribute`.
            positions (Sequence[int]): numbers of tokens, which all examples have.
            additional_forward_args (Any, optional): as in :meth:`attribute`.
            tokenizer (optional): anything with ``convert_ids_to_tokens``, which names the words. Default: None.
            reference_std (Tensor or float, optional): as in :meth:`attribute`.
            internal_batch_size (int, optional): likewise.
            position_mask (Tensor, optional): likewise.
            show_progress (bool, optional): likewise.
            **kwargs (Any): the numbers of :meth:`attribute`: ``lam``, ``n_steps``, ``seed`` and so on.

        Returns:
            WordComparison: bits (R, N, L) of R positions.

        Raises:
            CaptumIBAError: all that :meth:`attribute` raises.
        """
        if len(self._layers()) != 1:
            raise InvalidArgumentError(f"There are {len(self._layers())} layers; wanted one to compare positions of.")
        if not positions or not all(type(position) is int for position in positions):
            raise InvalidArgumentError(f"positions={positions!r}; wanted numbers of tokens, at least one.")

        def states(sites: list[Site]) -> list[State]:
            (state,) = self._states(sites, None, reference_std)
            return [State(state.site, each, state.reference_std, state.embedding_std) for each in positions]

        found, batch = self._solve(
            inputs,
            additional_forward_args,
            states,
            _settings(kwargs),
            internal_batch_size,
            position_mask,
            show_progress,
        )
        return WordComparison.of("position", [str(position) for position in positions], found, batch.inputs, tokenizer)

    def _layers(self) -> list[nn.Module]:
        if isinstance(self.layer, nn.Module) and not isinstance(self.layer, nn.ModuleList):
            return [self.layer]
        if not isinstance(self.layer, (Sequence, nn.ModuleList)) or not len(self.layer):
            raise InvalidTypeError(
                f"layer is {self.layer!r}; wanted a torch.nn.Module whose output is the state, or a list of at least "
                "one."
            )
        return list(self.layer)

    def _locate(self) -> tuple[Callable[..., Any], Site, list[Site], list[nn.Module]]:
        """The forward function, the sites of embedding and layers, and the modules that run."""
        forward_func = unwrap_parallel(self.forward_func, self.device_ids)
        located = [locate(forward_func, layer, False) for layer in self._layers()]
        sites, modules = [site for site, _ in located], located[0][1]
        if len(set(sites)) < len(sites):
            raise InvalidArgumentError("layer names one module twice; wanted each once.")
        embedding, _ = locate(forward_func, self.embedding_layer or find_embedding(modules), False)
        for site in (embedding, *sites):
            modules = reachable(modules, site.layer)
        return forward_func, embedding, sites, modules

    def _states(self, sites: list[Site], position: Position, reference_std: ReferenceStd) -> list[State]:
        """What to explain: the same position at each layer."""
        assert_position(position)
        given: list[Any] = [reference_std] * len(sites)
        if isinstance(reference_std, (list, tuple)):
            given = list(reference_std)
            if len(given) != len(sites):
                raise MismatchedArgumentsError(
                    f"reference_std has {len(given)} entries for {len(sites)} layers; wanted one for each."
                )
        _, embedding, _, _ = self._locate()
        stds = [
            self.reference_std(site.layer, position) if own is None else own
            for site, own in zip(sites, given, strict=True)
        ]
        # of the corpus that the layer's own state was estimated on, whatever was estimated since
        units = [self._state.embeddings.get((embedding.layer, site.layer, position)) for site in sites]
        return [State(site, position, std, unit) for site, std, unit in zip(sites, stds, units, strict=True)]

    def _solve(
        self,
        inputs: Any,
        additional_forward_args: object | None,
        make_states: Callable[[list[Site]], list[State]],
        settings: WordNoiseSettings,
        internal_batch_size: int | None,
        position_mask: Tensor | None,
        show_progress: bool,
    ) -> tuple[list[WordNoise], PaddedBatch]:
        """The words' noise for one state after another."""
        assert_seed(settings.seed)
        if internal_batch_size is not None:
            assert_integer("internal_batch_size", internal_batch_size)
        forward_func, embedding, sites, modules = self._locate()
        states, warner = make_states(sites), self._state.warner
        batch = _batch(forward_func, inputs, additional_forward_args, position_mask)
        total = len(states) * len(batch.inputs) * settings.n_steps
        with (
            borrowed(modules, warner),
            tqdm(total=total, desc=self.get_name(), unit="step", disable=not show_progress) as bar,
        ):
            is_users = position_mask is not None
            solver = WordSolver(forward_func, embedding, batch, is_users, settings, internal_batch_size, warner)
            return [solver.solve(state, bar.update) for state in states], batch


def _settings(kwargs: dict[str, Any]) -> WordNoiseSettings:
    unknown = sorted(set(kwargs) - set(WordNoiseSettings.__dataclass_fields__))
    if unknown:
        raise InvalidArgumentError(
            f"{unknown} are no arguments; wanted some of {sorted(WordNoiseSettings.__dataclass_fields__)}."
        )
    return WordNoiseSettings(**kwargs)


def _batch(
    forward_func: Callable[..., Any], inputs: Any, additional: object | None, position_mask: Tensor | None
) -> PaddedBatch:
    more = _format_additional_forward_args(additional)
    if isinstance(inputs, tuple) and inputs:
        inputs, more = inputs[0], (*inputs[1:], *(more or ())) or None
    return as_batch(
        forward_func,
        inputs,
        more,
        lambda x, others: padding_of(forward_func, (x,), others) if position_mask is None else position_mask,
        None,
    )
