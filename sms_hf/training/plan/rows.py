"""Which rows of the training data a candidate sees."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import Subset


def shard(position: int, count: int, num_rows: int, seed: int) -> list[int]:
    """An m-th of all rows, disjoint from those of the other candidates, so often that an epoch is as long as with all."""
    own = torch.randperm(num_rows, generator=_generator(seed))[position::count].tolist()
    return (own * -(-num_rows // max(len(own), 1)))[:num_rows]


def bootstrap(position: int, count: int, num_rows: int, seed: int) -> list[int]:
    """As many rows as there are, drawn with replacement: about 63 % of them, some several times (Breiman 1996, bagging)."""
    return torch.randint(num_rows, (num_rows,), generator=_generator(seed + position)).tolist()


CANDIDATE_DATA: dict[str, Callable[[int, int, int, int], list[int]] | None] = {
    "all": None,
    "shards": shard,
    "bootstrap": bootstrap,
}
"""Name -> (position of the candidate, number of candidates, number of rows, seed of the phase) -> rows, or `None` for all."""


def rows_of_candidate(dataset: Any, kind: str, position: int, count: int, seed: int) -> Any:
    """
    The training data of one candidate of a phase; one that is alone sees all of them.

    Args:
        dataset: With a length: of `datasets`, or any other that is indexed by rows.
        kind (`str`): A row of [`CANDIDATE_DATA`].
        position (`int`), count (`int`): Which candidate of how many, from 0.
        seed (`int`): Equal for all candidates of a phase.
    """
    choose = CANDIDATE_DATA[kind]
    if choose is None or count == 1:
        return dataset
    rows: Sequence[int] = choose(position, count, len(dataset), seed)
    return dataset.select(rows) if hasattr(dataset, "select") else Subset(dataset, rows)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
