"""The notebooks run from the first cell to the last, and what they keep is from a run of the cells that stand there."""

import os
import re

import pytest

from .keep import FOLDER, NAMES, code_cells, digest, read, run

FIGURES = {
    "look_into_a_soup": 2,
    "quickstart": 2,
    "smaller_and_faster": 1,
    "text_classification": 1,
    "your_own_translator": 1,
}
MAX_BYTES = 400_000
SMALL = "num_train=600, num_validation=20, num_test=20"


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


def check_quickstart(text):
    dense, soup = numbers(r"test BLEU: dense ([\d.]+), soup ([\d.]+)", text)
    assert soup > dense - 3
    mean, best, of_all = (numbers(rf"phase-2 +{row} .*?60\.00 +([\d.]+)", text)[0] for row in ("mean", "best", "soup"))
    assert mean < best < of_all
    assert "sparsity of the prunable weights: 60.00%" in text


def check_your_own_translator(text):
    dense, soup = numbers(r"test BLEU: dense ([\d.]+), soup ([\d.]+)", text)
    assert soup > dense - 3
    assert numbers(r"([\d.]+) times smaller", text)[0] > 2
    assert "Elle a vendu quatre-vingt-treize pommes vertes le premier mai à six heures moins vingt." in text


def check_text_classification(text):
    dense, soup = numbers(r"test accuracy: dense ([\d.]+), soup ([\d.]+)", text)
    assert soup > dense - 0.04
    assert "wonderfully acted film. -> praise" in text


CHECKS = {
    "look_into_a_soup": check_look_into_a_soup,
    "quickstart": check_quickstart,
    "smaller_and_faster": check_smaller_and_faster,
    "text_classification": check_text_classification,
    "your_own_translator": check_your_own_translator,
}


def test_every_notebook_has_its_check():
    assert sorted(CHECKS) == sorted(FIGURES) == NAMES


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", NAMES)
def test_runs_from_a_clean_copy_and_says_what_it_kept(name, tmp_path):
    if name == "text_classification" and not {"MODEL_FOLDER", "DATA_FOLDER"} <= os.environ.keys():
        pytest.skip("needs an encoder and reviews: set MODEL_FOLDER and DATA_FOLDER")
    notebook = read(name)
    run(notebook, tmp_path)
    assert figures(notebook) == FIGURES[name]
    CHECKS[name](printed(notebook))


def test_quickstart_runs_on_fewer_sentences(tmp_path):
    notebook = read("quickstart")
    for cell in code_cells(notebook):
        cell.source = cell.source.replace("num_train=14000, num_validation=200, num_test=400", SMALL)
    assert any(SMALL in cell.source for cell in notebook.cells)
    run(notebook, tmp_path)
    assert figures(notebook) == FIGURES["quickstart"]
    assert "sparsity of the prunable weights: 60.00%" in printed(notebook)


@pytest.mark.parametrize("name", NAMES)
class TestWhatIsKept:
    def test_is_from_a_run_of_these_cells(self, name):
        notebook = read(name)
        assert notebook.metadata["sources_sha256"] == digest(notebook)
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

    def test_imports_public_names_only(self, name):
        code = "\n".join(cell.source for cell in code_cells(read(name)))
        modules = set(re.findall(r"^(?:from|import) (sms_hf[\w.]*)", code, flags=re.M))
        assert modules <= {"sms_hf", "sms_hf.demo", "sms_hf.metrics", "sms_hf.soup"}
