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
# # What in the prompt does an answer come from, in bits?
#
# At the end you will have, for each token of a language model's answer, the bits that it needs from each part of the
# prompt; the reasons for one answer *rather than* another; one map for a whole answer; and a feeling for the layer to
# ask.
#
# The model is a small Llama, trained here within seconds to sum up what a prompt says about a person. Names, jobs and
# cities are drawn anew each time, so it can only copy them, and the right answer to "where does this token come from"
# is known. To look at a model of your own, put its folder into `MODEL`, as `save_pretrained` writes it; nothing is
# downloaded. The concept page about tokens in the documentation says more about what the numbers mean.

# %%
import io
import random
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", message="IProgress not found")  # progress bars are not shown here

import matplotlib.pyplot as plt
import pandas as pd
import torch
import transformers
from captum.attr import TextTemplateInput, TextTokenInput
from IPython.display import Image, Markdown, display
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from captum_iba import LayerIBA, LLMIBAAttribution
from captum_iba.attr import find_blocks

MODEL = None  # or a folder with a causal language model of transformers and its tokenizer


def show(figure, dpi=80):
    """A figure as a small picture."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=dpi, bbox_inches="tight")
    plt.close(figure)
    return Image(picture.getvalue())


def say(text, holds=True):
    """A sentence with computed numbers; what it claims must hold for the model trained here."""
    assert holds or MODEL is not None, f"The text claims what was not found: {text}"
    return Markdown(text if holds else f"*Not all of this holds on your model:* {text}")


# %% [markdown]
# ## A task of copying
#
# The prompt tells three facts in any order, the answer sums them up. There are two cities in each prompt: to answer,
# the model has to know which of them is which.

# %%
FACTS = {
    "name": ["Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo"],
    "born": ["Rome", "Oslo", "Cairo", "Lima", "Paris", "Delhi", "Tokyo", "Vienna"],
    "job": ["pilot", "baker", "nurse", "judge", "farmer", "singer", "doctor", "painter"],
}
FACTS["home"] = FACTS["born"]
CLAUSES = [("was born in {}", "born"), ("works as a {}", "job"), ("lives in {}", "home")]
ANSWER = "{name} , a {job} from {born} , moved to {home} ."


def person(rng):
    """Facts, with two different cities."""
    facts = {key: rng.choice(values) for key, values in FACTS.items()}
    return facts if facts["born"] != facts["home"] else person(rng)


def template(facts, rng):
    """A prompt with a gap for each value, and the values."""
    clauses = rng.sample(CLAUSES, 3)
    text = "{} " + " , ".join(clause for clause, _ in clauses[:2]) + " and " + clauses[2][0] + " . In short :"
    return PREFIX + text, [facts["name"], *(facts[key] for _, key in clauses)]


def examples(n, seed):
    """Templates, their values, and answers."""
    rng = random.Random(seed)
    people = [person(rng) for _ in range(n)]
    return [(*template(facts, rng), ANSWER.format(**facts)) for facts in people]


PREFIX = ""
if MODEL is not None:  # such a model is shown what is asked for; the one below is trained to it
    PREFIX = (
        "Leo was born in Prague , lives in Dublin and works as a tailor . In short : "
        "Leo , a tailor from Prague , moved to Dublin . "
        "Mia lives in Quito , works as a teacher and was born in Kyoto . In short : "
        "Mia , a teacher from Kyoto , moved to Quito . "
    )
pd.DataFrame([{"prompt": text.format(*values), "answer": answer} for text, values, answer in examples(4, seed=0)])

# %% [markdown]
# ## The model


# %%
def word_tokenizer():
    """One token a word."""
    clauses = [clause for clause, _ in CLAUSES]
    texts = [ANSWER, "and . In short :", *clauses, *(" ".join(words) for words in FACTS.values())]
    words = ["<unk>", *sorted({word for text in texts for word in text.split() if "{" not in word})]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", pad_token="<unk>")


def encode(drawn):
    """Ids of prompts with their answers, and the number of the answer's tokens; all are of one length here."""
    ids = tokenizer([f"{text.format(*values)} {answer}" for text, values, answer in drawn], return_tensors="pt")
    return ids["input_ids"], len(tokenizer.encode(drawn[0][2]))


def answer_logits(model, ids, n_answer):
    """What the model says at the answer's tokens, (N, n_answer, V)."""
    return model(ids).logits[:, -n_answer - 1 : -1]


def trained_llama(n_steps=180):
    """A Llama of two blocks that sums up."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(tokenizer), max_position_embeddings=64, bos_token_id=None, eos_token_id=None, **sizes
        )
    )
    adam = torch.optim.AdamW(llama.parameters())
    rates = torch.optim.lr_scheduler.OneCycleLR(adam, max_lr=5e-3, total_steps=n_steps, pct_start=0.1)
    for step in range(n_steps):
        ids, n_answer = encode(examples(64, seed=1000 + step))
        logits = answer_logits(llama, ids, n_answer)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, -n_answer:].flatten())
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(llama.parameters(), 1.0)
        adam.step()
        rates.step()
    return llama.eval()


if MODEL is None:
    tokenizer = word_tokenizer()
    model = trained_llama()
    ids, n_answer = encode(examples(200, seed=1))
    with torch.no_grad():
        right = answer_logits(model, ids, n_answer).argmax(dim=2) == ids[:, -n_answer:]
    accuracy = float(right.all(dim=1).double().mean())
    about = say(f"Of {len(ids)} new prompts {accuracy:.1%} are summed up without a fault.", holds=accuracy > 0.98)
else:
    if not Path(MODEL).is_dir():
        raise FileNotFoundError(f"MODEL={MODEL!r} is no folder; wanted one that save_pretrained has written.")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL).float().eval()
    about = Markdown(f"`{type(model).__name__}` from `{MODEL}`")
display(about)

# %% [markdown]
# ## A row for each answer token
#
# `LLMIBAAttribution` is Captum's wrapper for language models, around a `LayerIBA` at one layer. Here that is the
# output of the embeddings, where each position still is its token. `estimate` reads the features' statistics from
# texts like those to be explained. A `TextTemplateInput` has a column for each of its values.

# %%
corpus = [f"{text.format(*values)} {answer}" for text, values, answer in examples(1000, seed=2)]
embeddings = model.get_input_embeddings()
llm = LLMIBAAttribution(LayerIBA(model, embeddings), tokenizer).estimate(corpus)

text = PREFIX + "{} was born in {} , lives in {} and works as a {} . In short :"
values = ["Anna", "Rome", "Oslo", "pilot"]
answer = " Anna , a pilot from Rome , moved to Oslo ."  # the space counts to the word in most tokenizers
result = llm.attribute(TextTemplateInput(text, values), target=answer, return_diagnostics=True)


def draw(result, title):
    """Captum's plot of a result; its red and green are for signs, which bits do not have."""
    figure, axis = result.plot_token_attr(show=False)
    axis.set_title(title, fontsize=11)
    axis.images[0].set(cmap="Blues", clim=(0.0, float(result.token_attr.max())))
    for label in axis.texts:
        label.set(text=f"{float(label.get_text()):.1f}", fontsize=8)
    figure.set_size_inches(max(6.0, 0.6 * len(result.input_tokens)), 1.6 + 0.3 * len(result.output_tokens))
    figure.axes[-1].set_ylabel("")
    figure.axes[-1].set_title("bits", fontsize=9)
    return show(figure)


def sources(answer, values):
    """For each answer token the column of the value that it copies, -1 where it copies none."""
    spans = tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    columns = torch.full((len(spans),), -1)
    for column, value in enumerate(values):
        place = answer.index(value)
        for row, (start, end) in enumerate(spans):
            if start < place + len(value) and end > place:
                columns[row] = column
    return columns


columns = sources(answer, values)
copies = columns >= 0
bits = result.token_attr
own = bits[copies].gather(1, columns[copies, None])
diagonal = bool((bits[copies].argmax(dim=1) == columns[copies]).all())
assert diagonal or MODEL is not None
draw(result, "Each copied word needs its own source" if diagonal else "Bits of the answer's tokens")

# %%
kept = torch.cat([record.target_probability for record in result.diagnostics])
elsewhere = float(bits[copies].sum() - own.sum()) / max(1, int(copies.sum()))
form = float(bits[~copies].sum(dim=1).mean())
say(
    f"A copied token needs {float(own.mean()):.0f} bits from its value in the mean, and {elsewhere:.1f} from the three "
    f"others together. The words in between follow from the form: from all four values they need {form:.1f} in the "
    f"mean. Through their bottlenecks the tokens keep a probability of {float(kept.mean()):.2f} in the mean, the least "
    f"{float(kept.min()):.2f}.",
    holds=diagonal and float(own.mean()) > 3 * max(elsewhere, form) and float(kept.mean()) > 0.7,
)

# %% [markdown]
# As always: look at the probability that is kept before the map. A smaller `beta` keeps more of it, with more bits.
#
# The columns are not everything that passes. The fixed text of the template and the earlier tokens of the answer go
# through the bottleneck too; `answer_attr` and `total_bits` say how much.

# %%
parts = pd.DataFrame(
    {
        "values": result.token_attr.sum(dim=1).double(),
        "earlier answer": result.answer_attr.sum(dim=1).double(),
        "all": result.total_bits.double(),
        "probability kept": kept.double(),
    },
    index=result.output_tokens,
)
parts.insert(1, "rest of the prompt", parts["all"] - parts["values"] - parts["earlier answer"])
parts.round(2)

# %% [markdown]
# ## All tokens of the prompt
#
# With a `TextTokenInput` every token is a column. To ask about one answer token alone, put what comes before it into
# the prompt.


# %%
def tokens_of(method, target):
    """Bits of all tokens of the prompt for the token that follows on it."""
    prompt = TextTokenInput(text.format(*values) + " Anna , a pilot from", tokenizer)
    return method.attribute(prompt, target=target)


def plain(token):
    """Without the marks that tokenizers put in place of a space."""
    return token.strip(" \u0120\u2581")


def first_token(word):
    """Its id, as a list: words may have several tokens."""
    return tokenizer.encode(" " + word, add_special_tokens=False)[:1]


rome = tokens_of(llm, first_token("Rome"))
draw(rome, 'What "Rome" comes from, token by token')

# %%
best = rome.seq_attr.argsort(descending=True)[:4].tolist()
named = ", ".join(f"`{plain(rome.input_tokens[i])}` {float(rome.seq_attr[i]):.0f}" for i in best)
say(
    f"The most bits are at {named}. Beside the city itself the model needs the last token, after which the answer is "
    "read, and whatever it uses to tell which of both cities is asked for. That differs from one training to another.",
    holds="Rome" in [plain(rome.input_tokens[i]) for i in best],
)

# %% [markdown]
# ## Why this rather than that?
#
# With `contrast` the objective is the difference of two log-probabilities. The same token then has several reasons.
# That a *city* comes next follows from the word `from`, and that it is *this* city from the prompt. The contrast says
# which of them is asked for: the other city, or the job, which is no city at all. Values of a template may be any part
# of the text, so `from` can have a column too.

# %%
reasons = []
for form, given, told in examples(4, seed=4):
    name, _, _, job, _, born, *_, home, _ = told.split()
    asked = TextTemplateInput(form + f" {name} , a {job} {{}}", [*given, "from"])
    for other, against in (("the other city", home), ("the job", job)):
        r = llm.attribute(asked, target=first_token(born), contrast=first_token(against))
        at_source, at_from = float(r.seq_attr[given.index(born)]), float(r.seq_attr[-1])
        reasons.append({"rather than": other, "the city in the prompt": at_source, "from": at_from})
reasons = pd.DataFrame(reasons).groupby("rather than").mean()
reasons.round(1)

# %%
city, job = reasons.loc["the other city"], reasons.loc["the job"]
say(
    f"Rather than the other city: {city['the city in the prompt']:.0f} bits at the city in the prompt, "
    f"{city['from']:.0f} at `from`. Rather than the job: {job['the city in the prompt']:.0f} and {job['from']:.0f}. "
    "The reason moves to the word that says what kind of thing must follow.",
    holds=job["from"] > city["from"] and job["the city in the prompt"] < city["the city in the prompt"],
)

# %% [markdown]
# Bits with a contrast and bits without do not compare: a difference of log-probabilities has more to lose than one of
# them, at the same `beta`. Compare contrasts with each other.
#
# ## One bottleneck for the whole answer
#
# The sum of the rows counts a position once for each token that needs it. With `per="sequence"` there is a single
# bottleneck, which all answer tokens share. Its objective is the sum of their log-probabilities, and it has to keep
# all of them at once; `beta` weighs its bits against that sum.

# %%
wholes = {
    beta: llm.attribute(
        TextTemplateInput(text, values), target=answer, per="sequence", beta=beta, return_diagnostics=True
    )
    for beta in (10.0, 1.0)
}
sequence = pd.DataFrame(
    {f"beta {beta:g}": whole.seq_attr.double() for beta, whole in wholes.items()}, index=result.input_tokens
)
sequence.round(1)

# %%
whole = wholes[10.0]
answer_kept = {beta: float(w.diagnostics[0].target_probability[0]) for beta, w in wholes.items()}
say(
    f"One bottleneck lets {float(whole.total_bits[0]):.0f} bits pass, and the whole answer of "
    f"{len(result.output_tokens)} tokens has a probability of {answer_kept[10.0]:.2f}. The rows add up "
    f"to {float(result.total_bits.sum()):.0f} bits, and the probabilities that they keep multiply to "
    f"{float(kept.prod()):.2f}. With the smaller `beta` the "
    f"whole answer keeps {answer_kept[1.0]:.2f}, for {float(wholes[1.0].total_bits[0]):.0f} bits.",
    holds=answer_kept[1.0] > answer_kept[10.0],
)

# %% [markdown]
# ## Which layer?
#
# The same question at the embeddings, behind the first block and behind the last. For a few prompts: how many copied
# tokens have their largest value at the column of what they copy, and what share of the row's bits is there?

# %%
blocks = find_blocks(model)
sites = {"embeddings": embeddings, "first block": next(iter(blocks.values())), "last block": [*blocks.values()][-1]}
if tokenizer.pad_token is None:
    tokenizer.pad_token = tokenizer.eos_token


def batches(texts, size=50):
    """The texts as padded batches, which calibrate faster than one by one; the mask leaves the padding out."""
    for start in range(0, len(texts), size):
        found = tokenizer(texts[start : start + size], padding=True, return_tensors="pt")
        yield {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}


methods, rows = {}, []
for name, layer in sites.items():
    methods[name] = LLMIBAAttribution(LayerIBA(model, layer).estimate(list(batches(corpus))), tokenizer)
    hits, shares, probabilities = [], [], []
    for form, given, told in examples(3, seed=3):
        told = " " + told
        r = methods[name].attribute(TextTemplateInput(form, given), target=told, return_diagnostics=True)
        wanted = sources(told, given)
        copied = wanted >= 0
        at_source = r.token_attr[copied].gather(1, wanted[copied, None])[:, 0]
        hits += (r.token_attr[copied].argmax(dim=1) == wanted[copied]).tolist()
        shares += (at_source / r.total_bits[copied]).tolist()
        probabilities += [float(record.target_probability[0]) for record in r.diagnostics]
    rows.append([sum(column) / len(column) for column in (hits, shares, probabilities)])
by_layer = pd.DataFrame(rows, columns=["at the source", "share of bits", "probability kept"], index=list(sites))
by_layer.round(3)

# %%
deep = tokens_of(methods["first block"], first_token("Rome"))
place = int(deep.seq_attr[:-1].argmax())
pointing, share = by_layer["at the source"], by_layer["share of bits"]
say(
    f"At the embeddings {pointing.iloc[0]:.0%} of the copied tokens point to their source, which has "
    f"{share.iloc[0]:.0%} of all bits of the row. Behind the last block it has {share.iloc[-1]:.1%}: attention has "
    'carried the values to where the answer is read. Behind the first block the most bits for "Rome", of the places '
    f"before the last, are at `{plain(deep.input_tokens[place])}`.",
    holds=pointing.iloc[0] > 0.9 and share.iloc[0] > 5 * share.iloc[-1],
)

# %% [markdown]
# So ask the embeddings, or an early layer, which *tokens of the prompt* an answer comes from. Ask a later layer where
# the model keeps what it took from them. Neither map is wrong; they answer two questions.
#
# ## What to keep in mind
#
# - The answer is given, not chosen: any text can be the target, also one that the model would not say. Without a target
#   the model generates one.
# - Earlier answer tokens are read through the bottleneck as well. A word that it repeats may be copied from there.
# - Bits belong to a layer and a `beta`. Within one setting prompts, tokens and answers compare.
# - Nothing is taken out of the prompt and no baseline is needed: noise with the features' own statistics stands for
#   what is not known. The texts for `estimate` should therefore be like those that are explained.
