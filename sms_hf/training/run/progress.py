"""The lines that a run prints while it goes on."""

from collections.abc import Iterator, Mapping
from typing import Any

from ...report.table import describe, sparsity_of
from ..plan.candidates import Phase


def dense_line(metrics: Mapping[str, float], metric: str) -> str:
    return f"dense model: {metric} {metrics[metric]:.4g}"


def parent_line(phase: Phase, num_phases: int, parent: Mapping[str, Any]) -> str:
    what = (
        f"{parent['sparsity']:.2%} of the prunable weights removed, {parent['num_kept']:,} of {parent['num_weights']:,} kept "
        f"({parent['model_sparsity']:.2%} of all weights removed)"
    )
    emptied = [name for name, sparsity in parent["sparsity_per_tensor"].items() if sparsity == 1.0]
    if emptied:
        more = f" and {len(emptied) - 3} more" if len(emptied) > 3 else ""
        what += f"; EMPTIED: {', '.join(emptied[:3])}{more}, pruning_scope 'uniform' or max_sparsity_per_layer prevents that"
    if parent["skipped_by_pattern"]:
        what += f"; left whole by the pattern: {', '.join(parent['skipped_by_pattern'])}"
    if phase.events:
        how = "the dense weights live on behind the mask" if phase.feedback else "gone weights stay gone"
        what = f"pruned to {phase.final_sparsity:.2%} while it is trained, {how}"
    return f"phase {phase.number} of {num_phases}: {what}"


def candidate_line(number: int, record: Mapping[str, Any], metric: str) -> str:
    result = f"failed, left out: {record['failure']}" if record["failure"] else f"{metric} {record['score']:.4g}"
    settings = describe(record["overrides"])
    return (
        f"phase {number}, {record['name']} ({settings}): {result}, {record['steps']} steps, {record['seconds']:.0f} s"
    )


def candidate_facts(number: int, record: Mapping[str, Any]) -> dict[str, Any]:
    """The end of a candidate, for who watches."""
    told = {key: record.get(key) for key in ("name", "score", "failure", "seconds")}
    return {"phase": number, "step": record["steps"], "steps": record["steps"], **told}


def phase_facts(phase: Mapping[str, Any]) -> dict[str, Any]:
    """The end of a phase, for who watches."""
    soup = phase["soup"]
    several = soup and len(phase["candidates"]) > 1
    return {
        "phase": phase["number"],
        "sparsity": sparsity_of(phase),
        "mean": phase["mean_score"],
        "best": phase["best_score"],
        "soup": soup["score"] if several else None,
        "ingredients": len(soup["ingredients"]) if several else 0,
    }


def soup_lines(phase: Mapping[str, Any], metric: str) -> Iterator[str]:
    """The end of a phase, and a line for every pair of candidates that share no basin."""
    line = f"phase {phase['number']}: "
    if len(phase["candidates"]) == 1:
        line += f"{metric} {phase['best_score']:.4g}"
    else:
        line += f"mean candidate {phase['mean_score']:.4g}, best candidate {phase['best_score']:.4g}"
        if phase["soup"]:
            line += f", soup of {len(phase['soup']['ingredients'])} {phase['soup']['score']:.4g}"
        line += f" ({metric}){_sureness(phase['soup'])}"
    yield line
    for warning in phase["diagnostics"].get("warnings", []):
        yield f"phase {phase['number']}: {warning}"


def _sureness(soup: Mapping[str, Any] | None) -> str:
    """How far the acceptances of a greedy soup are from noise."""
    trials = soup["trials"] if soup else []
    sure = [f"{trial['sure']:.0%}" for trial in trials if trial["accepted"] and trial["sure"] is not None]
    return f"; what was added would be again in {', '.join(sure)} of resampled evaluation sets" if sure else ""
