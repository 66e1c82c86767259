"""What makes soups: recipes by their names, comparisons, and what a run will cost."""

from dataclasses import asdict
from itertools import takewhile
from pathlib import Path
from textwrap import fill
from typing import Annotated, Any, NoReturn

import typer

from .. import launching
from ..choices import nearest_option
from .app import Json, Task, command, find_folder, quiet, show

# A script parses these options, some 150 of them, --help too.
PASSING_ON: dict[str, Any] = {"add_help_option": False, "context_settings": {"ignore_unknown_options": True}}


def _rest(metavar: str, what: str) -> Any:
    return typer.Argument(metavar=metavar, help=what, show_default=False)


@command("train wmt16_t5 --demo --num_processes 2", options_metavar="[--num_processes N]", **PASSING_ON)
def train(
    context: typer.Context,
    task: Task = "--help",
    options: Annotated[
        list[str] | None, _rest("OPTIONS", "A YAML file with settings, and options of the recipe.")
    ] = None,
    num_processes: Annotated[
        int, typer.Option("--num_processes", metavar="N", help="On this machine; each takes a GPU of its own.")
    ] = 1,
) -> None:
    """Train a soup: prune a model, retrain copies, average them, by the recipe of a task."""
    if task in ("-h", "--help"):
        print(context.get_help())
        more = f"TASK is one of {', '.join(launching.tasks())}; sms-hf train TASK --help tells its options."
        print(f"\n{fill(more, 79)}")
        return
    raise typer.Exit(launching.run_script(launching.recipe(task), options or [], num_processes))


@command("greedy wmt16_t5 run-1 run-2 run-3 --output_dir soup", **PASSING_ON)
def greedy(
    context: typer.Context,
    task: Task = "--help",
    options: Annotated[
        list[str] | None,
        _rest("FOLDER", "Two or more model folders; then --output_dir NEW, and options of the recipe."),
    ] = None,
) -> None:
    """Average model folders that share one mask, as long as the score on a task's validation data gets no worse."""
    if task in ("-h", "--help"):
        print(context.get_help())
        print("\nThe options are those of sms-hf train TASK: data, metric, how to evaluate.")
        return
    rest = options or []
    folders = list(takewhile(lambda text: not text.startswith("-"), rest))
    if len(folders) < 2:
        raise ValueError(f"Expected two or more model folders after the task, got {folders}. See sms-hf greedy --help.")
    given = ["--model_name_or_path", folders[0], *rest[len(folders) :], "--soup_of", *folders]
    raise typer.Exit(launching.run_script(launching.recipe(task), given, 1))


@command("compare recipes/compare.yaml", **PASSING_ON)
def compare(options: Annotated[list[str] | None, _rest("FILE.yaml [options]", "What to compare.")] = None) -> None:
    """Compare methods side by side, as a YAML file asks: recipes/compare.py."""
    script = launching.recipe_folder() / f"{launching.COMPARISON}.py"
    raise typer.Exit(launching.run_script(script, options or [], 1))


@command("recipe wmt16_t5 mine")
def recipe(
    task: Task,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to put the script and its YAML files.")],
    as_json: Json = False,
) -> None:
    """Copy the script and the settings of a task, to start one's own from."""
    paths = launching.copy_recipe(task, folder)
    show({"files": paths} if as_json else "\n".join(map(str, paths)))


@command("plan my-model --num_examples 29000 --processes 2", **PASSING_ON)
def plan(options: Annotated[list[str] | None, _rest("MODEL [options]", "As for training.")] = None) -> None:
    """Tell what a run will cost before it starts: trainings, time, disk, memory."""
    import torch
    from transformers import HfArgumentParser

    from ..compact import load
    from ..training import SparseSoupTrainer, SparseSoupTrainingArguments
    from ..training.cost.advice import advice_line
    from ..training.cost.lines import forecast_lines
    from ..training.cost.measure import forecast_model
    from ..training.masked.checkpoints import no_progress_bars

    quiet()

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            stop = "" if message.endswith((".", "?")) else "."
            raise ValueError(f"{message}{stop} See sms-hf plan --help.")

    parser = Parser(SparseSoupTrainingArguments, prog="sms-hf plan", description=plan.__doc__, allow_abbrev=False)  # pyright: ignore
    parser.add_argument("model", help="A model folder, or the name of a repository of the Hub.")
    parser.add_argument(
        "--processes", type=int, help="That train candidates, for example one a GPU. Default: candidate_processes."
    )
    parser.add_argument("--num_examples", type=int, help="Rows of the training data.")
    parser.add_argument("--sequence_length", type=int, default=128, help="Tokens of a row, to measure a step with.")
    parser.add_argument("--json", action="store_true", help="For programs: the fields of sms_hf's Forecast.")
    parser.set_defaults(output_dir=".")
    try:
        training, own, unknown = parser.parse_args_into_dataclasses(
            options or [], return_remaining_strings=True, look_for_args_file=False
        )
    except ImportError as error:  # An optional package that an option needs.
        raise ValueError(error) from None
    if unknown:
        meant = nearest_option(unknown, parser._option_string_actions)
        parser.error(f"Expected one model and training arguments, got also {' '.join(unknown)}.{meant}")
    training.dataloader_pin_memory &= torch.cuda.is_available()  # As the recipes do; torch would warn.
    folder = find_folder(own.model)
    weights = {path.name for path in folder.glob("*.safetensors*")}
    others = sum(path.stat().st_size for path in folder.iterdir() if path.is_file() and path.name not in weights)
    with no_progress_bars():
        cost = forecast_model(
            load(folder), training, SparseSoupTrainer, own.processes, own.num_examples, own.sequence_length, others
        )
    lines = [line for line in (*forecast_lines(cost), advice_line(training, cost)) if line is not None]
    show(asdict(cost) if own.json else "\n".join(lines))
