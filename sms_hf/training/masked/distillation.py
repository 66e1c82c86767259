"""Distillation: a candidate is asked for the answers of the model before pruning, not only for the right ones."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def distillation_loss(
    outputs: Any,
    teacher: nn.Module,
    inputs: Mapping[str, Any],
    temperature: float,
    shifts_labels: bool,
    num_items_in_batch: Any = None,
) -> Tensor:
    """
    `T^2 KL(softmax(t / T) || softmax(s / T))` of teacher and student, mean over targets (Hinton et al. 2015).

    Args:
        outputs (`ModelOutput`): Of the student, with `logits` `(batch, classes)`, `(batch, length, classes)` or `(batch,
            classes, height, width)`.
        teacher (`nn.Module`): Called on the same inputs, in evaluation mode, without gradients.
        inputs (`Mapping`): Of the batch; positions whose label is -100 do not count.
        temperature (`float`): `T`, above 0.
        shifts_labels (`bool`): Whether position `i` answers for label `i + 1`, as in causal language models.
        num_items_in_batch (`int` or `Tensor`, *optional*): Targets of the whole accumulated batch, to divide by as the loss of
            the student does. Default: those of this batch.

    Raises:
        ValueError: For models whose outputs have no logits, or logits of two shapes.
    """
    with torch.no_grad():
        told = teacher(**inputs)
    student, taught = _logits(outputs), _logits(told)
    if student.shape != taught.shape:
        raise ValueError(
            f"distill_weight needs logits of one shape, got {tuple(student.shape)} and {tuple(taught.shape)} of the model before "
            "pruning. Leave it out."
        )
    dim = 1 if student.dim() == 4 else -1
    part = F.kl_div(
        F.log_softmax(student.float() / temperature, dim),
        F.log_softmax(taught.float() / temperature, dim),
        reduction="none",
        log_target=True,
    ).sum(dim)
    labels = inputs.get("labels")
    if student.dim() == 3 and isinstance(labels, Tensor):
        if shifts_labels:
            part, labels = part[:, :-1], labels[:, 1:]
        part = part[labels != -100]
    count = part.numel() if num_items_in_batch is None else num_items_in_batch
    return temperature**2 * part.sum() / count


def _logits(outputs: Any) -> Tensor:
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else None
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"distill_weight needs a model whose output has logits, got {type(outputs).__name__}. Leave it out."
        )
    return logits
