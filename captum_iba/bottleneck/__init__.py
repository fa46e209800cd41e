"""The method, free of Captum: tensors in, tensors out."""

from captum_iba.bottleneck.information import Mask, Reference, kl_divergence, make_mask
from captum_iba.bottleneck.noise import Noise
from captum_iba.bottleneck.optimization import Optimized, Settings, optimize
from captum_iba.bottleneck.replay import Recording, Site
from captum_iba.bottleneck.smoothing import GaussianBlur, gaussian_kernel
from captum_iba.bottleneck.statistics import FeatureStatistics
from captum_iba.bottleneck.tail import Tail

__all__ = [
    "FeatureStatistics",
    "GaussianBlur",
    "Mask",
    "Noise",
    "Optimized",
    "Recording",
    "Reference",
    "Settings",
    "Site",
    "Tail",
    "gaussian_kernel",
    "kl_divergence",
    "make_mask",
    "optimize",
]
