"""Weights of a soup that are learned on the selection data."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from ..files.checkpoint import DTYPES, Checkpoint
from .pool import Choice, Pool

EPOCHS, LEARNING_RATE = 3, 0.1
"""Over the selection data, and of AdamW at a constant rate, as Wortsman et al. have it."""


def learned_ingredients(pool: Pool) -> Choice:
    """
    One weight for each candidate: the learned soup of Wortsman et al., "Model soups" (ICML 2022), appendix I.

    The weights are a softmax of numbers that begin at 0, trained on the loss of the average on the selection data. All candidates
    are in memory at once.
    """
    return _learn(pool, lambda tensor: "")


def learned_layer_ingredients(pool: Pool) -> Choice:
    """One weight for each candidate and module, the learned soup "by layer" of the same appendix."""
    return _learn(pool, lambda tensor: tensor.rpartition(".")[0])


def _learn(pool: Pool, group_of: Callable[[str], str]) -> Choice:
    names = list(pool.folders)
    if len(names) == 1:
        return {names[0]: 1.0}, []
    if pool.losses is None:
        raise ValueError("Learned weights need losses on the selection data, got none. Take 'greedy' or 'uniform'.")
    stacked = _stacked(pool)
    groups = list(dict.fromkeys(map(group_of, stacked)))
    logits = torch.zeros(len(names), len(groups), requires_grad=True)
    optimizer = torch.optim.AdamW([logits], lr=LEARNING_RATE, weight_decay=0.0)
    for _ in range(EPOCHS):
        # The number of batches is not known before, nor does the average stay the same from one to the next.
        for loss in pool.losses(
            _Mixed(stacked, logits, {tensor: groups.index(group_of(tensor)) for tensor in stacked})
        ):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    shares = logits.detach().double().softmax(0)
    if len(groups) == 1:
        return {name: float(shares[i, 0]) for i, name in enumerate(names)}, []
    found = {
        tensor: shares[:, groups.index(group_of(tensor))] if group_of(tensor) in groups else None
        for tensor in _all(pool)
    }
    equal = torch.full((len(names),), 1 / len(names), dtype=torch.float64)
    return {
        name: {tensor: float((equal if share is None else share)[i]) for tensor, share in found.items()}
        for i, name in enumerate(names)
    }, []


class _Mixed(Mapping[str, Tensor]):
    """The average by the weights of the moment: it is computed anew at every reading."""

    def __init__(self, stacked: Mapping[str, Tensor], logits: Tensor, groups: Mapping[str, int]):
        self._stacked, self._logits, self._groups = stacked, logits, groups

    def __getitem__(self, name: str) -> Tensor:
        values = self._stacked[name]
        shares = self._logits[:, self._groups[name]].softmax(0).to(values.device)
        return torch.tensordot(shares, values.float(), dims=1).to(values.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stacked)

    def __len__(self) -> int:
        return len(self._stacked)


def _stacked(pool: Pool) -> dict[str, Tensor]:
    """Floating tensor -> those of all candidates, `(m, ...)`."""
    found: dict[str, list[Tensor]] = {}
    for folder in pool.folders.values():
        with Checkpoint(folder) as checkpoint:
            for name, dtype in checkpoint.dtypes.items():
                if DTYPES[dtype].is_floating_point:
                    found.setdefault(name, []).append(checkpoint.tensor(name))
    return {name: torch.stack(tensors) for name, tensors in found.items()}


def _all(pool: Pool) -> list[str]:
    with Checkpoint(next(iter(pool.folders.values()))) as checkpoint:
        return list(checkpoint.shapes)
