"""Distillation: a candidate is asked for the answers of the model before pruning, not only for the right ones."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

HIDDEN = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")
"""Outputs that hold the states of all layers, the embeddings first."""


def soft_target_loss(
    student: Tensor,
    taught: Tensor,
    labels: Any,
    temperature: float,
    shifts_labels: bool,
    num_items_in_batch: Any = None,
) -> Tensor:
    """
    `T^2 KL(softmax(t / T) || softmax(s / T))` of teacher and student, mean over targets (Hinton et al. 2015).

    Args:
        student, taught (`Tensor`): Logits `(batch, classes)`, `(batch, length, classes)` or `(batch, classes, height, width)`.
        labels (`Tensor`, *optional*): Of the batch; positions whose label is -100 do not count.
        temperature (`float`): `T`, above 0.
        shifts_labels (`bool`): Whether position `i` answers for label `i + 1`, as in causal language models.
        num_items_in_batch (`int` or `Tensor`, *optional*): Targets of the whole accumulated batch, to divide by as the loss of
            the student does. Default: those of this batch.

    Raises:
        ValueError: For logits of two shapes, that are not one for each label, or are no distribution over classes.
    """
    if student.shape != taught.shape:
        raise ValueError(
            f"distill_weight needs logits of one shape, got {tuple(student.shape)} and {tuple(taught.shape)} of the model before "
            "pruning. Leave it out."
        )
    dim = 1 if student.dim() == 4 else -1
    if student.shape[dim] < 2 or (isinstance(labels, Tensor) and labels.is_floating_point()):
        raise ValueError(
            f"distill_weight needs logits of two or more classes, one of which is right, got {tuple(student.shape)} and labels "
            f"of {labels.dtype if isinstance(labels, Tensor) else 'no dtype'}: a regression, or several labels. Leave it out."
        )
    part = F.kl_div(
        F.log_softmax(student.float() / temperature, dim),
        F.log_softmax(taught.float() / temperature, dim),
        reduction="none",
        log_target=True,
    ).sum(dim)
    if student.dim() == 3 and isinstance(labels, Tensor):
        if labels.shape != part.shape:
            raise ValueError(
                f"distill_weight needs logits that are one for each label, got {tuple(student.shape)} and labels "
                f"{tuple(labels.shape)}: what aligns them (CTC) is not known. Leave it out."
            )
        if shifts_labels:
            part, labels = part[:, :-1], labels[:, 1:]
        part = part[labels != -100]
    count = part.numel() if num_items_in_batch is None else num_items_in_batch
    return temperature**2 * part.sum() / count


def feature_loss(student: Mapping[str, Any], taught: Mapping[str, Any], inputs: Mapping[str, Any]) -> Tensor:
    """
    SquareHead: `||f_t - f_s||^2 / ||f_t||^2` of the states after a layer, summed over all layers (Kurtic et al. 2023, arXiv
    2310.06927, equation 2). Padding does not count.

    Args:
        student, taught (`ModelOutput`): With the states of all layers, the embeddings first, `(batch, length, width)` or
            `(batch, channels, height, width)`.
        inputs (`Mapping`): Of the batch: `attention_mask` of an encoder, `labels` of a decoder.

    Raises:
        ValueError: For models whose outputs have no such states.
    """
    names = [name for name in HIDDEN if student.get(name) is not None and taught.get(name) is not None]
    if not names:
        raise ValueError(
            f"distill_features needs a model whose output has hidden states, got {type(student).__name__}. Leave it out."
        )
    losses = [loss for name in names for loss in _layer_losses(student[name], taught[name], _counted(name, inputs))]
    return torch.stack(losses).sum()


def _layer_losses(student: Any, taught: Any, counted: Any) -> Iterator[Tensor]:
    for mine, theirs in zip(student[1:], taught[1:], strict=True):
        mine, theirs = mine.float(), theirs.float()
        if isinstance(counted, Tensor) and counted.shape == mine.shape[:2] and mine.dim() == 3:
            mine, theirs = mine[counted], theirs[counted]
        yield (theirs - mine).square().sum() / theirs.square().sum()


def _counted(name: str, inputs: Mapping[str, Any]) -> Any:
    """`(batch, length)`, `True` where a state counts; `None` for all."""
    if name == "decoder_hidden_states":
        labels = inputs.get("labels")
        return labels != -100 if isinstance(labels, Tensor) else None
    mask = inputs.get("attention_mask")
    return mask.bool() if isinstance(mask, Tensor) else None


def logits_of(outputs: Any) -> Tensor:
    """Logits of a model's output, or `ValueError`."""
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else None
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"distill_weight needs a model whose output has logits, got {type(outputs).__name__}. Leave it out."
        )
    return logits
