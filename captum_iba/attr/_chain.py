"""Networks that are a chain in execution: one module after another, and nothing but flattening in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from captum_iba._captum import _run_forward
from captum_iba.attr._objective import output_tensor
from captum_iba.errors import UnsupportedModelError

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LINEAR = (*CONVOLUTIONS, nn.Linear)
SILENT = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
_SUPPORTED = (*LINEAR, *NORMS, *SILENT, *_POOLS, nn.ReLU, nn.Flatten)
# the same operations on the same numbers; some GPU kernels add them up in varying order
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Link:
    """One step of the chain.

    Attributes:
        name (str): the module's dotted name, with ``#2`` at its second run.
        module (nn.Module): what runs.
        norm (nn.Module, optional): the batch normalisation right after a convolution or linear layer.
        is_gated (bool): a linear layer whose output goes through a ReLU before the next linear layer.
    """

    name: str
    module: nn.Module
    norm: nn.Module | None = None
    is_gated: bool = False

    @property
    def is_linear(self) -> bool:
        """Whether this is a convolution or linear layer, which has a pattern."""
        return isinstance(self.module, LINEAR)

    def run(self, x: Tensor) -> Tensor:
        """The step's output; x stays as it is."""
        y = _run_module(self.module, x)
        return y if self.norm is None else _run_module(self.norm, y)

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the linear layer with the normalisation multiplied in."""
        weight, bias = self.module.weight.detach(), self.module.bias  # type: ignore[operator]
        bias = None if bias is None else bias.detach()  # type: ignore[operator]
        if self.norm is None:
            return weight, bias
        scale, shift = _affine(self.norm)
        folded = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        return folded, shift if bias is None else shift + bias * scale

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """The linear layer with another weight and without bias."""
        if isinstance(self.module, nn.Linear):
            return F.linear(x, weight)
        return self.module._conv_forward(x, weight, None)  # type: ignore[operator, no-any-return]


@dataclass(frozen=True)
class Trace:
    """One run of the chain.

    Attributes:
        links (list[Link]): steps in order.
        values (list[Tensor]): input of each step.
        output (Tensor): of the model, equal to the last step's.
    """

    links: list[Link]
    values: list[Tensor]
    output: Tensor


def trace_chain(
    forward_func: Callable[..., Any], x: Tensor, additional: tuple[Any, ...] | None, modules: Sequence[nn.Module]
) -> Trace:
    """Run the model, and beside it its modules one after another; the two have to agree at every module.

    Args:
        forward_func (Callable): the forward function, in evaluation mode.
        x (Tensor): (N, ...), its only input.
        additional (tuple, optional): its further arguments.
        modules (Sequence[nn.Module]): roots that it runs.

    Returns:
        Trace: the chain.

    Raises:
        UnsupportedModelError: the model is more than a chain, or runs a module without a rule.
        NoTensorError: the model returns no tensor.
    """
    tracer = _Tracer(x)
    with ExitStack() as stack:
        for name, module in _units(modules):
            hook = partial(tracer.visit, name)
            handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        # the model may change its input in place
        output = output_tensor(_run_forward(forward_func, (x.clone(),), None, additional))
    tracer.arrive(output, "what the model returns")
    if not any(isinstance(module, LINEAR) for _, module in tracer.steps):
        raise UnsupportedModelError(
            f"No convolution or linear layer ran as a module of {[type(root).__name__ for root in modules]}, so there "
            "is nothing to learn a pattern for. Pass the model itself as forward_func."
        )
    return Trace(*_link(tracer.steps, tracer.values), output)


class _Tracer:
    """Follows the model from module to module.

    Args:
        x (Tensor): the model's input.
    """

    def __init__(self, x: Tensor) -> None:
        self.steps: list[tuple[str, nn.Module]] = []
        self.values: list[Tensor] = []
        self._value, self._before = x, "the input"

    def visit(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook: check what the module is given, and run it here too."""
        where = f"{name!r} ({type(module).__name__})"
        given = [*args, *kwargs.values()]
        _assert_supported(module, where, given)
        self.arrive(given[0], f"what {where} takes")
        repeats = sum(step is module for _, step in self.steps)
        self._append(f"{name}#{repeats + 1}" if repeats else name, module)
        self._before = f"what {name!r} gives"

    def arrive(self, given: Tensor, what: str) -> None:
        """Compare the chain's value with what the model has, flattening where the shape asks for it."""
        # before an in-place operation can change what the model has
        if self._value.shape != given.shape and self._value.flatten(1).shape == given.shape:
            self._append(f"flatten#{len(self.steps)}", nn.Flatten())
        if not _is_same(self._value, given):
            raise UnsupportedModelError(
                f"The network is not a chain of modules: {what} is not {self._before}. There is a residual or "
                "branching connection in between, or a function such as torch.relu that is no module. Put nn.ReLU() "
                "and the like in the place of functions; for networks with branches choose another method."
            )

    def _append(self, name: str, module: nn.Module) -> None:
        self.steps.append((name, module))
        self.values.append(self._value)
        self._value = _run_module(module, self._value)


def _units(modules: Sequence[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Supported modules whole, and the leaves of all others; each once."""
    seen: set[nn.Module] = set()

    def walk(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        if module in seen:
            return
        seen.add(module)
        children = list(module.named_children())
        if isinstance(module, _SUPPORTED) or not children:
            yield name or type(module).__name__, module
            return
        for child_name, child in children:
            yield from walk(f"{name}.{child_name}" if name else child_name, child)

    for index, root in enumerate(modules):
        yield from walk("" if len(modules) == 1 else str(index), root)


def _assert_supported(module: nn.Module, where: str, given: list[Any]) -> None:
    if not isinstance(module, _SUPPORTED):
        raise UnsupportedModelError(
            f"{where} has no rule for patterns. Supported are convolutions, linear layers, batch normalisation, ReLU, "
            "max and average pooling, dropout, flatten and identity; for other networks choose another method."
        )
    if isinstance(module, NORMS) and module.running_mean is None:
        raise UnsupportedModelError(
            f"{where} has no running statistics, so it is not linear in evaluation mode. Set track_running_stats=True."
        )
    if getattr(module, "return_indices", False):
        raise UnsupportedModelError(f"{where} returns indices beside its values; wanted return_indices=False.")
    if len(given) != 1 or not isinstance(given[0], Tensor):
        raise UnsupportedModelError(f"{where} is called with {len(given)} arguments; wanted one tensor.")


def _run_module(module: nn.Module, x: Tensor) -> Tensor:
    """The module's output in evaluation mode, without hooks and not in place."""
    if isinstance(module, nn.ReLU):
        return x.relu()
    if isinstance(module, SILENT):
        return x
    output: Tensor = module.forward(x)
    return output


def _is_same(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    if bool(((ours == theirs) | (ours.isnan() & theirs.isnan())).all()):
        return True
    return bool((ours - theirs).abs().max() <= _TOLERANCE * ours.abs().max())


def _link(steps: list[tuple[str, nn.Module]], values: list[Tensor]) -> tuple[list[Link], list[Tensor]]:
    """Take a normalisation to the linear layer before it, and find the linear layers with a ReLU behind them."""
    links: list[Link] = []
    inputs: list[Tensor] = []
    for (name, module), x in zip(steps, values, strict=True):
        # after a linear layer on tokens, the normalised axis is not that of its neurons
        is_folded = bool(links) and links[-1].is_linear and isinstance(module, NORMS) and links[-1].norm is None
        if is_folded and (isinstance(links[-1].module, CONVOLUTIONS) or x.ndim == 2):
            links[-1] = replace(links[-1], norm=module)
        else:
            links.append(Link(name, module))
            inputs.append(x)
    is_gated = False
    for index, link in reversed(list(enumerate(links))):
        if isinstance(link.module, nn.ReLU):
            is_gated = True
        elif link.is_linear:
            links[index], is_gated = replace(link, is_gated=is_gated), False
    return links, inputs


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Factor and summand of a batch normalisation in evaluation mode."""
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.detach()
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach()
