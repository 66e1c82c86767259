"""The figure of a run: what each phase made of its candidates."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from .figure import new_figure
from .table import sparsity_of


class Colours(NamedTuple):
    """Of what a phase makes."""

    candidate: str = "#9aa5b1"
    mean: str = "#52606d"
    soup: str = "#d64545"
    dense: str = "#777777"


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
    figure = new_figure(6.4, 3.8)
    axes = figure.subplots()
    draw_scores(axes, report, Colours())
    axes.set_ylabel(report["metric"])
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.legend(frameon=False, fontsize=9)
    return figure


def draw_scores(axes: Any, report: Mapping[str, Any], colours: Colours) -> None:
    """The same into axes of matplotlib; of a run that goes on, what is known."""
    phases, metric = report["phases"], report["metric"]
    places = range(len(phases))
    if metric in report["dense"]:
        axes.axhline(report["dense"][metric], color=colours.dense, linewidth=1, linestyle=":", label="dense")
    known = [(x, c.get("score")) for x, phase in zip(places, phases, strict=True) for c in phase["candidates"]]
    if points := [(x, score) for x, score in known if score is not None]:
        alpha = 1.0 if len(points) <= 40 * len(phases) else 0.3  # Where they lie thick is to be seen.
        axes.scatter(
            *zip(*points, strict=True), s=26, color=colours.candidate, alpha=alpha, label="candidates", zorder=2
        )
    means = [(x, phase["mean_score"]) for x, phase in zip(places, phases, strict=True)]
    if means := [(x, mean) for x, mean in means if mean is not None]:
        style = {"color": colours.mean, "linestyle": "--", "marker": "_", "markersize": 14}
        axes.plot(*zip(*means, strict=True), **style, label="mean candidate", zorder=3)
    souped = [(x, phase["soup"]["score"]) for x, phase in zip(places, phases, strict=True) if phase["soup"]]
    if souped:
        axes.plot(*zip(*souped, strict=True), color=colours.soup, marker="o", label="soup", zorder=4)
    axes.set_xticks(list(places), [f"phase {p['number']}\n{100 * sparsity_of(p):.1f} %" for p in phases])
    axes.set_xlim(-0.5, len(phases) - 0.5)
    axes.spines[["top", "right"]].set_visible(False)
