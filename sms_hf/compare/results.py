"""What is known of cells that are done, and the tables of them."""

import dataclasses
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files.records import read_json
from ..files.writing import write_json, write_text
from .figure import draw_figure
from .spread import format_spread, make_spread
from .study import Cell, Study
from .tables import COMPANIONS, DENSE, ENSEMBLE, caption, format_csv, format_table, long_form, make_tables


def make_result(
    report: Mapping[str, Any], tests: Mapping[str, float], ensemble: Mapping[str, float], seconds: float
) -> dict[str, Any]:
    """
    What a table needs of a run.

    Args:
        tests (`Mapping[str, float]`): From `evaluate_run`; empty without a test set.
        ensemble (`Mapping[str, float]`): Scores of the prediction ensemble by split; empty where companions are not asked
            for.
        seconds (`float`): Of this training; a run that was interrupted also counts what its candidates took before.
    """
    last, metric = report["phases"][-1], report["metric"]
    candidates = [c for phase in report["phases"] for c in phase["candidates"]]
    result = {
        "metric": metric,
        "validation": last["soup"]["score"],
        "test": tests.get(f"phase-{last['number']}/soup"),
        "actual_sparsity": last["soup"]["sparsity"],
        "ingredients": last["soup"]["ingredients"],
        "epochs": sum(c["epochs"] for c in candidates),
        "steps": sum(c["steps"] for c in candidates),
        "seconds": max(seconds, sum(c["seconds"] for c in candidates)),
        "test_scores": dict(tests),
        "spread": make_spread(report),
        "companions": {},
    }
    if ensemble:
        usable = [c for c in last["candidates"] if not c["failure"]]
        tested: dict[str, Any] = {c["name"]: tests.get(f"phase-{last['number']}/{c['name']}") for c in usable}
        best = next(c for c in usable if c["score"] == last["best_score"])
        mean_test = statistics.fmean(tested.values()) if tests else None
        scores = [
            {"validation": best["score"], "test": tested[best["name"]], "candidate": best["name"]},
            {"validation": last["mean_score"], "test": mean_test},
            dict(ensemble),
        ]
        result["companions"] = dict(zip(COMPANIONS, scores, strict=True))
        result["companions"][DENSE] = {"validation": report["dense"][metric], "test": tests.get("dense")}
    return result


def remove_big_files(folder: Path) -> None:
    """Remove the weights of a finished cell, so completely that it would be run anew without its result."""
    shutil.rmtree(folder / "_run", ignore_errors=True)
    for path in folder.glob("*"):
        if path.suffix in (".safetensors", ".bin", ".pt"):
            path.unlink()


def outcome_line(study: Study, cell: Cell) -> str:
    """What a cell that was tried came to."""
    if not study.is_done(cell):
        return f"{cell}: failed, {study.error(cell)}"
    result = read_json(study.folder(cell) / "result.json")
    tested = "" if result["test"] is None else f", test {result['test']:.4g}"
    return f"{cell}: {result['metric']} {result['validation']:.4g}{tested}, {result['seconds']:.0f} s"


def write_report(study: Study) -> str:
    """Write comparison.md, .csv, .json and .png of what is done; the tables for the terminal."""
    grid, results = study.whole, read_results(study)
    records = long_form(results, grid)
    tests, validations = make_tables(records, grid, "test"), make_tables(records, grid, "validation")
    if not validations:
        return f"Nothing is done yet in {study.output_dir}."
    folder, tables = study.output_dir, [*tests, *validations]
    footnotes = _footnotes(study, results)
    parts = [f"**{caption(table, len(grid.seeds))}**\n\n{format_table(table, 'github')}" for table in tables]
    spread = format_spread(results, "github")
    if spread:
        parts.append(
            f"**Candidates of the last phase, on validation, means over sparsities, numbers and seeds**\n\n{spread}"
        )
    document = "\n\n".join([f"# {study.name}", *parts, *footnotes])
    write_text(folder / "comparison.md", f"{document}\n")
    write_text(folder / "comparison.csv", format_csv(records))
    described = {"grid": dataclasses.asdict(grid), "tables": [dataclasses.asdict(table) for table in tables]}
    write_json(folder / "comparison.json", described | {"results": results})
    try:
        draw_figure(tests or validations).savefig(folder / "comparison.png", dpi=150)
    except ImportError as error:
        footnotes.append(str(error))
    shown = [f"{caption(table, len(grid.seeds))}\n{format_table(table)}" for table in tests or validations]
    footnotes = ["*: best single model of the column.", *footnotes, f"Written to {folder}/comparison.*"]
    return "\n\n".join([*shown, "\n".join(footnotes)])


def _footnotes(study: Study, results: Sequence[Mapping[str, Any]]) -> list[str]:
    done, companions = [r for r in results if "error" not in r], study.whole.companions
    failed = f", {len(results) - len(done)} failed" if len(done) < len(results) else ""
    footnotes = [f"{len(done)} of {len(study.cells(study.whole))} cells done{failed}."]
    footnotes += dict.fromkeys(r["footnote"].rstrip("; ") + "." for r in done if r["footnote"])
    if companions:
        footnotes.append(
            f"Candidates and ensemble: last phase of {companions}; the best candidate is chosen on validation. The dense model "
            f"and the {ENSEMBLE} (m models at inference) are references, as is a model that is denser than the goal."
        )
    footnotes.append(
        "Epochs and time: retraining of all candidates and phases together, mean over seeds and sparsities."
    )
    versions = dict.fromkeys(", ".join(f"{name} {version}" for name, version in r["versions"].items()) for r in done)
    return [*footnotes, *(f"Made with {version}." for version in versions)]


def read_results(study: Study) -> list[dict[str, Any]]:
    """What is done and what failed, in the order of the table."""
    results = []
    for cell in study.cells(study.whole):
        if study.is_done(cell):
            results.append(read_json(study.folder(cell) / "result.json") | dataclasses.asdict(cell))
        elif error := study.error(cell):
            results.append(dataclasses.asdict(cell) | {"error": error})
    return results
