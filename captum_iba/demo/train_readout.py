"""Train the demo's readout: ``python -m captum_iba.demo.train_readout [--output FILE] [--epochs N] [--seed S]``.

The same arguments give the same weights on the same computer with the same libraries and number of threads.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from captum_iba.attr import LayerReadoutIBA
from captum_iba.attr._readout import HiddenChannels
from captum_iba.demo.data import Split, load_canvases
from captum_iba.demo.model import LAYER, load_model
from captum_iba.demo.readout import PATH
from captum_iba.errors import CaptumIBAError

HIDDEN = (128, 128)
EPOCHS, _LEARNING_RATE = 20, 1e-3
BETA = 10.0
_CALIBRATION, _TRAINING, _HELD_OUT, _BATCH = 2000, 3200, 500, 64
# not the seed of the canvases that the network itself was trained on, nor of those that the demo explains
_TRAINING_SEED, _HELD_OUT_SEED = 7_000_000, 1


class Batches:
    """Canvases and labels in batches of 64.

    Args:
        split: ``"train"`` or ``"test"``.
        n: How many canvases.
        seed: Which canvases.
        shuffled: Another order at each pass, from torch's global random state.
    """

    def __init__(self, split: Split, n: int, seed: int, shuffled: bool) -> None:
        self._canvases, self._shuffled = load_canvases(split, n, seed), shuffled

    def __len__(self) -> int:
        """Count the batches."""
        return -(-len(self._canvases) // _BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass."""
        n = len(self._canvases)
        order = torch.randperm(n) if self._shuffled else torch.arange(n)
        for rows in torch.split(order, _BATCH):
            yield self._canvases.images[rows], self._canvases.labels[rows]


def train(
    epochs: int = EPOCHS,
    seed: int = 0,
    beta: float = BETA,
    checkpoint: Path | None = None,
    max_steps: int | None = None,
    show_progress: bool = True,
    hidden_channels: HiddenChannels = HIDDEN,
) -> LayerReadoutIBA:
    """Train a readout for the embedded network.

    Args:
        epochs: Passes over the training canvases.
        seed: Seed of the first weights, the noise and the order of the canvases.
        beta: Weight of the information.
        checkpoint: File to keep the training in, and to go on from.
        max_steps: Steps to stop at, or None.
        show_progress: Show a progress bar.
        hidden_channels: Widths of the readout network.

    Returns:
        The trained readout.
    """
    model = load_model()
    readout = LayerReadoutIBA(model, model.get_submodule(LAYER), hidden_channels=hidden_channels)
    readout.estimate(torch.split(load_canvases("train", _CALIBRATION).images, 250))
    return readout.fit(
        Batches("train", _TRAINING, _TRAINING_SEED, shuffled=True),
        Batches("test", _HELD_OUT, _HELD_OUT_SEED, shuffled=False),
        epochs=epochs,
        learning_rate=_LEARNING_RATE,
        beta=beta,
        max_steps=max_steps,
        # ten classes are easily given up, if beta is as large as that from the start
        warmup_steps=epochs * _TRAINING // _BATCH // 2,
        checkpoint=checkpoint,
        seed=seed,
        show_progress=show_progress,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, print the measures on held-out canvases, and write the file.

    Args:
        arguments: The command line without the program's name, or None for that of the process.

    Raises:
        SystemExit: The command line cannot be understood, or the folder of the output file does not exist.
    """
    parser = argparse.ArgumentParser(
        prog="python -m captum_iba.demo.train_readout", description="Train the demo's readout."
    )
    parser.add_argument("--output", type=Path, default=PATH, metavar="FILE")
    parser.add_argument("--epochs", type=int, default=EPOCHS, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    options = parser.parse_args(arguments)
    if not options.output.parent.is_dir():
        parser.error(f"--output is {options.output}, but there is no folder {options.output.parent}; create it first.")
    try:
        readout = train(options.epochs, options.seed)
    except CaptumIBAError as error:
        parser.error(str(error))
    for measures in (readout.history.validation[0], readout.history.validation[-1]):
        print(
            f"after {measures.step} steps, {measures.n} held-out canvases: loss {measures.loss:.3f}, "
            f"{measures.bits:.0f} bits, accuracy {measures.accuracy:.3f} (model {measures.model_accuracy:.3f})"
        )
    readout.save(options.output)
    print(f"readout written to {options.output}")


if __name__ == "__main__":
    main()
