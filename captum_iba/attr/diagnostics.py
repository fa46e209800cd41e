"""What an attribution leaves behind beside the bits."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class IBADiagnostics:
    """What happened during the optimisation.

    Attributes:
        objective (Tensor): (n_steps, N), each example's mean loss over the noisy copies before each step.
        information (Tensor): (n_steps, N), its total information in bits before each step.
        target_probability (Tensor or None): (N,), mean probability of the target over ``n_samples`` fresh noisy copies
            through the final bottleneck; None where the loss is not that of a probability: an objective of the user's
            own, or an output taken as log-likelihood that is above 0.
        mask (Tensor): lambda, the share of signal that passes each element of the layer's features, of their shape.
        total_bits (Tensor): (N,), total information through the final bottleneck.
        channel_dim (int): axis of the layer's features that was summed over.
        inactive_share (float): share of features that never vary and therefore carry no information.
        forward_mode (str): ``"replay"``, ``"replay expanded"`` or ``"whole model"``: how the model was run.
    """

    objective: Tensor
    information: Tensor
    target_probability: Tensor | None
    mask: Tensor
    total_bits: Tensor
    channel_dim: int
    inactive_share: float
    forward_mode: str
