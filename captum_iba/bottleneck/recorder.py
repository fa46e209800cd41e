"""Keeps what the modules before a layer computed, as far as anything but these modules will need it again.

Of a chain of blocks, a replay needs no output but the last: each block takes the one before it, and does not run. So an
output is let go of as soon as the model itself has let go of it, unless code outside of the replayed modules computed
with it. Where it stood, NaN stands, so that a pass that needs it after all fails.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from captum_iba.bottleneck.containers import leaves_in, map_tensors

if TYPE_CHECKING:
    from captum_iba.bottleneck.replay import Site

# what a tensor in place of another one, of its shape, type and device, says as well
_METADATA = frozenset(
    {"__len__", "dim", "size", "numel", "stride", "is_floating_point", "is_complex", "nelement", "ndimension"}
)


@dataclass
class RecordedCall:
    """One module's run.

    Attributes:
        module (nn.Module): the module.
        output (Any): what it returned, in copies.
        changed_in_place (bool): what follows works in place on it.
    """

    module: nn.Module
    output: Any
    changed_in_place: bool = False

    def hand_out(self, copy: bool) -> Any:
        """The output in containers made anew, since whoever gets a list may append to it."""
        return map_tensors(lambda tensor: tensor.clone() if copy and not _is_empty(tensor) else tensor, self.output)

    def forget(self, number: int) -> None:
        """Let go of one of the output's tensors."""
        gone = [leaf for leaf in leaves_in(self.output) if isinstance(leaf, Tensor)][number]
        self.output = map_tensors(lambda tensor: _emptied(tensor) if tensor is gone else tensor, self.output)


def _emptied(tensor: Tensor) -> Tensor:
    return torch.full((), float("nan"), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)


def _is_empty(tensor: Tensor) -> bool:
    return tensor.numel() > 1 and not any(tensor.stride())


@dataclass(eq=False)
class _Original:
    """A tensor that the model goes on with, and the copies that were made of it."""

    copies: list[tuple[Site, RecordedCall, int]]
    needed_by: set[Any] = field(default_factory=set)
    reference: Any = None


class Recorder:
    """Keeps the outputs of the outermost modules that finish before each site does.

    Args:
        sites (Sequence[Site]): layers and sides.
        roots (Sequence[nn.Module]): modules whose descendants may be replayed.
    """

    def __init__(self, sites: Sequence[Site], roots: Sequence[nn.Module]) -> None:
        self._replayable = {site: {m for root in roots for m in _replayable(root, site)} for site in sites}
        every = dict.fromkeys(module for root in roots for module in root.modules())
        self.modules = [module for module in every if any(module in own for own in self._replayable.values())]
        self.taken: dict[Site, Tensor] = {}
        self.calls: dict[Site, list[RecordedCall]] = {site: [] for site in sites}
        self._running: list[nn.Module] = []
        self._originals: dict[int, _Original] = {}
        self._watches = not any(_is_compiled(module) for module in every)

    def recorder(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A forward that keeps its output."""

        def record(*args: Any, **kwargs: Any) -> Any:
            self._running.append(module)
            try:
                output = forward(*args, **kwargs)
            finally:
                self._running.pop()
            takers = [site for site in self.calls if self._is_replayed(module, site) and not self._is_inside(site)]
            if takers:
                self._keep(module, output, takers)
            return output

        return record

    def take(self, site: Site, features: Tensor) -> None:
        """Keep a site's features."""
        with torch._C.DisableTorchFunction():
            self.taken[site] = features.detach().clone()

    def watching(self) -> Any:
        """A context around the pass, which notes what code outside of the modules computes with."""
        return _watched(self) if self._watches else nullcontext()

    def touch(self, values: Any) -> None:
        """Note that torch computes with these values now."""
        for leaf in leaves_in(values):
            original = self._originals.get(id(leaf)) if isinstance(leaf, Tensor) else None
            if original is not None:
                original.needed_by |= {site for site, _, _ in original.copies if not self._is_inside(site)}

    def _keep(self, module: nn.Module, output: Any, takers: Sequence[Site]) -> None:
        with torch._C.DisableTorchFunction():  # which is no use that the model makes of it
            kept = map_tensors(torch.clone, output)  # a copy, because the next module may work in place
        calls = {site: RecordedCall(module, kept) for site in takers}
        for site, call in calls.items():
            self.calls[site].append(call)
        if not self._watches:
            return
        tensors = [leaf for leaf in leaves_in(output) if isinstance(leaf, Tensor)]
        for number, tensor in enumerate(tensors):
            if tensor.is_floating_point() and sum(other is tensor for other in tensors) == 1:
                self._follow(tensor, [(site, call, number) for site, call in calls.items()])

    def _follow(self, tensor: Tensor, copies: list[tuple[Site, RecordedCall, int]]) -> None:
        key = id(tensor)
        before = self._originals.get(key)  # a module that returns what it was given
        if before is not None and before.reference() is tensor:
            before.copies += copies
            return
        original = _Original(copies)

        def gone(_reference: Any) -> None:
            if self._originals.pop(key, None) is not original:
                return  # the pass is over
            for site, call, number in original.copies:
                if site not in original.needed_by:
                    call.forget(number)

        original.reference = weakref.ref(tensor, gone)
        self._originals[key] = original

    def finish(self) -> None:
        """Stop following tensors; those that the model still holds stay recorded, whenever it lets go of them."""
        for original in self._originals.values():
            original.copies.clear()
        self._originals.clear()

    def _is_replayed(self, module: nn.Module, site: Site) -> bool:
        return site not in self.taken and module in self._replayable[site]

    def _is_inside(self, site: Site) -> bool:
        """Whether what runs now will not run in a replay."""
        return any(self._is_replayed(module, site) for module in self._running)


class _Mode(TorchFunctionMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (
            torch.compiler.is_compiling()
        ):  # a function of the user's: what it needs is not seen, and the check finds out
            return func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", "")
            is_metadata = name in ("shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_cuda", "names")
        else:
            is_metadata = name in _METADATA
        if not is_metadata:
            self._recorder.touch((args, kwargs or {}))
        return func(*args, **(kwargs or {}))


@contextmanager
def _watched(recorder: Recorder) -> Iterator[None]:
    try:
        with _Mode(recorder):
            yield
    finally:
        recorder.finish()


def _is_compiled(module: nn.Module) -> bool:
    """Whether a module runs as compiled code, which would be compiled anew under a mode."""
    return bool(getattr(module, "_compiled_call_impl", None)) or "_orig_mod" in module._modules


def _replayable(root: nn.Module, site: Site) -> list[nn.Module]:
    """All modules but those around the layer, which must run; of the layer, its output may be given instead."""
    around = {module for module in root.modules() if any(inner is site.layer for inner in module.modules())}
    return [m for m in root.modules() if m not in around or (m is site.layer and not site.at_input)]
