"""Where a run is watched: on a terminal as one view for all processes, elsewhere line by line."""

import io
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

from rich.console import Console
from rich.live import Live
from torch.distributed import DistError
from transformers.utils.logging import get_log_levels_dict

from ..processes.mailbox import Mailbox
from ..processes.say import Listener, listening
from ..processes.store import Processes
from .screen import Screen

REFRESH_SECONDS = 0.25


@contextmanager
def watched(processes: Processes, args: Any, scope: str, screen: Screen) -> Iterator[None]:
    """
    Show what is said and told inside: to be entered by all processes.

    Args:
        processes ([`Processes`]): Of the launch.
        args (`TrainingArguments`): `disable_tqdm` asks for lines instead of the view; `log_level` says which lines.
        scope (`str`): Of this call, and of no other of the launch.
        screen ([`Screen`]): Drawn by the main process.
    """
    level, is_shown = _level(args), processes.on_main(f"{scope}/view", lambda: _can_be_shown(processes, args))
    if not is_shown:
        with listening(Listener(level=level)):
            yield
        return
    mailbox = Mailbox(processes, scope)
    with _drawn(mailbox, screen, level) if processes.is_main else _sent(mailbox, level):
        yield


def _level(args: Any) -> int:
    """Of `logging`; by Trainer's default, all lines are said."""
    return max(get_log_levels_dict().get(args.log_level, logging.INFO), logging.INFO)


def _can_be_shown(processes: Processes, args: Any) -> bool:
    console = Console()
    # Of runs side by side none has the terminal for itself.
    return console.is_terminal and not console.is_dumb_terminal and not args.disable_tqdm and processes.outer is None


@contextmanager
def _drawn(mailbox: Mailbox, screen: Screen, level: int) -> Iterator[None]:
    console, ended = Console(), threading.Event()
    live = Live(console=console, auto_refresh=False, transient=True)

    def write(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    def draw() -> None:
        for message in mailbox.collect():
            if isinstance(message, str):
                write(message)
            else:
                screen.hear(*message)
        live.update(screen.render(*console.size), refresh=True)

    def go_on() -> None:
        try:
            while not ended.wait(REFRESH_SECONDS):
                draw()
        except DistError:  # The store is gone, and with it the run.
            return

    thread = threading.Thread(target=go_on, daemon=True)
    with live, _warnings_on_stderr(), listening(Listener(write, screen.hear, level)):
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            with suppress(DistError):
                draw()


@contextmanager
def _sent(mailbox: Mailbox, level: int) -> Iterator[None]:
    """Send lines, and whatever else would be printed over the view, to the process that draws it."""
    listener = Listener(mailbox.send, lambda topic, facts: mailbox.send((topic, dict(facts))), level)
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(_Lines(mailbox.send)))
        stack.enter_context(redirect_stderr(_Lines(mailbox.send)))
        stack.enter_context(_warnings_on_stderr())
        stack.enter_context(listening(listener))
        yield


@contextmanager
def _warnings_on_stderr() -> Iterator[None]:
    """Let handlers of `logging`, which keep the stderr that they found, write to that of now."""
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in ("transformers", "datasets", "accelerate"))]
    handlers = [h for logger in loggers for h in logger.handlers if type(h) is logging.StreamHandler]
    before = [handler.setStream(sys.stderr) for handler in handlers]
    try:
        yield
    finally:
        for handler, stream in zip(handlers, before, strict=True):
            if stream is not None:
                handler.setStream(stream)


class _Lines(io.TextIOBase):
    """A stream whose whole lines are handed on."""

    def __init__(self, hand_on: Callable[[str], None]):
        self._hand_on, self._rest = hand_on, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            # Of a line that was drawn over, what is left to be read.
            if said := line.rstrip("\r").rpartition("\r")[2].strip():
                self._hand_on(said)
        return len(text)

    def writable(self) -> bool:
        return True
