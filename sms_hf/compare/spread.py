"""How far apart the candidates of soups were, and what averaging them gained: what widens candidates, in numbers."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

SPREAD = ("distance", "angle", "barrier", "gain", "loss_gain")
"""What is known of the candidates of a cell's last soup."""
HEADERS = ("distance", "angle", "midpoint loss", "soup - mean candidate", "in loss")


def make_spread(report: Mapping[str, Any]) -> dict[str, float] | None:
    """
    Of the candidates of the last phase, on validation.

    Returns:
        `dict[str, float]`, or `None` where there was only one: `distance` (L2) and `angle` (degrees) between two, means over
        all pairs; `barrier`, the loss of their middle above the mean of both, on one batch; `gain`, the score of the soup
        less the mean score of its candidates; `loss_gain`, the same in loss.
    """
    last = report["phases"][-1]
    usable, diagnostics = [c for c in last["candidates"] if not c["failure"]], last["diagnostics"]
    if len(usable) < 2 or last["soup"] is None or "midpoints" not in diagnostics:
        return None
    mean_loss = statistics.fmean(c["metrics"]["loss"] for c in usable)
    return {
        "distance": diagnostics["geometry"]["distance"]["mean"],
        "angle": diagnostics["geometry"]["angle"]["mean"],
        "barrier": statistics.fmean(middle["barrier"] for middle in diagnostics["midpoints"]),
        "gain": last["soup"]["score"] - last["mean_score"],
        "loss_gain": last["soup"]["metrics"]["loss"] - mean_loss,
    }


def format_spread(results: Sequence[Mapping[str, Any]], style: str = "simple") -> str:
    """A line for each model and row that averages, means over all of its cells; empty where there is none."""
    groups: dict[tuple[str, str], list[Mapping[str, float]]] = {}
    for result in results:
        if result.get("spread"):
            groups.setdefault((result["model"], result["method"]), []).append(result["spread"])
    lines = [
        [*labels, *(f"{statistics.fmean(spread[key] for spread in found):.4g}" for key in SPREAD), len(found)]
        for labels, found in groups.items()
    ]
    headers = ["model", "method", *HEADERS, "cells"]
    return tabulate(lines, headers=headers, tablefmt=style, disable_numparse=True) if lines else ""
