"""What layers of a user's model return, read with hooks that are gone afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from captum_iba._evaluation import evaluation
from captum_iba._random_state import OwnRandomState
from captum_iba.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    LayerNotExecutedError,
    LayerReusedError,
    MismatchedArgumentsError,
    NonFiniteError,
    NoTensorError,
)


def named_layers(layers: Any) -> dict[str, str | nn.Module]:
    """Layers by the name that results call them by.

    Args:
        layers (Sequence or Mapping): dotted names or modules; or a mapping from names of the user's to such.

    Raises:
        InvalidTypeError: something else.
        InvalidArgumentError: none, or one name for two.
    """
    if isinstance(layers, (str, nn.Module)) or not isinstance(layers, (Sequence, Mapping)):
        found = f"the string {layers!r}" if isinstance(layers, str) else f"a {type(layers).__name__}"
        raise InvalidTypeError(
            f"layers is {found}; wanted a list of dotted names such as ['0', '2'] (see model.named_modules()), a list "
            "of modules, or a dict from names to such."
        )
    pairs = (
        [*layers.items()]
        if isinstance(layers, Mapping)
        else [(_default_name(one, i), one) for i, one in enumerate(layers)]
    )
    for name, layer in pairs:
        if not isinstance(name, str) or not isinstance(layer, (str, nn.Module)):
            raise InvalidTypeError(
                f"layers holds {name!r}: {type(layer).__name__}; wanted dotted names or modules of the model."
            )
    if not pairs or len(dict(pairs)) < len(pairs):
        raise InvalidArgumentError(f"layers holds {[name for name, _ in pairs]}; wanted at least one, each once.")
    return dict(pairs)


def _default_name(layer: Any, position: int) -> Any:
    return layer if isinstance(layer, str) else f"layer {position + 1}"


def find_layers(model: Any, layers: Mapping[str, str | nn.Module]) -> dict[str, nn.Module]:
    """The modules of this model that are meant.

    Raises:
        InvalidTypeError: the model is no module.
        LayerNotExecutedError: the model has no such layer.
    """
    if not isinstance(model, nn.Module):
        raise InvalidTypeError(f"model is a {type(model).__name__}; wanted the torch.nn.Module whose layers are read.")
    known = dict(model.named_modules())
    inside = set(known.values())
    found = {}
    for name, layer in layers.items():
        module = known.get(layer) if isinstance(layer, str) else layer
        if module is None or module not in inside:
            raise LayerNotExecutedError(
                f"{name!r} is no layer of this {type(model).__name__}, whose layers are {[*known][1:]}. To record "
                "several models, pass dotted names, which fit each of them."
            )
        found[name] = module
    return found


def layer_outputs(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    x: Tensor,
    additional_forward_args: Any = None,
    internal_batch_size: int | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """What the layers return for each row of x, in evaluation mode, without gradients.

    Args:
        model (nn.Module): is left as it was: mode, hooks, buffers.
        layers (Mapping[str, nn.Module]): modules of the model by name.
        x (Tensor): (n, ...), on the model's device.
        additional_forward_args (Any, optional): further arguments; tensors with n rows are cut with x. Default: None.
        internal_batch_size (int, optional): rows of one forward pass. Default: None, all.
        seed (int, optional): of a forward pass that draws from the global generators, which are left alone.

    Returns:
        dict[str, Tensor]: (n, d) for each layer, flattened.

    Raises:
        CaptumIBAError: a layer does not run, runs twice, returns no single tensor or not n rows, or a value is NaN.
    """
    more = _as_tuple(additional_forward_args)
    n, size = len(x), internal_batch_size or len(x)
    parts: dict[str, list[Tensor]] = {name: [] for name in layers}
    with torch.no_grad(), evaluation(model), OwnRandomState(seed).entered():
        for start in range(0, n, size):
            cut = slice(start, start + size)
            with recorded(layers) as outputs:
                model(x[cut], *(_cut(arg, cut, n) for arg in more))
            for name in layers:
                parts[name].append(rows_of(name, outputs, len(x[cut])))
    return {name: finite(name, torch.cat(tensors)) for name, tensors in parts.items()}


def _cut(arg: Any, cut: slice, n: int) -> Any:
    return arg[cut] if isinstance(arg, Tensor) and arg.ndim > 0 and len(arg) == n else arg


def _as_tuple(additional_forward_args: Any) -> tuple[Any, ...]:
    if additional_forward_args is None:
        return ()
    return additional_forward_args if isinstance(additional_forward_args, tuple) else (additional_forward_args,)


def rows_of(name: str, outputs: Mapping[str, Tensor], n: int) -> Tensor:
    """What a layer returned, a row for each of n inputs: (n, d).

    Raises:
        LayerNotExecutedError: it did not run.
        MismatchedArgumentsError: another number of rows.
    """
    if name not in outputs:
        raise LayerNotExecutedError(f"Layer {name!r} did not run in the forward pass. Take a layer that does.")
    tensor = outputs[name]
    if tensor.ndim == 0 or len(tensor) != n:
        raise MismatchedArgumentsError(
            f"Layer {name!r} returned shape {tuple(tensor.shape)} for {n} inputs; wanted a row for each input. Take a "
            "layer whose output has the batch as its first dimension."
        )
    return tensor.reshape(n, -1)


def _single_tensor(name: str, output: Any) -> Tensor:
    """The one floating-point tensor that a layer returns, alone or in a tuple with what is no tensor.

    Raises:
        NoTensorError: none or several.
    """
    members = output if isinstance(output, (tuple, list)) else [output]
    tensors = [one for one in members if isinstance(one, Tensor) and one.is_floating_point()]
    if len(tensors) != 1:
        raise NoTensorError(
            f"Layer {name!r} returns a {type(output).__name__} with {len(tensors)} floating-point tensors; wanted "
            "one. Take a layer inside it that returns one tensor, or an nn.Identity that the tensor of interest passes."
        )
    return tensors[0]


def finite(name: str, rows: Tensor) -> Tensor:
    """The rows of a layer, if all their values are numbers.

    Raises:
        NonFiniteError: one is not.
    """
    if not bool(rows.isfinite().all()):
        bad = int((~rows.isfinite()).any(dim=1).nonzero()[0])
        raise NonFiniteError(f"Layer {name!r} has a NaN or an infinity for input {bad}. Has the training diverged?")
    return rows


@contextmanager
def recorded(
    layers: Mapping[str, nn.Module], change: Callable[[str, Any], Any] | None = None
) -> Iterator[dict[str, Tensor]]:
    """Collect the tensors that layers return while this is open; a layer that runs twice is an error.

    Args:
        layers (Mapping[str, nn.Module]): modules by name.
        change (Callable, optional): makes what goes on from ``(name, output)``. Default: None, the output itself.

    Raises:
        LayerReusedError: a layer ran twice.
        NoTensorError: it returned no single tensor.
    """
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            if name in outputs:
                raise LayerReusedError(
                    f"Layer {name!r} ran more than once in one forward pass, so it has no single output. Give each use "
                    "a module of its own."
                )
            changed = None if change is None else change(name, output)
            # what follows in place would change it
            outputs[name] = _single_tensor(name, output).detach().clone()
            return changed

        return hook

    handles = []
    try:
        for name, module in layers.items():
            handles.append(module.register_forward_hook(keep(name)))
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
