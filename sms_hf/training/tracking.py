"""Experiment trackers: every candidate is a run of its own, in one group."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

GROUP = "WANDB_RUN_GROUP"


@contextmanager
def own_run(group: str) -> Iterator[None]:
    """
    Give what is trained inside a tracker's run of its own.

    Trainer's callbacks begin a run where none is open, and leave it open: the next candidate of the process would go on in it,
    with steps that start anew. A run that was open before is the user's, and stays.

    Args:
        group (`str`): Name of what the candidates share. Weights & Biases reads it from the environment, where a group that
            the user has set wins.
    """
    theirs = _open_runs()
    before = os.environ.get(GROUP)
    os.environ.setdefault(GROUP, group)
    try:
        yield
    finally:
        for name, module in _open_runs().items():
            if name not in theirs:
                module.finish()
        if before is None:
            os.environ.pop(GROUP, None)


def _open_runs() -> dict[str, Any]:
    """Trackers that are imported and have a run open."""
    trackers = {name: sys.modules[name] for name in ("wandb",) if name in sys.modules}
    return {name: module for name, module in trackers.items() if getattr(module, "run", None) is not None}
