"""Generated scenes of the demo for semantic segmentation: shapes of any colour on a striped, noisy background."""

import math

import torch
from datasets import Array2D, Array3D, Dataset, DatasetDict, Features

SCENE_CLASSES = ("background", "disc", "square", "triangle", "ring")
_NUM_SHAPES = 4
_TINTS = {
    "background": (0.0, 0.0, 0.0),
    "disc": (1.0, 0.0, 0.0),
    "square": (0.0, 1.0, 0.0),
    "triangle": (0.0, 0.0, 1.0),
    "ring": (0.8, 0.8, -0.8),
}


def demo_scenes(
    num_train: int = 800, num_validation: int = 100, num_test: int = 200, size: int = 32, seed: int = 0
) -> DatasetDict:
    """
    Scenes of shapes that hide each other, under noise. Each class tends to a colour; often only the shape tells.

    Columns: `pixel_values` `(3, size, size)`, float32, about standardised, and `labels` `(size, size)`, int64, the index in
    `SCENE_CLASSES`; rows come as tensors. The same arguments give the same scenes. The held-out splits are drawn first: a
    larger training split leaves them as they are.
    """
    sizes = {"validation": num_validation, "test": num_test, "train": num_train}
    for name, number in sizes.items():
        if number < 1:
            raise ValueError(f"num_{name} must be at least 1, got {number}. Ask for at least one scene.")
    generator = torch.Generator().manual_seed(seed)
    features = Features({"pixel_values": Array3D((3, size, size), "float32"), "labels": Array2D((size, size), "int64")})
    splits = {}
    for name, number in sizes.items():
        scenes = [_scene(size, generator) for _ in range(number)]
        columns = [torch.stack(column).numpy() for column in zip(*scenes, strict=True)]
        splits[name] = Dataset.from_dict(dict(zip(features, columns, strict=True)), features)
    return DatasetDict({name: splits[name] for name in ("train", "validation", "test")}).with_format("torch")


def _scene(size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """An image `(3, size, size)` and its labels `(size, size)`: a background, then shapes one over the other."""

    def uniform(low: float, high: float) -> float:
        return float(torch.empty(()).uniform_(low, high, generator=generator))

    def color(label: int) -> torch.Tensor:
        tint = torch.tensor(_TINTS[SCENE_CLASSES[label]])
        return (tint + 0.5 * torch.randn(3, generator=generator)).reshape(3, 1, 1)

    axis = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    direction, waves = uniform(0, math.pi), uniform(6, 30)
    stripes = torch.sin(waves * (math.cos(direction) * x + math.sin(direction) * y))
    image, labels = color(0) + 0.5 * color(0) * stripes, torch.zeros(size, size, dtype=torch.int64)
    for _ in range(_NUM_SHAPES):
        label = int(torch.randint(1, len(SCENE_CLASSES), (), generator=generator))
        radius, angle = uniform(0.16, 0.3), uniform(0, 2 * math.pi)
        u, v = (x - uniform(0.1, 0.9)) / radius, (y - uniform(0.1, 0.9)) / radius
        turned = math.cos(angle) * u + math.sin(angle) * v, math.cos(angle) * v - math.sin(angle) * u
        inside = _SHAPES[SCENE_CLASSES[label]](*turned)
        image, labels = torch.where(inside, color(label), image), labels.masked_fill(inside, label)
    return image + 0.25 * torch.randn(image.shape, generator=generator), labels


def _triangle(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    sides = [math.cos(a) * u + math.sin(a) * v for a in (math.pi / 6, 5 * math.pi / 6, 3 * math.pi / 2)]
    return torch.stack(sides).amax(0) < 0.55


# Where each shape is: coordinates in units of its radius -> bool, `(size, size)`.
_SHAPES = {
    "disc": lambda u, v: u**2 + v**2 < 0.9,
    "square": lambda u, v: torch.maximum(u.abs(), v.abs()) < 0.8,
    "triangle": _triangle,
    "ring": lambda u, v: ((u**2 + v**2).sqrt() - 0.8).abs() < 0.25,
}
