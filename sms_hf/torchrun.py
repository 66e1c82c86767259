"""
torchrun for recipes: `python -m sms_hf.torchrun --standalone --nproc_per_node 2 SCRIPT`.

What went wrong, a script has said itself. torchrun would add a traceback of its own and a summary, 40 lines, also
after Ctrl-C, and lose the exit code.
"""

import logging
import signal
import sys
from collections.abc import Sequence

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main(argv: Sequence[str] | None = None) -> int:
    """Run torchrun: the exit code of the process that failed first, as shells tell it where a signal ended it."""
    logging.disable(logging.ERROR)
    try:
        run.run(run.parse_args(argv))
    except SignalException as stop:
        return 128 + stop.sigval
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return failure.exitcode
        name = signal.Signals(-failure.exitcode).name
        print(f"sms-hf: process {rank} was ended by {name}, and the others with it", file=sys.stderr)
        return 128 - failure.exitcode
    return 0


if __name__ == "__main__":
    sys.exit(main())
