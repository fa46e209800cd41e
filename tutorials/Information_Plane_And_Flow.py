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
# # How much information flows where: mutual information, information plane, flow, variational bottleneck
#
# At the end you will have estimated mutual information with an error bar and met the traps that make such numbers
# wrong, drawn the information plane of two small networks and seen what in it is the estimator's doing, listed which
# feature of the iris flowers reaches which class, and trained a network with a bottleneck whose bits you can count,
# which leads back to `LayerIBA`.
#
# All of it is in `captum_iba.information`: tensors in, tensors out, in bits.

# %%
# %matplotlib inline
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm's, where ipywidgets is not installed

import math
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
from IPython.display import Markdown, display
from matplotlib.figure import Figure
from sklearn.datasets import load_digits, load_iris
from torch import Tensor, nn

from captum_iba import LayerIBA
from captum_iba.errors import CaptumIBAWarning
from captum_iba.information import (
    KDE,
    MINE,
    Binning,
    InformationPlane,
    NeuralInformationFlow,
    VariationalBottleneck,
    VIBLoss,
    information_bottleneck,
    mean_probabilities,
    mutual_information,
)
from captum_iba.information.benchmark import run_benchmark
from captum_iba.information.szt import szt_dataset, tishby_network, train_epochs

plt.rcParams["figure.dpi"] = 72
torch.set_num_threads(1)  # these networks are so small that threads would only wait for each other


def say(text: str) -> None:
    """Show a sentence whose numbers come from the cell above it."""
    display(Markdown(text))


def quietly(function: Callable[[], object]) -> tuple[object, list[str]]:
    """What a call returns, and the warnings that it gave, as texts."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CaptumIBAWarning)
        found = function()
    return found, [str(warning.message) for warning in caught if issubclass(warning.category, CaptumIBAWarning)]


# %% [markdown]
# ## 1. Mutual information
#
# I(X;Y) is what one variable tells of another, in bits, whatever the form of the relation. Correlation sees straight
# lines only. Here y is a parabola of x, with some noise:

# %%
generator = torch.Generator().manual_seed(0)
x = 2 * torch.rand(1000, generator=generator) - 1
y = x**2 + 0.1 * torch.randn(1000, generator=generator)

N_PERMUTATIONS = 49
found = mutual_information(x, y, return_details=True, n_permutations=N_PERMUTATIONS)
low, high = (float(end) for end in found.interval)
correlation = float(torch.corrcoef(torch.stack([x, y]))[0, 1])
gaussian = float(mutual_information(x, y, "gaussian"))
say(
    f"The correlation is {correlation:.2f}, and the estimate for Gaussian variables, which rests on it, is "
    f"{gaussian:.2f} bits. Nearest neighbours (`{found.estimator}`, the default here) find **{float(found.value):.2f} "
    f"bits**, two standard errors reach from {low:.2f} to {high:.2f}. With y exchanged among the examples there is "
    f"nothing to find, and all the same 5 % of such estimates are above {float(found.null_quantile):.2f} bits. None of "
    f"{N_PERMUTATIONS} was as high as ours (p = {float(found.p_value):.2f})."
)
assert abs(correlation) < 0.1
assert gaussian < 0.05 < float(found.null_quantile) < low
assert math.isclose(float(found.p_value), 1 / (1 + N_PERMUTATIONS), rel_tol=1e-6)

# %%
# The truth, by integration: the entropy of y less the entropy of the noise
grid = torch.linspace(-1, 2, 3001, dtype=torch.float64)
centres = torch.linspace(-1, 1, 2001, dtype=torch.float64) ** 2
density = torch.distributions.Normal(centres, 0.1).log_prob(grid[:, None]).exp().mean(dim=1)
noise_entropy = 0.5 * math.log(2 * math.pi * math.e * 0.01)
truth = (float(torch.trapezoid(torch.special.entr(density), grid)) - noise_entropy) / math.log(2)
errors, covered = [], 0
for _ in range(20):
    other = 2 * torch.rand(1000, generator=generator) - 1
    one = mutual_information(other, other**2 + 0.1 * torch.randn(1000, generator=generator), return_details=True)
    errors.append(float(one.value) - truth)
    covered += bool(one.interval[0] <= truth <= one.interval[1])
say(
    f"The truth is {truth:.2f} bits. Over {len(errors)} other draws of 1000 examples the mean error is "
    f"{sum(errors) / len(errors):+.3f} bits, and the interval holds the truth in {covered}."
)
assert abs(sum(errors)) / len(errors) < 0.1

# %% [markdown]
# So `return_details=True` gives three things to read, and they answer different questions: the **interval** says what
# other examples would change, the **null** (`n_permutations`) what the estimator finds where there is nothing, and the
# **cap** the largest value that it can return. A systematic error of the estimator is in none of them.
#
# **Labels.** Integers and booleans are names of classes, in no order. Numbers that happen to be integers, such as
# counts, go in as `counts.double()`.

# %%
label = y > 0.3
found = mutual_information(x, label, return_details=True, n_permutations=N_PERMUTATIONS)
share = float(label.double().mean())
entropy = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
say(
    f"Whether y exceeds 0.3 is worth {entropy:.2f} bits in all, its entropy; x tells {float(found.value):.2f} of them "
    f"(standard error {float(found.standard_error):.2f}, null {float(found.null_quantile):.2f})."
)
assert float(found.null_quantile) < float(found.value) < entropy

# %% [markdown]
# ### Trap: one variable determines the other
#
# If y is an exact function of a continuous x, the information is infinite, and each estimate only says how many
# examples there were. The package warns where the estimate is near its cap. This warning is here on purpose:

# %%
exact, met = quietly(lambda: mutual_information(x, torch.exp(3 * x), return_details=True))
say("> " + "\n>\n> ".join(met))
assert any("near its largest value" in text for text in met)
assert bool(exact.saturated)

# %% [markdown]
# No warning is no proof of the contrary. An exact parabola lets two values of x share a y; the estimate stays below
# the cap, though the information is as infinite. The sure sign costs a second run: **does the estimate grow with the
# number of examples?**

# %%
sizes = (500, 1000, 2000, 4000)
many = 2 * torch.rand(max(sizes), generator=generator) - 1
links = {
    "exp(3x)": torch.exp(3 * many),
    "x squared": many**2,
    "x squared, with noise": many**2 + 0.1 * torch.randn(max(sizes), generator=generator),
}
lines = ["| y | " + " | ".join(f"{n} examples" for n in sizes) + " | warned |", "|:--|" + "--:|" * (len(sizes) + 1)]
growth = {}
for name, values in links.items():
    tried = [quietly(lambda n=n, v=values: float(mutual_information(many[:n], v[:n]))) for n in sizes]
    growth[name] = tried[-1][0] - tried[0][0]
    cells = [f"{value:.2f} bits" for value, _ in tried]
    lines.append(f"| {name} | " + " | ".join(cells) + f" | {sum(bool(texts) for _, texts in tried)} of {len(tried)} |")
say("\n".join(lines))
assert growth["exp(3x)"] > 2
assert growth["x squared"] > 2
assert abs(growth["x squared, with noise"]) < 0.3

# %% [markdown]
# The layers of a network without noise are such exact functions of its input. That is the whole difficulty of the
# information plane below.
#
# ### Trap: a critic that knows its examples by heart
#
# For vectors, critics are trained: networks that tell pairs from mixed pairs. The usual few lines report what the
# critic achieves on the examples that trained it:


# %%
def in_sample_bits(a: Tensor, b: Tensor, steps: int = 300) -> float:
    """The Donsker-Varadhan bound of a critic, on its own training examples, as it should not be done."""
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(a.shape[1] + b.shape[1], 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(critic.parameters(), lr=5e-3)
    n, value = len(a), torch.zeros(())
    for _ in range(steps):
        mixed = critic(torch.cat([a, b[torch.randperm(n)]], dim=1))
        value = critic(torch.cat([a, b], dim=1)).mean() - (mixed.logsumexp(0) - math.log(n)).squeeze()
        optimizer.zero_grad()
        (-value).backward()
        optimizer.step()
    return float(value.detach()) / math.log(2)


left, right = torch.randn(2, 300, 5, generator=generator)  # independent: the truth is 0
naive = in_sample_bits(left, right)
honest, met = quietly(lambda: mutual_information(left, right, MINE(n_steps=300), return_details=True))
say(
    f"Two independent vectors of five numbers, {honest.n} examples: the lines above find **{naive:.1f} bits**. The "
    f"package's `MINE` stops when it gets no better on others, and scores each example with a critic that never saw "
    f"it: {float(honest.value):.2f} bits, before negative values became 0 {float(honest.held_out):.2f} (standard error "
    f"{float(honest.standard_error):.2f}). The value on its own training examples, {float(honest.in_sample):.2f}, is "
    "kept for comparison as `in_sample`; where the two lie far apart, there is a warning."
)
assert naive > 0.5
assert float(honest.value) < 0.1
assert honest.in_sample > honest.held_out

# %% [markdown]
# ### Your own estimator
#
# Whatever estimator you use, try it where the answer is known. `run_benchmark` takes one of the package or a function
# of yours (two tensors in, nats out) through tasks with exact answers; two of them here, `"all"` runs the suite. A
# histogram with 20 x 20 cells, written down quickly:


# %%
def histogram(a: Tensor, b: Tensor) -> float:
    """Plug-in estimate from 20 x 20 cells, nats."""
    joint = torch.histogramdd(torch.cat([a, b], dim=1), [20, 20]).hist
    joint = joint / joint.sum()
    product = joint.sum(dim=1, keepdim=True) * joint.sum(dim=0, keepdim=True)
    return float(torch.where(joint > 0, joint * (joint / product).log(), 0.0).sum())


tasks = ["normal 1v1 rho=.75", "independent 1v1"]
results = {name: run_benchmark(one, tasks, n=1000, n_draws=5) for name, one in (("yours", histogram), ("KSG", "ksg"))}
for result in results.values():
    say(f"```\n{result}\n```")
mine, ksg = results["yours"].rows, results["KSG"].rows
say(
    f"Where there is nothing, the histogram finds {mine[1].mean:.2f} bits: what each cell holds by chance counts as "
    f"information. Nearest neighbours err by {ksg[1].absolute_error:.2f} bits "
    f"there, and by {ksg[0].absolute_error:.2f} on the first task, the histogram by {mine[0].absolute_error:.2f}."
)
assert all(own.absolute_error > 2 * other.absolute_error for own, other in zip(mine, ksg, strict=True))

# %% [markdown]
# ## 2. The information plane
#
# Shwartz-Ziv and Tishby (2017) drew, for each layer T of a network and each epoch, what T tells of the input, I(X;T),
# against what it tells of the label, I(T;Y), and saw I(X;T) rise and then fall: "compression". `szt_dataset` has their
# 4096 patterns of 12 bits, `tishby_network` their network.
#
# This is a brief version: half of the patterns to train on, a quarter to measure on, few epochs, one seed. The full
# experiment, with more estimators, seeds and sizes, is `python -m benchmarks.plane`.

# %%
EPOCHS = last = 300
patterns, classes = szt_dataset()
order = torch.randperm(len(patterns), generator=torch.Generator().manual_seed(0))
train, measured = order[:2048], order[:1024]
layers = [f"hidden{number}" for number in range(1, 6)]
spread = torch.logspace(0, math.log10(EPOCHS), 12).round().int().tolist()
steps = {0, *spread}


def entropy_of_rows(rows: Tensor) -> float:
    """Bits of which of the different rows it is: the true I(X;T) of equally likely inputs."""
    shares = torch.unique(rows, dim=0, return_counts=True)[1] / len(rows)
    return float(torch.special.entr(shares.double()).sum()) / math.log(2)


def record(activation: str) -> tuple[dict[str, InformationPlane], dict[int, tuple[float, float]], float]:
    """Train once, measured by two estimators; of the last hidden layer the truth and the share of large values."""
    network = tishby_network(activation)
    planes = {
        "KDE": InformationPlane(layers, KDE(noise_var=1e-3)),
        "bins on [-1, 1]": InformationPlane(layers, Binning(bins=30, limits=(-1.0, 1.0), correction=False)),
    }
    large, truth = (0.9 if activation == "tanh" else 1.0), {}
    for epoch in train_epochs(network, patterns[train], classes[train], n_epochs=EPOCHS):
        if epoch in steps:
            for plane in planes.values():
                plane.log(epoch, network, patterns[measured], classes[measured])
            with torch.no_grad():
                hidden = network[:-1](patterns[measured])
            truth[epoch] = entropy_of_rows(hidden), float((hidden.abs() > large).double().mean())
    with torch.no_grad():
        accuracy = float((network(patterns).argmax(dim=1) == classes).double().mean())
    return planes, truth, accuracy


tanh, tanh_truth, tanh_accuracy = record("tanh")
relu, relu_truth, relu_accuracy = record("relu")
joint = torch.stack([(classes[measured] == label).double() for label in (0, 1)], dim=1)
limit = information_bottleneck(joint, [0.9, 1.1, 10])
display(tanh["KDE"].plot(limit))

# %% [markdown]
# Each path is a layer, from dark (before training) to light. The dashed line is the limit that the information
# bottleneck sets: no T can tell more of Y than it tells of X, and not more than Y has. The classes are without noise,
# so the limit is a straight line and then a plateau.
#
# Now the warning that belongs to this picture. The network has no noise. What its last hidden layer truly tells of the
# input is the entropy of its different rows, and that can be counted:

# %%
path = tanh["KDE"].result().path("hidden5")
estimates = [tanh["KDE"].result().i_xt[place] for place in path]
true_values = [value for value, _ in tanh_truth.values()]
say(
    f"tanh, last hidden layer: the true I(X;T) is {true_values[0]:.2f} bits before training and {true_values[-1]:.2f} "
    f"after, of {math.log2(len(measured)):.0f} that {len(measured)} patterns have. The estimate moves between "
    f"{min(estimates):.2f} and {max(estimates):.2f} bits. (ReLU can make inputs truly equal, where all units are 0: "
    f"there the truth is {relu_truth[0][0]:.2f} bits before and {relu_truth[last][0]:.2f} after. It rises.)"
)
assert max(true_values) - min(true_values) < 0.1 < 1 < max(estimates) - min(estimates)
assert relu_truth[0][0] < relu_truth[last][0]

# %% [markdown]
# What moves is the information of T *with noise of the estimator added*: how far apart the values for different inputs
# lie, on the scale of this noise. Falling information means that the values draw together: clustering, real and often
# worth knowing, but no loss of information. So the estimator is part of the result. The same ReLU network, the very
# same epochs, measured by KDE and by 30 bins between -1 and 1:


# %%
def lost(plane: InformationPlane) -> list[float]:
    """Bits of I(X;T) that each layer has lost since its maximum."""
    return [plane.result().loss_after_maximum(layer) for layer in layers]


figure = Figure(figsize=(9.0, 3.4), layout="constrained")
axes = figure.subplots(1, 2, sharey=True)
colours = plt.get_cmap("viridis")(torch.linspace(0, 0.85, len(layers)).numpy())
for axis, (name, plane) in zip(axes, relu.items(), strict=True):
    result = plane.result()
    for layer, colour, marker in zip(layers, colours, "osD^v", strict=True):
        places = result.path(layer)
        axis.plot(
            [1 + result.step[place] for place in places],
            [result.i_xt[place] for place in places],
            color=colour,
            marker=marker,
            markersize=4,
            label=layer,
        )
    axis.set(xscale="log", xlabel="1 + epoch", title=f"{name}: hidden5 lost {lost(plane)[-1]:.1f} bits")
axes[0].set_ylabel("I(X;T), bits")
axes[0].legend(fontsize=8)
figure.suptitle("One ReLU network, two estimators", fontsize=10)
display(figure)

# %%
table = {"tanh, KDE": tanh["KDE"]} | {f"ReLU, {name}": plane for name, plane in relu.items()}
lines = ["| bits lost since the maximum | " + " | ".join(layers) + " |", "|:--|" + "--:|" * len(layers)]
lines += [f"| {name} | " + " | ".join(f"{bits:.2f}" for bits in lost(plane)) + " |" for name, plane in table.items()]
say("\n".join(lines))
say(
    f"By KDE, ReLU loses at most {max(lost(relu['KDE'])):.2f} bits; by the bins, up to "
    f"{max(lost(relu['bins on [-1, 1]'])):.2f}. The reason is plain: the outermost bin takes all that lies outside. "
    f"ReLU units grow, and the share of values of the last hidden layer above 1 went from {relu_truth[0][1]:.0%} to "
    f"{relu_truth[last][1]:.0%}. tanh does lose bits by KDE, up to {max(lost(tanh['KDE'])):.2f}: its units saturate, "
    f"with {tanh_truth[0][1]:.0%} of their values beyond 0.9 before training and {tanh_truth[last][1]:.0%} after. ReLU "
    f"did not cluster, and learned as well (accuracy on all patterns {relu_accuracy:.2f}, tanh {tanh_accuracy:.2f})."
)
assert max(lost(relu["bins on [-1, 1]"])) > max(lost(relu["KDE"])) + 0.5
assert relu_truth[last][1] > relu_truth[0][1]
assert tanh_truth[last][1] > tanh_truth[0][1]
assert max(lost(tanh["KDE"])) > max(lost(relu["KDE"])) + 0.2
assert tanh_accuracy > 0.85
assert relu_accuracy > tanh_accuracy - 0.02

# %% [markdown]
# One check needs no second estimator. A later layer cannot know more of the input than the one before it (data
# processing). Estimates can say so, because noise or bins are put on each layer anew, and then the two layers' values
# cannot be compared:

# %%
for name, plane in table.items():
    say(f"**{name}.** {plane.check_data_processing()}")

# %% [markdown]
# If you need a true I(X;T) that moves, put the noise into the network itself: `noisy_network_information`.
#
# ## 3. Neural Information Flow
#
# Which feature reaches which class? `NeuralInformationFlow` estimates the information of each unit with each unit of
# the next layer, drops what independent units would reach as well, and sums the products along all paths. The data are
# scikit-learn's iris flowers, in centimetres; the network is small.

# %%
iris = load_iris()
flowers, kinds = torch.tensor(iris.data, dtype=torch.float32), torch.tensor(iris.target)


def fitted(network: nn.Module, inputs: Tensor, target: Tensor, steps: int = 300) -> nn.Module:
    """Train with full batches."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs), target).backward()
        optimizer.step()
    return network.eval()


torch.manual_seed(0)
small = fitted(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)), flowers, kinds)
flow = NeuralInformationFlow(small, output="labels").fit((flowers, kinds))
say(f"```\n{flow.result.describe()}\n```")

# %%
attribution = flow.result.attribution
# for comparison: each feature by itself, without the network
direct = [float(mutual_information(flowers[:, column], kinds)) for column in range(4)]
figure = Figure(figsize=(6.4, 3.0), layout="constrained")
axis = figure.subplots()
drawn = axis.imshow(attribution, cmap="viridis", vmin=0, aspect="auto")
for row in range(4):
    for column in range(3):
        value = float(attribution[row, column])
        colour = "black" if value > 0.6 * float(attribution.max()) else "white"
        axis.text(column, row, f"{value:.1f}", ha="center", va="center", color=colour)
axis.set_xticks(range(3), iris.target_names)
axis.set_yticks(range(4), iris.feature_names)
axis.set_title("Petals reach every class more than sepals")
figure.colorbar(drawn, ax=axis, label="flow (sum of products, no bits)")
display(figure)
assert bool((attribution[2:].min(dim=0).values > attribution[:2].max(dim=0).values).all())

# %%
same = attribution.sum(dim=1).argsort().tolist() == torch.tensor(direct).argsort().tolist()
said = ", ".join(f"{name} {bits:.2f}" for name, bits in zip(iris.feature_names, direct, strict=True))
say(
    f"The numbers rank; a sum of products of bits is no bits. The information of each feature with the species is: "
    f"{said} bits. The order is {'the same' if same else 'another one'}. "
    "The attribution is global, the same for every flower: `flow.attribute(flowers[:1], target=2)` returns it in the "
    "inputs' shape, for Captum's tools."
)

# %%
display(flow.plot())

# %% [markdown]
# Hollow units carry nothing above chance; crossed ones are **constant**: one value for all flowers. A constant unit can
# be removed: its value goes into the next layer's bias.

# %%
pruned, report = flow.prune()
say(
    f"Removed were {report.n_units} of {small[0].out_features} units. The largest change of an output is "
    f"{report.largest_difference:.1e}, where the largest output is {report.largest_output:.1f}; accuracy "
    f"{report.accuracy_before:.3f} before, {report.accuracy_after:.3f} after. That is exact *on these flowers*: on "
    "other inputs such a unit may wake up."
)
assert report.n_units > 0
assert report.largest_difference < 1e-4
assert report.accuracy_before == report.accuracy_after

# %% [markdown]
# ### The counterexample
#
# All this is pairwise. With an exclusive or, neither bit alone says anything of the class, and both together say all.
# Here is a network whose first layer passes on the two bits (its weights are set); only after it they meet, in
# |w1 a + w2 b|:


# %%
class Absolute(nn.Module):
    """Size without sign."""

    def forward(self, values: Tensor) -> Tensor:
        """Of each value."""
        return values.abs()


bits = torch.randint(2, (600, 2), generator=generator) * 2.0 - 1
either = (bits[:, 0] != bits[:, 1]).long()
torch.manual_seed(0)
xor = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1, bias=False), Absolute(), nn.Linear(1, 2))
with torch.no_grad():
    xor[0].weight.copy_(2 * torch.eye(2))
    xor[0].bias.zero_()
xor[0].requires_grad_(False)
fitted(xor, bits, either)
blind = NeuralInformationFlow(xor, output="labels", family_wise=True).fit((bits, either))
_, report = blind.prune("null")
alone = [float(mutual_information(bits[:, column].long(), either)) for column in range(2)]
together = float(mutual_information(bits.long(), either))
say(
    f"Alone the bits tell {alone[0]:.2f} and {alone[1]:.2f} bits of the class, together {together:.2f}. The flow from "
    f"inputs to classes is {float(blind.result.attribution.abs().sum()):.2f}, and the units without flow are, by "
    f"layer, {blind.result.units_of('null')}. Removing them takes the accuracy from {report.accuracy_before:.2f} to "
    f"{report.accuracy_after:.2f}."
)
assert max(alone) < 0.1 < 0.9 < together
assert float(blind.result.attribution.abs().sum()) == 0
assert blind.result.units_of("null")["1"] == (0, 1)
assert report.accuracy_after < 0.7 < 0.95 < report.accuracy_before

# %% [markdown]
# So no flow is no proof that a unit is not needed. `prune()` removes constant units only, unless told otherwise, and
# its report says what a removal did. In an ordinary network units mix the bits from the start, and then the flow is
# seen:

# %%
torch.manual_seed(0)
ordinary = fitted(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)), bits, either)
seeing = NeuralInformationFlow(ordinary, output="labels").fit((bits, either))
reached = float(seeing.result.attribution.min())
say(f"With one layer of eight tanh units, each bit reaches each class with {reached:.1f} or more.")
assert reached > 0

# %% [markdown]
# ## 4. The variational bottleneck
#
# Until now we measured networks as they are. `VariationalBottleneck` is a layer that you train with: it passes on a
# noisy code and counts how many bits the code may tell of the input, the *rate*, an upper bound. `VIBLoss` adds beta
# times the rate to the loss. As in any information bottleneck, beta is the price.
#
# A small convolutional network on scikit-learn's digits, with a code of two numbers at each of the 8 x 8 positions:

# %%
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
labels = torch.tensor(digits.target)
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
learn, test = order[:1297], order[1297:]


class ChannelsLast(nn.Module):
    """(N, C, H, W) -> (N, H, W, C), as the bottleneck codes the last axis."""

    def forward(self, features: Tensor) -> Tensor:
        """Move the axis."""
        return features.movedim(1, -1)


def make(bottleneck: nn.Module, codes: int) -> nn.Sequential:
    """Convolution, bottleneck at each position, classifier."""
    features = [nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), ChannelsLast(), bottleneck]
    return nn.Sequential(*features, nn.Flatten(-3), nn.Linear(64 * codes, 64), nn.ReLU(), nn.Linear(64, 10))


def train_digits(network: nn.Sequential, loss: Callable[[Tensor, Tensor], Tensor], epochs: int = 30) -> nn.Sequential:
    """Train in batches of 100."""
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(epochs):
        for rows in learn[torch.randperm(len(learn))].split(100):
            optimizer.zero_grad()
            loss(network(images[rows]), labels[rows]).backward()
            optimizer.step()
    return network.eval()


BETAS = (1e-3, 1e-2, 1e-1)
torch.manual_seed(0)
twin = train_digits(make(nn.Identity(), 12), nn.functional.cross_entropy)
trained = {}
for beta in BETAS:
    torch.manual_seed(0)
    bottleneck, objective = VariationalBottleneck(12, 2), VIBLoss(beta)
    network = make(bottleneck, 2)
    train_digits(network, lambda logits, target, o=objective, b=bottleneck: o(logits, target, b.kl))
    with torch.no_grad(), bottleneck.sampling(12):
        predicted = mean_probabilities(network(images[test])).argmax(dim=1)
    accuracy = float((predicted == labels[test]).double().mean())
    trained[beta] = (bottleneck.kl.detach().sum(-1), float(bottleneck.rate), accuracy)

lines = ["| beta | rate, bits | accuracy on test digits |", "|--:|--:|--:|"]
lines += [f"| {beta:g} | {rate:.1f} | {accuracy:.3f} |" for beta, (_, rate, accuracy) in trained.items()]
with torch.no_grad():
    without = float((twin(images[test]).argmax(dim=1) == labels[test]).double().mean())
lines.append(f"| no bottleneck | no bound | {without:.3f} |")
say("\n".join(lines))
rates = [rate for _, rate, _ in trained.values()]
say(
    f"From the first beta to the last the rate falls by a factor of {rates[0] / rates[-1]:.0f}, to {rates[-1]:.1f} "
    f"bits. Which of ten digits it is takes {math.log2(10):.1f}; the code is worked out from 3 x 3 pixels at a time, "
    "so that it cannot know the digit, and says more than that. The last beta already costs accuracy."
)
assert rates == sorted(rates, reverse=True)
assert trained[BETAS[-1]][2] < trained[BETAS[0]][2]
assert rates[-1] > math.log2(10)

# %% [markdown]
# Predictions are averaged over draws of the code (`sampling`, `mean_probabilities`), because the rate bounds what
# *draws* tell; the mean code is a real number that can tell more.
#
# ### The link with LayerIBA
#
# `bottleneck.kl` summed over the codes is a map: bits at each position, for each example. `LayerIBA` gives the same
# kind of map for a network that is already trained and stays as it is. The difference is who knows what. The
# variational bottleneck learns one rule for all images, which sees one patch at a time and not the class: its map says
# where this kind of network *codes* much. `LayerIBA` looks for a mask for this very image and class: its map says what
# *this decision* needs.

# %%
shown = torch.stack([(labels[test] == digit).nonzero()[0, 0] for digit in (0, 1, 3, 4, 7)])
method = LayerIBA(twin, twin[1]).estimate(list(images[learn].split(100)))
needed, notes = method.attribute(images[test][shown], target=labels[test][shown], beta=1.0, return_diagnostics=True)
coded = trained[1e-2][0][shown]

rows = {"digit": images[test][shown, 0], "VIB, beta 0.01": coded, "LayerIBA, beta 1": needed[:, 0]}
figure = Figure(figsize=(8.4, 4.8), layout="constrained")
axes = figure.subplots(len(rows), len(shown))
for row, (name, maps) in enumerate(rows.items()):
    for column, values in enumerate(maps):
        axis = axes[row, column]
        drawn = axis.imshow(values, cmap="viridis" if row else "gray", vmin=0, vmax=float(maps.max()))
        axis.set(xticks=[], yticks=[])
        if row:
            axis.set_title(f"{float(values.sum()):.1f} bits", fontsize=9)
        if column == 0:
            axis.set_ylabel(name, fontsize=9)
    figure.colorbar(drawn, ax=axes[row].tolist(), label="bits per position" if row else "ink")
figure.suptitle("What the bottleneck codes, and what LayerIBA finds that the decision needs", fontsize=10)
display(figure)

# %%
ink = images[test][shown, 0] > 0.3
with torch.no_grad():
    before = twin(images[test][shown]).softmax(dim=1)[torch.arange(len(shown)), labels[test][shown]]
on_ink = [float(maps[ink].sum() / maps.sum()) for maps in (coded, needed[:, 0])]
say(
    f"Ink covers {float(ink.double().mean()):.0%} of the positions. {on_ink[0]:.0%} of the bottleneck's bits lie "
    f"there, and {on_ink[1]:.0%} of `LayerIBA`'s: that there is no stroke is evidence too. The target's probability is "
    f"{float(notes.target_probability.mean()):.2f} on average through `LayerIBA`'s mask, {float(before.mean()):.2f} "
    "without (it may rise: the mask also cuts off what speaks against the class). Totals of the two maps do not "
    "compare: two networks, two kinds of noise."
)
assert float(ink.double().mean()) < min(on_ink)
assert max(on_ink) < 0.8

# %% [markdown]
# ## Where next
#
# * `python -m benchmarks.plane`, `python -m benchmarks.flow`, `python -m benchmarks.vib digits`,
#   `python -m benchmarks.information tasks`: each section at full size.
# * `Demo_IBA_Getting_Started` and `IBA_Sanity_Checks_And_Guarantee`: `LayerIBA` itself, and what its bound promises.
