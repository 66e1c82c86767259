"""
Small runs one after the other, with faults of all kinds, for as long as is asked.

    python -m tests.reliability.endurance --minutes 60 --seed 0 [--output DIR]
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from .harness import Harness, Reference, Story
from .job import FAILING, HEALTHY
from .tally import Tally

Kind = Callable[[Harness, str, int], Story]


def _interrupted(harness: Harness, variant: str, processes: int, sign: int, worker: bool, **options) -> Story:
    def draw(reference: Reference):
        return harness.draw(reference, processes, sign, worker)

    return harness.run(variant, processes, draw, **options)


def _failing(harness: Harness, variant: str, processes: int) -> Story:
    """A candidate that fails in every attempt, and kills besides."""
    return harness.run(harness.rng.choice(FAILING), processes)


def _full_disk(harness: Harness, variant: str, processes: int) -> Story:
    return harness.run_on_full_disk(variant, processes)


def _read_only_disk(harness: Harness, variant: str, processes: int) -> Story:
    return harness.run_on_read_only_disk(variant, processes)


KILL, TERM = signal.SIGKILL, signal.SIGTERM
KINDS: dict[str, Kind] = {
    "kills": partial(_interrupted, sign=KILL, worker=False),
    "kills of one worker": partial(_interrupted, sign=KILL, worker=True),
    "SIGTERM": partial(_interrupted, sign=TERM, worker=False),
    "SIGTERM to one worker": partial(_interrupted, sign=TERM, worker=True),
    "truncated files": partial(_interrupted, sign=KILL, worker=False, fault="truncated"),
    "flipped bits": partial(_interrupted, sign=KILL, worker=False, fault="flipped"),
    "deleted files": partial(_interrupted, sign=KILL, worker=False, fault="deleted"),
    "damage after the end": partial(_interrupted, sign=KILL, worker=False, most=1, after_the_end=True),
    "failing candidates": _failing,
    "full disk": _full_disk,
    "read-only disk": _read_only_disk,
}
"""What a run can meet; each is as frequent."""
ALONE = ("kills of one worker", "SIGTERM to one worker")
"""Kinds that need a second process."""


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 1 if any run was lost."""
    parser = argparse.ArgumentParser(description="Runs with random faults; all must end bit-identical.")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--variants", nargs="+", default=list(HEALTHY), choices=HEALTHY)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--runs", type=int, help="Stop after so many.")
    parser.add_argument("--output", type=Path, help="Where runs that were lost are kept. Default: a temporary folder.")
    options = parser.parse_args(arguments)
    output = options.output or Path(tempfile.mkdtemp(prefix="endurance-"))
    harness, tally, start = Harness(output, options.seed), Tally(), time.monotonic()
    kinds: list[str] = []
    while time.monotonic() - start < 60 * options.minutes and len(tally.stories) != options.runs:
        if not kinds:  # Every kind once, in another order each time.
            kinds = harness.rng.sample(options.kinds, len(options.kinds))
        kind = kinds.pop()
        processes = max(2, *options.processes) if kind in ALONE else harness.rng.choice(options.processes)
        story = KINDS[kind](harness, harness.rng.choice(options.variants), processes)
        print(f"{time.monotonic() - start:6.0f} s  {tally.add(story, kind)}", flush=True)
    print(
        f"\nSeed {options.seed}, {(time.monotonic() - start) / 60:.1f} minutes.\n\n{tally.table()}\n\n{tally.causes()}"
    )
    return 1 if tally.lost else 0


if __name__ == "__main__":
    sys.exit(main())
