"""What makes a recipe this recipe."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import datasets
from transformers import PreTrainedModel

from ..training.arguments import SparseSoupTrainingArguments
from ..training.trainer import SparseSoupTrainer


@dataclass
class Task:
    """Data, model and metric: all that makes a recipe this recipe. The rest is the trainer."""

    model: PreTrainedModel
    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset | None = None
    data_collator: Any = None
    processing_class: Any = None
    compute_metrics: Callable | None = None
    preprocess_logits_for_metrics: Callable | None = None
    footnote: str = ""
    """A line under the table: how the metric was computed."""
    card: dict[str, Any] = field(default_factory=dict)
    """For the model card: keyword arguments of `trainer.push_to_hub`."""
    perplexity: bool = False
    """Whether the metric is a loss per token that the table shows as exp(loss)."""


def make_trainer(task: Task, args: SparseSoupTrainingArguments) -> SparseSoupTrainer:
    """The trainer of a task."""
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
