"""The folder of a run -> what its page shows. Nothing in the folder is changed: the run may go on meanwhile."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import UndefinedError

from ..files.folder import LINEAGE, CheckpointError
from ..files.forms import run_sizes
from ..files.records import DamagedError, read_record
from ..report.facts import Run
from ..report.loading import load_lines
from ..report.schema import make_report, read_lineage, read_report
from ..training.deciding import selection_metric
from ..training.run_directory import PhaseFolder, RunDirectory


def read_run(folder: str | Path) -> Run:
    """
    A run, finished or not.

    Args:
        folder (`str` or `Path`): The `output_dir` of a run.

    Raises:
        CheckpointError: If it is no run, or damaged, or of another version.
    """
    directory = RunDirectory(folder)
    name = directory.root.absolute().name
    if not directory.root.is_dir():
        raise CheckpointError(f"Expected the folder of a run, found no folder {folder}.")
    if directory.report.exists():
        report, sizes = read_report(directory.root), run_sizes(directory.root)
        lineage = read_lineage(directory.root) if (directory.root / LINEAGE).exists() else None
        given = name if os.path.isabs(folder) else str(folder)
        with whole_fields(folder):
            return Run(name, report, lineage, sizes, load_lines(given, report["settings"]["model"]["class"], sizes))
    if not directory.run_record.is_file():
        raise CheckpointError(
            f"Expected the folder of a run, with report.json or {directory.run_record.relative_to(directory.root)}, found "
            f"neither in {folder}. Name the output_dir of a run."
        )
    with whole_fields(folder):
        report = _report_so_far(directory)
        return Run(name, report, unfinished=_progress(directory, report))


@contextmanager
def whole_fields(where: str | Path) -> Iterator[None]:
    """Raise [`CheckpointError`] where a folder does not hold what a run writes: it is damaged, or somebody changed it."""
    try:
        yield
    except DamagedError as error:
        raise CheckpointError(f"The run in {where} is damaged: {error}. Resume it, or take a whole copy.") from error
    except (KeyError, IndexError, TypeError, AttributeError, UndefinedError) as error:
        raise CheckpointError(
            f"A report in {where} does not hold what a run writes ({type(error).__name__}: {error}). Take it as the run left it."
        ) from error


def _report_so_far(directory: RunDirectory) -> Mapping[str, Any]:
    settings = read_record(directory.run_record)
    asked = settings["arguments"]
    metric, greater = selection_metric(asked.get("metric_for_best_model"), asked.get("greater_is_better"))
    dense = read_record(directory.dense_record) if directory.dense_record.is_file() else {}
    best = max if greater else min
    phases = [_phase_so_far(directory.phase(plan["number"]), plan, best) for plan in settings["plan"]]
    return make_report(metric, settings, dense, [phase for phase in phases if phase is not None])


def _phase_so_far(folder: PhaseFolder, plan: Mapping[str, Any], best: Any) -> dict[str, Any] | None:
    """A phase, with None for what is not known yet; None before it has begun."""
    if folder.record.is_file():
        return read_record(folder.record)
    if not folder.parent_record.is_file():
        return None
    candidates = list(_candidates_so_far(folder, plan["candidates"]))
    scores = [c["score"] for c in candidates if c.get("score") is not None]
    return {
        "number": plan["number"],
        "parent": read_record(folder.parent_record),
        "candidates": candidates,
        "mean_score": sum(scores) / len(scores) if scores else None,
        "best_score": best(scores) if scores else None,
        "soup": None,
        "diagnostics": read_record(folder.diagnostics) if folder.diagnostics.is_file() else {},
        "seconds": None,
    }


def _candidates_so_far(folder: PhaseFolder, planned: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for candidate in planned:
        path = folder.candidate_record(candidate["name"])
        if path.is_file():
            record = read_record(path)
            yield {key: value for key, value in record.items() if key != "resampled"}
            continue
        log = _log(folder.root / f"{candidate['name']}.log")
        steps = max((entry["step"] for entry in log), default=0)
        end = max((entry.get("max_steps", 0) for entry in log), default=0)
        begun = "in training" if folder.candidate(candidate["name"]).is_dir() else "not done yet"
        where = f"in training, step {steps:,}{f' of {end:,}' if end else ''}" if log else begun
        yield {
            **candidate,
            "steps": steps,
            "epochs": 0.0,
            "total_flos": 0.0,
            "train_loss": None,
            "log": log,
            "failure": None,
            "seconds": 0.0,
            "going_on": where,
        }


def _log(path: Path) -> list[dict[str, Any]]:
    """What Trainer logged so far, a JSON object a line; the last line may be half written."""
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            entries.append(entry)
    return entries


def _progress(directory: RunDirectory, report: Mapping[str, Any]) -> str:
    """How far the run is, and when it last wrote something."""
    phases, plan = report["phases"], report["settings"]["plan"]
    if not phases:
        text = "The dense model has been scored" if report["dense"] else "It has begun"
        text += ", no phase has begun."
    elif phases[-1]["seconds"] is not None:
        text = f"Phase {len(phases)} of {len(plan)} is done."
    else:
        done = [c for c in phases[-1]["candidates"] if "going_on" not in c]
        text = (
            f"Phase {len(phases)} of {len(plan)}: {len(done)} of {len(phases[-1]['candidates'])} candidates are done."
        )
        training = [
            f"{c['name']} {c['going_on']}" for c in phases[-1]["candidates"] if c.get("log") and "going_on" in c
        ]
        text += f" {'; '.join(training[:8])}." if training else ""
    files = [*directory.run_record.parent.glob("*.json"), *directory.run_record.parent.glob("phase-*/*.[jl]*")]
    last = max((path.stat().st_mtime for path in files if path.is_file()), default=0.0)
    return f"{text} Last written {datetime.fromtimestamp(last, timezone.utc):%Y-%m-%d %H:%M:%S} UTC."
