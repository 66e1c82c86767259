"""One attempt: a launch in a process group of its own, interrupted or not, without the seconds that imports take."""

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from . import job
from .operations import Board, watch
from .progress import describe, matches

POLL_SECONDS = 0.001
GRACE_SECONDS = 10.0
"""How long the agent waits after SIGTERM before SIGKILL; torchrun's 30 would make a test long."""


@dataclass(frozen=True)
class Interrupt:
    """
    When and how a launch is ended from outside.

    Attributes:
        kind (`str`): `"time"`: after `value` seconds; `"operation"`: right before the operation on a file with that number
            (of one worker); `"file"`: when a file matching this glob first appears.
        sign (`int`): The signal. With SIGTERM a launch may clean up and end by itself.
        worker (`int` or `None`): Only this worker; the agent then ends the others. `None`: all at once, the agent too.
    """

    kind: str
    value: float | int | str
    sign: int = signal.SIGKILL
    worker: int | None = None

    def __str__(self) -> str:
        who = "" if self.worker is None else f" to worker {self.worker}"
        when = {"time": "after {:.2f} s", "operation": "before operation {}", "file": "when {} appears"}[self.kind]
        return f"{signal.Signals(self.sign).name}{who} {when.format(self.value)}"


@dataclass(frozen=True)
class Attempt:
    """
    How a launch ended.

    Attributes:
        outcome (`str`): `"ended"` by itself and well, `"killed"`, `"terminated"` (by SIGTERM), `"failed"`, or `"hung"`.
        seconds (`float`): From start to end.
        where (`str`): What the run directory tells about the moment.
        last (`str`): The last operation on a file that a worker began.
        operations (`int`): How many there were, in the first worker.
        log (`Path`): What all workers printed.
        needed (`float` or `None`): Seconds from the interruption to the end; of interest after SIGTERM.
    """

    outcome: str
    seconds: float
    where: str
    last: str
    operations: int
    log: Path
    needed: float | None = None

    @property
    def reason(self) -> str:
        """The last lines that look like an error, for a launch that failed."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines()]
        errors = [line for line in lines if line and line.split(":")[0].split(".")[-1].endswith(("Error", "Exception"))]
        return errors[-1] if errors else next((line for line in reversed(lines) if line), "nothing was printed")


def attempt(
    output: Path,
    variant: str,
    processes: int,
    interrupt: Interrupt | None,
    log: Path,
    *,
    timeout: float = 120.0,
    file_limit: int | None = None,
    meanwhile: Callable[[], object] = lambda: None,
) -> Attempt:
    """
    Start the job in a folder, end it as told, and wait until nothing of it is left.

    Args:
        file_limit (`int`, *optional*): No file may grow beyond so many bytes; a stand-in for a full disk.
        meanwhile (`Callable`, *optional*): Called every millisecond.
    """
    log.unlink(missing_ok=True)
    log.touch()
    board = Board(processes)
    before, start, ended_at = set(_files(output)), time.monotonic(), None
    reader, writer = os.pipe()
    agent = _fork()
    if agent == 0:
        os.close(reader)
        _launch(_Launch(output, variant, processes, interrupt, log, file_limit, board), writer)
    os.close(writer)
    code = None
    try:
        workers = _read_workers(reader, processes)
        while (code := _poll(agent)) is None and time.monotonic() - start < timeout:
            if ended_at is None and interrupt and _is_time(interrupt, time.monotonic() - start, output, before):
                ended_at = time.monotonic()
                _end(agent, workers, interrupt)
            meanwhile()
            time.sleep(POLL_SECONDS)
    finally:
        os.close(reader)
        _clear(agent)
    if code is None:
        outcome = "hung"
    elif code == 0 and board.finished:
        outcome = "ended"
    elif interrupt and (ended_at is not None or _was_killed(code, board, interrupt)):
        outcome = "terminated" if interrupt.sign == signal.SIGTERM else "killed"
    else:
        outcome = "failed"
    who = interrupt.worker if interrupt is not None and interrupt.worker is not None else 0
    seconds, needed = time.monotonic() - start, None if ended_at is None else time.monotonic() - ended_at
    return Attempt(outcome, seconds, describe(output), board.last(who), board.operations(0), log, needed)


def _clear(agent: int) -> None:
    """Nothing of a launch may outlive it, and write into the next one's folder."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(agent, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-agent, 0)  # The agent's group; its orphans are this process's children, see _adopt.


def _adopt() -> None:
    """Let this process inherit orphaned grandchildren (Linux), so that it can wait for their end."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


_adopt()


def _was_killed(code: int, board: Board, interrupt: Interrupt) -> bool:
    if interrupt.kind != "operation":
        return False
    # Of a single worker the agent tells by its own exit code that there was a failure, not which.
    return code == -signal.SIGKILL or board.operations(interrupt.worker or 0) == interrupt.value


def _is_time(interrupt: Interrupt, seconds: float, output: Path, before: set[str]) -> bool:
    if interrupt.kind == "time":
        return seconds >= float(interrupt.value)
    if interrupt.kind == "file":
        return any(path not in before and matches(path, str(interrupt.value)) for path in _files(output))
    return False  # The worker itself counts operations.


def _end(agent: int, workers: list[int], interrupt: Interrupt) -> None:
    with contextlib.suppress(ProcessLookupError):
        if interrupt.worker is None:
            os.killpg(agent, interrupt.sign)
        else:
            os.kill(workers[interrupt.worker], interrupt.sign)


def _files(folder: Path) -> list[str]:
    """Paths of all files and folders, relative; what vanishes meanwhile is left out."""
    found: list[str] = []
    for root, folders, files in os.walk(folder):
        start = os.path.relpath(root, folder)
        found += [os.path.normpath(os.path.join(start, name)) for name in folders + files]
    return found


def _poll(pid: int) -> int | None:
    """The exit code of a child that has ended (minus the signal that ended it)."""
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def _read_workers(reader: int, processes: int) -> list[int]:
    """Process ids that the agent writes, a line each; fewer if it was killed before."""
    text = b""
    while text.count(b"\n") < processes and (piece := os.read(reader, 4096)):
        text += piece
    return [int(line) for line in text.split()]


def _fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # Of forking with threads; this process has none that matter.
        return os.fork()


# ---- Inside the children ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Launch:
    """What the children of a launch know of it."""

    output: Path
    variant: str
    processes: int
    interrupt: Interrupt | None
    log: Path
    file_limit: int | None
    board: Board


def _launch(launch: _Launch, writer: int) -> None:
    """The agent of a launch: starts the workers, and ends the others when one fails, as torchrun's does."""
    os.setsid()
    signal.signal(signal.SIGTERM, lambda *_: None)  # The workers get it, too, and decide.
    file = os.open(launch.log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    # Without a wait for workers: they are not there yet.
    store = dist.TCPStore("127.0.0.1", 0, None, True, timedelta(minutes=10), False) if launch.processes > 1 else None
    workers: list[int] = []
    for rank in range(launch.processes):
        pid = _fork()
        if pid == 0:
            os.close(writer)
            _work(launch, rank, None if store is None else store.port)
        workers.append(pid)
    os.write(writer, "".join(f"{pid}\n" for pid in workers).encode())
    os.close(writer)
    os._exit(_supervise(workers))


def _supervise(workers: list[int]) -> int:
    """Wait for all; when one fails, give the others SIGTERM and some time."""
    codes: dict[int, int] = {}
    deadline = float("inf")
    while len(codes) < len(workers):
        for pid in workers:
            if pid not in codes and (code := _poll(pid)) is not None:
                codes[pid] = code
        left = [pid for pid in workers if pid not in codes]
        if any(codes.values()) and deadline == float("inf"):
            deadline = time.monotonic() + GRACE_SECONDS
            for pid in left:
                os.kill(pid, signal.SIGTERM)
        if time.monotonic() > deadline:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    return 1 if any(codes.values()) else 0


def _work(launch: _Launch, rank: int, port: int | None) -> None:
    """A worker, as near as possible to a fresh interpreter."""
    code, interrupt = 1, launch.interrupt
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        warnings.resetwarnings()
        os.environ["ACCELERATE_USE_CPU"] = "true"
        if port is not None:
            os.environ |= _launch_variables(rank, launch.processes, port)
        if launch.file_limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # An error (EFBIG) instead of the end.
            resource.setrlimit(resource.RLIMIT_FSIZE, (launch.file_limit, resource.RLIM_INFINITY))
        job.shake_generators()
        number = None
        if interrupt is not None and interrupt.kind == "operation" and rank == (interrupt.worker or 0):
            number = int(interrupt.value)
        watch(launch.board, rank, launch.output, number, whole_group=interrupt is None or interrupt.worker is None)
        job.run(launch.output, launch.variant)
        launch.board.finish(rank)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _launch_variables(rank: int, processes: int, port: int) -> dict[str, str]:
    """What torchrun sets for its workers."""
    values = {"RANK": rank, "WORLD_SIZE": processes, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": processes}
    values |= {"GROUP_RANK": 0, "GROUP_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in values.items()} | {"TORCHELASTIC_USE_AGENT_STORE": "True"}
