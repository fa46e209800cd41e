"""Estimators by trained critics: variational bounds, cross-fitted, with an honest error."""

from captum_iba.information.neural.estimators import DV, JS, MINE, NWJ, SMILE, InfoNCE, Neural

__all__ = ["Neural", "DV", "MINE", "NWJ", "InfoNCE", "JS", "SMILE"]
