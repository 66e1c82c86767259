"""What recipes stand on: settings, data, the dense model of a demo, the job."""

from .data import from_hub, limit, read_files, read_hub, select_columns
from .dense import demo_model
from .job import prepare, run
from .models import keep_layers, model_for_classes
from .outcome import as_perplexity
from .settings import CommonArguments, FileArguments, FolderArguments, RecipeError, parse
from .task import Task, make_trainer

__all__ = [
    "CommonArguments",
    "FileArguments",
    "FolderArguments",
    "RecipeError",
    "Task",
    "as_perplexity",
    "demo_model",
    "from_hub",
    "keep_layers",
    "limit",
    "make_trainer",
    "model_for_classes",
    "parse",
    "prepare",
    "read_files",
    "read_hub",
    "run",
    "select_columns",
]
