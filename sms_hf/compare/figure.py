"""The comparison as a figure."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from ..report.figure import new_figure
from .tables import DENSE, REFERENCES, Table

# ---- The figure --------------------------------------------------------------------------------------------------------

# Okabe and Ito's colours, told apart by the colour-blind too; markers and dashes for more rows than colours.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LOOKS = (("o", "-"), ("s", "--"), ("^", ":"), ("D", "-."))


def draw_figure(tables: Sequence[Table]) -> Any:
    """
    Score against sparsity, a line per row with its standard deviation; a panel per number of candidates and model.

    Returns:
        `matplotlib.figure.Figure`: To be saved with `savefig`.

    Raises:
        ImportError: Without matplotlib.
    """
    numbers = sorted({m for table in tables for m in table.num_candidates})
    rows = list(dict.fromkeys(row for table in tables for row in table.entries))
    styles = {row: _style(row, i) for i, row in enumerate(row for row in rows if row != DENSE)} | {
        DENSE: _style(DENSE, 0)
    }
    figure = new_figure(5.6 * len(tables) + 2.6, 4.2 * len(numbers) + 0.4)
    axes = figure.subplots(len(numbers), len(tables), squeeze=False)
    lines: dict[str, Any] = {}
    visible: dict[str, bool] = {}
    for (i, m), (j, table) in product(enumerate(numbers), enumerate(tables)):
        if m in table.num_candidates:
            lines = {**lines, **_draw_panel(axes[i][j], table, m, styles)}
            visible |= {row: True for row in lines if _is_visible(axes[i][j], table, m, row)}
        else:
            axes[i][j].set_axis_off()
    shown = [row for row in rows if row in lines]
    labels = [row if row in visible else f"{row} (off the scale)" for row in shown]
    figure.legend([lines[row] for row in shown], labels, loc="outside right center", frameon=False, fontsize=9)
    return figure


def _style(row: str, position: int) -> dict[str, Any]:
    if row in REFERENCES:
        return {"color": "#777777", "linestyle": "-" if row == DENSE else "--", "marker": "" if row == DENSE else "*"}
    marker, dashes = LOOKS[position // len(COLOURS) % len(LOOKS)]
    return {"color": COLOURS[position % len(COLOURS)], "linestyle": dashes, "marker": marker}


def _draw_panel(axis: Any, table: Table, m: int, styles: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Draw one panel; what was drawn by row."""
    sparsities = list(dict.fromkeys(s for s, _ in table.columns))
    drawn, heights = {}, []
    for number, (row, line) in enumerate(table.entries.items()):
        points = [
            # Side by side, so that the bars of neighbours do not hide each other.
            (x + 0.7 * (number / len(table.entries) - 0.5), entry.mean, entry.std or 0.0)
            for x, s in enumerate(sparsities)
            if (entry := line[table.columns.index((s, m))]).mean is not None
        ]
        if not points:
            continue
        x, mean, std = zip(*points, strict=True)
        if row == DENSE:
            drawn[row] = axis.axhline(mean[0], linewidth=1.2, **styles[row])
        else:
            look = styles[row]
            (line_,) = axis.plot(x, mean, linewidth=1.1, alpha=0.6, color=look["color"], linestyle=look["linestyle"])
            bars = axis.errorbar(x, mean, yerr=std, markersize=5, capsize=2, **look | {"linestyle": "none"})
            drawn[row] = (line_, bars)
        if any(table.epochs[row]) or row == DENSE:
            heights += [value for a, b in zip(mean, std, strict=True) for value in (a - b, a + b)]
    _zoom(axis, heights)
    axis.set_xticks(range(len(sparsities)), [f"{s * 100:g} %" for s in sparsities])
    axis.set_xlim(-0.5, len(sparsities) - 0.5)
    axis.set_title(f"{table.model}, m = {m}", fontsize=10)
    axis.set_xlabel("sparsity", fontsize=9)
    axis.set_ylabel(f"{table.split} {table.metric}", fontsize=9)
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    return drawn


def _is_visible(axis: Any, table: Table, m: int, row: str) -> bool:
    low, high = axis.get_ylim()
    entries = [entry for (_, n), entry in zip(table.columns, table.entries[row], strict=True) if n == m]
    return any(entry.mean is not None and low <= entry.mean <= high for entry in entries)


def _zoom(axis: Any, heights: Sequence[float]) -> None:
    """Show what was retrained: a model that was only pruned would press all others into one line, and may lie outside."""
    if heights and max(heights) > min(heights):
        margin = 0.06 * (max(heights) - min(heights))
        axis.set_ylim(min(heights) - margin, max(heights) + margin)
