"""
SIGTERM (preemption) and Ctrl-C: save what is in training, then leave.

In a run a signal is only noted. The run asks at places of its own whether there is one, and ends there: an exception that
a handler raised wherever the program happens to be may be lost in C++ code, or be taken for the fault of a candidate.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from .say import say

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO_SECONDS = 5.0
"""Ctrl-C reaches a process twice, from the terminal and from its launcher: so soon after the first it is the same wish."""

_wish: int | None = None
_since = -ECHO_SECONDS


class Stopped(SystemExit):
    """A run that was stopped by a signal: exits with 128 + its number, as shells do."""

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.signal = signal.Signals(number).name


class Interrupted(Stopped):
    """A program that a signal ended outside of a run."""


def stop_wished() -> bool:
    """Whether a signal came."""
    return _wish is not None


def leave_if_wished(wished: bool = False) -> None:
    """Raise [`Stopped`] if a signal came, here or (`wished`) to another process."""
    if wished or stop_wished():
        raise Stopped(_wish or signal.SIGTERM)


@contextmanager
def handling_signals(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """While this lasts, a handler gets what asks the program to stop. Only a program's main thread can ask for that."""
    global _wish
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _wish = None  # Of whoever noted signals before.
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    except Interrupted:
        before = {}  # The program has only to end, and its launcher passes the signal on, perhaps as another one.
        raise
    finally:
        _wish = None
        for number, theirs in before.items():
            signal.signal(number, theirs)


def stop_on_signals() -> AbstractContextManager[None]:
    """While this lasts, signals are noted; a second one does not wait."""
    return handling_signals(_note)


def leave_on_signals() -> AbstractContextManager[None]:
    """
    While this lasts, a signal ends the program where it stands, by [`Interrupted`]; a run inside notes it instead.

    Once one has, it does not return: the program is ending, and no echo of the signal breaks that off.
    """
    return handling_signals(_interrupt)


def _interrupt(number: int, _frame=None) -> None:
    global _since
    if time.monotonic() - _since > ECHO_SECONDS:
        _since = time.monotonic()
        raise Interrupted(number)


def _note(number: int, _frame=None) -> None:
    global _wish, _since
    if _wish is None:
        _wish, _since = number, time.monotonic()
        say(f"{signal.Signals(number).name}: ending after this step", logging.WARNING)
    elif time.monotonic() - _since > ECHO_SECONDS:
        raise Stopped(number)
