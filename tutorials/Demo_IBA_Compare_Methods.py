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
# # Comparing methods: which one should you trust on your model?
#
# At the end you will have `LayerIBA` beside Captum's methods on the same images, a table of many methods and metrics
# with its uncertainty, a way of reading it that does not fool you, and a list of questions for which `LayerIBA` is the
# wrong tool, each shown on a case where the right answer is known.

# %%
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm's, where ipywidgets is not installed
warnings.filterwarnings("ignore", message="Setting backward hooks on ReLU")  # Captum's, of GuidedBackprop
warnings.filterwarnings("ignore", message="Input Tensor 0 did not already require gradients")  # likewise

import io
import math
import time

import numpy as np
import PIL.Image
import torch
from captum.attr import GuidedBackprop, IntegratedGradients, LayerGradCam
from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure
from torch import Tensor, nn

from captum_iba import LayerIBA, compare, resize_bits
from captum_iba.demo import LAYER, load_canvases, load_model, to_display
from captum_iba.demo.data import GREY_MEAN, GREY_STD
from captum_iba.visualization import Heatmap, plot_attributions


def show(figure: Figure, dpi: int = 72) -> None:
    """Show a figure with few colours, which keeps the notebook small."""
    file = io.BytesIO()
    figure.savefig(file, dpi=dpi, bbox_inches="tight")
    picture = PIL.Image.open(file).convert("RGB").quantize(256)
    picture.save(file := io.BytesIO(), "png", optimize=True)
    display(Image(file.getvalue()))


def say(text: str) -> None:
    """Show a sentence whose numbers come from the cell above it."""
    display(Markdown(text))


# %% [markdown]
# ## Side by side, by hand
#
# The embedded network reads a handwritten digit among fragments of others. All methods have the same call, so a
# comparison by eye is a few lines. Mind the units: bits for `LayerIBA`, no unit for the others, and signs for some.

# %%
model, canvases = load_model(), load_canvases("test", 6)
calibration = list(load_canvases("train", 1000).images.split(250))
layer = model.get_submodule(LAYER)
iba = LayerIBA(model, layer).estimate(calibration)

images, target = canvases.images[:2], canvases.labels[:2]
size = tuple(images.shape[-2:])
cam = LayerGradCam(model, model.stage4).attribute(images, target=target, relu_attributions=True)
maps = {
    "LayerIBA": Heatmap(resize_bits(iba.attribute(images, target=target), size), "bits per pixel"),
    "LayerGradCam, last stage": Heatmap(resize_bits(cam.detach(), size), "no unit"),
    "IntegratedGradients": Heatmap(IntegratedGradients(model).attribute(images, target=target).detach(), "no unit"),
    "GuidedBackprop": Heatmap(GuidedBackprop(model).attribute(images, target=target).detach(), "no unit"),
}
show(plot_attributions(to_display(images), maps, boxes=canvases.boxes[:2]))

# %% [markdown]
# The eye prefers tidy maps, and tidy is not the same as right. So measure.
#
# ## One call: methods times metrics
#
# `compare` builds each method for the model (Captum's with their usual parameters), explains each example, and scores
# each map. Without `methods` and `metrics` it takes those of the paper. A method that cannot run on a model becomes a
# row with its reason. A handful of canvases, coarser curves (`n_steps`) and fewer random sets (`n_perturb_samples`)
# keep this notebook short; for a result to act on, take a hundred examples and the defaults.

# %%
report = compare(
    model,
    canvases,
    layer=LAYER,
    statistics=iba.statistics,
    calibration=calibration,
    n_steps=8,
    n_perturb_samples=20,
)
say(report.to_markdown())

# %% [markdown]
# What the columns ask:
#
# * **degradation**: tiles are removed, most relevant first and, in a second run, least relevant first. The area between
#   both curves of the target's probability; two sizes of tiles, since a method that removes tiles itself has an
#   advantage at its own size.
# * **bounding box**: how much of the most relevant area lies inside the object's box. It needs boxes, and it takes for
#   granted that the network looks at the object.
# * **sensitivity-n**: random sets of tiles are removed; does the sum of their attribution predict how far the output
#   falls? This rewards signs, which bits do not have.
# * **sufficiency**: everything but the most relevant area of a layer becomes noise; does the decision stand? This is
#   what the bottleneck optimises, so it is its home game.
#
# No column is the truth. A method that leads in one and trails in another has told you what it measures.
#
# ## Reading the table: paired differences
#
# The standard errors in the table are mostly about the examples: some canvases are easy for every method. To compare
# two methods, take the difference **on each example** and its standard error, as `report.paired` does: what makes an
# example easy cancels.

# %%
methods = [info.name for info in report.results.methods if not info.reason]
metrics = [info.name for info in report.results.metrics]
others = [name for name in methods if name != "LayerIBA"]
head = ["| LayerIBA ahead of | " + " | ".join(metrics) + " |", "|:--|" + "--:|" * len(metrics)]
rows, ratios, clear = [], [], {"ahead": 0, "behind": 0, "open": 0}
for other in others:
    cells = []
    for metric in metrics:
        difference, error, _ = report.paired("LayerIBA", other, metric)
        ratios.append(error / math.hypot(report.stderr("LayerIBA", metric), report.stderr(other, metric)))
        verdict = "open" if abs(difference) <= 2 * error else "ahead" if difference > 0 else "behind"
        clear[verdict] += 1
        text = f"{difference:+.2f} ± {error:.2f}"
        cells.append(text if verdict == "open" else f"**{text}**")
    rows.append(f"| {other} | " + " | ".join(cells) + " |")
say("\n".join(head + rows) + "\n\nMean and standard error of the paired difference; bold beyond two standard errors.")

# %%
assert float(np.median(ratios)) < 1
by_chance = 0.05 * len(ratios)
say(
    f"Pairing pays: the median standard error of a difference is {float(np.median(ratios)):.2f} of what the two "
    f"methods' own errors would suggest. Of {len(ratios)} differences LayerIBA is ahead in {clear['ahead']}, behind in "
    f"{clear['behind']}, and {clear['open']} stay open. With so many looks about {by_chance:.0f} would cross two "
    "standard errors by chance alone even if no method differed from another, and with only "
    f"{len(canvases)} examples the errors are rough themselves. Settle the one comparison that you care about on fresh "
    "examples."
)

# %% [markdown]
# The same as pictures: means with their errors and the curves behind them, then the maps.

# %%
show(report.plot(), dpi=60)

# %%
show(report.plot_maps(1))

# %% [markdown]
# ## The other metrics
#
# `metrics="all"` adds insertion and deletion, and Captum's infidelity and sensitivity max, by which an attribution is
# good if it hardly changes when the input does. They take more time; here for a few methods and examples.

# %%
further = compare(
    model,
    (canvases.images[:2], canvases.labels[:2]),
    methods=["LayerIBA", "IntegratedGradients", "GuidedBackprop", "LayerGradCam", "Random"],
    metrics=["insertion", "deletion", "infidelity", "sensitivity max"],
    layer=LAYER,
    statistics=iba.statistics,
    calibration=calibration,
)
say(further.to_markdown())
steadiest = min(("LayerIBA", "Random"), key=lambda name: further.mean(name, "sensitivity max"))
assert steadiest == "Random"

# %% [markdown]
# A lesson in reading: by sensitivity max a map of **random** numbers, the same ones for every input, is steadier than
# `LayerIBA`. It does not change because it does not look. Stability is a condition, not a merit; the sanity checks in
# `IBA_Sanity_Checks_And_Guarantee` ask the opposite question. Infidelity compares with the fall of the output itself,
# and so again rewards methods in the output's unit.
#
# ## When LayerIBA is the wrong tool
#
# ### The question has a sign, or the model is additive
#
# Take the simplest model there is: a logistic regression on eight independent inputs. What each input contributes to
# the log-odds is known exactly, its weight times its distance from the mean, for or against.

# %%
weights = torch.tensor([2.0, 1.0, 0.5, 0.0, 0.0, -0.5, -1.0, -2.0])
linear = nn.Sequential(nn.Identity(), nn.Linear(8, 2, bias=False)).eval()
with torch.no_grad():
    linear[1].weight.copy_(torch.stack([-weights / 2, weights / 2]))
data = torch.randn(5000, 8, generator=torch.Generator().manual_seed(0))
point = torch.full((1, 8), 1.0)
point[0, 0] = 1.5  # so that class 1 has the upper hand


def log_odds(inputs: Tensor) -> Tensor:
    """Log-odds of class 1."""
    return linear(inputs) @ torch.tensor([-1.0, 1.0])


start = time.perf_counter()
gradients = IntegratedGradients(log_odds).attribute(point, baselines=data.mean(dim=0, keepdim=True)).detach()[0]
seconds_gradients = time.perf_counter() - start
bottleneck = LayerIBA(linear, linear[0]).estimate(data)
start = time.perf_counter()
needed = bottleneck.attribute(point, target=1, beta=0.1, n_steps=100, learning_rate=0.3, attr_dim_summation=False)[0]
seconds_iba = time.perf_counter() - start
exact = weights * (point[0] - data.mean(dim=0))

figure = Figure(figsize=(9, 2.8), layout="constrained")
left, right = figure.subplots(1, 2)
left.bar(range(8), exact, color="#0072B2", label="exact")
left.plot(range(8), gradients, "o", color="#E69F00", label="IntegratedGradients")
left.axhline(0, color="black", linewidth=0.8)
left.set(title="Contribution to the log-odds: signs, known exactly", xlabel="input", ylabel="nats")
left.legend(fontsize=8)
right.bar(range(8), needed, color="#0072B2")
right.set(title="LayerIBA: what must be let through, no sign", xlabel="input", ylabel="bits")
show(figure)

# %%
against, idle = needed[-1], needed[3:5].max()
assert torch.allclose(gradients, exact, atol=1e-5)
assert seconds_iba > seconds_gradients
assert max(float(against), float(idle)) < 0.1 < float(needed[0])
say(
    "IntegratedGradients agrees with the exact contributions to the last digits of a float, signs included, and took "
    f"{seconds_gradients * 1000:.0f} ms against {seconds_iba * 1000:.0f} ms. LayerIBA gives the strongest input "
    f"*for* the class {float(needed[0]):.2f} bits and the equally weighted one *against* it {float(against):.2f} bits, "
    f"about as few as the {float(idle):.2f} bits of the inputs without any weight: what speaks against the class is "
    "not needed to keep it."
)

# %% [markdown]
# So:
#
# * **Signed effects** ("what speaks against this loan?"): bits do not show it. Take IntegratedGradients or DeepLift, or
#   explain the other class.
# * **Additive tasks** (sums, scores, counts): what each part adds is the answer, in the output's own unit. Bits are
#   about what may be left out, which is another question.
# * **Where a gradient suffices** (linear or nearly linear models): gradient times distance is the exact answer, for the
#   price of one backward pass.
#
# ### The evidence is there twice
#
# A bottleneck looks for *little* information that suffices. Where a digit is on the canvas twice, one copy would do.

# %%
BLANK = -GREY_MEAN / GREY_STD  # the background's grey, centred and scaled like the images


def doubled(image: Tensor, box: Tensor) -> tuple[Tensor, Tensor, tuple[int, int, int, int]]:
    """A canvas with a second copy of the digit in the opposite corner, the same without the first, the copy's box."""
    x0, y0, x1, y1 = box.tolist()
    x, y = (0 if x0 + x1 > 64 else 64 - (x1 - x0)), (0 if y0 + y1 > 64 else 64 - (y1 - y0))
    copy = (x, y, x + x1 - x0, y + y1 - y0)
    two = image.clone()
    two[:, max(0, y - 2) : copy[3] + 2, max(0, x - 2) : copy[2] + 2] = BLANK  # a rim free of fragments
    two[:, y : copy[3], x : copy[2]] = image[:, y0:y1, x0:x1]
    one = two.clone()
    one[:, y0:y1, x0:x1] = BLANK
    return two, one, copy


def share_inside(bits: Tensor, box: object) -> Tensor:
    """Share of a map's bits inside a box."""
    x0, y0, x1, y1 = box
    return bits[0, y0:y1, x0:x1].sum() / bits.sum()


pairs = [doubled(image, box) for image, box in zip(canvases.images, canvases.boxes, strict=True)]
two, one = (torch.stack([pair[i] for pair in pairs]) for i in (0, 1))
rows = torch.arange(len(two))
with torch.no_grad():
    p_two, p_one, p_first = (model(x).softmax(dim=1)[rows, canvases.labels] for x in (two, one, canvases.images))
places = [[canvases.boxes[i], pairs[i][2]] for i in range(len(two))]
bits, shares = {}, {}  # by beta
for beta in (0.1, 1.0, 10.0):
    bits[beta] = resize_bits(iba.attribute(two, target=canvases.labels, beta=beta), size)
    shares[beta] = torch.tensor([[share_inside(bits[beta][i], box) for box in places[i]] for i in range(len(two))])
maps = {f"LayerIBA, beta {beta:g}": Heatmap(bits[beta][:3], "bits per pixel") for beta in bits}
show(plot_attributions(to_display(two[:3]), maps))

# %%
weaker = {beta: share.min(dim=1).values for beta, share in shares.items()}
drop = (p_two - torch.minimum(p_one, p_first)).clamp_min(0)
assert float(drop.mean()) < 0.1 < float(p_one.mean())
assert float(weaker[10.0].mean()) < float(weaker[0.1].mean()) < 0.5
say(
    f"Remove either copy, and the target's probability falls by no more than {float(drop.mean()):.3f}, averaged over "
    f"{len(two)} canvases: to a method that removes one thing at a time, neither copy matters much. LayerIBA has the "
    f"bits in the copies, {float(shares[1.0].sum(dim=1).mean()):.0%} of them at beta 1, but how it divides them is a "
    f"matter of price: the weaker copy holds {float(weaker[0.1].mean()):.0%} at beta 0.1 and "
    f"{float(weaker[10.0].mean()):.0%} at beta 10, on one canvas {float(weaker[10.0].min()):.0%}, although it would "
    "nearly do alone."
)

# %% [markdown]
# Neither answer is wrong; both are answers to "what suffices" and "what is necessary", not to "what would also do".
# Where evidence is redundant, look at several seeds (`captum_iba.metrics.seed_uncertainty`), take a smaller beta, or
# explain again with the first finding removed.
#
# ## Where next
#
# * On photos of your own: `captum-iba compare --model resnet50 --data PHOTOS --calibrate MORE_PHOTOS --output compared`
#   writes this table, the curves and the maps as one page (`report.save(folder)` in Python).
# * `register_method("name", build)` puts a method of yours into every later comparison.
# * `IBA_Sanity_Checks_And_Guarantee`: does a method look at the model at all?
