"""A page on this computer that explains photos and sentences: what ``captum-iba serve`` shows.

The page is gradio's (see :mod:`captum_iba.serve.page`); what it computes are two functions, one for photos and one for
sentences, that can be called without it.
"""

from captum_iba.serve.photo import PhotoExplanation, PhotoModel, digits_model, explain_photo
from captum_iba.serve.text import TextExplanation, TextModel, explain_text

__all__ = [
    "PhotoExplanation",
    "PhotoModel",
    "TextExplanation",
    "TextModel",
    "digits_model",
    "explain_photo",
    "explain_text",
]
