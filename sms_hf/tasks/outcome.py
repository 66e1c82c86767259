"""What came out of a run, as a table with test scores."""

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..report.comparison import describe_comparison
from ..report.table import format_report
from ..training.trainer import SparseSoupTrainer
from .task import Task


def show_outcome(task: Task, trainer: SparseSoupTrainer, dense: nn.Module) -> None:
    """
    Score what a run left on the test set, if there is one, and print the table.

    Args:
        task ([`Task`]), trainer ([`SparseSoupTrainer`]): After `train()`, on every process.
        dense (`nn.Module`): What the run started from.
    """
    scores = None if task.test is None else trainer.evaluate_run(task.test, dense=dense)
    if not trainer.args.processes.is_main:
        return
    assert trainer.report is not None
    report, footnote = trainer.report, task.footnote
    if task.perplexity:
        report, scores = as_perplexity(report, scores)
        footnote = f"Perplexity: exp(loss per token). {footnote}"
    print(f"\n{format_report(report, scores)}")
    # In units of the metric that decides: the interval of a perplexity would be another one.
    told = [describe_comparison(c, trainer.report["metric"]) for c in (trainer.comparisons if scores else ())]
    if told:
        print("\nOn the test set, " + "\nand ".join(told) + ".")
    tested = f", tested on {len(task.test):,}" if task.test is not None else ""
    print(f"\n{footnote}chosen on {len(task.validation):,} validation rows{tested}.")


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
