"""
Kills runs again and again, and compares their ends with those of uninterrupted ones.

    python -m tests.reliability.kill --kills 200 [--processes 1 2] [--variants plain best] [--seed 0] [--output DIR]
"""

import argparse
import itertools
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from .harness import Harness
from .job import HEALTHY, VARIANTS
from .tally import Tally


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 1 if any run was lost."""
    parser = argparse.ArgumentParser(description="Kill runs at random moments; all must end bit-identical.")
    parser.add_argument("--kills", type=int, default=50, help="At least so many.")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--variants", nargs="+", default=list(HEALTHY), choices=sorted(VARIANTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="Where runs that were lost are kept. Default: a temporary folder.")
    options = parser.parse_args(arguments)
    output = options.output or Path(tempfile.mkdtemp(prefix="kills-"))
    harness, tally, start = Harness(output, options.seed), Tally(), time.monotonic()
    for variant, processes in itertools.cycle(itertools.product(options.variants, options.processes)):
        one = processes > 1 and harness.rng.random() < 0.25
        draw = partial(harness.draw, processes=processes, worker=one)
        before = tally.kills
        print(tally.add(harness.run(variant, processes, draw), "killed"), flush=True)
        if tally.kills >= options.kills or (tally.kills == before and len(tally.stories) > 4 * options.kills + 20):
            break
    print(f"\n{tally.table()}\n\n{tally.causes()}", flush=True)
    print(f"{tally.kills} kills in {time.monotonic() - start:.0f} s", flush=True)
    return 1 if tally.lost else 0


if __name__ == "__main__":
    sys.exit(main())
