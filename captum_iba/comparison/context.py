"""What the methods of a comparison are built from: the model, its layers, its statistics."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from captum_iba.attr import LayerIBA, suggest_layer
from captum_iba.attr._objective import output_tensor
from captum_iba.bottleneck.statistics import FeatureStatistics
from captum_iba.comparison._arguments import Additional, logits_of
from captum_iba.comparison._calibration_batches import Batches, Calibration
from captum_iba.comparison._embedding import find_embedding
from captum_iba.comparison._gradcam_layer import last_feature_map
from captum_iba.comparison._types import Baseline
from captum_iba.errors import CaptumIBAError, InvalidArgumentError
from captum_iba.metrics._baselines import make_baselines
from captum_iba.metrics._perturb import default_rows

T = TypeVar("T")


class Context:
    """What methods are built from.

    Layers and statistics that are not given are found when they are first asked for. Where that fails, asking raises,
    so that only the methods that need them cannot run.

    Args:
        model (nn.Module): the model to explain; methods leave it as it is and change copies.
        example (Tensor): (1, C, H, W), or token ids (1, T): the first example.
        calibration (Callable): returns an iterable of batches, and has their ``summary``.
        layer, gradcam_layer (nn.Module, optional): see below. Default: None: to be found.
        statistics (FeatureStatistics, optional): see below. Default: None: from the calibration.
        rows (int, optional): see below. Default: None: as many as run fastest, see :func:`default_rows`.
        seed (int, optional): see below. Default: 0.
        baselines (str or float, optional): see below. Default: ``"mean"`` (paper).
        options (Mapping, optional): further arguments by method, such as ``{"LayerIBA": {"beta": 1}}``. Default: None.
        additional_forward_args (tuple, optional): further arguments of the model on the example. Default: None.
        embedding (nn.Module, optional): see below. Default: None: to be found.

    Attributes:
        model (nn.Module): the model to explain.
        example (Tensor): (1, C, H, W), or token ids (1, T): the first example.
        additional_forward_args (tuple or None): further arguments of the model on the example.
        calibration (Callable): returns an iterable of batches; :meth:`fit` copes with a lack of memory.
        rows (int): most rows at once; halved when memory runs out.
        seed (int): of everything random.
        baselines (str or float): what stands for nothing in an image, see :meth:`baseline`.
        options (Mapping[str, Mapping[str, Any]]): arguments by method; a builder takes them by :meth:`options_of`.
        used (set[str]): methods whose options were taken.
        fit_seconds (dict[str, float]): time that methods say they were trained for, once for all examples.
        fixed_seed (int or None): of all images, where noise must not follow the image; None: of each its own.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        calibration: Calibration,
        *,
        layer: nn.Module | None = None,
        gradcam_layer: nn.Module | None = None,
        statistics: FeatureStatistics | None = None,
        rows: int | None = None,
        seed: int = 0,
        baselines: Baseline = "mean",
        options: Mapping[str, Mapping[str, Any]] | None = None,
        additional_forward_args: Additional = None,
        embedding: nn.Module | None = None,
    ) -> None:
        self.model, self.example, self.calibration = model, example, calibration
        self.additional_forward_args = additional_forward_args
        self.rows = default_rows(example) if rows is None else rows
        self._free_rows = self.rows if rows is None else None
        self.fixed_seed: int | None = None
        self.seed, self.baselines = seed, baselines
        self.options: Mapping[str, Mapping[str, Any]] = options or {}
        self.used: set[str] = set()
        self.fit_seconds: dict[str, float] = {}
        given = {
            "layer": layer,
            "gradcam_layer": gradcam_layer,
            "statistics": statistics,
            "embedding": embedding,
        }
        self._found: dict[str, Any] = {name: value for name, value in given.items() if value is not None}

    @property
    def layer(self) -> nn.Module:
        """Of the bottleneck.

        Raises:
            CaptumIBAError: none was given, and none suggests itself.
        """
        return self._find("layer", self._suggested)

    @property
    def gradcam_layer(self) -> nn.Module:
        """Of the GradCAM methods.

        Raises:
            CaptumIBAError: none was given, and the model has no feature maps.
        """
        return self._find("gradcam_layer", lambda: last_feature_map(self.model, self.example))

    @property
    def embedding(self) -> nn.Module:
        """Of the token ids.

        Raises:
            CaptumIBAError: none was given, and none can be told from the others.
        """
        return self._find("embedding", lambda: find_embedding(self.model, self.example, self.additional_forward_args))

    def forward(self, inputs: Tensor, *additional: Any) -> Tensor:
        """The model as a function to logits."""
        return logits_of(self.model, inputs, additional)

    @property
    def statistics(self) -> FeatureStatistics:
        """Of :attr:`layer`.

        Raises:
            CaptumIBAError: none were given, and they cannot be estimated.
        """
        return self._find("statistics", lambda: self.fit(self._estimate))

    @property
    def limit(self) -> int | None:
        """Most rows at once where memory or the user sets a limit; None where methods may choose."""
        return None if self.rows == self._free_rows else self.rows

    def baseline(self, x: Tensor) -> Tensor:
        """What methods that compare with the absence of features start from: of x's shape."""
        index = torch.zeros([1] * x.ndim, dtype=torch.long, device=x.device)
        return make_baselines(self.baselines, (x,), (index,), as_tuple=False)[0]

    def _suggested(self) -> nn.Module:
        if not self.example.is_floating_point():
            raise InvalidArgumentError(
                "No layer suggests itself for token ids; pass layer=..., an encoder block such as "
                "'bert.encoder.layer.1'."
            )
        return suggest_layer(self.model, self.example)

    def _estimate(self, batches: Iterable[Any]) -> FeatureStatistics:
        statistics = LayerIBA(self.model, self.layer).estimate(batches).statistics
        assert statistics is not None
        return statistics

    def _find(self, name: str, search: Callable[[], T]) -> T:
        """What was given or found; a failure is kept too, and raised again."""
        if name not in self._found:
            try:
                self._found[name] = search()
            except CaptumIBAError as error:
                self._found[name] = error
            except torch.OutOfMemoryError as error:
                self._found[name] = CaptumIBAError(f"Memory does not suffice for a single example: {error}")
        if isinstance(self._found[name], CaptumIBAError):
            raise self._found[name].with_traceback(None)
        found: T = self._found[name]
        return found

    def options_of(self, name: str) -> dict[str, Any]:
        """The user's arguments of a method."""
        self.used.add(name)
        return dict(self.options.get(name, {}))

    def fit(self, estimate: Callable[[Batches], T]) -> T:
        """Call ``estimate(batches)`` with the calibration data, in smaller batches where memory runs out."""
        most: int | None = None
        while True:
            try:
                return estimate(Batches(self.calibration, most))
            except torch.OutOfMemoryError:
                if most == 1:
                    raise
                most = self.rows if most is None else most // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    @cached_property
    def copy(self) -> nn.Module:
        """A copy of the model that returns its logits as a tensor.

        Its activations do not overwrite their input, which backward hooks need.
        """
        with torch.no_grad():
            output = self.model(self.example)
        return self._duplicate if isinstance(output, Tensor) else Logits(self._duplicate)

    @cached_property
    def _duplicate(self) -> nn.Module:
        duplicate = copy.deepcopy(self.model)
        for module in duplicate.modules():
            if getattr(module, "inplace", False) is True:
                module.inplace = False  # type: ignore[assignment]
        return duplicate

    def in_copy(self, layer: nn.Module) -> nn.Module:
        """The module of :attr:`copy` that corresponds to one of the model."""
        name = next(name for name, module in self.model.named_modules() if module is layer)
        return self._duplicate.get_submodule(name)


class Logits(nn.Module):
    """A model, returning the tensor of its output: itself, or its ``logits``.

    Args:
        model (nn.Module): the model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The logits of the model's output."""
        return output_tensor(self.model(*args, **kwargs))
