"""How much information flows where: estimators of mutual information and what is built on them, without Captum."""

from captum_iba.information.binning import Binning
from captum_iba.information.estimate import Estimate
from captum_iba.information.estimator import Estimator
from captum_iba.information.gaussian import Gaussian
from captum_iba.information.mutual_information import mutual_information, mutual_information_matrix
from captum_iba.information.nearest_neighbours import KSG

__all__ = ["Binning", "Estimate", "Estimator", "Gaussian", "KSG", "mutual_information", "mutual_information_matrix"]
