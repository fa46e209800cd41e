"""Attribution methods as Captum knows them."""

from captum_iba.attr.attention_rollout import AttentionRollout
from captum_iba.attr.blocks import find_blocks
from captum_iba.attr.diagnostics import IBADiagnostics
from captum_iba.attr.iba import IBA
from captum_iba.attr.information_by_layer import information_by_layer
from captum_iba.attr.layer_iba import LayerIBA
from captum_iba.attr.layer_information import LayerInformation
from captum_iba.attr.layer_readout_iba import LayerReadoutIBA
from captum_iba.attr.llm_iba import LLMIBAAttribution
from captum_iba.attr.llm_result import LLMIBAAttributionResult
from captum_iba.attr.pattern_attribution import PatternAttribution
from captum_iba.attr.resize import resize_bits
from captum_iba.attr.suggest_layer import suggest_layer
from captum_iba.attr.token_ranking import TOKEN_RANKING
from captum_iba.attr.tokens_to_map import TokenMap, tokens_to_map
from captum_iba.attr.training_history import Measures, TrainingHistory
from captum_iba.attr.word_comparison import WordComparison, compare_models
from captum_iba.attr.word_information import WordInformation

__all__ = [
    "TOKEN_RANKING",
    "IBA",
    "AttentionRollout",
    "IBADiagnostics",
    "LLMIBAAttribution",
    "LLMIBAAttributionResult",
    "LayerIBA",
    "LayerInformation",
    "LayerReadoutIBA",
    "Measures",
    "PatternAttribution",
    "TokenMap",
    "TrainingHistory",
    "WordComparison",
    "WordInformation",
    "compare_models",
    "find_blocks",
    "information_by_layer",
    "resize_bits",
    "suggest_layer",
    "tokens_to_map",
]
