"""A copy of a model on which Captum's LRP runs and is right."""

from __future__ import annotations

import copy
import functools
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from captum_iba._captum import Addition_Module, EpsilonRule, PropagationRule
from captum_iba.comparison._graph import (
    Call,
    Edge,
    Graph,
    Node,
    in_order,
    is_maximum,
    is_move,
    operation,
    read_graph,
    shorten,
)
from captum_iba.errors import InvalidArgumentError, InvalidTypeError, UnsupportedModelError

_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_EXACT = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(*_NORMS, Addition_Module),
)
_RULED = (*_WEIGHTED, *_EXACT)
# the relevance of their output is that of their input
_ACTIVATIONS = (nn.ReLU, nn.Tanh)


def prepare_lrp(model: nn.Module, inputs: Tensor | tuple[Tensor, ...], epsilon: float = 5.0) -> nn.Module:
    r"""Copy a model so that ``captum.attr.LRP`` runs on the copy, or say why it cannot be right.

    Convolutions and linear layers get the epsilon rule, pooling, batch normalisation and ``Addition_Module`` Captum's
    default rule; ReLU, Tanh and modules that only move numbers about or do nothing in evaluation mode hand relevance
    through unchanged. The copy is in evaluation mode, its activations are not in place, and its rules stay for any
    number of calls. Captum leaves traces on the model that it explains; on the copy they do no harm.

    LRP rules belong to modules. What a model computes in code between them, Captum passes over without a word: the
    result is then no longer conserved. One example is therefore run, and its autograd graph has to consist of modules
    with a rule and of reshaping, ``torch.cat`` and max pooling, which keep relevance as they are.

    Args:
        model (nn.Module): the model, which stays as it is.
        inputs (Tensor or tuple[Tensor, ...]): (N, ...), floating point; the first example is run.
        epsilon (float, optional): stabiliser of convolutions and linear layers, above 0; it absorbs relevance where
            their output is small. Default: 5.0, with which Schulz et al. compare. (They use it for linear layers, and
            the alpha-beta rule with beta=-1 for convolutions, which Captum does not have.)

    Returns:
        nn.Module: the copy, for ``LRP(copy).attribute(...)``.

    Raises:
        UnsupportedModelError: a skip connection or another operation in code, an activation function that is no
            module, a module without a rule, or one that runs more than once.
        InvalidArgumentError: no floating-point input, or epsilon out of range.
        InvalidTypeError: the model is no module.

    Reference:
        Bach et al.: On pixel-wise explanations for non-linear classifier decisions by layer-wise relevance
        propagation, PLoS ONE 2015, equation 58 (epsilon rule); Schulz et al., ICLR 2020, section 4.

    Examples::

        >>> import torch
        >>> from captum.attr import LRP
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 36, 3))
        >>> x = torch.randn(2, 1, 8, 8)
        >>> LRP(prepare_lrp(model, x)).attribute(x, target=1).shape
        torch.Size([2, 1, 8, 8])
    """
    if not isinstance(model, nn.Module):
        raise InvalidTypeError(f"model is a {type(model).__name__}; wanted a torch.nn.Module, whose modules get rules.")
    if not isinstance(epsilon, (int, float)) or not 0 < epsilon < math.inf:
        raise InvalidArgumentError(f"epsilon={epsilon!r}; wanted a finite number above 0.")
    prepared = copy.deepcopy(model).eval().requires_grad_(False)
    # Captum looks for layers among the children
    prepared = prepared if any(prepared.children()) else nn.Sequential(prepared)
    for module in prepared.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
    graph = read_graph(prepared, inputs)
    _assert_modules_only(graph)
    _assert_single_runs(graph)
    _assert_branches(graph)
    _attach_rules(prepared, graph, epsilon)
    return prepared


class _PassThrough(PropagationRule):
    """Leaves the relevance to the gradient of the module, which moves it to where the numbers came from."""

    def forward_hook(self, module: Any, inputs: Any, outputs: Any) -> Any:
        """Put no hooks on the tensors."""
        return outputs

    def forward_hook_weights(self, module: Any, inputs: Any, outputs: Any) -> None:
        """Keep no activations."""

    def forward_pre_hook_activations(self, module: Any, inputs: Any) -> Any:
        """Take the inputs as they are."""
        return inputs

    def _manipulate_weights(self, module: Any, inputs: Any, outputs: Any) -> None:
        """Change no weights."""


class _Activation(_PassThrough):
    """Hands the relevance of an activation's output to its input.

    Captum does this by module hooks that are confused by a module in two branches, or by two activations that meet in
    an addition.
    """

    def forward_hook(self, module: Any, inputs: Any, outputs: Any) -> Any:
        """Give the output the gradient of the identity."""
        return _Straight.apply(inputs[0], outputs)


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        """The value."""
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """The gradient as it is."""
        return gradients[0], None


class _Lasting:
    """Keeps its rule, which Captum deletes after each call."""

    def __delattr__(self, name: str) -> None:
        if name != "rule":
            super().__delattr__(name)


@functools.cache
def _lasting(kind: type[Any]) -> type[Any]:
    return type(kind.__name__, (_Lasting, kind), {"__module__": kind.__module__})


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    """The layers as Captum's LRP finds them."""
    for child in module.children():
        if any(child.children()):
            yield from _leaves(child)
        else:
            yield child


def _is_leaf(call: Call) -> bool:
    return not any(call.module.children())


def _is_passive(call: Call) -> bool:
    """A module that, where it runs, only moves numbers about, or does nothing to what depends on the input."""
    return not isinstance(call.module, _RULED) and all(is_move(node) for node in call.nodes)


def _assert_modules_only(graph: Graph) -> None:
    """Every operation belongs to a module with a rule, or keeps relevance as it is."""
    reasons: dict[str, None] = {}
    for call in graph.calls:
        if _is_leaf(call):
            _assert_rule(call)
        else:
            reasons |= {
                _reason(operation(node), str(call)): None for node in in_order(call.nodes) if not _keeps_relevance(node)
            }
    strays = [node for node in in_order(graph.nodes - graph.owner.keys()) if not _keeps_relevance(node)]
    reasons |= {_reason(operation(node), "no module"): None for node in strays}
    if reasons:
        raise UnsupportedModelError(
            f"Captum's LRP would run and be wrong: {shorten(list(reasons))}. LRP has rules for modules alone. Put "
            "captum.attr._utils.custom_modules.Addition_Module in the place of additions, and nn.ReLU and the like in "
            "that of functions, or choose another method."
        )


def _keeps_relevance(node: Node) -> bool:
    return is_move(node) or is_maximum(node)


def _reason(name: str, where: str) -> str:
    if name in ("Add", "Sub"):
        return f"a skip connection or other addition in the code of {where}"
    kinds = {"Mul": "a product", "Div": "a division", "Mean": "an average", "Bmm": "attention"}
    kind = "attention" if name.startswith("ScaledDotProduct") else kinds.get(name, f"the function {name}")
    return f"{kind} in the code of {where}"


def _assert_rule(call: Call) -> None:
    module = call.module
    if not _is_passive(call) and not isinstance(module, (*_RULED, *_ACTIVATIONS)):
        raise UnsupportedModelError(
            f"Captum's LRP has no rule for {call}. Supported are convolutions, linear layers, batch normalisation, "
            "pooling, ReLU, Tanh, dropout, Addition_Module and modules that only reshape; for other networks choose "
            "another method."
        )
    if isinstance(module, _NORMS) and module.running_mean is None:
        raise UnsupportedModelError(
            f"{call} has no running statistics, so it is not linear in evaluation mode. Set track_running_stats=True."
        )
    if getattr(module, "return_indices", False):
        raise UnsupportedModelError(f"{call} returns indices beside its values; wanted return_indices=False.")


def _assert_single_runs(graph: Graph) -> None:
    """Captum keeps one set of activations a layer."""
    runs = Counter(call.module for call in graph.calls)
    for call in graph.calls:
        if runs[call.module] > 1 and isinstance(call.module, _RULED):
            raise UnsupportedModelError(
                f"{call} runs {runs[call.module]} times in one forward pass, and Captum's LRP keeps the activations of "
                "one run. Give each place a module of its own."
            )


def _assert_branches(graph: Graph) -> None:
    """What several operations read has to be read by layers with a rule only, or by none.

    Captum multiplies what arrives at a layer's input by that input. What arrives at the same tensor by another way is
    relevance already.
    """
    for readers in _readers(graph).values():
        ruled = [reader for reader in readers if isinstance(reader, Call)]
        if ruled and len(ruled) < len(readers):
            names = sorted(str(reader) if isinstance(reader, Call) else operation(reader) for reader in readers)
            raise UnsupportedModelError(
                "Captum's LRP would run and be wrong: one tensor is read by layers with a rule and by others "
                f"({shorten(names)}), whose relevance it would weight again. Choose another method."
            )


def _readers(graph: Graph) -> dict[Edge, set[Call | Node]]:
    """By tensor, the runs of layers with a rule and the other operations that read it."""
    readers: dict[Edge, set[Call | Node]] = defaultdict(set)
    ruled = {call for call in graph.calls if isinstance(call.module, _RULED) and call.nodes}
    for call in ruled:
        for edge in call.sources:
            readers[edge].add(call)
    for node in graph.nodes:
        if graph.owner.get(node) not in ruled:
            for before, index in node.next_functions:
                if before is not None:
                    readers[before, index].add(node)
    return readers


def _attach_rules(model: nn.Module, graph: Graph, epsilon: float) -> None:
    # where nothing depends on the input, there is no gradient to change
    active = {call.module for call in graph.calls if call.nodes}
    for module in set(_leaves(model)):
        kind: Any = type(module)
        module.__class__ = _lasting(kind)
        module.rule = _rule(module, epsilon) if module in active else _PassThrough()  # type: ignore[assignment]


def _rule(module: nn.Module, epsilon: float) -> PropagationRule:
    if isinstance(module, _RULED):
        return EpsilonRule(epsilon) if isinstance(module, _WEIGHTED) else EpsilonRule()
    return _Activation() if isinstance(module, _ACTIVATIONS) else _PassThrough()
