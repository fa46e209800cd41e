"""WordInformation: the closed form, a task whose answer is known, and a text classifier layer by layer.

    python -m benchmarks.words linear                                    # error and time on the published example
    python -m benchmarks.words keyword                                   # which words each layer of a transformer keeps
    python -m benchmarks.words layers MODEL TEXTS.tsv --calibrate MORE.tsv   # a classifier of transformers on texts

MODEL is a folder of a sequence classifier of transformers, or its name on the hub; TEXTS.tsv holds lines of text, tab
and class. Times are processor times on one thread.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from benchmarks.text import encoded, lines_of
from captum_iba.attr import find_blocks
from captum_iba.attr.word_information import WordInformation
from captum_iba.information.word_information import WordNoiseSettings, linear_word_noise, word_noise
from captum_iba.text_models import load_text_classifier
from tests.attr import keyword_task


def linear(options: argparse.Namespace) -> None:
    """Largest relative error of sigma on s = 10 x1 + 20 x2 + 5 x3 - 20 x4 - 10 x5, words of 256 numbers."""
    weights, std = torch.tensor([10.0, 20.0, 5.0, -20.0, -10.0]), 0.32016
    wanted = linear_word_noise(weights[:, None, None] * torch.eye(256), std)
    errors, times = [], []
    for seed in range(options.seeds):
        words = 0.01 * torch.randn(1, 5, 256, generator=torch.Generator().manual_seed(seed))
        start = time.process_time()
        found = word_noise(words, lambda x: (weights[:, None] * x).sum(dim=1), std, WordNoiseSettings(seed=seed))
        times.append(time.process_time() - start)
        errors.append(float((found.sigma[0] / wanted - 1).abs().max()))
    print(f"largest error over {options.seeds} seeds {100 * max(errors):.2f} %, mean {sum(errors) / len(errors):.2%}")
    print(f"seconds: {sorted(times)[len(times) // 2]:.2f} (median), {max(times):.2f} (most)")


def keyword(options: argparse.Namespace) -> None:
    """How often the keyword is the word with the most bits, and the AUC of the bits for it, at each layer."""
    for seed in range(options.seeds):
        model = keyword_task.trained(n_steps=options.train, batch_size=128, seed=seed)
        ids, labels, place = keyword_task.sentences(options.n, seed=10 + seed)
        accuracy = float((model(ids).argmax(dim=1) == labels).float().mean())
        print(f"model {seed}, accuracy {accuracy:.3f}, {options.n} sentences")
        layers = {f"layer {number}": (block, None) for number, block in enumerate(model.blocks, start=1)}
        layers |= {"layer 3, mean": (model.blocks[-1], "mean"), "logits": (model.head, None)}
        for name, (layer, position) in layers.items():
            words = WordInformation(model, layer).estimate_reference_std(
                keyword_task.sentences(500, seed=20 + seed)[0], position=position
            )
            start = time.process_time()
            bits = words.attribute(ids, position=position)
            seconds = time.process_time() - start
            rows = torch.arange(len(ids))
            own = bits[rows, place]
            first = float((bits.argmax(dim=1) == place).float().mean())
            auc = float((own[:, None] > bits).sum(dim=1).float().mean()) / (bits.shape[1] - 1)
            others = float((bits.sum() - own.sum()) / (bits.numel() - len(ids)))
            print(
                f"  {name:14s} keyword first {first:.3f}, AUC {auc:.3f}, bits of keyword {float(own.mean()):6.1f}, of "
                f"others {others:6.1f}, {seconds / len(ids):.2f} s a sentence"
            )


def layers(options: argparse.Namespace) -> None:
    """Mean bits of a word at each block, all states and [CLS] alone, and the words that [CLS] keeps in the end."""
    classifier = load_text_classifier(options.model)
    blocks = find_blocks(classifier.model)
    texts, _ = lines_of(options.texts, options.n)
    corpus_texts, _ = lines_of(options.calibrate, options.n_calibration)
    corpus = [encoded(classifier, corpus_texts[start : start + 50]) for start in range(0, len(corpus_texts), 50)]
    batch = encoded(classifier, texts)
    words = WordInformation(classifier.model, list(blocks.values()))
    found = {}
    for position in (None, 0):
        words.estimate_reference_std(corpus, position=position)
        start = time.process_time()
        found[position] = words.compare_layers(
            batch, tokenizer=classifier.tokenizer, position=position, show_progress=options.progress
        )
        seconds = (time.process_time() - start) / len(texts) / len(blocks)
        print(f"position {position}: {seconds:.1f} s a sentence and layer")
        for name, mean in zip(blocks, found[position].mean_bits.mean(dim=1).tolist(), strict=True):
            print(f"  {name:24s} {mean:8.1f} bits a word")
    for example in range(min(options.show, len(texts))):
        bits, tokens = found[0].of_example(example)[-1], found[0].tokens[example]
        order = bits.argsort(descending=True)[:5].tolist()
        print(f"{texts[example]}\n  " + ", ".join(f"{tokens[place]} {float(bits[place]):.0f}" for place in order))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, function in {"linear": linear, "keyword": keyword, "layers": layers}.items():
        command = commands.add_parser(name, help=(function.__doc__ or "").rstrip("."))
        command.set_defaults(run=function)
        if name == "layers":
            command.add_argument("model")
            command.add_argument("texts", type=Path)
            command.add_argument("--calibrate", type=Path, required=True, metavar="FILE.tsv")
            command.add_argument("--n-calibration", type=int, default=400, help="texts for the reference deviations")
            command.add_argument("--show", type=int, default=5, help="texts whose words are printed")
            command.add_argument("--progress", action="store_true")
        else:
            command.add_argument("--seeds", type=int, default={"linear": 20}.get(name, 1))
        if name != "linear":
            command.add_argument("--n", type=int, default={"keyword": 40}.get(name, 8), help="sentences")
        if name == "keyword":
            command.add_argument("--train", type=int, default=400, help="steps of training")
        command.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.run(options)


if __name__ == "__main__":
    main()
