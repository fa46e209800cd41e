"""Photos: the models that are offered, and the explanation of one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from captum_iba._cli_photos import bits_on_image, find_layer
from captum_iba._numbers import assert_beta
from captum_iba.attr import LayerIBA, suggest_layer
from captum_iba.attr.blocks import find_blocks
from captum_iba.attr.suggest_layer import output_sides
from captum_iba.bottleneck.statistics import FeatureStatistics
from captum_iba.errors import InvalidArgumentError
from captum_iba.photos import Classifier
from captum_iba.serve.notes import on_calibration, on_loss
from captum_iba.visualization import Heatmap, plot_attributions

Over = Callable[[Iterable[Any]], Iterable[Any]]
_N_CANVASES = 1000
# further inside there are single layers of blocks, hundreds in a large network
_MOST_DOTS = 1


@dataclass(frozen=True)
class PhotoExplanation:
    """What is shown of a photo.

    Attributes:
        label (str): name of the class that is explained.
        index (int): its index.
        layer (str): dotted name.
        total_bits (float): of all positions together.
        probability (float): of the class.
        probability_through (float): of the class through the bottleneck, mean over noisy copies.
        pixels (Tensor): (1, 1, H, W), bits per pixel.
        figure (Figure): image and map, with a colour bar in bits per pixel.
        notes (list[str]): what is to be known about these figures.
    """

    label: str
    index: int
    layer: str
    total_bits: float
    probability: float
    probability_through: float
    pixels: Tensor
    figure: Figure
    notes: list[str]


class PhotoModel:
    """A classifier with the layers that are offered, each calibrated when it is first asked for.

    Args:
        classifier (Classifier): the model and what it needs around it.
        layer (str, optional): the one chosen at first. Default: None: :func:`suggest_layer`, or, of a transformer, the
            block after its first quarter, as early blocks place bits best.
        calibration (Iterable, optional): batches of prepared photos for the statistics, as often as there are layers.
            Default: None.
        statistics (FeatureStatistics, optional): of ``layer``, in place of a calibration. Default: None.

    Raises:
        InvalidArgumentError: there is no such layer, or none can be suggested.

    Examples::

        >>> digits = digits_model()
        >>> digits.layer, digits.layers[0]
        ('stage2', 'stage1')
    """

    def __init__(
        self,
        classifier: Classifier,
        layer: str | None = None,
        calibration: Iterable[Tensor] | None = None,
        statistics: FeatureStatistics | None = None,
    ) -> None:
        self.classifier = classifier
        self.layers, suggested = _offered(classifier)
        self.layer = find_layer(classifier.model, layer or suggested)[0]
        if self.layer not in self.layers:
            self.layers.insert(0, self.layer)
        self._calibration = calibration
        self._methods: dict[str, LayerIBA] = {}
        if statistics is not None:
            module = find_layer(classifier.model, self.layer)[1]
            self._methods[self.layer] = LayerIBA(classifier.model, module, statistics=statistics)
        self.lock = threading.RLock()
        """What runs the model holds it: a bottleneck is in the model while one is computed."""

    def method(self, layer: str, over: Over = iter) -> LayerIBA:
        """The calibrated method of a layer.

        Args:
            layer (str): dotted name.
            over (Callable, optional): goes over the batches of a calibration, to show progress. Default: ``iter``.

        Raises:
            InvalidArgumentError: there is no such layer.
        """
        with self.lock:
            if layer not in self._methods:
                method: Any = LayerIBA(self.classifier.model, find_layer(self.classifier.model, layer)[1])
                self._methods[layer] = (
                    method if self._calibration is None else method.estimate(_Again(self._calibration, over))
                )
            return self._methods[layer]


class _Again:
    """Batches gone over by a function of them, which may count them."""

    def __init__(self, batches: Iterable[Any], over: Over) -> None:
        self._batches, self._over = batches, over

    def __iter__(self) -> Any:
        return iter(self._over(self._batches))


def _offered(classifier: Classifier) -> tuple[list[str], str | None]:
    """Names of a transformer's blocks, else of layers with a map, and the one to begin with, where one can be found."""
    from PIL import Image

    image = classifier.preprocess(Image.new("RGB", (256, 256)))[None]
    model: nn.Module = classifier.model
    sides = output_sides(model, image)
    blocks = [name for name, block in _blocks(model).items() if sides.get(block) == 0]
    if blocks:
        return blocks, blocks[len(blocks) // 4]
    maps = [name for name, own in model.named_modules() if name.count(".") <= _MOST_DOTS and sides.get(own, 0) > 1]
    try:
        suggested = suggest_layer(model, image)
    except InvalidArgumentError:
        return maps, None
    return maps, next(name for name, own in model.named_modules() if own is suggested)


def _blocks(model: nn.Module) -> dict[str, nn.Module]:
    try:
        return find_blocks(model)
    except InvalidArgumentError:
        return {}


def digits_model() -> PhotoModel:
    """The embedded network, which reads a digit in white on black among fragments of others.

    Raises:
        MissingDependencyError: scikit-learn, whose digits it is calibrated with, or pillow is not installed.
    """
    from captum_iba.demo import LAYER, load_canvases, load_model
    from captum_iba.demo.data import GREY_MEAN, GREY_STD, SIZE

    def prepare(photo: Any) -> Tensor:
        from PIL import Image

        grey = np.array(photo.convert("L").resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float32) / 255
        return (torch.from_numpy(grey)[None] - GREY_MEAN) / GREY_STD

    mean, std = torch.tensor(GREY_MEAN).view(1, 1, 1), torch.tensor(GREY_STD).view(1, 1, 1)
    classifier = Classifier("embedded digits", load_model(), prepare, [str(digit) for digit in range(10)], mean, std)
    canvases = torch.split(load_canvases("train", _N_CANVASES).images, 250)
    return PhotoModel(classifier, LAYER, canvases)


def explain_photo(
    model: PhotoModel,
    photo: Any,
    layer: str = "",
    target: str = "",
    beta: float = 10.0,
    over: Over = iter,
) -> PhotoExplanation:
    """Bits of each pixel of a photo.

    Args:
        model (PhotoModel): the model.
        photo (PIL.Image.Image): of any size and mode.
        layer (str, optional): dotted name. Default: ``""``, the model's first choice.
        target (str, optional): class by index or name. Default: ``""``, the predicted one.
        beta (float, optional): weight of the information, as in :meth:`LayerIBA.attribute`. Default: 10.0.
        over (Callable, optional): as for :meth:`PhotoModel.method`.

    Returns:
        PhotoExplanation: figures, map and notes.

    Raises:
        InvalidArgumentError: no photo, or an argument out of range.
        CaptumIBAError: everything :meth:`LayerIBA.attribute` raises.

    Examples::

        >>> from PIL import Image
        >>> found = explain_photo(digits_model(), Image.new("L", (64, 64)), target="3")
        >>> found.label, found.pixels.shape
        ('3', torch.Size([1, 1, 64, 64]))
    """
    if photo is None:
        raise InvalidArgumentError("There is no photo yet: drop one first.")
    assert_beta(beta)
    classifier, layer = model.classifier, layer.strip() or model.layer
    chosen = classifier.class_index(target.strip()) if target.strip() else None
    image = classifier.preprocess(photo.convert("RGB"))[None]
    with model.lock:
        method: Any = model.method(layer, over)
        with torch.no_grad():
            own = classifier.model(image).softmax(dim=1)[0]
        index = int(own.argmax()) if chosen is None else chosen
        raw, record = method.attribute(image, target=index, beta=beta, return_diagnostics=True)
    bits, pixels, beside = bits_on_image(raw, (image.shape[2], image.shape[3]))
    label, total, through = classifier.categories[index], float(raw.sum()), float(record.target_probability[0])
    figure = plot_attributions(
        classifier.to_display(image),
        {f"{float(bits.sum()):.0f} bits at {layer}": Heatmap(pixels, "bits per pixel")},
        [f"{label}, p = {float(own[index]):.2f}"],
    )
    notes = [*on_calibration(method.statistics, "images"), *on_loss(float(own[index]), through)]
    if beside is not None:
        notes.append(f"{float(beside[0]):.0f} of the bits are in tokens that are no patches and not on the map.")
    return PhotoExplanation(label, index, layer, total, float(own[index]), through, pixels, figure, notes)
