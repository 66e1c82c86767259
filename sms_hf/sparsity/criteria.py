"""Criteria: what makes a weight worth keeping."""

import zlib
from collections.abc import Callable

import torch
from torch import Tensor

from .selection import Score, magnitude


def random_scores(seed: int) -> Score:
    """Uniform scores in `[0, 1)` that depend on seed, tensor name and position alone, not on device or process."""

    def score(name: str, start: int, piece: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}/{start}".encode()))
        scores = torch.rand(piece.numel(), generator=generator).to(piece.device)
        return scores.where(piece.isfinite(), torch.inf)  # Refused by the selection, as under any other criterion.

    return score


CRITERIA: dict[str, Callable[[int], Score]] = {"magnitude": lambda seed: magnitude, "random": random_scores}
"""
Criterion name -> seed -> score. The weights of the smallest score are removed.

A criterion of your own is one more row, or is passed to `prune(criterion=...)` as it is:

    def distance_from_one(name, start, piece):
        return (piece.float() - 1).abs()

    CRITERIA["distance_from_one"] = lambda seed: distance_from_one
"""


def score_of(criterion: str | Score, seed: int) -> Score:
    """The score of a row of `CRITERIA`, or of the caller's own function."""
    score = CRITERIA[criterion](seed) if isinstance(criterion, str) else criterion
    return score if score is magnitude else _checked(score)


def _checked(score: Score) -> Score:
    """The selection compares bits of float32: a wrong sign or dtype would be a wrong mask, not an error."""

    def checked(name: str, start: int, piece: Tensor) -> Tensor:
        scores = score(name, start, piece)
        if scores.dtype != torch.float32 or scores.shape != piece.shape or (scores < 0).any():
            raise ValueError(
                f"pruning_criterion must give non-negative float32 scores of shape {tuple(piece.shape)}, got "
                f"{scores.dtype} of shape {tuple(scores.shape)}{', some negative' * bool((scores < 0).any())} for {name!r}. "
                "Larger is kept: return for example `piece.float().abs()`."
            )
        return scores.abs()  # -0.0 is a negative number in bits.

    return checked
