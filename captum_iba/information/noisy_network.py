"""Information in a network that is noisy by itself: Gaussian noise is added to each layer's output and passed on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from captum_iba._evaluation import evaluation
from captum_iba._numbers import assert_integer, assert_number
from captum_iba._random_state import OwnRandomState
from captum_iba.errors import InvalidArgumentError, InvalidTypeError, NoTensorError
from captum_iba.information._layer_outputs import (
    find_layers,
    finite,
    named_layers,
    recorded,
    rows_of,
)
from captum_iba.information.estimate import SATURATED_WITHIN, Estimate, Unit, assert_unit
from captum_iba.information.generators import generator_of
from captum_iba.information.noise_channel import spread_terms


def noisy_network_information(
    model: nn.Module,
    layers: Sequence[str | nn.Module] | Mapping[str, str | nn.Module],
    x: Tensor,
    noise_var: float = 2.5e-3,
    n_draws: int = 2,
    n_inputs: int = 64,
    n_passes: int = 256,
    unit: Unit = "bits",
    seed: int = 0,
    show_progress: bool = False,
) -> dict[str, Estimate]:
    r"""Information of the input about each layer T_l = f_l(T_{l-1}) + noise of a network with noise in every layer.

    In such a network I(X; T_l) is finite and moves with the weights, which is not so in a deterministic one (Goldfeld
    et al. 2019, "Estimating information flow in deep neural networks", sections 3 and 4). It is
    h(T_l) - mean_x h(T_l | X = x). Both are entropies of mixtures of Gaussians around f_l(T_{l-1}), from a noisy pass
    of each input and from ``n_passes`` noisy passes of one input, by :class:`SamplePropagation`. At the first of the
    layers the second is the noise's own entropy, which is exact. Each estimate's data-processing inequality holds up to
    its errors, because the noise is part of the chain.

    Args:
        model (nn.Module): runs in evaluation mode and is left as it was.
        layers (Sequence or Mapping): after which noise is added, in the order in which they run; dotted names or
            modules, usually the activations.
        x (Tensor): (n, ...), the inputs, each as likely as the others.
        noise_var (float, optional): variance of the noise at each layer. Default: 2.5e-3, a deviation of 0.05 for
            hidden units with values in [-1, 1].
        n_draws (int, optional): draws for each centre of a mixture. Default: 2.
        n_inputs (int, optional): number of inputs, taken at random, over which h(T_l | X = x) is averaged. Default: 64.
        n_passes (int, optional): noisy passes of each of these inputs. Default: 256. They cannot resolve more than
            ln n_passes nats of noise that came from the layers before; a warning in the estimate says when they do not.
        unit (str, optional): ``"bits"`` or ``"nats"``. Default: ``"bits"``.
        seed (int, optional): of the noise and of the choice of inputs. Default: 0.
        show_progress (bool, optional): a bar over the passes. Default: False.

    Returns:
        dict[str, Estimate]: by layer. The standard error is that of both means.

    Raises:
        CaptumIBAError: an argument that cannot be used, a layer that does not run or returns no single tensor, a
            NaN or an infinity.

    Examples::

        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2), nn.Tanh())
        >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> found = noisy_network_information(model, ["1", "3"], x, noise_var=0.1, n_inputs=8, n_passes=32)
        >>> [*found], found["1"].unit
        (['1', '3'], 'bits')
    """
    from tqdm.auto import tqdm

    _assert_arguments(x, noise_var, n_draws, n_inputs, n_passes, unit, seed)
    places = find_layers(model, named_layers(layers))
    generator = generator_of(seed)
    chosen = torch.randperm(len(x), generator=generator)[:n_inputs].tolist()
    passes = tqdm([None, *chosen], desc="Noisy passes", disable=not show_progress)
    whole: dict[str, Tensor] = {}
    given: dict[str, list[Tensor]] = {name: [] for name in places}
    for index in passes:
        inputs = x if index is None else x[index : index + 1].expand(n_passes, *x.shape[1:])
        centres = _noisy_pass(model, places, inputs, noise_var**0.5, generator)
        for position, name in enumerate(places):
            if index is None:
                whole[name] = spread_terms(centres[name], noise_var, n_draws, generator)
            elif position > 0:
                given[name].append(spread_terms(centres[name], noise_var, n_draws, generator).mean())
    settings = f"noisy network (noise_var={noise_var}, n_draws={n_draws}, n_inputs={len(chosen)}, n_passes={n_passes})"
    return {name: _difference(whole[name], given[name], n_passes, settings).to(unit) for name in places}


def _noisy_pass(
    model: nn.Module, places: Mapping[str, nn.Module], x: Tensor, deviation: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """What each layer returns before noise is added to it, (n, d)."""

    def with_noise(name: str, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise NoTensorError(
                f"Layer {name!r} returns a {type(output).__name__}, to which no noise can be added; take a layer "
                "inside it that returns a tensor."
            )
        return output + deviation * torch.randn(output.shape, generator=generator).to(output)

    own_state = OwnRandomState(0)
    with torch.no_grad(), evaluation(model), own_state.entered(), recorded(places, with_noise) as outputs:
        model(x)
    return {name: finite(name, rows_of(name, outputs, len(x))) for name in places}


def _difference(whole: Tensor, given: list[Tensor], n_passes: int, settings: str) -> Estimate:
    """Spread of all inputs' centres less the mean spread of one input's."""
    n = len(whole)
    value, variance = whole.mean(), whole.var() / n
    cap = whole.new_tensor(math.log(n))
    met: tuple[str, ...] = ()
    if given:
        spreads = torch.stack(given)
        value = value - spreads.mean()
        variance = variance + (spreads.var() / len(given) if len(given) > 1 else math.inf)
        if float(spreads.mean()) > math.log(n_passes) - SATURATED_WITHIN:
            met = (
                f"{n_passes} noisy passes of one input do not fill the noise that reaches this layer, so the "
                "information is over-estimated; raise n_passes or noise_var.",
            )
    return Estimate(value, variance.sqrt(), n, settings, cap, torch.zeros_like(value), warnings=met)


def _assert_arguments(x: Any, noise_var: Any, n_draws: Any, n_inputs: Any, n_passes: Any, unit: Any, seed: Any) -> None:
    assert_unit(unit)
    assert_number("noise_var", noise_var, lambda value: value > 0, "above 0")
    for name, value, least in (("n_draws", n_draws, 1), ("n_inputs", n_inputs, 2), ("n_passes", n_passes, 2)):
        assert_integer(name, value, least)
    assert_integer("seed", seed, least=0)
    if not isinstance(x, Tensor):
        raise InvalidTypeError(f"x is a {type(x).__name__}; wanted a tensor with a row for each input.")
    if x.ndim == 0 or len(x) < 2:
        raise InvalidArgumentError(f"x has shape {tuple(x.shape)}; wanted at least two inputs, a row each.")
