"""What the processes of a launch say to each other: small JSON values in a store; weights travel as files."""

import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

from .stopping import leave_if_wished

POLL_SECONDS = 0.2
BEAT_SECONDS = 1.0
FAILED = "failed"
JOINS = "joins"
"""Counter in the launch's store: how many processes have ever joined."""


class ProcessError(RuntimeError):
    """Another process failed, hangs, or was started again: this one cannot go on, and no candidate is to blame."""


@dataclass
class Processes:
    """
    The processes of one launch, and a store that they share.

    Attributes:
        rank (`int`): This process, from 0. Process 0 is the main process: it prunes, averages and writes reports.
        world_size (`int`): How many there are.
        store (`dist.Store`): Of these processes, since the last time that the launcher started them.
        launch_store (`dist.Store`): Of the launch: outlives restarts.
        joins (`int`): Processes that had joined the launch when these ones met. More than that: one was started again.
        session (`int`): How often the launcher has started the processes, from 1.
        shares_gpu (`bool`): Whether there are fewer GPUs on this machine than processes.
        timeout (`float`): Seconds for which a process may give no sign before the others take it for hung.
    """

    rank: int = 0
    world_size: int = 1
    store: dist.Store = field(default_factory=dist.HashStore)
    launch_store: dist.Store = field(default_factory=dist.HashStore)
    joins: int = 0
    session: int = 1
    shares_gpu: bool = False
    timeout: float = 1800.0
    outer: "Processes | None" = None
    _last_beat: float = 0.0
    _beats: int = 0
    _seen: dict[int, tuple[str, float]] = field(default_factory=dict)
    _doing: str = "starting"

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    # ---- Values ------------------------------------------------------------------------------------------------------

    def take(self, key: str) -> int:
        """The next number of a counter that all processes share: 0, 1, 2, ..."""
        return self.store.add(f"counter/{key}", 1) - 1  # A value may be published under the same key.

    def publish(self, key: str, value: Any) -> None:
        """Make a JSON value known to all processes."""
        self.store.set(f"value/{key}", json.dumps(value))

    def receive(self, key: str) -> Any:
        """
        Wait for a value that another process publishes.

        Raises:
            ProcessError: If another process failed, hangs or was started again, so that nobody waits for what will
                never come.
        """
        while not self.store.check([f"value/{key}"]):
            if self.store.check([f"value/{FAILED}"]):
                raise ProcessError(json.loads(self.store.get(f"value/{FAILED}")))
            leave_if_wished()
            self.beat()
            self._watch()
            time.sleep(POLL_SECONDS)
        return json.loads(self.store.get(f"value/{key}"))

    def on_main(self, key: str, function: Callable[[], Any]) -> Any:
        """Call `function` on the main process; every process returns its (JSON) result."""
        if not self.is_main:
            return self.receive(key)
        value = function()
        self.publish(key, value)
        return value

    def fail(self, error: BaseException) -> None:
        """Tell the others that this process gives up."""
        with suppress(dist.DistError):  # The store may be what failed.
            self.publish(FAILED, f"Process {self.rank} of {self.world_size} failed: {type(error).__name__}: {error}")

    def was_at(self, folder: Path) -> bool:
        """Whether this launch has worked in a folder before the launcher started the processes again. Main process only."""
        key = f"folder/{folder.absolute()}"
        before = self.launch_store.check([key]) and int(self.launch_store.get(key)) < self.session
        self.launch_store.set(key, str(self.session))
        return before

    # ---- Work --------------------------------------------------------------------------------------------------------

    def fan_out(self, key: str, items: Sequence[Any], work: Callable[[Any], None], group_size: int = 1) -> None:
        """
        Call `work` once for every item, on whichever process is free next, and return when all are done.

        A shared counter balances items of different length. With `group_size` above 1 neighbouring processes take an item
        together, and what happens inside may be collective among them.
        """
        group, position = divmod(self.rank, group_size)

        def take(turn: int) -> int:
            if position > 0:
                return self.receive(f"{key}/group-{group}/{turn}")
            number = self.take(f"{key}/next")
            if group_size > 1:
                self.publish(f"{key}/group-{group}/{turn}", number)
            return number

        turn = 0
        while (number := take(turn)) < len(items):
            work(items[number])
            turn += 1
            if position == 0:
                self.publish(f"{key}/done/{number}", True)
        for number in range(len(items)):
            self.receive(f"{key}/done/{number}")

    # ---- Signs of life -----------------------------------------------------------------------------------------------

    def beat(self, doing: str | None = None) -> None:
        """
        Give a sign of life: to be called at every step of whatever takes long.

        At most one a second goes out, and one at every new piece of work.

        Raises:
            ProcessError: If the launcher has started another process again, while this one goes on as if nothing had happened.
        """
        now, news = time.monotonic(), doing not in (None, self._doing)
        self._doing = doing or self._doing
        if now - self._last_beat < BEAT_SECONDS and not news:
            return
        self._last_beat = now
        if self.outer is not None:
            return self.outer.beat(doing)
        if self.world_size == 1:
            return None
        self._beats += 1
        sign = {"beats": self._beats, "host": socket.gethostname(), "pid": os.getpid(), "doing": self._doing}
        self.store.set(f"beat/{self.rank}", json.dumps(sign))
        if self.launch_store.add(JOINS, 0) > self.joins:
            raise ProcessError(
                "The launcher has started another process again, so this one ends, to be started again with it. Everything "
                "that is finished is on disk."
            )

    def _watch(self) -> None:
        """Raise `ProcessError` with the name of a process that has given no sign for too long."""
        now = time.monotonic()
        for rank in range(self.world_size):
            if rank == self.rank or not self.store.check([f"beat/{rank}"]):
                continue
            sign = self.store.get(f"beat/{rank}").decode()
            before, since = self._seen.get(rank, (None, now))
            if sign != before:
                self._seen[rank] = (sign, now)
            elif now - since > self.timeout:
                last = json.loads(sign)
                raise ProcessError(
                    f"Process {rank} of {self.world_size} (pid {last['pid']} on {last['host']}) has given no sign for "
                    f"{now - since:.0f} s while it was {last['doing']}. It hangs, or one of its steps takes longer than "
                    "ddp_timeout seconds: raise that, or resume the run (resume_from_checkpoint=True, --resume)."
                )

    # ---- Files -------------------------------------------------------------------------------------------------------

    def check_shared(self, key: str, folder: Path, patience: float = 60.0) -> None:
        """
        Make sure that all processes see one folder, by a file that the main process writes into it.

        Raises:
            ValueError: On every process that does not see it after `patience` seconds (network file systems are slow).
        """
        if self.world_size == 1:
            return
        probe, mark = folder / ".probe", f"{socket.gethostname()} {os.getpid()} {time.time()}"
        if self.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            probe.write_text(mark, encoding="utf-8")
        mark, start = self.on_main(key, lambda: mark), time.monotonic()
        while not probe.is_file() or probe.read_text(encoding="utf-8") != mark:
            if time.monotonic() - start > patience:
                raise ValueError(
                    f"Expected one output_dir for all processes, but process {self.rank} on {socket.gethostname()} does not "
                    f"see in {folder.absolute()} what process 0 on {mark.split()[0]} wrote there. Put output_dir on a file "
                    "system that all machines share."
                )
            if folder.is_dir():
                os.listdir(folder)  # Makes some network file systems look again.
            time.sleep(POLL_SECONDS)
        self.publish(f"{key}/{self.rank}", True)
        if self.is_main:
            try:
                for rank in range(self.world_size):
                    self.receive(f"{key}/{rank}")
            finally:
                probe.unlink(missing_ok=True)
