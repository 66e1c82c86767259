"""Patterns: weights that are removed in a regular way, N:M or whole units of a layer."""

import re
import warnings
from collections.abc import Mapping
from math import ceil

import torch
from torch import Tensor, nn

from .allocation import to_remove
from .prunable import find_prunable, matrix_dims
from .selection import Score, check_finite, keep_largest, scores_of
from .structures import STRUCTURES, Group

UNSTRUCTURED = "unstructured"


def parse_nm(pattern: str) -> tuple[int, int] | None:
    """`"2:4"` -> `(2, 4)`: N kept of M. None for a pattern that is not N:M; `ValueError` for one that does not exist."""
    if pattern == UNSTRUCTURED or pattern in STRUCTURES:
        return None
    numbers = re.fullmatch(r"(\d+):(\d+)", pattern)
    n, m = (int(number) for number in numbers.groups()) if numbers else (0, 0)
    if pattern == "layers":
        raise ValueError(
            "pruning_pattern must name what a mask can remove, got 'layers': where norms follow the addition (BERT, Marian) no "
            "zeros make a layer the identity. Layers go before a run: sms_hf.drop_layers, or smaller_first of the recipes."
        )
    if not 1 <= n < m:
        raise ValueError(
            f"pruning_pattern must be one of {sorted([UNSTRUCTURED, *STRUCTURES])} or 'N:M' with 1 <= N < M, got "
            f"{pattern!r}. Pass '2:4' to keep 2 of every 4 weights."
        )
    return n, m


def pattern_sparsity(pattern: str) -> float | None:
    """
    Sparsity that a pattern ends at: `1 - N/M` for `"N:M"`, None where it is free.

    >>> pattern_sparsity("1:4")
    0.75
    """
    nm = parse_nm(pattern)
    return None if nm is None else 1.0 - nm[0] / nm[1]


def nm_skipped(
    model: nn.Module,
    pattern: str,
    target_modules: str | list[str] | None = None,
    exclude_modules: str | list[str] | None = None,
) -> dict[str, str]:
    """
    Prunable tensors that an N:M pattern leaves dense: parameter name -> the reason. Empty for any other pattern.

    Args:
        model, target_modules, exclude_modules: As in [`find_prunable`].
        pattern (`str`): As in [`prune`].

    Raises:
        ValueError: If these are more than half of the prunable weights.
    """
    nm = parse_nm(pattern)
    if nm is None:
        return {}
    weights = find_prunable(model, target_modules, exclude_modules).parameters
    return _skipped(pattern, weights, input_dims(model, weights), nm[1])


def input_dims(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, int | None]:
    """Parameter name -> the dimension over which its layer sums; None for stacked experts, whose layout is their own."""
    dims = {}
    for name in weights:
        module, _, leaf = name.rpartition(".")
        found = matrix_dims(model.get_submodule(module)) if leaf == "weight" else None
        dims[name] = None if found is None else found[1]
    return dims


def select_nm(
    weights: Mapping[str, Tensor],
    dims: Mapping[str, int | None],
    alive: Mapping[str, Tensor],
    sparsity: float,
    pattern: str,
    score: Score,
) -> dict[str, Tensor]:
    """
    Of every `M` neighbours along the input dimension keep the `ceil(M (1 - sparsity))` of the largest score.

    Below the pattern's own sparsity more than `N` are kept, so that phases nest: 0.5 and 0.75 under `"1:4"` keep 2, then 1.
    Tensors whose input dimension `M` does not divide stay as they are, with a warning; where they are more than half of
    all weights, that is an error.

    Args:
        weights, alive: As in [`select`].
        dims (`Mapping[str, int]`): Name -> input dimension, or None to leave the tensor dense.
        sparsity (`float`): In `[0, 1 - N/M]`.
        pattern (`str`): `"N:M"`.
        score (`Callable`): Gives the scores.
    """
    n, m = parse_nm(pattern) or (1, 1)
    if sparsity > 1 - n / m + 1e-9:
        raise ValueError(
            f"pruning_pattern={pattern!r} gives a sparsity of {1 - n / m:g}, got sparsity={sparsity}. "
            "Ask for that or for less, or take a pattern that keeps fewer weights."
        )
    skipped = _skipped(pattern, weights, dims, m)
    if skipped:
        warnings.warn(f"pruning_pattern={pattern!r} leaves tensors dense: {_listed(skipped)}.", stacklevel=3)
    kept = ceil(m * (1 - sparsity) - 1e-9)
    masks = {}
    for name, weight in weights.items():
        living, dim = alive.get(name), dims[name]
        living = torch.ones_like(weight, dtype=torch.bool) if living is None else living.to(weight.device)
        masks[name] = living if name in skipped else _nm_mask(name, weight, dim, (kept, m), living, score)
    return masks


def _nm_mask(name, weight, dim, nm: tuple[int, int], living: Tensor, score: Score) -> Tensor:
    """`living` of `weight`'s shape -> mask of the same shape."""
    kept, m = nm
    scores = scores_of(name, weight, score).masked_fill(~living, -1.0)
    check_finite(name, scores)
    grouped = scores.movedim(dim, -1).unflatten(-1, (-1, m))
    smallest = grouped.sort(dim=-1, stable=True).indices[..., : m - kept]
    mask = torch.ones_like(grouped, dtype=torch.bool).scatter_(-1, smallest, False)
    mask = mask.flatten(-2).movedim(-1, dim).contiguous()
    if (mask & ~living).any():
        raise ValueError(
            f"{name!r} has groups of {m} weights with fewer than {kept} left, the number that they are to keep. Ask for a "
            "higher sparsity, or name the module in exclude_modules: pruning never brings weights back."
        )
    return mask


def _skipped(pattern: str, weights: Mapping[str, Tensor], dims: Mapping[str, int | None], m: int) -> dict[str, str]:
    skipped = {}
    for name, weight in weights.items():
        dim = dims[name]
        if dim is None:
            skipped[name] = "stacked experts"
        elif weight.shape[dim] % m:
            skipped[name] = f"{weight.shape[dim]} inputs are no multiple of {m}"
    if len(skipped) == len(weights):
        raise ValueError(
            f"pruning_pattern={pattern!r} fits no tensor: {_listed(skipped)}. Take an M that divides the input dimensions."
        )
    whole, total = sum(weights[name].numel() for name in skipped), sum(weight.numel() for weight in weights.values())
    if whole > total / 2:
        raise ValueError(
            f"pruning_pattern={pattern!r} would leave {whole / total:.1%} of the prunable weights dense: {_listed(skipped)}. "
            "Take another pattern, or name these modules in exclude_modules to prune the others alone."
        )
    return skipped


def _listed(reasons: Mapping[str, str]) -> str:
    rows = [f"{name!r} ({reason})" for name, reason in reasons.items()]
    return "; ".join(rows[:4]) + (f"; and {len(rows) - 4} more" if len(rows) > 4 else "")


def select_units(
    groups: list[Group],
    weights: Mapping[str, Tensor],
    alive: Mapping[str, Tensor],
    sparsity: float,
    score: Score,
) -> dict[str, Tensor]:
    """
    In every group remove the `round(sparsity * units)` units of the smallest L2 norm, with all that belongs to them.

    `score(unit) = sqrt(sum(w^2))` over the unit's weights in all matrices of the group. Biases go with their unit but do
    not vote, as in `torch.nn.utils.prune.ln_structured(n=2, dim=0)`.

    Args:
        groups (`list[Group]`): From [`find_groups`].
        weights (`Mapping[str, Tensor]`): Parameter name -> tensor, of all members.
        alive (`Mapping[str, Tensor]`): Name -> bool; a unit of which nothing is alive stays removed.
        sparsity (`float`): Fraction of the units removed, in `[0, 1)`.
        score (`Callable`): Scores of the norms: the magnitude of a norm is the norm.
    """
    masks = {}
    for group in groups:
        norms, living = _norms(group, weights), _living_units(group, weights, alive)
        total, target = group.units, round(sparsity * group.units)
        if target == total:
            raise ValueError(
                f"sparsity={sparsity} would remove all {total} {group.kind} of {group.layer!r}. Lower it, or name the layer "
                "in exclude_modules."
            )
        removed = to_remove(repr(group.layer), target, total, total - int(living.sum()), group.kind)
        kept = keep_largest({group.layer: norms}, removed, {group.layer: living}, score)[group.layer]
        for member in group.members:
            masks[member.parameter] = group.spread(member, weights[member.parameter].shape, kept)
    return masks


def _norms(group: Group, weights: Mapping[str, Tensor]) -> Tensor:
    """L2 norm of each unit: `(units,)`, float32."""
    matrices = [(m, weights[m.parameter]) for m in group.members if weights[m.parameter].dim() > 1]
    squares = [group.gather(member, weight).double().square().sum(1) for member, weight in matrices]
    return torch.stack(squares).sum(0).sqrt().float()


def _living_units(group: Group, weights: Mapping[str, Tensor], alive: Mapping[str, Tensor]) -> Tensor:
    device = weights[group.members[0].parameter].device
    living = torch.zeros(group.units, dtype=torch.bool, device=device)
    for member in group.members:
        name = member.parameter
        if name not in alive:
            return torch.ones_like(living)
        living |= group.gather(member, alive[name].to(device)).any(1)
    return living
