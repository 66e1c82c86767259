"""Metrics of classifiers of texts and images, and of pixels."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import EvalPrediction

from .calibration import expected_calibration_error, worst_class_accuracy
from .rows import RowStatistics, with_statistics

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

    return with_statistics(compute, RowStatistics(_hits, {"accuracy": lambda sums: sums[0] / sums[1]}))


def _hits(prediction: EvalPrediction) -> np.ndarray:
    logits, labels = _tensors(prediction)
    hits = (logits.argmax(-1) == labels).double()
    return torch.stack([hits, torch.ones_like(hits)], 1).numpy()


def segmentation_metrics(num_labels: int, ignore_index: int = 255) -> Callable[[EvalPrediction], dict[str, float]]:
    """
    `compute_metrics` for semantic segmentation: `mean_iou` and `pixel_accuracy`, both in `[0, 1]`.

    One confusion matrix is counted over all images. `IoU_c = n_cc / (sum_j n_cj + sum_i n_ic - n_cc)`; its mean is taken over
    the classes that occur in labels or predictions. Predictions are logits `(N, C, h, w)`, first where there are several
    outputs, or the classes themselves, `(N, H, W)` as the labels, which [`class_maps`] makes of logits batch by batch.

    Args:
        num_labels (`int`): `C`.
        ignore_index (`int`, *optional*, defaults to `255`): Label of pixels that count nowhere. -100 is another one, always.
    """

    def confusions(prediction: EvalPrediction) -> Iterator[Tensor]:
        predictions, labels = _tensors(prediction)
        mapped = predictions.dim() == 3 and predictions.shape == labels.shape
        if not mapped and (predictions.dim() != 4 or labels.dim() != 3 or len(labels) != len(predictions)):
            raise ValueError(
                "Segmentation needs logits (N, C, h, w) or classes (N, H, W) and labels (N, H, W), got shapes "
                f"{tuple(predictions.shape)} and {tuple(labels.shape)}. For classes of whole images: classification_metrics."
            )
        if not mapped:
            _check_classes(num_labels, predictions.shape[1])
        # Image by image: logits of the labels' size would take C times their memory.
        for row, truth in zip(predictions, labels, strict=True):
            classes = row if mapped else class_maps(row[None], truth[None])[0]
            yield _confusion(classes.long(), truth, num_labels, ignore_index)

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        confusion = sum(confusions(prediction), torch.zeros(num_labels, num_labels, dtype=torch.int64))
        counts = _counts(confusion)
        return {"mean_iou": _mean_iou(counts), "pixel_accuracy": _pixel_accuracy(counts)}

    def rows(prediction: EvalPrediction) -> np.ndarray:
        # Not the matrices themselves: of 150 classes, 2,000 of them would take 360 MB and a minute.
        return torch.stack([_counts(confusion).flatten() for confusion in confusions(prediction)]).double().numpy()

    def of_sums(score: Callable[[Tensor], float]) -> Callable[[np.ndarray], float]:
        return lambda sums: score(torch.as_tensor(sums).reshape(3, num_labels))

    scores = {"mean_iou": of_sums(_mean_iou), "pixel_accuracy": of_sums(_pixel_accuracy)}
    return with_statistics(compute, RowStatistics(rows, scores))


def _counts(confusion: Tensor) -> Tensor:
    """Of every class its hits, labels and predictions, `(3, C)`: what both metrics depend on."""
    return torch.stack([confusion.diagonal(), confusion.sum(1), confusion.sum(0)])


def _mean_iou(counts: Tensor) -> float:
    hits, labels, predictions = counts
    union = labels + predictions - hits
    occurs = union > 0
    return float((hits[occurs].double() / union[occurs]).mean())


def _pixel_accuracy(counts: Tensor) -> float:
    return float(counts[0].sum().double() / counts[1].sum())


def class_maps(logits: Any, labels: Tensor) -> Tensor:
    """
    `preprocess_logits_for_metrics` for semantic segmentation: the class of every pixel, so that `Trainer` need not keep logits.

    Args:
        logits (`Tensor` or `tuple`): `(N, C, h, w)`, first where there are several outputs; interpolated to the size of the
            labels (bilinear, `align_corners=False`).
        labels (`Tensor`): `(N, H, W)`.

    Returns:
        `Tensor`: `(N, H, W)`, int16.
    """
    logits = logits[0] if isinstance(logits, tuple) else logits
    upsampled = F.interpolate(logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
    return upsampled.argmax(1).to(torch.int16)


def _confusion(predictions: Tensor, labels: Tensor, count: int, ignore_index: int) -> Tensor:
    """Pixels of one image by (label, prediction), `(C, C)`. Both `(H, W)`."""
    counted = (labels != ignore_index) & (labels != PADDING)
    truth = labels[counted].long()
    if ((truth < 0) | (truth >= count)).any():
        raise ValueError(
            f"labels must lie in [0, {count}) or be {ignore_index} or {PADDING}, which are ignored, got {int(truth.min())} to "
            f"{int(truth.max())}. Set ignore_index, or map the labels."
        )
    return torch.bincount(truth * count + predictions[counted], minlength=count**2).reshape(count, count)


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
