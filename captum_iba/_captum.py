"""The only module that imports Captum's private helpers.

All names exist in captum 0.8 and 0.9; a test imports each on both.
"""

from captum._utils.common import (
    ExpansionTypes,
    _expand_additional_forward_args,
    _expand_target,
    _format_additional_forward_args,
    _format_tensor_into_tuples,
    _run_forward,
    _select_targets,
)
from captum._utils.typing import TargetType
from captum.attr import LayerAttribution
from captum.attr._core.llm_attr import _convert_ids_to_pretty_tokens
from captum.attr._utils.attribution import Attribution, GradientAttribution, InternalAttribution
from captum.attr._utils.custom_modules import Addition_Module
from captum.attr._utils.lrp_rules import EpsilonRule, PropagationRule
from captum.log import log_usage

__all__ = [
    "Addition_Module",
    "Attribution",
    "EpsilonRule",
    "ExpansionTypes",
    "GradientAttribution",
    "InternalAttribution",
    "LayerAttribution",
    "PropagationRule",
    "TargetType",
    "_convert_ids_to_pretty_tokens",
    "_expand_additional_forward_args",
    "_expand_target",
    "_format_additional_forward_args",
    "_format_tensor_into_tuples",
    "_run_forward",
    "_select_targets",
    "log_usage",
]
