"""The exact "smallest k of all of these tensors", without concatenating them."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

CHUNK = 1 << 18
"""Scores that are looked at in one piece: a few MB of working memory, whatever the size of the model."""

CUDA_CHUNK = 1 << 22
"""Magnitudes that are looked at in one piece on a GPU, which a smaller piece would not keep busy while the next is started."""

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
    ties_left = torch.tensor(num_removed - below)
    masks = {}
    for name, tensor in tensors.items():
        mask = torch.empty(tensor.numel(), dtype=torch.bool, device=tensor.device)
        for start, bits, living in _pieces(name, tensor, alive, score):
            kept = bits >= threshold
            if living is not None:
                kept &= living
            if num_removed > below:
                ties_left = _remove_ties_(kept, bits, threshold, ties_left)
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
    high = _histogram(HIGH_BINS, lambda bits: bits >> 16, None, tensors, alive, score)
    if high[INFINITY_BIN:].any():
        raise ValueError(_not_finite(_first_not_finite(tensors, alive, score)))
    high_bin, below = _locate(high, num_removed)
    low = _histogram(LOW_BINS, lambda bits: bits & 0xFFFF, lambda bits: (bits >> 16) == high_bin, tensors, alive, score)
    low_bin, below_low = _locate(low, num_removed - below)
    return (high_bin << 16) | low_bin, below + below_low


def _histogram(
    size: int, bin_of: Callable[[Tensor], Tensor], inside: Callable[[Tensor], Tensor] | None, tensors, alive, score
) -> Tensor:
    """How many scores lie in each of `size` bins, of those that are alive and `inside`."""
    counts: dict[torch.device, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.device not in counts:
            counts[tensor.device] = torch.zeros(size, dtype=torch.int64, device=tensor.device)
        for _, bits, living in _pieces(name, tensor, alive, score):
            chosen = living if inside is None else inside(bits) if living is None else inside(bits) & living
            _count_(counts[tensor.device], bin_of, bits, chosen)
    return sum((count.cpu() for count in counts.values()), torch.zeros(size, dtype=torch.int64))


def _count_(counts: Tensor, bin_of: Callable[[Tensor], Tensor], bits: Tensor, chosen: Tensor | None) -> None:
    """Add one to the bin of each that is chosen (or of all)."""
    if _runs_ahead(counts):  # Whole numbers: in whatever order they are added, the sum is the same.
        ones = torch.ones_like(bits, dtype=counts.dtype) if chosen is None else chosen.to(counts.dtype)
        counts.index_add_(0, bin_of(bits), ones)
    else:
        counts += torch.bincount(bin_of(bits if chosen is None else bits[chosen]), minlength=len(counts))


def _remove_ties_(kept: Tensor, bits: Tensor, threshold: int, ties_left: Tensor) -> Tensor:
    """Remove the first `ties_left` of those that are kept with the threshold's bits; how many are left to remove then."""
    ties_left = ties_left.to(kept.device)
    if _runs_ahead(kept):
        tied = kept & (bits == threshold)
        order = tied.cumsum(0)
        kept &= ~tied | (order > ties_left)
        return (ties_left - order[-1]).clamp(min=0)
    if ties_left:
        tied = (kept & (bits == threshold)).nonzero().squeeze(1)
        kept[tied[: int(ties_left)]] = False
        return (ties_left - len(tied)).clamp(min=0)
    return ties_left


def _runs_ahead(tensor: Tensor) -> bool:
    """
    Whether operations on a tensor are only started when their call returns.

    There, what has a size that depends on values (`nonzero`, indexing by bools, `bincount`) makes the processor wait for
    the device, piece by piece: most of the time of a selection.
    """
    return tensor.device.type == "cuda"


def _first_not_finite(tensors, alive, score) -> str:
    """Name of the first tensor with a score that is NaN or infinite."""
    for name, tensor in tensors.items():
        for _, bits, living in _pieces(name, tensor, alive, score):
            infinite = (bits >> 16) >= INFINITY_BIN
            if (infinite if living is None else infinite & living).any():
                return name
    raise AssertionError("There is one: it was counted.")


def _locate(histogram: Tensor, rank: int) -> tuple[int, int]:
    """Bin that holds the element of this rank (from 0), and the number of elements in the bins before it."""
    cumulative = histogram.cumsum(0)
    index = min(int(torch.searchsorted(cumulative, rank, right=True)), len(histogram) - 1)
    return index, int(cumulative[index] - histogram[index])


def _pieces(name: str, tensor: Tensor, alive: Mapping[str, Tensor], score: Score) -> Iterator[tuple]:
    """(start, score bits as int32, alive or None) of each piece of one flat tensor."""
    flat = tensor.detach().reshape(-1)
    living = alive[name].reshape(-1) if name in alive else None
    # Other scores may depend on where a piece starts.
    size = CUDA_CHUNK if score is magnitude and _runs_ahead(tensor) else CHUNK
    for start in range(0, flat.numel(), size):
        bits = score(name, start, flat[start : start + size]).view(torch.int32)
        yield start, bits, None if living is None else living[start : start + size].to(bits.device)
