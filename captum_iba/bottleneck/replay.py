"""Run a model from a layer on: what comes before the layer is computed once and replayed.

The prefix of a forward pass, everything that finishes before the layer does, does not depend on the mask. A
:class:`Recording` keeps the outputs of its outermost modules; :meth:`Recording.run` hands them out again in place of
running these modules, so that only glue code and the layer's successors are computed. This needs no splitting of the
model: functional code between modules, skip connections that pass the layer, modules used again later and layers
nested in blocks all behave as they do in the model's own forward.

Modules are replaced through an instance attribute ``forward`` rather than through hooks, because a hook cannot keep a
module from running, and because the user's own hooks then see what they always see.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from captum_iba.bottleneck.containers import find_features, map_tensors, replace_features, tensors_in
from captum_iba.errors import LayerNotExecutedError, LayerReusedError

Call = Callable[[], Any]


class _LayerReached(BaseException):
    """Stops a forward pass at the layer; no ``except Exception`` of a model may swallow it."""


class ReplayFailed(Exception):
    """The forward pass took another way than the recorded one."""


@dataclass(frozen=True)
class Site:
    """Where the bottleneck sits.

    Attributes:
        layer (nn.Module): the layer.
        name (str): its name, for messages.
        at_input (bool): at the layer's input rather than its output.
    """

    layer: nn.Module
    name: str
    at_input: bool = False

    @property
    def side(self) -> str:
        """``"input"`` or ``"output"``."""
        return "input" if self.at_input else "output"

    def hook(self, exchange: Callable[[Any], Any]) -> RemovableHandle:
        """Register ``exchange(container) -> container`` at the layer's output or input.

        At the input, positional arguments are searched first, then keywords.
        """
        if not self.at_input:
            return self.layer.register_forward_hook(lambda _module, _args, output: exchange(output))

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            if any(isinstance(a, Tensor) and a.is_floating_point() for a in args) or not kwargs:
                return exchange(args), kwargs
            return args, exchange(kwargs)

        return self.layer.register_forward_pre_hook(before, with_kwargs=True)


@contextmanager
def _at_layer(site: Site, exchange: Callable[[Any], Any], call_count: list[int]) -> Iterator[None]:
    def counted(container: Any) -> Any:
        call_count.append(1)
        if len(call_count) > 1:
            raise LayerReusedError(
                f"{site.name} ran more than once in one forward pass, so it has no single {site.side}. Give each use a "
                "module of its own, or choose a layer that runs once, such as the block around it."
            )
        return exchange(container)

    handle = site.hook(counted)
    try:
        yield
    finally:
        handle.remove()


def _assert_executed(site: Site, call_count: list[int]) -> None:
    if not call_count:
        raise LayerNotExecutedError(
            f"The forward pass did not run {site.name}. Pass a layer that belongs to the model and that its forward "
            "uses: one of dict(model.named_modules()).values()."
        )


@torch.no_grad()
def features_at(site: Site, call: Call) -> Tensor:
    """Run the model only as far as the layer and return its features.

    Args:
        site (Site): the layer and its side.
        call (Callable): runs the forward pass.

    Returns:
        Tensor: a detached copy of the features.

    Raises:
        LayerNotExecutedError: the forward pass does not reach the layer.
        NoTensorError, IntegerFeaturesError: the layer has no features to take.

    Examples::

        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> features_at(Site(model[0], "0"), lambda: model(torch.ones(4, 2))).shape
        torch.Size([4, 3])
    """
    taken: list[Tensor] = []

    def take(container: Any) -> Any:
        taken.append(find_features(container, site.name, site.side).detach().clone())
        raise _LayerReached

    call_count: list[int] = []
    with _at_layer(site, take, call_count), _plain_attention():
        try:
            call()
        except _LayerReached:
            return taken[0]
    _assert_executed(site, call_count)
    raise AssertionError("unreachable: the hook stops the pass")  # pragma: no cover


def run_with(site: Site, call: Call, z: Tensor) -> Any:
    """Run the whole model with the layer's features replaced by ``z``; the result depends on ``z`` by autograd."""
    call_count: list[int] = []
    with _at_layer(site, lambda container: replace_features(container, z), call_count), _plain_attention():
        output = call()
    _assert_executed(site, call_count)
    return output


@dataclass
class _RecordedCall:
    module: nn.Module
    output: Any
    changed_in_place: bool = False


@dataclass
class Recording:
    """One forward pass, and what its prefix computed.

    Attributes:
        site (Site): the layer and its side.
        features (Tensor): the layer's features R, detached.
        output (Any): the model's output.
    """

    site: Site
    features: Tensor
    output: Any
    _calls: list[_RecordedCall] = field(default_factory=list, repr=False)

    @classmethod
    def make(cls, site: Site, call: Call, roots: Sequence[nn.Module]) -> Recording:
        """Run the model once without gradient and record its prefix.

        Args:
            site (Site): the layer and its side.
            call (Callable): runs the forward pass.
            roots (Sequence[nn.Module]): modules whose descendants may be replayed. With none, nothing is recorded and
                :meth:`run` runs everything.

        Returns:
            Recording: with features and output.

        Raises:
            LayerNotExecutedError: the forward pass does not reach the layer.
            LayerReusedError: the layer runs more than once.
        """
        calls: list[_RecordedCall] = []
        taken: list[Tensor] = []

        def take(container: Any) -> Any:
            taken.append(find_features(container, site.name, site.side).detach().clone())
            return container

        depth = 0

        def recorder(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
            def record(*args: Any, **kwargs: Any) -> Any:
                nonlocal depth
                if taken:
                    return forward(*args, **kwargs)
                depth += 1
                try:
                    output = forward(*args, **kwargs)
                finally:
                    depth -= 1
                if depth == 0 and not taken:
                    # a copy, because the next module may work in place
                    calls.append(_RecordedCall(module, map_tensors(torch.clone, output)))
                return output

            return record

        call_count: list[int] = []
        replaced = [m for root in roots for m in root.modules() if _may_replay(m, site)]
        with torch.no_grad(), _at_layer(site, take, call_count), _plain_attention(), _forwards(replaced, recorder):
            output = call()
        _assert_executed(site, call_count)
        return cls(site, taken[0], map_tensors(torch.clone, output), calls)

    @property
    def modules_before(self) -> list[nn.Module]:
        """Outermost modules that finished before the layer, in order."""
        return [recorded.module for recorded in self._calls if recorded.module is not self.site.layer]

    @property
    def replays_anything(self) -> bool:
        """Whether there is a prefix to save."""
        return bool(self._calls)

    def release(self) -> None:
        """Let go of the prefix's outputs, once it is known that they will not be replayed."""
        self._calls.clear()

    def run(self, call: Call, z: Tensor, first_time: bool = False) -> Any:
        """Run the model with ``z`` at the layer and the recorded prefix.

        Args:
            call (Callable): the recorded forward pass.
            z (Tensor): replaces the features.
            first_time (bool, optional): hand out copies of everything and note what is changed in place, so that
                later runs copy only that. Default: False.

        Returns:
            Any: the model's output.

        Raises:
            ReplayFailed: the modules did not run in the recorded order.
        """
        position = itertools.count()
        reached: list[int] = []
        handed_out: list[tuple[_RecordedCall, Any]] = []

        def inject(container: Any) -> Any:
            if next(position) != len(self._calls):
                raise ReplayFailed("the layer ran before all of the recorded prefix did")
            return replace_features(container, z)

        def replayer(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
            def replay(*args: Any, **kwargs: Any) -> Any:
                if reached:
                    return forward(*args, **kwargs)
                index = next(position)
                if index >= len(self._calls) or self._calls[index].module is not module:
                    raise ReplayFailed("the modules before the layer ran in another order")
                recorded = self._calls[index]
                if not (first_time or recorded.changed_in_place):
                    return recorded.output
                copy = map_tensors(torch.clone, recorded.output)
                handed_out.append((recorded, copy))
                return copy

            return replay

        replaced = list(dict.fromkeys(recorded.module for recorded in self._calls))
        with _at_layer(self.site, inject, reached), _plain_attention(), _forwards(replaced, replayer):
            output = call()
        if not reached:
            raise ReplayFailed("the layer was not reached")
        for recorded, copy in handed_out:
            recorded.changed_in_place |= any(tensor._version > 0 for tensor in tensors_in(copy))
        return output


def _may_replay(module: nn.Module, site: Site) -> bool:
    """Modules around the layer must run, since the layer runs inside them; at its output, the layer itself need not."""
    if module is site.layer:
        return not site.at_input
    return not any(inner is site.layer for inner in module.modules())


@contextmanager
def _forwards(
    modules: Sequence[nn.Module],
    make: Callable[[nn.Module, Callable[..., Any]], Callable[..., Any]],
) -> Iterator[None]:
    """Replace the forward of modules, and restore exactly what was there."""
    absent = object()
    before = [(module, module.__dict__.get("forward", absent)) for module in dict.fromkeys(modules)]
    try:
        for module, _ in before:
            module.__dict__["forward"] = make(module, module.forward)
        yield
    finally:
        for module, forward in before:
            if forward is absent:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = forward


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Keep torch's fused transformer kernels out: without gradient they skip submodules, and so the layer's hook."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
