"""How much information flows where: estimators of mutual information and what is built on them, without Captum."""

from captum_iba.information.binning import Binning
from captum_iba.information.estimate import Estimate
from captum_iba.information.estimator import Estimator
from captum_iba.information.gaussian import Gaussian
from captum_iba.information.gaussian_bottleneck import GaussianBottleneck, gaussian_information_bottleneck
from captum_iba.information.mutual_information import mutual_information, mutual_information_matrix
from captum_iba.information.nearest_neighbours import KSG
from captum_iba.information.vib import VariationalBottleneck
from captum_iba.information.vib_loss import VIBLoss, mean_probabilities

__all__ = [
    "Binning",
    "Estimate",
    "Estimator",
    "Gaussian",
    "GaussianBottleneck",
    "KSG",
    "VIBLoss",
    "VariationalBottleneck",
    "gaussian_information_bottleneck",
    "mean_probabilities",
    "mutual_information",
    "mutual_information_matrix",
]
