"""The one exception family of captum_iba.

Every class derives from :class:`CaptumIBAError` and from the built-in exception that Captum (or torch) raises in the
same place, so that ``except AssertionError`` around a Captum method keeps working when the method is ours. Messages
say what was found, what was wanted and what to do next.
"""

from __future__ import annotations


class CaptumIBAError(Exception):
    """Base of all errors that captum_iba raises itself.

    Examples::

        >>> from captum_iba.errors import CaptumIBAError, InvalidArgumentError
        >>> issubclass(InvalidArgumentError, (CaptumIBAError, ValueError))
        True
    """


class CaptumIBAWarning(UserWarning):
    """Something works, but not as it could: what was found, and what to do."""


class InvalidArgumentError(CaptumIBAError, ValueError):
    """An argument has a value that cannot be used."""


class InvalidTypeError(CaptumIBAError, TypeError):
    """An argument has a type that cannot be used."""


class MismatchedArgumentsError(CaptumIBAError, RuntimeError):
    """Arguments that belong together, such as inputs and additional_forward_args, do not fit each other."""


class LayerNotExecutedError(CaptumIBAError, AssertionError):
    """The layer is not part of the model, or the forward pass did not reach it."""


class LayerReusedError(CaptumIBAError, RuntimeError):
    """The layer ran more than once in one forward pass, so that it has no single output."""


class NoTensorError(CaptumIBAError, AssertionError):
    """The layer has no tensor output (or input) that a bottleneck could be put on."""


class IntegerFeaturesError(CaptumIBAError, RuntimeError):
    """The layer's features are integers, to which no noise can be added."""


class NonFiniteError(CaptumIBAError, ValueError):
    """A NaN or an infinity stands where a number is needed."""


class TargetError(CaptumIBAError, AssertionError):
    """The target does not select one value per example."""


class TargetIndexError(CaptumIBAError, IndexError):
    """The target names a class that the output does not have."""


class StatisticsError(CaptumIBAError, ValueError):
    """Feature statistics cannot be computed, or do not fit the layer."""


class StatisticsFileError(StatisticsError):
    """A file does not hold feature statistics that can be read."""


class NotTrainedError(CaptumIBAError, RuntimeError):
    """Something is asked for what it can say only after it was trained or fitted."""


class ReadoutFileError(CaptumIBAError, ValueError):
    """A file does not hold a readout bottleneck that fits this model and layer."""


class StoreError(CaptumIBAError, OSError):
    """A file of results cannot be read or written."""


class MissingFileError(CaptumIBAError, FileNotFoundError):
    """A path leads nowhere."""


class GradientModeError(CaptumIBAError, RuntimeError):
    """Gradients are needed and cannot be computed here."""


class DeviceError(CaptumIBAError, RuntimeError):
    """The model is spread over devices in a way that the bottleneck does not follow."""


class UnsupportedModelError(CaptumIBAError, RuntimeError):
    """The model computes in a way for which the method has no rule."""


class MissingDependencyError(CaptumIBAError, ImportError):
    """An optional package is needed and not installed."""


class UnreadableExampleError(CaptumIBAError, ValueError):
    """One example of a data set cannot be read; the others can."""
