"""Information Bottleneck Attribution for Captum: how many bits each region of an input gives a network's decision."""

from captum_iba.attr import IBA, IBADiagnostics, LayerIBA, resize_bits, suggest_layer
from captum_iba.bottleneck import FeatureStatistics

__version__ = "0.1.0"

__all__ = ["IBA", "FeatureStatistics", "IBADiagnostics", "LayerIBA", "resize_bits", "suggest_layer"]
