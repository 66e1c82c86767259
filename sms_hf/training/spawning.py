"""Fresh trainers of the user's own class: one a candidate, one a score."""

import copy
import dataclasses
import inspect
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from .arguments import SparseSoupArguments
from .candidates import Candidate, Phase

T = TypeVar("T")


def spawn(trainer: T, model: nn.Module, args: SparseSoupArguments, keep_callbacks: bool = False) -> T:
    """
    Build a trainer as the user built this one, for another model and other arguments.

    One optimizer, one callback or one random generator that served two candidates would join them. (A second `train()`
    of one Trainer keeps the old optimizer, with its moments, learning rate and weight decay.)
    """
    arguments = constructor_arguments(trainer)
    arguments.pop("model_init", None)
    if not keep_callbacks:
        arguments.pop("callbacks", None)
    # Callbacks count their patience, collators hold generators; the model and tokenizer that they point to are shared.
    shared = {id(part): part for part in (trainer.model, trainer.processing_class)}  # pyright: ignore
    for name in {"callbacks", "data_collator"}.intersection(arguments):
        arguments[name] = copy.deepcopy(arguments[name], dict(shared))
    return type(trainer)(**arguments | {"model": model, "args": args})


def constructor_arguments(trainer: Any) -> dict[str, Any]:
    """What the user built a trainer with, all by name. `trainer._call`: the positional and the named arguments."""
    positional, named = trainer._call
    for cls in type(trainer).__mro__:
        if "__init__" in vars(cls):
            parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
            if all(parameter.kind is not parameter.VAR_POSITIONAL for parameter in parameters):
                return dict(zip([parameter.name for parameter in parameters], positional, strict=False)) | named
    return dict(named)


def candidate_args(args: SparseSoupArguments, phase: Phase, candidate: Candidate, folder: Path) -> SparseSoupArguments:
    """The user's arguments with the candidate's own values, for a folder and a logged run of its own."""
    name = f"phase-{phase.number}-{candidate.name}"
    return dataclasses.replace(
        args,
        **candidate.overrides,
        output_dir=str(folder),
        run_name=f"{args.run_name}-{name}" if args.run_name else name,
        push_to_hub=False,
        num_candidates=1,
        min_candidates=1,
        vary=None,
        # The phases are the run's; a candidate is one training, of any length.
        pruning_method="pruned",
    )


def silent_args(args: SparseSoupArguments) -> SparseSoupArguments:
    """The user's arguments for a trainer that only prunes or scores."""
    return dataclasses.replace(args, push_to_hub=False, report_to="none", disable_tqdm=True)
