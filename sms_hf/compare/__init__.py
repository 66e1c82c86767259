"""Methods side by side, as the papers print them: models x methods x sparsities x numbers of candidates x seeds."""

from .cells import plan, run_study
from .command import main
from .results import write_report
from .study import read_study

__all__ = ["main", "plan", "read_study", "run_study", "write_report"]
