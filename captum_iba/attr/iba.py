"""The bottleneck's information resized to the input, for everything that wants attributions of the input's shape."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from captum_iba._captum import Attribution, TargetType, _format_tensor_into_tuples, log_usage
from captum_iba.attr.layer_iba import LayerIBA
from captum_iba.attr.resize import bits_to_input
from captum_iba.bottleneck.statistics import FeatureStatistics
from captum_iba.errors import InvalidArgumentError


class IBA(Attribution):
    r"""Information Bottleneck Attribution of the input's shape, as GuidedGradCam is to LayerGradCam.

    The bits of :class:`LayerIBA` are resized to the input's grid with their total kept (see
    :func:`captum_iba.attr.resize.bits_to_input`) and shared equally by the channels of a pixel. So the result can be
    given to ``captum.metrics.infidelity`` (with ``normalize=True``, as IBA is not complete), ``sensitivity_max``,
    NoiseTunnel and Captum's plots.

    Args:
        forward_func (Callable): as for :class:`LayerIBA`.
        layer (torch.nn.Module): as for :class:`LayerIBA`.
        device_ids (Sequence[int], optional): as for :class:`LayerIBA`. Default: None.
        statistics (FeatureStatistics, optional): as for :class:`LayerIBA`. Default: None.

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
    ) -> None:
        Attribution.__init__(self, forward_func)
        self.layer = layer
        self.device_ids = device_ids
        self._state = LayerIBA(forward_func, layer, device_ids, statistics)._state

    @classmethod
    def get_name(cls) -> str:
        """Name for progress bars and tables."""
        return "IBA"

    @property
    def layer_iba(self) -> LayerIBA:
        """The layer method behind, sharing statistics with this object."""
        # made anew at each use, because consumers reassign forward_func and layer on this object or on copies of it
        method = LayerIBA(self.forward_func, self.layer, self.device_ids)
        method._state = self._state
        return method

    @property
    def statistics(self) -> FeatureStatistics | None:
        """See :attr:`LayerIBA.statistics`."""
        return self.layer_iba.statistics

    def estimate(self, data: Iterable[Any], *args: Any, **kwargs: Any) -> IBA:
        """Estimate the feature statistics; arguments are those of :meth:`LayerIBA.estimate`."""
        self.layer_iba.estimate(data, *args, **kwargs)
        return self

    def save_statistics(self, path: str | os.PathLike[str]) -> None:
        """See :meth:`LayerIBA.save_statistics`."""
        self.layer_iba.save_statistics(path)

    def load_statistics(self, path: str | os.PathLike[str], attribute_to_layer_input: bool = False) -> IBA:
        """See :meth:`LayerIBA.load_statistics`."""
        self.layer_iba.load_statistics(path, attribute_to_layer_input)
        return self

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object | None = None,
        attribute_to_layer_input: bool = False,
        input_channel_dim: int | None = None,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, ...]:
        """Return the bits each element of the input gives the decision.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): as for :meth:`LayerIBA.attribute`.
            target: as for :meth:`LayerIBA.attribute`. Default: None.
            additional_forward_args (Any, optional): as for :meth:`LayerIBA.attribute`. Default: None.
            attribute_to_layer_input (bool, optional): as for :meth:`LayerIBA.attribute`. Default: False.
            input_channel_dim (int, optional): axis of the inputs' channels: 1, or -1 for (N, H, W, C) and (N, T, D).
                Default: None: 1, and an error where the sizes speak for the last axis.
            **kwargs (Any): the other arguments of :meth:`LayerIBA.attribute`, but for ``attr_dim_summation`` and
                ``return_diagnostics``.

        Returns:
            *Tensor* or *tuple[Tensor, ...]* of **attributions**: bits, each of its input's shape; a tuple for a tuple.
            Several inputs share the bits equally.

        Raises:
            InvalidArgumentError: an input has no spatial relation to the layer's features, or one of the two arguments
                is given.
            CaptumIBAError: everything :meth:`LayerIBA.attribute` raises.
        """
        fixed = {"attr_dim_summation": True, "return_diagnostics": True}
        chosen = sorted(fixed.keys() & kwargs.keys())
        if chosen:
            raise InvalidArgumentError(
                f"{chosen} cannot be chosen: IBA returns bits of the input's shape alone. Use LayerIBA(...).attribute, "
                "and resize_bits for its map."
            )
        kwargs |= fixed
        bits, record = self.layer_iba.attribute(
            inputs, target, additional_forward_args, attribute_to_layer_input, **kwargs
        )
        tensors = _format_tensor_into_tuples(inputs)
        share, axis = bits / len(tensors), record.channel_dim
        resized = tuple(bits_to_input(share, tensor, axis, input_channel_dim) for tensor in tensors)
        return resized if isinstance(inputs, tuple) else resized[0]
