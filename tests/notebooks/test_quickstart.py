"""The notebook runs from the first cell to the last, and uses public names only."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "quickstart.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_every_cell_runs_on_fewer_sentences(notebook):
    sources = "\n".join(cell.source for cell in notebook.cells)
    assert "num_train=4000" in sources
    for cell in notebook.cells:
        cell.source = cell.source.replace("num_train=4000", "num_train=600").replace(
            "=100, num_test=100", "=20, num_test=20"
        )
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    printed = "".join(o.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs)
    assert "mean candidate" in printed
    assert "sparsity of the prunable weights: 80.00%" in printed


def test_only_public_names_are_imported_and_no_output_is_stored(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    modules = set(re.findall(r"^(?:from|import) (sms_hf[\w.]*)", "\n".join(cell.source for cell in code), flags=re.M))
    assert modules == {"sms_hf", "sms_hf.demo"}
    assert all(not cell.outputs for cell in code)
