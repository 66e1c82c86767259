"""Folders of runs -> a page."""

from collections.abc import Sequence
from pathlib import Path

from ..files.writing import write_text
from ..report.page import PAGE, make_comparison, make_page
from .reading import read_run, whole_fields

COMPARISON = "comparison.html"


def write_page(folders: Sequence[Path], output: Path | None = None) -> Path:
    """
    Write the page of a run, or one that compares several.

    Args:
        folders (`Sequence[Path]`): The `output_dir` of each.
        output (`Path`, *optional*): The file. Default: `report.html` in the folder; of several `comparison.html`, here.

    Returns:
        `Path`: The file.

    Raises:
        CheckpointError: If a folder holds no run, or one that is damaged or of another version.
        ImportError: Without matplotlib.
        ValueError: If runs have different metrics, or there is no place for the file.
    """
    runs = [read_run(folder) for folder in folders]
    with whole_fields(", ".join(map(str, folders))):
        page = make_page(runs[0]) if len(runs) == 1 else make_comparison(runs)
    target = output or (folders[0] / PAGE if len(runs) == 1 else Path(COMPARISON))
    if target.is_dir() or not target.parent.is_dir():
        raise ValueError(f"Expected a file in a folder that is there, got {target}. Name another one with --output.")
    write_text(target, page)
    return target
