"""Lines about what is shown: what the bits are, and what they are not."""

from __future__ import annotations

from captum_iba._cli_texts import KEPT
from captum_iba.attr._calibration import FEW_EXAMPLES
from captum_iba.bottleneck.statistics import FeatureStatistics


def on_calibration(statistics: FeatureStatistics | None, kind: str) -> list[str]:
    """Whether the bits are an upper bound.

    Args:
        statistics (FeatureStatistics or None): of the layer.
        kind (str): of examples.
    """
    if statistics is not None:
        rough = statistics.kind == "feature" and statistics.n_samples < FEW_EXAMPLES
        how = f", a loose one from fewer than {FEW_EXAMPLES}" if rough else ""
        return [f"Feature statistics of {statistics.n_samples} {kind}: in the mean, the bits are an upper bound{how}."]
    return [
        f"Not calibrated: the feature statistics come from this example alone, so the bits are no upper bound and do "
        f"not compare with those of other examples. Start the page with {kind} to calibrate on (captum-iba serve "
        "--help)."
    ]


def on_loss(own: float, through: float) -> list[str]:
    """Whether the decision stands through the bottleneck.

    Args:
        own (float): probability of the class.
        through (float): of the class through the bottleneck.
    """
    if through >= KEPT * own:
        return []
    return [
        f"The class keeps less than {KEPT:.0%} of its probability through the bottleneck, so these are not the bits of "
        "the whole decision; a smaller beta keeps more of it."
    ]
