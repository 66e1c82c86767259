"""A greedy soup of model folders that are there already, by the validation data of a task."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..files.writing import check_unused
from ..soup import greedy_soup
from ..sparsity.masks import Masks
from ..training.masked.checkpoints import no_progress_bars
from ..training.run.bench import Bench
from ..training.trainer import SparseSoupTrainer
from .task import Task


def greedy_soup_of(folders: Sequence[str], task: Task, trainer: SparseSoupTrainer) -> None:
    """
    Average the folders that a greedy choice takes into the trainer's `output_dir`, and print what was tried.

    Args:
        folders (`Sequence[str]`): Model folders with one architecture and one mask.
        task ([`Task`]): Its validation data choose; its test data, where there are some, score the result once.
        trainer ([`SparseSoupTrainer`]): Of this task, with the model of one of the folders.

    Raises:
        CheckpointError, MaskError: As in [`average_checkpoints`].
        ValueError: If there is something in `output_dir`.
    """
    bench, output = Bench(trainer), Path(str(trainer.args.output_dir))
    check_unused(output)

    def load(folder: Path) -> Any:
        with no_progress_bars():
            return type(task.model).from_pretrained(folder)

    def score(folder: Path) -> float:
        model = load(folder)
        # Of an average; the statistics of a model that somebody trained are its own.
        if str(folder) not in folders:
            bench.recalibrate_(model)
        return bench.evaluate(model)[bench.metric]

    trials = greedy_soup(folders, score, output, greater_is_better=bench.greater_is_better)
    if bench.recalibrates and len(trials[-1].ingredients) > 1:
        model = load(output)
        bench.recalibrate_(model)
        bench.save(model, Masks.of(output), output)
    rows = [[" + ".join(t.ingredients), t.score, "taken" if t.accepted else "left out"] for t in trials]
    print(tabulate(rows, headers=["average of", bench.metric, ""]))
    if task.test is not None:
        print(f"test {bench.metric} of the soup: {bench.evaluate(load(output), task.test)[bench.metric]:.4g}")
    print(f"The model: {output}")
