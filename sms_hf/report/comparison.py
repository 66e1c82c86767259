"""Whether a difference between two models is more than noise, in a sentence."""

from collections.abc import Mapping
from typing import Any


def describe_comparison(comparison: Mapping[str, Any], metric: str) -> str:
    """
    What a reader should make of two test scores.

    Args:
        comparison (`Mapping`): A `Comparison`.
        metric (`str`): What the difference is of.

    Returns:
        `str`: As `soup against dense: +0.33 bleu, 95 % interval -0.20 to 0.90: within noise`.
    """
    low, high = comparison["interval"]
    # As many digits as the interval leaves a meaning.
    digits = 2 if high - low >= 0.2 else 4
    verdict = "within noise" if low <= 0 <= high else "more than noise"
    models = f"{_label(comparison['model'])} against {_label(comparison['against'])}"
    interval = f"{_number(low, digits)} to {_number(high, digits)}"
    sign = "+" if round(comparison["difference"], digits) > 0 else ""
    difference = f"{sign}{_number(comparison['difference'], digits)} {metric}"
    return f"{models}: {difference}, 95 % interval {interval}: {verdict}"


def _number(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: nobody wants to read -0.00.


def _label(row: str) -> str:
    name = row.split("/")[-1]
    number = name.removeprefix("candidate-")
    return name if number == name else f"best candidate ({number})"
