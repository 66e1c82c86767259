"""The comparison: what a file asks for, cells on two processes that are run once, refusals, and the tables."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sms_hf import METHODS, compare
from sms_hf.training.processes.launch import single_process
from sms_hf.training.processes.stopping import Stopped

ROOT = Path(__file__).parents[2]
TOY = """
import sys
from dataclasses import dataclass

sys.path.append({tests!r})
from sms_hf import tasks
from conftest import collate, reversal, tiny_t5
from transformers import T5ForConditionalGeneration


@dataclass
class RecipeArguments(tasks.CommonArguments):
    rows: int = 24
    broken: bool = False


def load_task(recipe, args):
    def make(model):
        return tasks.Task(model, reversal(recipe.rows), reversal(10, seed=1), reversal(10, seed=2), collate)

    if recipe.broken:
        raise RuntimeError("the cat sat on the keyboard")
    folder = tasks.demo_model(recipe, args, lambda: make(tiny_t5(seed=args.seed)))
    return make(T5ForConditionalGeneration.from_pretrained(folder))
"""
SETTINGS = {
    "demo": True,
    "dense_epochs": 1,
    "num_phases": 1,
    "num_train_epochs": 1,
    "learning_rate": 3e-3,
    "per_device_train_batch_size": 4,
    "save_strategy": "no",
    "report_to": "none",
    "dataloader_pin_memory": False,
    "use_cpu": True,
}
FILE = {
    "recipe": "toy",
    "models": {"Tiny": {}},
    "settings": SETTINGS,
    "methods": {
        "IMP": {"pruning_method": "imp"},
        "SMS (uniform)": {"pruning_method": "sms", "soup_method": "uniform"},
    },
    "companions": "SMS (uniform)",
    "sparsities": [0.5],
    "num_candidates": [2, 3],
    "seeds": [0, 1],
}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Writes a toy recipe and a file of settings; the file's path."""
    monkeypatch.delitem(sys.modules, "toy", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "toy.py").write_text(TOY.format(tests=str(ROOT / "tests")))

    def write(**changes) -> str:
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({**FILE, "output_dir": str(tmp_path / "out")} | changes, sort_keys=False))
        return str(path)

    return write


def launch(*arguments: str) -> subprocess.CompletedProcess:
    command = [
        "accelerate.commands.accelerate_cli",
        "launch",
        "--config_file",
        str(ROOT / "recipes/accelerate/cpu_2.yaml"),
    ]
    command += ["--main_process_port", "0", str(ROOT / "recipes" / "compare.py"), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TESTS_DRAW": "1"}
    return subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, timeout=300, env=environment
    )


# ---- End to end --------------------------------------------------------------------------------------------------------


def test_cells_are_fanned_out_once_and_end_in_a_table(toy, tmp_path):
    file, out = toy(), tmp_path / "out"
    first = launch(file)
    assert first.returncode == 0, first.stderr[-3000:]
    results = sorted(out.rglob("result.json"))
    # IMP does not depend on the number of candidates: 2 runs; SMS: 2 numbers x 2 seeds.
    assert len(results) == 6
    assert "6 cells, 0 of them done; 2 process(es)" in first.stdout
    assert sorted(re.findall(r"\[(\d)/6\]", first.stdout)) == list("123456")
    assert not list(out.rglob("seed-*/**/*.safetensors")), "weights of finished cells are gone"
    assert len(list(out.rglob("dense-seed-*/model.safetensors"))) == 2

    imp = json.loads((out / "tiny/imp/sparsity-0.5/seed-0/result.json").read_text())
    sms = json.loads((out / "tiny/sms-uniform/sparsity-0.5/m-3/seed-0/result.json").read_text())
    assert (imp["num_candidates"], imp["epochs"], imp["steps"], imp["companions"]) == (None, 1.0, 6, {})
    assert (sms["num_candidates"], sms["epochs"], sms["steps"]) == (3, 3.0, 18)
    assert sms["metric"] == "loss"
    assert not sms["greater_is_better"]
    assert sms["actual_sparsity"] == pytest.approx(0.5)
    assert list(sms["companions"]) == ["best candidate", "mean candidate", "prediction ensemble", "dense"]
    assert all(scores["test"] > 0 and scores["validation"] > 0 for scores in sms["companions"].values())
    best = sms["companions"]["best candidate"]
    assert best["test"] == sms["test_scores"][f"phase-1/{best['candidate']}"]
    assert sms["companions"]["mean candidate"]["validation"] >= best["validation"]

    text = (out / "comparison.md").read_text()
    table = [line for line in text.split("Tiny: validation")[0].splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table[2:]] == [
        "dense",
        "IMP",
        "SMS (uniform)",
        "best candidate",
        "mean candidate",
        "prediction ensemble",
    ]
    assert "50 %, m = 2" in table[0]
    assert text.count("**Tiny: test loss (lower is better), mean ± sample standard deviation over 2 seeds**") == 1
    assert "6 of 6 cells done." in text
    with open(out / "comparison.csv") as file_:
        lines = list(csv.DictReader(file_))
    assert len(lines) == 2 + 4 * 4 + 2  # IMP; SMS with three companions; dense once for each seed.
    assert (out / "comparison.png").stat().st_size > 10_000
    assert len(json.loads((out / "comparison.json").read_text())["results"]) == 6

    # A second launch does nothing; without one result, only that one is made, and comes out the same.
    stamps = {path: path.stat().st_mtime_ns for path in results}
    old = json.loads(results[0].read_text())
    results[0].unlink()
    again = launch(file)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "6 cells, 5 of them done" in again.stdout
    assert [path for path in results if path.stat().st_mtime_ns != stamps[path]] == [results[0]]
    new = json.loads(results[0].read_text())
    assert new["test"] == old["test"]


def test_a_part_a_failure_and_changed_settings(toy, tmp_path):
    """In one process; a failing row leaves the others alone, and is tried again."""
    broken = {**FILE["methods"], "Broken": {"broken": True, "pruning_method": "imp"}}
    file, out = toy(methods=broken), tmp_path / "out"
    part = [file, "--seeds", "0", "--num_candidates", "2"]
    with pytest.raises(SystemExit, match=r"(?s)1 cells failed.*Tiny, Broken, 50 %, seed 0: .*error.txt"):
        compare.main(part)
    assert "the cat sat on the keyboard" in (out / "tiny/broken/sparsity-0.5/seed-0/error.txt").read_text()
    assert len(list(out.rglob("result.json"))) == 2
    text = (out / "comparison.md").read_text()
    assert "| failed " in text
    assert "(1 of 2 seeds)" in text
    assert "2 of 8 cells done, 1 failed." in text

    with pytest.raises(SystemExit, match=r"got others: .*Tiny, IMP, 50 %, seed 0: num_train_epochs: 1 -> 2.0"):
        compare.main([*part, "--num_train_epochs", "2", "--methods", "SMS (uniform)"])
    # Mended.
    compare.main([toy(methods=broken | {"Broken": {"pruning_method": "imp"}}), *part[1:]])
    assert len(list(out.rglob("result.json"))) == 3
    assert not list(out.rglob("error.txt"))


def test_a_wish_to_stop_ends_the_study_and_is_no_failure_of_the_cell(toy, tmp_path, monkeypatch):
    part = [toy(), "--seeds", "0", "--num_candidates", "2", "--methods", "IMP", "SMS (uniform)"]
    tried = []

    def preempted(*_, **__):
        tried.append(1)
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr("sms_hf.compare.cells.make_result", preempted)
    with pytest.raises(Stopped):
        compare.main(part)
    assert len(tried) == 1
    assert not list((tmp_path / "out").rglob("error.txt"))


def test_a_cell_that_was_killed_goes_on(toy, tmp_path, monkeypatch, capsys):
    file, out = toy(), tmp_path / "out"
    part = [file, "--seeds", "0", "--num_candidates", "2", "--methods", "SMS (uniform)"]

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sms_hf.compare.cells.make_result", killed)
        with pytest.raises(KeyboardInterrupt):
            compare.main(part)
    cell = out / "tiny/sms-uniform/sparsity-0.5/m-2/seed-0"
    candidate = cell / "_run/phase-1/candidate-1/model.safetensors"
    before = candidate.stat().st_mtime_ns
    assert not (cell / "result.json").exists()
    compare.main([*part, "--keep_weights"])
    assert candidate.stat().st_mtime_ns == before, "it was not trained again"
    capsys.readouterr()
    compare.main([file, "--report"])
    shown = capsys.readouterr().out
    assert "1 of 6 cells done." in shown
    assert "Tiny: test loss (lower is better)" in shown
    shutil.rmtree(out)
    compare.main([file, "--report"])
    assert "Nothing is done yet" in capsys.readouterr().out


# ---- What a file asks for ----------------------------------------------------------------------------------------------


def test_precedence_of_settings(toy):
    """A row is what it is; then the command line, the model, the common settings."""
    methods = {"A": {"pruning_method": "sms", "weight_decay": 0.1}, "B": {"pruning_method": "imp"}}
    models = {"One": {"learning_rate": 0.5, "rows": 8}, "Two": {}}
    file = toy(methods=methods, models=models, companions=None)
    study = compare.read_study([file, "--weight_decay", "0.2", "--rows", "12"])
    cells = {(c.model, c.method): c for c in study.cells(study.asked)}
    with single_process():
        found = {key: study.arguments(cell) for key, cell in cells.items()}
    assert [found[key][1].weight_decay for key in found] == [0.1, 0.2, 0.1, 0.2]
    assert [found[key][1].learning_rate for key in found] == [0.5, 0.5, 3e-3, 3e-3]
    assert {recipe.rows for recipe, _ in found.values()} == {12}
    assert [args.num_candidates for _, args in found.values()] == [3, None, 3, None]
    assert not any(args.keep_candidates for _, args in found.values())


def test_a_part_of_the_grid_and_values_beyond_it(toy):
    study = compare.read_study([toy(), "--sparsities", "0.8", "--seeds", "1", "--methods", "IMP"])
    assert [str(cell) for cell in study.cells(study.asked)] == ["Tiny, IMP, 80 %, seed 1"]
    assert study.whole.sparsities == (0.5, 0.8)
    assert study.whole.seeds == (0, 1)


def test_longest_first(toy):
    study = compare.read_study([toy(), "--seeds", "0"])
    with single_process():
        todo = compare.plan(study)
    cells = study.cells(study.asked)
    assert [cells[n].num_candidates for n in todo["pending"]] == [3, 2, None]
    assert todo["work"] == pytest.approx([3.3, 2.2, 1.1])
    assert todo["dense"] == [("Tiny", 0)]


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"sparsity": [0.5]}, [], "must hold recipe, .*got \\['sparsity'\\]"),
        ({"seeds": []}, [], "must hold seeds too"),
        ({"settings": {"num_fases": 2}}, [], "settings: expected settings of the recipe toy, got \\['num_fases'\\]"),
        ({"settings": {"target_sparsity": 0.5}}, [], "\\['target_sparsity'\\] are set by the comparison"),
        ({"settings": {"vary": {"seed": [1, 2]}}}, [], "expected no seed in `vary`"),
        ({"settings": {"smaller_first": ["neurons:0.5"]}}, [], "expected no smaller_first: a cell is one run"),
        ({"methods": {"A": {"pruning_method": "magic"}}, "companions": None}, [], "pruning_method must be one of"),
        ({"methods": {"A b": {}, "a B": {}}, "companions": None}, [], "labels must give different folders"),
        ({"companions": "SMS"}, [], "companions must be one of the methods \\(IMP, SMS"),
        ({"settings": {}}, [], "seeds must lie at least 3 apart, got \\[1\\]"),
        ({}, ["--methods", "SMS"], "--methods must be labels of .*got \\['SMS'\\]"),
        ({}, ["--seed", "4"], "the command line: \\['seed'\\] are set by the comparison. Use models, .*, seeds"),
    ],
)
def test_what_makes_no_sense_is_refused(toy, changes, options, message):
    with pytest.raises(SystemExit, match=message):
        compare.read_study([toy(**changes), *options])


def test_arguments_that_make_no_sense_are_refused_before_anything_runs(toy, tmp_path):
    with pytest.raises(SystemExit, match=r"Tiny, IMP, 150 %, seed 0: target_sparsity must lie in \[0, 1\), got 1.5"):
        compare.main([toy(), "--sparsities", "1.5"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name",
    [
        "compare_digits",
        "compare_multi30k",
        "compare_knobs",
        "compare_budget",
        "compare_multi30k_budget",
        "compare_sst2",
    ],
)
def test_every_yaml_holds_a_comparison(name, tmp_path):
    study = compare.read_study([str(ROOT / "recipes" / f"{name}.yaml"), "--output_dir", str(tmp_path / "out")])
    with single_process():
        todo = compare.plan(study)
    assert todo["refused"] is None
    assert len(todo["pending"]) == len(study.cells(study.asked))
    methods = {values["pruning_method"] for values in study.methods.values()}
    budget = {"imp", "imp-mx", "sms", "gmp", "gmp-mx", "gmp-soup"}
    some = {"knobs": {"sms"}, "budget": budget, "sst2": budget}
    assert methods == next((rows for part, rows in some.items() if name.endswith(part)), set(METHODS))
