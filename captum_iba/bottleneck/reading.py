"""The features of several layers from one forward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_iba.bottleneck.containers import find_features
from captum_iba.bottleneck.replay import LayerReached, Site, forward_pass, plain_attention
from captum_iba.errors import IntegerFeaturesError, NoTensorError


@dataclass(frozen=True)
class Reading:
    """What one forward pass showed.

    Attributes:
        features (list[Tensor]): of each site, in the sites' order, detached.
        output (Any): the model's output; None if the pass stopped at the last of the sites.
    """

    features: list[Tensor]
    output: Any


def read(sites: Sequence[Site], call: Callable[[], Any], to_the_end: bool = False) -> Reading:
    """Run the model once without gradient and take the features of some of its layers.

    Args:
        sites (Sequence[Site]): layers and their sides, each once.
        call (Callable): runs the forward pass.
        to_the_end (bool, optional): False stops as soon as every site was seen. Default: False.

    Returns:
        Reading: features, and output.

    Raises:
        LayerNotExecutedError: the forward pass does not reach one of the layers.
        LayerReusedError: one of them runs more than once.
        NoTensorError, IntegerFeaturesError: one of them has no features to take.

    Examples::

        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4))
        >>> sites = [Site(model[2], "2"), Site(model[0], "0")]
        >>> [list(features.shape) for features in read(sites, lambda: model(torch.ones(5, 2))).features]
        [[5, 4], [5, 3]]
    """
    output = None
    with torch.no_grad(), watch(sites, stop=not to_the_end) as taken, suppress(LayerReached):
        output = call()
    return Reading([taken[site] for site in sites], output)


@contextmanager
def watch(sites: Sequence[Site], stop: bool = False) -> Iterator[dict[Site, Tensor]]:
    """Collect the features of the sites in the one forward pass that runs inside.

    Args:
        sites (Sequence[Site]): layers and their sides.
        stop (bool, optional): end the pass with :class:`LayerReached` once every site was seen. Default: False.

    Yields:
        dict[Site, Tensor]: copies of the features, detached; complete after the pass.
    """
    taken: dict[Site, Tensor] = {}

    def take(site: Site, container: Any) -> Any:
        # a copy, because the next module may work in place
        taken[site] = find_features(container, site.name, site.side).detach().clone()
        if stop and len(taken) == len(sites):
            raise LayerReached
        return container

    with ExitStack() as stack:
        running = [stack.enter_context(forward_pass(site, functools.partial(take, site))) for site in sites]
        yield taken
        for each in running:
            each.finish()


@dataclass(frozen=True)
class Finished:
    """One module's end in a forward pass.

    Attributes:
        module (nn.Module): the module.
        shape (torch.Size or None): of the features in its output, None where there are none.
        is_output (bool): the model returned this very output.
    """

    module: nn.Module
    shape: torch.Size | None
    is_output: bool


def follow(roots: Sequence[nn.Module], call: Callable[[], Any]) -> list[Finished]:
    """Run the model once, without gradient, and note its modules in the order in which they finish.

    Args:
        roots (Sequence[nn.Module]): modules to follow, with their descendants.
        call (Callable): runs the forward pass.

    Returns:
        list[Finished]: inner modules before those around them; a module that runs twice is there twice.

    Examples::

        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> [(tuple(each.shape), each.is_output) for each in follow([model], lambda: model(torch.ones(5, 2)))]
        [((5, 3), False), ((5, 3), True), ((5, 3), True)]
    """
    noted: list[tuple[nn.Module, torch.Size | None, int]] = []

    def note(module: nn.Module, _args: Any, output: Any) -> None:
        shape: torch.Size | None = None
        with suppress(NoTensorError, IntegerFeaturesError):
            shape = find_features(output, type(module).__name__).shape
        noted.append((module, shape, id(output)))

    with ExitStack() as stack, torch.no_grad(), plain_attention():
        for module in dict.fromkeys(module for root in roots for module in root.modules()):
            stack.callback(module.register_forward_hook(note).remove)
        returned = id(output := call())
    # the last ones in a row: earlier outputs are gone, and their identity may have been given to another object
    n_last = next((n for n, entry in enumerate(reversed(noted)) if entry[2] != returned), len(noted))
    del output
    first = len(noted) - n_last
    return [Finished(module, shape, n >= first) for n, (module, shape, _) in enumerate(noted)]
