"""What the tests of photo folders share: small classifiers, photos with red boxes, and their annotations."""

import torch
from PIL import Image
from torchvision.transforms._presets import ImageClassification

from captum_iba.photos import Classifier

TENCH, GOLDFISH = "n01440764", "n01443537"


def small(resize=40, crop=32, categories=("ant", "Bee", "house fly")):
    """A classifier of small inputs that prefers the class 1."""
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, len(categories)))
    torch.nn.init.zeros_(model[2].weight)
    model[2].bias.data = torch.arange(len(categories)).eq(1).float()
    preset = ImageClassification(crop_size=crop, resize_size=resize)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preset.mean, preset.std))
    return Classifier("small", model.eval(), preset, list(categories), mean, std)


def photo(path, boxes=(), size=(60, 40)):
    """A black photo with red boxes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size)
    for box in boxes:
        image.paste((255, 0, 0), tuple(box))
    image.save(path, quality=100, subsampling=0)


def annotation(path, boxes, size=(60, 40), names=None):
    """A Pascal-VOC file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = "" if size is None else f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
        "</bndbox></object>"
        for name, (x0, y0, x1, y1) in zip(names or ["ant"] * len(boxes), boxes, strict=True)
    )
    path.write_text(f"<annotation>{shape}{objects}</annotation>")
