"""The lines that a run prints while it goes on."""

from collections.abc import Mapping
from typing import Any


def describe(overrides: Mapping[str, Any]) -> str:
    """Settings of a candidate: `seed=43 weight_decay=0.01`."""
    return " ".join(f"{key}={value}" for key, value in overrides.items())


def dense_line(metrics: Mapping[str, float], metric: str) -> str:
    return f"dense model: {metric} {metrics[metric]:.4g}"


def parent_line(number: int, num_phases: int, parent: Mapping[str, Any]) -> str:
    return (
        f"phase {number} of {num_phases}: {parent['sparsity']:.2%} of the prunable weights removed, "
        f"{parent['num_kept']:,} of {parent['num_weights']:,} kept ({parent['model_sparsity']:.2%} of all weights removed)"
    )


def candidate_line(number: int, record: Mapping[str, Any], metric: str) -> str:
    result = f"diverged, left out: {record['diverged']}" if record["diverged"] else f"{metric} {record['score']:.4g}"
    settings = describe(record["overrides"])
    return (
        f"phase {number}, {record['name']} ({settings}): {result}, {record['steps']} steps, {record['seconds']:.0f} s"
    )


def soup_line(phase: Mapping[str, Any], metric: str) -> str:
    count = len(phase["soup"]["ingredients"])
    return (
        f"phase {phase['number']}: mean candidate {phase['mean_score']:.4g}, best candidate {phase['best_score']:.4g}, "
        f"soup of {count} {phase['soup']['score']:.4g} ({metric})"
    )
