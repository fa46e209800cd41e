# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Bits per token, layer by layer
#
# At the end you will have, for a BERT that classifies sentences, the bits that its decision needs from each token, the
# same at every layer, and a number that says how far this ranking of tokens can be trusted. You will also know how to
# choose `beta` for a model with two classes, where a guess costs little.
#
# The model is trained here within seconds, on film reviews made from templates in which only the words of opinion
# decide. So the right answer is known. To look at a classifier of your own, put its folder into `MODEL`, as
# `save_pretrained` writes it; nothing is downloaded. What a token is to the bottleneck stands on the documentation's
# concept page about tokens.

# %%
import html
import io
import math
import random
import re
import warnings
from dataclasses import replace
from pathlib import Path

warnings.filterwarnings("ignore", message="IProgress not found")  # progress bars are not shown here

import pandas as pd
import torch
import transformers
from IPython.display import HTML, Image, Markdown
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

from captum_iba import LayerIBA, compare, information_by_layer
from captum_iba.attr import TOKEN_RANKING, find_blocks
from captum_iba.comparison import TextExamples
from captum_iba.metrics import degradation
from captum_iba.text_models import load_text_classifier
from captum_iba.visualization import layers_to_html, plot_layers

MODEL = None  # or a folder with a text classifier of transformers and its tokenizer


def show(figure, dpi=80):
    """A figure as a small picture."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=dpi)
    return Image(picture.getvalue())


def say(text, holds=True):
    """A sentence with computed numbers; what it claims must hold for the model trained here."""
    assert holds or MODEL is not None, f"The text claims what was not found: {text}"
    return Markdown(text if holds else f"*Not all of this holds on your model:* {text}")


# %% [markdown]
# ## Sentences of which we know what decides
#
# Every sentence has one word of opinion, or two of the same kind. All other words are drawn alike for both classes, so
# that they cannot tell anything.

# %%
GOOD = ["brilliant", "moving", "warm", "funny", "elegant", "gripping"]
BAD = ["dull", "flat", "tedious", "clumsy", "shallow", "boring"]
PLACES = {
    "neutral": ["long", "new", "french", "second", "short", "late", "old"],
    "thing": ["plot", "cast", "score", "story", "camera", "ending", "dialogue"],
    "kind": ["film", "comedy", "drama", "thriller", "western", "documentary"],
    "end": ["", " .", " , so they tell me ."],
}
FRAMES = [
    "the {thing} of this {neutral} {kind} is {opinion}{end}",
    "the {opinion} {kind} about that {neutral} summer{end}",
    "i saw the {neutral} {kind} on friday , and found it {opinion}{end}",
    "with its {opinion} {thing} the {kind} runs for two hours{end}",
    "they say that the {kind} has a {opinion} {thing}{end}",
]


def review(rng, n_opinions):
    """A sentence and its class."""
    label = rng.randrange(2)
    opinion = " and ".join(rng.sample((BAD, GOOD)[label], n_opinions))
    words = {name: rng.choice(choices) for name, choices in PLACES.items()}
    return rng.choice(FRAMES).format(opinion=opinion, **words), label


def reviews(n, seed, n_opinions=None):
    """Sentences and classes; without n_opinions three in ten sentences have two words of opinion."""
    rng = random.Random(seed)
    drawn = [review(rng, n_opinions or (2 if rng.random() < 0.3 else 1)) for _ in range(n)]
    return [text for text, _ in drawn], torch.tensor([label for _, label in drawn])


train_texts, train_labels = reviews(4000, seed=0)
pd.DataFrame({"text": train_texts[:5], "class": train_labels[:5].tolist()})

# %% [markdown]
# ## The model
#
# A BERT of three blocks. In training a tenth of the words is replaced by `[MASK]`: then the mask token is something
# the model has seen, and can later stand for a word that is not there.


# %%
def word_tokenizer(texts):
    """One token a word."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = special + sorted({word for text in texts for word in text.split()})
    numbers = {word: number for number, word in enumerate(words)}
    core = Tokenizer(models.WordLevel(numbers, "[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(word, numbers[word]) for word in ("[CLS]", "[SEP]")]
    )
    names = {f"{word[1:-1].lower()}_token": word for word in special}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=48, **names)


def encode(texts):
    """The model's arguments for sentences in one padded batch."""
    found = tokenizer(texts, padding=True, return_tensors="pt")
    return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}


def trained_bert(n_steps=120):
    """A classifier of the sentences above."""
    torch.manual_seed(0)
    bert = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=len(tokenizer),
            num_labels=2,
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=96,
            max_position_embeddings=48,
            initializer_range=0.1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    adam = torch.optim.AdamW(bert.parameters())
    rates = torch.optim.lr_scheduler.OneCycleLR(adam, max_lr=5e-3, total_steps=n_steps, pct_start=0.1)
    for step in range(n_steps):
        rows = [(64 * step + row) % len(train_texts) for row in range(64)]
        batch = encode([train_texts[row] for row in rows])
        hidden = (torch.rand(batch["input_ids"].shape) < 0.1) & (batch["input_ids"] > tokenizer.mask_token_id)
        batch["input_ids"] = batch["input_ids"].masked_fill(hidden, tokenizer.mask_token_id)
        loss = nn.functional.cross_entropy(bert(**batch).logits, train_labels[rows])
        adam.zero_grad()
        loss.backward()
        adam.step()
        rates.step()
    return bert.eval()


if MODEL is None:
    tokenizer = word_tokenizer(train_texts)
    model = trained_bert()
else:
    if not Path(MODEL).is_dir():
        raise FileNotFoundError(f"MODEL={MODEL!r} is no folder; wanted one that save_pretrained has written.")
    classifier = load_text_classifier(MODEL)
    model, tokenizer = classifier.model, classifier.tokenizer

texts, labels = reviews(16, seed=1)
batch = encode(texts)
with torch.no_grad():
    probabilities = model(**batch).logits.softmax(dim=1)
certainty, target = probabilities.max(dim=1)  # what is explained: the class that the model found
accuracy = float((target == labels).double().mean())
say(
    f"On {len(texts)} new sentences the model is right in {accuracy:.0%}, "
    f"with a mean probability of {float(certainty.mean()):.3f} for the class that it finds.",
    holds=accuracy > 0.95,
)

# %% [markdown]
# ## Bits per token
#
# `LayerIBA` at the output of the embeddings: there a position still is its token and nothing else. `estimate` reads
# the features' mean and deviation from a thousand other sentences, once. `TOKEN_RANKING` are the settings that rank
# tokens best: one lambda a token, and the log-odds as objective. Its `beta` goes with the large log-odds of a big,
# sure classifier. Here we take a smaller one; the section about `beta` shows why.

# %%
embeddings = getattr(model.base_model, "embeddings", model.get_input_embeddings())
corpus = [encode(train_texts[start : start + 200]) for start in range(0, 1000, 200)]
ranking = {**TOKEN_RANKING, "beta": 10.0}

iba = LayerIBA(model, embeddings).estimate(corpus)
bits, record = iba.attribute(
    batch["input_ids"],
    target=target,
    additional_forward_args=(batch["attention_mask"],),
    return_diagnostics=True,
    **ranking,
)
is_real = batch["attention_mask"].bool()
tokens = tokenizer.convert_ids_to_tokens(batch["input_ids"][0][is_real[0]].tolist())
pd.DataFrame([bits[0, is_real[0], 0].tolist()], columns=tokens, index=["bits"]).round(1)


# %% [markdown]
# Do the bits lie where they must? A *hit* is a sentence whose largest value lies at a word of opinion, special tokens
# included in the contest.


# %%
def opinions_of(texts):
    """(N, T): True at the tokens of words of opinion."""
    found = tokenizer(texts, padding=True, return_tensors="pt", return_offsets_mapping=True)
    spots = torch.zeros(found["input_ids"].shape, dtype=torch.bool)
    for row, text in enumerate(texts):
        for word in re.finditer("|".join(GOOD + BAD), text):
            start, end = found["offset_mapping"][row].unbind(dim=1)
            spots[row] |= (start < word.end()) & (end > word.start())
    return spots


def hit_rate(bits, spots):
    """Share of the sentences (last axis but one) whose most informative token is a word of opinion."""
    return spots.expand_as(bits).gather(-1, bits.argmax(dim=-1, keepdim=True)).double().mean(dim=(-1, -2))


opinions = opinions_of(texts)
per_token = bits[:, :, 0]
hits, share = float(hit_rate(per_token, opinions)), float((per_token * opinions).sum() / per_token.sum())
kept = float(record.target_probability.mean())
say(
    f"In {hits:.0%} of the sentences the largest value lies at a word of opinion, and {share:.0%} of all bits do. "
    f"Through the bottleneck, which passes {float(record.total_bits.mean()):.0f} bits a sentence in the mean, the "
    f"decision has a probability of {kept:.3f}.",
    holds=hits > 0.95 and share > 0.8 and kept > 0.9,
)

# %% [markdown]
# Look at that last probability first, always. A map explains only what passes the bottleneck; where the decision did
# not survive, neither did its reasons.
#
# ## Padding
#
# Sentences of a batch have different lengths. `LayerIBA` finds the `attention_mask` among the model's arguments:
# padding gets no noise and no bits, and does not count in the mean over the positions, so that a batch gives each
# sentence what it gets alone.

# %%
alone = []
for text in texts[:4]:
    one = encode([text])
    row = len(alone)
    alone.append(iba.attribute(one["input_ids"], target[row], (one["attention_mask"],), **ranking)[0, :, 0])
difference = max(float((per_token[row, is_real[row]] - own).abs().max()) for row, own in enumerate(alone))
without_mask = iba.attribute(batch["input_ids"][:4], target[:4], **ranking)[:, :, 0]
at_padding = float(without_mask[~is_real[:4]].sum() / 4)
say(
    f"Alone or in the batch: no token differs by more than {difference:.1g} bits, and all padding together has "
    f"{float(per_token[~is_real].sum()):.0f}. Without the mask, padding gets {at_padding:.2f} bits a sentence.",
    holds=difference < 0.01 and bool((per_token[~is_real] == 0).all()) and at_padding > 0,
)

# %% [markdown]
# ## How much may it cost? The choice of beta
#
# The bottleneck weighs the decision against the information. With two classes one side of the scales is light: whoever
# gives the decision up altogether still guesses right half of the time. A small table tells which `beta` goes too far.
# `None` is the paper's objective, the target's cross-entropy; `log_odds` has no such bound.

# %%
rows = []
for objective, beta in [(None, 1.0), (None, 10.0), ("log_odds", 1.0), ("log_odds", 10.0), ("log_odds", 100.0)]:
    tried = {**ranking, "objective": objective, "beta": beta}
    found, told = iba.attribute(
        batch["input_ids"][:8], target[:8], (batch["attention_mask"][:8],), return_diagnostics=True, **tried
    )
    rows.append(
        {
            "objective": str(objective),
            "beta": beta,
            "bits": float(told.total_bits.mean()),
            "p(target)": float(told.target_probability.mean()),
            "hits": float(hit_rate(found[:, :, 0], opinions[:8])),
        }
    )
by_beta = pd.DataFrame(rows).set_index(["objective", "beta"])
by_beta.round(3)

# %%
too_much = by_beta.loc["log_odds"].loc[TOKEN_RANKING["beta"]]
chosen, bounded = (by_beta.loc[objective].loc[ranking["beta"]] for objective in ("log_odds", "None"))
falls = by_beta.groupby(level=0)["bits"].apply(lambda column: column.is_monotonic_decreasing)
say(
    f"More `beta`, fewer bits. A guess costs ln 2 = {math.log(2):.2f} nats, so with the cross-entropy a `beta` of "
    f"{ranking['beta']:.0f} already buys it: the target's probability is down to {bounded['p(target)']:.2f}, with "
    f"{bounded['bits']:.1f} bits. The log-odds have more to lose, and at the same `beta` the decision stands "
    f"({chosen['p(target)']:.3f}, {chosen['bits']:.0f} bits). At {TOKEN_RANKING['beta']:.0f} they too give up "
    f"({too_much['p(target)']:.2f}, {too_much['bits']:.1f} bits).",
    holds=bool(falls.all()) and max(bounded["p(target)"], too_much["p(target)"]) < 0.75 < chosen["p(target)"],
)

# %%
least = float(by_beta["hits"].min())
say(
    f"The order bears more than the amount: in no row of the table are fewer than {least:.0%} of the sentences hits, "
    "also where the decision is gone.",
    holds=least > 0.8,
)

# %% [markdown]
# So the rule: take the largest `beta` at which the probability through the bottleneck still is about the model's own.
# To rank tokens, any `beta` nearby gives almost the same order; to read bits as numbers, say which `beta` they belong
# to.
#
# The log-odds also keep a slope where the probability is all but one. Where further evidence makes the model surer
# still, they ask for that evidence too. Does it, here? Sentences with two words of opinion tell.

# %%
twice, _ = reviews(8, seed=2, n_opinions=2)
both, spots = encode(twice), opinions_of(twice)
with torch.no_grad():
    logits = model(**both).logits
    first = spots & (spots.cumsum(dim=1) == 1)  # of the tokens of opinion
    masked = both["input_ids"].masked_fill(first, tokenizer.mask_token_id)
    without = model(masked, both["attention_mask"]).logits
found_class = logits.argmax(dim=1)
sign = 2 * found_class - 1  # with two classes, the log-odds are the difference of the logits
own, less = (float((sign * rows.diff(dim=1)[:, 0]).mean()) for rows in (logits, without))
balance = {}
for objective, beta in ((None, 1.0), ("log_odds", 10.0)):
    options = {**ranking, "objective": objective, "beta": beta}
    of_both = iba.attribute(both["input_ids"], found_class, (both["attention_mask"],), **options)[:, :, 0]
    weaker = [float(row[spot].min() / row[spot].max()) for row, spot in zip(of_both, spots, strict=True)]
    balance[objective] = sum(weaker) / len(weaker)
say(
    f"With both words the log-odds are {own:.1f}, with the first one masked still {less:.1f}: to this model "
    f"the second word is no further evidence. So the bottleneck keeps one and drops most of the other, which has "
    f"{balance[None]:.0%} of the stronger one's bits with the cross-entropy and {balance['log_odds']:.0%} with the "
    "log-odds.",
    holds=less > 0.9 * own and max(balance.values()) < 0.5,
)

# %% [markdown]
# This is what bits mean: not where evidence *is*, but what of it has to pass. Evidence that is said twice is charged
# once, and a token without bits may be one whose news another token brings as well.
#
# ## Layer by layer
#
# `information_by_layer` puts the bottleneck at one layer after another. Here with the paper's mask, a lambda for each
# hidden unit, and the cross-entropy. Statistics of all layers come from one pass over the corpus.

# %%
layers = [embeddings, *find_blocks(model).values()]
found = information_by_layer(model, layers, batch, target=target, calibration=corpus, tokenizer=tokenizer, beta=1.0)
table = pd.DataFrame(
    {
        "bits": found.total_bits.mean(dim=1).double(),
        "p(target)": found.target_probability.mean(dim=1).double(),
        "hits": hit_rate(found.bits, opinions),
        "share of [CLS]": found.cls_share.mean(dim=1).double(),
        "effective tokens": found.effective_tokens.mean(dim=1).double(),
    },
    index=found.layers,
)
table.round(2)

# %%
example = next(row for row, text in enumerate(texts) if not re.search(" and (?!found)", text))
figure = plot_layers(found, example)
cls_first, cls_last = float(table["share of [CLS]"].iloc[0]), float(table["share of [CLS]"].iloc[-1])
moved = cls_first < 0.1 < 0.9 < cls_last
assert moved or MODEL is not None
figure.suptitle("The bits move from the words to [CLS]" if moved else "Where the bits are", fontsize=10)
show(figure)

# %% [markdown]
# The same as a page, with a scale of its own for each line. `layers_to_html` gives a file to keep; here it stands in a
# frame.

# %%
few = replace(
    found,
    bits=found.bits[:, :3],
    position_mask=found.position_mask[:3],
    target_probability=found.target_probability[:, :3],
    tokens=found.tokens[:3],
)
page = layers_to_html(few, "Film reviews, bits by layer")
HTML(f'<div><iframe srcdoc="{html.escape(page)}" style="width: 100%; height: 32rem; border: 0"></iframe></div>')

# %%
hits_first, hits_last = float(table["hits"].iloc[0]), float(table["hits"].iloc[-1])
say(
    f"At the embeddings {hits_first:.0%} of the sentences have their largest value at a word of opinion, behind the "
    f"last block {hits_last:.0%}: attention has carried the opinion to [CLS], from where the classifier reads it, and "
    f"{cls_last:.0%} of the bits lie there, against {cls_first:.0%} at first. The decision stands at every layer "
    f"(probability of at least {float(table['p(target)'].min()):.3f}), so all these maps are valid. They answer "
    "where the *layer* keeps what is needed, and only early layers name words.",
    holds=hits_first > 0.95 and hits_last < 0.1 and cls_last > 0.9 and float(table["p(target)"].min()) > 0.8,
)

# %% [markdown]
# ## What "most informative layer" means
#
# `most_informative_layer` is the layer that passes the most bits, in the mean over the sentences. That is a fact about
# the layer's code, not a mark for the explanation: it says where the network still holds the most that the bottleneck
# cannot drop at this price. Later layers may need fewer bits for the same decision, because what does not matter is
# gone; or more, because the decision is spread over many units that vary together, each of which is charged for. How
# many bits there are depends on the settings:

# %%
other = information_by_layer(
    model, layers, batch, target=target, statistics=found.statistics, tokenizer=tokenizer, **ranking
)
totals = pd.DataFrame(
    {
        "a lambda for each unit, cross-entropy": found.total_bits.mean(dim=1).double(),
        "a lambda for each token, log-odds": other.total_bits.mean(dim=1).double(),
    },
    index=found.layers,
)
totals.round(1)

# %%
first, second = found.most_informative_layer, other.most_informative_layer
change = f"`{first}` with the one, `{second}` with the other" if first != second else f"`{first}` with both"
here, at_words = found.layers[0], table["hits"]
say(
    f"The most informative layer is {change}. More bits there do not make a better map: the largest value is at a word "
    f"of opinion in {at_words[first]:.0%} of the sentences at `{first}`, and in {at_words[here]:.0%} at `{here}`. Bits "
    "of layers compare only within one setting, and where every layer keeps the decision.",
    holds=at_words[first] <= at_words[here] and float(other.target_probability.mean(dim=1).min()) > 0.8,
)

# %% [markdown]
# ## Token degradation: a metric without known words
#
# On real texts nobody knows which words decide. Take tokens away instead, in the order of the map: most relevant first
# should let the decision fall at once, least relevant first late. The score is the area between the two curves, zero
# for a random map. Special tokens stay, and so does padding: their unit is negative.

# %%
special = torch.isin(batch["input_ids"], torch.tensor(tokenizer.all_special_ids)) | ~is_real
units = torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"]).masked_fill(special, -1)
scores = {}
for name, values in {
    "bits at the embeddings": per_token,
    "bits at the last block": found.bits[-1],
    "random": torch.rand(per_token.shape, generator=torch.Generator().manual_seed(0)),
}.items():
    scores[name] = degradation(
        model,
        batch["input_ids"],
        values,
        baselines=tokenizer.mask_token_id,
        feature_mask=units,
        additional_forward_args=(batch["attention_mask"],),
        target=target,
    )
pd.DataFrame({name: {"mean": s.mean, "standard error": s.stderr} for name, s in scores.items()}).T.round(3)

# %%
early, late, random_order = scores.values()
gap = early.per_sample - late.per_sample
margin, error = float(gap.mean()), float(gap.std() / math.sqrt(len(gap)))
words_share = float((found.bits[-1] * ~special).sum() / found.bits[-1].sum())
say(
    f"Bits at the embeddings score {early.mean:.2f}, a random order {random_order.mean:.2f} with a standard error of "
    f"{random_order.stderr:.2f}. The last block lies only {margin:.2f} ({error:.2f}) below the embeddings, on the same "
    f"sentences, though no more than {words_share:.0%} of its bits are at words: the metric compares words among "
    "themselves, and what little is left at them still has their order, because each position also carries its own "
    "token along.",
    holds=min(early.mean, late.mean) - random_order.mean > 3 * random_order.stderr
    and words_share < 0.1
    and abs(margin) < 0.1,
)

# %% [markdown]
# So a metric sees what it is made to see. Degradation asks about the order of words and not about amounts: it would
# pass a map with nearly everything at [CLS]. The hits above ask the other question. Where a claim rests on a score,
# say which of both was asked.
#
# %% [markdown]
# ## Side by side with other methods
#
# `compare` runs Captum's methods for text on the same sentences, one by one, with tokens masked and with tokens
# deleted. `LayerIBA` has `TOKEN_RANKING` there; `method_options` brings its `beta` down for this small model.

# %%
some = slice(0, 8)
report = compare(
    model,
    TextExamples(texts[some], target[some].tolist(), tokenizer),
    methods="text",
    metrics=["degradation mask", "degradation delete"],
    layer=embeddings,
    calibration=train_texts[:1000],
    method_options={"LayerIBA": {"beta": ranking["beta"]}},
    n_pictures=2,
)
Markdown(report.to_markdown())

# %%
show(report.plot_maps(2), dpi=110)

# %%
lead, error, n = report.paired("LayerIBA", "Random", "degradation mask")
table = report.to_dataframe()["degradation mask"]["mean"].dropna().sort_values(ascending=False)
near = [name for name in table.index if name != "LayerIBA" and table["LayerIBA"] - table[name] < 0.05]
say(
    f"On {n} sentences LayerIBA leads a random order by {lead:.2f} ({error:.2f}). "
    + (f"Within 0.05 of it, or above: {', '.join(near)}. " if near else "")
    + "A planted word is an easy task, on which several methods do well: that a method passes it is needed, and says "
    "little about which one is best on your texts. For that, run `compare` on them; differences between methods are "
    "paired, `report.paired`, since all see the same sentences.",
    holds=lead > 3 * error,
)

# %% [markdown]
# ## What to keep in mind
#
# - To name words, use an early layer. Behind attention a position is no longer its token.
# - Look at the target's probability through the bottleneck before the map, and lower `beta` where it has fallen.
# - Bits belong to a layer, a `beta` and an objective. Compare sentences and classes within one setting.
# - Bits say that a token was needed, not in which direction it speaks: a token that the decision has to be defended
#   against is not shown as negative, as it is by signed methods.
# - The statistics should come from texts like those explained; with few or very different ones the bits are off.
