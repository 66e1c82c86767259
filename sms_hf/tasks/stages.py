"""Whole layers, neurons or heads go first, each in a run of its own; what is left of the model goes into the next run."""

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from transformers import PreTrainedModel

from ..choices import check_choice
from ..inference import shrink
from ..inference.depth import find_stacks
from ..inference.shrinking import try_shrinking
from ..training.arguments import SparseSoupTrainingArguments
from .models import keep_layers
from .outcome import show_outcome
from .settings import RecipeError
from .task import Task, make_trainer

LAYERS = "layers"
KINDS = (LAYERS, "neurons", "heads")


@dataclass(frozen=True)
class Stage:
    """
    A run that makes the model smaller.

    Attributes:
        kind (`str`): One of `KINDS`.
        fraction (`float`): Part of the layers, of the neurons or of the heads that goes, in `(0, 1)`.
    """

    kind: str
    fraction: float

    def __str__(self) -> str:
        return f"{self.fraction:.0%} of the {self.kind}"


def parse_stages(texts: Sequence[str]) -> list[Stage]:
    """
    Stages as they stand on the command line.

    >>> parse_stages(["layers:0.33", "neurons:0.5"])
    [Stage(kind='layers', fraction=0.33), Stage(kind='neurons', fraction=0.5)]
    """
    stages = []
    for text in texts:
        kind, _, fraction = text.partition(":")
        check_choice("smaller_first", kind, KINDS)
        try:
            stages.append(Stage(kind, float(fraction)))
        except ValueError:
            raise RecipeError(
                f"smaller_first must hold entries such as 'neurons:0.5' (half of the neurons), got {text!r}."
            ) from None
        if not 0 < stages[-1].fraction < 1:
            raise RecipeError(f"smaller_first must ask for fractions in (0, 1), got {text!r}.")
    return stages


def stage_args(args: SparseSoupTrainingArguments, number: int, stage: Stage) -> SparseSoupTrainingArguments:
    """The arguments of a stage's run: one phase in a folder of its own; everything else as in the run itself."""
    if args.phase_shares is not None:
        raise RecipeError("smaller_first goes with phases of equal length, got phase_shares. Leave one of the two out.")
    changes = {
        "output_dir": str(Path(str(args.output_dir)) / f"_smaller-{number}-{stage.kind}"),
        "num_phases": 1,
        "target_sparsity": 0.0 if stage.kind == LAYERS else stage.fraction,
        "pruning_pattern": "unstructured" if stage.kind == LAYERS else stage.kind,
        "pruning_scope": "uniform",
        "pruning_criterion": "magnitude",
        "sparse_format": "dense",
    }
    return dataclasses.replace(args, **changes)


def make_smaller(
    task: Task, args: SparseSoupTrainingArguments, stages: Sequence[Stage], resume: bool
) -> PreTrainedModel:
    """
    Train one soup after the other, each of a model that the one before has made smaller.

    Layers go before the training, by the loss of the first training rows; neurons and heads are pruned as whole units, and go
    when their soup is made. The result is a stock model.

    Args:
        task ([`Task`]): Its model is the first to be made smaller; it does not change.
        args ([`SparseSoupTrainingArguments`]): Of the run that is to come.
        stages (`Sequence[Stage]`): In order.
        resume (`bool`): Go on with the runs that have begun.

    Raises:
        ValueError: If a stock model of this architecture cannot lose such units; before anything is trained.
    """
    model, whole, names = task.model, task.model.num_parameters(), ", then ".join(map(str, stages))
    of_stages = [stage_args(args, number, stage) for number, stage in enumerate(stages, start=1)]
    _check(model, stages)
    if args.processes.is_main:
        print(
            f"smaller first: {names}, a run each; then what is left to a sparsity of {args.target_sparsity:g}",
            flush=True,
        )
    for number, (stage, its_args) in enumerate(zip(stages, of_stages, strict=True), start=1):
        if args.processes.is_main:
            print(f"\n=== {number} of {len(stages) + 1}: {stage}", flush=True)
        task = dataclasses.replace(task, model=copy.deepcopy(model))
        if stage.kind == LAYERS:
            task.model = _with_fewer_layers(task, its_args, stage)
        start, trainer = copy.deepcopy(task.model), make_trainer(task, its_args)
        trainer.train(resume_from_checkpoint=resume)
        show_outcome(task, trainer, start)
        trained = cast(PreTrainedModel, trainer.model)
        model = trained if stage.kind == LAYERS else shrink(trained)
    if args.processes.is_main:
        left = f"{model.num_parameters():,} of {whole:,} weights"
        print(f"\n=== {len(stages) + 1} of {len(stages) + 1}: what is left, {left}", flush=True)
    return model


def _with_fewer_layers(task: Task, args: SparseSoupTrainingArguments, stage: Stage) -> PreTrainedModel:
    trainer = make_trainer(task, args)
    rows = trainer._remove_unused_columns(task.train, description="training")
    keep = {
        name: max(1, len(s.layers) - round(stage.fraction * len(s.layers)))
        for name, s in find_stacks(task.model).items()
    }
    return keep_layers(task.model, keep, rows, trainer.data_collator, quiet=not args.processes.is_main)


def _check(model: PreTrainedModel, stages: Sequence[Stage]) -> None:
    """Raise for what a stock model cannot lose: better now than after hours of training."""
    for stage in stages:
        if stage.kind == LAYERS:
            find_stacks(model)
            continue
        plan = try_shrinking(model, stage.kind, stage.fraction)
        if not plan.kept:
            raise RecipeError(
                f"smaller_first asks for {stage}, which {type(model).__name__} cannot lose: "
                + "; ".join(map(str, plan.changes))
            )
