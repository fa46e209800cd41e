"""The per-sample bottleneck as a Captum layer method."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from captum_iba._captum import TargetType, log_usage
from captum_iba.attr._forward import Forward
from captum_iba.attr._layer_method import LayerMethod
from captum_iba.attr._model import evaluation_mode, exclusive, frozen_parameters, reachable, unwrap_parallel
from captum_iba.attr._objective import ObjectiveType
from captum_iba.attr._problem import Arguments, Granularity, Problem
from captum_iba.attr.diagnostics import IBADiagnostics


class LayerIBA(LayerMethod):
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
        shared_layers (Sequence[torch.nn.Module], optional): further layers of the same positions that run after
            ``layer`` and get noise of their own through the same mask, so that no single layer has to be chosen. Goes
            with ``mask_granularity="token"``, and with :meth:`estimate`, which then serves them all. The bits are
            those that pass ``layer``, which bound the whole range. Default: None.

    Raises:
        InvalidTypeError: statistics or shared_layers of another type.

    Reference:
        Schulz, Sixt, Tombari, Landgraf: Restricting the Flow: Information Bottlenecks for Attribution, ICLR 2020. For
        ``shared_layers`` Hong et al.: CoIBA, 2025.

    Examples::

        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 3)).eval()
        >>> iba = LayerIBA(model, model[0])
        >>> iba.estimate(torch.randn(1000, 1, 8, 8)).statistics.n_samples
        1000
        >>> bits = iba.attribute(torch.randn(2, 1, 8, 8), target=1)
        >>> bits.shape, bool((bits >= 0).all())
        (torch.Size([2, 1, 8, 8]), True)
    """

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object | None = None,
        attribute_to_layer_input: bool = False,
        beta: float | None = None,
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
        position_mask: Tensor | None = None,
        mask_granularity: Granularity = "element",
        protected_positions: Tensor | Sequence[int] | None = None,
    ) -> Tensor | tuple[Tensor, IBADiagnostics]:
        r"""Learn each example's bottleneck and return the information that passes it, in bits.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): as for Captum's layer methods; the first axis is the batch.
            target (int, tuple, Tensor or list, optional): the class to explain, in any of Captum's forms. With None
                the model must return one value per example, which is taken as the log-likelihood. Default: None.
            additional_forward_args (Any, optional): as in Captum. Default: None.
            attribute_to_layer_input (bool, optional): put the bottleneck at the layer's input. Default: False.
            beta (float, optional): weight of the information: factor of the **mean** over the layer's k elements, in
                nats; the paper writes it as beta/k times the sum. More beta, fewer bits. Default: None: 10.0 (paper,
                Table 3); 1.0 with one lambda a token, the largest of 0.1, 1, 10 and 100 at which most of the decision
                of a text classifier stands (``python -m benchmarks.text beta``).
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
                ``class_dim`` and the target's cross-entropy (paper); ``"log_odds"``: logits, with the target's
                log-odds, whose slope does not vanish where the network is sure, so that all evidence for the target
                counts and not only what its probability stands on, with a larger ``beta``; ``"probability"`` or
                ``"log_probability"``: the model ends in softmax or log-softmax; a callable ``(output, target) -> loss``
                with one value a row. Default: None.
            seed (int or Sequence[int], optional): of the noise, which comes from a generator of its own. With k seeds
                the batch consists of k equal blocks, each with its own noise (see
                :func:`captum_iba.metrics.seed_uncertainty`). Default: 0.
            return_diagnostics (bool, optional): return ``(bits, IBADiagnostics)``. Default: False.
            show_progress (bool, optional): show a progress bar over the steps. Default: False.
            class_dim (int, optional): axis of the classes in the output. Default: 1, as in Captum.
            position_mask (Tensor, optional): (N, T) for tokens, or as long as the features' positions; nonzero where
                real. The others get neither noise nor bits, and do not count in the mean: a padded batch equals its
                sentences alone. Default: None: the ``attention_mask`` among the model's arguments, by its name in the
                signature, where it fits the layer's positions.
            mask_granularity (str, optional): ``"element"``, a lambda for each element of the features, as in the paper;
                ``"token"``, one for each position, over all its channels. Default: ``"element"``.
            protected_positions (Tensor or Sequence[int], optional): positions whose signal passes whole, without bits,
                such as special tokens: (N, T), nonzero there, or numbers counted among an example's real tokens,
                ``[0, -1]`` for the first and the last. The total is then no bound on what they pass. Default: None.

        Returns:
            *Tensor* of **attributions**: bits, never negative, detached: (N, 1, H, W) for features (N, C, H, W),
            (N, T, 1) for tokens, (N, 1) for vectors; with ``return_diagnostics`` a tuple of it and
            :class:`IBADiagnostics`.

        Raises:
            InvalidArgumentError: an argument out of range, a mask that does not fit, an empty batch, an ambiguous
                channel axis, or shared_layers that do not run behind the layer.
            InvalidTypeError: the layer is not one module, a mask is no tensor, or the arguments do not fit the model's
                signature.
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
            >>> from torch import nn
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
            position_mask=position_mask,
            protected_positions=protected_positions,
            mask_granularity=mask_granularity,
        )
        forward_func = unwrap_parallel(self.forward_func, self.device_ids)
        (site, *shared), modules = self._locate(attribute_to_layer_input)
        problem = Problem(
            arguments=arguments,
            forward=(forward := Forward(forward_func, inputs, additional_forward_args)),
            site=site,
            modules=modules,
            statistics=self._state.statistics.get((self.layer, attribute_to_layer_input)),
            target=target,
            warner=self._state.warner,
            shared={other: self._statistics_of(other) for other in shared},
        )
        to_switch = reachable(modules, site.layer)
        with (
            exclusive(to_switch),
            evaluation_mode(to_switch, self._state.warner),
            frozen_parameters(to_switch),
            torch.autocast(forward.device_type, enabled=False),
            tqdm(total=n_steps, desc=f"{self.get_name()} attribution", disable=not show_progress) as bar,
        ):
            bits, record = problem.explain(bar.update, attr_dim_summation, return_diagnostics)
        return bits if record is None else (bits, record)
