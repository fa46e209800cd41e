"""One call of LayerReadoutIBA.attribute."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from captum_iba._captum import TargetType
from captum_iba._warn import Warner
from captum_iba.attr._forward import Forward
from captum_iba.attr._layout import count_far, warn_if_far
from captum_iba.attr._objective import Objective, output_tensor
from captum_iba.attr._problem import Arguments, Problem
from captum_iba.attr._readout import Readout
from captum_iba.attr.diagnostics import IBADiagnostics
from captum_iba.bottleneck.information import BITS_PER_NAT, Mask, information, make_mask
from captum_iba.bottleneck.reading import Reading, read
from captum_iba.bottleneck.replay import Site
from captum_iba.errors import MismatchedArgumentsError, NonFiniteError

# Examples whose mask is computed at once on the CPU: one fits its caches.
_CPU_ROWS = 1


@dataclass(frozen=True)
class Explained:
    """A batch's bits.

    Attributes:
        bits (Tensor): of each element, or of each position, its channels summed.
        mask (Mask or None): that was predicted, where it was asked for.
        inactive_share (float): share of features that never vary.
    """

    bits: Tensor
    mask: Mask | None
    inactive_share: float


class Reader:
    """Reads the features of a batch and predicts its mask.

    Args:
        readout (Readout): trained.
        forward (Forward): the forward pass.
        warner (Warner): remembers the warnings given.
        arguments (Arguments): the call's numbers.
        name (str): of the progress bar; empty for none.
    """

    def __init__(self, readout: Readout, forward: Forward, warner: Warner, arguments: Arguments, name: str) -> None:
        self._readout, self._forward, self._warner = readout, forward, warner
        self._arguments, self._name = arguments, name
        self._rows = arguments.internal_batch_size
        self._objective = partial(Objective, arguments.objective, class_dim=arguments.class_dim, warner=warner)
        self._objective(target=None)  # refuses an unknown objective, with or without a target
        self._n_far, self._n = 0, 0

    def explain(self, target: TargetType, sum_channels: bool, keep_mask: bool) -> Explained:
        """Bits of the whole batch; the target is only checked."""
        rows = self._forward.n_examples if self._rows is None else self._rows
        parts: list[Explained] = []
        outputs = []
        n_parts = -(-self._forward.n_examples // rows)
        for forward in tqdm(self._forward.parts(rows), self._name, n_parts, disable=not self._name):
            reading = self._read(forward, to_the_end=target is not None)
            features = dict(zip(self._readout.sites, reading.features, strict=True))
            outputs.append(reading.output)
            at_once = _CPU_ROWS if forward.device_type == "cpu" else forward.n_examples
            for start in range(0, forward.n_examples, at_once):
                rows_of = {site: values[start : start + at_once] for site, values in features.items()}
                parts.append(self._predict(rows_of, sum_channels, keep_mask))
        warn_if_far(self._n_far, self._n, self._readout.site, self._warner)
        if target is not None:
            self._objective(target=target).check(
                torch.cat([output_tensor(output) for output in outputs]), self._forward.n_examples
            )
        masks = [_tensors(part.mask) for part in parts if part.mask is not None]
        mask = Mask(*(torch.cat(values) for values in zip(*masks, strict=True))) if masks else None
        return Explained(torch.cat([part.bits for part in parts]), mask, parts[0].inactive_share)

    def _read(self, forward: Forward, to_the_end: bool) -> Reading:
        readout = self._readout
        try:
            reading = read(readout.sites, lambda: forward(1), to_the_end)
        except (TypeError, RuntimeError, ValueError, IndexError) as error:
            forward.explain(error)
            raise
        for site, features in zip(readout.sites, reading.features, strict=True):
            if len(features) != forward.n_examples:
                raise MismatchedArgumentsError(
                    f"{site.name} gives features of shape {list(features.shape)} for {forward.n_examples} examples; "
                    "the first axis must be the batch. Choose a layer that keeps it, such as one with batch_first=True."
                )
        assert readout.network is not None
        readout.network.to(reading.features[0].device)
        return reading

    def _predict(self, features: dict[Site, Tensor], sum_channels: bool, keep_mask: bool) -> Explained:
        readout = self._readout
        assert readout.network is not None
        seen = readout.observe(features)
        self._n_far += count_far(seen.normalized)
        self._n += seen.normalized.numel()
        mask = make_mask(readout.alpha(seen, readout.network), readout.blur(seen, self._warner))
        active = seen.reference.active
        bits = information(mask, seen.normalized, seen.reference).mul_(BITS_PER_NAT)
        if sum_channels:
            bits = bits.sum(dim=readout.channel_dim, keepdim=True)
        if not torch.isfinite(bits).all():
            raise NonFiniteError(
                "The bits became NaN or infinite: the mask lets features far from the statistics pass whole. Check "
                "that data and input scaling are those of training."
            )
        return Explained(bits, mask if keep_mask else None, 1.0 - float(active.float().mean()))

    def diagnose(self, explained: Explained, modules: list[nn.Module], target: TargetType) -> IBADiagnostics:
        """What the model makes of noisy copies through the mask."""
        readout, rows = self._readout, self._rows
        # as in LayerIBA, a copy of the batch is never cut
        rows = None if rows is None else max(rows, self._forward.n_examples)
        arguments = replace(self._arguments, internal_batch_size=rows)
        problem = Problem(
            arguments=arguments,
            forward=self._forward,
            site=readout.site,
            modules=modules,
            statistics=readout.statistics[readout.site],
            target=target,
            warner=self._warner,
        )
        problem.prepare()
        assert explained.mask is not None
        loss = problem.loss_through(explained.mask)
        total = explained.bits.flatten(1).sum(dim=1)
        return IBADiagnostics(
            objective=loss.mean(dim=0, keepdim=True),
            information=total[None],
            target_probability=problem.target_probability(loss),
            mask=explained.mask.lam,
            total_bits=total,
            channel_dim=readout.channel_dim,
            inactive_share=explained.inactive_share,
            forward_mode=problem.forward_mode,
        )


def _tensors(mask: Mask) -> tuple[Tensor, Tensor, Tensor]:
    return mask.lam, mask.omega, mask.log_omega
