"""
Run notebooks from the first cell to the last and keep what they print and draw:

    make notebooks                                  # all of them, a quarter of an hour on one core
    python tests/notebooks/keep.py quickstart       # one

`text_classification` takes its encoder and its data from the Hub, or from MODEL_FOLDER and DATA_FOLDER.
"""

import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def digest(notebook):
    """Of the code: says whether outputs are from a run of the cells that stand there."""
    return hashlib.sha256("\0".join(cell.source for cell in code_cells(notebook)).encode()).hexdigest()


def run(notebook, folder):
    """Execute the cells in a folder, on one thread; outputs are those of this run alone."""
    os.environ["OMP_NUM_THREADS"] = "1"
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        store_widget_state=False,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    notebook.metadata["sources_sha256"] = digest(notebook)


if __name__ == "__main__":
    for name in sys.argv[1:] or NAMES:
        notebook, begin = read(name), time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            run(notebook, folder)
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")
        print(f"{name}: {time.monotonic() - begin:.0f} s")
