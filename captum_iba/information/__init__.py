"""How much information flows where: estimators of mutual information and what is built on them, without Captum."""

from captum_iba.information._flow_prune import PruneReport
from captum_iba.information.binning import Binning
from captum_iba.information.distribution_tests import KSTest, kendall, ks_test, spearman
from captum_iba.information.estimate import Estimate
from captum_iba.information.estimator import Estimator
from captum_iba.information.gaussian import Gaussian
from captum_iba.information.gaussian_bottleneck import GaussianBottleneck, gaussian_information_bottleneck
from captum_iba.information.information_bottleneck import BottleneckCurve, information_bottleneck
from captum_iba.information.information_flow import InformationFlow
from captum_iba.information.information_plane import InformationPlane
from captum_iba.information.labelled_csv import LabelledTable, read_labelled_csv
from captum_iba.information.mutual_information import mutual_information, mutual_information_matrix
from captum_iba.information.nearest_neighbours import KSG
from captum_iba.information.neural import DV, JS, MINE, NWJ, SMILE, InfoNCE, Neural
from captum_iba.information.neural_information_flow import NeuralInformationFlow
from captum_iba.information.noise_channel import KDE, SamplePropagation
from captum_iba.information.noisy_network import noisy_network_information
from captum_iba.information.plane_result import InformationPlaneResult
from captum_iba.information.vib import VariationalBottleneck
from captum_iba.information.vib_loss import VIBLoss, mean_probabilities
from captum_iba.information.word_information import WordNoise, WordNoiseSettings, linear_word_noise, word_noise

__all__ = [
    # estimators
    "mutual_information",
    "mutual_information_matrix",
    "Estimate",
    "Estimator",
    "KSG",
    "Gaussian",
    "Binning",
    "KDE",
    "SamplePropagation",
    "Neural",
    "DV",
    "MINE",
    "NWJ",
    "InfoNCE",
    "JS",
    "SMILE",
    # information plane
    "InformationPlane",
    "InformationPlaneResult",
    "noisy_network_information",
    "information_bottleneck",
    "BottleneckCurve",
    # Neural Information Flow
    "NeuralInformationFlow",
    "InformationFlow",
    "PruneReport",
    "ks_test",
    "KSTest",
    "spearman",
    "kendall",
    "read_labelled_csv",
    "LabelledTable",
    # variational bottleneck
    "VariationalBottleneck",
    "VIBLoss",
    "mean_probabilities",
    "gaussian_information_bottleneck",
    "GaussianBottleneck",
    # word information
    "word_noise",
    "linear_word_noise",
    "WordNoise",
    "WordNoiseSettings",
]
