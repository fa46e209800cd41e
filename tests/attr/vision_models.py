"""Small vision transformers with random weights, of each family: how they name a token layer, and what it gives."""

import functools

import pytest
import torch
from torch import nn

SIZE = 32
N_CLASSES = 3

# name: (a token layer in the middle, its features, of which the first so many tokens are no patches)
FAMILIES = {
    "torchvision vit": ("encoder.layers.encoder_layer_0", (17, 8), 1),
    "torchvision swin": ("features.1", (8, 8, 8), 0),
    "vit": ("vit.encoder.layer.0", (17, 8), 1),
    "deit": ("deit.encoder.layer.0", (17 + 1, 8), 2),
    "deit with teacher": ("deit.encoder.layer.0", (17 + 1, 8), 2),
    "swin": ("swin.encoder.layers.0.blocks.0", (64, 8), 0),
}

# rows and columns of the patches, where they are not 4 x 4
GRIDS = {"torchvision swin": (8, 8), "swin": (8, 8)}


def _torchvision(name):
    models = pytest.importorskip("torchvision.models")
    if name == "vit":
        return models.VisionTransformer(SIZE, 8, 2, 2, 8, 16, num_classes=N_CLASSES)
    return models.SwinTransformer([4, 4], 8, [1, 1], [1, 2], [4, 4], num_classes=N_CLASSES)


def _transformers(name):
    transformers = pytest.importorskip("transformers")
    general = {"image_size": SIZE, "num_labels": N_CLASSES, "initializer_range": 0.3}
    if name == "swin":
        sizes = {"patch_size": 4, "window_size": 4, "depths": [1, 1], "num_heads": [1, 2], "embed_dim": 8}
        return transformers.SwinForImageClassification(transformers.SwinConfig(**sizes, **general))
    sizes = {
        "patch_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_size": 8,
        "intermediate_size": 16,
    }
    if name == "vit":
        return transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, **general))
    config = transformers.DeiTConfig(**sizes, **general)
    if "teacher" in name:
        return transformers.DeiTForImageClassificationWithTeacher(config)
    return transformers.DeiTForImageClassification(config)


@functools.cache
def vision_model(family):
    """In evaluation mode, with weights large enough for classes to differ."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if family.startswith("torchvision"):
            model = _torchvision(family.removeprefix("torchvision "))
            for parameter in model.parameters():
                nn.init.normal_(parameter, std=0.3)
        else:
            model = _transformers(family)
    return model.eval()


def token_layer(family):
    """The layer, which transformers 5 keeps without the encoder around it."""
    model, name = vision_model(family), FAMILIES[family][0]
    modules = dict(model.named_modules())
    return modules.get(name) or modules[name.replace("encoder.layer.", "layers.")]


def images(n, seed=1):
    return torch.randn(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
