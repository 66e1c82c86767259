"""The whole recipe: settings, task, soup, test scores, table, upload."""

import copy
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import torch
import transformers

from ..files.forms import has_dense
from ..report.page import PAGE
from ..training.arguments import SparseSoupTrainingArguments
from ..training.processes.say import say
from ..training.processes.stopping import Interrupted, leave_on_signals
from .greedy import greedy_soup_of
from .outcome import show_outcome
from .settings import R, RecipeError, parse
from .stages import make_smaller, parse_stages
from .task import Task, make_trainer

SECOND_VOICE_SECONDS = 3.0
"""What one process of a machine cannot do, mostly none can. The first says it; the launcher ends the others meanwhile."""


def prepare(args: SparseSoupTrainingArguments) -> None:
    """Settings that depend on the machine: to be called before the task is loaded."""
    args.dataloader_pin_memory &= torch.cuda.is_available()
    if not args.processes.is_main or not sys.stderr.isatty():
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()


def run(
    argv: list[str], script: str, recipe_class: type[R], load_task: Callable[[R, SparseSoupTrainingArguments], Task]
) -> None:
    """The whole recipe: settings, task, soup, test scores, table, upload. What the user can mend ends it in a sentence."""
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        with leave_on_signals():
            try:
                _run(argv, script, recipe_class, load_task)
            except Interrupted as stopped:
                if is_first:
                    say(f"{stopped.signal}: stopped, nothing finished is lost. Go on with --resume.")
                raise
    except (RecipeError, ValueError, OSError, RuntimeError) as error:
        if not isinstance(error, RecipeError) and not _was_raised_here(error, Path(script).parent):
            raise
        if not is_first:
            time.sleep(SECOND_VOICE_SECONDS)
        raise RecipeError(str(error)) from None


def _was_raised_here(error: BaseException, recipes: Path) -> bool:
    """Whether the last to raise was a check of ours or of the recipe's, not a library in the middle of its work."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    homes = (Path(__file__).parents[1], recipes)
    return frame is not None and any(Path(frame.tb_frame.f_code.co_filename).is_relative_to(home) for home in homes)


def _run(
    argv: list[str], script: str, recipe_class: type[R], load_task: Callable[[R, SparseSoupTrainingArguments], Task]
) -> None:
    recipe, args = parse(argv, script, recipe_class)
    prepare(args)
    stages = parse_stages(recipe.smaller_first or [])
    push, args.push_to_hub = args.push_to_hub, False  # Once, when the test scores are there.
    task = load_task(recipe, args)
    dense = copy.deepcopy(task.model)
    trainer = make_trainer(task, args)
    if recipe.soup_of:
        return greedy_soup_of(recipe.soup_of, task, trainer)
    if push:
        trainer.init_hf_repo()  # What may not be pushed should fail before hours of training.
    if stages:
        task.model = make_smaller(task, args, stages, recipe.resume)
        dense, trainer = copy.deepcopy(task.model), make_trainer(task, args)
    trainer.train(resume_from_checkpoint=recipe.resume)
    show_outcome(task, trainer, dense)
    if args.processes.is_main:
        how = f"{type(task.model).__name__}.from_pretrained" if has_dense(Path(str(args.output_dir))) else "sms_hf.load"
        print(f'The model: {how}("{args.output_dir}")')
        if (page := Path(str(args.output_dir)) / PAGE).is_file():
            print(f"The page of the run: {page}")
        if push:
            commit = trainer.push_to_hub(**{"dataset_tags": recipe.hub_dataset, **task.card})
            print(f"Pushed: {commit.commit_url}")
