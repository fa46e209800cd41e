"""The readout bottleneck, trained once, as a Captum layer method: one pass an explanation."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from captum_iba._captum import TargetType, log_usage
from captum_iba._numbers import as_path
from captum_iba.attr._calibration import InputFn, on_device
from captum_iba.attr._forward import Forward
from captum_iba.attr._model import evaluation_mode, exclusive, reachable, unwrap_parallel
from captum_iba.attr._objective import ObjectiveType
from captum_iba.attr._problem import Arguments
from captum_iba.attr._readout import Readout
from captum_iba.attr._readout_call import Reader
from captum_iba.attr._readout_file import read_readout
from captum_iba.attr._readout_fit import FitArguments, evaluate_readout, fit_readout
from captum_iba.attr._readout_layers import names_of
from captum_iba.attr._readout_method import ReadoutMethod
from captum_iba.attr._training_data import Targets
from captum_iba.attr.diagnostics import IBADiagnostics
from captum_iba.attr.training_history import Measures
from captum_iba.errors import StatisticsError


class LayerReadoutIBA(ReadoutMethod):
    r"""The readout bottleneck: a small network reads features of several layers and predicts the mask.

    Where :class:`LayerIBA` searches a mask for each example, this is trained once for all, to keep the decisions of a
    data set with little information; an explanation then costs one forward pass. As the mask comes from the features
    alone, it does not depend on the target: the bits are those for the network's decision. Totals do not compare with
    LayerIBA's. In the paper the per-sample bottleneck scores better, at the cost of a hundred model executions.

    :meth:`estimate`, then :meth:`fit`, then :meth:`attribute`. The analysed network is never changed. Where the
    bottleneck has no positions (vectors), maps are averaged before they are read; vectors that are read (logits) say
    the same at each position.

    Args:
        forward_func (Callable): the model, or any function of it.
        layer (torch.nn.Module): the layer whose output (or input) is put through the bottleneck.
        device_ids (Sequence[int], optional): as in Captum; more than one device is refused. Default: None.
        readout_layers ("auto" or Sequence[nn.Module or str], optional): what the network reads, as modules or dotted
            names; the model itself, or ``""``, stands for its output. ``"auto"``: the first layer with weights of each
            resolution from ``layer`` on, the last one, others at even distances if these are fewer than four, and the
            logits if the model returns a module's output as it is; for ResNet-50 and VGG-16 these are the paper's.
            Layers without variation are left out. Default: ``"auto"``.
        statistics (Mapping[str, FeatureStatistics], optional): by layer, from another object's :attr:`statistics`.
            Default: None.
        hidden_channels (Sequence[int] or "published", optional): widths between the network's three convolutions;
            ``"published"`` is half the channels that are read and twice the bottleneck's, which costs several times as
            much as the analysed network. Default: (128, 128), which costs about a third of it (``python -m
            benchmarks.readout cost``) and is as good on the embedded data (``python -m benchmarks.readout widths``).
        sigma (float, optional): standard deviation of the mask's smoothing, as in :meth:`LayerIBA.attribute`. Default:
            None: 1.0 on grids (paper), off on tokens and vectors.
        initial_alpha (float, optional): of the mask before training. Default: 5.0 (paper), 99.3 % signal.
        relu (bool, optional): set negative noisy features to zero, for a layer behind a ReLU, as the paper's code does
            for ResNet. The information stays an upper bound. Default: False, as in the paper.
        align_corners (bool, optional): of the resize of features to the bottleneck's positions. Default: False, which
            keeps features above their pixels; the published package has True.

    Raises:
        InvalidTypeError, InvalidArgumentError: an argument that cannot be used.

    Reference:
        Schulz, Sixt, Tombari, Landgraf: Restricting the Flow: Information Bottlenecks for Attribution, ICLR 2020,
        section 3.2 and Table 4.

    Examples::

        >>> import torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 3)).eval()
        >>> images = torch.randn(1000, 1, 8, 8)
        >>> readout = LayerReadoutIBA(model, model[0], hidden_channels=(8, 8)).estimate(images)
        >>> data = [(batch, model(batch).argmax(dim=1)) for batch in images.split(100)]
        >>> history = readout.fit(data, epochs=2, learning_rate=1e-2, show_progress=False).history
        >>> history.training[-1].objective < history.training[0].objective
        True
        >>> readout.attribute(images[:2]).shape
        torch.Size([2, 1, 8, 8])
    """

    def fit(
        self,
        train_data: Iterable[Any],
        val_data: Iterable[Any] | None = None,
        epochs: int = 10,
        learning_rate: float = 1e-5,
        beta: float = 10.0,
        max_steps: int | None = None,
        targets: Targets = "labels",
        checkpoint: str | os.PathLike[str] | None = None,
        show_progress: bool = True,
        input_fn: InputFn | None = None,
        attribute_to_layer_input: bool = False,
        objective: ObjectiveType = None,
        class_dim: int = 1,
        seed: int = 0,
        checkpoint_every: int = 100,
        mixed_precision: bool | None = None,
        warmup_steps: int = 0,
    ) -> LayerReadoutIBA:
        r"""Train the network: cross-entropy through the bottleneck plus beta times the mean information.

        Each call starts afresh, with network and mask as the constructor says, or goes on from the checkpoint. The same
        seed and data give the same weights on the same kind of device, also when the training is interrupted and gone
        on with: data loaders may shuffle and augment with the global random generators, which get a seed of their own
        for each epoch and are put back (workers that persist over epochs keep states of their own, which are lost). One
        draw of noise an example and step.

        Under ``torchrun`` each process takes its part of every batch, or the batches of its own where the loader has a
        DistributedSampler; gradients are averaged (DistributedDataParallel), and the first process writes checkpoints.

        Args:
            train_data (Iterable): batches, as often as there are epochs: tuples (inputs, labels), mappings of keyword
                arguments with ``"labels"`` (or ``"label"``) among them, or anything with ``input_fn`` and a callable
                ``targets``. Data to train on must not be explained later if bits are to be an honest bound.
            val_data (Iterable, optional): held-out batches, measured before the first step, after each epoch and where
                the training ends. Default: None.
            epochs (int, optional): passes over the data. Default: 10 (paper, Table 4).
            learning_rate (float, optional): of Adam. Default: 1e-5 (paper), which is for many thousand steps; a short
                training needs a larger one.
            beta (float, optional): weight of the mean information in nats, as in :meth:`LayerIBA.attribute`. Default:
                10.0 (paper).
            max_steps (int, optional): steps to stop at. Default: None.
            targets ("labels", "predictions" or Callable, optional): what the decision is: labels of the data, what the
                model itself predicts, or ``targets(batch) -> (N,)``. Default: ``"labels"``, as in the paper.
            checkpoint (str or PathLike, optional): a file to write the training to, and to go on from if it is there.
                Epochs and max_steps may then be others; statistics are the checkpoint's, and the data, which are not
                compared, should be the same. Default: None.
            show_progress (bool, optional): show a progress bar over the steps. Default: True.
            input_fn (Callable, optional): as for :meth:`LayerIBA.estimate`. Default: None.
            attribute_to_layer_input (bool, optional): a bottleneck at the layer's input. Default: False.
            objective (str or Callable, optional): as in :meth:`LayerIBA.attribute`. Default: None, logits.
            class_dim (int, optional): axis of the classes in the output. Default: 1.
            seed (int, optional): of first weights, noise, and order of the data. Default: 0.
            checkpoint_every (int, optional): steps between checkpoints, which are also written after each epoch and at
                an interruption. Default: 100.
            mixed_precision (bool, optional): run the model in bfloat16; the information stays in float32. Default:
                None: on GPUs that have it.
            warmup_steps (int, optional): steps over which beta grows from a hundredth of itself. With a large beta for
                the number of classes, or a large learning rate, the bottleneck otherwise closes before the network
                knows what to keep, and stays closed. Default: 0 (paper).

        Returns:
            LayerReadoutIBA: self, with :attr:`history`.

        Raises:
            StatisticsError: :meth:`estimate` comes first.
            NonFiniteError: something became NaN or infinite: what, and when. The weights before that step stay.
            InvalidArgumentError: an argument out of range, no data, a checkpoint of another training, or one that
                cannot be written.
            MissingFileError: the checkpoint's folder does not exist.
            InvalidTypeError, MismatchedArgumentsError: data without labels, or not one label an input.
            TargetError, TargetIndexError: labels that are no classes of the output.
            ReadoutFileError: a checkpoint that cannot be read.
            GradientModeError: the output does not depend on the layer.

        Examples::

            >>> import torch
            >>> from torch import nn
            >>> model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
            >>> data = [(torch.randn(50, 3), torch.randint(0, 2, (50,))) for _ in range(20)]
            >>> readout = LayerReadoutIBA(model, model[0]).estimate(data)
            >>> readout.fit(data, data[:2], epochs=1, show_progress=False).history.validation[-1].n
            100
        """
        arguments = FitArguments(
            epochs=epochs,
            learning_rate=learning_rate,
            beta=beta,
            max_steps=max_steps,
            warmup_steps=warmup_steps,
            targets=targets,
            seed=seed,
            checkpoint_every=checkpoint_every,
            mixed_precision=mixed_precision,
            class_dim=class_dim,
            objective=objective,
        )
        path = None if checkpoint is None else as_path(checkpoint)
        site, modules = self._locate(attribute_to_layer_input)
        readout = self._state.readouts.get((self.layer, attribute_to_layer_input))
        if readout is None and path is not None and path.is_file():
            readout = read_readout(path, site, names_of(modules), self._state.warner)
        if readout is None:
            raise StatisticsError(
                f"There are no feature statistics of the {site.side} of {site.name} and of the layers that are read. "
                "Call estimate(data) first, with attribute_to_layer_input as here."
            )
        readout = Readout(site, readout.sources, readout.statistics, self._settings)
        forward_func = unwrap_parallel(self.forward_func, self.device_ids)
        to_switch = reachable(modules, site.layer)
        with exclusive(to_switch), evaluation_mode(to_switch, self._state.warner), torch.inference_mode(False):
            fit_readout(
                readout,
                forward_func,
                modules,
                (train_data, val_data),
                arguments,
                input_fn=input_fn,
                checkpoint=path,
                show_progress=show_progress,
                warner=self._state.warner,
                when_ready=lambda: self._keep(readout),
            )
        return self

    def evaluate(
        self,
        data: Iterable[Any],
        beta: float = 10.0,
        targets: Targets = "labels",
        input_fn: InputFn | None = None,
        attribute_to_layer_input: bool = False,
        objective: ObjectiveType = None,
        class_dim: int = 1,
        seed: int = 0,
    ) -> Measures:
        """Measure the trained bottleneck on data: loss, bits and accuracy with one draw of noise an example.

        Args:
            data (Iterable): batches as for :meth:`fit`.
            beta (float, optional): in the objective that is reported. Default: 10.0.
            targets ("labels", "predictions" or Callable, optional): as for :meth:`fit`. Default: ``"labels"``.
            input_fn (Callable, optional): as for :meth:`fit`. Default: None.
            attribute_to_layer_input (bool, optional): as for :meth:`fit`. Default: False.
            objective (str or Callable, optional): as for :meth:`fit`. Default: None.
            class_dim (int, optional): as for :meth:`fit`. Default: 1.
            seed (int, optional): of the noise. Default: 0.

        Returns:
            Measures: means over the examples.

        Raises:
            NotTrainedError: :meth:`fit` or :meth:`load` come first.
            CaptumIBAError: everything :meth:`fit` raises about data and targets.
        """
        arguments = FitArguments(beta=beta, targets=targets, seed=seed, class_dim=class_dim, objective=objective)
        site, modules = self._locate(attribute_to_layer_input)
        readout = self._trained(site)
        forward_func = unwrap_parallel(self.forward_func, self.device_ids)
        to_switch = reachable(modules, site.layer)
        with exclusive(to_switch), evaluation_mode(to_switch, self._state.warner), torch.inference_mode(False):
            return evaluate_readout(
                readout, forward_func, modules, data, arguments, input_fn=input_fn, warner=self._state.warner
            )

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object | None = None,
        attribute_to_layer_input: bool = False,
        attr_dim_summation: bool = True,
        internal_batch_size: int | None = None,
        return_diagnostics: bool = False,
        n_samples: int = 10,
        objective: ObjectiveType = None,
        seed: int = 0,
        show_progress: bool = False,
        class_dim: int = 1,
    ) -> Tensor | tuple[Tensor, IBADiagnostics]:
        r"""Return the information that passes the trained bottleneck, in bits.

        One forward pass as far as the last layer that is read; no gradient, so ``torch.inference_mode`` is welcome.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): as for Captum's layer methods; the first axis is the batch.
            target (int, tuple, Tensor or list, optional): checked against the model's output, which is then computed;
                the map does not depend on it. Default: None, needed for diagnostics alone.
            additional_forward_args (Any, optional): as in Captum. Default: None.
            attribute_to_layer_input (bool, optional): the bottleneck at the layer's input. Default: False.
            attr_dim_summation (bool, optional): sum the bits over the channels, keeping the axis. False returns the
                layer's full shape. Default: True, as in LayerGradCam.
            internal_batch_size (int, optional): most rows that go through the model at once; for the diagnostics at
                least the number of examples, as in :class:`LayerIBA`. Default: None, all.
            return_diagnostics (bool, optional): return ``(bits, IBADiagnostics)``, with the target's probability over
                noisy copies, which takes further passes. Default: False.
            n_samples (int, optional): noisy copies of an example for the diagnostics. Default: 10.
            objective (str or Callable, optional): as in :meth:`LayerIBA.attribute`, for the diagnostics. Default: None.
            seed (int, optional): of the diagnostics' noise. Default: 0.
            show_progress (bool, optional): show a progress bar over the parts of the batch. Default: False.
            class_dim (int, optional): axis of the classes in the output. Default: 1, as in Captum.

        Returns:
            *Tensor* of **attributions**: bits, never negative, detached: (N, 1, H, W) for features (N, C, H, W),
            (N, T, 1) for tokens, (N, 1) for vectors; with ``return_diagnostics`` a tuple of it and
            :class:`IBADiagnostics`, whose objective and information have one step.

        Raises:
            NotTrainedError: :meth:`fit` or :meth:`load` come first.
            CaptumIBAError: everything :meth:`LayerIBA.attribute` raises about inputs, layers, statistics and targets.

        Examples::

            >>> import torch
            >>> from torch import nn
            >>> model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
            >>> data = [(torch.randn(50, 3), torch.randint(0, 2, (50,))) for _ in range(20)]
            >>> readout = LayerReadoutIBA(model, model[0]).estimate(data).fit(data, epochs=1, show_progress=False)
            >>> bits, record = readout.attribute(torch.randn(4, 3), target=1, return_diagnostics=True)
            >>> bits.shape, record.target_probability.shape
            (torch.Size([4, 1]), torch.Size([4]))
        """
        site, modules = self._locate(attribute_to_layer_input)
        forward_func = unwrap_parallel(self.forward_func, self.device_ids)
        to_switch = reachable(modules, site.layer)
        with torch.inference_mode(False):  # the diagnostics look at which tensors were changed
            arguments = on_device((inputs, additional_forward_args), None)
            forward = Forward(forward_func, *arguments, needs_gradient=False)
        settings = self._trained(site).settings
        numbers = Arguments(
            beta=0.0,
            n_steps=1,
            n_samples=n_samples,
            learning_rate=1.0,
            sigma=settings.sigma,
            initial_alpha=settings.initial_alpha,
            channel_dim=self.channel_dim(attribute_to_layer_input),
            internal_batch_size=internal_batch_size,
            objective=objective,
            class_dim=class_dim,
            seed=seed,
            relu=settings.relu,
        )
        name = f"{self.get_name()} attribution" if show_progress else ""
        reader = Reader(self._trained(site), forward, self._state.warner, numbers, name)
        with (
            torch.inference_mode(False),
            exclusive(to_switch),
            evaluation_mode(to_switch, self._state.warner),
            torch.autocast(forward.device_type, enabled=False),
            torch.no_grad(),
        ):
            explained = reader.explain(target, attr_dim_summation, return_diagnostics)
            bits = explained.bits.contiguous()
            if not return_diagnostics:
                return bits
            return bits, reader.diagnose(explained, modules, target)
