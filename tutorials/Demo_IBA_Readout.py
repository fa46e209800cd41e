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
# # The readout bottleneck: thousands of images, one forward pass each
#
# At the end you will have trained a `LayerReadoutIBA` for a network, read its training history, kept it in a file,
# explained a stream of images with it, and measured what that costs and how good it is beside `LayerIBA`, which
# searches a mask for each image anew.

# %%
# %matplotlib inline
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm's, where ipywidgets is not installed

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from IPython.display import Markdown, display
from matplotlib.figure import Figure
from torch import Tensor

from captum_iba import LayerIBA, LayerReadoutIBA, resize_bits
from captum_iba.demo import LAYER, load_canvases, load_model, load_readout, to_display
from captum_iba.metrics import bounding_box_ratio, boxes_to_mask
from captum_iba.visualization import Heatmap, plot_attributions

plt.rcParams["figure.dpi"] = 72


def say(text: str) -> None:
    """Show a sentence whose numbers come from the cell above it."""
    display(Markdown(text))


# %% [markdown]
# ## Data, in the form of a DataLoader
#
# Anything that yields batches of (inputs, labels) will do. The canvases to train on, those to watch the training with,
# and those to explain are three different sets: bits of an image that was trained on are no honest bound.

# %%
model = load_model()
layer = model.get_submodule(LAYER)
train, held_out, new = load_canvases("train", 1024), load_canvases("test", 200, seed=1), load_canvases("test", 64)
train_batches = list(zip(train.images.split(64), train.labels.split(64), strict=True))
held_out_batches = list(zip(held_out.images.split(100), held_out.labels.split(100), strict=True))

# %% [markdown]
# ## Train
#
# A small network reads the features of several layers of *your* network, which is never changed, and predicts the mask
# that `LayerIBA` would have to search. First `estimate`, which gathers the statistics of all these layers in one pass;
# then `fit`, which minimises the cross-entropy through the bottleneck plus `beta` times the mean information.
#
# Two settings matter in a training as short as this. The default learning rate is the paper's, for many thousand steps;
# here it must be larger. And then beta needs a **warm-up**: from full beta at once, a bottleneck closes before the
# network knows what to keep, and stays closed.

# %%
readout = LayerReadoutIBA(model, layer).estimate(train_batches)
readout.fit(
    train_batches,
    held_out_batches,
    epochs=4,
    learning_rate=2e-3,
    warmup_steps=32,
    show_progress=False,
)
history = readout.history

# %% [markdown]
# ## Look at the history
#
# Three curves, and what to look for in each. The **objective** should have stopped falling; during the warm-up that of
# the training batches has the beta of its step, the held-out one the full beta throughout. **Bits** fall from an
# all but open bottleneck; a fall to nothing together with the accuracy means that it closed. And **accuracy through the
# bottleneck**, beside the model's own: a map explains only what the bottleneck keeps of the decision.

# %%
figure = Figure(figsize=(11, 2.8), layout="constrained")
panels = figure.subplots(1, 3)
for axis, (name, label) in zip(
    panels, {"objective": "objective", "bits": "bits of an image", "accuracy": "accuracy"}.items(), strict=True
):
    axis.plot([m.step for m in history.training], [getattr(m, name) for m in history.training], label="training batch")
    steps = [m.step for m in history.validation]
    axis.plot(steps, [getattr(m, name) for m in history.validation], "o--", color="#D55E00", label="held out")
    axis.set(xlabel="step", title=label)
panels[0].set_yscale("log")
panels[1].set_yscale("log")
panels[2].axhline(history.validation[-1].model_accuracy, color="black", linewidth=0.8, label="held out, no bottleneck")
panels[2].legend(fontsize=8)
figure.suptitle("Bits fall by orders of magnitude while the decision stands", fontsize=10)
display(figure)

# %%
first, last = history.validation[0], history.validation[-1]
assert last.bits < first.bits / 50
assert last.accuracy > 0.8
say(
    f"In {history.seconds:.0f} s and {last.step} steps the held-out images went from {first.bits:.0f} bits to "
    f"{last.bits:.0f}; through the bottleneck {last.accuracy:.1%} of them are still read right, against "
    f"{last.model_accuracy:.1%} without it. If that is too little, train longer or with a smaller `beta`."
)

# %% [markdown]
# Long trainings: `fit(..., checkpoint="training.safetensors")` writes the training to a file and goes on from it, to
# the very weights an uninterrupted run would have reached.
#
# ## Save and load
#
# The file holds the network, the statistics and the names of the layers. It belongs to this model and this layer.

# %%
folder = tempfile.TemporaryDirectory()
path = Path(folder.name, "readout.safetensors")
readout.save(path)
loaded = LayerReadoutIBA(model, layer).load(path)
assert torch.equal(loaded.attribute(new.images), readout.attribute(new.images))
say(f"{path.stat().st_size / 1e6:.1f} MB; the loaded one gives the same bits exactly.")

# %% [markdown]
# ## Explain a stream of images
#
# Images that come one after another, from a camera or a queue, say. No gradient is needed, so `torch.inference_mode` is
# welcome. The map does not depend on a target: it is what the bottleneck passes for the network's own decision.


# %%
def stream() -> Iterator[Tensor]:
    """Stands for a camera: one image at a time."""
    yield from new.images.split(1)


def timed(method: LayerIBA | LayerReadoutIBA, images: list[Tensor], targets: list[int] | None) -> tuple[Tensor, float]:
    """Maps of images that come one by one, and the median time for one."""
    maps, seconds = [], []
    for i, image in enumerate(images):
        start = time.perf_counter()
        maps.append(method.attribute(image, target=None if targets is None else targets[i]))
        seconds.append(time.perf_counter() - start)
    return torch.cat(maps), statistics.median(seconds)


with torch.inference_mode():
    streamed, seconds_readout = timed(loaded, list(stream()), None)
with torch.no_grad():
    predicted = model(new.images).argmax(dim=1)

N = 16  # of them by LayerIBA, which takes its time
iba = LayerIBA(model, layer, statistics=readout.statistics[LAYER])
searched, seconds_iba = timed(iba, list(stream())[:N], predicted[:N].tolist())
with torch.inference_mode():
    start = time.perf_counter()
    for image in stream():
        model(image)
    seconds_plain = (time.perf_counter() - start) / len(new)

# %%
assert seconds_readout < seconds_iba / 2
say(
    "Time for one image, one at a time, on this machine:\n\n| | ms |\n|:--|--:|\n"
    f"| the model alone | {seconds_plain * 1000:.1f} |\n| LayerReadoutIBA | {seconds_readout * 1000:.1f} |\n"
    f"| LayerIBA | {seconds_iba * 1000:.1f} |\n\n"
    f"The readout is {seconds_iba / seconds_readout:.0f} times as fast as the search, and its training of "
    f"{history.seconds:.0f} s has paid off after {history.seconds / (seconds_iba - seconds_readout):.0f} images."
)

# %% [markdown]
# The embedded network is tiny, so that the readout beside it looks expensive; on a large network it costs a fraction of
# a forward pass (`python -m benchmarks.readout cost`).
#
# ## Is it as good?
#
# The maps side by side, and how much of the most relevant area lies in the box of the digit. The totals do **not**
# compare: one bottleneck was trained for all images, the other searched for each one.

# %%
size = tuple(new.images.shape[-2:])
maps = {
    "LayerReadoutIBA": Heatmap(resize_bits(streamed[:3], size), "bits per pixel"),
    "LayerIBA": Heatmap(resize_bits(searched[:3], size), "bits per pixel"),
}
display(plot_attributions(to_display(new.images[:3]), maps, boxes=new.boxes[:3]))

# %%
mask = torch.stack([boxes_to_mask(box[None], size) for box in new.boxes[:N]])
embedded = load_readout(model)  # the one that comes with the package, trained longer
through = {"LayerReadoutIBA, this notebook's": loaded, "LayerReadoutIBA, embedded": embedded}
lines = ["| | bounding box | accuracy through the bottleneck | bits |", "|:--|--:|--:|--:|"]
for name, method in through.items():
    inside = bounding_box_ratio(method.attribute(new.images[:N]), mask)
    measures = method.evaluate(held_out_batches)
    lines.append(
        f"| {name} | {inside.mean:.3f} ± {inside.stderr:.3f} | {measures.accuracy:.3f} | {measures.bits:.0f} |"
    )
inside = bounding_box_ratio(searched, mask)
_, record = iba.attribute(held_out.images[:N], target=held_out.labels[:N], return_diagnostics=True)
lines.append(
    f"| LayerIBA | {inside.mean:.3f} ± {inside.stderr:.3f} | (target's mean probability "
    f"{float(record.target_probability.mean()):.3f}) | {float(record.total_bits.mean()):.0f} |"
)
say("\n".join(lines) + f"\n\nBounding box: mean and standard error over {N} new images.")
folder.cleanup()

# %% [markdown]
# ## When to take which
#
# * **LayerReadoutIBA** for many images of the kind it was trained on, or where an answer has to come at once. It needs
#   many training examples: from a few it learns to find objects, but not the class's own among them. And it says
#   nothing about *another* target than the decision.
# * **LayerIBA** for a handful of images, for a question about a certain class, for images unlike the training data, or
#   where the bits of one image are the point.
#
# In either case look at what the bottleneck keeps: `evaluate`, or `attribute(..., return_diagnostics=True)`.
