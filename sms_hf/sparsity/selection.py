"""The exact "smallest k of all of these tensors", without concatenating them."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

CHUNK = 1 << 18
"""Scores that are looked at in one piece: a few MB of working memory, whatever the size of the model."""

HIGH_BINS = 1 << 15
LOW_BINS = 1 << 16
INFINITY_BIN = 0x7F80

Score = Callable[[str, int, Tensor], Tensor]
"""(tensor name, start, piece of the flat tensor from start) -> its non-negative float32 scores, of the same length."""


def magnitude(name: str, start: int, piece: Tensor) -> Tensor:
    """Score of Han et al. (2015): `|w|`, exact in float32 for float32, bfloat16 and float16 weights."""
    return piece.float().abs_() if piece.dtype != torch.float32 else piece.abs()


def keep_largest(
    tensors: Mapping[str, Tensor],
    num_removed: int,
    alive: Mapping[str, Tensor] | None = None,
    score: Score = magnitude,
) -> dict[str, Tensor]:
    """
    Masks that remove exactly `num_removed` weights, those of the smallest score over all tensors together.

    Non-negative float32 numbers sort as their bits do, so two histograms (upper 16 bits, then the lower 16 bits of the
    bin that holds the threshold) give the exact threshold in two passes, for float32, bfloat16 and float16 alike.
    Among equal scores the lower (tensor, flat index) is removed first: exact counts, and the same on every process.

    Args:
        tensors (`Mapping[str, Tensor]`): Name -> weights of any shape, in the order that decides ties.
        num_removed (`int`): How many to remove in all; `0 <= num_removed <= alive weights`.
        alive (`Mapping[str, Tensor]`, *optional*): Name -> bool; weights that are `False` stay removed and do not count.
        score (`Callable`, *optional*, defaults to `|w|`): Gives the scores, piece by piece of at most `CHUNK` weights.

    Returns:
        `dict[str, Tensor]`: Name -> bool tensor of the same shape and device, `True` = kept.

    Raises:
        ValueError: If a score is NaN or infinite, or more is to be removed than there is.
    """
    alive = alive or {}
    available = sum(int(alive[n].sum()) if n in alive else t.numel() for n, t in tensors.items())
    if not 0 <= num_removed <= available:
        raise ValueError(f"num_removed must lie in [0, {available}], the number of weights left, got {num_removed}.")
    threshold, below = _threshold(tensors, num_removed, alive, score)
    ties_left = num_removed - below
    masks = {}
    for name, tensor in tensors.items():
        mask = torch.empty(tensor.numel(), dtype=torch.bool, device=tensor.device)
        for start, bits, living in _pieces(name, tensor, alive, score):
            kept = bits >= threshold
            if living is not None:
                kept &= living
            if ties_left:
                tied = (kept & (bits == threshold)).nonzero().squeeze(1)
                kept[tied[:ties_left]] = False
                ties_left -= min(ties_left, len(tied))
            mask[start : start + len(kept)] = kept
        masks[name] = mask.reshape(tensor.shape)
    return masks


def scores_of(name: str, tensor: Tensor, score: Score = magnitude) -> Tensor:
    """All scores of one tensor, in its shape."""
    flat = tensor.detach().reshape(-1)
    pieces = [score(name, start, flat[start : start + CHUNK]) for start in range(0, flat.numel(), CHUNK)]
    return torch.cat([flat.new_empty(0, dtype=torch.float32), *pieces]).reshape(tensor.shape)


def check_finite(name: str, scores: Tensor) -> None:
    """Raise `ValueError` if a score is NaN or infinite."""
    if not scores.isfinite().all():
        raise ValueError(_not_finite(name))


def _not_finite(name: str) -> str:
    return f"{name!r} holds NaN or infinite weights: it cannot be pruned. Repair or retrain the model."


def _threshold(tensors, num_removed, alive, score) -> tuple[int, int]:
    """Bits of the `num_removed`-th smallest score (counted from 0), and how many scores lie strictly below it."""
    high = torch.zeros(HIGH_BINS, dtype=torch.int64)
    for name, tensor in tensors.items():
        counts = torch.zeros(HIGH_BINS, dtype=torch.int64, device=tensor.device)
        for _, bits, living in _pieces(name, tensor, alive, score):
            chosen = bits if living is None else bits[living]
            counts += torch.bincount(chosen >> 16, minlength=HIGH_BINS)
        if counts[INFINITY_BIN:].any():
            raise ValueError(_not_finite(name))
        high += counts.cpu()
    high_bin, below = _locate(high, num_removed)
    low = torch.zeros(LOW_BINS, dtype=torch.int64)
    for name, tensor in tensors.items():
        for _, bits, living in _pieces(name, tensor, alive, score):
            inside = (bits >> 16) == high_bin
            if living is not None:
                inside &= living
            low += torch.bincount(bits[inside] & 0xFFFF, minlength=LOW_BINS).cpu()
    low_bin, below_low = _locate(low, num_removed - below)
    return (high_bin << 16) | low_bin, below + below_low


def _locate(histogram: Tensor, rank: int) -> tuple[int, int]:
    """Bin that holds the element of this rank (from 0), and the number of elements in the bins before it."""
    cumulative = histogram.cumsum(0)
    index = min(int(torch.searchsorted(cumulative, rank, right=True)), len(histogram) - 1)
    return index, int(cumulative[index] - histogram[index])


def _pieces(name: str, tensor: Tensor, alive: Mapping[str, Tensor], score: Score) -> Iterator[tuple]:
    """(start, score bits as int32, alive or None) of each piece of one flat tensor."""
    flat = tensor.detach().reshape(-1)
    living = alive[name].reshape(-1) if name in alive else None
    for start in range(0, flat.numel(), CHUNK):
        bits = score(name, start, flat[start : start + CHUNK]).view(torch.int32)
        yield start, bits, None if living is None else living[start : start + CHUNK].to(bits.device)
