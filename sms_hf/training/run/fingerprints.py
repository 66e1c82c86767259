"""What tells data and weights from others when a run is resumed."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..random_states import random_states_kept

SAMPLE = 16
"""Rows of a data set that are looked at: the first, the last, and some between."""


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of all names and bytes of a model's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def data_digest(dataset: Any) -> str | None:
    """
    SHA-256 of the number of rows and of `SAMPLE` of them; `None` for data that can be read only once, are told apart by
    nothing but their address, or come out otherwise at every look (augmentation).

    Args:
        dataset (`Dataset`): Anything with a length and rows; of a `datasets.Dataset` what is stored counts, not a transform.
    """
    if isinstance(dataset, Mapping):
        parts = {name: data_digest(part) for name, part in dataset.items()}
        return None if None in parts.values() else _digest(parts)
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        return None
    rows = dataset.with_format(None) if hasattr(dataset, "with_format") else dataset
    numbers = sorted({round(i) for i in np.linspace(0, len(rows) - 1, SAMPLE)}) if len(rows) else []
    try:
        with random_states_kept():
            digests = {_digest([len(rows), *(rows[number] for number in numbers)]) for _ in range(2)}
    except TypeError:
        return None
    return digests.pop() if len(digests) == 1 else None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """A value of a row as JSON, arrays and images by the digest of their bytes; `TypeError` for what has none."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, str | int | float | None):
        return value
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_plain(part) for part in value]
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    data = value if isinstance(value, bytes) else value.tobytes() if hasattr(value, "tobytes") else None
    if data is None:
        raise TypeError(f"no bytes of {type(value).__name__}")
    return hashlib.sha256(data).hexdigest()
