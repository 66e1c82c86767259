"""What a process does to files, seen from inside: counted, so that a kill can fall on any one of them."""

import mmap
import os
import signal
import struct
import sys
from pathlib import Path

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
SLOT = 1024


class Board:
    """Memory that survives the worker that wrote it: how many operations there were, the last of them, and the end."""

    def __init__(self, workers: int):
        self.workers = workers
        self._memory = mmap.mmap(-1, SLOT * workers)  # Shared with forked children.

    def count(self, worker: int, operation: str) -> int:
        start = worker * SLOT
        number = self.operations(worker) + 1
        text = operation.encode()[: SLOT - 8]
        self._memory[start + 6 : start + 8 + len(text)] = struct.pack("<H", len(text)) + text
        self._memory[start : start + 4] = struct.pack("<I", number)
        return number

    def operations(self, worker: int) -> int:
        return struct.unpack_from("<I", self._memory, worker * SLOT)[0]

    def last(self, worker: int) -> str:
        """The last operation that was begun."""
        start = worker * SLOT
        length = struct.unpack_from("<H", self._memory, start + 6)[0]
        return bytes(self._memory[start + 8 : start + 8 + length]).decode(errors="replace")

    def finish(self, worker: int) -> None:
        self._memory[worker * SLOT + 4] = 1

    @property
    def finished(self) -> bool:
        """Whether `job.run` returned in every worker."""
        return all(self._memory[worker * SLOT + 4] for worker in range(self.workers))


def watch(board: Board, worker: int, folder: Path, kill_before: int | None = None, whole_group: bool = True) -> None:
    """
    Count this process's operations on files below a folder, and end it in front of the one with a given number.

    Python tells of an operation right before it happens. Files that Rust or C++ opens (weights, optimizer) are not seen;
    they lie between two that are. An audit hook stays for the life of a process: for forked children only.
    """
    root = str(folder.resolve())

    def look(event: str, arguments: tuple) -> None:
        if event == "open":
            if not isinstance(arguments[2], int) or not arguments[2] & WRITES:
                return
        elif event not in CHANGES:
            return
        path = arguments[1] if event == "os.rename" else arguments[0]
        if not isinstance(path, str | bytes | os.PathLike):
            return
        path = os.path.abspath(os.fsdecode(path))
        if not path.startswith(root):
            return
        number = board.count(worker, f"{event.removeprefix('os.')} {os.path.relpath(path, root)}")
        if number == kill_before:
            os.killpg(0, signal.SIGKILL) if whole_group else os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)
