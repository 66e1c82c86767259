"""All that is to be measured on a GPU runs here on the CPU, at the smallest sizes; what is cut off goes on."""

import json
import math
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import T5ForConditionalGeneration

import sms_hf

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks.gpu import ROOT, bundle, kept_tests
from benchmarks.gpu.programme import Part, Programme, carry_out
from sms_hf.training.run import records

ROWS = {
    "correct": ["tests"],
    "cost": ["masked-toy", "selection-toy"],
    "one_gpu": ["toy-2-1-process", "toy-2-2-processes", "toy-2-2-streams"],
    "inference": ["operations", "1", "2"],
    "translation": ["dense", "seed-42", "ten-epochs"],
}
CELLS = {
    "correct": ["test_masks_do_not_depend_on_the_device[2:4]", "passed"],
    "cost": ["0.3 M", "sms_hf prune", "the same weights"],
    "one_gpu": ["| toy ", "2 processes", "2 streams", "Time of a candidate where two share the GPU"],
    "inference": ["75 % of neurons removed", "| operations "],
    "translation": ["The dense model", "| SMS ", "| IMP_m\u00d7", "| GMP-soup", "| dense ", "validation bleu"],
}


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "benchmarks.gpu", *map(str, arguments)]
    env = os.environ | environment
    return subprocess.run(program, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)


def numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, float) else []


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def check_cost(folder):
    """Numbers that are known."""
    masked = read(folder / "masked-toy.json")["values"]
    assert masked["factor_bytes"] == 4 * masked["mask_bytes"] == 4 * masked["prunable"]
    assert masked["weight_bytes"] == 4 * masked["parameters"]
    assert masked["sparsity"] == pytest.approx(0.9, abs=1e-4)
    selection = read(folder / "selection-toy.json")["values"]
    assert selection["weights"] == 2 * 64 * 64
    assert "sms_hf 819, torch 819; the same weights" in selection["kept"]


def check_one_gpu(folder):
    """Two processes make the soup that one makes."""
    digests = {read(folder / f"toy-2-{way}.json")["values"]["digest"] for way in ("1-process", "2-processes")}
    assert len(digests) == 1


def check_translation(folder):
    """Every cell has its own scores, and the dense model is rounded, to be retrained in float32."""
    cells = [read(path) for path in (folder / "cells").rglob("result.json")]
    assert sorted(cell["method"] for cell in cells) == ["GMP-soup", "IMP_m\u00d7", "SMS"]
    assert all(cell["actual_sparsity"] == pytest.approx(0.9, abs=1e-2) for cell in cells)
    dense = T5ForConditionalGeneration.from_pretrained(folder / "parent")
    assert dense.dtype == torch.float32
    assert all(torch.equal(p, p.bfloat16().float()) for p in dense.parameters())
    assert not (folder / "training").exists()


CHECKS = {"cost": check_cost, "one_gpu": check_one_gpu, "translation": check_translation}


# Translation starts a dozen programs that have tests of their own.
@pytest.mark.parametrize("part", [pytest.param(p, marks=[pytest.mark.long] * (p == "translation")) for p in ROWS])
def test_a_part_measures_all_its_rows(part, tmp_path):
    result = command(part, "--device", "cpu", "--tiny", "--output", tmp_path)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    for name in ROWS[part]:
        row = read(tmp_path / part / f"{name}.json")
        assert row["values"], row
        assert all(math.isfinite(number) and number >= 0 for number in numbers(row))
    report = (tmp_path / f"{part}.md").read_text(encoding="utf-8")
    assert f"$ python -m benchmarks.gpu {part} --device cpu --tiny" in report
    assert "Not measured" not in report
    assert "Failed" not in report
    assert all(cell in report for cell in CELLS[part]), report
    if part in CHECKS:
        CHECKS[part](tmp_path / part)


def test_operations_that_are_left_out():
    """A layer of BERT: 4 h^2 + 2 h f multiplications a token, and 2 n h of attention; half of f is left out."""
    import inference

    fewer = inference.count_operations(inference.make_models("tiny", "cpu"), 8, "cpu")
    hidden, inner, length, layers = 64, 256, 8, 2
    rest = layers * (4 * hidden**2 + 2 * length * hidden)
    head = (hidden**2 + 2 * hidden) / length  # Pooler and classifier see one token.
    dense = rest + head + layers * 2 * hidden * inner
    assert fewer["90 % zeros in place"] == 1
    assert fewer["50 % of neurons removed"] == pytest.approx(dense / (rest + head + layers * hidden * inner), rel=1e-3)


def test_a_part_that_is_cut_off_goes_on(tmp_path):
    whole = ("inference", "--device", "cpu", "--tiny", "--output", tmp_path)
    cut = command(*whole, "--minutes", "1e-4")
    assert cut.returncode == 1
    assert cut.stderr.strip().splitlines()[-1].startswith("inference: the time was too short for operations, 1, 2")
    assert "Not measured: operations, 1, 2." in (tmp_path / "inference.md").read_text()
    kept = {"values": {"batch": 1, "dense_ms": 1234.5, "speed": {}}, "took": 1.0, "machine": "another"}
    (tmp_path / "inference").mkdir(exist_ok=True)
    (tmp_path / "inference" / "1.json").write_text(json.dumps(kept))
    result = command(*whole)
    assert result.returncode == 0, result.stderr
    assert read(tmp_path / "inference" / "1.json") == kept
    assert read(tmp_path / "inference" / "2.json")["values"]["batch"] == 2
    assert "1234.5" in (tmp_path / "inference.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("part", ["check", "cost"])
def test_without_a_gpu_a_sentence_says_so(part, tmp_path):
    result = command(part, "--output", tmp_path)
    assert result.returncode == 1
    assert "a GPU that torch can use (without one: --device cpu --tiny)" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_checkout_need_not_be_installed(make_trainer, monkeypatch):
    installed = records.version

    def version(name):
        assert name != "sms_hf"
        return installed(name)

    monkeypatch.setattr(records, "version", version)
    trainer = make_trainer({"num_phases": 1, "num_candidates": 1})
    trainer.train()
    assert trainer.report["settings"]["versions"]["sms_hf"] == sms_hf.__version__


def test_check_describes_the_machine():
    result = command("check", "--device", "cpu", "--tiny")
    assert result.returncode == 0, result.stderr
    assert f"torch {torch.__version__}" in result.stdout


# ---- Rows --------------------------------------------------------------------------------------------------------------


class Rows:
    """Two rows, of which the second fails or takes too long at first."""

    def __init__(self, trouble):
        self.trouble, self.measured = trouble, []

    def row(self, name):
        def measure():
            self.measured.append(name)
            if name == "second" and self.measured.count(name) == 1:
                self.trouble()
            return {"number": 1.5}

        return measure

    def part(self):
        rows = {name: self.row(name) for name in ("first", "second", "third")}
        return Part("some", "Some rows", rows, lambda found: f"rows: {', '.join(found)}")


def fail():
    raise ValueError("too\nlarge")


def test_a_row_that_fails_is_named_and_tried_again(tmp_path):
    rows, programme = Rows(fail), Programme("cpu", True, tmp_path)
    with pytest.raises(SystemExit, match="some: second failed"):
        carry_out(rows.part(), programme, 60)
    assert rows.measured == ["first", "second", "third"]
    assert read(tmp_path / "some" / "second.json")["error"] == "ValueError: too\nlarge"
    assert "rows: first, third\n\nFailed: second: large" in (tmp_path / "some.md").read_text()
    carry_out(rows.part(), programme, 60)
    assert rows.measured == ["first", "second", "third", "second"]
    assert "rows: first, second, third" in (tmp_path / "some.md").read_text()


def test_time_that_is_over_ends_a_row_in_its_middle(tmp_path):
    rows, programme = Rows(lambda: time.sleep(30)), Programme("cpu", True, tmp_path)
    handler = signal.getsignal(signal.SIGALRM)
    with pytest.raises(SystemExit, match="some: the time was too short for second, third; the same command goes on"):
        carry_out(rows.part(), programme, 0.5)
    assert signal.getsignal(signal.SIGALRM) is handler
    assert "rows: first\n\nNot measured: second, third." in (tmp_path / "some.md").read_text()
    carry_out(rows.part(), programme, 60)
    assert rows.measured == ["first", "second", "second", "third"]


def test_an_interrupted_program_takes_those_that_it_started_along(tmp_path):
    from _common import run_group

    note = tmp_path / "pid"
    parent = f"sleep 300 & echo $! > {note}; wait"

    def stop(number, frame):
        raise TimeoutError

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        killer = subprocess.Popen(["sh", "-c", f"while [ ! -s {note} ]; do sleep 0.05; done; kill -USR1 {os.getpid()}"])
        with pytest.raises(TimeoutError):
            run_group(["sh", "-c", parent], os.environ, tmp_path / "log.txt")
        killer.wait()
    finally:
        signal.signal(signal.SIGUSR1, before)
    status = Path(f"/proc/{note.read_text().strip()}/stat")

    def has_ended():
        try:
            return status.read_text().split()[2] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    deadline = time.monotonic() + 20  # It was told to end, and does so when its turn on the processor comes.
    while not has_ended():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_tests_that_passed_are_kept(tmp_path):
    (tmp_path / "test_two.py").write_text(
        "import pathlib\n"
        "def test_good(): pass\n"
        "def test_mended():\n    assert pathlib.Path(__file__).with_name('mended').is_file()\n"
    )
    outcomes = tmp_path / "outcomes"
    outcomes.mkdir()
    env = os.environ | {kept_tests.FOLDER: str(outcomes), "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.gpu.kept_tests", "-p", "no:cacheprovider"]

    def run():
        result = subprocess.run([*program, "test_two.py"], cwd=tmp_path, env=env, capture_output=True, text=True)
        return result.stdout, {row["test"]: row["outcome"] for row in kept_tests.read_outcomes(outcomes)}

    assert run()[1] == {"test_two.py::test_good": "passed", "test_two.py::test_mended": "failed"}
    (tmp_path / "mended").touch()
    said, found = run()
    assert "1 passed, 1 deselected" in said
    assert found == {"test_two.py::test_good": "passed", "test_two.py::test_mended": "passed"}


# ---- What travels ------------------------------------------------------------------------------------------------------


def test_results_travel_without_checkpoints_and_come_back(tmp_path):
    results, travelling = tmp_path / "runs", tmp_path / "bundle"
    names = [
        "cuda/cost.md",
        "cuda/cost/a.json",
        "cuda/translation/parent/model.safetensors",
        "cuda/translation/data/train.en",
    ]
    left = ["cuda/translation/training/checkpoint-1/optimizer.bin", "cuda/translation/training/checkpoint-1/state.json"]
    names += ["cuda/translation/cells/x/cell.json", "cuda/translation/cells-10-epochs/x/result.json"]
    left += [
        "cuda/translation/cells-10-epochs/x/model.safetensors",
        "cuda/translation/cells/x/tokenizer.json",
        "cpu-tiny/cost.md",
    ]
    for name in [*names, *left]:
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        (results / name).write_text(name)
    bundle.copy_results(travelling, results)

    def files(folder):
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    assert files(travelling / "results") == sorted(names)
    fresh = tmp_path / "elsewhere"
    bundle.restore_results(fresh / "cuda", travelling, fresh)
    assert files(fresh) == sorted(names)
    (fresh / "cuda" / "cost.md").write_text("newer")
    bundle.restore_results(fresh / "cuda", travelling, fresh)
    assert (fresh / "cuda" / "cost.md").read_text() == "newer"


def test_a_tree_that_is_too_large_to_travel_is_refused(tmp_path, monkeypatch):
    repository, travelling = tmp_path / "checkout", tmp_path / "checkout" / ".gpu"
    travelling.mkdir(parents=True)
    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    (repository / ".gitignore").write_text(".gpu\nignored\n")
    for name, size in {"known": 700, ".gpu/data": 500, "ignored": 4000}.items():
        (repository / name).write_bytes(bytes(size))
    monkeypatch.setattr(bundle, "ROOT", repository)
    assert bundle.size_of_tree(travelling) == 700 + 500 + len(".gpu\nignored\n")
    bundle.check_size(travelling, 1213)
    with pytest.raises(SystemExit, match="must be at most"):
        bundle.check_size(travelling, 1212)


def test_wheels_that_travelled_are_used_where_a_module_is_missing(tmp_path):
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "travelled-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("travelled/__init__.py", "VALUE = 17\n")
    program = (
        "import pathlib, subprocess, sys\n"
        "from benchmarks.gpu import check\n"
        "check.CARRIED = ('travelled',)\n"
        f"check.provide(pathlib.Path({str(tmp_path)!r}))\n"
        "import travelled\n"
        "assert travelled.VALUE == 17\n"
        "subprocess.run([sys.executable, '-c', 'import travelled'], check=True)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_all_that_is_missing_is_named_in_one_sentence(monkeypatch):
    from benchmarks.gpu import check

    monkeypatch.setattr(check, "MODULES", ("torch", "nowhere"))
    monkeypatch.setattr(check, "CORPORA", (Path("/nowhere/multi30k"),))
    with pytest.raises(SystemExit, match=r"Missing on this machine: nowhere; Multi30k in /nowhere/multi30k\. What can"):
        check.check("cpu", with_corpus=True)
