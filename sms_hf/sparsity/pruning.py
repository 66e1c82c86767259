"""Criterion x scope x pattern -> masks."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..choices import check_choice
from .allocation import SCOPES
from .calibration import Calibration, observe
from .criteria import CRITERIA, Criterion, Seen, criterion_of, score_of
from .masks import Masks, set_zeros_
from .patterns import UNSTRUCTURED, input_dims, parse_nm, pattern_sparsity, select_nm, select_units
from .prunable import find_prunable
from .schedules import check_sparsity
from .selection import Score
from .structures import STRUCTURES, find_groups

__all__ = ["CRITERIA", "SCOPES", "check_options", "pattern_sparsity", "prune", "select"]

_ANY = f"any criterion ({', '.join(map(repr, sorted(CRITERIA)))}, or one of your own)"
COMBINATIONS = (
    f"pattern 'unstructured' with {_ANY} and scope 'erk', 'global', 'uniform' or 'uniform+', or with criterion 'magnitude' and "
    "scope 'lamp'; pattern 'N:M' with any criterion and scope 'uniform'; patterns "
    f"{', '.join(repr(s) for s in sorted(STRUCTURES))} with criterion 'magnitude' or 'random' and scope 'uniform'"
)
"""All that exist, in words."""


def prune(
    model: nn.Module,
    sparsity: float,
    *,
    scope: str = "global",
    criterion: str | Score | Criterion = "magnitude",
    pattern: str = UNSTRUCTURED,
    target_modules: str | list[str] | None = None,
    exclude_modules: str | list[str] | None = None,
    max_sparsity_per_layer: float | None = None,
    within: Masks | None = None,
    seed: int = 0,
    calibration: Calibration | None = None,
) -> Masks:
    """
    Prune a model in place: choose masks and set the pruned weights to exactly `0.0`.

    Without a pattern, `round(sparsity * n)` of the `n` prunable weights are removed in all, weights that were removed
    before included. Among equal scores the lower (tensor, flat index) goes first.

    Args:
        model (`nn.Module`): The model. Its prunable weights: [`find_prunable`].
        sparsity (`float`): Fraction removed of the prunable weights, or of the units of a structured pattern, in `[0, 1)`.
        scope (`str`, *optional*, defaults to `"global"`): How the tensors share the removal.

            - `"global"`: one ranking of all weights.
            - `"uniform"`: the same fraction of every tensor.
            - `"erk"`: survivors in proportion to the sum of a tensor's dimensions (Evci et al. 2020): [`erk_survivors`].
            - `"lamp"`: one ranking of `w_u^2 / sum(w_v^2)` over `v` at or above `u` (Lee et al. 2021): [`lamp_scores`].
            - `"uniform+"`: the first prunable tensor stays dense, the last loses at most 80 %, the others the same
              fraction (Gale et al. 2019; what is first and last in a Transformer is our assumption).
        criterion (`str` or `Callable`, *optional*, defaults to `"magnitude"`): `"magnitude"` removes the smallest `|w|`
            (Han et al. 2015), `"random"` any, `"wanda"` the smallest `|w|` times the norm of what it is multiplied with,
            `"taylor"` those that the loss depends on least; other rows of `CRITERIA`, a [`Criterion`] or a function
            `(tensor name, start, piece of the flat tensor from start) -> scores` (non-negative, float32, of the piece's
            length) whatever scores lowest.
        pattern (`str`, *optional*, defaults to `"unstructured"`): Other patterns than the default need
            `scope="uniform"`, and then

            - `"N:M"` (such as `"2:4"`, Mishra et al. 2021) keeps `ceil(M (1 - sparsity))` of every `M` neighbours along
              the input dimension: `N` of them at a sparsity of `1 - N/M`, which is the highest that it allows. Tensors
              that do not divide stay as they are ([`nm_skipped`], and a warning; an error if they are most weights).
            - `"neurons"`, `"heads"`, `"filters"` remove `round(sparsity * units)` whole units of every layer, those of the
              smallest L2 norm ([`find_groups`]). The masks hold all parameters of a unit, biases included, and no others.
        target_modules, exclude_modules (`str` or `list[str]`, *optional*): As in [`find_prunable`].
        max_sparsity_per_layer (`float`, *optional*): No tensor loses more than this fraction, in `(0, 1]`. Under `"global"`
            and `"lamp"` what it may not lose is taken from the other tensors, which keeps a ranking from emptying whole
            layers; where the scope or the pattern fixes what every tensor loses, more than this is an error.
        within (`Masks`, *optional*): Masks of an earlier phase; what they removed stays removed. Defaults to the exact
            zeros of the prunable weights.
        seed (`int`, *optional*, defaults to 0): For `criterion="random"`.
        calibration (`Callable`, *optional*): For `"wanda"` and `"taylor"`: model -> the loss of each of a few batches,
            `lambda model: (model(**batch).loss for batch in batches)`.

    Returns:
        [`Masks`]: Parameter name -> bool tensor of its shape, `True` = kept.

    Raises:
        ValueError: For a sparsity outside `[0, 1)` or lower than the model's own, a scope, criterion or pattern that is
            unknown or does not go with the others, calibration batches that are missing, nothing to prune, NaN or
            infinite weights. The model is unchanged then.
    """
    check_sparsity("sparsity", sparsity)
    check_options(scope, criterion, max_sparsity_per_layer, pattern)
    limit = 1.0 if max_sparsity_per_layer is None else max_sparsity_per_layer
    groups = find_groups(model, pattern, target_modules, exclude_modules) if pattern in STRUCTURES else []
    weights = _weights_of(model, groups, target_modules, exclude_modules)
    _check_within(within, weights)
    if within is not None:
        alive: Mapping[str, Tensor] = within
    else:
        # All are asked before the first answer is waited for.
        whole = {name: weight.detach().all() for name, weight in weights.items()}
        alive = {name: weight.detach() != 0 for name, weight in weights.items() if not whole[name]}
    dims = {} if groups else input_dims(model, weights)
    seen = Seen(
        seed=seed,
        sums=observe(model, weights, criterion_of(criterion), calibration),
        input_dims={name: dim for name, dim in dims.items() if dim is not None},
        shapes={name: tuple(weight.shape) for name, weight in weights.items()},
    )
    score = score_of(criterion, seen)
    if pattern == UNSTRUCTURED:
        chosen = SCOPES[scope](weights, alive, sparsity, limit, score)
    else:
        _check_limit(pattern, sparsity, limit)
        if groups:
            chosen = select_units(groups, weights, alive, sparsity, score)
        else:
            chosen = select_nm(weights, dims, alive, sparsity, pattern, score)
    masks = Masks(chosen)
    if within is not None and not masks.is_within(within):
        raise ValueError(
            f"`within` must hold masks of whole {pattern}, got masks that remove parts of them. "
            "Use the same pattern in every phase."
        )
    with torch.no_grad():  # By the masks that lie on the device still.
        for name, parameter in masks.parameters_of(model).items():
            set_zeros_(parameter, chosen[name])
    return masks


def find_weights(
    model: nn.Module,
    pattern: str = UNSTRUCTURED,
    target_modules: str | list[str] | None = None,
    exclude_modules: str | list[str] | None = None,
) -> Mapping[str, Tensor]:
    """The parameters that [`prune`] covers with masks: the prunable ones, or under a structured pattern those of its units."""
    groups = find_groups(model, pattern, target_modules, exclude_modules) if pattern in STRUCTURES else []
    return _weights_of(model, groups, target_modules, exclude_modules)


def _weights_of(model, groups, target_modules, exclude_modules) -> Mapping[str, Tensor]:
    if not groups:
        return find_prunable(model, target_modules, exclude_modules).parameters
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {m.parameter: parameters[m.parameter] for g in groups for m in g.members}


def select(
    weights: Mapping[str, Tensor],
    alive: Mapping[str, Tensor],
    sparsity: float,
    *,
    scope: str = "global",
    criterion: str | Score | Criterion = "magnitude",
    seed: int = 0,
    limit: float = 1.0,
) -> dict[str, Tensor]:
    """
    The pure part of [`prune`] without a pattern: weights and what is alive of them in, masks out.

    Args:
        weights (`Mapping[str, Tensor]`): Name -> weights of any shape.
        alive (`Mapping[str, Tensor]`): Name -> bool of the same shape; `False` stays removed. Tensors that are whole may
            be left out.
        sparsity, scope, criterion, seed: As in [`prune`].
        limit (`float`, *optional*, defaults to 1.0): Highest sparsity of any tensor, in `(0, 1]`.
    """
    check_options(scope, criterion, limit)
    return SCOPES[scope](weights, alive, sparsity, limit, score_of(criterion, Seen(seed)))


def check_options(
    scope: str, criterion: str | Score | Criterion, limit: float | None, pattern: str = UNSTRUCTURED
) -> None:
    """Raise `ValueError` for options outside their tables, a limit (if any) outside `(0, 1]`, or what does not combine."""
    if isinstance(criterion, str):
        check_choice("pruning_criterion", criterion, sorted(CRITERIA))
    check_choice("pruning_scope", scope, sorted(SCOPES))
    parse_nm(pattern)
    if limit is not None and not 0.0 < limit <= 1.0:
        raise ValueError(
            f"max_sparsity_per_layer must lie in (0, 1], got {limit}. Pass 0.98 to keep 2 % of every layer."
        )
    if not _exists(scope, criterion, pattern):
        raise ValueError(
            f"pruning_scope={scope!r}, pruning_criterion={criterion!r} and pruning_pattern={pattern!r} do not go together. "
            f"There is {COMBINATIONS}."
        )


def _exists(scope: str, criterion: str | Score | Criterion, pattern: str) -> bool:
    if pattern == UNSTRUCTURED:
        return scope != "lamp" or criterion == "magnitude"
    return scope == "uniform" and (pattern not in STRUCTURES or criterion in ("magnitude", "random"))


def _check_limit(pattern: str, sparsity: float, limit: float) -> None:
    if sparsity > limit:
        raise ValueError(
            f"pruning_pattern={pattern!r} removes {sparsity} of every layer, more than max_sparsity_per_layer={limit} "
            "allows. Raise max_sparsity_per_layer, or leave it out."
        )


def _check_within(within: Masks | None, weights: Mapping[str, Tensor]) -> None:
    if within is not None and list(within) != list(weights):
        raise ValueError(
            f"`within` must hold the masks of the {len(weights)} prunable tensors in the model's order, got {len(within)} "
            "others. Use the same target_modules, exclude_modules and pattern in every phase."
        )
    for name, mask in (within or {}).items():
        if mask.shape != weights[name].shape:
            raise ValueError(
                f"`within` must hold masks of the weights' shapes, but for {name!r} the weight has shape "
                f"{tuple(weights[name].shape)} and the mask {tuple(mask.shape)}."
            )
