"""Attribution methods as Captum knows them."""

from captum_iba.attr.attention_rollout import AttentionRollout
from captum_iba.attr.diagnostics import IBADiagnostics
from captum_iba.attr.iba import IBA
from captum_iba.attr.layer_iba import LayerIBA
from captum_iba.attr.layer_readout_iba import LayerReadoutIBA
from captum_iba.attr.pattern_attribution import PatternAttribution
from captum_iba.attr.resize import resize_bits
from captum_iba.attr.suggest_layer import suggest_layer
from captum_iba.attr.tokens_to_map import TokenMap, tokens_to_map
from captum_iba.attr.training_history import Measures, TrainingHistory

__all__ = [
    "IBA",
    "AttentionRollout",
    "IBADiagnostics",
    "LayerIBA",
    "LayerReadoutIBA",
    "Measures",
    "PatternAttribution",
    "TokenMap",
    "TrainingHistory",
    "resize_bits",
    "suggest_layer",
    "tokens_to_map",
]
