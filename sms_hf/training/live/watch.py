"""A training as others see it: its log file, how far it is."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ...report.text import format_seconds
from ..processes.say import is_watched, say, tell

TELL_SECONDS = 0.5
SAY_SECONDS = 60.0
SAY_FRACTION = 0.1


class TrainingWatch(TrainerCallback):
    """
    Tells who watches how far a training is, and says it now and then in a line; what Trainer logs goes into a file.

    Args:
        name (`str`): What people call it, for example `phase 1, candidate-2`.
        facts (`dict`): Told along, for example its phase.
        log (`Path`): The file: a JSON object a line, with `step`, `max_steps` and `epoch`.
        loss (`Callable`, *optional*): Gives the loss of the last step. Asked twice a second at most, since an accelerator is
            waited for. Default: what Trainer logged last.
    """

    def __init__(self, name: str, facts: dict[str, Any], log: Path, loss: Callable[[], float | None] = lambda: None):
        self._name, self._facts, self._log, self._loss = name, facts, log, loss
        self._begin = self._told = self._said = 0.0
        self._first = self._said_step = 0
        self._logged: float | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._begin = self._said = time.monotonic()
        self._told, self._first, self._said_step = 0.0, state.global_step, state.global_step
        if state.is_world_process_zero:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            # Of a training that goes on from a checkpoint, what was logged until then, and no more.
            self._log.write_text("".join(_line(entry, state) for entry in state.log_history), encoding="utf-8")
            self._tell(state)

    def on_step_end(self, args, state, control, **kwargs):
        now = time.monotonic()
        if not state.is_world_process_zero or now - self._told < TELL_SECONDS:
            return
        self._told = now
        self._tell(state)
        steps = state.global_step - self._said_step
        if now - self._said >= SAY_SECONDS and steps >= SAY_FRACTION * state.max_steps:
            self._said, self._said_step = now, state.global_step
            left = self._seconds_per_step(state) * (state.max_steps - state.global_step)
            loss = self._last_loss()
            told = "" if loss is None else f", loss {loss:.4g}"
            say(f"{self._name}: step {state.global_step} of {state.max_steps}{told}, {format_seconds(left)} left")

    def on_log(self, args, state, control, logs=None, **kwargs):
        self._logged = (logs or {}).get("loss", self._logged)
        if state.is_world_process_zero:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(_line({**(logs or {}), "step": state.global_step}, state))

    def _tell(self, state: Any) -> None:
        if not is_watched():  # The loss waits for the accelerator.
            return
        tell(
            "training",
            **self._facts,
            step=state.global_step,
            steps=state.max_steps,
            loss=self._last_loss(),
            seconds_per_step=self._seconds_per_step(state),
        )

    def _last_loss(self) -> float | None:
        loss = self._loss()
        return self._logged if loss is None else loss

    def _seconds_per_step(self, state: Any) -> float:
        """Mean since the training began, or began again."""
        return (time.monotonic() - self._begin) / max(state.global_step - self._first, 1)


def _line(entry: dict[str, Any], state: Any) -> str:
    return json.dumps({**entry, "max_steps": state.max_steps}, default=str) + "\n"
