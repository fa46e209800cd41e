"""Train the demo network: ``python -m captum_iba.demo.train [--output FILE] [--steps N] [--seed S]``.

The same steps and seed give the same weights on the same computer with the same libraries and number of threads;
elsewhere sums of floats may be taken in another order, and the weights differ a little. The files may differ in the
order of their notes, which safetensors does not fix.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F
from tqdm import trange

from captum_iba._files import write_atomically
from captum_iba.demo.data import GREY_MEAN, GREY_STD, Canvases, load_canvases
from captum_iba.demo.model import WEIGHTS, DigitsNet
from captum_iba.errors import InvalidArgumentError

_BATCH = 128
_PEAK_RATE = 4e-3
_WEIGHT_DECAY = 0.02
# Far more than any number of steps, so that the trainings of two seeds share no batch.
_SEED_STRIDE = 1_000_000
_TURN_DEGREES = 10.0
_STRETCH = 0.1
_HELD_OUT = 1000


def train(steps: int = 1200, seed: int = 0) -> DigitsNet:
    """Train a fresh network on canvases that are drawn anew for every step.

    Args:
        steps: Number of steps, at least 2.
        seed: Seed of the first weights, the canvases and their distortion, 0 or more.

    Returns:
        The trained network in eval mode. The global random state is put back to what it was.

    Raises:
        InvalidArgumentError: There are fewer than 2 steps, or the seed is negative.
        MissingDependencyError: scikit-learn, which holds the handwritten digits, is not installed.

    Examples::

        >>> from captum_iba.demo.train import train
        >>> train(steps=2).training
        False
    """
    if not 2 <= steps <= _SEED_STRIDE:
        raise InvalidArgumentError(f"steps is {steps}, but must be between 2 and {_SEED_STRIDE}.")
    if seed < 0:
        raise InvalidArgumentError(f"seed is {seed}, but must be at least 0.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitsNet().train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=_PEAK_RATE, weight_decay=_WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=_PEAK_RATE, total_steps=steps)
        progress = trange(steps, desc="training", unit="step")
        for step in progress:
            batch = load_canvases("train", _BATCH, seed=seed * _SEED_STRIDE + step)
            loss = F.cross_entropy(model(distort(batch.images)), batch.labels)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return model.eval()


def accuracy(model: DigitsNet, canvases: Canvases) -> float:
    """Measure how often the network names the digit.

    Args:
        model: The network, in eval mode.
        canvases: The canvases to name the digits of.

    Returns:
        The share of right answers, from 0 to 1.

    Examples::

        >>> from captum_iba.demo import load_canvases, load_model
        >>> from captum_iba.demo.train import accuracy
        >>> accuracy(load_model(), load_canvases("test", n=20)) > 0.8
        True
    """
    with torch.no_grad():
        # In parts, because the early feature maps of a thousand canvases would need a good deal of memory.
        answers = torch.cat([model(images).argmax(dim=1) for images in torch.split(canvases.images, _BATCH)])
    return int((answers == canvases.labels).sum()) / len(canvases)


def write_weights(model: DigitsNet, output: Path, notes: dict[str, str]) -> None:
    """Write the weights as a safetensors file, either wholly or not at all.

    Args:
        model: The network whose weights are written.
        output: The file to write; an existing one is replaced.
        notes: The metadata to put into the file.

    Raises:
        OSError: The file cannot be written.

    Examples::

        >>> import tempfile
        >>> from pathlib import Path
        >>> from captum_iba.demo.model import DigitsNet
        >>> from captum_iba.demo.train import write_weights
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_weights(DigitsNet(), Path(folder) / "net.safetensors", {"steps": "0"})
        ...     [file.name for file in Path(folder).iterdir()]
        ['net.safetensors']
    """
    write_atomically(output, save(model.state_dict(), metadata=notes))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure on held-out canvases and write the weights.

    Args:
        arguments: The command line without the program's name, or None for that of the process.

    Raises:
        SystemExit: The command line cannot be understood, or the folder of the output file does not exist.

    Examples::

        >>> import contextlib, io, tempfile
        >>> from pathlib import Path
        >>> from captum_iba.demo.train import main
        >>> with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as printed:
        ...     main(["--steps", "2", "--output", f"{folder}/net.safetensors"])
        >>> printed.getvalue().startswith("held-out accuracy: ")
        True
    """
    parser = argparse.ArgumentParser(prog="python -m captum_iba.demo.train", description="Train the demo network.")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name(WEIGHTS), metavar="FILE")
    parser.add_argument("--steps", type=int, default=1200, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    options = parser.parse_args(arguments)
    # Better to find this out now than after minutes of training.
    if not options.output.parent.is_dir():
        parser.error(f"--output is {options.output}, but there is no folder {options.output.parent}; create it first.")
    try:
        model = train(options.steps, options.seed)
    except InvalidArgumentError as error:
        parser.error(str(error))
    right = accuracy(model, load_canvases("test", _HELD_OUT))
    print(f"held-out accuracy: {right:.1%} of {_HELD_OUT} canvases")
    notes = {"steps": str(options.steps), "seed": str(options.seed), "accuracy": f"{right:.4f}"}
    write_weights(model, options.output, notes)
    print(f"weights written to {options.output}")


def distort(images: Tensor) -> Tensor:
    """Turn and stretch every canvas a little, so that a thousand hands come to stand for more.

    Args:
        images: Centred and scaled canvases, (n, 1, 64, 64).

    Returns:
        The distorted canvases, drawn from torch's global random state.

    Examples::

        >>> import torch
        >>> from captum_iba.demo.train import distort
        >>> distort(torch.zeros(2, 1, 64, 64)).shape
        torch.Size([2, 1, 64, 64])
    """
    count = len(images)
    turn = torch.empty(count).uniform_(-_TURN_DEGREES, _TURN_DEGREES).deg2rad()
    across, down, slant = torch.empty(3, count).uniform_(-_STRETCH, _STRETCH)
    rows = [
        torch.stack([turn.cos() * (1 + across), slant - turn.sin(), torch.zeros(count)], dim=1),
        torch.stack([turn.sin(), turn.cos() * (1 + down), torch.zeros(count)], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    # Outside the canvas there is background, which is grey 0; grid_sample fills in 0, so shift the greys to meet it.
    background = -GREY_MEAN / GREY_STD
    return F.grid_sample(images - background, grid, align_corners=False) + background


if __name__ == "__main__":
    main()
