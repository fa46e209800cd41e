"""PatternAttribution for networks that are a chain of modules."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from captum_iba._captum import (
    GradientAttribution,
    TargetType,
    _format_additional_forward_args,
    _format_tensor_into_tuples,
    _select_targets,
    log_usage,
)
from captum_iba._warn import Warner
from captum_iba.attr._calibration import _inputs_of
from captum_iba.attr._chain import NORMS, SILENT, Link, trace_chain
from captum_iba.attr._forward import _assert_inputs
from captum_iba.attr._model import device_of, evaluation_mode, exclusive, find_modules, unwrap_parallel
from captum_iba.attr._patterns import PatternEstimator, load_patterns, save_patterns
from captum_iba.errors import (
    CaptumIBAError,
    InvalidArgumentError,
    InvalidTypeError,
    NonFiniteError,
    StatisticsError,
    TargetError,
    TargetIndexError,
    UnsupportedModelError,
)

Patterns = Literal["relu", "linear"]


@dataclass
class _State:
    """What fit leaves behind, shared by shallow copies of a method."""

    patterns: dict[str, Tensor] = field(default_factory=dict)
    warner: Warner = field(default_factory=Warner)


class PatternAttribution(GradientAttribution):
    r"""Attributions by a backward pass in which each weight w is multiplied by its neuron's pattern a.

    A weight vector cancels distractors in its input and so need not point at the signal. The pattern does: it is
    estimated from data by :meth:`fit`, and scaled so that :math:`w^T a = 1` (with a bias behind which a ReLU follows,
    1 less the bias's share), with which a linear layer hands on the relevance that it gets. ReLU and pooling pass it
    as they pass gradients, with the gates of the forward pass. Batch normalisation right after a convolution or linear
    layer counts as part of it; elsewhere its neurons have one input each, for which :math:`w a = 1`.

    The two-component pattern of a layer with weights w, bias b and outputs y is

    .. math:: a = \frac{E_+[x y] - E_+[x] E[y]}{w^T (E_+[x y] - E_+[x] E[y]) + b (E_+[y] - E[y])},

    with :math:`E_+` over the inputs with y > 0: the paper's equation, which is for layers without bias, with the bias
    as the weight of a constant input. Left out, many denominators would be near 0 or negative in networks with batch
    normalisation. For the linear pattern E takes the place of :math:`E_+`: a = cov[x, y] / var[y].

    The model has to be a chain of modules in execution (VGG, AlexNet, plain convolutional networks), with flattening
    in between where needed. This is measured in every call. Patterns belong to the weights at the time of
    :meth:`fit`; fit again after a change. Neurons without a measurable signal, such as those that are never active on
    the data, have the pattern 0 and hand on nothing.

    Args:
        forward_func (Callable): the model, or a function of it with one input.

    Reference:
        Kindermans, Schütt, Alber, Müller, Erhan, Kim, Dähne: Learning how to explain neural networks: PatternNet and
        PatternAttribution, ICLR 2018; sections 4 and 5.

    Examples::

        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()
        >>> method = PatternAttribution(model).fit(torch.randn(100, 1, 8, 8))
        >>> method.attribute(torch.randn(2, 1, 8, 8), target=1).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(self, forward_func: Callable[..., Any]) -> None:
        if not callable(forward_func):
            raise InvalidTypeError(f"forward_func is a {type(forward_func).__name__}; wanted a module or a function.")
        GradientAttribution.__init__(self, forward_func)
        self._state = _State()

    @classmethod
    def get_name(cls) -> str:
        """Name for progress bars and tables."""
        return "Pattern Attribution"

    @property
    def patterns(self) -> Mapping[str, Tensor]:
        """Patterns by the layer's name, each of the shape of its weight; empty before :meth:`fit`."""
        return self._state.patterns

    def fit(
        self,
        data: Iterable[Any],
        patterns: Patterns = "relu",
        max_examples: int = 10_000,
        show_progress: bool = False,
    ) -> PatternAttribution:
        r"""Learn the patterns from data, batch by batch, in evaluation mode.

        Args:
            data (Iterable): batches as a DataLoader yields them: tensors (N, ...), or tuples whose first entry is one.
                A single tensor is one batch. No labels are used.
            patterns (str, optional): ``"relu"``: the two-component estimator, from the inputs on which a neuron is
                active, for layers with a ReLU before the next layer, and the linear estimator for the others, such as
                the logits; ``"linear"``: the linear estimator throughout. Default: ``"relu"``, which the paper finds
                better behind ReLUs.
            max_examples (int, optional): examples to stop at. Default: 10_000, as for the bottleneck's statistics.
            show_progress (bool, optional): show a progress bar over the batches. Default: False.

        Returns:
            PatternAttribution: self.

        Raises:
            UnsupportedModelError: the network is not a chain of supported modules.
            StatisticsError: fewer than two examples.
            NonFiniteError: NaN or infinity in the data or the features.
            InvalidArgumentError: an argument out of range.
            InvalidTypeError: batches that cannot be understood.

        Examples::

            >>> signal, distractor = torch.randn(2, 10_000)
            >>> x = torch.stack([signal + distractor, distractor], dim=1)
            >>> model = nn.Linear(2, 1).eval()
            >>> _ = model.weight.data.copy_(torch.tensor([[1.0, -1.0]]))  # cancels the distractor
            >>> pattern = PatternAttribution(model).fit(x).patterns["Linear"]
            >>> torch.allclose(pattern, torch.tensor([[1.0, 0.0]]), atol=0.1)
            True
        """
        if patterns not in ("relu", "linear"):
            raise InvalidArgumentError(f"patterns={patterns!r}; wanted 'relu' or 'linear'.")
        if not isinstance(max_examples, int) or max_examples < 2:
            raise InvalidArgumentError(f"max_examples={max_examples!r}; wanted an integer of at least 2.")
        if not isinstance(data, Iterable):
            raise InvalidTypeError(f"data is a {type(data).__name__}; wanted an iterable of batches.")
        with self._undisturbed() as (forward_func, modules):
            estimators: dict[str, PatternEstimator] = {}
            links: list[Link] = []
            seen = 0
            batches = [data] if isinstance(data, Tensor) else data
            for batch in tqdm(batches, desc=f"{self.get_name()} patterns", disable=not show_progress):
                x = _tensor_of(batch, device_of(modules))[: max_examples - seen]
                if not estimators:
                    links = trace_chain(forward_func, x, None, modules).links
                    estimators = {
                        link.name: PatternEstimator(link, link.is_gated and patterns == "relu")
                        for link in links
                        if link.is_linear
                    }
                _add(estimators, links, x)
                seen += len(x)
                if seen >= max_examples:
                    break
            found = {name: estimator.result() for name, estimator in estimators.items()}
        _assert_estimated(found, seen)
        self._state.patterns = found
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the patterns as safetensors.

        Raises:
            StatisticsError: there are none yet.
            MissingFileError: the folder does not exist.
        """
        self._assert_fitted()
        save_patterns(self._state.patterns, path)

    def load(self, path: str | os.PathLike[str]) -> PatternAttribution:
        """Read patterns of this model written by :meth:`save`.

        Returns:
            PatternAttribution: self.

        Raises:
            MissingFileError: no such file.
            StatisticsFileError: a damaged file, or one of another kind.
        """
        self._state.patterns = load_patterns(path)
        return self

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        r"""Share the target's output value out among the elements of the input.

        The backward pass starts with the value of the output as the model gives it, bias included. Of it, ReLUs keep
        back what reaches closed gates, and convolutions what falls on padding.

        Args:
            inputs (Tensor or tuple[Tensor]): (N, ...), the model's only input.
            target (int, tuple, Tensor or list, optional): the output to explain, in any of Captum's forms; None where
                the model returns one value per example. Default: None.
            additional_forward_args (Any, optional): as in Captum; they must not take part in the computation.
                Default: None.

        Returns:
            *Tensor* or *tuple[Tensor]* of **attributions**: of the input's shape, in units of the output; a tuple for a
            tuple.

        Raises:
            StatisticsError: before :meth:`fit`, or with patterns of another model.
            UnsupportedModelError: the network is not a chain of supported modules.
            TargetError, TargetIndexError: the target does not select one value per example.
            InvalidArgumentError: several inputs, or an empty batch.
            NonFiniteError: NaN or infinity in the input.

        Examples::

            >>> model = nn.Linear(3, 2, bias=False).eval()
            >>> x = torch.randn(5, 3)
            >>> attributions = PatternAttribution(model).fit(torch.randn(50, 3)).attribute(x, target=[0, 1, 1, 0, 1])
            >>> torch.allclose(attributions.sum(dim=1), model(x)[range(5), [0, 1, 1, 0, 1]], atol=1e-5)
            True
        """
        self._assert_fitted()
        with self._undisturbed() as (forward_func, modules):
            tensors = _format_tensor_into_tuples(inputs)
            _assert_inputs(tensors)
            if len(tensors) != 1:
                raise InvalidArgumentError(f"inputs holds {len(tensors)} tensors; PatternAttribution takes one.")
            additional = _format_additional_forward_args(additional_forward_args)
            # a copy made here can take part in gradients even if the caller made the input in inference mode
            trace = trace_chain(forward_func, tensors[0].detach().clone(), additional, modules)
            relevance = _selected(trace.output.detach(), target)
            for link, x in zip(reversed(trace.links), reversed(trace.values), strict=True):
                relevance = self._hand_back(link, x, relevance)
        return (relevance,) if isinstance(inputs, tuple) else relevance

    def _hand_back(self, link: Link, x: Tensor, relevance: Tensor) -> Tensor:
        """Relevance of a step's input from that of its output."""
        if isinstance(link.module, (*NORMS, *SILENT)):
            return relevance
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            output = link.linear(x, self._weighted(link)) if link.is_linear else link.run(x)
        return torch.autograd.grad(output, x, relevance.reshape(output.shape))[0]

    def _weighted(self, link: Link) -> Tensor:
        weight, _ = link.folded()
        pattern = self._state.patterns.get(link.name)
        if pattern is None or pattern.shape != weight.shape:
            found = "none" if pattern is None else f"one of shape {list(pattern.shape)}"
            raise StatisticsError(
                f"The patterns are of another model: layer {link.name!r} wants one of shape {list(weight.shape)}, "
                f"found {found} among {sorted(self._state.patterns)}. Call fit on this model."
            )
        return weight * pattern.to(weight)

    def _assert_fitted(self) -> None:
        if not self._state.patterns:
            raise StatisticsError("There are no patterns yet. Call fit(data) first; a thousand examples are a start.")

    @contextmanager
    def _undisturbed(self) -> Iterator[tuple[Callable[..., Any], Sequence[nn.Module]]]:
        """The forward function and its modules, in evaluation mode, without gradient and in full precision."""
        forward_func = unwrap_parallel(self.forward_func, None)
        modules = find_modules(forward_func)
        if not modules:
            raise UnsupportedModelError(
                "forward_func hides its modules, so their patterns cannot be learnt. Pass the model itself."
            )
        device = device_of(modules)
        with (
            exclusive(modules),
            evaluation_mode(modules, self._state.warner),
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast("cpu" if device is None else device.type, enabled=False),
        ):
            yield forward_func, modules


def _tensor_of(batch: Any, device: torch.device | None) -> Tensor:
    x = _inputs_of(batch)
    if isinstance(x, tuple) and len(x) == 1:
        (x,) = x
    if not isinstance(x, Tensor) or x.ndim == 0:
        raise InvalidTypeError(
            f"data yields {type(batch).__name__} with {type(x).__name__} as input; wanted one tensor (N, ...), as "
            "PatternAttribution explains models with a single input."
        )
    if x.is_inference():
        x = x.clone()
    return x if device is None else x.to(device)


def _add(estimators: Mapping[str, PatternEstimator], links: Sequence[Link], x: Tensor) -> None:
    for link in links:
        if link.is_linear:
            estimators[link.name].add(x)
        x = link.run(x)


def _assert_estimated(patterns: Mapping[str, Tensor], n_examples: int) -> None:
    if n_examples < 2:
        raise StatisticsError(
            f"fit needs at least 2 examples, found {n_examples} in data. Pass an iterable of batches; a thousand "
            "examples are a good start, and a generator can be used only once."
        )
    for name, pattern in patterns.items():
        if not torch.isfinite(pattern).all():
            raise NonFiniteError(
                f"The pattern of layer {name!r} is NaN or infinite. Check the data and the model with torch.isfinite."
            )


def _selected(output: Tensor, target: TargetType) -> Tensor:
    """The output with 0 in all places that the target does not select."""
    # on the CPU an index out of range is an exception; on CUDA it would end the process's use of the device
    leaf = output.cpu().requires_grad_()
    wanted = target.cpu() if isinstance(target, Tensor) else target
    try:
        with torch.enable_grad():
            chosen = _select_targets(leaf, wanted)
    except (IndexError, RuntimeError) as error:
        if isinstance(error, CaptumIBAError):
            raise
        raise TargetIndexError(
            f"target={target!r} does not fit the model's output of shape {list(output.shape)}: {error}. Wanted a "
            "class index from 0 to the number of classes - 1 for each example."
        ) from None
    if chosen.numel() != len(output):
        raise TargetError(
            f"target={target!r} leaves {chosen.numel()} values of the output {list(output.shape)} for {len(output)} "
            "examples, wanted one per example. Pass target=class index."
        )
    (mask,) = torch.autograd.grad(chosen, leaf, torch.ones_like(chosen))
    return output * mask.to(output)
