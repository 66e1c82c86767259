"""What the ingredients of a soup are chosen from, and what is said of the choice."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from .averaging import Weight

PARENT = "parent"
"""Name of the parent, where it is an ingredient itself."""


@dataclass(frozen=True)
class GreedyTrial:
    """
    One step of the greedy selection: these ingredients were averaged and scored.

    Attributes:
        standard_error (`float`, *optional*): Of the gain over the soup before, by the paired bootstrap; `None` where it is not
            known, and of the first.
        sure (`float`, *optional*): Share of the bootstrap samples in which it would have been decided in the same way.
    """

    ingredients: list[str]
    score: float
    accepted: bool
    standard_error: float | None = None
    sure: float | None = None


@dataclass(frozen=True)
class Pool:
    """
    What the ingredients of a soup are chosen from.

    Attributes:
        scores (`Mapping[str, float]`): Candidate name -> its own score on the selection data.
        evaluate (`Callable`): Ingredient -> weight, to the score of their average, on the same data and metric.
        greater_is_better (`bool`): `False` for a loss.
        resampled (`Callable`): Ingredient -> weight, of what has a score, to its scores on bootstrap samples of the data, the
            same ones for all; `None` where they are not known.
        min_gain (`float`): What an ingredient must gain to be taken, in standard errors of the gain; at least 0.
        folders (`Mapping[str, Path]`): Candidate name -> its model folder.
        parent (`Path`, *optional*): Folder of what the candidates were retrained from: an ingredient by the name of `PARENT`.
        losses (`Callable`, *optional*): Parameters by name, to the losses of all batches of the selection data, which can be
            differentiated with respect to them.
    """

    scores: Mapping[str, float]
    evaluate: Callable[[Mapping[str, Weight]], float]
    greater_is_better: bool = True
    resampled: Callable[[Mapping[str, Weight]], Sequence[float] | None] = lambda weights: None
    min_gain: float = 0.0
    folders: Mapping[str, Path] = field(default_factory=dict)
    parent: Path | None = None
    losses: Callable[[Mapping[str, Tensor]], Iterator[Tensor]] | None = None


Choice = tuple[dict[str, Weight], list[GreedyTrial]]
"""Ingredient -> weight, in the order of choice, and all trials."""
