"""Criterion x scope -> masks."""

import zlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from .masks import Masks
from .prunable import find_prunable
from .schedules import check_sparsity
from .selection import Score, keep_largest, magnitude


def random_scores(seed: int) -> Score:
    """Uniform scores in `[0, 1)` that depend on seed, tensor name and position alone, not on device or process."""

    def score(name: str, start: int, piece: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}/{start}".encode()))
        scores = torch.rand(piece.numel(), generator=generator).to(piece.device)
        return scores.where(piece.isfinite(), torch.inf)  # Refused by the selection, as under any other criterion.

    return score


CRITERIA: dict[str, Callable[[int], Score]] = {"magnitude": lambda seed: magnitude, "random": random_scores}
"""Criterion name -> seed -> score. The weights of the smallest score are removed."""


def prune(
    model: nn.Module,
    sparsity: float,
    *,
    scope: str = "global",
    criterion: str = "magnitude",
    target_modules: str | list[str] | None = None,
    exclude_modules: str | list[str] | None = None,
    max_sparsity_per_layer: float | None = None,
    within: Masks | None = None,
    seed: int = 0,
) -> Masks:
    """
    Prune a model in place: choose masks and set the pruned weights to exactly `0.0`.

    `round(sparsity * n)` of the `n` prunable weights are removed in all, weights that were removed before included.

    Args:
        model (`nn.Module`): The model. Its prunable weights: [`find_prunable`].
        sparsity (`float`): Fraction removed of the prunable weights, in `[0, 1)`.
        scope (`str`, *optional*, defaults to `"global"`): `"global"` ranks all weights together, `"uniform"` removes
            the same fraction of every tensor.
        criterion (`str`, *optional*, defaults to `"magnitude"`): `"magnitude"` removes the smallest `|w|`
            (Han et al. 2015), `"random"` any.
        target_modules, exclude_modules (`str` or `list[str]`, *optional*): As in [`find_prunable`].
        max_sparsity_per_layer (`float`, *optional*): No tensor loses more than this fraction, in `(0, 1]`; what it may not
            lose is taken from the other tensors. Keeps a global ranking from emptying whole layers.
        within (`Masks`, *optional*): Masks of an earlier phase; what they removed stays removed. Defaults to the exact
            zeros of the prunable weights.
        seed (`int`, *optional*, defaults to 0): For `criterion="random"`.

    Returns:
        [`Masks`]: Parameter name -> bool tensor of its shape, `True` = kept.

    Raises:
        ValueError: For a sparsity outside `[0, 1)` or lower than the model's own, an unknown scope or criterion, nothing
            to prune, NaN or infinite weights. The model is unchanged then.
    """
    check_sparsity("sparsity", sparsity)
    weights = find_prunable(model, target_modules, exclude_modules).parameters
    if within is not None and list(within) != list(weights):
        raise ValueError(
            f"`within` must hold the masks of the {len(weights)} prunable tensors in the model's order, got {len(within)} "
            "others. Use the same target_modules and exclude_modules in every phase."
        )
    for name, mask in (within or {}).items():
        if mask.shape != weights[name].shape:
            raise ValueError(
                f"`within` must hold masks of the weights' shapes, but for {name!r} the weight has shape "
                f"{tuple(weights[name].shape)} and the mask {tuple(mask.shape)}."
            )
    alive = within if within is not None else {n: w.detach() != 0 for n, w in weights.items() if not w.all()}
    limit = 1.0 if max_sparsity_per_layer is None else max_sparsity_per_layer
    masks = Masks(select(weights, alive, sparsity, scope=scope, criterion=criterion, seed=seed, limit=limit))
    masks.apply_(model)
    return masks


def select(
    weights: Mapping[str, Tensor],
    alive: Mapping[str, Tensor],
    sparsity: float,
    *,
    scope: str = "global",
    criterion: str = "magnitude",
    seed: int = 0,
    limit: float = 1.0,
) -> dict[str, Tensor]:
    """
    The pure part of [`prune`]: weights and what is alive of them in, masks out.

    Args:
        weights (`Mapping[str, Tensor]`): Name -> weights of any shape.
        alive (`Mapping[str, Tensor]`): Name -> bool of the same shape; `False` stays removed. Tensors that are whole may
            be left out.
        sparsity, scope, criterion, seed: As in [`prune`].
        limit (`float`, *optional*, defaults to 1.0): Highest sparsity of any tensor, in `(0, 1]`.
    """
    check_options(scope, criterion, limit)
    return SCOPES[scope](weights, alive, sparsity, limit, CRITERIA[criterion](seed))


def check_options(scope: str, criterion: str, limit: float | None) -> None:
    """Raise `ValueError` for a scope or criterion that is not in its table, or a limit (if any) outside `(0, 1]`."""
    if criterion not in CRITERIA:
        raise ValueError(f"pruning_criterion must be one of {sorted(CRITERIA)}, got {criterion!r}.")
    if scope not in SCOPES:
        raise ValueError(f"pruning_scope must be one of {sorted(SCOPES)}, got {scope!r}.")
    if limit is not None and not 0.0 < limit <= 1.0:
        raise ValueError(
            f"max_sparsity_per_layer must lie in (0, 1], got {limit}. Pass 0.98 to keep 2 % of every layer."
        )


def _select_global(weights, alive, sparsity, limit, score) -> dict[str, Tensor]:
    """One ranking of all weights. Tensors that would lose more than `limit` lose just that; the others lose the rest."""
    total = sum(w.numel() for w in weights.values())
    zeros = {name: _num_zeros(alive, name) for name in weights}
    to_remove = _to_remove("The model", round(sparsity * total), total, sum(zeros.values()))
    room = {name: max(int(limit * w.numel() + 1e-6) - zeros[name], 0) for name, w in weights.items()}
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


def _select_uniform(weights, alive, sparsity, limit, score) -> dict[str, Tensor]:
    """The same fraction of every tensor."""
    if sparsity > limit:
        raise ValueError(
            f"pruning_scope='uniform' removes {sparsity} of every tensor, more than max_sparsity_per_layer={limit} allows. "
            "Raise max_sparsity_per_layer, or leave it out."
        )
    masks: dict[str, Tensor] = {}
    for name, weight in weights.items():
        removed = _to_remove(repr(name), round(sparsity * weight.numel()), weight.numel(), _num_zeros(alive, name))
        masks |= keep_largest({name: weight}, removed, alive, score)
    return masks


SCOPES = {"global": _select_global, "uniform": _select_uniform}


def _num_zeros(alive: Mapping[str, Tensor], name: str) -> int:
    return alive[name].numel() - int(alive[name].sum()) if name in alive else 0


def _to_remove(what: str, target: int, total: int, removed: int) -> int:
    """How many more weights must go so that `target` of `total` are gone."""
    if removed > target:
        raise ValueError(
            f"{what} already is {removed / total:.4%} sparse ({removed:,} of {total:,} prunable weights are zero), more "
            f"than the {target:,} that were asked for. Ask for a higher sparsity: pruning never brings weights back."
        )
    return target - removed
