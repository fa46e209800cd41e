"""The bits of a vision transformer's patches against attention rollout, on the demo's canvases with their boxes.

    python -m benchmarks.vit [--weights FILE] [--choose]

Trains a small vision transformer on the embedded canvases: minutes on one thread, or none where FILE holds its weights,
which are written there. Then compares methods on 100 held-out canvases by the bounding-box ratio, with paired standard
errors. Layer and beta were chosen on canvases of other hands, which ``--choose`` does again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import ConvStemConfig
from tqdm import trange

from benchmarks.readout import print_report
from captum_iba import FeatureStatistics, LayerIBA, compare
from captum_iba.attr import tokens_to_map
from captum_iba.comparison.dataset import TensorExamples
from captum_iba.demo import load_canvases
from captum_iba.demo.train import distort
from captum_iba.metrics import bounding_box_ratio, boxes_to_mask

LAYER = "vit.encoder.dropout"
BETA = 30.0
METHODS = ["LayerIBA", "AttentionRollout", "LayerGradCam", "Saliency", "Random"]
# from the embedded patches on; behind the last block only the class token is read, and the patches there have no bits
LAYERS = ["vit.encoder.dropout", *(f"vit.encoder.layers.encoder_layer_{index}" for index in range(3))]
BETAS = (1.0, 10.0, 30.0, 100.0)
# seeds of canvases that no step of the training sees
_CALIBRATION, _CHOICE = 10**6, 10**6 + 1


class DigitsViT(nn.Module):
    """Four blocks on 8 x 8 patches of 8 x 8 pixels, embedded by three convolutions, and a class token."""

    def __init__(self) -> None:
        super().__init__()
        stem = [ConvStemConfig(channels, 3, 2) for channels in (32, 64, 64)]
        self.vit = VisionTransformer(64, 8, 4, 4, 96, 192, num_classes=10, conv_stem_configs=stem)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of canvases (n, 1, 64, 64)."""
        logits: Tensor = self.vit(images.expand(-1, 3, -1, -1))
        return logits


def train(steps: int, seed: int) -> DigitsViT:
    """Canvases drawn anew for every step, turned and stretched, as for the demo's network."""
    torch.manual_seed(seed)
    model = DigitsViT().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps, pct_start=0.1)
    progress = trange(steps, desc="training", unit="step")
    for step in progress:
        batch = load_canvases("train", 128, seed=step)
        loss = F.cross_entropy(model(distort(batch.images)), batch.labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return model.eval()


def load_or_train(weights: Path, steps: int, seed: int) -> DigitsViT:
    if weights.exists():
        model = DigitsViT()
        model.load_state_dict(load_file(weights))
        return model.eval()
    model = train(steps, seed)
    save_file(model.state_dict(), weights)
    return model


def accuracy(model: nn.Module, n: int = 1000) -> float:
    canvases = load_canvases("test", n, seed=1)
    with torch.no_grad():
        answers = torch.cat([model(images).argmax(dim=1) for images in canvases.images.split(100)])
    return float((answers == canvases.labels).float().mean())


def statistics(model: nn.Module, layer: str, calibration: Tensor) -> FeatureStatistics | None:
    """Of each token by itself: the class token starts as a constant, which is no information."""
    iba = LayerIBA(model, model.get_submodule(layer))
    return iba.estimate(calibration.split(250), per="feature").statistics


def choose(model: nn.Module, calibration: Tensor, n: int) -> tuple[str, float]:
    """Layer and beta of the highest bounding-box ratio on canvases of the training's hands."""
    canvases = load_canvases("train", n, seed=_CHOICE)
    mask = torch.stack([boxes_to_mask(box[None], (64, 64)) for box in canvases.boxes])
    found: dict[tuple[str, float], float] = {}
    print(f"bounding-box ratio on {n} other canvases, and the class token's share of the bits")
    for layer in LAYERS:
        iba = LayerIBA(model, model.get_submodule(layer), statistics=statistics(model, layer, calibration))
        for beta in BETAS:
            patches, prefix = tokens_to_map(iba.attribute(canvases.images, target=canvases.labels, beta=beta))
            ratio = bounding_box_ratio(patches, mask).per_sample
            found[layer, beta] = float(ratio.mean())
            share = prefix.sum(dim=1) / (prefix.sum(dim=1) + patches.flatten(1).sum(dim=1))
            print(f"{layer} beta {beta:5g}: {found[layer, beta]:.4f}, {float(share.mean()):.3f}", flush=True)
    return max(found, key=lambda key: found[key])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path("digits_vit.safetensors"))
    parser.add_argument("--steps", type=int, default=800, help="of the training")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--canvases", type=int, default=100)
    parser.add_argument("--choose", action="store_true", help="choose layer and beta anew")
    parser.add_argument("--choose-canvases", type=int, default=30)
    parser.add_argument("--layer", default=LAYER)
    parser.add_argument("--beta", type=float, default=BETA)
    parser.add_argument("--metrics", nargs="+", default=["bounding box"])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_or_train(options.weights, options.steps, options.seed)
    print(f"accuracy on 1000 held-out canvases: {accuracy(model):.3f}", flush=True)
    calibration = load_canvases("train", 2000, seed=_CALIBRATION).images
    layer, beta = options.layer, options.beta
    if options.choose:
        layer, beta = choose(model, calibration, options.choose_canvases)
    canvases = load_canvases("test", options.canvases)
    report = compare(
        model,
        TensorExamples(canvases.images, canvases.labels, boxes=canvases.boxes),
        METHODS,
        options.metrics,
        layer,
        statistics=statistics(model, layer, calibration),
        calibration=calibration.split(250),
        method_options={"LayerIBA": {"beta": beta}},
        n_pictures=0,
        show_progress=True,
    )
    configuration = report.results.configuration
    print(f"{layer}, beta {beta:g}; GradCAM at {configuration['gradcam_layer']}")
    print_report(report)


if __name__ == "__main__":
    main()
