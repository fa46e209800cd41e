"""Metrics of attributions: functions that return a frozen result, and thin classes that gather it over batches."""

from captum_iba.metrics._result import MetricResult
from captum_iba.metrics._sufficiency import SufficiencyResult
from captum_iba.metrics.bounding_box import BoundingBox, BoundingBoxResult, bounding_box_ratio, boxes_to_mask
from captum_iba.metrics.degradation import Degradation, DegradationResult, degradation
from captum_iba.metrics.insertion_deletion import AreaResult, deletion, insertion
from captum_iba.metrics.parameter_randomization import (
    ParameterRandomization,
    ParameterRandomizationResult,
    parameter_randomization,
)
from captum_iba.metrics.seed_uncertainty import SeedUncertaintyResult, seed_uncertainty
from captum_iba.metrics.sensitivity_n import SensitivityN, SensitivityNResult, log_spaced, sensitivity_n
from captum_iba.metrics.sufficiency import Sufficiency, sufficiency

__all__ = [
    "AreaResult",
    "BoundingBox",
    "BoundingBoxResult",
    "Degradation",
    "DegradationResult",
    "MetricResult",
    "ParameterRandomization",
    "ParameterRandomizationResult",
    "SeedUncertaintyResult",
    "SensitivityN",
    "SensitivityNResult",
    "Sufficiency",
    "SufficiencyResult",
    "bounding_box_ratio",
    "boxes_to_mask",
    "degradation",
    "deletion",
    "insertion",
    "log_spaced",
    "parameter_randomization",
    "seed_uncertainty",
    "sensitivity_n",
    "sufficiency",
]
