"""Methods times metrics on a data set: which attribution to trust on a model, in one call."""

from captum_iba.comparison._types import Curve, ExampleInfo, HeatMap, MethodInfo, MetricInfo, Results
from captum_iba.comparison.compare import compare
from captum_iba.comparison.context import Context
from captum_iba.comparison.dataset import ExampleSet, JoinedExamples, TensorExamples, as_examples
from captum_iba.comparison.example import Example
from captum_iba.comparison.methods import Method, register_method, registered_methods, unregister_method
from captum_iba.comparison.photo_folder import PhotoFolder
from captum_iba.comparison.report import Report
from captum_iba.comparison.text_examples import TextExample, TextExamples, TextFile

__all__ = [
    "Context",
    "Curve",
    "Example",
    "ExampleInfo",
    "ExampleSet",
    "HeatMap",
    "JoinedExamples",
    "Method",
    "MethodInfo",
    "MetricInfo",
    "PhotoFolder",
    "Report",
    "Results",
    "TensorExamples",
    "TextExample",
    "TextExamples",
    "TextFile",
    "as_examples",
    "compare",
    "register_method",
    "registered_methods",
    "unregister_method",
]
