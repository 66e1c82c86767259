"""Experiment trackers: every candidate is a run of its own, one more is the soups', all in one group."""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.integrations import (
    MLflowCallback,
    TrackioCallback,
    WandbCallback,
    get_reporting_integration_callbacks,
)

from ..files.records import write_record
from .processes.say import say
from .run_directory import read_or_discard
from .spawning import run_group, silent_args

EVENTS = [name for name in vars(TrainerCallback) if name.startswith("on_")]


OPEN_RUN: dict[str, Callable[[Any], Any]] = {
    "wandb": lambda wandb: wandb.run,
    "trackio": lambda trackio: trackio.context_vars.current_run.get(),
    "mlflow": lambda mlflow: mlflow.active_run(),
}
"""Trackers that have one run open at a time, or none: it, by the package."""
RUN_ID: dict[str, Callable[[Any], str]] = {"wandb": lambda run: run.id, "mlflow": lambda run: run.info.run_id}
"""By what a run is found again. Trackio goes by its name, TensorBoard by its folder."""


@contextmanager
def own_run(trainer: Any, args: Any) -> Iterator[None]:
    """
    Give what is trained inside a tracker's run of its own, whose failures do not end the training.

    Trainer's callbacks begin a run where none is open, and leave it open: the next candidate of the process would go on in it,
    with steps that start anew. A run that was open before is the user's, and stays.

    Args:
        trainer (`Trainer`): What is to be trained.
        args ([`SparseSoupArguments`]): Of the run, whose name the candidates share as their group.
    """
    handler, trackers = trainer.callback_handler, tuple(get_reporting_integration_callbacks(trainer.args.report_to))
    guarded = {
        i: _Guarded(_placed(c, trainer.args.run_name), run_group(args))
        for i, c in enumerate(handler.callbacks)
        if isinstance(c, trackers)
    }
    for place, callback in guarded.items():
        handler.callbacks[place] = callback
    with _closing():
        try:
            yield
        except BaseException:
            # Trainer ends no training that failed, and the next candidate would go on in the run of this one.
            for callback in guarded.values():
                callback.on_train_end(trainer.args, trainer.state, trainer.control, model=trainer.model)
            raise


def track_phase(args: Any, metric: str, dense: Mapping[str, float], phase: Mapping[str, Any], folder: Path) -> None:
    """
    Tell the trackers of `report_to` what became of a phase, in a run that all phases share: its step is the phase.

    Scores of the dense model, of the mean and the best candidate and of the soup, sparsity, that of every layer, and how many
    candidates were tried and taken. The run is closed after every phase, since candidates are trained in between.

    Args:
        args ([`SparseSoupArguments`]): Of the run.
        metric (`str`): The one that decides.
        dense (`Mapping`): Scores of the model before pruning.
        phase (`Mapping`): As in the report.
        folder (`Path`): For trackers that write files, and for what the others know the run by.
    """
    trackers = get_reporting_integration_callbacks(args.report_to)
    if not trackers:
        return
    group, known = run_group(args), folder / "trackers.json"
    name = f"{group}-soup"
    args = silent_args(args, output_dir=str(folder), run_name=name, report_to=args.report_to)
    state = TrainerState(global_step=phase["number"], is_world_process_zero=True, is_local_process_zero=True)
    control = TrainerControl()
    ids = read_or_discard(known) or {}
    with _closing():
        for tracker in trackers:
            try:
                callback = _Guarded(_placed(tracker(), name, folder / "runs"), group, ids)
            except Exception as error:
                _give_up(tracker.__name__, error)
                continue
            callback.on_train_begin(args, state, control, model=None)
            ids |= {of: RUN_ID[of](run) for of, run in _open_runs().items() if of in RUN_ID}
            callback.on_log(args, state, control, model=None, logs=_facts(metric, dense, phase))
            callback.on_train_end(args, state, control, model=None)
    if ids:
        write_record(known, ids)


def _facts(metric: str, dense: Mapping[str, float], phase: Mapping[str, Any]) -> dict[str, float]:
    """Of a phase; trackers sort what begins with `eval_` under `eval/`, all else under `train/`."""
    soup = phase["soup"]
    facts = {
        f"eval_dense_{metric}": dense[metric],
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


@contextmanager
def _closing() -> Iterator[None]:
    """Close runs that are left open, but for the user's."""
    theirs = _open_runs()
    try:
        yield
    finally:
        for name, run in _open_runs().items():
            if run is not theirs.get(name):
                try:
                    module = sys.modules[name]
                    module.end_run() if name == "mlflow" else module.finish()
                except Exception as error:
                    _give_up(name, error)


def _open_runs() -> dict[str, Any]:
    """By the name of a tracker that is imported: its run that is open."""
    runs = {}
    for name, of in OPEN_RUN.items():
        with suppress(KeyError, AttributeError):  # Not imported, or a folder of that name.
            runs[name] = of(sys.modules[name])
    return {name: run for name, run in runs.items() if run is not None}


def _placed(tracker: Any, run_name: str, folder: Path | None = None) -> Any:
    """A tracker that writes this run where no other writes; with `folder`, wherever the one before it wrote."""
    if hasattr(tracker, "logging_dir"):  # Of TensorBoard. The environment may name one folder for all.
        folder = tracker.logging_dir or folder
        tracker.logging_dir = None if folder is None else os.path.join(folder, run_name)
    return tracker


@contextmanager
def _joining(tracker: Any, group: str, ids: Mapping[str, str]) -> Iterator[None]:
    """Let the run that is begun join a group, unless the user has set another, or be the one of `ids` again."""
    if isinstance(tracker, WandbCallback):
        settings = sys.modules["wandb"].setup().settings  # It asks the environment once, when it is set up.
        again = {"run_id": ids["wandb"], "resume": "allow"} if "wandb" in ids else {}
        ours = {"run_group": settings.run_group or group, **again}
        before = {name: getattr(settings, name) for name in ours}
        _set(settings, ours)
        try:
            yield
        finally:
            _set(settings, before)
    elif isinstance(tracker, MLflowCallback):
        # Not nested, a candidate would go on in the user's run instead of one below it.
        asked = {"MLFLOW_NESTED_RUN": "TRUE", "MLFLOW_TAGS": json.dumps({"group": group})}
        asked |= {"MLFLOW_RUN_ID": ids["mlflow"]} if "mlflow" in ids else {}
        ours = {name: value for name, value in asked.items() if name not in os.environ}
        os.environ |= ours
        try:
            yield
        finally:
            for name in ours:
                os.environ.pop(name, None)
    else:
        yield
        if isinstance(tracker, TrackioCallback):
            sys.modules["trackio"].config["_Group"] = group  # Sent with the first metrics.


def _set(there: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(there, name, value)


# ---- Failures ------------------------------------------------------------------------------------------------------------


class _Guarded(TrainerCallback):
    """A tracker that may fail: a line says so, and it is asked no more."""

    def __init__(self, tracker: Any, group: str, ids: Mapping[str, str] | None = None):
        self._tracker: Any = tracker
        self._group, self._ids = group, ids or {}

    def hand_on(self, event: str, args: Any, state: Any, *rest: Any, **kwargs: Any) -> Any:
        tracker, result = self._tracker, None
        if tracker is None:
            return None
        begins = event == "on_train_begin" and state.is_world_process_zero
        try:
            with _joining(tracker, self._group, self._ids) if begins else nullcontext():
                result = getattr(tracker, event)(args, state, *rest, **kwargs)
        except Exception as error:
            _give_up(type(tracker).__name__, error)
            self._tracker = None
        if event == "on_train_end" or self._tracker is None:
            tracker._auto_end_run = False  # MLflow's ends, when it is collected, whatever run is open by then.
        return result


def _event(name: str) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: self.hand_on(name, *args, **kwargs)


for _name in EVENTS:
    setattr(_Guarded, _name, _event(_name))


def _give_up(tracker: str, error: Exception) -> None:
    name = tracker.removesuffix("Callback")
    say(f"{name} failed, the run goes on without it: {type(error).__name__}: {error}", logging.WARNING)
