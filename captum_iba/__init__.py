"""Information Bottleneck Attribution for Captum: how many bits each region of an input gives a network's decision."""

from captum_iba.attr import (
    IBA,
    AttentionRollout,
    IBADiagnostics,
    LayerIBA,
    LayerReadoutIBA,
    LLMIBAAttribution,
    PatternAttribution,
    WordInformation,
    information_by_layer,
    resize_bits,
    suggest_layer,
    tokens_to_map,
)
from captum_iba.bottleneck import FeatureStatistics
from captum_iba.comparison import Report, compare, register_method
from captum_iba.metrics import BoundingBox, Degradation, ParameterRandomization, SensitivityN, Sufficiency

__version__ = "0.1.0"

__all__ = [
    "IBA",
    "AttentionRollout",
    "BoundingBox",
    "Degradation",
    "FeatureStatistics",
    "IBADiagnostics",
    "LayerIBA",
    "LLMIBAAttribution",
    "LayerReadoutIBA",
    "ParameterRandomization",
    "PatternAttribution",
    "Report",
    "SensitivityN",
    "Sufficiency",
    "WordInformation",
    "compare",
    "information_by_layer",
    "register_method",
    "resize_bits",
    "suggest_layer",
    "tokens_to_map",
]
