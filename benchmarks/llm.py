"""Time and memory of LLMIBAAttribution against plain forward passes.

    python -m benchmarks.llm                        # CPU, one thread; about 30 minutes
    python -m benchmarks.llm --tokens 128 --steps 2 # about 3 minutes; the peak is that of any number of steps

Random weights, 12 layers, 384 features, layers early, in the middle and late. Each line is a process of its own: CPU
seconds; the growth of its peak resident memory over model and statistics; what a backward pass through one layer has to
keep for as many rows as run at once; and the ratio of the two. A pass with gradients keeps that much for each layer
after the bottleneck, whatever is attributed: "gradient" is the standard of comparison, and a step of the method is one
such pass. The recorded prefix is what is kept of the layers before.
"""

from __future__ import annotations

import argparse
import functools
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from captum.attr import TextTokenInput
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from captum_iba import FeatureStatistics, LayerIBA
from captum_iba.attr import LLMIBAAttribution
from captum_iba.attr._llm_forward import AnswerLikelihood, Question
from captum_iba.bottleneck.containers import leaves_in
from captum_iba.bottleneck.replay import Recording, Site

N_LAYERS, WIDTH, VOCABULARY, N_SAMPLES = 12, 384, 8192, 10
DEPTHS = {"early": 1, "middle": 6, "late": 10}
FEW_ROWS = 2
NAMES = ("one row", "ten rows", "gradient", "attribution", f"attribution, {FEW_ROWS} rows")


def build(family: str) -> tuple[nn.Module, nn.ModuleList]:
    torch.manual_seed(0)
    if family == "gpt2":
        gpt2 = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCABULARY,
                n_positions=1024,
                n_embd=WIDTH,
                n_layer=N_LAYERS,
                n_head=6,
                bos_token_id=0,
                eos_token_id=0,
            )
        )
        return gpt2.eval(), gpt2.transformer.h
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=1024,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=6,
            max_position_embeddings=1024,
        )
    )
    return llama.eval(), llama.model.layers


@functools.cache
def words() -> PreTrainedTokenizerFast:
    """A tokenizer with a word for each token."""
    inner = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="w0")


def variant(name: str, family: str, depth: int, n_tokens: int) -> tuple[Callable[[int], object], int]:
    """What to measure, given a number of steps, and how many rows it runs at once."""
    model, layers = build(family)
    layer = layers[depth]
    ids = torch.randint(0, VOCABULARY, (1, n_tokens))
    statistics = FeatureStatistics.from_features(torch.randn(8, 64, WIDTH), 2, "channel")
    forward, question = AnswerLikelihood(model), Question((7,))
    iba = LLMIBAAttribution(LayerIBA(model, layer, statistics=statistics), words())
    inp = TextTokenInput(" ".join(f"w{token}" for token in ids[0].tolist()), words())

    def plain(rows: int) -> object:
        with torch.no_grad():
            return forward(ids.expand(rows, -1), question)

    def gradient() -> object:
        """One pass with gradients from the layer on, as each step of the method needs."""
        leaves: list[Tensor] = []

        def cut(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
            leaves.append(output.detach().requires_grad_())
            return leaves[0]

        handle = layer.register_forward_hook(cut)
        model.requires_grad_(False)
        try:
            return torch.autograd.grad(forward(ids.expand(N_SAMPLES, -1), question).sum(), leaves)
        finally:
            handle.remove()

    def attribute(rows: int, n_steps: int) -> object:
        return iba.attribute(inp, target=[7], n_steps=n_steps, n_samples=N_SAMPLES, internal_batch_size=rows)

    runs: dict[str, tuple[Callable[[int], object], int]] = {
        "one row": (lambda _: plain(1), 1),
        "ten rows": (lambda _: plain(N_SAMPLES), N_SAMPLES),
        "gradient": (lambda _: gradient(), N_SAMPLES),
        "attribution": (lambda n_steps: attribute(N_SAMPLES, n_steps), N_SAMPLES),
        NAMES[-1]: (lambda n_steps: attribute(FEW_ROWS, n_steps), FEW_ROWS),
    }
    return runs[name]


def memory(field: str) -> int:
    """Resident memory of this program, or its peak, in bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def activations(family: str, depth: int, n_tokens: int, rows: int) -> int:
    """Bytes that a backward pass through one layer needs, weights apart."""
    model, layers = build(family)
    calls: list[tuple[tuple[object, ...], dict[str, object]]] = []
    handle = layers[depth].register_forward_pre_hook(
        lambda _module, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        model(torch.zeros(rows, n_tokens, dtype=torch.long), use_cache=False)
    handle.remove()
    (args, kwargs), weights = calls[0], {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tensor.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.requires_grad_(False)
    features = args[0]
    assert isinstance(features, Tensor)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = layers[depth](features.detach().requires_grad_(), *args[1:], **kwargs)
    del output
    return sum(kept.values())


def measure(name: str, family: str, depth: int, n_tokens: int, n_steps: int) -> None:
    run, rows = variant(name, family, depth, n_tokens)
    run(1)  # first calls load kernels
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, start = memory("VmRSS"), time.process_time()
    run(n_steps)
    seconds, extra = time.process_time() - start, memory("VmHWM") - before
    layer = activations(family, depth, n_tokens, rows)
    print(f"{seconds:8.2f} s {extra / 2**20:10.1f} MB {layer / 2**20:16.1f} MB {extra / layer:12.1f}")


def prefix(family: str, depth: int, n_tokens: int) -> float:
    """Megabytes that a recording of the prefix keeps, for the one row that is explained."""
    model, layers = build(family)
    forward, question = AnswerLikelihood(model), Question((7,))
    ids = torch.zeros(1, n_tokens, dtype=torch.long)
    recording = Recording.make(Site(layers[depth], "layer"), lambda: forward(ids, question), [forward])
    tensors = [leaf for call in recording._calls for leaf in leaves_in(call.output) if isinstance(leaf, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20


def table(family: str, n_tokens: int, n_steps: int, places: Iterable[str]) -> None:
    head = f"{family}, {n_tokens} tokens"
    print(f"\n{head:27s} CPU time  extra memory  layer's activations  ratio")
    for place in places:
        depth = DEPTHS[place]
        kept = prefix(family, depth, n_tokens)
        print(f"{place}, layer {depth} of {N_LAYERS}: the recorded prefix keeps {kept:.1f} MB")
        for name in NAMES:
            numbers = [str(number) for number in (depth, n_tokens, n_steps)]
            command = [sys.executable, "-m", "benchmarks.llm", "--measure", name, family, *numbers]
            # large blocks go back to the system when they are freed
            environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            print(f"  {name:21s} {done.stdout.strip()}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=("gpt2", "llama"), action="append")
    parser.add_argument("--tokens", type=int, action="append")
    parser.add_argument("--steps", type=int, default=10, help="of each attribution")
    parser.add_argument("--place", choices=tuple(DEPTHS), action="append")
    parser.add_argument(
        "--measure", nargs=5, metavar=("NAME", "FAMILY", "DEPTH", "TOKENS", "STEPS"), help=argparse.SUPPRESS
    )
    arguments = parser.parse_args()
    if arguments.measure:
        name, family, *numbers = arguments.measure
        return measure(name, family, *(int(number) for number in numbers))
    for family in arguments.family or ("gpt2", "llama"):
        for n_tokens in arguments.tokens or (128, 512):
            table(family, n_tokens, arguments.steps, arguments.place or DEPTHS)
    return None


if __name__ == "__main__":
    main()
