"""The notebooks run from the first cell to the last, and what they keep is from a run of the cells that stand there."""

import hashlib
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
FIGURES = {"look_into_a_soup": 2, "smaller_and_faster": 1}
MAX_BYTES = 400_000


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook):
    return "".join(output.get("text", "") for cell in code_cells(notebook) for output in cell.outputs)


def figures(notebook):
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return sum("image/png" in output.get("data", {}) for output in outputs)


# ---- What each notebook says, of the text that it printed --------------------------------------------------------------


def numbers(pattern, text):
    """The groups of the first match, as numbers."""
    match = re.search(pattern, text)
    assert match, f"{pattern!r} is not in {text!r}"
    return [float(number) for number in match.groups()]


def check_look_into_a_soup(text):
    apart, from_soup = numbers(r"between candidates: ([\d.]+); of the soup from candidates: ([\d.]+)", text)
    assert from_soup < apart
    assert numbers(r"barrier to candidate 2: ([+-][\d.]+)", text)[0] < 0.02
    assert numbers(r"barrier to a model from another start: ([+-][\d.]+)", text)[0] > 0.5
    assert "the second within the first: True" in text


def check_smaller_and_faster(text):
    names = ["dense", "neurons, shrunken", "single, packed", "the same, speed_up"]
    rows = {name: numbers(rf"(?m)^{name} +([\d.]+)% +[\d,]+ +([\d.]+)x", text) for name in names}
    accuracy, smaller = ({name: row[i] for name, row in rows.items()} for i in (0, 1))
    assert min(accuracy.values()) > accuracy["dense"] - 3
    assert smaller["neurons, shrunken"] > 2
    assert smaller["single, packed"] > 3


CHECKS = {
    "look_into_a_soup": check_look_into_a_soup,
    "smaller_and_faster": check_smaller_and_faster,
}
NOTEBOOKS = sorted(CHECKS)


@pytest.mark.long
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs_from_a_clean_copy_and_says_what_it_kept(name, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = read(name)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert figures(notebook) == FIGURES[name]
    CHECKS[name](printed(notebook))


@pytest.mark.parametrize("name", NOTEBOOKS)
class TestWhatIsKept:
    def test_is_from_a_run_of_these_cells(self, name):
        notebook = read(name)
        sources = "\0".join(cell.source for cell in code_cells(notebook))
        assert notebook.metadata["sources_sha256"] == hashlib.sha256(sources.encode()).hexdigest()
        counts = [cell.execution_count for cell in code_cells(notebook)]
        assert counts == list(range(1, len(counts) + 1))
        assert all(output.output_type != "error" for cell in code_cells(notebook) for output in cell.outputs)

    def test_says_what_the_text_says(self, name):
        CHECKS[name](printed(read(name)))

    def test_has_its_figures_and_is_small(self, name):
        assert figures(read(name)) == FIGURES[name]
        assert (FOLDER / f"{name}.ipynb").stat().st_size < MAX_BYTES

    def test_names_no_path_of_a_machine_and_nothing_went_to_stderr(self, name):
        notebook = read(name)
        assert not re.search(r"/tmp|/home|/root|/work", printed(notebook))
        assert all(output.get("name") != "stderr" for cell in code_cells(notebook) for output in cell.outputs)
        assert all(not cell.metadata for cell in notebook.cells)
