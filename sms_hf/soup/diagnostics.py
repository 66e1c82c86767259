"""How candidates lie to each other, and what a mask could save. Folders are read in pieces, as for averaging."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files.checkpoint import DTYPES, Checkpoint
from ..files.folder import CheckpointError
from ..sparsity.evaluating import evaluating
from ..sparsity.masks import MaskError, Masks
from ..sparsity.prunable import matrix_dims
from .averaging import row_pieces

MARGIN = 0.01
"""A middle counts as worse when its loss on one batch exceeds that of both ends by more than this fraction."""

# ---- Distances ---------------------------------------------------------------------------------------------------------


def pairwise_geometry(folders: Sequence[str | Path], names: Collection[str] | None = None) -> dict[str, Any]:
    """
    Where models lie to each other in weight space.

    Args:
        folders (`Sequence[str | Path]`): `m >= 2` model folders with the same tensors.
        names (`Collection[str]`, *optional*): Tensors to look at, for example the trainable ones. Default: all floating.

    Returns:
        `dict`: `distances` (L2) and `angles` (degrees, between the weight vectors), both `m x m` nested lists;
        `to_barycentre`, the distance of each to the mean of all; `distance` and `angle` with `min`, `mean` and `max` over
        all pairs.

    Raises:
        CheckpointError: If a tensor of the first folder is missing in another, or has another shape there.
        ValueError: For fewer than two folders, or names of which no floating tensor is there.
    """
    m = len(folders)
    if m < 2:
        raise ValueError(f"pairwise_geometry needs at least two folders, got {m}. Pass the candidates of a phase.")
    products, squares = torch.zeros(m, m, dtype=torch.float64), torch.zeros(m, m, dtype=torch.float64)
    to_mean, seen = torch.zeros(m, dtype=torch.float64), 0
    for pieces in _pieces(folders, names):
        seen += pieces.shape[1]
        products += pieces @ pieces.T
        # Differences are summed on their own: from the products they would drown in rounding.
        squares += torch.stack([(pieces - piece).square().sum(1) for piece in pieces])
        to_mean += (pieces - pieces.mean(0)).square().sum(1)
    if not seen:
        raise ValueError(
            f"names must hold floating tensors of {folders[0]}, got {list(names or [])[:3]}. Leave names out to look at all."
        )
    norms = products.diagonal().sqrt()
    cosines = (products / (norms[:, None] * norms)).clamp(-1.0, 1.0)
    distances, angles = squares.sqrt(), cosines.acos().rad2deg()
    angles[squares == 0] = 0.0
    above = torch.triu_indices(m, m, offset=1).unbind()
    return {
        "distances": distances.tolist(),
        "angles": angles.tolist(),
        "to_barycentre": to_mean.sqrt().tolist(),
        "distance": _summary(distances[above]),
        "angle": _summary(angles[above]),
    }


def _summary(values: Tensor) -> dict[str, float]:
    return {"min": float(values.min()), "mean": float(values.mean()), "max": float(values.max())}


def _pieces(folders: Sequence[str | Path], names: Collection[str] | None) -> Iterator[Tensor]:
    """The same weights of every folder, `(folders, weights)` in float64, a chunk at a time."""
    with ExitStack() as stack:
        checkpoints = [stack.enter_context(Checkpoint(folder)) for folder in folders]
        first = checkpoints[0]
        for name, shape in first.shapes.items():
            if not DTYPES[first.dtypes[name]].is_floating_point or (names is not None and name not in names):
                continue
            for other in checkpoints:
                if other.shapes.get(name) != shape:
                    raise CheckpointError(
                        f"Models that are compared must hold the same tensors, but {name!r} has shape {shape} in {first.folder} "
                        f"and {other.shapes.get(name)} in {other.folder}. Pass candidates of one run."
                    )
            for start, stop in row_pieces(shape):
                yield torch.stack([c.rows(name, start, stop).double().reshape(-1) for c in checkpoints])


def mask_overlap(first: Masks, second: Masks) -> float:
    """
    Intersection over union of the weights that two masks keep, in `[0, 1]`; 1 for equal masks.

    Raises:
        MaskError: If they cover other tensors.
    """
    shapes = [{name: tuple(mask.shape) for name, mask in masks.items()} for masks in (first, second)]
    if shapes[0] != shapes[1]:
        differing = sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()})
        raise MaskError(
            f"Masks that are compared must cover the same tensors, but {differing[:3]} are in one only, or of two shapes. "
            "Pass masks of one model and one choice of target_modules."
        )
    both = sum(int((mask & second[name]).sum()) for name, mask in first.items())
    either = sum(int((mask | second[name]).sum()) for name, mask in first.items())
    return both / either if either else 1.0


def subsets(names: Sequence[str], sizes: Sequence[int]) -> list[tuple[str, ...]]:
    """All choices of so many names, smaller sizes first: the sub-soups of some candidates."""
    return [choice for size in sizes for choice in combinations(names, size)]


# ---- Loss between two models -------------------------------------------------------------------------------------------


def barrier(loss_first: float, loss_middle: float, loss_second: float) -> float:
    """`L(mid) - (L_1 + L_2) / 2`: above 0 where the middle of two models is worse than they are on average."""
    return loss_middle - (loss_first + loss_second) / 2


@dataclass(frozen=True)
class Rift:
    """Two candidates whose middle is worse than both: they share no basin, and an average with both is no soup."""

    first: str
    second: str
    losses: tuple[float, float]
    midpoint: float


def find_rifts(losses: Mapping[str, float], midpoints: Mapping[tuple[str, str], float]) -> list[Rift]:
    """
    Pairs of candidates that share no basin: the loss in the middle is not finite, or above both ends by more than `MARGIN`.

    Args:
        losses (`Mapping[str, float]`): Candidate -> its loss on one batch.
        midpoints (`Mapping[tuple[str, str], float]`): Pair -> loss of the middle between the two, on the same batch.
    """
    rifts = []
    for (first, second), middle in midpoints.items():
        ends = (losses[first], losses[second])
        worse = max(ends)
        if not math.isfinite(middle) or middle > worse + MARGIN * abs(worse):
            rifts.append(Rift(first, second, ends, middle))
    return rifts


def advice(rift: Rift, overrides: Mapping[str, Mapping[str, Any]]) -> str:
    """
    A sentence on a rift: which two, how bad, what to narrow.

    Args:
        rift ([`Rift`]): The pair.
        overrides (`Mapping[str, Mapping]`): Candidate -> the settings of its own. Where only the seeds of the two differ, what
            they share has to change.
    """
    mine, theirs = overrides[rift.first], overrides[rift.second]
    differing = [key for key in {**mine, **theirs} if key != "seed" and mine.get(key) != theirs.get(key)]
    remedy = "lower learning_rate or retrain shorter, so that candidates stay near their parent"
    if differing:
        remedy = "narrow " + ", ".join(f"{key} ({mine.get(key)} and {theirs.get(key)})" for key in differing)
    return (
        f"{rift.first} and {rift.second} share no basin: on one batch the loss between them is {rift.midpoint:.4g}, at the ends "
        f"{rift.losses[0]:.4g} and {rift.losses[1]:.4g}; {remedy}."
    )


def find_twins(names: Sequence[str], geometry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """
    Pairs of candidates that are equal bit for bit, so that an average of both is no soup.

    Args:
        names (`Sequence[str]`): The candidates.
        geometry (`Mapping`): What [`pairwise_geometry`] says of them, in this order.
    """
    return [(names[i], names[j]) for i, j in combinations(range(len(names)), 2) if geometry["distances"][i][j] == 0.0]


def twin_advice(first: str, second: str, overrides: Mapping[str, Mapping[str, Any]]) -> str:
    """A sentence on candidates that are equal: what differs between them did nothing, and what would."""
    mine, theirs = overrides[first], overrides[second]
    differing = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
    seed = "A seed acts through dropout and the order of the data (not with data_seed set, nor on a stream). "
    return (
        f"{first} and {second} are equal bit for bit, so that their average is no soup: {' and '.join(differing) or 'nothing'} "
        f"made no difference. {seed if 'seed' in differing else ''}Vary learning_rate, weight_decay or num_train_epochs."
    )


# ---- Cost --------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def theoretical_speedup(model: nn.Module, masks: Mapping[str, Tensor], inputs: Mapping[str, Any]) -> float:
    """
    Dense over non-zero floating point operations of all linear maps and convolutions, counted on one batch.

    A map costs two operations per weight and output position, `0` where the mask is `False`. Products of activations
    (attention) and stacked experts are left out; weights without a mask count as dense. Runs in evaluation mode, without
    gradients; the training flags are as before afterwards.

    Args:
        model (`nn.Module`): Called as `model(**inputs)`.
        masks (`Mapping[str, Tensor]`): Parameter name -> bool, `True` = kept.
        inputs (`Mapping`): One batch, on the model's device.

    Returns:
        `float`: At least 1: what perfect sparse kernels could gain.
    """
    dense, left = [0.0], [0.0]
    hooks = []
    for name, module in model.named_modules():
        dims = matrix_dims(module)
        if dims is not None:
            weight = module.get_parameter("weight")
            mask = masks.get(f"{name}.weight".removeprefix("."))
            share = 1.0 if mask is None or not mask.numel() else float(mask.sum()) / mask.numel()
            channels = weight.shape[dims[0]]

            def count(module, args, output, weight=weight, share=share, channels=channels) -> None:
                operations = 2.0 * weight.numel() * (output.numel() // channels)
                dense[0] += operations
                left[0] += operations * share

            hooks.append(module.register_forward_hook(count))
    try:
        with evaluating(model):
            model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if dense[0] == 0:
        return 1.0
    return dense[0] / left[0] if left[0] else math.inf
