"""What a run says while it goes on: lines for everybody, facts for who watches."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


def write_line(line: str) -> None:
    """Print a line in one piece.

    Launchers run Python unbuffered, where `print` writes a line and its end one after the other, so that lines of processes
    break into each other.
    """
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _miss(topic: str, facts: Mapping[str, Any]) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class Listener:
    """
    Who hears what a run says.

    Attributes:
        hear_line (`Callable`): Takes a line, which begins with the time of day.
        hear_fact (`Callable`): Takes a topic and its facts, JSON values.
        level (`int`): Of `logging`: lines below it are not said.
    """

    hear_line: Callable[[str], None] = write_line
    hear_fact: Callable[[str, Mapping[str, Any]], None] = _miss
    level: int = logging.INFO


_listener = Listener()


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Let somebody hear what is said inside."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


def say(line: str, level: int = logging.INFO) -> None:
    """Tell people what has happened, in a line; `level`: of `logging`."""
    if level >= _listener.level:
        _listener.hear_line(f"{time.strftime('%H:%M:%S')} {line}")


def is_watched() -> bool:
    """Whether anybody takes what is told: what costs something to find out need not be found out for nobody."""
    return _listener.hear_fact is not _miss


def tell(topic: str, **facts: Any) -> None:
    """Tell who watches how something stands."""
    _listener.hear_fact(topic, facts)
