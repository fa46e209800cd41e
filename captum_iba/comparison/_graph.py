"""What a model computes, read from its autograd graph: which operation belongs to which module, and which to none."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from captum_iba._warn import Warner
from captum_iba.attr._model import evaluation_mode, exclusive
from captum_iba.attr._objective import output_tensor
from captum_iba.bottleneck.containers import leaves_in
from captum_iba.errors import InvalidArgumentError, UnsupportedModelError

Node = torch.autograd.graph.Node
Edge = tuple[Node, int]

_MOVES = re.compile(
    r"Alias|AsStrided|Cat|(Native)?ChannelShuffle|Clone|Copy|Expand|Flip|Index(Select)?|Movedim|Permute"
    r"|Pixel(Uns|S)huffle|Reshape(Alias)?|Roll|Select|Slice|Split(WithSizes)?|Squeeze|Stack|T|ToCopy|Transpose|Unbind|Unsafe(Split|View)"
    r"|Unsqueeze|View"
)
_MAXIMA = re.compile(r"AdaptiveMaxPool[23]D|Amax|Max|MaxPool[23]DWithIndices|MkldnnMaxPool2D")
_LINEAR = re.compile(
    r"Add|Sub|Rsub|Neg|Sum|Mean|(Adaptive)?AvgPool[23]D|ConstantPadNd|(Reflection|Replication)Pad[123]D|Upsample\w+"
)
_NORMS = re.compile(r"(Cudnn|Miopen|Native)BatchNorm|Native(Group|Layer)Norm")
# of two things that both depend on the input they are no linear operation of it
_PRODUCTS = re.compile(r"Addmm|Baddbmm|Bmm|Convolution|Div|Mm|Mul|Mv")


@dataclass(eq=False)
class Call:
    """One run of one module.

    Attributes:
        name (str): dotted name of the module; empty for the model.
        module (nn.Module): the module.
        sources (set[Edge]): where its input tensors come from.
        nodes (set[Node]): operations on the way from the input that belong to it and to no module inside it.
    """

    name: str
    module: nn.Module
    sources: set[Edge]
    nodes: set[Node] = field(default_factory=set)

    def __str__(self) -> str:
        kind = type(self.module).__name__
        return f"{self.name!r} ({kind})" if self.name else f"the model ({kind})"


@dataclass
class Graph:
    """The part of a forward pass that depends on the input.

    Attributes:
        calls (list[Call]): runs of modules, inner ones before outer ones.
        owner (dict[Node, Call]): innermost run that an operation belongs to.
        nodes (set[Node]): operations on the way from the input to the output.
    """

    calls: list[Call]
    owner: dict[Node, Call]
    nodes: set[Node]


def operation(node: Node) -> str:
    """Name of an operation, such as ``"Relu"``."""
    return re.sub(r"Backward\d*$", "", node.name())


def is_move(node: Node) -> bool:
    """Whether an operation only moves numbers about."""
    return _MOVES.fullmatch(operation(node)) is not None


def is_maximum(node: Node) -> bool:
    """Whether an operation is pooling that hands on some of its inputs."""
    return _MAXIMA.fullmatch(operation(node)) is not None


def read_graph(model: nn.Module, inputs: Tensor | tuple[Tensor, ...]) -> Graph:
    """Run the model on its first example in evaluation mode, and read what belongs to which module.

    Args:
        model (nn.Module): the model, which stays as it is.
        inputs (Tensor or tuple[Tensor, ...]): (N, ...), floating point.

    Returns:
        Graph: operations and modules.

    Raises:
        UnsupportedModelError: the output does not depend on the inputs by gradients.
        InvalidArgumentError: no floating-point input.
        NoTensorError: the model returns no tensor.
    """
    tensors = inputs if isinstance(inputs, tuple) else (inputs,)
    if not any(isinstance(tensor, Tensor) and tensor.is_floating_point() for tensor in tensors):
        found = [str(tensor.dtype) if isinstance(tensor, Tensor) else type(tensor).__name__ for tensor in tensors]
        raise InvalidArgumentError(f"inputs are {found}; wanted a floating-point tensor to take gradients of.")
    with (
        exclusive([model]),
        evaluation_mode([model], _SILENT),
        torch.inference_mode(False),
        torch.enable_grad(),
        ExitStack() as stack,
    ):
        recorder = _Recorder()
        for name, module in model.named_modules():
            before = module.register_forward_pre_hook(partial(recorder.enter, name), with_kwargs=True)
            after = module.register_forward_hook(recorder.leave)
            stack.callback(before.remove)
            stack.callback(after.remove)
        # one operation away from the leaf, as the model may change its input in place
        starts = [tensor[:1].detach().clone() for tensor in tensors]
        starts = [start.requires_grad_().clone() if start.is_floating_point() else start for start in starts]
        output = output_tensor(model(*starts))
    begin = {start.grad_fn for start in starts if start.grad_fn is not None}
    nodes = _between(begin, output.grad_fn)
    if not nodes and output.grad_fn not in begin:
        raise UnsupportedModelError(
            f"The output of {type(model).__name__} does not depend on the inputs by gradients: something in between "
            "detaches it or runs under no_grad."
        )
    for call in recorder.calls:
        call.nodes &= nodes
    owner = {node: call for call in recorder.calls for node in call.nodes}
    return Graph(recorder.calls, owner, nodes)


_SILENT = Warner()
_SILENT.given("training")


class _Recorder:
    """Hooks that note where the inputs of each module come from, and which operations it then adds."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._running: list[Call] = []
        self._owned: set[Node] = set()

    def enter(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook: before the module can change its input in place."""
        edges = _edges_of((args, kwargs))
        self._running.append(Call(name, module, edges))

    def leave(self, module: nn.Module, _args: Any, output: Any) -> None:
        """Forward hook: all operations since the inputs that no inner module has."""
        call = self._running.pop()
        # where an exception was caught inside the model, runs were begun and not ended
        while call.module is not module:
            call = self._running.pop()
        reached = _walk({node for node, _ in _edges_of(output)}, {node for node, _ in call.sources})
        call.nodes = reached - self._owned
        self._owned |= reached
        self.calls.append(call)


def _edges_of(values: Any) -> set[Edge]:
    tensors = [leaf for leaf in leaves_in(values) if isinstance(leaf, Tensor)]
    return {(tensor.grad_fn, tensor.output_nr) for tensor in tensors if tensor.grad_fn is not None}


def in_order(nodes: Iterable[Node]) -> list[Node]:
    """Operations by name, as sets have no order that messages could keep."""
    return sorted(nodes, key=operation)


def _walk(ends: Iterable[Node], stops: set[Node]) -> set[Node]:
    """Operations from the ends back to the stops, which are left out."""
    found: set[Node] = set()
    waiting = list(ends)
    while waiting:
        node = waiting.pop()
        if node not in found and node not in stops:
            found.add(node)
            waiting += [before for before, _ in node.next_functions if before is not None]
    return found


def _between(begin: set[Node], end: Node | None) -> set[Node]:
    """Operations on some way from begin to end, begin left out."""
    if end is None:
        return set()
    after: defaultdict[Node, list[Node]] = defaultdict(list)
    for node in _walk([end], begin):
        for before, _ in node.next_functions:
            if before is not None:
                after[before].append(node)
    found: set[Node] = set()
    waiting = [node for first in begin for node in after[first]]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += after[node]
    return found


def functional_activations(
    model: nn.Module, inputs: Tensor | tuple[Tensor, ...], known: tuple[type[nn.Module], ...] = ()
) -> list[str]:
    """Name the nonlinear operations of a model that are no ``nn.ReLU`` module.

    Max pooling and normalisation layers do not count. Products count where both factors depend on the input, as in
    attention and gating. What is not known to be harmless counts.

    Args:
        model (nn.Module): the model, which stays as it is.
        inputs (Tensor or tuple[Tensor, ...]): (N, ...); the first example is run.
        known (tuple[type, ...], optional): further modules that do not count. Default: none.

    Returns:
        list[str]: such as ``"Gelu in 'blocks.0.act' (GELU)"``, in the order of the modules, each once.

    Raises:
        InvalidArgumentError: no floating-point input.
        UnsupportedModelError: the output does not depend on the inputs by gradients.

    Examples::

        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.GELU())
        >>> functional_activations(model, torch.randn(1, 3))
        ["Gelu in '3' (GELU)"]
    """
    graph = read_graph(model, inputs)
    calls = [call for call in graph.calls if not isinstance(call.module, known)]
    found = [(node, owner) for owner in calls for node in in_order(owner.nodes) if not _is_harmless(node, owner, graph)]
    strays = [f"{operation(node)} in no module" for node in in_order(graph.nodes - graph.owner.keys())]
    return list(dict.fromkeys([f"{operation(node)} in {owner}" for node, owner in found] + strays))


def _is_harmless(node: Node, owner: Call, graph: Graph) -> bool:
    name = operation(node)
    if name == "Relu":
        return isinstance(owner.module, nn.ReLU)
    if _PRODUCTS.fullmatch(name):
        return sum(before in graph.nodes for before, _ in node.next_functions) < 2
    return is_move(node) or is_maximum(node) or bool(_LINEAR.fullmatch(name) or _NORMS.fullmatch(name))


def assert_relu_modules(model: nn.Module, inputs: Tensor | tuple[Tensor, ...]) -> None:
    """Refuse models on which GuidedBackprop and Deconvolution would give the plain gradient, or a mixture.

    Captum changes the gradient of ``nn.ReLU`` modules, and passes over all other activations without a word.

    Args:
        model (nn.Module): the model, which stays as it is.
        inputs (Tensor or tuple[Tensor, ...]): (N, ...); the first example is run.

    Raises:
        UnsupportedModelError: a nonlinearity other than that of an ``nn.ReLU`` module acts.
        InvalidArgumentError: no floating-point input.

    Examples::

        >>> assert_relu_modules(nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True)), torch.randn(1, 3))
        >>> assert_relu_modules(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), torch.randn(1, 3))
        Traceback (most recent call last):
        captum_iba.errors.UnsupportedModelError: ... other than nn.ReLU modules act: Tanh in '1' (Tanh). ...
    """
    found = functional_activations(model, inputs)
    if found:
        raise UnsupportedModelError(
            "The method changes the gradient of nn.ReLU modules alone, and in this model nonlinearities other than "
            f"nn.ReLU modules act: {shorten(found)}. Put nn.ReLU() in the place of torch.relu; for other activations "
            "choose another method."
        )


# they divide by a deviation of the example's own
_EXAMPLE_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_DEEP_LIFT = (nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softmax)


def assert_deep_lift_modules(model: nn.Module, inputs: Tensor | tuple[Tensor, ...]) -> None:
    """Refuse models on which DeepLift would give the plain gradient of an activation, and so not share out the output.

    Captum has rules for the modules ReLU, ELU, LeakyReLU, Sigmoid, Tanh, Softplus, Softmax and max pooling, and passes
    over functions and other activations without a word.

    Args:
        model (nn.Module): the model, which stays as it is.
        inputs (Tensor or tuple[Tensor, ...]): (N, ...); the first example is run.

    Raises:
        UnsupportedModelError: another nonlinearity acts.
        InvalidArgumentError: no floating-point input.

    Examples::

        >>> assert_deep_lift_modules(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), torch.randn(1, 3))
        >>> assert_deep_lift_modules(nn.Sequential(nn.Linear(3, 4), nn.GELU()), torch.randn(1, 3))
        Traceback (most recent call last):
        captum_iba.errors.UnsupportedModelError: DeepLift has no rule for Gelu in '1' (GELU). ...
    """
    graph = read_graph(model, inputs)
    norms = [str(call) for call in graph.calls if isinstance(call.module, _EXAMPLE_NORMS)]
    found = functional_activations(model, inputs, _DEEP_LIFT) + list(dict.fromkeys(norms))
    if found:
        raise UnsupportedModelError(
            f"DeepLift has no rule for {shorten(found)}. Put nn.ReLU() in the place of torch.relu; for other "
            "activations choose another method."
        )


def shorten(names: Sequence[str], most: int = 3) -> str:
    """Some of many names, for messages."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
