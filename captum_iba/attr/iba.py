"""The bottleneck's information resized to the input, for everything that wants attributions of the input's shape."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from captum_iba._captum import Attribution, TargetType, _format_tensor_into_tuples, log_usage
from captum_iba.attr.layer_iba import LayerIBA
from captum_iba.attr.layer_readout_iba import LayerReadoutIBA
from captum_iba.attr.resize import bits_to_input
from captum_iba.attr.tokens_to_map import Grid
from captum_iba.bottleneck.statistics import FeatureStatistics
from captum_iba.errors import InvalidArgumentError, InvalidTypeError


class IBA(Attribution):
    r"""Information Bottleneck Attribution of the input's shape, as GuidedGradCam is to LayerGradCam.

    The bits of :class:`LayerIBA`, or of a trained :class:`LayerReadoutIBA`, are resized to the input's grid with their
    total kept (see :func:`captum_iba.attr.resize.bits_to_input`) and shared equally by the channels of a pixel. So the
    result can be given to ``captum.metrics.infidelity`` (with ``normalize=True``, as IBA is not complete),
    ``sensitivity_max``, NoiseTunnel and Captum's plots.

    Args:
        forward_func (Callable): as for :class:`LayerIBA`.
        layer (torch.nn.Module): as for :class:`LayerIBA`.
        device_ids (Sequence[int], optional): as for :class:`LayerIBA`. Default: None.
        statistics (FeatureStatistics, optional): as for :class:`LayerIBA`. Default: None.
        method (LayerIBA or LayerReadoutIBA, optional): whose bits they are, of the same model and layer. Default: None,
            a new :class:`LayerIBA`.

    Raises:
        InvalidTypeError: a method of another kind.
        InvalidArgumentError: statistics beside a method, which has its own.

    Examples::

        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), nn.Flatten(), nn.Linear(64, 3)).eval()
        >>> iba = IBA(model, model[0]).estimate(torch.randn(1000, 3, 8, 8))
        >>> iba.attribute(torch.randn(2, 3, 8, 8), target=1).shape
        torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        device_ids: Sequence[int] | None = None,
        statistics: FeatureStatistics | None = None,
        method: LayerIBA | LayerReadoutIBA | None = None,
    ) -> None:
        if method is not None and not isinstance(method, (LayerIBA, LayerReadoutIBA)):
            raise InvalidTypeError(f"method is a {type(method).__name__}; wanted a LayerIBA or a LayerReadoutIBA.")
        if method is not None and statistics is not None:
            raise InvalidArgumentError("statistics and method are both there; the method has statistics of its own.")
        Attribution.__init__(self, forward_func)
        self.layer = layer
        self.device_ids = device_ids
        self._method = LayerIBA(forward_func, layer, device_ids, statistics) if method is None else method

    @classmethod
    def get_name(cls) -> str:
        """Name for progress bars and tables."""
        return "IBA"

    @property
    def layer_iba(self) -> LayerIBA | LayerReadoutIBA:
        """The layer method behind, sharing what it has learned with this object."""
        # made anew at each use, because consumers reassign forward_func and layer on this object or on copies of it
        method = copy.copy(self._method)
        method.forward_func, method.layer = self.forward_func, self.layer
        if self.device_ids is not None:
            method.device_ids = list(self.device_ids)
        return method

    @property
    def statistics(self) -> FeatureStatistics | dict[str, FeatureStatistics] | None:
        """See :attr:`LayerIBA.statistics` and :attr:`LayerReadoutIBA.statistics`."""
        return self.layer_iba.statistics

    def estimate(self, data: Iterable[Any], *args: Any, **kwargs: Any) -> IBA:
        """Estimate the feature statistics; arguments are those of :meth:`LayerIBA.estimate`."""
        self.layer_iba.estimate(data, *args, **kwargs)
        return self

    def save_statistics(self, path: str | os.PathLike[str]) -> None:
        """See :meth:`LayerIBA.save_statistics`."""
        self._per_sample().save_statistics(path)

    def load_statistics(self, path: str | os.PathLike[str], attribute_to_layer_input: bool = False) -> IBA:
        """See :meth:`LayerIBA.load_statistics`."""
        self._per_sample().load_statistics(path, attribute_to_layer_input)
        return self

    def _per_sample(self) -> LayerIBA:
        method = self.layer_iba
        if isinstance(method, LayerReadoutIBA):
            raise InvalidTypeError(
                "The method is a LayerReadoutIBA, whose files hold its network too: use its save and load."
            )
        return method

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object | None = None,
        attribute_to_layer_input: bool = False,
        input_channel_dim: int | None = None,
        grid: Grid | None = None,
        n_prefix: int | None = None,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, ...]:
        """Return the bits each element of the input gives the decision.

        At a token layer of a vision transformer, the patches' bits are resized as the map that they are. The tokens
        before them, such as the class token, have no place in the image, and their bits are left out:
        ``tokens_to_map(iba.layer_iba.attribute(...)).prefix`` has them.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): as for :meth:`LayerIBA.attribute`.
            target: as for :meth:`LayerIBA.attribute`. Default: None.
            additional_forward_args (Any, optional): as for :meth:`LayerIBA.attribute`. Default: None.
            attribute_to_layer_input (bool, optional): as for :meth:`LayerIBA.attribute`. Default: False.
            input_channel_dim (int, optional): axis of the inputs' channels: 1, or -1 for (N, H, W, C) and (N, T, D).
                Default: None: 1, and an error where the sizes speak for the last axis.
            grid (tuple[int, int], optional): rows and columns of a vision transformer's patches. Default: None: found
                from their number and the image's sides, see :func:`captum_iba.attr.tokens_to_map.tokens_to_map`.
            n_prefix (int, optional): number of tokens before the patches. Default: None: found, as the fewest.
            **kwargs (Any): the other arguments of the method's ``attribute``, but for ``attr_dim_summation`` and
                ``return_diagnostics``.

        Returns:
            *Tensor* or *tuple[Tensor, ...]* of **attributions**: bits, each of its input's shape; a tuple for a tuple.
            Several inputs share the bits equally.

        Raises:
            InvalidArgumentError: an input has no spatial relation to the layer's features, the tokens fit no grid, or
                one of the two arguments is given.
            CaptumIBAError: everything :meth:`LayerIBA.attribute` raises.
        """
        chosen = sorted({"attr_dim_summation", "return_diagnostics"} & kwargs.keys())
        if chosen:
            raise InvalidArgumentError(
                f"{chosen} cannot be chosen: IBA returns bits of the input's shape alone. Use the layer method's "
                "attribute, and resize_bits for its map."
            )
        method: Any = self.layer_iba
        arguments = (inputs, target, additional_forward_args, attribute_to_layer_input)
        if isinstance(method, LayerReadoutIBA):
            bits, axis = method.attribute(*arguments, **kwargs), method.channel_dim(attribute_to_layer_input)
        else:
            bits, record = method.attribute(*arguments, return_diagnostics=True, **kwargs)
            axis = record.channel_dim
        tensors = _format_tensor_into_tuples(inputs)
        share = bits / len(tensors)
        layout = (input_channel_dim, grid, n_prefix)
        resized = tuple(bits_to_input(share, tensor, axis, *layout) for tensor in tensors)
        return resized if isinstance(inputs, tuple) else resized[0]
