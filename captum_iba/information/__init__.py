"""How much information flows where: estimators of mutual information and what is built on them, without Captum."""

from captum_iba.information.estimate import Estimate
from captum_iba.information.estimator import Estimator

__all__ = ["Estimate", "Estimator"]
