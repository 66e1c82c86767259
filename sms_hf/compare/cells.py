"""Cells: what is left to do, and the doing of it."""

import contextlib
import copy
import dataclasses
import gc
import json
import math
import statistics
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from ..files.records import read_json
from ..files.writing import new_folder, write_json
from ..report.text import format_seconds
from ..tasks.job import prepare
from ..tasks.outcome import as_perplexity
from ..tasks.settings import RecipeError
from ..tasks.task import make_trainer
from ..training.arguments import SparseSoupTrainingArguments
from ..training.deciding import deciding_arguments
from ..training.processes.launch import single_process
from ..training.processes.say import say
from ..training.processes.stopping import Stopped
from ..training.processes.store import Processes
from ..training.run_directory import RunDirectory, differences
from .results import make_result, outcome_line, remove_big_files
from .study import Cell, Study

# What may differ between two runs of the same cell: folders, and switches of a run.
INCIDENTAL = ("dense_dir", "resume")


# ---- What is to be done ------------------------------------------------------------------------------------------------


def plan(study: Study) -> dict[str, Any]:
    """
    What is left, as JSON: `refused` (a reason, or `None`), `pending` (positions among the cells asked for, longest first),
    `work` (of each pending cell, in epochs) and `dense` (models and seeds that are to be prepared first).
    """
    cells = study.cells(study.asked)
    work, changed = {}, []
    for cell in dict.fromkeys([*cells, *study.cells(study.whole)]):
        begun, pending = (study.folder(cell) / "cell.json").is_file(), cell in cells and not study.is_done(cell)
        if not begun and not pending:
            continue
        try:
            recipe, args = study.arguments(cell)
        except ValueError as error:
            return {"refused": f"{cell}: {error}"}
        if begun:
            changed += _changed(study, cell, deciding_settings(recipe, args))
        if pending:
            work[cells.index(cell)] = _work(args)
    if changed:
        many = f" (and {len(changed) - 3} more)" if len(changed) > 3 else ""
        return {
            "refused": f"Expected the settings that the cells in {study.output_dir} were run with, got others: "
            f"{'; '.join(changed[:3])}{many}. Go back to them, choose another --output_dir, or remove those folders."
        }
    for number in work:
        (study.folder(cells[number]) / "error.txt").unlink(missing_ok=True)
    pending = sorted(work, key=lambda number: -work[number])
    demos = dict.fromkeys((cells[n].model, cells[n].seed) for n in sorted(pending))
    dense = [key for key in demos if study.values(*key).get("demo") and not study.dense(*key).is_dir()]
    return {"refused": None, "pending": pending, "work": [work[number] for number in pending], "dense": dense}


def _changed(study: Study, cell: Cell, settings: Mapping[str, Any]) -> list[str]:
    """Settings that differ from those of a cell that is done, or has pruned something already."""
    folder = study.folder(cell)
    if not study.is_done(cell) and not RunDirectory(folder).is_started:
        return []
    found = differences(read_json(folder / "cell.json"), json.loads(json.dumps(settings)))
    return [f"{cell}: {', '.join(found)}"] if found else []


def deciding_settings(recipe: Any, args: SparseSoupTrainingArguments) -> dict[str, Any]:
    """The settings that a result depends on."""
    chosen = {key: value for key, value in vars(recipe).items() if key not in INCIDENTAL}
    return chosen | deciding_arguments(args)


def _work(args: SparseSoupTrainingArguments) -> float:
    """Epochs (or steps) of retraining, and a little for the scoring of each candidate."""
    unit = "max_steps" if args.max_steps > 0 else "num_train_epochs"
    own = getattr(args, unit)
    return sum(c.overrides.get(unit, own) + 0.1 * own for phase in args.make_plan() for c in phase.candidates)


# ---- One cell ----------------------------------------------------------------------------------------------------------


def prepare_dense(study: Study, model: str, seed: int) -> None:
    """Train the demo's dense model of a model and a seed; its folder appears when it is whole."""
    folder = study.dense(model, seed)
    with new_folder(folder) as partial, single_process(), _log(partial):
        recipe, args = study.parse(study.values(model, seed) | {"output_dir": str(partial), "dense_dir": str(partial)})
        prepare(args)
        set_seed(args.seed)
        study.recipe.load_task(recipe, args)


def run_cell(study: Study, cell: Cell) -> dict[str, Any]:
    """Run a cell, or go on with it; its result."""
    folder, companions = study.folder(cell), cell.method == study.whole.companions
    with single_process(), _log(folder):
        recipe, args = study.arguments(cell)
        settings = deciding_settings(recipe, args)
        write_json(folder / "cell.json", settings)
        prepare(args)
        set_seed(args.seed)  # For what load_task may draw, whatever this process did before.
        task = study.recipe.load_task(recipe, args)
        dense = copy.deepcopy(task.model) if companions else None
        trainer, start = make_trainer(task, args), time.time()
        trainer.train(resume_from_checkpoint=True)
        seconds, report = time.time() - start, trainer.report
        assert report is not None
        tests = None if task.test is None else trainer.evaluate_run(task.test, dense=dense)
        ensemble: dict[str, float] = {}
        if companions:
            metric = report["metric"]
            ensemble = {"validation": trainer.evaluate_ensemble()[metric]}
            ensemble |= {} if task.test is None else {"test": trainer.evaluate_ensemble(task.test)[metric]}
        if task.perplexity:
            report, tests = as_perplexity(report, tests)
            ensemble = {split: math.exp(loss) for split, loss in ensemble.items()}
        result = dataclasses.asdict(cell) | make_result(report, tests or {}, ensemble, seconds)
        result |= {"greater_is_better": args.selection_metric[1], "footnote": task.footnote}
        result |= {"settings": settings, "versions": report["settings"]["versions"]}
        write_json(folder / "result.json", result)
    return result


@contextlib.contextmanager
def _log(folder: Path) -> Iterator[None]:
    """What a run prints goes to a file: several run at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        open(folder / "log.txt", "a", encoding="utf-8", buffering=1) as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        yield


# ---- All cells ---------------------------------------------------------------------------------------------------------


def run_study(study: Study, processes: Processes) -> None:
    """Run what is left of the cells asked for."""

    def make_plan() -> dict[str, Any]:
        with single_process():
            return plan(study)

    # A name that all processes give to this call, and to no other.
    scope = f"compare-{processes.take(f'compare-{processes.rank}')}"
    todo = processes.on_main(f"{scope}/plan", make_plan)
    if todo["refused"]:
        # One process says so; the others have nothing to add.
        raise RecipeError(todo["refused"]) if processes.is_main else SystemExit(0)
    cells, pending = study.cells(study.asked), todo["pending"]
    work = dict(zip(pending, todo["work"], strict=True))
    done = len(cells) - len(pending)
    if processes.is_main:
        print(f"{len(cells)} cells, {done} of them done; {processes.world_size} process(es)", flush=True)
    processes.fan_out(f"{scope}/dense", todo["dense"], lambda key: prepare_dense(study, *key))

    # Every training ends with a collection, which need not look at all that was imported: a fifth of a small cell's time.
    gc.freeze()

    def work_on(number: int) -> None:
        attempt(study, cells[number])
        counted = done + processes.take(f"{scope}/finished") + 1
        left = estimate(study, cells, work, processes.world_size)
        say(f"[{counted}/{len(cells)}] {outcome_line(study, cells[number])}{left}")

    processes.fan_out(f"{scope}/cells", pending, work_on)


def attempt(study: Study, cell: Cell) -> None:
    """Run a cell; where it fails, say why in its folder and let the others go on."""
    folder = study.folder(cell)
    try:
        run_cell(study, cell)
        if not study.keep_weights:
            remove_big_files(folder)
    except Stopped:  # A wish to stop is no failure of the cell, and holds for those that follow.
        raise
    except (Exception, SystemExit):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def estimate(study: Study, cells: Sequence[Cell], work: Mapping[int, float], world_size: int) -> str:
    """Time left, from the seconds per epoch of each model so far."""
    left = [n for n in work if not study.is_done(cells[n]) and not study.error(cells[n])]
    if not left:
        return ""
    rates: dict[str, list[float]] = {}
    for n in work:
        if study.is_done(cells[n]):
            seconds = read_json(study.folder(cells[n]) / "result.json")["seconds"]
            rates.setdefault(cells[n].model, []).append(seconds / max(work[n], 1e-9))
    if not rates:
        return ""
    overall = statistics.fmean(rate for values in rates.values() for rate in values)
    seconds = sum(work[n] * statistics.fmean(rates.get(cells[n].model, [overall])) for n in left) / world_size
    return f"; {format_seconds(seconds)} left"
