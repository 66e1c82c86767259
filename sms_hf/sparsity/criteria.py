"""Criteria: what makes a weight worth keeping."""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .selection import Score, magnitude

Observe = Callable[[Tensor, Tensor], Tensor]
"""(weight, what is seen of it in one batch) -> a tensor that is summed over the batches."""


@dataclass(frozen=True)
class Seen:
    """
    What a criterion may score weights by, besides their values.

    Attributes:
        seed (`int`): For what is drawn.
        sums (`Mapping[str, Tensor]`): Parameter name -> what `observe` gave, summed over the calibration batches.
        input_dims (`Mapping[str, int]`): Parameter name -> the dimension over which its layer sums.
        shapes (`Mapping[str, tuple[int, ...]]`): Parameter name -> shape.
    """

    seed: int = 0
    sums: Mapping[str, Tensor] = field(default_factory=dict)
    input_dims: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Criterion:
    """
    A rule for which weights go first: those of the smallest score.

    Attributes:
        score (`Callable[[Seen], Score]`): Gives the scores, piece by piece.
        observes (`str`, *optional*): What it has to see of some batches first: `"gradients"` of the loss (of the weight's
            shape) or `"inputs"` of the layer (`(tokens, features)`, float32). Default: nothing.
        observe (`Callable`, *optional*): What to sum up of it over the batches.
    """

    score: Callable[[Seen], Score]
    observes: str | None = None
    observe: Observe | None = None


def random_scores(seen: Seen) -> Score:
    """Uniform scores in `[0, 1)` that depend on seed, tensor name and position alone, not on device or process."""

    def score(name: str, start: int, piece: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seen.seed}/{name}/{start}".encode()))
        scores = torch.rand(piece.numel(), generator=generator).to(piece.device)
        return scores.where(piece.isfinite(), torch.inf)  # Refused by the selection, as under any other criterion.

    return score


def wanda_scores(seen: Seen) -> Score:
    """
    `|W_ij| * ||X_j||_2` (Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024).

    `X_j` is input feature `j` over all tokens of the calibration batches, padding included. The paper compares the weights
    of one output; here the scope says what is compared. Under an N:M pattern both are the same.
    """

    def score(name: str, start: int, piece: Tensor) -> Tensor:
        shape, dim = seen.shapes[name], seen.input_dims[name]
        stride = torch.Size(shape[dim + 1 :]).numel()
        position = torch.arange(start, start + piece.numel(), device=piece.device)
        feature = position.div(stride, rounding_mode="floor") % shape[dim]
        return magnitude(name, start, piece) * seen.sums[name].to(piece.device).sqrt()[feature]

    return score


def taylor_scores(seen: Seen) -> Score:
    """
    Root of `sum_b (g_b w)^2` over calibration batches `b` with gradients `g_b` of the loss (Molchanov et al., "Importance
    Estimation for Neural Network Pruning", CVPR 2019, equation 8, for single weights): the squared first-order change of the
    loss where the weight is removed. The root keeps the order, and small scores apart.
    """

    def score(name: str, start: int, piece: Tensor) -> Tensor:
        squares = seen.sums[name].reshape(-1)[start : start + piece.numel()].to(piece.device)
        return magnitude(name, start, piece) * squares.sqrt()

    return score


CRITERIA: dict[str, Criterion] = {
    "magnitude": Criterion(lambda seen: magnitude),
    "random": Criterion(random_scores),
    "taylor": Criterion(taylor_scores, "gradients", lambda weight, gradient: gradient.float().square()),
    "wanda": Criterion(wanda_scores, "inputs", lambda weight, inputs: inputs.square().sum(0)),
}
"""
Criterion name -> criterion. The weights of the smallest score are removed.

A criterion of your own is one more row, or is passed to `prune(criterion=...)` as it is:

    def distance_from_one(name, start, piece):
        return (piece.float() - 1).abs()

    CRITERIA["distance_from_one"] = Criterion(lambda seen: distance_from_one)
"""


def criterion_of(criterion: str | Score | Criterion) -> Criterion:
    """A row of `CRITERIA`, or the caller's own."""
    if isinstance(criterion, str):
        return CRITERIA[criterion]
    return criterion if isinstance(criterion, Criterion) else Criterion(lambda seen: criterion)


def score_of(criterion: str | Score | Criterion, seen: Seen) -> Score:
    """The score of a criterion, checked piece by piece."""
    score = criterion_of(criterion).score(seen)
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
