"""Metrics of classifiers of texts and images, and of pixels."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import EvalPrediction

from ..soup.calibration import expected_calibration_error, worst_class_accuracy

PADDING = -100
"""Label of what counts nowhere: Trainer pads with it."""


def classification_metrics(num_labels: int | None = None) -> Callable[[EvalPrediction], dict[str, float]]:
    """
    `compute_metrics` for classification of rows: `accuracy`, `worst_class_accuracy` and `ece`, all in `[0, 1]`.

    `worst_class_accuracy` is the smallest accuracy of any class that occurs, `ece` the expected calibration error in 15 bins
    (Guo et al. 2017). For models with logits `(N, C)`, first where there are several outputs, and labels `(N,)`.

    Args:
        num_labels (`int`, *optional*): `C`, to be checked. Default: as many as the logits have.
    """

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        logits, labels = _tensors(prediction)
        if logits.dim() != 2 or logits.shape[1] < 2 or labels.shape != logits.shape[:1]:
            raise ValueError(
                "Classification needs logits (N, C) of two or more classes and labels (N,), got shapes "
                f"{tuple(logits.shape)} and {tuple(labels.shape)}. Pass a compute_metrics of your own for regression, several "
                "labels per row, or tokens; segmentation_metrics is for pixels."
            )
        _check_classes(num_labels, logits.shape[1])
        probabilities = logits.float().softmax(-1)
        predictions = logits.argmax(-1)
        return {
            "accuracy": float((predictions == labels).double().mean()),
            "worst_class_accuracy": worst_class_accuracy(predictions, labels),
            "ece": expected_calibration_error(probabilities, labels),
        }

    return compute


def segmentation_metrics(num_labels: int, ignore_index: int = 255) -> Callable[[EvalPrediction], dict[str, float]]:
    """
    `compute_metrics` for semantic segmentation: `mean_iou` and `pixel_accuracy`, both in `[0, 1]`.

    One confusion matrix is counted over all images. `IoU_c = n_cc / (sum_j n_cj + sum_i n_ic - n_cc)`; its mean is taken over
    the classes that occur in labels or predictions. For models with logits `(N, C, h, w)`, first where there are several
    outputs, and labels `(N, H, W)`, to whose size the logits are interpolated (bilinear, `align_corners=False`).

    Args:
        num_labels (`int`): `C`.
        ignore_index (`int`, *optional*, defaults to `255`): Label of pixels that count nowhere. -100 is another one, always.
    """

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        logits, labels = _tensors(prediction)
        if logits.dim() != 4 or labels.dim() != 3 or len(labels) != len(logits):
            raise ValueError(
                "Segmentation needs logits (N, C, h, w) and labels (N, H, W), got shapes "
                f"{tuple(logits.shape)} and {tuple(labels.shape)}. For classes of whole images: classification_metrics."
            )
        _check_classes(num_labels, logits.shape[1])
        # Image by image: logits of the labels' size would take C times their memory.
        confusion = sum(
            (_confusion(z, truth, ignore_index) for z, truth in zip(logits, labels, strict=True)),
            torch.zeros(num_labels, num_labels, dtype=torch.int64),
        )
        hits = confusion.diagonal()
        union = confusion.sum(0) + confusion.sum(1) - hits
        occurs = union > 0
        return {
            "mean_iou": float((hits[occurs].double() / union[occurs]).mean()),
            "pixel_accuracy": float(hits.sum().double() / confusion.sum()),
        }

    return compute


def _confusion(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Pixels of one image by (label, prediction), `(C, C)`. logits: `(C, h, w)`, labels: `(H, W)`."""
    count = len(logits)
    counted = (labels != ignore_index) & (labels != PADDING)
    truth = labels[counted].long()
    if ((truth < 0) | (truth >= count)).any():
        raise ValueError(
            f"labels must lie in [0, {count}) or be {ignore_index} or {PADDING}, which are ignored, got {int(truth.min())} to "
            f"{int(truth.max())}. Set ignore_index, or map the labels."
        )
    upsampled = F.interpolate(logits[None].float(), size=labels.shape, mode="bilinear", align_corners=False)[0]
    predictions = upsampled.argmax(0)[counted]
    return torch.bincount(truth * count + predictions, minlength=count**2).reshape(count, count)


def _tensors(prediction: EvalPrediction) -> tuple[Tensor, Tensor]:
    """Logits, the first output of several, and labels."""
    logits: Any = prediction.predictions
    logits = logits[0] if isinstance(logits, tuple) else logits
    return torch.as_tensor(np.asarray(logits)), torch.as_tensor(np.asarray(prediction.label_ids))


def _check_classes(expected: int | None, found: int) -> None:
    if expected is not None and found != expected:
        raise ValueError(
            f"logits must be of {expected} classes, got {found}. Set num_labels to the model's config.num_labels."
        )
