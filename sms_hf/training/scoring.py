"""A score, and its values on bootstrap samples of the evaluation data, from which a greedy soup tells gains from noise."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..soup.noise import resample_predictions, resample_sums

FEWEST_BLOCKS = 8
"""Batches of a loss from which samples are drawn: of fewer, samples would say nothing."""


@dataclass(frozen=True)
class Score:
    """
    Of a model on the evaluation set.

    Attributes:
        metrics (`dict[str, float]`): All of them.
        resampled (`list[float]`, *optional*): The metric that decides, on samples that are the same for every model; `None`
            where it is not known.
    """

    metrics: dict[str, float]
    resampled: list[float] | None


class KeptPredictions:
    """A `compute_metrics` that keeps what it is given."""

    def __init__(self, compute: Callable[[Any], dict[str, Any]] | None):
        self.compute = compute
        self.given: Any = None
        self.returned: set[str] = set()

    def __call__(self, prediction: Any) -> dict[str, Any]:
        assert self.compute is not None
        self.given = prediction
        metrics = self.compute(prediction)
        self.returned = set(metrics)
        return metrics


def resampled_scores(
    metric: str, kept: KeptPredictions, loss_parts: Sequence[tuple[float, float]], any_metric: bool
) -> list[float] | None:
    """
    A metric on samples.

    The loss is sampled in batches, since nobody tells the loss of a row. A `compute_metrics` that carries `statistics` (those
    of `sms_hf.metrics` do) is sampled by its sums over rows, in a moment; any other one is computed anew for every sample.

    Args:
        metric (`str`): Without `eval_`.
        kept ([`KeptPredictions`]): After an evaluation.
        loss_parts (`Sequence[tuple[float, float]]`): Sum of losses and number of targets of every batch.
        any_metric (`bool`): Whether the time for a metric without statistics may be spent.

    Returns:
        `list[float]`, or `None` where they are not known: of too few batches, of a metric that `compute_metrics` does not
        return, or that is not defined on a sample.
    """
    scores = _resampled(metric, kept, loss_parts, any_metric)
    return scores if scores is not None and all(map(math.isfinite, scores)) else None


def _resampled(
    metric: str, kept: KeptPredictions, loss_parts: Sequence[tuple[float, float]], any_metric: bool
) -> list[float] | None:
    if metric == "loss":
        parts = np.array(loss_parts, dtype=np.float64)
        return resample_sums(parts, lambda sums: sums[0] / sums[1]) if len(parts) >= FEWEST_BLOCKS else None
    statistics = getattr(kept.compute, "statistics", None)
    if kept.given is None:
        return None
    if statistics is not None and metric in statistics.scores:
        return resample_sums(statistics.rows(kept.given), statistics.scores[metric])
    if not any_metric or kept.compute is None or not {metric, f"eval_{metric}"} & kept.returned:
        return None
    try:
        return resample_predictions(kept.compute, kept.given, metric)
    except ValueError:  # A sample of one class has no ROC curve: scikit-learn raises.
        return None
