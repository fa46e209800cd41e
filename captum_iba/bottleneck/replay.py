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

import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from captum_iba.bottleneck.containers import find_features, leaves_in, map_tensors, replace_features
from captum_iba.bottleneck.recorder import RecordedCall, Recorder
from captum_iba.errors import LayerNotExecutedError, LayerReusedError

Call = Callable[[], Any]


class LayerReached(BaseException):
    """Stops a forward pass at the layer; no ``except Exception`` of a model may swallow it."""


class ReplayFailed(Exception):
    """The forward pass took another way than the recorded one."""


@dataclass(frozen=True)
class Site:
    """Where the bottleneck sits.

    Attributes:
        layer (nn.Module): the layer.
        name (str): its name, for messages; two sites are the same whatever they are called.
        at_input (bool): at the layer's input rather than its output.
    """

    layer: nn.Module
    name: str = field(compare=False)
    at_input: bool = False

    @property
    def side(self) -> str:
        """``"input"`` or ``"output"``."""
        return "input" if self.at_input else "output"

    def hook(self, exchange: Callable[[Any], Any]) -> RemovableHandle:
        """Register ``exchange(container) -> container`` at the layer's output or input.

        At the input, positional arguments are searched first, then keywords. A tensor that is passed several times, as
        to self-attention, is exchanged everywhere.
        """
        if not self.at_input:
            return self.layer.register_forward_hook(lambda _module, _args, output: exchange(output))

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            is_positional = any(isinstance(a, Tensor) and a.is_floating_point() for a in args) or not kwargs
            old = find_features(args if is_positional else kwargs, self.name, self.side)
            (new,) = exchange((old,))
            args = tuple(new if argument is old else argument for argument in args)
            return args, {key: new if argument is old else argument for key, argument in kwargs.items()}

        return self.layer.register_forward_pre_hook(before, with_kwargs=True)


@dataclass
class _Pass:
    """One forward pass: how often the layer ran, and whether the pass is over.

    Once it is over, the layer can only run to recompute activations that checkpointing did not keep for the backward
    pass; such runs get what the first one got.
    """

    site: Site
    layer_calls: int = 0
    is_over: bool = False

    def note_layer_call(self) -> None:
        self.layer_calls += not self.is_over
        if self.layer_calls > 1:
            raise LayerReusedError(
                f"{self.site.name} ran more than once in one forward pass, so it has no single {self.site.side}. Give "
                "each use a module of its own, or choose a layer that runs once, such as the block around it."
            )

    def finish(self) -> None:
        self.is_over = True
        if self.layer_calls == 0:
            raise LayerNotExecutedError(
                f"The forward pass did not run {self.site.name}. Pass a layer that belongs to the model and that its "
                "forward uses: one of dict(model.named_modules()).values()."
            )


@contextmanager
def forward_pass(site: Site, exchange: Callable[[Any], Any]) -> Iterator[_Pass]:
    """Count the layer's runs in the pass inside, and put what ``exchange`` makes of its features in their place."""
    running = _Pass(site)

    def counted(container: Any) -> Any:
        running.note_layer_call()
        return exchange(container)

    handle = site.hook(counted)
    try:
        with plain_attention():
            yield running
    finally:
        handle.remove()


@contextmanager
def run_with(site: Site, call: Call, z: Tensor) -> Iterator[Any]:
    """Run the whole model with the layer's features replaced by ``z``; the result depends on ``z`` by autograd.

    A context, because the backward pass may recompute parts of the forward pass: take gradients inside.
    """
    with forward_pass(site, lambda container: replace_features(container, z)) as running:
        output = call()
        running.finish()
        yield output


@dataclass
class Recording:
    """One forward pass, and what its prefix computed.

    Attributes:
        site (Site): the layer and its side.
        features (Tensor): the layer's features R, detached.
        output (Any): the model's output; None if the pass stopped at the layer.
    """

    site: Site
    features: Tensor
    output: Any
    _calls: list[RecordedCall] = field(default_factory=list, repr=False)

    @classmethod
    def make(cls, site: Site, call: Call, roots: Sequence[nn.Module], to_the_end: bool = True) -> Recording:
        """Run the model once without gradient and record its prefix.

        Args:
            site (Site): the layer and its side.
            call (Callable): runs the forward pass.
            roots (Sequence[nn.Module]): modules whose descendants may be replayed. With none, nothing is recorded and
                :meth:`run` runs everything.
            to_the_end (bool, optional): False stops at the layer. Default: True.

        Returns:
            Recording: with features and output.

        Raises:
            LayerNotExecutedError: the forward pass does not reach the layer.
            LayerReusedError: the layer runs more than once.
            NoTensorError, IntegerFeaturesError: the layer has no features to take.

        Examples::

            >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
            >>> site = Site(model[1], "1")
            >>> recording = Recording.make(site, lambda: model(torch.ones(4, 2)), [model], to_the_end=False)
            >>> recording.features.shape, recording.modules_before == [model[0]]
            (torch.Size([4, 3]), True)
        """
        return cls.make_all([site], call, roots, to_the_end)[0]

    @classmethod
    def make_all(
        cls, sites: Sequence[Site], call: Call, roots: Sequence[nn.Module], to_the_end: bool = True
    ) -> list[Recording]:
        """A recording for each of several sites, in their order, from a single forward pass; they share what they hold.

        Arguments and errors are those of :meth:`make`; without ``to_the_end`` the pass stops at the last of the sites.
        """
        recorder = Recorder(sites, roots)

        def take(site: Site, container: Any) -> Any:
            recorder.take(site, find_features(container, site.name, site.side))
            if not to_the_end and len(recorder.taken) == len(sites):
                raise LayerReached
            return container

        output = None
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            running = [stack.enter_context(forward_pass(site, functools.partial(take, site))) for site in sites]
            stack.enter_context(_forwards(recorder.modules, recorder.recorder))
            with suppress(LayerReached), recorder.watching():
                output = call()
            for each in running:
                each.finish()
        output = map_tensors(torch.clone, output)
        return [cls(site, recorder.taken[site], output, recorder.calls[site]) for site in sites]

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

    @contextmanager
    def run(self, call: Call, z: Tensor, first_time: bool = False) -> Iterator[Any]:
        """Run the model with ``z`` at the layer and the recorded prefix; a context, as :func:`run_with` is.

        Args:
            call (Callable): the recorded forward pass.
            z (Tensor): replaces the features.
            first_time (bool, optional): hand out copies of everything and note what is changed in place, so that
                later runs copy only that. Default: False.

        Yields:
            Any: the model's output.

        Raises:
            ReplayFailed: the modules did not run in the recorded order, or returned what cannot be handed out twice.
        """
        self._assert_safe()
        position = itertools.count()
        handed_out: list[tuple[RecordedCall, Any]] = []

        def inject(container: Any) -> Any:
            if not running.is_over and next(position) != len(self._calls):
                raise ReplayFailed("the layer ran before all of the recorded prefix did")
            return replace_features(container, z)

        def replayer(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
            def replay(*args: Any, **kwargs: Any) -> Any:
                if running.layer_calls or running.is_over:
                    return forward(*args, **kwargs)
                index = next(position)
                if index >= len(self._calls) or self._calls[index].module is not module:
                    raise ReplayFailed("the modules before the layer ran in another order")
                recorded = self._calls[index]
                output = recorded.hand_out(copy=first_time or recorded.changed_in_place)
                if first_time:
                    handed_out.append((recorded, output))
                return output

            return replay

        replaced = list(dict.fromkeys(recorded.module for recorded in self._calls))
        with forward_pass(self.site, inject) as running, _forwards(replaced, replayer):
            output = call()
            if not running.layer_calls:
                raise ReplayFailed("the layer was not reached")
            running.finish()
            for recorded, copy in handed_out:
                recorded.changed_in_place |= any(t._version > 0 for t in leaves_in(copy) if isinstance(t, Tensor))
            yield output

    def _assert_safe(self) -> None:
        """Objects that are no plain data may change in the run that gets them, unseen."""
        for recorded in self._calls:
            for leaf in leaves_in(recorded.output):
                if not isinstance(leaf, _PLAIN):
                    raise ReplayFailed(f"{type(recorded.module).__name__} returns a {type(leaf).__name__}")


_PLAIN = (Tensor, type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, nn.Module)


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


_attention_lock = threading.Lock()
_attention_users: list[bool] = []


@contextmanager
def plain_attention() -> Iterator[None]:
    """Keep torch's fused transformer kernels out: without gradient they skip submodules, and so the layer's hook.

    The switch is global. Of several threads the first remembers how it stood, and the last one puts it back.
    """
    with _attention_lock:
        _attention_users.append(torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        with _attention_lock:
            enabled = _attention_users.pop()
            if not _attention_users:
                torch.backends.mha.set_fastpath_enabled(enabled)
