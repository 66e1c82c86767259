"""The figure of a run: what each phase made of its candidates."""

from collections.abc import Mapping
from typing import Any

from .figure import new_figure

CANDIDATE, MEAN, SOUP, DENSE = "#9aa5b1", "#52606d", "#d64545", "#777777"


def draw_phases(report: Mapping[str, Any]) -> Any:
    """
    Scores of candidates, their mean and the soup against the sparsity of each phase, and the dense model as a line.

    Args:
        report (`Mapping`): `trainer.report`, `report.json` or `sparse_soup.json`.

    Returns:
        `matplotlib.figure.Figure`: To be saved with `savefig`.

    Raises:
        ImportError: Without matplotlib.
    """
    phases, metric = report["phases"], report["metric"]
    figure = new_figure(6.4, 3.8)
    axes = figure.subplots()
    places = range(len(phases))
    axes.axhline(report["dense"][metric], color=DENSE, linewidth=1, linestyle=":", label="dense")
    points = [(x, c["score"]) for x, p in zip(places, phases, strict=True) for c in p["candidates"] if not c["failure"]]
    axes.scatter(*zip(*points, strict=True), s=26, color=CANDIDATE, label="candidates", zorder=2)
    means = [phase["mean_score"] for phase in phases]
    axes.plot(places, means, color=MEAN, linestyle="--", marker="_", markersize=14, label="mean candidate", zorder=3)
    souped = [(x, phase["soup"]["score"]) for x, phase in zip(places, phases, strict=True) if phase["soup"]]
    if souped:
        axes.plot(*zip(*souped, strict=True), color=SOUP, marker="o", label="soup", zorder=4)
    axes.set_xticks(list(places), [f"phase {p['number']}\n{100 * _sparsity(p):.1f} %" for p in phases])
    axes.set_xlim(-0.5, len(phases) - 0.5)
    axes.set_ylabel(metric)
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _sparsity(phase: Mapping[str, Any]) -> float:
    return max(phase["parent"]["sparsity"], phase["soup"]["sparsity"] if phase["soup"] else 0.0)
