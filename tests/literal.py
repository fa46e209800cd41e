"""The method as the paper writes it, in plain loops: the whole model, on all copies, at each step, one example."""

import math

import torch
from scipy.ndimage import gaussian_filter1d
from torch import nn


def blur_matrix(sigma, size):
    """Gaussian smoothing of one axis as a matrix, made by scipy from unit vectors."""
    radius = round(2 * sigma)
    # scipy's "mirror" does not repeat the border, as torch's "reflect"
    columns = gaussian_filter1d(
        torch.eye(size, dtype=torch.float64).numpy(), sigma, axis=0, mode="mirror", radius=radius
    )
    return torch.from_numpy(columns)


def literal_iba(
    model,
    layer,
    x,
    target,
    mean,
    std,
    beta=10.0,
    n_steps=10,
    n_samples=10,
    lr=1.0,
    sigma=1.0,
    initial_alpha=5.0,
    seed=0,
):
    """Bits per element of one example x (1, C, H, W)."""
    features = []
    handle = layer.register_forward_hook(lambda _m, _i, output: features.append(output.detach().clone()))
    with torch.no_grad():
        model(x)
    handle.remove()
    (r,) = features
    down, across = (blur_matrix(sigma, size).to(r) if sigma > 0 else None for size in r.shape[2:])

    def smooth(mask):
        return down @ mask @ across.T if sigma > 0 else mask

    alpha = nn.Parameter(torch.full_like(r, initial_alpha))
    optimizer = torch.optim.Adam([alpha], lr=lr)
    generator = torch.Generator().manual_seed(seed)

    def kl(lam):
        variance = (1 - lam) ** 2
        return -0.5 * (1 + variance.log() - (lam * (r - mean) / std) ** 2 - variance)

    for _ in range(n_steps):
        optimizer.zero_grad()
        lam = smooth(torch.sigmoid(alpha))
        eps = torch.randn((n_samples, *r.shape[1:]), generator=generator, dtype=torch.float32).to(r.dtype)
        noise = mean + std * eps
        # the layer's output with its graph, as the published code has it: gradients flow on into the head
        handle = layer.register_forward_hook(lambda _m, _i, out, lam=lam, eps=noise: lam * out + (1 - lam) * eps)
        logits = model(x.repeat(n_samples, 1, 1, 1))
        handle.remove()
        cross_entropy = nn.functional.cross_entropy(logits, torch.full((n_samples,), target))
        (cross_entropy + beta * kl(lam).mean()).backward()
        optimizer.step()
    with torch.no_grad():
        return kl(smooth(torch.sigmoid(alpha))) / math.log(2)


def small_cnn(seed=0, inplace=True):
    """A small convolutional network in float64 whose answer depends on where things are."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(inplace=inplace),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(inplace=inplace),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(inplace=inplace),
        nn.Flatten(),
        nn.Linear(8 * 5 * 5, 4),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(2.0 * torch.randn(parameter.shape, generator=generator) / fan**0.5)
    return model.double().eval()


def normal(*shape, seed=0):
    """Standard normal float64 numbers from a generator of their own."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
