"""Which axis of a layer's features holds the channels.

Convolutional layers put them first, (B, C, ...), token and linear layers last, (B, ..., C). The layer's type says
which; for blocks and activations, the modules inside them or before them say it, checked against the sizes found.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.modules import activation, batchnorm, conv, pooling

from captum_iba.errors import InvalidArgumentError

_POOLING = tuple(
    kind
    for name, kind in vars(pooling).items()
    if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__ == pooling.__name__
)
_FIRST = (
    conv._ConvNd,
    batchnorm._NormBase,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.Upsample,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    *_POOLING,
)
_LAST = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.Linear,
    nn.Bilinear,
    nn.Embedding,
    nn.RNNBase,
    activation.MultiheadAttention,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
)
# Other libraries' twins of the above (transformers' Conv1D is a linear layer) are told apart by the width they name.
_WIDTHS = (
    "out_channels",
    "num_features",
    "num_channels",
    "out_features",
    "embedding_dim",
    "embed_dim",
    "d_model",
    "nf",
)


def resolve_channel_dim(
    features: Tensor,
    channel_dim: int | None,
    known: int | None,
    layer: nn.Module,
    before: Sequence[nn.Module],
    layer_name: str,
    at_input: bool = False,
) -> int:
    """Find the channel axis.

    Args:
        features (Tensor): the layer's features.
        channel_dim (int, optional): the user's choice, which wins.
        known (int, optional): the choice made when the statistics were estimated.
        layer (nn.Module): the layer.
        before (Sequence[nn.Module]): modules that ran before it, the latest last, for layers that keep the layout.
        layer_name (str): for messages.
        at_input (bool, optional): the features are the layer's input, whose width its type does not name. Default:
            False.

    Returns:
        int: axis, 1 or larger.

    Raises:
        InvalidArgumentError: the choice is not an axis, or there is no telling.
    """
    if features.ndim < 2:
        raise InvalidArgumentError(
            f"{layer_name} gives features of shape {list(features.shape)}, but a bottleneck needs a batch axis and a "
            "feature axis. Choose a layer with features of at least two dimensions."
        )
    if channel_dim is not None:
        if type(channel_dim) is not int or not -features.ndim < channel_dim < features.ndim or channel_dim == 0:
            raise InvalidArgumentError(
                f"channel_dim={channel_dim!r} is no feature axis of {layer_name}, whose features have shape "
                f"{list(features.shape)}. Wanted 1 to {features.ndim - 1}, or a negative axis that is not the batch."
            )
        return channel_dim % features.ndim
    if known is not None and known < features.ndim:
        return known
    if features.ndim == 2:
        return 1
    own = _evidence(layer)
    for evidence in ((own[0], None) if at_input else own, *(_evidence(module) for module in reversed(before))):
        found = _match(evidence, features)
        if found is not None:
            return found
    raise InvalidArgumentError(
        f"channel_dim is ambiguous: {layer_name} gives features of shape {list(features.shape)}, and neither its type "
        "nor the modules around it say where the channels are. Pass channel_dim=1 for (B, C, ...) or channel_dim=-1 "
        "for (B, ..., C)."
    )


def _evidence(module: nn.Module) -> tuple[bool | None, int | None]:
    """(channels first?, number of channels) from the last telling module inside; None where it does not say."""
    for inner in reversed(list(module.modules())):
        name = type(inner).__name__
        width = next((getattr(inner, key) for key in _WIDTHS if isinstance(getattr(inner, key, None), int)), None)
        dims = getattr(inner, "dims", None)
        if name == "Permute" and isinstance(dims, (list, tuple)) and len(dims) > 2:  # torchvision's
            last = len(dims) - 1
            return (True if dims[1] == last else False if dims[last] == 1 else None), None
        if isinstance(inner, nn.LayerNorm):
            # torchvision's LayerNorm2d normalises (B, C, H, W) and is a LayerNorm by inheritance
            return name.endswith("2d"), inner.normalized_shape[-1]
        if isinstance(inner, nn.RNNBase):
            return False, inner.hidden_size * (2 if inner.bidirectional else 1)
        if isinstance(inner, _FIRST):
            return True, width
        if isinstance(inner, _LAST) or (width is not None and name in ("Conv1D", "NonDynamicallyQuantizableLinear")):
            return False, width
    return None, None


def _match(evidence: tuple[bool | None, int | None], features: Tensor) -> int | None:
    first, width = evidence
    if first is None:
        return None
    last_axis = features.ndim - 1
    fits_first, fits_last = (width is None or features.shape[axis] == width for axis in (1, last_axis))
    if (fits_first and fits_last) or not (fits_first or fits_last):
        # equal sizes, or a module that changed the width on the way: its type decides
        return 1 if first else last_axis
    return 1 if fits_first else last_axis
