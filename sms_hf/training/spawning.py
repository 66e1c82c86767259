"""Fresh trainers of the user's own class: one a candidate, one a score."""

import copy
import inspect
from abc import ABCMeta
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any, TypeVar

from torch import nn
from transformers import PrinterCallback, Trainer
from transformers import trainer as trainer_module

from .arguments import SparseSoupArguments, one_training
from .plan.candidates import Candidate, Phase

T = TypeVar("T")


MOVED_BY_TRAINER = (
    "accelerator",
    "args",
    "callback_handler",
    "control",
    "current_flos",
    "current_gradient_accumulation_steps",
    "gather_function",
    "is_in_train",
    "lr_scheduler",
    "model",
    "model_preparation_time",
    "model_wrapped",
    "optimizer",
    "report",
    "state",
)
"""Attributes that training, evaluation and prediction set themselves; all other public ones are the user's to set."""


@dataclass(frozen=True)
class Construction:
    """
    How a trainer was built.

    Attributes:
        call (`tuple`): Positional and named arguments of the outermost constructor.
        attributes (`dict[str, Any]`): What the constructor left in the trainer.
        callbacks (`list`): Its callbacks, in order.
    """

    call: tuple[tuple[Any, ...], dict[str, Any]]
    attributes: dict[str, Any]
    callbacks: list[Any]


class Rebuildable(ABCMeta):
    """
    Of trainers that remember how they were built, because each candidate is retrained by a fresh one.

    Only here, around the outermost constructor, the whole call is known, whatever a subclass adds to the signature, and the
    moment after which all that is set comes from the user. An `ABCMeta`, because some trainers are abstract classes.
    """

    def __call__(cls, *args, **kwargs):
        trainer = super().__call__(*args, **kwargs)
        built = Construction((args, kwargs), dict(vars(trainer)), list(trainer.callback_handler.callbacks))
        vars(trainer)["_construction"] = built
        check_copyable(trainer)
        return trainer


def spawn(trainer: T, model: nn.Module, args: SparseSoupArguments, keep_callbacks: bool = False) -> T:
    """
    Build a trainer as the user built this one, for another model and other arguments; what was set since goes along.

    One optimizer, one callback or one random generator that served two candidates would join them. (A second `train()`
    of one Trainer keeps the old optimizer, with its moments, learning rate and weight decay.)
    """
    arguments = constructor_arguments(trainer)
    arguments.pop("model_init", None)
    arguments.pop("peft_config", None)  # Adapters are added where a candidate starts, from its own seed.
    if not keep_callbacks:
        arguments.pop("callbacks", None)
    for name in {"callbacks", "data_collator"}.intersection(arguments):
        arguments[name] = _copy(trainer, arguments[name])
    with _spawning():
        fresh = type(trainer)(**arguments | {"model": model, "args": args})
    _carry_over(trainer, fresh, keep_callbacks)
    return fresh


def without_progress(fresh: T) -> T:
    """Remove what Trainer adds to print its dictionaries and to draw its bars."""
    any_trainer: Any = fresh
    printing = any_trainer.args.disable_tqdm
    any_trainer.remove_callback(PrinterCallback if printing else trainer_module.DEFAULT_PROGRESS_CALLBACK)
    return fresh


_depth = 0


@contextmanager
def _spawning() -> Iterator[None]:
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


def is_spawning() -> bool:
    """Whether the trainer that is being built is one of ours, for a candidate or a score."""
    return _depth > 0


def _carry_over(trainer: Any, fresh: Any, keep_callbacks: bool) -> None:
    """Give a fresh trainer what the user set on the first one after it was built."""
    for name, value in set_by_user(trainer).items():
        if getattr(value, "__self__", None) is trainer:
            value = MethodType(value.__func__, fresh)
        setattr(fresh, name, _copy(trainer, value) if name == "data_collator" else value)
    before, now = trainer._construction.callbacks, trainer.callback_handler.callbacks
    for callback in before:
        if not any(callback is other for other in now):
            fresh.remove_callback(type(callback))
    for callback in added_callbacks(trainer) if keep_callbacks else ():
        fresh.add_callback(_copy(trainer, callback))


def set_by_user(trainer: Any) -> dict[str, Any]:
    """Attributes of a trainer that somebody set since it was built: data, functions, numbers of their own."""
    before = trainer._construction.attributes
    return {
        name: value
        for name, value in vars(trainer).items()
        if not name.startswith("_")
        and name not in MOVED_BY_TRAINER
        and (name not in before or before[name] is not value)
    }


def added_callbacks(trainer: Any) -> list[Any]:
    """Callbacks that `add_callback` brought since the trainer was built."""
    before = trainer._construction.callbacks
    return [c for c in trainer.callback_handler.callbacks if not any(c is other for other in before)]


def overridden_by(trainer_class: type, method: str) -> type | None:
    """The first class that has a method of its own before Trainer's, but for those of ours."""
    for cls in trainer_class.__mro__:
        if cls is Trainer:
            return None
        if method in vars(cls) and not cls.__module__.startswith("sms_hf."):
            return cls
    return None


def check_copyable(trainer: Any) -> None:
    """
    Raise for what no candidate could have a copy of.

    Raises:
        ValueError: For a callback or a collator that holds a lock, an open file, a connection.
    """
    arguments = constructor_arguments(trainer)
    callbacks = [*(arguments.get("callbacks") or []), *added_callbacks(trainer)]
    for what, part in [*(("callback", c) for c in callbacks), ("data_collator", arguments.get("data_collator"))]:
        try:
            _copy(trainer, part)
        except Exception as error:
            name = f"{what} {type(part).__name__}"
            raise ValueError(
                f"Expected a {name} that can be copied, because every candidate gets a copy of its own, got "
                f"{type(error).__name__}: {error}. Open files, locks and connections in on_train_begin, or share them by a "
                "__deepcopy__ that returns self."
            ) from error


@contextmanager
def own_collator(trainer: Any) -> Iterator[None]:
    """Lend a trainer a copy of its collator: one that holds a generator would go on where another loader stopped."""
    theirs, trainer.data_collator = trainer.data_collator, _copy(trainer, trainer.data_collator)
    try:
        yield
    finally:
        trainer.data_collator = theirs


def _copy(trainer: Any, part: Any) -> Any:
    """A copy of a part of a trainer: callbacks count their patience, collators hold generators; both may point to the model."""
    return copy.deepcopy(part, {id(shared): shared for shared in (trainer.model, trainer.processing_class)})


def constructor_arguments(trainer: Any) -> dict[str, Any]:
    """What the user built a trainer with, all by name."""
    positional, named = trainer._construction.call
    for cls in type(trainer).__mro__:
        if "__init__" in vars(cls):
            parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
            if all(parameter.kind is not parameter.VAR_POSITIONAL for parameter in parameters):
                return dict(zip([parameter.name for parameter in parameters], positional, strict=False)) | named
    return dict(named)


def candidate_args(
    args: SparseSoupArguments, phase: Phase, candidate: Candidate, folder: Path, group_size: int
) -> SparseSoupArguments:
    """
    The user's arguments with the candidate's own values, for a folder and a logged run of its own.

    The batches of a trunk's step that its group has no process for are accumulated.
    """
    overrides = dict(candidate.overrides)
    if phase.batches > 1:
        steps = overrides.get("gradient_accumulation_steps", args.gradient_accumulation_steps)
        overrides["gradient_accumulation_steps"] = steps * phase.batches // group_size
    return one_training(
        args,
        **overrides,
        output_dir=str(folder),
        run_name=f"{run_group(args)}-phase-{phase.number}-{candidate.name}",
        push_to_hub=False,
    )


def run_group(args: SparseSoupArguments) -> str:
    """What the names of all that a run logs begin with: without it, trackers took candidates of two runs for one."""
    return args.run_name or Path(str(args.output_dir)).absolute().name


def silent_args(args: SparseSoupArguments, **changes: Any) -> SparseSoupArguments:
    """The user's arguments for a trainer that only scores, or trains a few steps."""
    return one_training(args, **{"push_to_hub": False, "report_to": "none", "disable_tqdm": True, **changes})
