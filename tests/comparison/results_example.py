"""A comparison such as a run would leave, made from random numbers: smooth photos, maps around an object, curves; and
a reader of its page."""

import io
import json
from html.parser import HTMLParser

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from captum_iba.comparison._types import Curve, ExampleInfo, HeatMap, MethodInfo, MetricInfo, Results

SIZE = 224
BITS, RELEVANCE = "bits per pixel", "relevance, no unit"
VOID = {"meta", "link", "img", "input", "br", "wbr"}
# name, noise of its maps, blur of its maps, seconds, megabytes
METHODS = [
    ("LayerIBA", 0.1, 10, 0.41, 310.0),
    ("Saliency", 2.0, 1, 0.011, 88.0),
    ("InputXGradient", 2.5, 1, 0.012, 88.4),
    ("IntegratedGradients", 1.6, 1.5, 0.35, 90.2),
    ("SmoothGrad", 0.9, 2, 0.38, 401.0),
    ("GuidedBackprop", 1.2, 1, 0.014, 91.0),
    ("Deconvolution", 1.8, 2, 0.014, 91.5),
    ("LayerGradCam", 0.3, 14, 0.010, 60.1),
    ("GuidedGradCam", 0.7, 2, 0.022, 92.0),
    ("DeepLift", 1.7, 1.5, 0.030, 180.0),
    ("GradientShap", 2.2, 1.5, 0.070, 205.0),
    ("LRP", 1.4, 1.5, 0.050, 260.0),
    ("Occlusion", 0.5, 12, 1.92, 70.0),
    ("RISE", 0.6, 16, 21.4, 1210.0),
]
METRICS = [
    MetricInfo(
        "insertion",
        "Area under the curve of the target's probability while pixels are put back, most relevant first.",
        True,
        "share of pixels shown",
        "probability of the target",
    ),
    MetricInfo(
        "degradation 8x8",
        "Area between the curves of removing 8x8 tiles, least relevant first minus most relevant first.",
        True,
        "share of tiles removed",
        "normalised probability",
    ),
    MetricInfo("bounding box", "Share of the highest values that lie in the object's box.", True),
    MetricInfo("sensitivity-n", "Correlation between summed relevance and change of output over random sets.", True),
    MetricInfo("infidelity", "Mean squared error of the relevance as a prediction of the change of output.", False),
    MetricInfo(
        "effective size", "Share of pixels that hold half of the relevance; neither more nor less is better.", None
    ),
]


def photo(generator, box):
    """A smooth image with some texture and a bright object in its box, as JPEG of about 15 kB."""
    image = np.stack([gaussian_filter(generator.normal(size=(SIZE, SIZE)), 25) for _ in range(3)], axis=-1)
    image = 0.45 + 0.2 * image / image.std()
    image += 0.05 * gaussian_filter(generator.normal(size=(SIZE, SIZE)), 1)[..., None] * 3
    x0, y0, x1, y1 = box
    rows, columns = np.mgrid[:SIZE, :SIZE]
    inside = ((columns - (x0 + x1) / 2) / ((x1 - x0) / 2)) ** 2 + ((rows - (y0 + y1) / 2) / ((y1 - y0) / 2)) ** 2 < 1
    image[inside] = 0.4 * image[inside] + generator.uniform(0.2, 0.6, size=3)
    buffer = io.BytesIO()
    Image.fromarray((255 * image.clip(0, 1)).astype(np.uint8)).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def heat_map(generator, box, noise, blur, size):
    """Relevance around the box, with a method's noise."""
    x0, y0, x1, y1 = (value * size / SIZE for value in box)
    rows, columns = np.mgrid[:size, :size]
    distance = ((columns - (x0 + x1) / 2) / (x1 - x0)) ** 2 + ((rows - (y0 + y1) / 2) / (y1 - y0)) ** 2
    values = np.exp(-3 * distance) * np.exp(0.5 * noise * generator.normal(size=(size, size)))
    values = gaussian_filter(values, blur * size / SIZE)
    values -= values.min()
    return HeatMap((255 * values / values.max()).round().astype(np.uint8), 0.0, float(3 * values.max()))


def curve_of(generator, noise, two_lines, n_points):
    """A falling curve, and for two lines a slowly falling one above it."""
    x = np.linspace(0, 1, n_points)
    first = np.exp(-x * 12 / (1 + noise)) * (1 - x**3)
    error = 0.015 + 0.03 * np.sin(np.pi * x)
    first = first + 0.02 * gaussian_filter(generator.normal(size=n_points), n_points / 30)
    if not two_lines:
        return Curve(x, {"mean": (1 - first, error)})
    last = 1 - x ** (3 / (0.6 + noise))
    return Curve(x, {"most relevant first": (first, error), "least relevant first": (last, 0.8 * error)})


def example_results(n_examples=6, n_methods=5, size=56, n_points=65):
    """A comparison of that many examples and methods, one method more that could not run, and odd cases.

    The last method failed on the last example; "sensitivity-n" is undefined everywhere for the second method, whose map
    is constant on one example; every third example is without boxes and without a value of "bounding box".
    """
    generator = np.random.default_rng(0)
    chosen = METHODS[:n_methods]
    corners = generator.integers(20, 90, size=(n_examples, 2))
    boxes = np.concatenate([corners, corners + generator.integers(60, 120, size=(n_examples, 2))], axis=1).astype(float)
    names = ["zebra", "tabby cat", "sorrel", "hot-air balloon", "red fox"]
    examples = [
        ExampleInfo(
            f"{names[i % 5]}/photo_{i:03d}.jpg",
            names[i % 5],
            names[(i + (i % 4 == 3)) % 5],
            float(generator.uniform(0.3, 1)),
            photo(generator, boxes[i]),
            None if i % 3 == 2 else boxes[i : i + 1],
        )
        for i in range(n_examples)
    ]
    difficulty = generator.normal(size=n_examples)
    scores = {name: _scores(generator, noise, difficulty) for name, noise, *_ in chosen}
    scores[chosen[1][0]]["sensitivity-n"][:] = np.nan
    scores[chosen[-1][0]] = {name: np.append(v[:-1], np.nan) for name, v in scores[chosen[-1][0]].items()}
    curves = {
        name: {m.name: curve_of(generator, noise, "x" in m.name, n_points) for m in METRICS[:2]}
        for name, noise, *_ in chosen
    }
    maps = {
        name: {e.key: heat_map(generator, box, noise, blur, size) for e, box in zip(examples, boxes, strict=True)}
        for name, noise, blur, *_ in chosen
    }
    del maps[chosen[-1][0]][examples[-1].key]
    methods = [
        MethodInfo(
            name,
            f"captum.attr.{name}, its own defaults",
            BITS if "IBA" in name else RELEVANCE,
            n_failed=int(name == chosen[-1][0]),
            failure="RuntimeError: out of memory" if name == chosen[-1][0] else "",
            n_constant=int(name == chosen[1][0]),
            seconds=seconds,
            peak_memory=memory,
        )
        for name, _, _, seconds, memory in chosen
    ]
    stopped = MethodInfo(
        "LayerDeepLiftShap",
        "DeepLiftShap on layer4",
        RELEVANCE,
        "RuntimeError: the module ReLU is used more than once in the network, which DeepLift cannot "
        "follow; give each use a module of its own.",
    )
    methods.insert(1, stopped)
    scores[stopped.name] = {metric.name: np.full(n_examples, np.nan) for metric in METRICS}
    return Results(
        methods,
        METRICS,
        examples,
        scores,
        curves,
        maps,
        undefined={chosen[1][0]: {"sensitivity-n": (n_examples, "the map is constant over the tiles")}},
        configuration={
            "model": "resnet50",
            "layer": "layer4",
            "data": "photos",
            "seed": 0,
            "beta": 10.0,
            "tiles": (8, 14),
        },
        versions={"python": "3.11.2", "torch": "2.5.1", "captum": "0.8.0", "captum_iba": "0.1.0"},
        skipped={"zebra/broken.jpg": "cannot identify image file", "notes/thumbs.png": "broken PNG file"},
    )


def _scores(generator, noise, difficulty):
    """Scores that share the examples' difficulty, as those of a run do."""
    n = len(difficulty)
    found = {
        "insertion": 0.75 - 0.08 * noise + 0.1 * difficulty + 0.04 * generator.normal(size=n),
        "degradation 8x8": 0.55 - 0.12 * noise + 0.1 * difficulty + 0.05 * generator.normal(size=n),
        "bounding box": 0.8 - 0.1 * noise + 0.1 * difficulty + 0.05 * generator.normal(size=n),
        "sensitivity-n": 0.4 - 0.02 * noise + 0.05 * generator.normal(size=n),
        "infidelity": 1e-3 * np.exp(0.5 * noise + 0.3 * difficulty + 0.1 * generator.normal(size=n)),
        "effective size": 0.2 + 0.02 * generator.normal(size=n),
    }
    found["bounding box"][2::3] = np.nan
    return found


def jpeg(width, height):
    """A grey photo."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "grey").save(buffer, "JPEG")
    return buffer.getvalue()


def tiny_results(key="a", photo=b"", maps=None, curves=None, method="IBA"):
    """One example, method and metric."""
    return Results(
        [MethodInfo(method, "", "bits per pixel")],
        [MetricInfo("insertion", "An area.")],
        [ExampleInfo(key, "cat", "dog", 0.5, photo)],
        {method: {"insertion": np.array([0.5])}},
        curves or {},
        maps or {},
    )


class Page(HTMLParser):
    """Elements with their attributes and text, and the cells of the table of values."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "attrs": dict(attrs), "text": "", "within": [e["attrs"].get("id") for e in self.open]}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag, within=None, **attrs):
        return [
            e
            for e in self.elements
            if e["tag"] == tag
            and (within is None or within in e["within"])
            and all(e["attrs"].get(k) == v for k, v in attrs.items())
        ]

    def rows(self, within):
        rows = []
        for e in self.elements:
            if within in e["within"] and e["tag"] == "tr":
                rows.append([])
            if within in e["within"] and e["tag"] in ("th", "td"):
                rows[-1].append(e)
        return rows

    def data(self):
        return json.loads(self.all("script", id="data")[0]["text"])
