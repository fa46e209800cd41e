"""The repeated blocks of a transformer, found by their place in the model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from captum_iba.errors import InvalidArgumentError, InvalidTypeError


def find_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks of a transformer: the longest row of modules of one kind.

    Args:
        model (torch.nn.Module): the model.

    Returns:
        dict[str, nn.Module]: by dotted name, in order: ``bert.encoder.layer.0`` and so on for BERT, ``transformer.h.0``
        for GPT-2, ``encoder.layers.encoder_layer_0`` for torchvision's ViT.

    Raises:
        InvalidArgumentError: there is no such row.

    Examples::

        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> list(find_blocks(nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)))
        ['layers.0', 'layers.1', 'layers.2']
    """
    rows = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and _is_row(list(module))
    ]
    if not rows:
        raise InvalidArgumentError(
            f"{type(model).__name__} has no row of equal blocks. Name the layers: some of dict(model.named_modules())."
        )
    name, row = max(rows, key=lambda entry: len(entry[1]))
    prefix = f"{name}." if name else ""
    return {f"{prefix}{child}": block for child, block in row.named_children()}


def _is_row(modules: Sequence[nn.Module]) -> bool:
    """Two or more of one kind, each with modules of its own: activations and single layers are no blocks."""
    kinds = {type(module) for module in modules}
    return len(modules) > 1 and len(kinds) == 1 and all(any(True for _ in module.children()) for module in modules)


def named_layers(model: nn.Module, layers: str | Sequence[nn.Module | str]) -> dict[str, nn.Module]:
    """Layers by dotted name.

    Args:
        model (torch.nn.Module): the model.
        layers (str or Sequence): ``"all"`` blocks; or modules and dotted names.

    Raises:
        InvalidArgumentError: one is not in the model, is there twice, or there is none.
        InvalidTypeError: something else.
    """
    if isinstance(layers, str):
        if layers == "all":
            return find_blocks(model)
        layers = [layers]
    if not isinstance(layers, (Sequence, nn.ModuleList)) or not all(isinstance(x, (str, nn.Module)) for x in layers):
        raise InvalidTypeError(
            f"layers is a {type(layers).__name__}; wanted 'all', or a list of modules and dotted names."
        )
    modules = dict(model.named_modules())
    names = {module: name for name, module in modules.items()}
    found: dict[str, nn.Module] = {}
    for layer in layers:
        name = layer if isinstance(layer, str) else names.get(layer)
        if not name or name not in modules or name in found:
            children = ", ".join(child for child in modules if child and "." not in child)
            told = layer if isinstance(layer, str) else type(layer).__name__
            raise InvalidArgumentError(
                f"layers has {told!r}, which is {'there twice' if name in found else 'not in the model'}; its children "
                f"are {children}, and dotted names reach further in."
            )
        found[name] = modules[name]
    if not found:
        raise InvalidArgumentError("layers is empty; wanted at least one, or 'all'.")
    return found
