"""
Compare methods as the papers do: models x methods x sparsities x numbers of candidates x seeds, one table in the end.

    accelerate launch --config_file recipes/accelerate/cpu_2.yaml recipes/compare.py recipes/compare_digits.yaml
    ... recipes/compare.py recipes/compare_digits.yaml --methods IMP "SMS (uniform)" --seeds 0     a part of it
    ... recipes/compare.py recipes/compare_digits.yaml --num_train_epochs 1 --output_dir runs/try  any setting of the recipe
    python recipes/compare.py recipes/compare_digits.yaml --report                                 tables of what is done

Every cell is an ordinary run of the recipe, on one process: whoever is free takes the next, the longest first. What is
done stays done: interrupt at any time, start again with the same command. Results: `comparison.md`, `.csv`, `.json` and
`.png` in output_dir, and for each cell a folder with `result.json`, `report.json` and `log.txt` (or `error.txt`).
"""

import argparse
import contextlib
import copy
import dataclasses
import gc
import importlib
import json
import math
import re
import shutil
import statistics
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import base
import datasets
import torch
import yaml
from base import RecipeError
from transformers import HfArgumentParser, set_seed

from sms_hf import METHODS, SparseSoupTrainingArguments
from sms_hf.report.comparison import (
    COMPANIONS,
    DENSE,
    ENSEMBLE,
    Grid,
    caption,
    draw_figure,
    format_csv,
    format_table,
    long_form,
    make_tables,
)
from sms_hf.training.fanout import Processes
from sms_hf.training.launch import join_processes, single_process
from sms_hf.training.records import deciding_arguments
from sms_hf.training.run_directory import RunDirectory, differences, read_json, write_json
from sms_hf.training.say import say

AXES = ("models", "methods", "sparsities", "num_candidates", "seeds")
KEYS = ("recipe", "output_dir", "settings", "companions", "keep_weights", *AXES)
# What the comparison sets itself; each is an axis, or would make cells depend on each other.
OWN = ("target_sparsity", "num_candidates", "seed", "output_dir", "dense_dir", "resume", "keep_candidates")
# What may differ between two runs of the same cell: folders, and switches of a run.
INCIDENTAL = ("dense_dir", "resume")


# ---- What is asked for -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One run; `num_candidates` is `None` for methods that do not depend on it."""

    model: str
    method: str
    sparsity: float
    num_candidates: int | None
    seed: int

    def __str__(self) -> str:
        number = [] if self.num_candidates is None else [f"m = {self.num_candidates}"]
        return ", ".join([self.model, self.method, f"{self.sparsity * 100:g} %", *number, f"seed {self.seed}"])


@dataclass(frozen=True)
class Study:
    """
    A file of settings and what the command line made of it.

    Attributes:
        asked (`Grid`): What to run now.
        whole (`Grid`): What the tables show: the file and what is asked for.
        settings (`dict`): For all cells; those of a model, the command line's and those of a row go before them.
    """

    name: str
    recipe: Any
    asked: Grid
    whole: Grid
    settings: dict[str, Any]
    models: dict[str, dict[str, Any]]
    methods: dict[str, dict[str, Any]]
    overrides: dict[str, Any]
    output_dir: Path
    keep_weights: bool = False
    report_only: bool = False

    def cells(self, grid: Grid) -> list[Cell]:
        cells = []
        for model, method, sparsity, seed in product(grid.models, grid.methods, grid.sparsities, grid.seeds):
            numbers = grid.num_candidates if self.averages(method) else (None,)
            cells += [Cell(model, method, sparsity, number, seed) for number in numbers]
        return cells

    def averages(self, method: str) -> bool:
        """Whether the number of candidates matters."""
        row = {**self.settings, **self.overrides, **self.methods[method]}
        return row.get("uses_candidates", METHODS[row.get("pruning_method", "sms")].averages)

    def folder(self, cell: Cell) -> Path:
        number = [] if cell.num_candidates is None else [f"m-{cell.num_candidates}"]
        parts = [_slug(cell.method), f"sparsity-{cell.sparsity:g}", *number, f"seed-{cell.seed}"]
        return self.output_dir.joinpath(_slug(cell.model), *parts)

    def dense(self, model: str, seed: int) -> Path:
        return self.output_dir / _slug(model) / f"dense-seed-{seed}"

    def values(self, model: str, seed: int) -> dict[str, Any]:
        """Settings of everything that is done with a model and a seed."""
        return {**self.settings, **self.models[model], **self.overrides, "seed": seed, "disable_tqdm": True}

    def arguments(self, cell: Cell) -> tuple[Any, SparseSoupTrainingArguments]:
        """The recipe's and the trainer's arguments; to be called as a single process."""
        row = {key: value for key, value in self.methods[cell.method].items() if key != "uses_candidates"}
        values = self.values(cell.model, cell.seed) | row
        values |= {"target_sparsity": cell.sparsity, "num_candidates": cell.num_candidates}
        values |= {"output_dir": str(self.folder(cell)), "keep_candidates": cell.method == self.whole.companions}
        return self.parse(values | {"dense_dir": str(self.dense(cell.model, cell.seed))})

    def parse(self, values: Mapping[str, Any]) -> tuple[Any, SparseSoupTrainingArguments]:
        parser = _settings_parser(self.recipe)
        parser.set_defaults(**values)
        recipe, args = parser.parse_args_into_dataclasses([])
        return recipe, args


def read_study(argv: Sequence[str]) -> Study:
    """
    The study that the command line asks for.

    Raises:
        RecipeError: For unknown keys, settings or labels.
    """
    options, rest = _command_line(argv)
    path = Path(options.file)
    if not path.is_file():
        raise RecipeError(f"Expected a YAML file that describes a comparison at {path}, found none.")
    values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    _expect(not set(values) - set(KEYS), f"{path} must hold {', '.join(KEYS)}, got {sorted(set(values) - set(KEYS))}.")
    missing = [key for key in ("recipe", *AXES) if not values.get(key)]
    _expect(not missing, f"{path} must hold {', '.join(missing)} too. Example: recipes/compare_digits.yaml.")
    # The recipe lies beside this script, or beside the file.
    sys.path.append(str(path.parent.resolve()))
    recipe = importlib.import_module(values["recipe"])
    models, methods = ({k: v or {} for k, v in values[axis].items()} for axis in ("models", "methods"))
    file = Grid(*(tuple(values[axis]) for axis in AXES), companions=values.get("companions"))
    _expect(
        file.companions is None or file.companions in methods,
        f"companions must be one of the methods ({', '.join(methods)}), got {file.companions!r}.",
    )
    given = {axis: tuple(getattr(options, axis)) for axis in AXES if getattr(options, axis)}
    for axis in ("models", "methods"):
        unknown = [label for label in given.get(axis, ()) if label not in values[axis]]
        _expect(not unknown, f"--{axis} must be labels of {path} ({', '.join(values[axis])}), got {unknown}.")
    union = {axis: tuple(dict.fromkeys((*getattr(file, axis), *given.get(axis, ())))) for axis in AXES}
    study = Study(
        name=path.stem,
        recipe=recipe,
        asked=dataclasses.replace(file, **given),
        whole=dataclasses.replace(file, **union),
        settings=values.get("settings") or {},
        models=models,
        methods=methods,
        overrides=_given_settings(_settings_parser(recipe), rest),
        output_dir=Path(options.output_dir or values.get("output_dir") or f"runs/{path.stem}"),
        keep_weights=options.keep_weights or bool(values.get("keep_weights")),
        report_only=options.report,
    )
    _check(study, path)
    return study


def _command_line(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        "compare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("file", help="YAML file, for example recipes/compare_digits.yaml.")
    parser.add_argument("--output_dir", help="Default: the file's, else runs/NAME.")
    for axis, kind in zip(AXES, (str, str, float, int, int), strict=True):
        parser.add_argument(f"--{axis}", nargs="+", type=kind, help=f"Only these {axis}. Default: the file's.")
    parser.add_argument("--report", action="store_true", help="Only write the tables of what is done.")
    parser.add_argument("--keep_weights", action="store_true", help="Keep the weights of finished cells.")
    parser.epilog = "Everything else: settings of the recipe and SparseSoupTrainingArguments, for all cells."
    return parser.parse_known_args(argv)


def _settings_parser(recipe: Any) -> HfArgumentParser:
    return HfArgumentParser((recipe.RecipeArguments, SparseSoupTrainingArguments))  # pyright: ignore


def _given_settings(parser: HfArgumentParser, argv: list[str]) -> dict[str, Any]:
    """The settings that stand on the command line, without any defaults."""
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    return vars(parser.parse_args(argv))


def _check(study: Study, path: Path) -> None:
    known = {action.dest for action in _settings_parser(study.recipe)._actions} - {"help"}
    groups = {"settings": study.settings, "the command line": study.overrides}
    groups |= {f"models: {label}": values for label, values in study.models.items()}
    groups |= {f"methods: {label}": values for label, values in study.methods.items()}
    for group, values in groups.items():
        unknown = sorted(set(values) - known - ({"uses_candidates"} if group.startswith("methods") else set()))
        _expect(
            not unknown, f"{path}, {group}: expected settings of the recipe {study.recipe.__name__}, got {unknown}."
        )
        own = sorted(set(values) & set(OWN))
        _expect(not own, f"{path}, {group}: {own} are set by the comparison. Use {', '.join(AXES)} and output_dir.")
        _expect("seed" not in (values.get("vary") or ()), f"{path}, {group}: expected no seed in `vary`. Use seeds.")
    for label, values in study.methods.items():
        method = {**study.settings, **values}.get("pruning_method", "sms")
        _expect(method in METHODS, f"{path}, methods: {label}: pruning_method must be one of {sorted(METHODS)}.")
    for labels in (study.models, study.methods):
        slugs = [_slug(label) for label in labels]
        _expect(len(set(slugs)) == len(slugs), f"{path}: labels must give different folders, got {slugs}.")
    for model in study.asked.models:
        # Candidates are trained with seed, seed + 1, ...: of one dense model, neighbouring seeds would share some.
        close = [b for a, b in pairwise(sorted(study.asked.seeds)) if b - a < max(study.asked.num_candidates)]
        shared = close and not study.values(model, 0).get("demo")
        _expect(not shared, f"{path}: seeds must lie at least {max(study.asked.num_candidates)} apart, got {close}.")


def _expect(condition: object, message: str) -> None:
    if not condition:
        raise RecipeError(message)


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", label.lower().replace("\u00d7", "x").replace("+", "-and-")).strip("-")


# ---- What is to be done ------------------------------------------------------------------------------------------------


def plan(study: Study) -> dict[str, Any]:
    """
    What is left, as JSON: `refused` (a reason, or `None`), `pending` (positions among the cells asked for, longest first),
    `work` (of each pending cell, in epochs) and `dense` (models and seeds that are to be prepared first).
    """
    cells = study.cells(study.asked)
    work, changed = {}, []
    for cell in dict.fromkeys([*cells, *study.cells(study.whole)]):
        begun, pending = (study.folder(cell) / "cell.json").is_file(), cell in cells and not _is_done(study, cell)
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


def _is_done(study: Study, cell: Cell) -> bool:
    return (study.folder(cell) / "result.json").is_file()


def _changed(study: Study, cell: Cell, settings: Mapping[str, Any]) -> list[str]:
    """Settings that differ from those of a cell that is done, or has pruned something already."""
    folder = study.folder(cell)
    if not _is_done(study, cell) and not RunDirectory(folder).is_started:
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
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with single_process(), _log(partial):
        recipe, args = study.parse(study.values(model, seed) | {"output_dir": str(partial), "dense_dir": str(partial)})
        base.prepare(args)
        set_seed(args.seed)
        study.recipe.load_task(recipe, args)
    partial.rename(folder)


def run_cell(study: Study, cell: Cell) -> dict[str, Any]:
    """Run a cell, or go on with it; its result."""
    folder, companions = study.folder(cell), cell.method == study.whole.companions
    with single_process(), _log(folder):
        recipe, args = study.arguments(cell)
        settings = deciding_settings(recipe, args)
        write_json(folder / "cell.json", settings)
        base.prepare(args)
        set_seed(args.seed)  # For what load_task may draw, whatever this process did before.
        task = study.recipe.load_task(recipe, args)
        dense = copy.deepcopy(task.model) if companions else None
        trainer, start = base.make_trainer(task, args), time.time()
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
            report, tests = base.as_perplexity(report, tests)
            ensemble = {split: math.exp(loss) for split, loss in ensemble.items()}
        result = dataclasses.asdict(cell) | make_result(report, tests or {}, ensemble, seconds)
        result |= {"greater_is_better": args.selection_metric[1], "footnote": task.footnote}
        result |= {"settings": settings, "versions": report["settings"]["versions"]}
        write_json(folder / "result.json", result)
    return result


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


def remove_big_files(folder: Path) -> None:
    """Remove the weights of a finished cell, so completely that it would be run anew without its result."""
    shutil.rmtree(folder / "_run", ignore_errors=True)
    for path in folder.glob("*"):
        if path.suffix in (".safetensors", ".bin", ".pt"):
            path.unlink()


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
        say(f"[{counted}/{len(cells)}] {_outcome(study, cells[number])}{left}")

    processes.fan_out(f"{scope}/cells", pending, work_on)


def attempt(study: Study, cell: Cell) -> None:
    """Run a cell; where it fails, say why in its folder and let the others go on."""
    folder = study.folder(cell)
    try:
        run_cell(study, cell)
        if not study.keep_weights:
            remove_big_files(folder)
    except (Exception, SystemExit):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _outcome(study: Study, cell: Cell) -> str:
    if not _is_done(study, cell):
        return f"{cell}: failed, {_error(study, cell)}"
    result = read_json(study.folder(cell) / "result.json")
    tested = "" if result["test"] is None else f", test {result['test']:.4g}"
    return f"{cell}: {result['metric']} {result['validation']:.4g}{tested}, {result['seconds']:.0f} s"


def _error(study: Study, cell: Cell) -> str | None:
    """The last line of a failure, if there is one and it was not repaired."""
    path = study.folder(cell) / "error.txt"
    if _is_done(study, cell) or not path.is_file():
        return None
    return path.read_text(encoding="utf-8").strip().splitlines()[-1]


def estimate(study: Study, cells: Sequence[Cell], work: Mapping[int, float], world_size: int) -> str:
    """Time left, from the seconds per epoch of each model so far."""
    left = [n for n in work if not _is_done(study, cells[n]) and not _error(study, cells[n])]
    if not left:
        return ""
    rates: dict[str, list[float]] = {}
    for n in work:
        if _is_done(study, cells[n]):
            seconds = read_json(study.folder(cells[n]) / "result.json")["seconds"]
            rates.setdefault(cells[n].model, []).append(seconds / max(work[n], 1e-9))
    if not rates:
        return ""
    overall = statistics.fmean(rate for values in rates.values() for rate in values)
    seconds = sum(work[n] * statistics.fmean(rates.get(cells[n].model, [overall])) for n in left) / world_size
    return f"; about {seconds / 60:.0f} min left" if seconds < 7200 else f"; about {seconds / 3600:.1f} h left"


# ---- The tables --------------------------------------------------------------------------------------------------------


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
    document = "\n\n".join([f"# {study.name}", *parts, *footnotes])
    (folder / "comparison.md").write_text(f"{document}\n", encoding="utf-8")
    (folder / "comparison.csv").write_text(format_csv(records), encoding="utf-8")
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
        if _is_done(study, cell):
            results.append(read_json(study.folder(cell) / "result.json") | dataclasses.asdict(cell))
        elif error := _error(study, cell):
            results.append(dataclasses.asdict(cell) | {"error": error})
    return results


def main(argv: Sequence[str]) -> None:
    processes = join_processes()
    study = read_study(argv)
    datasets.disable_progress_bars()
    try:
        if not study.report_only:
            run_study(study, processes)
    except BaseException as error:
        processes.fail(error)
        raise
    if processes.is_main:
        print(f"\n{write_report(study)}", flush=True)
        failed = [cell for cell in study.cells(study.asked) if _error(study, cell)]
        if failed:
            lines = "\n".join(f"  {cell}: {study.folder(cell) / 'error.txt'}" for cell in failed)
            raise RecipeError(f"{len(failed)} cells failed; the same command tries them again:\n{lines}")


if __name__ == "__main__":
    main(sys.argv[1:])
