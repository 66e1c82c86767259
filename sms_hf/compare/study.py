"""What a comparison is asked for: a file of settings, and what the command line made of it."""

import argparse
import dataclasses
import importlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from ..tasks.settings import RecipeError
from ..training.arguments import SparseSoupTrainingArguments
from ..training.plan.methods import METHODS
from .tables import Grid

AXES = ("models", "methods", "sparsities", "num_candidates", "seeds")
KEYS = ("recipe", "output_dir", "settings", "companions", "keep_weights", *AXES)
# What the comparison sets itself; each is an axis, or would make cells depend on each other.
OWN = ("target_sparsity", "num_candidates", "seed", "output_dir", "dense_dir", "resume", "keep_candidates")


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

    def is_done(self, cell: Cell) -> bool:
        return (self.folder(cell) / "result.json").is_file()

    def error(self, cell: Cell) -> str | None:
        """The last line of a failure, if there is one and it was not repaired."""
        path = self.folder(cell) / "error.txt"
        if self.is_done(cell) or not path.is_file():
            return None
        return path.read_text(encoding="utf-8").strip().splitlines()[-1]

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


def read_study(argv: Sequence[str], description: str | None = None) -> Study:
    """
    The study that the command line asks for.

    `description`: what `--help` says at its top.

    Raises:
        RecipeError: For unknown keys, settings or labels.
    """
    options, rest = _command_line(argv, description)
    path = Path(options.file)
    if not path.is_file():
        raise RecipeError(f"Expected a YAML file that describes a comparison at {path}, found none.")
    values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    _expect(not set(values) - set(KEYS), f"{path} must hold {', '.join(KEYS)}, got {sorted(set(values) - set(KEYS))}.")
    missing = [key for key in ("recipe", *AXES) if not values.get(key)]
    _expect(not missing, f"{path} must hold {', '.join(missing)} too. Example: recipes/compare_digits.yaml.")
    # The recipe lies beside the script that was started, or beside the file.
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
    union |= {axis: tuple(sorted(union[axis])) for axis in ("sparsities", "num_candidates")}
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


def _command_line(argv: Sequence[str], description: str | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        "compare.py", description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
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
        _expect(
            "smaller_first" not in values,
            f"{path}, {group}: expected no smaller_first: a cell is one run. Make the model smaller first, and compare from it.",
        )
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
