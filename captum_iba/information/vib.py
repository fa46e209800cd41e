"""The deep variational information bottleneck: a layer that passes on noisy features and says how many bits they hold.

Alemi et al., Deep Variational Information Bottleneck (ICLR 2017); tags, priors per position and the type prior after
Li & Eisner, Specializing Word Embeddings (for Parsing) by Information Bottleneck (EMNLP 2019).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from captum_iba._numbers import assert_integer, assert_number
from captum_iba.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    LayerNotExecutedError,
    MismatchedArgumentsError,
    NonFiniteError,
)
from captum_iba.information.estimate import BITS_PER_NAT, Unit, assert_unit
from captum_iba.information.vib_codes import Code, Distribution, GaussianCode, Prior, TagCode


class VariationalBottleneck(nn.Module):
    r"""Passes on a noisy code of its input and measures, with gradients, how much the code tells of the input.

    A linear encoder gives each example (or token) x a distribution p(z|x). In training, a draw of it goes on; in
    evaluation its mean, unless draws are asked for with :meth:`sampling`. Beside that,

    .. math::

        \mathtt{kl} = KL[p(z_k|x) \,\|\, r(z_k)], \qquad
        \mathtt{rate} = E_x \sum_k \mathtt{kl} = I(X;Z) + KL[p(z) \,\|\, r(z)] \ge I(X;Z),

    with the prior r. Train with :class:`~captum_iba.information.VIBLoss`. Layers before this one are the rest
    of the encoder, layers behind it the decoder.

    Gaussian codes are z = mu + sigma eps with sigma = softplus(rho - 5): the encoder gives 2K numbers, mu and rho. (The
    paper writes a K x K covariance, of which so many numbers make the diagonal.) With ``tags``, each of the K codes is
    one of so many tags; training draws relaxed one-hot vectors (Gumbel-softmax, see :meth:`anneal`), evaluation gives
    the tags' probabilities or, if asked, tags.

    Relation to attribution with an information bottleneck: there, too, the map is the KL of each feature's noisy copy
    from a fixed distribution, and an upper bound on its information. ``kl.sum(-1)`` is this map: (N,) bits of each
    example, (N, T) bits of each token. Here noise and features are learned; there the network is as it was.

    The rate bounds what *draws* tell. A mean, or a relaxed tag, is a real number that can tell more.

    Args:
        in_features (int): size of the input's last axis.
        bottleneck_size (int): number K of codes.
        prior (str, optional): ``"standard"``, N(0, 1) or uniform tags; ``"learned"``, N(m, v^2) or softmax weights,
            trained with the rest, which tightens the bound on I(X;Z) but settles more slowly where beta nearly closes
            the bottleneck. Default: ``"standard"`` (Alemi et al.).
        tags (int, optional): number of tags; Li & Eisner use 128, with ``bottleneck_size=1``. Default: None, Gaussian.
        n_samples (int, optional): draws of each example in training. Several get a leading axis. Default: 1 (Alemi
            et al.; Li & Eisner use 5).
        n_positions (int, optional): a learned prior for each of so many first positions of (N, T, in_features).
            Default: None, one for all.
        type_features (int, optional): size of context-free embeddings, for a second encoder s(z|type), which begins as
            the standard prior, and :attr:`type_kl`. Default: None, none.
        temperature (tuple[float, float], optional): of relaxed tags, at the beginning and the end of training.
            Default: (5.0, 0.5) (Li & Eisner).
        unit (str, optional): of ``kl``, ``type_kl`` and ``rate``; ``"bits"`` or ``"nats"``. Default: ``"bits"``.
        generator (torch.Generator, optional): of the draws. Default: None, torch's global generator, as
            :class:`torch.nn.Dropout`, so that ``torch.manual_seed`` and saved random states cover this layer too.

    Attributes:
        out_features (int): size of the output's last axis: K, with tags K * tags.

    Shape:
        - Input: (N, \*, in_features), floating point.
        - Output: (N, \*, out_features), or with draws ahead (n_samples, N, \*, out_features).

    Raises:
        InvalidArgumentError: an argument is out of range or goes with no other one given.

    Examples::

        >>> import torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> bottleneck = VariationalBottleneck(20, 8)
        >>> model = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), bottleneck, nn.Linear(8, 3))
        >>> model(torch.randn(5, 4)).shape, bottleneck.kl.shape, bottleneck.rate.shape
        (torch.Size([5, 3]), torch.Size([5, 8]), torch.Size([]))
        >>> with model.eval()[2].sampling(12):
        ...     model(torch.randn(5, 4)).shape
        torch.Size([12, 5, 3])

        The average of the weights during training, which Alemi et al. evaluate, is torch's own:

        >>> from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
        >>> averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
        >>> averaged.update_parameters(model)  # after each step of the optimizer
    """

    def __init__(
        self,
        in_features: int,
        bottleneck_size: int,
        prior: Prior = "standard",
        tags: int | None = None,
        n_samples: int = 1,
        n_positions: int | None = None,
        type_features: int | None = None,
        temperature: tuple[float, float] = (5.0, 0.5),
        unit: Unit = "bits",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = {"in_features": in_features, "bottleneck_size": bottleneck_size, "n_samples": n_samples}
        optional = {"n_positions": n_positions, "type_features": type_features}
        for name, value in (sizes | {key: value for key, value in optional.items() if value is not None}).items():
            assert_integer(name, value)
        assert_unit(unit)
        self.in_features, self.bottleneck_size, self.n_samples = in_features, bottleneck_size, n_samples
        self.n_positions, self.type_features, self.tags = n_positions, type_features, tags
        self.unit, self.generator = unit, generator
        self.temperature_range = temperature
        self.code = _make_code(bottleneck_size, prior, tags, n_positions, temperature)
        self.out_features = self.code.out_features
        self.encoder = nn.Linear(in_features, self.code.n_parameters)
        self.type_encoder = None if type_features is None else self._make_type_encoder(type_features)
        self._asked: int | None = None
        self._kl: Tensor | None = None
        self._type_kl: Tensor | None = None

    def forward(self, x: Tensor, mask: Tensor | None = None, types: Tensor | None = None) -> Tensor:
        r"""Code the input.

        Args:
            x (Tensor): (N, \*, in_features).
            mask (Tensor, optional): (N, \*), 1 or True where x is real, 0 at padding. Padding has no information, gives
                zeros and gets no gradient, whatever it holds. Default: None, all is real.
            types (Tensor, optional): (N, \*, type_features), the tokens' context-free embeddings. Default: None.

        Returns:
            Tensor: (N, \*, out_features), or with draws ahead (n_samples, N, \*, out_features): in training if
            ``n_samples`` is larger than one, in :meth:`sampling` always.

        Raises:
            InvalidTypeError: x or types is no tensor of floating point, or of another precision than the weights
                (outside of autocast), or mask is of floating point.
            MismatchedArgumentsError: shapes that do not fit, or types without a second encoder, or the reverse.
            NonFiniteError: the information is NaN or infinite, as x or the weights are.
        """
        real = self._checked(x, mask, types)
        parameters = self._encoded(self.encoder, x, real)
        found = self.code.distribution(_at_least_float32(parameters))
        length = None if self.n_positions is None else x.shape[1]
        self._kl = self._measured(found, self.code.prior(length), real)
        self._type_kl = None
        if types is not None and self.type_encoder is not None:
            by_type = self.code.distribution(_at_least_float32(self._encoded(self.type_encoder, types, real)))
            self._type_kl = self._measured(found, by_type, real)
        code = self._coded(found).to(parameters.dtype)
        return code if real is None else code.masked_fill(~real.unsqueeze(-1), 0.0)

    @property
    def kl(self) -> Tensor:
        r"""Information of each code in the last forward pass, (N, \*, K), in ``unit``, with gradients; 0 at padding.

        Raises:
            LayerNotExecutedError: there was none.
        """
        if self._kl is None:
            raise LayerNotExecutedError("The bottleneck has not run yet; call it, or the model that holds it, first.")
        return self._kl

    @property
    def type_kl(self) -> Tensor:
        r"""KL[p(z|x) || s(z|type)] of the last forward pass, (N, \*, K), in ``unit``, with gradients; 0 at padding.

        Summed over the codes it bounds, on average, what z tells of x beyond the token's type, I(Z; X | type).

        Raises:
            LayerNotExecutedError: the last forward pass had no types.
        """
        if self._type_kl is None:
            raise LayerNotExecutedError("No types were given yet; construct with type_features and call with types.")
        return self._type_kl

    @property
    def rate(self) -> Tensor:
        """Information of an example, all its codes together, averaged over the last batch: a 0-dimensional tensor."""
        return self.kl.flatten(1).sum(dim=1).mean()

    @contextmanager
    def sampling(self, n_samples: int) -> Iterator[None]:
        """Draw instead of giving the mean, also in evaluation; the output has a leading axis of the draws, always.

        Average the *probabilities* of the decoder over the draws, with
        :func:`~captum_iba.information.mean_probabilities`; Alemi et al. take 12. Works from outside of the
        model that holds the bottleneck, whose layers behind it must accept the additional axis, as linear ones do.

        Args:
            n_samples (int): number of draws.
        """
        assert_integer("n_samples", n_samples)
        before, self._asked = self._asked, n_samples
        try:
            yield
        finally:
            self._asked = before

    def anneal(self, progress: float) -> float:
        """Set the temperature of relaxed tags; call it as training goes on.

        Args:
            progress (float): share of the training that is done, 0 to 1. In between, the temperature falls by the same
                factor for the same share.

        Returns:
            float: the temperature.

        Raises:
            InvalidArgumentError: out of range, or a bottleneck without tags.
        """
        if not isinstance(self.code, TagCode):
            raise InvalidArgumentError("Only tags have a temperature; construct the bottleneck with tags.")
        assert_number("progress", progress, lambda value: 0 <= value <= 1, "from 0 to 1")
        first, last = self.temperature_range
        value = float(first * (last / first) ** progress)
        self.code.temperature.fill_(value)
        return value

    def extra_repr(self) -> str:
        """Sizes, and what differs from the default."""
        shown = ("tags", "n_positions", "type_features")
        more = "".join(f", {name}={value}" for name in shown if (value := getattr(self, name)) is not None)
        return f"{self.in_features}, {self.bottleneck_size}{more}, n_samples={self.n_samples}, unit={self.unit!r}"

    def __getstate__(self) -> dict[str, Any]:
        # informations belong to a forward pass; with their graph, they could not be copied
        return self.__dict__ | {"_kl": None, "_type_kl": None, "_asked": None}

    def _make_type_encoder(self, type_features: int) -> nn.Linear:
        # It is what codes are measured against, and begins as the standard prior. Begun with the deviations of 0.0067
        # that the encoder has, a code 1 away would be at (1 / 0.0067)^2 / 2 = 11 000 nats; Adam remembers the size of
        # such gradients for a thousand steps, in which nothing would be learned.
        encoder = nn.Linear(type_features, self.code.n_parameters)
        with torch.no_grad():
            encoder.weight.zero_()
            encoder.bias.copy_(self.code.standard_parameters())
        return encoder

    def _encoded(self, encoder: nn.Linear, values: Tensor, real: Tensor | None) -> Tensor:
        # padding may hold anything, also NaN
        encoded: Tensor = encoder(values if real is None else values.masked_fill(~real.unsqueeze(-1), 0.0))
        return encoded

    def _measured(self, found: Distribution, reference: Distribution, real: Tensor | None) -> Tensor:
        kl = found.divergence(reference)
        if not bool(kl.detach().isfinite().all()):
            raise NonFiniteError(
                "The information is NaN or infinite: the input holds such numbers, or training has diverged. Check the "
                "input, or train with a lower learning rate."
            )
        kl = kl * (BITS_PER_NAT if self.unit == "bits" else 1.0)
        return kl if real is None else kl.masked_fill(~real.unsqueeze(-1), 0.0)

    def _coded(self, found: Distribution) -> Tensor:
        if self._asked is not None:
            return found.draw(self._asked, self.generator, self.training)
        if not self.training:
            return found.mean()
        draws = found.draw(self.n_samples, self.generator, True)
        return draws if self.n_samples > 1 else draws[0]

    def _checked(self, x: Tensor, mask: Tensor | None, types: Tensor | None) -> Tensor | None:
        """Whether all fits together; the mask as bool."""
        _assert_features("x", x, self.in_features, self.encoder)
        if self.n_positions is not None and (x.ndim != 3 or x.shape[1] > self.n_positions):
            raise MismatchedArgumentsError(
                f"x has shape {tuple(x.shape)}; wanted (N, T, {self.in_features}) with at most {self.n_positions} "
                "positions, as the prior has one for each (n_positions)."
            )
        if (types is None) != (self.type_features is None):
            raise MismatchedArgumentsError(
                f"types is {'not ' if types is None else ''}given and type_features={self.type_features}; wanted "
                "types at each call of a bottleneck that was constructed with type_features, and only there."
            )
        if types is not None and self.type_features is not None:
            _assert_features("types", types, self.type_features, self.type_encoder)
            if types.shape[:-1] != x.shape[:-1]:
                raise MismatchedArgumentsError(
                    f"types has shape {tuple(types.shape)}; wanted {(*x.shape[:-1], self.type_features)}, as x has "
                    f"{tuple(x.shape)}."
                )
        if mask is None:
            return None
        if not isinstance(mask, Tensor) or mask.is_floating_point():
            found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise InvalidTypeError(f"mask is {found}; wanted a tensor of bool or integers, 1 where x is real.")
        if mask.shape != x.shape[:-1]:
            raise MismatchedArgumentsError(
                f"mask has shape {tuple(mask.shape)}; wanted {tuple(x.shape[:-1])}, as x has {tuple(x.shape)}."
            )
        return mask.to(device=x.device, dtype=torch.bool)


def _make_code(
    size: int, prior: Prior, tags: int | None, n_positions: int | None, temperature: tuple[float, float]
) -> Code:
    if prior not in ("standard", "learned"):
        raise InvalidArgumentError(f'prior={prior!r}; wanted "standard" or "learned".')
    if n_positions is not None and prior != "learned":
        raise InvalidArgumentError(f'n_positions={n_positions} and prior={prior!r}; wanted prior="learned" with it.')
    if tags is None:
        return GaussianCode(size, prior, n_positions)
    assert_integer("tags", tags, least=2)
    if not isinstance(temperature, (tuple, list)) or len(temperature) != 2:
        raise InvalidArgumentError(f"temperature={temperature!r}; wanted two numbers, of the beginning and the end.")
    for value in temperature:
        assert_number("temperature", value, lambda number: number > 0, "above 0")
    return TagCode(size, tags, prior, n_positions, float(temperature[0]))


def _at_least_float32(parameters: Tensor) -> Tensor:
    # informations of 16 bits would be rounded to percents
    return parameters.float() if parameters.dtype in (torch.float16, torch.bfloat16) else parameters


def _assert_features(name: str, value: Any, size: int, encoder: nn.Module | None) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        found = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise InvalidTypeError(f"{name} is {found}; wanted a tensor of floating point.")
    if value.ndim < 2 or value.shape[-1] != size or value.numel() == 0:
        raise MismatchedArgumentsError(
            f"{name} has shape {tuple(value.shape)}; wanted (N, ..., {size}) with at least one example."
        )
    weight = getattr(encoder, "weight", None)  # quantised layers may have none, or one of integers
    if isinstance(weight, Tensor) and weight.is_floating_point() and not _go_together(value, weight):
        raise InvalidTypeError(
            f"{name} is {value.dtype} and the bottleneck's weights are {weight.dtype}; wanted one precision. Convert "
            f"the input, {name}.to({weight.dtype}), or the model."
        )


def _go_together(value: Tensor, weight: Tensor) -> bool:
    if value.dtype == weight.dtype:
        return True
    # autocast leaves float64 as it is
    return torch.float64 not in (value.dtype, weight.dtype) and torch.is_autocast_enabled(value.device.type)
