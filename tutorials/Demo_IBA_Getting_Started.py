# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Getting started: how many bits does each region give the decision?
#
# At the end you will have explained a network's decisions with `LayerIBA` in ten lines, chosen a layer and a beta by
# looking at what they keep of the decision, kept the feature statistics in a file, and measured how much of a map is
# the noise's doing.
#
# Everything runs from data and weights that come with the package: handwritten digits among fragments of other digits,
# and a small convolutional network that reads them.

# %%
# %matplotlib inline
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm's, where ipywidgets is not installed

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from IPython.display import Markdown, display
from matplotlib.figure import Figure
from torch import Tensor, nn

from captum_iba import LayerIBA, resize_bits, suggest_layer
from captum_iba.demo import LAYER, load_canvases, load_model, to_display
from captum_iba.errors import CaptumIBAWarning
from captum_iba.metrics import seed_uncertainty
from captum_iba.photos import load_classifier
from captum_iba.visualization import Heatmap, plot_attributions

plt.rcParams["figure.dpi"] = 72


def say(text: str) -> None:
    """Show a sentence whose numbers come from the cell above it."""
    display(Markdown(text))


# %% [markdown]
# ## What is explained
#
# `MODEL = "demo"` is the embedded network. The name of a torchvision classifier, such as `"resnet50"`, explains
# scikit-learn's two photos with it instead, if its weights are in torch's cache; nothing is downloaded. Two photos are
# too few for statistics, so crops of the photos themselves stand in for a data set: good enough for a look, but the
# bits are then no upper bound (see "Statistics" below). Use a `DataLoader` of your own images in earnest.

# %%
MODEL = "demo"


class Setting(NamedTuple):
    """What the notebook works on."""

    model: nn.Module
    layers: dict[str, nn.Module]
    layer: nn.Module
    images: Tensor
    calibration: list[Tensor]
    to_display: Callable[[Tensor], Tensor]
    boxes: Tensor | None


def load(name: str) -> Setting:
    """The embedded network and canvases, or a torchvision classifier with cached weights and scikit-learn's photos."""
    if name == "demo":
        model, canvases = load_model(), load_canvases("test", 4)
        layers = {stage: model.get_submodule(stage) for stage in ("stage1", "stage2", "stage3", "stage4")}
        calibration = list(load_canvases("train", 2000).images.split(250))
        return Setting(model, layers, layers[LAYER], canvases.images, calibration, to_display, canvases.boxes)
    from PIL import Image
    from sklearn.datasets import load_sample_images
    from torchvision.models import get_model_weights
    from torchvision.transforms import RandomResizedCrop

    weights = Path(torch.hub.get_dir(), "checkpoints", Path(get_model_weights(name).DEFAULT.url).name)
    if not weights.is_file():
        raise FileNotFoundError(f"No weights of {name} at {weights}. Put them there, or take MODEL = 'demo'.")
    classifier = load_classifier(name, str(weights))
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    images = torch.stack([classifier.preprocess(photo) for photo in photos])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        crop = RandomResizedCrop(images.shape[-2:], scale=(0.1, 1.0))
        calibration = [torch.stack([crop(image) for image in images for _ in range(8)]) for _ in range(8)]
    layer = suggest_layer(classifier.model)
    stages = {stage: module for stage, module in classifier.model.named_children() if stage.startswith("layer")}
    return Setting(
        classifier.model, stages or {"suggested": layer}, layer, images, calibration, classifier.to_display, None
    )


setting = load(MODEL)
if MODEL != "demo":
    warnings.simplefilter("ignore", CaptumIBAWarning)  # of few examples: said above

# %% [markdown]
# ## Ten lines
#
# `LayerIBA` is a Captum `LayerAttribution`: model, layer, `attribute(inputs, target)`. The one thing more is
# `estimate`, once for a layer: the bottleneck replaces features by noise, and the noise should look like the layer's
# own features over many inputs.

# %%
model, layer, images = setting.model, setting.layer, setting.images
with torch.no_grad():
    probabilities = model(images).softmax(dim=1)
probability, target = probabilities.max(dim=1)

iba = LayerIBA(model, layer).estimate(setting.calibration)
bits, record = iba.attribute(images, target=target, return_diagnostics=True)

pixels = resize_bits(bits, tuple(images.shape[-2:]))  # bits per pixel, the total kept
titles = [
    f"class {int(c)}: {b:.0f} bits, p {p:.2f}" for c, b, p in zip(target, record.total_bits, probability, strict=True)
]
maps = {"LayerIBA": Heatmap(pixels, "bits per pixel")}
display(plot_attributions(setting.to_display(images), maps, titles, setting.boxes))

# %% [markdown]
# ## Reading the bits
#
# For each example the method looks for a mask that lets as little as possible through the layer while the target keeps
# its probability. What still passes a position is that position's value, in bits.
#
# * **Zero means not needed.** No bits at a position: its features can be noise, and the decision stands. (A position of
#   a deep layer sees a large patch of the input, so this is said of features, not of the pixels right below.)
# * **There is no sign.** What speaks against the class is not needed to keep it, and hardly shows.
# * **Totals compare** between images and classes at one layer with one set of statistics, and not between layers: more
#   elements pass more bits.
# * **A map explains what the bottleneck keeps of the decision**, so look at the target's probability through it.
#   `return_diagnostics=True` has both.

# %%
through = torch.as_tensor(record.target_probability)
rows = [
    f"| {i} | {int(target[i])} | {record.total_bits[i]:.0f} | {bits[i].max():.1f} | {probability[i]:.3f} "
    f"| {through[i]:.3f} |"
    for i in range(len(images))
]
head = [
    "| image | class | bits in all | at the strongest position | p(class) | p(class) through the bottleneck |",
    "|--:|--:|--:|--:|--:|--:|",
]
say("\n".join(head + rows))

# %%
ordered = bits.flatten(1).sort(dim=1, descending=True).values
half = int(((ordered.cumsum(dim=1) / ordered.sum(dim=1, keepdim=True)) < 0.5).sum(dim=1).add(1).float().mean())
say(
    f"The bits are concentrated: on average {half} of the {bits[0].numel()} positions hold half of them. "
    f"The total at this layer is {float(record.total_bits.mean()):.0f} bits, against "
    f"{float(record.information[0].mean()):.0f} bits before the first step, with the bottleneck all but open."
)
assert half < bits[0].numel() / 2
assert record.total_bits.mean() < record.information[0].mean()

# %%
if setting.boxes is not None:
    inside = torch.stack([pixels[i, 0, y0:y1, x0:x1].sum() for i, (x0, y0, x1, y1) in enumerate(setting.boxes)])
    share = inside / pixels.flatten(1).sum(dim=1)
    area = torch.stack([(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in setting.boxes]) / images[0, 0].numel()
    assert bool((share > 2 * area).all())
    say(
        "The embedded canvases come with the box of the one whole digit, which the network has to find: "
        f"{float(share.mean()):.0%} of the bits lie inside the box, which covers {float(area.mean()):.0%} of it all."
    )

# %% [markdown]
# ## Choosing the layer and beta
#
# Two choices are yours. The **layer**: early ones place evidence exactly but know little about objects, late ones the
# other way round. And **beta**, the price of information: the larger, the fewer bits, until the decision is given up.
# The paper shows both at once in its figure 4, and you can draw the same grid of your model: a row for each layer, a
# column for each beta, the first image in each panel. Read the probability first. Where it has collapsed, the map shows
# the rest of a closed bottleneck, whatever it looks like.

# %%
betas = [0.1, 1.0, 10.0, 100.0, 1000.0]
found = {}
for name, module in setting.layers.items():
    at_layer = LayerIBA(model, module).estimate(setting.calibration)
    for beta in betas:
        found[name, beta] = at_layer.attribute(images, target=target, beta=beta, return_diagnostics=True)

figure = Figure(figsize=(2.1 * len(betas), 2.1 * len(setting.layers)), layout="constrained")
axes = figure.subplots(len(setting.layers), len(betas), squeeze=False)
for row, name in enumerate(setting.layers):
    for column, beta in enumerate(betas):
        axis, (values, notes) = axes[row, column], found[name, beta]
        heat = resize_bits(values[:1], tuple(images.shape[-2:]))[0, 0]
        drawn = axis.imshow(heat, cmap="viridis", vmin=0)
        bar = figure.colorbar(drawn, ax=axis, fraction=0.046, pad=0.03)
        bar.ax.tick_params(labelsize=6)
        p = float(notes.target_probability[0])
        axis.set_title(f"p {p:.2f}, {float(notes.total_bits[0]):.0f} bits", fontsize=8)
        axis.set(xticks=[], yticks=[])
        if p < 0.5 * float(probability[0]):  # the decision is lost: say so without relying on colour
            axis.plot([0, 1], [0, 1], transform=axis.transAxes, color="white", linewidth=1)
        if row == 0:
            axis.annotate(f"beta {beta:g}", (0.5, 1.22), xycoords="axes fraction", ha="center", fontsize=9)
        if column == 0:
            axis.set_ylabel(name, fontsize=9)
figure.suptitle(
    f"More beta, fewer bits, until the decision goes (struck through). Bits per pixel; p {float(probability[0]):.2f} "
    "without bottleneck",
    fontsize=9,
)
display(figure)

# %% [markdown]
# A rule that needs no taste: for each layer take **the largest beta at which the decision stands**, here meaning that
# the target keeps nine tenths of its probability on average. The default of ten is the paper's, found for a network of
# a thousand classes; with fewer classes, giving the decision up costs less and beta must be smaller. Among the layers
# that remain, take the one whose map is as fine as you need.

# %%
KEPT = 0.9
lines = ["| layer | positions | " + " | ".join(f"beta {beta:g}" for beta in betas) + " | largest beta that holds |"]
lines.append("|:--|--:|" + "--:|" * (len(betas) + 1))
holds = {}
for name in setting.layers:
    kept = {beta: float((found[name, beta][1].target_probability / probability).mean()) for beta in betas}
    totals = [float(found[name, beta][1].total_bits.mean()) for beta in betas]
    assert totals == sorted(totals, reverse=True)  # more beta, fewer bits
    holds[name] = max((beta for beta in betas if kept[beta] >= KEPT), default=None)
    cells = [f"{total:.0f} bits, {kept[beta]:.0%}" for beta, total in zip(betas, totals, strict=True)]
    values = found[name, betas[0]][0]
    chosen = "none" if holds[name] is None else f"{holds[name]:g}"
    lines.append(f"| {name} | {values.shape[-2]} x {values.shape[-1]} | " + " | ".join(cells) + f" | {chosen} |")
say("\n".join(lines) + f"\n\nMean bits and share of the target's probability that is kept, over {len(images)} images.")

# %%
suggested = next((n for n, module in model.named_modules() if module is suggest_layer(model, images)), "")
say(
    f"`suggest_layer(model, images)` looks at nothing but the size of the feature maps and proposes `{suggested}`. "
    "It is a start where you know nothing of a network; the grid above tells more."
)

# %% [markdown]
# ## Statistics
#
# `estimate` streams a data set through the model as far as the layer, and keeps a mean and a deviation for each
# element of the features. They decide what the noise looks like, and the bits are an upper bound on what the features
# tell **only if the statistics do not come from the example that is explained**. So: data like those to be explained,
# but others. They are worth keeping in a file; the same statistics and seed give the very same map.

# %%
statistics = iba.statistics
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "layer.safetensors")
    iba.save_statistics(path)
    size = path.stat().st_size
    again = LayerIBA(model, layer).load_statistics(path).attribute(images, target=target)
assert torch.equal(again, bits)
say(
    f"From {statistics.n_samples} examples, kept in {size / 1000:.0f} kB. Loaded into a new object they give the same "
    "map, bit for bit."
)

# %% [markdown]
# **Without statistics** `attribute` works too, so that a first look costs nothing, but it warns: each example's own
# statistics stand in, and the figure is then no bound on anything. With too few examples there is a warning as well.

# %%
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", CaptumIBAWarning)
    without = LayerIBA(model, layer).attribute(images, target=target)
say("> " + "\n>\n> ".join(str(warning.message) for warning in caught))
assert any("no upper bound" in str(warning.message) for warning in caught)

# %%
# How many examples are enough? Compare with the map from all of them.
n_all = sum(len(batch) for batch in setting.calibration)
lines = ["| examples | mean total, bits | correlation with the map from all |", "|--:|--:|--:|"]
similar = []
for n in sorted({max(2, n_all // divisor) for divisor in (100, 20, 4, 2, 1)}):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CaptumIBAWarning)  # of few examples, which is the point here
        fewer = LayerIBA(model, layer).estimate(setting.calibration, max_examples=n).attribute(images, target=target)
    similar.append(float(torch.corrcoef(torch.stack([fewer.flatten(), bits.flatten()]))[0, 1]))
    lines.append(f"| {n} | {float(fewer.flatten(1).sum(dim=1).mean()):.0f} | {similar[-1]:.3f} |")
assert similar[-1] == max(similar)
say("\n".join(lines))

# %% [markdown]
# ## Seeds and uncertainty
#
# The mask is found with noise, from a generator of its own: the same `seed` gives the same map, and your global random
# state is not touched. Another seed gives another draw, and how much the map changes is how much of it you should not
# believe. `seed_uncertainty` runs several seeds as one batch.

# %%
result = seed_uncertainty(iba, images, target, n_seeds=5)
totals = result.maps.flatten(2).sum(dim=2)  # (seeds, images)
spread = totals.std(dim=0) / totals.mean(dim=0)
say(
    f"Over {len(result.maps)} seeds the ranking of the positions correlates at {result.mean:.3f} between two seeds on "
    f"average, and the total of an image varies by {float(spread.mean()):.1%} (standard deviation)."
)

# %%
size = tuple(images.shape[-2:])
maps = {
    f"mean of {len(result.maps)} seeds": Heatmap(resize_bits(result.mean_map[:2], size), "bits per pixel"),
    "standard error": Heatmap(resize_bits(result.stderr_map[:2], size), "bits per pixel"),
}
boxes = None if setting.boxes is None else setting.boxes[:2]
display(plot_attributions(setting.to_display(images[:2]), maps, boxes=boxes))

# %% [markdown]
# The mean map is itself an attribution with less noise. If stability between seeds is low, there are two usual
# reasons: too few noisy copies (raise `n_samples`), or redundant evidence, of which the bottleneck may keep now one
# part and now another.
#
# ## Where next
#
# * `Demo_IBA_Compare_Methods`: is it better than a gradient *on your model*? One call that answers.
# * `Demo_IBA_Readout`: thousands of images to explain? Train once, then one forward pass each.
# * `IBA_Sanity_Checks_And_Guarantee`: what the bound promises, and what voids it.
