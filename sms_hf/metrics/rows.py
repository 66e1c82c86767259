"""Metrics as functions of sums over rows, from which their noise is cheap to tell."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from transformers import EvalPrediction


@dataclass(frozen=True)
class RowStatistics:
    """
    What a `compute_metrics` can say beside its metrics.

    Attributes:
        rows (`Callable`): Predictions -> `(rows, k)`, float64: what each row adds to the `k` sums.
        scores (`Mapping`): Metric -> function of the sums `(k,)`.
    """

    rows: Callable[[EvalPrediction], np.ndarray]
    scores: Mapping[str, Callable[[np.ndarray], float]]


def with_statistics(
    compute: Callable[[EvalPrediction], dict[str, float]], statistics: RowStatistics
) -> Callable[[EvalPrediction], dict[str, float]]:
    """`compute` itself, carrying its `statistics`."""
    vars(compute)["statistics"] = statistics
    return compute
