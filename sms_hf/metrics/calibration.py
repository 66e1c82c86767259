"""Predicted probabilities: whether they can be believed, and the class that fares worst."""

import torch
from torch import Tensor

BINS = 15
"""Bins of confidence, as in Guo et al. (ICML 2017) and in the reference implementation of Sparse Model Soups."""


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """
    `ECE = sum_b (n_b / n) |accuracy_b - confidence_b|` over bins of equal width (Guo et al., ICML 2017).

    Args:
        probabilities (`Tensor`): `(N, C)`, in `[0, 1]`. A row's confidence is its largest value.
        labels (`Tensor`): `(N,)`, the right classes.
        bins (`int`, *optional*, defaults to `15`): Bin `b` holds confidences in `(b / bins, (b + 1) / bins]`.

    Returns:
        `float`: In `[0, 1]`; 0 is perfect.
    """
    gaps, shares = _gaps(probabilities, labels, bins)
    return float((gaps * shares).sum())


def worst_class_accuracy(predictions: Tensor, labels: Tensor) -> float:
    """
    Smallest accuracy of any class that occurs: what pruning takes first from rare classes hardly shows in the mean.

    Args:
        predictions, labels (`Tensor`): `(N,)`, class indices, `N >= 1`.

    Returns:
        `float`: In `[0, 1]`.
    """
    if predictions.shape != labels.shape or labels.dim() != 1 or not len(labels):
        raise ValueError(
            "predictions and labels must both be (N,) with N of at least 1, got shapes "
            f"{tuple(predictions.shape)} and {tuple(labels.shape)}. Pass logits.argmax(-1)."
        )
    classes, position = labels.unique(return_inverse=True)
    right = torch.bincount(position, weights=(predictions == labels).double(), minlength=len(classes))
    return float((right / torch.bincount(position)).min())


def _gaps(probabilities: Tensor, labels: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """`|accuracy - confidence|` of all bins that hold any row, and their shares of the rows; both float64."""
    if probabilities.dim() != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise ValueError(
            "probabilities must be (N, C) and labels (N,) with N of at least 1, got shapes "
            f"{tuple(probabilities.shape)} and {tuple(labels.shape)}."
        )
    if ((probabilities < 0) | (probabilities > 1 + 1e-4)).any():  # NaN passes, and gives NaN.
        raise ValueError(
            f"probabilities must lie in [0, 1], got {float(probabilities.min()):.4g} to {float(probabilities.max()):.4g}. "
            "Pass logits.softmax(-1)."
        )
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}. Usual is {BINS}.")
    confidence, predictions = probabilities.max(1)
    # Rounded once, to the dtype of the confidences: 0.6 in float32 is above 0.6 in float64, and above torch.linspace's.
    borders = (torch.arange(1, bins, device=confidence.device).double() / bins).to(confidence.dtype)
    bin_of = torch.bucketize(confidence, borders)
    difference = (predictions == labels).double() - confidence.double()
    counts = torch.bincount(bin_of, minlength=bins)
    sums = torch.bincount(bin_of, weights=difference, minlength=bins)
    held = counts > 0
    return (sums[held] / counts[held]).abs(), counts[held].double() / len(labels)
