"""Candidates as pure values: what varies between them, and what a phase consists of."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from ...choices import nearest

# The arguments that change what retraining computes. Others (logging, saving, the Hub) do not make a candidate.
HYPERPARAMETERS = (
    "seed",
    "data_seed",
    "learning_rate",
    "weight_decay",
    "num_train_epochs",
    "max_steps",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "retrain_schedule",
    "warmup_steps",
    "optim",
    "optim_args",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "label_smoothing_factor",
    "neftune_noise_alpha",
    "distill_weight",
    "distill_temperature",
    "distill_features",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
)
DEFAULT_CANDIDATES = 3
SEED_STRIDE = 1000
"""Added to every seed per phase, so that later phases see the data in another order."""


@dataclass(frozen=True)
class Candidate:
    """One retrained copy of the parent: a function of parent, overrides and seed, wherever it is trained."""

    name: str
    overrides: dict[str, Any]


@dataclass(frozen=True)
class Phase:
    """
    One prune, retrain, merge cycle.

    Attributes:
        number (`int`): Counts from 1.
        sparsity (`float`): What its parent is pruned to, in `[0, 1)`.
        candidates (`tuple[Candidate, ...]`): Who is retrained.
        batches (`int`): Of a trunk: batches of a step, each of a process, or accumulated where a launch has fewer.
        own_parents (`bool`): Every candidate starts from its own weights of the phase before, pruned on their own, and
            not from a parent that all share.
        merge (`str`): What becomes of the candidates: `"soup"` (averaged by `soup_method`), `"none"` (they go on, each
            for itself), `"average"` (all, whatever their masks) or `"reprune"` (all, then pruned to `sparsity` again).
        events (`tuple[tuple[float, float], ...]`): Pruning while a candidate is trained: (fraction of its steps, sparsity
            from then on).
        feedback (`bool`): While it is trained the dense weights live on behind the mask (DPF).
        keeps_dense (`bool`): The dense weights are what the phase hands on; they are pruned only to be scored.
        window (`tuple[float, float]`): The part of one learning rate schedule that this phase goes through.
        keeps_optimizers (`bool`): Its candidates hand on the states of their optimizers, too.
        goes_on (`bool`): Its candidates go on with the optimizers of the phase before: each with its own, or all with that
            of the only one.
        outer_step (`tuple[float, float]`, *optional*): Learning rate and momentum of a step from the parent towards the average
            of the candidates, which takes its place.
    """

    number: int
    sparsity: float
    candidates: tuple[Candidate, ...]
    batches: int = 1
    own_parents: bool = False
    merge: str = "soup"
    events: tuple[tuple[float, float], ...] = ()
    feedback: bool = False
    keeps_dense: bool = False
    window: tuple[float, float] = (0.0, 1.0)
    keeps_optimizers: bool = False
    goes_on: bool = False
    outer_step: tuple[float, float] | None = None

    @property
    def is_trunk(self) -> bool:
        """Whether the next phase branches off from its one candidate."""
        return self.keeps_optimizers and len(self.candidates) == 1

    def group_size(self, candidate_processes: int, processes: int) -> int:
        """How many of `processes` train a candidate together: of a trunk as many as can have equal parts of its batches."""
        return candidate_processes if self.batches == 1 else math.gcd(self.batches, processes)

    @property
    def final_sparsity(self) -> float:
        """Sparsity at the end of the phase."""
        return self.events[-1][1] if self.events else self.sparsity


def vary_candidates(
    num_candidates: int | None = None, vary: Mapping[str, Sequence[Any]] | None = None, seed: int = 42
) -> list[dict[str, Any]]:
    """
    The overrides of every candidate of the first phase, each with its seed.

    With several keys in `vary` the candidates are all combinations of the values, the last key changing fastest.
    Without a `"seed"` among them all candidates of a phase share one seed; without `vary` the seed is what varies
    (`seed`, `seed + 1`, ...), the best knob in the paper.

    Args:
        num_candidates (`int`, *optional*): Candidates per phase, at least 1. Default: what `vary` gives, else 3.
        vary (`Mapping[str, Sequence]`, *optional*): Hyperparameter -> its values.
        seed (`int`, *optional*, defaults to 42): Base seed.

    Raises:
        ValueError: For unknown hyperparameters, empty values, or a number of candidates that does not match.
    """
    if num_candidates is not None and num_candidates < 1:
        raise ValueError(
            f"num_candidates must be at least 1, got {num_candidates}. One candidate is plain iterative magnitude pruning, "
            "three are a small soup."
        )
    vary = check_vary(vary) or {"seed": [seed + i for i in range(num_candidates or DEFAULT_CANDIDATES)]}
    combinations = [dict(zip(vary, values, strict=True)) for values in product(*vary.values())]
    if num_candidates not in (None, len(combinations)):
        raise ValueError(
            f"num_candidates={num_candidates} must match the values in `vary`, which give {len(combinations)} combinations "
            f"({' x '.join(f'{len(values)} {key}' for key, values in vary.items())}). Leave num_candidates out, or change "
            "the values."
        )
    return [{**overrides, "seed": overrides.get("seed", seed)} for overrides in combinations]


def check_vary(vary: Mapping[str, Sequence[Any]] | None) -> dict[str, list[Any]]:
    """`vary` as a dict of lists, or `ValueError`."""
    for key, values in (vary or {}).items():
        if key not in HYPERPARAMETERS:
            raise ValueError(
                f"`vary` must name hyperparameters of retraining, got {key!r}.{nearest(key, HYPERPARAMETERS)} "
                f"Known: {', '.join(HYPERPARAMETERS)}."
            )
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ValueError(
                f'`vary` must map {key!r} to a list of values, got {values!r}. Example: {{"seed": [1, 2, 3]}}.'
            )
    return {key: list(values) for key, values in (vary or {}).items()}
