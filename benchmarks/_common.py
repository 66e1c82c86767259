"""What the benchmarks share: facts about the machine, paired timing, extra memory in a fresh process."""

import contextlib
import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from tabulate import tabulate

MB = 1e6


def describe_machine(*packages: str, threads: int | None = None) -> str:
    """Cores, threads and versions, in one line."""
    from importlib.metadata import version

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # torch itself names its build (2.13.0+cu130), which the metadata of some wheels leave out.
    versions = [f"torch {torch.__version__}", *(f"{name} {version(name)}" for name in packages)]
    threads = threads or torch.get_num_threads()
    return f"machine: {cores} cores, {threads} threads, Python {platform.python_version()}, {', '.join(versions)}"


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def wait_for_device() -> None:
    """What runs on a GPU has been started only, when its call returns."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def paired_times(
    peers: dict[str, Callable[[], object]], repetitions: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of each function, called in turn and in alternating order, so that slow moments of the machine hit all."""
    if warm_up:
        for function in peers.values():
            function()
    times: dict[str, list[float]] = {name: [] for name in peers}
    for repetition in range(repetitions):
        for name in list(peers)[:: -1 if repetition % 2 else 1]:
            start = time.perf_counter()
            peers[name]()
            wait_for_device()
            times[name].append(time.perf_counter() - start)
    return times


def paired_ratio(times: Sequence[float], reference: Sequence[float]) -> float:
    """Median of the ratios of measurements that were taken next to each other."""
    return statistics.median(a / b for a, b in zip(times, reference, strict=True))


def spread(times: Sequence[float], scale: float = 1.0, digits: int = 2) -> str:
    """Median and range: `0.46 (0.45-0.52)`."""
    low, middle, high = min(times) * scale, statistics.median(times) * scale, max(times) * scale
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def print_table(rows: Sequence[Sequence[object]], headers: Sequence[str]) -> None:
    print(tabulate(rows, headers, disable_numparse=True), flush=True)


# ---- Memory ----------------------------------------------------------------------------------------------------------


class ExtraMemory:
    """
    Memory that a block of code needs beyond what the process held before, in bytes.

    Attributes:
        peak (`int`): Of the resident memory, as the kernel counts its highest value (`VmHWM`, set back at the start).
            Pages of mapped files count.
        anonymous (`int`): Of the process's own memory (`RssAnon`), sampled every 5 ms. Mapped files do not count.
        maxrss (`int`): Growth of `ru_maxrss`; too low where the process once held more than at the start of the block.
        kept (`int`): Own memory still held at the end of the block.
    """

    def __enter__(self) -> "ExtraMemory":
        Path("/proc/self/clear_refs").write_text("5")
        self._before, self._maxrss = _status(), _maxrss()
        self._highest, self._stop = self._before["RssAnon"], threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._stop.wait(0.005):
            self._highest = max(self._highest, _status()["RssAnon"])

    def __exit__(self, *exception) -> None:
        self._stop.set()
        self._thread.join()
        after = _status()
        self.peak = after["VmHWM"] - self._before["VmRSS"]
        self.anonymous = max(self._highest, after["RssAnon"]) - self._before["RssAnon"]
        self.maxrss = _maxrss() - self._maxrss
        self.kept = after["RssAnon"] - self._before["RssAnon"]

    def values(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("peak", "anonymous", "maxrss", "kept")}


def _status() -> dict[str, int]:
    """Bytes of every memory entry of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}


def _maxrss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_fresh_process(script: str, *arguments: object) -> dict:
    """Run a script of this folder in a process of its own; the JSON of its last line."""
    command = [sys.executable, script, *map(str, arguments)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def run_group(command: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
    """
    Run a program whose output goes to the end of a file; its exit status.

    Whatever interrupts the wait ends the program and all that it started, which are asked first.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        program = subprocess.Popen(
            command, env=dict(environment), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return program.wait()
        except BaseException:
            for number, seconds in ((signal.SIGTERM, 15), (signal.SIGKILL, 15)):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(program.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    program.wait(seconds)
            raise
