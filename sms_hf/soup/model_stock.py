"""Model Stock: an average pulled back towards the parent, by the angles between the candidates."""

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from ..files.checkpoint import DTYPES, Checkpoint
from .averaging import Weight
from .pool import PARENT, Choice, Pool


def model_stock_ingredients(pool: Pool) -> Choice:
    """
    `w = t mean_i(w_i) + (1 - t) w_0` for every tensor (Jang et al., "Model Stock", ECCV 2024, equation 3).

    `t = m c / (1 + (m - 1) c)`, where `c` is the mean cosine between two candidates as seen from the parent `w_0`, which here
    is the pruned parent of the phase; `t` is kept within [0, 1]. Nothing is evaluated.
    """
    names = list(pool.folders)
    if len(names) == 1:
        return {names[0]: 1.0}, []
    if pool.parent is None:
        raise ValueError("Model Stock needs the parent of its candidates, got none. Take 'uniform' or 'greedy'.")
    pulls = shares_of_mean([pool.folders[name] for name in names], pool.parent)
    weights: dict[str, Weight] = {name: {tensor: t / len(names) for tensor, t in pulls.items()} for name in names}
    return weights | {PARENT: {tensor: 1 - t for tensor, t in pulls.items()}}, []


def shares_of_mean(folders: Sequence[Path], parent: Path) -> dict[str, float]:
    """Tensor -> `t`; 1 for whole numbers, and where no candidate has moved. One tensor of each folder is read at a time."""
    with ExitStack() as stack:
        origin, *others = [stack.enter_context(Checkpoint(folder)) for folder in (parent, *folders)]
        shares = {}
        for name in origin.shapes:
            start = origin.tensor(name)
            floating = DTYPES[origin.dtypes[name]].is_floating_point
            moved = [(other.tensor(name).double() - start.double()).flatten() for other in others if floating]
            shares[name] = share_of_mean(moved)
    return shares


def share_of_mean(moved: Sequence[Tensor]) -> float:
    """`t` from the ways that candidates went, vectors of one length."""
    lengths = [float(torch.linalg.vector_norm(way)) for way in moved]
    if not moved or min(lengths) == 0.0:
        return 1.0
    pairs = combinations(range(len(moved)), 2)
    cosines = [float(moved[i] @ moved[j]) / (lengths[i] * lengths[j]) for i, j in pairs]
    mean, m = sum(cosines) / len(cosines), len(moved)
    return min(max(m * mean, 0.0) / (1 + (m - 1) * max(mean, 0.0)), 1.0)
