"""A run, or several beside each other, as one HTML file: no script, nothing from elsewhere, all text of others escaped."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from . import charts, facts
from .facts import Run
from .text import format_bytes, format_seconds

PAGE = "report.html"
"""What the page is called in the folder of a run."""


def make_page(run: Run, refresh: int | None = None) -> str:
    """
    The page of a run.

    Args:
        run ([`Run`]): What its folder holds.
        refresh (`int`, *optional*): Seconds after which a browser is to ask again.

    Returns:
        `str`: HTML; the same for the same run.

    Raises:
        ImportError: Without matplotlib.
    """
    report = run.report
    first, others = facts.settings_rows(run.arguments)
    layers = facts.layer_rows(report["phases"])
    candidates = [(phase["number"], c) for phase in report["phases"] for c in phase["candidates"]]
    return _render(
        "run.html",
        run=run,
        report=report,
        refresh=refresh,
        summary=facts.summary(run),
        tiles=facts.tiles(run),
        scores=_markup(charts.scores_svg(report)) if report["phases"] else None,
        dense=facts.dense_row(run),
        comparisons=facts.comparisons(run),
        phases=[_phase(run, phase) for phase in report["phases"]],
        layers=layers[: facts.MOST_TENSORS],
        layers_left=len(layers[facts.MOST_TENSORS :]),
        shades=facts.shades(value for _, values in layers for value in values),
        timeline=_markup(charts.timeline_svg(candidates)),
        settings=first,
        other_settings=others,
        open_rows=facts.OPEN_ROWS,
    )


def make_comparison(runs: Sequence[Run]) -> str:
    """
    The page that compares runs.

    Raises:
        ImportError: Without matplotlib.
        ValueError: If two runs chose by different metrics.
    """
    metrics = list(dict.fromkeys(run.report["metric"] for run in runs))
    if len(metrics) > 1:
        raise ValueError(
            f"Expected runs that chose by one metric, got {' and '.join(map(repr, metrics))}. Compare those of one metric."
        )
    rows = [facts.compared(run) for run in runs]
    points = [(100 * row.sparsity, row.score) for row in rows if row.sparsity is not None and row.score is not None]
    return _render(
        "comparison.html",
        runs=runs,
        table=list(zip(runs, rows, strict=True)),
        metric=metrics[0],
        refresh=None,
        comparisons=[f"{run.name}: {text}" for run in runs for text in facts.comparisons(run)],
        figure=_markup(charts.comparison_svg(points)) if len(points) == len(rows) else None,
        differences=facts.different_settings(runs),
    )


def make_note(text: str, refresh: int) -> str:
    """A page that says one sentence, and asks again."""
    return _render("note.html", text=text, refresh=refresh)


def _phase(run: Run, phase: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of a phase."""
    candidates, made = facts.rows_of_phase(run, phase)
    diagnostics, number = phase["diagnostics"], phase["number"]
    return {
        "number": number,
        "record": phase,
        "candidates": candidates,
        "made": made,
        "trials": facts.trials(run, phase["soup"]) if phase["soup"] else [],
        "verdict": facts.verdict(run, phase),
        "losses": _markup(charts.losses_svg(phase)),
        "matrices": [(matrix, _drawn(matrix, number)) for matrix in facts.matrices(phase)],
        "overlap": diagnostics.get("mask_overlap_with_previous_phase"),
        "warnings": diagnostics.get("warnings", []),
        "emptied": [n for n, values in facts.layer_rows([phase]) if values[0] == 1.0],
        "skipped": phase["parent"].get("skipped_by_pattern") or {},
    }


def _drawn(matrix: facts.Matrix, phase: int) -> Markup | None:
    """A heat map of many candidates; one of a few is a table."""
    if len(matrix.labels) <= facts.WRITTEN:
        return None
    name = f"{matrix.title.lower().replace(' ', '-')}-{phase}"
    return _markup(charts.matrix_svg(name, matrix.title, matrix.rows, matrix.shades, matrix.labels))


def _shade(value: float, shades: tuple[float, float]) -> int:
    """From 0, the palest, to 100."""
    return round(100 * (value - shades[0]) / (shades[1] - shades[0])) if math.isfinite(value) else 0


def _markup(svg: str | None) -> Markup | None:
    """Our own drawing, in which what is text was escaped as XML."""
    return None if svg is None else Markup(svg)


def _breakable(name: str) -> Markup:
    """A tensor's name that may be broken after its dots."""
    return escape(name).replace(".", Markup(".<wbr>"))


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bytes": format_bytes,
        "seconds": format_seconds,
        "breakable": _breakable,
        "shade": _shade,
    }
    return environment


def _render(template: str, **values: Any) -> str:
    # JSON may hold halves of characters, which no file in UTF-8 can.
    return _templates().get_template(template).render(**values).encode("utf-8", "replace").decode("utf-8")
