"""The variational information bottleneck against the exact Gaussian one, and against a deterministic twin on digits.

    python -m benchmarks.vib gaussian     # learned and exact information over beta
    python -m benchmarks.vib digits       # error and robustness over beta, scikit-learn's digits

``gaussian``: scalars with correlation 0.8, and vectors of four with canonical correlations 0.9, 0.8, 0.6 and 0.3 in
rotated coordinates; linear encoder and decoder. I(X;Z) of the scalar encoder is integrated on a grid, whatever the
encoder has become; that of vectors is 1/2 (ln det cov z - E ln det sigma^2), exact for a linear encoder and never too
low. All in nats.

``digits``: five networks with a bottleneck for each beta and a twin without one (the same layers, the code's mean goes
on, no loss for the rate), trained on the same 70 % of the images with the same recipe; the other 30 % are looked at
once, at the end. Differences are paired by seed, which draws split, weights, batches and noise.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from captum_iba.information.gaussian_bottleneck import gaussian_information_bottleneck
from captum_iba.information.vib import VariationalBottleneck
from captum_iba.information.vib_loss import VIBLoss, mean_probabilities

CORRELATIONS = [0.9, 0.8, 0.6, 0.3]
TEST_SAMPLES = 12


def gaussian(options: argparse.Namespace) -> None:
    """Learned information beside the exact one."""
    for correlations in ([0.8], CORRELATIONS):
        print(f"\ncorrelations {correlations}; nats; mean over {options.seeds} seeds, largest error of one")
        print(f"{'beta':>6s} {'exact I(X;Z)':>13s} {'learned':>9s} {'rate':>9s} {'mean err':>9s} {'worst err':>10s}")
        for beta in options.betas:
            exact = float(gaussian_information_bottleneck(correlations, beta, unit="nats").i_xz)
            found = [learn_gaussian(correlations, beta, seed, options) for seed in range(options.seeds)]
            learned, rate = (statistics.mean(values) for values in zip(*found, strict=True))
            worst = max(abs(value - exact) for value, _ in found)
            print(
                f"{beta:6g} {exact:13.4f} {learned:9.4f} {rate:9.4f} {learned - exact:+9.4f} {worst:10.4f}", flush=True
            )


def learn_gaussian(
    correlations: Sequence[float], beta: float, seed: int, options: argparse.Namespace
) -> tuple[float, float]:
    """Information and rate of a trained linear encoder, nats."""
    torch.manual_seed(seed)
    d, rho = len(correlations), torch.tensor(correlations)
    turn_x, turn_y = (torch.linalg.qr(torch.randn(d, d))[0] for _ in range(2))

    def draw(n: int) -> tuple[Tensor, Tensor]:
        x, noise = torch.randn(2, n, d)
        return x @ turn_x, (rho * x + (1 - rho.square()).sqrt() * noise) @ turn_y

    bottleneck, decoder = VariationalBottleneck(d, d, options.prior, unit="nats"), nn.Linear(d, d)
    # the decoder's covariance, as the Cholesky factor of its inverse
    factor = nn.Parameter(torch.eye(d))

    def negative_log_likelihood(prediction: Tensor, y: Tensor) -> Tensor:
        lower = factor.tril()
        return 0.5 * ((y - prediction) @ lower).square().sum(dim=1) - lower.diagonal().abs().log().sum()

    objective = VIBLoss(beta, loss=negative_log_likelihood, unit="nats")
    parameters = [*bottleneck.parameters(), *decoder.parameters(), factor]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    for _ in range(options.steps):
        x, y = draw(1024)
        optimizer.zero_grad()
        objective(decoder(bottleneck(x)), y, bottleneck.kl).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        bottleneck(draw(100_000)[0])
        rate = float(bottleneck.rate)
        measure = scalar_information if d == 1 else linear_information
        return measure(bottleneck), rate


def scalar_information(bottleneck: VariationalBottleneck, n: int = 1001, n_noise: int = 33) -> float:
    """I(X;Z) = E ln p(z|x) - E ln p(z) for standard normal X, integrated on a grid of x and of noise."""
    encoder = bottleneck.encoder.double()
    x, noise = torch.linspace(-6, 6, n, dtype=torch.float64), torch.linspace(-5, 5, n_noise, dtype=torch.float64)
    location, rho = encoder(x[:, None]).split(1, dim=1)
    deviation = F.softplus(rho - 5)
    weight, noise_weight = (torch.softmax(-values.square() / 2, dim=0) for values in (x, noise))
    log_p = -0.5 * ((location + deviation * noise)[..., None] - location[:, 0]).div(deviation[:, 0]).square()
    log_mixture = (log_p - deviation[:, 0].log() + weight.log()).logsumexp(dim=-1)
    log_conditional = -0.5 * noise.square() - deviation.log()
    return float((weight[:, None] * noise_weight * (log_conditional - log_mixture)).sum())


def linear_information(bottleneck: VariationalBottleneck) -> float:
    """Information if z is Gaussian; more than it has if not."""
    d = bottleneck.in_features
    encoder = bottleneck.encoder.double()
    rho = encoder(torch.randn(100_000, d, dtype=torch.float64))[:, d:]
    deviation = F.softplus(rho - 5)
    # the input is standard normal, so that the covariance of the locations needs no sample
    slope = encoder.weight[:d]
    covariance = slope @ slope.T + deviation.square().mean(dim=0).diag()
    return float(0.5 * torch.logdet(covariance) - deviation.log().sum(dim=1).mean())


def digits(options: argparse.Namespace) -> None:
    """Errors of networks with a bottleneck and of their twins, clean and attacked."""
    names = [None, *options.betas]
    rows: dict[float | None, list[list[float]]] = {beta: [] for beta in names}
    start = time.perf_counter()
    for seed in range(options.seeds):
        for beta in names:
            rows[beta].append(run_digits(beta, seed, options.epochs, options.epsilons))
            print(f"seed {seed}, beta {beta}: {' '.join(f'{value:.2f}' for value in rows[beta][-1])}", flush=True)
    seconds = (time.perf_counter() - start) / options.seeds / len(names)
    columns = ["error %", *(f"FGSM {epsilon:g} %" for epsilon in options.epsilons), "rate, bits"]
    print(f"\n{options.seeds} seeds, {options.epochs} epochs, {seconds:.1f} s each; mean (s.e.)")
    table("beta", columns, {str(beta or "twin"): rows[beta] for beta in names})
    print("\ndifference to the twin, paired by seed; mean (s.e.)")
    differences = {
        str(beta): [subtract(a, b) for a, b in zip(rows[beta], rows[None], strict=True)] for beta in names[1:]
    }
    table("beta", columns[:-1], differences)
    ordered = [rows[beta] for beta in sorted(options.betas)]
    falls = sum(all(b[-1] < a[-1] for a, b in itertools.pairwise(of_seed)) for of_seed in zip(*ordered, strict=True))
    print(f"\nthe rate falls from each beta to the next in {falls} of {options.seeds} seeds")


def subtract(first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(first, second, strict=True)]


def table(corner: str, columns: Sequence[str], rows: dict[str, list[list[float]]]) -> None:
    print(f"{corner:>8s} " + " ".join(f"{name:>16s}" for name in columns))
    for name, values in rows.items():
        cells = [of_mean(column) for column in list(zip(*values, strict=True))[: len(columns)]]
        print(f"{name:>8s} " + " ".join(f"{cell:>16s}" for cell in cells))


def of_mean(values: Sequence[float]) -> str:
    if any(math.isnan(value) for value in values):
        return "–"
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.2f} ({error:.2f})"


class Network(nn.Module):
    """64-256-256, a bottleneck of 32, and a linear decoder; without a beta the code's mean goes on."""

    def __init__(self, beta: float | None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
        self.bottleneck = VariationalBottleneck(256, 32)
        self.decoder = nn.Linear(32, 10)
        self.is_twin = beta is None

    def forward(self, x: Tensor) -> Tensor:
        """Logits, in training of one draw."""
        hidden = self.body(x)
        if self.is_twin:
            return self.decoder(self.bottleneck.encoder(hidden)[:, :32])
        return self.decoder(self.bottleneck(hidden))

    def log_probabilities(self, x: Tensor) -> Tensor:
        """Of the twin, or of the average over draws."""
        if self.is_twin:
            return torch.log_softmax(self(x), dim=1)
        with self.bottleneck.sampling(TEST_SAMPLES):
            return mean_probabilities(self(x), log=True)


def run_digits(beta: float | None, seed: int, epochs: int, epsilons: Sequence[float]) -> list[float]:
    """Error in percent, clean and attacked, and the rate in bits, on the images held out."""
    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x / 8 - 1, y, test_size=0.3, stratify=y, random_state=seed)
    x_train, x_test = (torch.tensor(part, dtype=torch.float32) for part in parts[:2])
    y_train, y_test = (torch.tensor(part) for part in parts[2:])
    model = train(beta, x_train, y_train, seed, epochs)
    attacks = [0.0, *epsilons]
    errors = [error_rate(model, fgsm(model, x_test, y_test, epsilon), y_test) for epsilon in attacks]
    if beta is None:
        return [*errors, math.nan]
    with torch.no_grad():
        model(x_test)
    return [*errors, float(model.bottleneck.rate)]


def train(beta: float | None, x: Tensor, y: Tensor, seed: int, epochs: int) -> Network:
    """The averaged network after the last epoch."""
    torch.manual_seed(seed)
    model = Network(beta)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.5, 0.999))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.97)
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    if beta is not None:
        objective = VIBLoss(beta)
        loss = lambda logits, target: objective(logits, target, model.bottleneck.kl)  # noqa: E731
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(100):
            optimizer.zero_grad()
            loss(model(x[rows]), y[rows]).backward()
            optimizer.step()
            averaged.update_parameters(model)
        schedule.step()
    found: Network = averaged.module.eval()
    return found


def fgsm(model: Network, x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    """One step against the loss of the averaged probabilities, within the images' range."""
    if epsilon == 0:
        return x
    x = x.clone().requires_grad_()
    loss = F.nll_loss(model.log_probabilities(x), y)
    (gradient,) = torch.autograd.grad(loss, x)
    return (x + epsilon * gradient.sign()).clamp(-1, 1).detach()


@torch.no_grad()
def error_rate(model: Network, x: Tensor, y: Tensor) -> float:
    return 100 * float((model.log_probabilities(x).argmax(dim=1) != y).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    of_gaussian = commands.add_parser("gaussian", help=gaussian.__doc__)
    of_gaussian.set_defaults(run=gaussian)
    of_gaussian.add_argument("--betas", type=float, nargs="+", default=[0.02, 0.1, 0.3, 0.5, 0.6, 0.7])
    of_gaussian.add_argument("--steps", type=int, default=3000)
    of_gaussian.add_argument("--prior", choices=("standard", "learned"), default="standard")
    of_digits = commands.add_parser("digits", help=digits.__doc__)
    of_digits.set_defaults(run=digits)
    of_digits.add_argument("--betas", type=float, nargs="+", default=[1e-4, 1e-3, 1e-2, 1e-1, 1.0])
    of_digits.add_argument("--epsilons", type=float, nargs="+", default=[0.25])
    of_digits.add_argument("--epochs", type=int, default=60)
    for command in (of_gaussian, of_digits):
        command.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
