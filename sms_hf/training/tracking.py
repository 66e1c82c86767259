"""Experiment trackers: every candidate is a run of its own, one more is the soups', all in one group."""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.integrations import get_reporting_integration_callbacks

from ..report.schema import Report
from .processes.say import say
from .spawning import silent_args

GROUP = "WANDB_RUN_GROUP"
EVENTS = [name for name in vars(TrainerCallback) if name.startswith("on_")]


@contextmanager
def own_run(trainer: Any, args: Any) -> Iterator[None]:
    """
    Give what is trained inside a tracker's run of its own, whose failures do not end the training.

    Trainer's callbacks begin a run where none is open, and leave it open: the next candidate of the process would go on in it,
    with steps that start anew. A run that was open before is the user's, and stays.

    Args:
        trainer (`Trainer`): What is to be trained.
        args ([`SparseSoupArguments`]): Of the run, whose name the candidates share as their group. Weights & Biases reads it
            from the environment, where a group that the user has set wins.
    """
    handler, trackers = trainer.callback_handler, tuple(get_reporting_integration_callbacks(trainer.args.report_to))
    guarded = {
        i: _guarded(c, trainer.args.run_name) for i, c in enumerate(handler.callbacks) if isinstance(c, trackers)
    }
    for place, callback in guarded.items():
        handler.callbacks[place] = callback
    with _grouped(_group(args)):
        try:
            yield
        except BaseException:
            # Trainer ends no training that failed, and the next candidate would go on in the run of this one.
            for callback in guarded.values():
                callback.on_train_end(trainer.args, trainer.state, trainer.control, model=trainer.model)
            raise


def track_soups(args: Any, report: Report, folder: Path) -> None:
    """
    Tell the trackers of `report_to` what became of every phase, in one run: its step is the phase.

    Scores of the dense model, of the mean and the best candidate and of the soup, sparsity, that of every layer, and how many
    candidates were tried and taken.

    Args:
        args ([`SparseSoupArguments`]): Of the run.
        report ([`Report`]): Of the run.
        folder (`Path`): For trackers that write files.
    """
    trackers = get_reporting_integration_callbacks(args.report_to)
    if not trackers:
        return
    group = _group(args)
    args = silent_args(args, output_dir=str(folder), run_name=f"{group}-soup", report_to=args.report_to)
    state, control = TrainerState(is_world_process_zero=True, is_local_process_zero=True), TrainerControl()
    with _grouped(group):
        callbacks = []
        for tracker in trackers:
            try:
                callbacks.append(_guarded(tracker(), args.run_name))
            except Exception as error:
                _give_up(tracker.__name__, error)
        for callback in callbacks:
            callback.on_train_begin(args, state, control, model=None)
        for phase in report["phases"]:
            state.global_step = phase["number"]
            for callback in callbacks:
                callback.on_log(args, state, control, model=None, logs=_facts(report, phase))
        for callback in callbacks:
            callback.on_train_end(args, state, control, model=None)


def _facts(report: Report, phase: Mapping[str, Any]) -> dict[str, float]:
    """Of a phase; trackers sort what begins with `eval_` under `eval/`, all else under `train/`."""
    metric, soup = report["metric"], phase["soup"]
    facts = {
        f"eval_dense_{metric}": report["dense"][metric],
        f"eval_mean_candidate_{metric}": phase["mean_score"],
        f"eval_best_candidate_{metric}": phase["best_score"],
        "sparsity": phase["parent"]["sparsity"],
    }
    layers = phase["parent"]["sparsity_per_tensor"]
    if soup:
        facts |= {f"eval_soup_{name}": value for name, value in soup["metrics"].items()}
        facts |= {"sparsity": soup["sparsity"], "soup_trials": len(soup["trials"])}
        facts["soup_ingredients"] = len(soup["ingredients"])
        layers = soup.get("sparsity_per_tensor", layers)
    return facts | {f"sparsity/{name}": value for name, value in layers.items()}


def _group(args: Any) -> str:
    """Name of what the runs of all candidates share."""
    return args.run_name or Path(str(args.output_dir)).absolute().name


@contextmanager
def _grouped(group: str) -> Iterator[None]:
    theirs = _open_runs()
    before = os.environ.get(GROUP)
    os.environ.setdefault(GROUP, group)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(GROUP, None)
        for name, module in _open_runs().items():
            if name not in theirs:
                try:
                    module.finish()
                except Exception as error:
                    _give_up(name, error)


def _open_runs() -> dict[str, Any]:
    """Trackers that are imported and have a run open."""
    trackers = {name: sys.modules[name] for name in ("wandb",) if name in sys.modules}
    return {name: module for name, module in trackers.items() if getattr(module, "run", None) is not None}


# ---- Failures ------------------------------------------------------------------------------------------------------------


class _Guarded(TrainerCallback):
    """A tracker that may fail: a line says so, and it is asked no more."""

    def __init__(self, tracker: TrainerCallback):
        self._tracker: TrainerCallback | None = tracker

    def hand_on(self, event: str, *args: Any, **kwargs: Any) -> Any:
        if self._tracker is None:
            return None
        try:
            return getattr(self._tracker, event)(*args, **kwargs)
        except Exception as error:
            _give_up(type(self._tracker).__name__, error)
            self._tracker = None
            return None


def _event(name: str) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: self.hand_on(name, *args, **kwargs)


for _name in EVENTS:
    setattr(_Guarded, _name, _event(_name))


def _guarded(tracker: Any, run_name: str) -> _Guarded:
    # Of TensorBoard, where the environment names one folder for all.
    if getattr(tracker, "logging_dir", None) is not None:
        tracker.logging_dir = os.path.join(tracker.logging_dir, run_name)
    return _Guarded(tracker)


def _give_up(tracker: str, error: Exception) -> None:
    name = tracker.removesuffix("Callback")
    say(f"{name} failed, the run goes on without it: {type(error).__name__}: {error}", logging.WARNING)
