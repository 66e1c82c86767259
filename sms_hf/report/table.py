"""The table at the end of a run."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from .text import escaped

MARKDOWN = ("github", "pipe")
"""Styles in which a cell is markup to whoever shows it."""


def format_report(
    report: Mapping[str, Any], test_scores: Mapping[str, float] | None = None, style: str = "simple"
) -> str:
    """
    One row for the dense model, each candidate and, where there are several, their mean, their best and the soup.

    Args:
        report (`Mapping`): `trainer.report`, or `report.json` read back.
        test_scores (`Mapping[str, float]`, *optional*): Scores on a test set for a last column, by the names `"dense"`,
            `"phase-1/candidate-1"`, `"phase-1/soup"`, ... The best candidate is the one chosen on the evaluation set.
        style (`str`, *optional*, defaults to `"simple"`): A format of `tabulate`, for example `"github"` for Markdown, in
            which names and settings are escaped.

    Returns:
        `str`: The table.
    """
    tests = test_scores or {}
    rows = [["dense", "", 0.0, report["dense"][report["metric"]], tests.get("dense")]]
    for phase in report["phases"]:
        rows += phase_rows(phase, tests)
    headers = ["phase", "model", "sparsity %", report["metric"], f"test {report['metric']}"]
    digits = f".{decimals(row[3] for row in rows)}f"
    if not tests:
        rows, headers = [row[:-1] for row in rows], headers[:-1]
    rows, headers = [[_cell(v, style) for v in row] for row in rows], [_cell(header, style) for header in headers]
    return tabulate(rows, headers=headers, tablefmt=style, floatfmt=("", "", ".2f", digits, digits), missingval="")


def decimals(scores: Iterable[float | None]) -> int:
    """Percentages and BLEU with two decimals, losses with four."""
    return 2 if max((score or 0.0 for score in scores), default=0.0) >= 10 else 4


def phase_rows(phase: Mapping[str, Any], tests: Mapping[str, float]) -> list[list[Any]]:
    """Phase, model, sparsity in percent, score and test score of what a phase made; None where one is not known."""
    name, soup = f"phase-{phase['number']}", phase["soup"]
    sparsity = 100 * sparsity_of(phase)
    tested = {c["name"]: tests[f"{name}/{c['name']}"] for c in phase["candidates"] if f"{name}/{c['name']}" in tests}
    best = best_candidate(phase)
    mean_tested = sum(tested.values()) / len(tested) if tested else None
    rows = [
        [name, f"{c['name']} {_settings(c)}", sparsity, c.get("score"), tested.get(c["name"])]
        for c in phase["candidates"]
    ]
    if len(rows) > 1:
        rows += [
            [name, "mean candidate", sparsity, phase["mean_score"], mean_tested],
            [
                name,
                f"best candidate ({best.removeprefix('candidate-')})",
                sparsity,
                phase["best_score"],
                tested.get(best),
            ],
        ]
        if soup:
            label = f"soup ({_ingredients(soup['ingredients'])})"
            rows.append([name, label, 100 * soup["sparsity"], soup["score"], tests.get(f"{name}/soup")])
    return rows


def sparsity_of(phase: Mapping[str, Any]) -> float:
    """Fraction removed in the end: pruning while training begins with less, and an average of different masks has less."""
    return max(phase["parent"]["sparsity"], phase["soup"]["sparsity"] if phase["soup"] else 0.0)


def best_candidate(phase: Mapping[str, Any]) -> str:
    """Name of a phase's best candidate on the evaluation set."""
    return next((c["name"] for c in phase["candidates"] if c.get("score") == phase["best_score"]), "")


def describe(overrides: Mapping[str, Any]) -> str:
    """Settings of a candidate: `seed=43 weight_decay=0.01`."""
    return " ".join(f"{key}={_short(value)}" for key, value in overrides.items())


def _short(value: Any) -> Any:
    """A part of a budget may have sixteen digits, which tell nobody more than four."""
    return f"{value:.4g}" if isinstance(value, float) and len(repr(value)) > 10 else value


def _settings(candidate: Mapping[str, Any]) -> str:
    settings = describe(candidate["overrides"])
    return f"{settings} (failed)" if candidate["failure"] else settings


def _ingredients(names: Sequence[str]) -> str:
    return f"candidate{'s' * (len(names) > 1)} " + ", ".join(name.removeprefix("candidate-") for name in names)


def _cell(value: Any, style: str) -> Any:
    """Text on one line, in Markdown without markup."""
    if not isinstance(value, str):
        return value
    value = " ".join(value.split())
    return escaped(value) if style in MARKDOWN else value
