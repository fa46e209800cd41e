"""The per-sample bottleneck as a Captum layer method."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from captum_iba._captum import LayerAttribution, TargetType, log_usage
from captum_iba._warn import Warner
from captum_iba.attr._calibration import (
    Collector,
    InputFn,
    Per,
    assert_calibration_arguments,
    forward_calls,
    length_of,
    stream,
    warn_of_few,
)
from captum_iba.attr._forward import Forward
from captum_iba.attr._model import device_of, evaluation_mode, exclusive, locate, reachable, unwrap_parallel
from captum_iba.attr._objective import ObjectiveType
from captum_iba.attr._problem import Arguments, Problem
from captum_iba.attr.diagnostics import IBADiagnostics
from captum_iba.bottleneck.statistics import FeatureStatistics
from captum_iba.errors import InvalidTypeError, StatisticsError


@dataclass
class _State:
    """What calls leave behind. It is only ever changed in place, so that shallow copies of a method share it.

    Statistics are kept per layer and side, because consumers such as TCAV reassign ``layer`` on the live object.
    """

    statistics: dict[tuple[nn.Module | None, bool], FeatureStatistics] = field(default_factory=dict)
    at_input: bool = False
    warner: Warner = field(default_factory=Warner)


class LayerIBA(LayerAttribution):
    r"""Information Bottleneck Attribution: the bits each position of a layer gives the decision.

    For each example a mask :math:`\lambda` is learned that replaces as much of the layer's features as possible by
    noise, :math:`Z = \lambda R + (1 - \lambda)\epsilon`, while the target keeps its probability. What passes,
    :math:`KL[P(Z|R) || Q(Z)]`, is reported in bits. Its mean over a data set bounds the mutual information of the
    features and what passes from above, for any reference statistics that do not come from the explained example.

    Calls from several threads on one model wait for each other.

    A position of a deep layer sees a large patch of the input. Zero bits at a position mean that its features are not
    needed, not that the pixels below it are.

    Args:
        forward_func (Callable): the model, or any function of it.
        layer (torch.nn.Module): the layer whose output (or input) is put through the bottleneck.
        device_ids (Sequence[int], optional): as in Captum; more than one device is refused. Default: None.
        statistics (FeatureStatistics, optional): of the layer's output, from an earlier :meth:`estimate`.
            Default: None.

    Raises:
        InvalidTypeError: statistics of another type.

    Reference:
        Schulz, Sixt, Tombari, Landgraf: Restricting the Flow: Information Bottlenecks for Attribution, ICLR 2020.

    Examples::

        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 3)).eval()
        >>> iba = LayerIBA(model, model[0])
        >>> iba.estimate(torch.randn(1000, 1, 8, 8)).statistics.n_samples
        1000
        >>> bits = iba.attribute(torch.randn(2, 1, 8, 8), target=1)
        >>> bits.shape, bool((bits >= 0).all())
        (torch.Size([2, 1, 8, 8]), True)
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        device_ids: Sequence[int] | None = None,
        statistics: FeatureStatistics | None = None,
    ) -> None:
        if isinstance(device_ids, FeatureStatistics):
            raise InvalidTypeError("device_ids is a FeatureStatistics; pass it by name: statistics=...")
        LayerAttribution.__init__(self, forward_func, layer, list(device_ids) if device_ids is not None else None)
        self._state = _State()
        if statistics is not None:
            self._set_statistics(statistics, attribute_to_layer_input=False)

    @classmethod
    def get_name(cls) -> str:
        """Name for progress bars and tables."""
        return "Layer IBA"

    @property
    def statistics(self) -> FeatureStatistics | None:
        """Statistics of the current layer, on the side estimated or loaded last, else on the other; None before."""
        by_side = [self._state.statistics.get((self.layer, side)) for side in (False, True)]
        wanted = by_side[self._state.at_input]
        return wanted if wanted is not None else by_side[not self._state.at_input]

    def _set_statistics(self, statistics: FeatureStatistics, attribute_to_layer_input: bool) -> None:
        if not isinstance(statistics, FeatureStatistics):
            raise InvalidTypeError(
                f"statistics must be a FeatureStatistics, found {type(statistics).__name__}. "
                "Use load_statistics(path) for a file."
            )
        self._state.at_input = attribute_to_layer_input
        self._state.statistics[self.layer, attribute_to_layer_input] = statistics

    def estimate(
        self,
        data: Iterable[Any],
        input_fn: InputFn | None = None,
        max_examples: int = 10_000,
        per: Per = "auto",
        attribute_to_layer_input: bool = False,
        show_progress: bool = False,
        channel_dim: int | None = None,
    ) -> LayerIBA:
        r"""Estimate the mean and deviation of the layer's features, which the noise will have.

        The model runs only as far as the layer, in evaluation mode, without gradient.
        Interrupted, it keeps the statistics of what it has seen.

        Args:
            data (Iterable): batches as a DataLoader yields them: tensors; tuples whose first entry is the input (a
                nested tuple is several inputs), the rest being ignored; or mappings, passed as keyword arguments. A
                single tensor or mapping is one batch. Data like those to be explained, but not the same examples.
            input_fn (Callable, optional): ``input_fn(batch) -> (inputs, additional_forward_args)`` for anything else.
                Default: None.
            max_examples (int, optional): examples to stop at. Default: 10_000, the published figure.
            per (str, optional): ``"feature"``: a mean and deviation for each element of the features, as in the paper,
                which needs inputs of one size; ``"channel"``: pooled over positions; ``"auto"``: per feature on
                spatial maps of one size and on vectors, else per channel. Default: ``"auto"``.
            attribute_to_layer_input (bool, optional): the layer's input instead of its output. Default: False.
            show_progress (bool, optional): show a progress bar. Default: False.
            channel_dim (int, optional): axis of the channels, see :meth:`attribute`. Default: None, found out.

        Returns:
            LayerIBA: self.

        Raises:
            StatisticsError: fewer than two examples, or NaN among the features.
            InvalidArgumentError: an argument out of range, or an ambiguous channel axis.
            InvalidTypeError: batches that cannot be understood.

        Examples::

            >>> import torch
            >>> model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
            >>> loader = [(torch.randn(500, 3), torch.zeros(500)) for _ in range(2)]
            >>> LayerIBA(model, model[0]).estimate(loader).statistics.std.shape
            torch.Size([5])
        """
        assert_calibration_arguments(max_examples, per)
        forward_func = unwrap_parallel(self.forward_func, self.device_ids)
        site, modules = locate(forward_func, self.layer, attribute_to_layer_input)
        to_switch = reachable(modules, site.layer)
        collector = Collector(site, per, channel_dim, max_examples, modules)
        # statistics made in inference mode could not take part in gradients later
        with exclusive(to_switch), evaluation_mode(to_switch, self._state.warner), torch.inference_mode(False):
            statistics = stream(
                collector,
                forward_calls(forward_func, data, input_fn, device_of(to_switch)),
                lambda found: self._set_statistics(found, attribute_to_layer_input),
                length_of(data),
                f"{self.get_name()} statistics" if show_progress else "",
            )
        warn_of_few(statistics, site, self._state.warner)
        self._set_statistics(statistics, attribute_to_layer_input)
        return self

    def save_statistics(self, path: str | os.PathLike[str]) -> None:
        """Write the current statistics as safetensors.

        Raises:
            StatisticsError: there are none yet.
        """
        if self.statistics is None:
            raise StatisticsError("There are no statistics to save. Call estimate(data) first.")
        self.statistics.save(path)

    def load_statistics(self, path: str | os.PathLike[str], attribute_to_layer_input: bool = False) -> LayerIBA:
        """Read statistics of this layer written by :meth:`save_statistics`.

        Args:
            path (str or PathLike): the file.
            attribute_to_layer_input (bool, optional): they belong to the layer's input. Default: False.

        Returns:
            LayerIBA: self.

        Raises:
            MissingFileError: no such file.
            StatisticsFileError: not a statistics file, or a damaged one.
        """
        self._set_statistics(FeatureStatistics.load(path), attribute_to_layer_input)
        return self

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object | None = None,
        attribute_to_layer_input: bool = False,
        beta: float = 10.0,
        n_steps: int = 10,
        n_samples: int = 10,
        learning_rate: float = 1.0,
        sigma: float | None = None,
        initial_alpha: float = 5.0,
        channel_dim: int | None = None,
        attr_dim_summation: bool = True,
        internal_batch_size: int | None = None,
        objective: ObjectiveType = None,
        seed: int | Sequence[int] = 0,
        return_diagnostics: bool = False,
        show_progress: bool = False,
        class_dim: int = 1,
    ) -> Tensor | tuple[Tensor, IBADiagnostics]:
        r"""Learn each example's bottleneck and return the information that passes it, in bits.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): as for Captum's layer methods; the first axis is the batch.
            target (int, tuple, Tensor or list, optional): the class to explain, in any of Captum's forms. With None
                the model must return one value per example, which is taken as the log-likelihood. Default: None.
            additional_forward_args (Any, optional): as in Captum. Default: None.
            attribute_to_layer_input (bool, optional): put the bottleneck at the layer's input. Default: False.
            beta (float, optional): weight of the information: factor of the **mean** over the layer's k elements, in
                nats; the paper writes it as beta/k times the sum. More beta, fewer bits. Default: 10.0 (paper,
                Table 3).
            n_steps (int, optional): steps of Adam. Default: 10 (paper).
            n_samples (int, optional): noisy copies of an example at each step. Default: 10 (paper).
            learning_rate (float, optional): of Adam. Default: 1.0 (paper).
            sigma (float, optional): standard deviation, in positions, of the mask's Gaussian smoothing. Default: None:
                1.0 on maps with a spatial grid (paper), off on tokens and vectors.
            initial_alpha (float, optional): start of the mask's parameters. Default: 5.0 (paper), 99.3 % signal.
            channel_dim (int, optional): axis of the channels. Default: None: the statistics' axis, else 1 after
                convolutions, the last one after linear, token and recurrent layers.
            attr_dim_summation (bool, optional): sum the bits over the channels, keeping the axis. False returns the
                layer's full shape. Default: True, as in LayerGradCam.
            internal_batch_size (int, optional): most rows that go through the model at once; at least the number of
                examples. Default: None: all ``n_samples * N`` at once; on the CPU about 40, which keeps large batches
                in its caches (``benchmarks/per_sample.py``).
            objective (str or Callable, optional): what the output is. None: logits, with log-softmax over
                ``class_dim`` and the target's cross-entropy; ``"probability"`` or ``"log_probability"``: the model ends
                in softmax or log-softmax; a callable ``(output, target) -> loss`` with one value a row. Default: None.
            seed (int or Sequence[int], optional): of the noise, which comes from a generator of its own. With k seeds
                the batch consists of k equal blocks, each with its own noise (see
                :func:`captum_iba.metrics.seed_uncertainty`). Default: 0.
            return_diagnostics (bool, optional): return ``(bits, IBADiagnostics)``. Default: False.
            show_progress (bool, optional): show a progress bar over the steps. Default: False.
            class_dim (int, optional): axis of the classes in the output. Default: 1, as in Captum.

        Returns:
            *Tensor* of **attributions**: bits, never negative, detached: (N, 1, H, W) for features (N, C, H, W),
            (N, T, 1) for tokens, (N, 1) for vectors; with ``return_diagnostics`` a tuple of it and
            :class:`IBADiagnostics`.

        Raises:
            InvalidArgumentError: an argument out of range, an empty batch, or an ambiguous channel axis.
            InvalidTypeError: the layer is not one module, or the arguments do not fit the model's signature.
            LayerNotExecutedError: the forward pass does not run the layer.
            LayerReusedError: it runs the layer more than once.
            NoTensorError, IntegerFeaturesError: the layer has no floating-point features.
            StatisticsError: the statistics belong to features of another shape, or nothing varies.
            TargetError, TargetIndexError: the target does not select one value per example.
            NonFiniteError: NaN or infinity in the input, the features or the objective.
            GradientModeError: under inference_mode, or where the output does not depend on the layer.
            DeviceError: the model is replicated over several devices.

        Examples::

            >>> import torch
            >>> model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
            >>> iba = LayerIBA(model, model[0]).estimate(torch.randn(1000, 3))
            >>> bits, record = iba.attribute(torch.randn(4, 3), target=[0, 1, 1, 0], return_diagnostics=True)
            >>> bits.shape, record.information.shape, torch.allclose(bits.flatten(), record.total_bits)
            (torch.Size([4, 1]), torch.Size([10, 4]), True)
        """
        arguments = Arguments(
            beta=beta,
            n_steps=n_steps,
            n_samples=n_samples,
            learning_rate=learning_rate,
            sigma=sigma,
            initial_alpha=initial_alpha,
            channel_dim=channel_dim,
            internal_batch_size=internal_batch_size,
            objective=objective,
            class_dim=class_dim,
            seed=seed,
        )
        forward_func = unwrap_parallel(self.forward_func, self.device_ids)
        site, modules = locate(forward_func, self.layer, attribute_to_layer_input)
        problem = Problem(
            arguments=arguments,
            forward=(forward := Forward(forward_func, inputs, additional_forward_args)),
            site=site,
            modules=modules,
            statistics=self._state.statistics.get((self.layer, attribute_to_layer_input)),
            target=target,
            warner=self._state.warner,
        )
        to_switch = reachable(modules, site.layer)
        with (
            exclusive(to_switch),
            evaluation_mode(to_switch, self._state.warner),
            torch.autocast(forward.device_type, enabled=False),
            tqdm(total=n_steps, desc=f"{self.get_name()} attribution", disable=not show_progress) as bar,
        ):
            problem.prepare()
            solved = problem.solve(bar.update)
            probability = problem.target_probability(problem.loss_through(solved.mask)) if return_diagnostics else None
        bits = solved.bits.detach()
        if attr_dim_summation:
            bits = bits.sum(dim=problem.channel_dim, keepdim=True)
        bits = bits.contiguous()
        if not return_diagnostics:
            return bits
        record = IBADiagnostics(
            objective=solved.objective,
            information=solved.information,
            target_probability=probability,
            mask=solved.mask.lam,
            total_bits=bits.flatten(1).sum(dim=1),
            channel_dim=problem.channel_dim,
            inactive_share=problem.inactive_share,
            forward_mode=problem.forward_mode,
        )
        return bits, record
