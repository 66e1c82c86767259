"""The learning rate of retraining, as a scheduler that Trainer can step."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import SchedulerType, get_scheduler
from transformers.utils import logging

from ...choices import check_choice
from ...sparsity.schedules import RETRAIN_SCHEDULES, retrain_learning_rate

logger = logging.get_logger(__name__)

NEED_ORIGINAL = ("lrw", "slr")
TINY = 0.05
"""A replayed learning rate that never exceeds this fraction of `learning_rate` hardly trains."""


def check_schedule(args: Any) -> None:
    """
    Raise `ValueError` for a `retrain_schedule` that is unknown or lacks what it is computed from.

    Args:
        args ([`SparseSoupArguments`]): With `retrain_schedule`, `min_learning_rate`, `original_schedule` and
            `original_num_epochs`.
    """
    name = args.retrain_schedule
    if name is None:
        return
    check_choice("retrain_schedule", name, sorted(RETRAIN_SCHEDULES))
    if name in NEED_ORIGINAL and args.original_schedule is None:
        raise ValueError(
            f"retrain_schedule={name!r} follows the schedule of the dense training. Set original_schedule to the folder or "
            "trainer_state.json of that training, or to a scheduler's name together with original_num_epochs."
        )
    if name == "ft" and args.original_schedule is None and not args.min_learning_rate:
        raise ValueError(
            "retrain_schedule='ft' retrains at the last learning rate of the dense training, a constant. Set "
            "min_learning_rate to it, above 0, or original_schedule to the log of that training."
        )
    if name == "allr" and args.original_num_epochs is None and _log(args.original_schedule) is None:
        raise ValueError(
            "retrain_schedule='allr' compares retraining with the dense training. Set original_num_epochs to the epochs "
            "of that training, or original_schedule to its log. (Without knowing: 'llr'.)"
        )
    if args.original_schedule is not None and _log(args.original_schedule) is None:
        if args.original_schedule not in list(SchedulerType):
            raise ValueError(
                "original_schedule must be the folder or trainer_state.json of the dense training, or one of "
                f"{sorted(s.value for s in SchedulerType)}, got {args.original_schedule!r}."
            )
        if args.original_num_epochs is None:
            raise ValueError(
                f"original_schedule={args.original_schedule!r} needs original_num_epochs, the epochs of the dense training."
            )


def original_epochs(args: Any) -> float:
    """Epochs of the dense training: as given, or from its log."""
    log = _log(args.original_schedule)
    return args.original_num_epochs if log is None or args.original_num_epochs is not None else log["num_train_epochs"]


def original_rates(args: Any, steps_per_epoch: float) -> list[float] | None:
    """
    Learning rate of every step of the dense training, from its log (linear between two entries) or by its scheduler.

    Trainer logs after step `t` the rate that step `t`, counted from 0, is about to use.
    """
    if args.original_schedule is None:
        return None
    log = _log(args.original_schedule)
    if log is not None:
        entries = [(e["step"], e["learning_rate"]) for e in log["log_history"] if "learning_rate" in e]
        if len(entries) < 2:
            raise ValueError(
                f"The log in {args.original_schedule} must hold learning rates of at least two steps, got {len(entries)}. "
                "Name the scheduler in original_schedule instead."
            )
        steps, rates = zip(*entries, strict=True)
        return np.interp(np.arange(log["max_steps"]), steps, rates).tolist()
    num_steps = max(round(args.original_num_epochs * steps_per_epoch), 1)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate)
    scheduler = get_scheduler(
        args.original_schedule,
        optimizer,
        num_warmup_steps=args.get_warmup_steps(num_steps),
        num_training_steps=num_steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )
    if not isinstance(scheduler, LambdaLR):
        raise ValueError(f"original_schedule={args.original_schedule!r} is no function of the step. Choose another.")
    return [args.learning_rate * scheduler.lr_lambdas[0](step) for step in range(num_steps)]


def retrain_factor(args: Any, num_steps: int, steps_per_epoch: float, scale: float) -> Callable[[int], float]:
    """
    Step -> factor of `learning_rate`, for `retrain_schedule`.

    Args:
        num_steps (`int`): Steps of this retraining.
        steps_per_epoch (`float`): For schedules that are given in epochs.
        scale (`float`): ALLR's `d`, in `(0, 1]`.
    """
    name, original = args.retrain_schedule, original_rates(args, steps_per_epoch)
    low = args.min_learning_rate
    if low is None:
        low = 0.0 if original is None else min(original[int(np.argmax(original)) :])
    if name == "ft" and low == 0:
        raise ValueError(
            "The dense training ended at a learning rate of 0, at which retrain_schedule='ft' learns nothing. Set "
            "min_learning_rate, or choose 'llr'."
        )
    replayed = max(original[-num_steps:]) if name == "lrw" and original else low if name == "ft" else args.learning_rate
    if replayed < TINY * args.learning_rate:
        logger.warning_once(
            f"retrain_schedule={name!r} retrains at {replayed:.2g} at most, because the dense training ended there; "
            f"learning_rate is {args.learning_rate:.2g}. 'llr' and 'allr' do not depend on it."
        )

    def factor(step: int) -> float:
        rate = retrain_learning_rate(
            name, min(step, num_steps), num_steps, max_lr=args.learning_rate, min_lr=low, original=original, scale=scale
        )
        return rate / args.learning_rate

    return factor


def shift_(scheduler: Any, offset: int) -> None:
    """Let a scheduler begin `offset` steps into its schedule. It has just been made."""
    if not isinstance(scheduler, LambdaLR):
        raise ValueError(
            "Soups while pruning go through one learning rate schedule piece by piece, which needs one that is a function "
            f"of the step, got {type(scheduler).__name__}. Choose lr_scheduler_type 'linear', 'cosine' or 'constant'."
        )
    scheduler.lr_lambdas = [_shifted(function, offset) for function in scheduler.lr_lambdas]
    for group, base, function in zip(
        scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
    ):
        group["lr"] = base * function(0)
    scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]


def _shifted(function: Callable[[int], float], offset: int) -> Callable[[int], float]:
    return lambda step: function(step + offset)


def _log(original_schedule: str | None) -> dict[str, Any] | None:
    """`trainer_state.json` of the dense training, where `original_schedule` is its path or its folder."""
    if original_schedule is None:
        return None
    path = Path(original_schedule)
    path = path / "trainer_state.json" if path.is_dir() else path
    return _read_log(path) if path.is_file() else None


@cache
def _read_log(path: Path) -> dict[str, Any]:
    """Read once: arguments are checked again for every candidate and every score."""
    return json.loads(path.read_text(encoding="utf-8"))
