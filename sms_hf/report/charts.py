"""The figures of a run's page. No text of users is in them: what a figure is about stands above it, in the page."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .phases import Colours, draw_scores
from .svg import CANDIDATE, DENSE, INK, MEAN, SERIES, SOUP, figure_svg

WIDE = (4.7, 2.9)
POINTS = 4000
"""Of the losses of a phase: with more the page would grow, and nothing more would be seen."""
HEAT = "#2f86c1"


def scores_svg(report: Mapping[str, Any]) -> str:
    """Candidates, mean and soup by phase."""

    def draw(axes: Any) -> None:
        draw_scores(axes, report, Colours(CANDIDATE, MEAN, SOUP, DENSE))
        axes.grid(axis="y")
        handles, labels = axes.get_legend_handles_labels()
        axes.figure.legend(handles, labels, loc="outside lower center", ncols=4, columnspacing=1, handletextpad=0.4)

    return figure_svg("scores", "Scores by phase", "The numbers are in the table of models.", WIDE, draw)


def losses_svg(phase: Mapping[str, Any]) -> str | None:
    """Training loss of every candidate over its steps; of few each in a colour of its own. None where none is known."""
    lines = {c["name"]: points for c in phase["candidates"] if (points := _losses(c["log"]))}
    if not lines:
        return None
    few, room = len(lines) <= len(SERIES), max(POINTS // len(lines), 20)
    chosen = set(phase["soup"]["ingredients"]) if phase["soup"] else set()

    def draw(axes: Any) -> None:
        for position, (name, points) in enumerate(lines.items()):
            steps, losses = zip(*points[:: math.ceil(len(points) / room)], strict=True)
            style: dict[str, Any] = {"marker": "o" if len(steps) < 3 else "", "markersize": 4, "linewidth": 1.4}
            if few:
                style |= {"color": SERIES[position], "label": name.removeprefix("candidate-")}
            else:
                style |= {"color": SOUP if name in chosen else CANDIDATE, "linewidth": 0.7}
                style |= {"zorder": 3 if name in chosen else 2, "alpha": 0.8}
            axes.plot(steps, losses, **style)
        values = [loss for points in lines.values() for _, loss in points]
        if min(values) > 0 and max(values) > 20 * min(values):
            _logarithmic(axes)
        _plain(axes)
        axes.set_xlabel("step")
        axes.set_xlim(
            0,
            1.02 * max(max(c["steps"], points[-1][0]) for c in phase["candidates"] if (points := lines.get(c["name"]))),
        )
        axes.xaxis.get_major_locator().set_params(integer=True)
        if few:
            axes.figure.legend(loc="outside lower center", ncols=len(SERIES), columnspacing=1, handlelength=1.2)

    name = f"losses-{phase['number']}"
    title, text = f"Losses in phase {phase['number']}", f"Training loss over steps of {len(lines)} candidates."
    return figure_svg(name, title, text, WIDE, draw)


def _losses(log: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    logged = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry and "step" in entry]
    return [(step, float(loss)) for step, loss in logged if isinstance(loss, int | float) and math.isfinite(loss)]


def matrix_svg(
    name: str, title: str, rows: Sequence[Sequence[float]], shades: tuple[float, float], labels: Sequence[str]
) -> str:
    """
    A value for each two candidates, as a heat map.

    Args:
        name (`str`), title (`str`): As for `figure_svg`.
        rows (`Sequence[Sequence[float]]`): NaN where nothing is known.
        shades (`tuple[float, float]`): Values of the palest and of the strongest shade.
        labels (`Sequence[str]`): Numbers of the candidates.
    """

    def draw(axes: Any) -> None:
        from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgba

        # Paler is more transparent: so it is on light paper and on dark.
        colours = LinearSegmentedColormap.from_list("", [to_rgba(HEAT, 0.06), to_rgba(HEAT, 0.85)])
        image = axes.imshow(rows, cmap=colours, norm=Normalize(*shades), interpolation="nearest")
        axes.figure.colorbar(image, ax=axes, shrink=0.85).outline.set_visible(False)
        ticks = list(range(0, len(labels), math.ceil(len(labels) / 5)))
        axes.set_xticks(ticks, [labels[i] for i in ticks])
        axes.set_yticks(ticks, [labels[i] for i in ticks])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)

    text = f"A number for each two of {len(labels)} candidates, from {shades[0]:.4g} to {shades[1]:.4g}."
    return figure_svg(name, title, text, (3.5, 3.4), draw)


def timeline_svg(candidates: Sequence[tuple[int, Mapping[str, Any]]]) -> str | None:
    """
    When each process trained which candidate; None where that is not known.

    Args:
        candidates (`Sequence`): Phase and candidate; those that tell `started`, `process` and `seconds` are drawn.
    """
    known = [
        (phase, c) for phase, c in candidates if all(c.get(k) is not None for k in ("started", "process", "seconds"))
    ]
    if not known:
        return None
    start = min(c["started"] for _, c in known)
    end = max(c["started"] + c["seconds"] for _, c in known) - start
    unit, per = next(
        (u, s) for u, s, most in (("seconds", 1, 180), ("minutes", 60, 10800), ("hours", 3600, math.inf)) if end <= most
    )
    processes = sorted({c["process"] for _, c in known})

    def draw(axes: Any) -> None:
        for phase, c in known:
            left, width, row = (c["started"] - start) / per, c["seconds"] / per, processes.index(c["process"])
            colour = SERIES[(phase - 1) % len(SERIES)]
            failed = {"hatch": "////", "facecolor": "none", "edgecolor": colour}
            bar = failed if c["failure"] else {"facecolor": colour, "edgecolor": "none", "alpha": 0.75}
            axes.barh(row, width, left=left, height=0.6, **bar)
            axes.plot([left, left], [row - 0.3, row + 0.3], color=INK, linewidth=0.8)
            if width > 0.045 * end / per:
                number = c["name"].removeprefix("candidate-")
                axes.text(left + width / 2, row, number, ha="center", va="center", fontsize=9)
        axes.set_yticks(range(len(processes)), [str(process) for process in processes])
        axes.set_ylim(len(processes) - 0.4, -0.6)
        axes.set_ylabel("process")
        axes.set_xlabel(unit)
        axes.set_xlim(0, end / per)
        axes.spines[["top", "right"]].set_visible(False)

    text = f"{len(known)} candidates on {len(processes)} processes, {end / per:.3g} {unit}."
    height = 1.1 + 0.32 * min(len(processes), 16)
    return figure_svg("time-line", "Who trained when", text, (WIDE[0] + 1.5, height), draw)


def comparison_svg(runs: Sequence[tuple[float, float]]) -> str:
    """
    Score against sparsity, a point for each run with its number in the table.

    Args:
        runs (`Sequence[tuple[float, float]]`): Sparsity in percent and score.
    """

    def draw(axes: Any) -> None:
        axes.scatter([x for x, _ in runs], [y for _, y in runs], s=42, color=SOUP, zorder=3)
        for number, (x, y) in enumerate(runs, 1):
            # Points at one place have their numbers beside each other.
            before = sum(math.isclose(x, a) and math.isclose(y, b) for a, b in runs[: number - 1])
            axes.annotate(str(number), (x, y), (6 + 14 * before, 4), textcoords="offset points", fontsize=10)
        axes.margins(0.12)
        _plain(axes)
        axes.set_xlabel("sparsity %")

    return figure_svg("runs", "Score against sparsity", "The numbers are in the table of runs.", WIDE, draw)


def _logarithmic(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    for axis in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        axis(FuncFormatter(lambda value, _: f"{value:g}"))


def _plain(axes: Any) -> None:
    axes.grid(axis="y")
    axes.spines[["top", "right"]].set_visible(False)
