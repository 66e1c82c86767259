"""The whole recipe: settings, task, soup, test scores, table, upload."""

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import torch

from ..report.table import format_report
from ..training.arguments import SparseSoupTrainingArguments
from ..training.trainer import SparseSoupTrainer
from .settings import R, RecipeError, parse
from .task import Task

# ---- The job -----------------------------------------------------------------------------------------------------------


def as_perplexity(
    report: Mapping[str, Any], scores: Mapping[str, float] | None
) -> tuple[dict[str, Any], dict[str, float] | None]:
    """A report of losses and its test scores, as `format_report` takes them, with exp(loss) in place of each loss."""

    scored = ("score", "mean_score", "best_score")

    def convert(value: Any) -> Any:
        if isinstance(value, list):
            return [convert(item) for item in value]
        if isinstance(value, dict):
            return {k: exp(v) if k in scored and v is not None else convert(v) for k, v in value.items()}
        return value

    def exp(loss: float) -> float:
        return math.inf if loss > 700 else math.exp(loss)

    phases = convert(list(report["phases"]))
    for phase in phases:
        scores_of = [c["score"] for c in phase["candidates"] if not c.get("failure")]
        if phase.get("mean_score") is not None and scores_of:
            phase["mean_score"] = sum(scores_of) / len(scores_of)  # As the table does with test scores.
    dense = {**report["dense"], "perplexity": exp(report["dense"][report["metric"]])}
    converted = {**report, "metric": "perplexity", "dense": dense, "phases": phases}
    return converted, None if scores is None else {name: exp(loss) for name, loss in scores.items()}


def make_trainer(task: Task, args: SparseSoupTrainingArguments) -> SparseSoupTrainer:
    trainer = SparseSoupTrainer(
        model=task.model,
        args=args,
        train_dataset=task.train,
        eval_dataset=task.validation,
        processing_class=task.processing_class,
        data_collator=task.data_collator,
        compute_metrics=task.compute_metrics,
        preprocess_logits_for_metrics=task.preprocess_logits_for_metrics,
    )
    trainer.card = task.card
    return trainer


def prepare(args: SparseSoupTrainingArguments) -> None:
    """Settings that depend on the machine: to be called before the task is loaded."""
    args.dataloader_pin_memory &= torch.cuda.is_available()
    if not args.processes.is_main:
        datasets.disable_progress_bars()


def run(
    argv: list[str], script: str, recipe_class: type[R], load_task: Callable[[R, SparseSoupTrainingArguments], Task]
) -> None:
    """The whole recipe: settings, task, soup, test scores, table, upload. What the user can mend ends it in a sentence."""
    try:
        _run(argv, script, recipe_class, load_task)
    except (ValueError, OSError, RuntimeError) as error:
        if not _was_raised_here(error, Path(script).parent):
            raise
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
    push, args.push_to_hub = args.push_to_hub, False  # Once, when the test scores are there.
    task = load_task(recipe, args)
    dense = copy.deepcopy(task.model)
    trainer = make_trainer(task, args)
    if push:
        trainer.init_hf_repo()  # What may not be pushed should fail before hours of training.
    trainer.train(resume_from_checkpoint=recipe.resume)
    scores = None if task.test is None else trainer.evaluate_run(task.test, dense=dense)
    if args.processes.is_main:
        assert trainer.report is not None
        report, footnote = trainer.report, task.footnote
        if task.perplexity:
            report, scores = as_perplexity(report, scores)
            footnote = f"Perplexity: exp(loss per token). {footnote}"
        print(f"\n{format_report(report, scores)}")
        tested = f", tested on {len(task.test):,}" if task.test is not None else ""
        print(f"\n{footnote}chosen on {len(task.validation):,} validation rows{tested}.")
        how = "sms_hf.load" if args.sparse_format == "compact" else f"{type(task.model).__name__}.from_pretrained"
        print(f'The model: {how}("{args.output_dir}")')
        if push:
            commit = trainer.push_to_hub(**{"dataset_tags": recipe.hub_dataset, **task.card})
            print(f"Pushed: {commit.commit_url}")
