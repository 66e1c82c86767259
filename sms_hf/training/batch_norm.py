"""Batch norm statistics, estimated again for weights that were changed without training."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..sparsity.evaluating import evaluating


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a model has batch norms (1d, 2d, 3d or synchronised) with running statistics."""
    return bool(_batch_norms(model))


@torch.no_grad()
def recalibrate_batch_norm_(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], num_batches: int | None = None
) -> int:
    """
    Estimate the running statistics of all batch norms again, in place: the mean over batches of each batch's mean and
    (unbiased) variance, whatever the statistics were before.

    Pruned or averaged weights produce activations that the old statistics do not describe (Li et al. 2018; Zimmer et al.
    2024 do it for every candidate and soup). Every batch counts the same, as in `torch.optim.swa_utils.update_bn`; with a
    fixed momentum the state after the reset would keep a share of the result.

    Args:
        model (`nn.Module`): Called as `model(**batch)`.
        batches (`Iterable[Mapping]`): Batches of about equal size; labels may stay in them. Not touched if the model has no
            batch norms.
        num_batches (`int`, *optional*): How many to use, at least 1. Default: all.

    Returns:
        `int`: Number of batches seen; 0 for a model without batch norms.

    Raises:
        ValueError: If there is no batch. The model is then as it was.
    """
    norms = _batch_norms(model)
    if not norms:
        return 0
    iterator = islice(batches, num_batches)
    first = next(iterator, None)
    if first is None:
        raise ValueError(
            f"batches must hold at least one batch, got none (num_batches={num_batches}). Pass a non-empty loader that can be "
            "iterated again, and num_batches of 1 or more."
        )
    seen = 0
    with _estimating(model, norms):
        for batch in chain([first], iterator):
            model(**send_to_device(dict(batch), _device(norms[0])))
            seen += 1
    return seen


def _batch_norms(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def _device(norm: _BatchNorm) -> torch.device:
    assert norm.running_mean is not None
    return norm.running_mean.device


@contextmanager
def _estimating(model: nn.Module, norms: list[_BatchNorm]) -> Iterator[None]:
    """
    Let batch norms collect statistics from zero; afterwards momentum and all training flags are as they were.

    Everything else is in evaluation mode: dropout would add its noise to the variances, and no two estimates would agree.
    """
    momentum = [norm.momentum for norm in norms]
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()  # Also num_batches_tracked, which is the divisor of the cumulative average.
            norm.momentum = None
            norm.train()
        try:
            yield
        finally:
            for norm, value in zip(norms, momentum, strict=True):
                norm.momentum = value
