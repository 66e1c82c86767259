"""SIGTERM (preemption) and Ctrl-C: save what is in training, then leave."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO_SECONDS = 5.0
"""Ctrl-C reaches a process twice, from the terminal and from its launcher: so soon after the first it is the same wish."""


class Stopped(SystemExit):
    """A run that was stopped by a signal: exits with 128 + its number, as shells do."""

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.signal = signal.Signals(number).name


class Stop:
    """
    A wish to stop, and whether it has to wait.

    Files appear whole or not at all and records come last, so a run may end anywhere; only inside the training of a
    candidate it is worth to wait for the end of the step and to write a checkpoint. A second signal does not wait.

    Attributes:
        number (`int` or `None`): The signal that came.
    """

    def __init__(self):
        self.number: int | None = None
        self._since = 0.0
        self._waits = False

    def handle(self, number: int, _frame=None) -> None:
        if self.number is None:
            self.number, self._since = number, time.monotonic()
            if self._waits:
                print(f"{signal.Signals(number).name}: saving a checkpoint after this step", flush=True)
        elif self._waits and time.monotonic() - self._since > ECHO_SECONDS:
            raise Stopped(number)
        if not self._waits:
            raise Stopped(number)

    @contextmanager
    def waits(self) -> Iterator[None]:
        """Here a signal is only noted; whoever trains asks for it, and leaves by `leave`."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False
        self.leave()

    def leave(self) -> None:
        """Raise `Stopped` if a signal came."""
        if self.number is not None:
            raise Stopped(self.number)


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """While this lasts, signals end the process by way of a [`Stop`]. Only the main thread of a program can ask for them."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.handle) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
