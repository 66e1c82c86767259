"""The command line of a comparison."""

from collections.abc import Sequence

import datasets

from ..tasks.settings import RecipeError
from ..training.processes.launch import join_processes
from .cells import run_study
from .results import write_report
from .study import read_study


def main(argv: Sequence[str], description: str | None = None) -> None:
    """Do what the command line of `recipes/compare.py` asks for."""
    processes = join_processes()
    study = read_study(argv, description)
    datasets.disable_progress_bars()
    try:
        if not study.report_only:
            run_study(study, processes)
    except BaseException as error:
        processes.fail(error)
        raise
    if processes.is_main:
        print(f"\n{write_report(study)}", flush=True)
        failed = [cell for cell in study.cells(study.asked) if study.error(cell)]
        if failed:
            lines = "\n".join(f"  {cell}: {study.folder(cell) / 'error.txt'}" for cell in failed)
            raise RecipeError(f"{len(failed)} cells failed; the same command tries them again:\n{lines}")
