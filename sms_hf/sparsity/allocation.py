"""Allocations: how many weights each tensor loses, and the masks that follow."""

from collections.abc import Mapping
from fractions import Fraction
from math import floor, prod

import torch
from torch import Size, Tensor

from .selection import Score, keep_largest, magnitude

LAST_LIMIT = Fraction(4, 5)
"""Uniform+: the last tensor loses no more than this."""


def select_global(weights, alive, sparsity: float, limit: float, score: Score) -> dict[str, Tensor]:
    """One ranking of all weights. Tensors that would lose more than `limit` lose just that; the others lose the rest."""
    to_remove = _left_to_remove(weights, alive, sparsity)
    if limit == 1:
        return keep_largest(weights, to_remove, alive, score)
    zeros = {name: num_zeros(alive, name) for name in weights}
    room = {name: max(_most(w, limit) - zeros[name], 0) for name, w in weights.items()}
    if sum(room.values()) < to_remove:
        raise ValueError(
            f"sparsity={sparsity} cannot be reached while no tensor may lose more than max_sparsity_per_layer={limit}. "
            "Raise max_sparsity_per_layer above the sparsity."
        )
    masks: dict[str, Tensor] = {}
    free = dict(weights)
    while True:
        chosen = keep_largest(free, to_remove, alive, score)
        full = [n for n in free if chosen[n].numel() - int(chosen[n].sum()) - zeros[n] > room[n]]
        if not full:
            return {name: {**masks, **chosen}[name] for name in weights}
        for name in full:
            masks |= keep_largest({name: free.pop(name)}, room[name], alive, score)
            to_remove -= room[name]


def select_uniform(weights, alive, sparsity: float, limit: float, score: Score) -> dict[str, Tensor]:
    """The same fraction of every tensor."""
    if sparsity > limit:
        raise ValueError(
            f"pruning_scope='uniform' removes {sparsity} of every tensor, more than max_sparsity_per_layer={limit} allows. "
            "Raise max_sparsity_per_layer, or leave it out."
        )
    masks: dict[str, Tensor] = {}
    for name, weight in weights.items():
        removed = to_remove(repr(name), round(sparsity * weight.numel()), weight.numel(), num_zeros(alive, name))
        masks |= keep_largest({name: weight}, removed, alive, score)
    return masks


def select_lamp(weights, alive, sparsity: float, limit: float, score: Score) -> dict[str, Tensor]:
    """One ranking of the LAMP scores of all tensors."""
    scores = {name: lamp_scores(weight, alive.get(name)) for name, weight in weights.items()}
    return select_global(scores, alive, sparsity, limit, magnitude)


def select_erk(weights, alive, sparsity: float, limit: float, score: Score) -> dict[str, Tensor]:
    """Survivors as in [`erk_survivors`]."""
    num_weights = sum(w.numel() for w in weights.values())
    num_kept = num_weights - round(sparsity * num_weights)
    shares = erk_survivors({name: w.shape for name, w in weights.items()}, num_kept)
    return _select_shares("erk", shares, weights, alive, sparsity, limit, score)


def select_uniform_plus(weights, alive, sparsity: float, limit: float, score: Score) -> dict[str, Tensor]:
    """Survivors as in [`uniform_plus_survivors`]."""
    shares = uniform_plus_survivors({name: w.numel() for name, w in weights.items()}, sparsity)
    return _select_shares("uniform+", shares, weights, alive, sparsity, limit, score)


SCOPES = {
    "global": select_global,
    "uniform": select_uniform,
    "erk": select_erk,
    "lamp": select_lamp,
    "uniform+": select_uniform_plus,
}
"""Scope name -> (weights, alive, sparsity, limit per tensor, score) -> masks."""


def lamp_scores(weight: Tensor, alive: Tensor | None = None) -> Tensor:
    """
    Score of Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning" (ICLR 2021).

    `score(u) = w_u^2 / sum(w_v^2)` over all `v` of the tensor that rank at or above `u` by magnitude (among equal ones
    the higher flat index ranks higher). The largest weight scores 1, so that no tensor is emptied early.

    Args:
        weight (`Tensor`): Any shape.
        alive (`Tensor`, *optional*): bool of the same shape; weights that are `False` count as zero.

    Returns:
        `Tensor`: The scores, same shape, float32. Rounding from float64 keeps their order: magnitudes that differ, differ
        by more than a step of float32 once they are squared.
    """
    living = weight.detach() if alive is None else weight.detach().where(alive.to(weight.device), 0)
    ranked, order = living.reshape(-1).double().square().sort(stable=True)
    tails = ranked.flip(0).cumsum(0).flip(0)
    shares = torch.where(tails == 0, 0.0, ranked / tails)
    return torch.empty_like(shares).scatter_(0, order, shares).float().reshape(weight.shape)


def erk_survivors(shapes: Mapping[str, Size | tuple[int, ...]], num_kept: int) -> dict[str, Fraction]:
    """
    Erdős-Rényi kernel: how many weights each tensor keeps, before rounding.

    `kept_l = epsilon * sum(shape_l)` (Evci et al., "Rigging the Lottery", ICML 2020), so that large tensors are sparser.
    While a tensor would keep more than it has, the densest such one stays dense and `epsilon` is solved again for the rest.

    Args:
        shapes (`Mapping[str, Size]`): Name -> `(out, in)` or `(out, in, *kernel)`. Stacked experts are one tensor.
        num_kept (`int`): How many weights are kept in all.
    """
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    dense = {name for name, size in sizes.items() if size == 0}
    while free := [name for name in shapes if name not in dense]:
        epsilon = Fraction(num_kept - sum(sizes[n] for n in dense), sum(sum(shapes[n]) for n in free))
        densest = max(free, key=lambda n: Fraction(sum(shapes[n]), sizes[n]))
        if epsilon * sum(shapes[densest]) <= sizes[densest]:
            return {n: Fraction(sizes[n]) if n in dense else epsilon * sum(shapes[n]) for n in shapes}
        dense.add(densest)
    return {name: Fraction(size) for name, size in sizes.items()}


def uniform_plus_survivors(sizes: Mapping[str, int], sparsity: float) -> dict[str, Fraction]:
    """
    Uniform+: how many weights each tensor keeps, before rounding.

    Gale et al., "The State of Sparsity in Deep Neural Networks" (2019): the first convolution stays dense, the last
    fully connected layer loses at most 80 %, all others the same fraction. Transformers have neither: the first and the
    last prunable tensor in the model's order stand for them, which is an assumption of ours.

    Args:
        sizes (`Mapping[str, int]`): Name -> number of weights, in the model's order.
        sparsity (`float`): Fraction removed of all of them, in `[0, 1)`.

    Raises:
        ValueError: If the tensors between the first and the last would have to lose more than they have.
    """
    names, total = list(sizes), sum(sizes.values())
    first, last, removed = names[0], names[-1], round(sparsity * total)
    if removed <= LAST_LIMIT * (total - sizes[first]):
        fraction = Fraction(removed, total - sizes[first] or 1)
        fractions = dict.fromkeys(sizes, fraction) | {first: Fraction(0)}
        return {name: size * (1 - fractions[name]) for name, size in sizes.items()}
    middle, left = total - sizes[first] - sizes[last], removed - LAST_LIMIT * sizes[last]
    if left > middle or first == last:
        raise ValueError(
            f"pruning_scope='uniform+' cannot reach sparsity={sparsity}: {first!r} stays dense and {last!r} loses at most "
            f"{float(LAST_LIMIT)}, which leaves too little to remove between them. Lower the sparsity, or take another scope."
        )
    fractions = dict.fromkeys(sizes, left / middle) | {first: Fraction(0), last: LAST_LIMIT}
    return {name: size * (1 - fractions[name]) for name, size in sizes.items()}


def apportion(shares: Mapping[str, Fraction], room: Mapping[str, int]) -> dict[str, int]:
    """
    Whole numbers of the same sum by largest remainder, none above `room`.

    Largest remainders alone are not monotone in the sum, so that a tensor could ask for a weight that an earlier phase
    took away: `room` hands it to the next one. Among equal remainders the later tensor keeps the weight.
    """
    counts = {name: floor(share) for name, share in shares.items()}
    latest_first = list(shares)[::-1]
    order = sorted(latest_first, key=lambda name: counts[name] - shares[name])
    left = int(sum(shares.values())) - sum(counts.values())
    while left:
        open_ = [name for name in order if counts[name] < room[name]][:left]
        counts |= {name: counts[name] + 1 for name in open_}
        left -= len(open_)
    return counts


def _select_shares(scope: str, shares, weights, alive, sparsity, limit, score) -> dict[str, Tensor]:
    """In every tensor the smallest scores go, until its share is left."""
    _left_to_remove(weights, alive, sparsity)
    room = {name: w.numel() - num_zeros(alive, name) for name, w in weights.items()}
    for name, weight in weights.items():
        removed = weight.numel() - floor(shares[name])
        to_remove(f"pruning_scope={scope!r}: {name!r}", removed, weight.numel(), num_zeros(alive, name))
    kept = apportion(shares, room)
    masks: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if weight.numel() - kept[name] > _most(weight, limit):
            raise ValueError(
                f"pruning_scope={scope!r} keeps {kept[name]:,} of the {weight.numel():,} weights of {name!r}, fewer than "
                f"max_sparsity_per_layer={limit} allows. Raise max_sparsity_per_layer, or leave it out."
            )
        masks |= keep_largest({name: weight}, room[name] - kept[name], alive, score)
    return masks


def _left_to_remove(weights, alive, sparsity: float) -> int:
    total = sum(w.numel() for w in weights.values())
    return to_remove("The model", round(sparsity * total), total, sum(num_zeros(alive, name) for name in weights))


def _most(weight: Tensor, limit: float) -> int:
    return int(limit * weight.numel() + 1e-6)


def num_zeros(alive: Mapping[str, Tensor], name: str) -> int:
    return alive[name].numel() - int(alive[name].sum()) if name in alive else 0


def to_remove(what: str, target: int, total: int, removed: int, unit: str = "prunable weights") -> int:
    """How many more must go so that `target` of `total` are gone."""
    if removed > target:
        raise ValueError(
            f"{what} already is {removed / total:.4%} sparse ({removed:,} of {total:,} {unit} are zero), more "
            f"than the {target:,} that were asked for. Ask for a higher sparsity: pruning never brings weights back."
        )
    return target - removed
