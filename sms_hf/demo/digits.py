"""Handwritten digits of the demo: scikit-learn's copy of the UCI data set, 1,797 grey images of 8 x 8 pixels."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Array3D, ClassLabel, Dataset, DatasetDict, Features, NamedSplit

SIZES = {"train": 1000, "validation": 297, "test": 500}


def demo_digits(scale: int = 1) -> DatasetDict:
    """
    The splits train (1,000), validation (297) and test (500), each with every digit in its share of the whole.

    Columns: `pixel_values` `(1, 8 * scale, 8 * scale)`, float32, standardised by the training images, and `labels`. The
    splits are the same on every machine; rows come as tensors.

    Args:
        scale (`int`, *optional*, defaults to `1`): Every pixel is repeated so often in both directions.
    """
    if scale < 1:
        raise ValueError(f"scale must be at least 1, got {scale}. Pass 1 for the images as they are.")
    images, labels = _load()
    rows = _split(labels)
    train = images[rows["train"]]
    pixels = ((images - train.mean()) / train.std()).unsqueeze(1)
    pixels = pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    features = Features(
        {"pixel_values": Array3D(tuple(pixels.shape[1:]), "float32"), "labels": ClassLabel(names=list("0123456789"))}
    )
    splits: dict[str | NamedSplit, Dataset] = {
        name: Dataset.from_dict({"pixel_values": pixels[index].numpy(), "labels": labels[index].tolist()}, features)
        for name, index in rows.items()
    }
    return DatasetDict(splits).with_format("torch")


def jittered(digits: DatasetDict, degrees: float = 15.0, shift: float = 0.125) -> DatasetDict:
    """
    The same, but every time that a row of the training data is read it is turned and shifted at random.

    Args:
        degrees (`float`, *optional*, defaults to `15.0`): By at most so much to either side.
        shift (`float`, *optional*, defaults to `0.125`): At most this fraction of the image's side, in both directions.
    """

    def draw(batch: dict[str, Any]) -> dict[str, Any]:
        pixels = torch.as_tensor(np.asarray(batch["pixel_values"], dtype="float32"))
        return {"pixel_values": list(_move(pixels, degrees, shift)), "labels": batch["labels"]}

    return DatasetDict({**digits, "train": digits["train"].with_transform(draw)})


def _move(pixels: torch.Tensor, degrees: float, shift: float) -> torch.Tensor:
    """Images `(count, 1, side, side)`, each by an angle and a shift of its own from the global generator."""
    count, background = len(pixels), pixels.amin()
    angle = (torch.rand(count) * 2 - 1) * math.radians(degrees)
    by = (torch.rand(count, 2) * 2 - 1) * 2 * shift  # The side of an image is 2 in these coordinates.
    rows = [torch.stack([angle.cos(), -angle.sin(), by[:, 0]], 1), torch.stack([angle.sin(), angle.cos(), by[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(pixels.shape), align_corners=False)
    # Outside of an image there is background, not the mean grey that a zero would be.
    return F.grid_sample(pixels - background, grid, align_corners=False) + background


def _load() -> tuple[torch.Tensor, torch.Tensor]:
    """Images `(1797, 8, 8)`, float32, in [0, 16], and the digits."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("The digits come with scikit-learn: pip install sms_hf[demo].") from error
    images, labels = load_digits(return_X_y=True)
    return torch.from_numpy(images).float().reshape(-1, 8, 8), torch.from_numpy(labels)


def _split(labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Split -> rows in random order. Dealt evenly from the rows sorted by class, which is what stratifies."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    by_class, rest = shuffled[labels[shuffled].argsort(stable=True)], {}
    for name in ("test", "validation"):
        steps = torch.arange(len(by_class) + 1) * SIZES[name] // len(by_class)
        taken = steps[1:] > steps[:-1]
        rest[name], by_class = by_class[taken], by_class[~taken]
    parts = {"train": by_class} | rest
    return {name: shuffled[torch.isin(shuffled, parts[name])] for name in SIZES}
