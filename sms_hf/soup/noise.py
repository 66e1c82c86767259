"""How far a difference between two averages is noise of the evaluation data: the paired bootstrap."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

REPEATS = 1000
"""Resamples where a score is a function of sums over rows."""
FEW_REPEATS = 200
"""Resamples where a user's metric is computed anew for each of them."""
SEED = 0
"""The same rows for every model that is scored: that is what makes differences paired."""


def resample_sums(rows: np.ndarray, score: Callable[[np.ndarray], float], repeats: int = REPEATS) -> list[float]:
    """
    Scores of bootstrap samples, of a score that depends on sums over rows (Koehn, EMNLP 2004, for BLEU).

    Args:
        rows (`np.ndarray`): `(rows, k)`: what each adds to the `k` sums. Blocks of rows where single ones are not known.
        score (`Callable`): Sums `(k,)` -> score.
        repeats (`int`, *optional*, defaults to `REPEATS`): How many samples.

    Returns:
        `list[float]`: The samples' scores; for equally many rows always of the same samples.
    """
    draw, count = np.random.default_rng(SEED), len(rows)
    # How often each row is drawn: the same as drawing them one by one.
    return [float(score(draw.multinomial(count, np.full(count, 1 / count)) @ rows)) for _ in range(repeats)]


def resample_rows(count: int, score: Callable[[np.ndarray], float], repeats: int = FEW_REPEATS) -> list[float]:
    """
    Scores of bootstrap samples, of any score.

    Args:
        count (`int`): Of rows.
        score (`Callable`): Positions of rows `(count,)`, drawn with replacement -> score of these.
    """
    draw = np.random.default_rng(SEED)
    return [float(score(draw.integers(count, size=count))) for _ in range(repeats)]


def gain_noise(
    trial: Sequence[float], before: Sequence[float], sign: float = 1.0
) -> tuple[float, Callable[[float], float]]:
    """
    What the samples say of a gain.

    Args:
        trial, before (`Sequence[float]`): Scores of two models on the same samples.
        sign (`float`): -1 where less is better.

    Returns:
        The standard error of the gain, in units of the score, and a function: a gain that is asked for -> the share of samples
        in which it is reached.
    """
    gains = sign * (np.asarray(trial, dtype=np.float64) - np.asarray(before, dtype=np.float64))
    return float(gains.std(ddof=1)), lambda needed: float((gains >= needed).mean())


def difference_interval(first: Sequence[float], second: Sequence[float], coverage: float = 0.95) -> tuple[float, float]:
    """
    Where a difference lies, by the percentiles of the samples' differences.

    Args:
        first, second (`Sequence[float]`): Scores of two models on the same samples.
        coverage (`float`, *optional*, defaults to `0.95`): Share of the samples inside, as many above it as below.

    Returns:
        Lower and upper end, in units of the score.
    """
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    low, high = np.quantile(differences, [(1 - coverage) / 2, (1 + coverage) / 2])
    return float(low), float(high)


def resample_predictions(
    compute: Callable[[Any], dict[str, Any]], prediction: Any, name: str, repeats: int = FEW_REPEATS
) -> list[float]:
    """
    The same of a `compute_metrics` of anybody's: a function of rows of predictions and labels, of inputs and losses where
    `include_for_metrics` asks for them.

    Args:
        compute (`Callable`): `EvalPrediction` -> metrics.
        prediction (`EvalPrediction`): Of all rows; arrays, or tuples of them.
        name (`str`): The metric, without `eval_`.
    """

    def score(rows: np.ndarray) -> float:
        given = {of: _take(getattr(prediction, of, None), rows) for of in ("inputs", "losses")}
        drawn = type(prediction)(
            _take(prediction.predictions, rows),
            _take(prediction.label_ids, rows),
            **{of: value for of, value in given.items() if value is not None},
        )
        metrics = compute(drawn)
        return metrics[name] if name in metrics else metrics[f"eval_{name}"]

    return resample_rows(_count(prediction.predictions), score, repeats)


def _take(arrays: Any, rows: np.ndarray) -> Any:
    if isinstance(arrays, dict):
        return {name: _take(array, rows) for name, array in arrays.items()}
    if isinstance(arrays, (tuple, list)):
        return type(arrays)(_take(array, rows) for array in arrays)
    return None if arrays is None else np.asarray(arrays)[rows]


def _count(arrays: Any) -> int:
    if isinstance(arrays, dict):
        return _count(list(arrays.values()))
    return _count(arrays[0]) if isinstance(arrays, (tuple, list)) else len(arrays)
