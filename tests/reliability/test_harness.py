"""What the kill harness says of a run directory, and what it does to one."""

import json
import random

import pytest

from .faults import KINDS, Fault, damage, hurt
from .operations import Board
from .progress import describe, matches, place
from .result import differences, flatten


@pytest.fixture
def output(tmp_path):
    """A run in its second phase, at the second candidate."""
    phases = tmp_path / "_run"
    for name in ("phase-1/soup", "phase-2/candidate-1", "phase-2/candidate-2/checkpoint-4"):
        (phases / name).mkdir(parents=True)
    (phases / "run.json").write_text(json.dumps({"plan": [1, 2]}))
    for name in ("phase-1/phase.json", "phase-2/parent.json", "phase-2/candidate-1.json"):
        (phases / name).write_text("{}")
    for name in ("model.safetensors", "optimizer.pt", "trainer_state.json"):
        (phases / "phase-2/candidate-2/checkpoint-4" / name).write_bytes(bytes(100))
    return tmp_path


def test_the_moment_is_read_from_the_files(output):
    assert describe(output) == "a candidate: phase-2, candidate-2 has checkpoint-4"
    (output / "_run/phase-2/candidate-2/checkpoint-4/optimizer.pt").unlink()
    assert place(describe(output)) == "a Trainer checkpoint"
    (output / "_run/phase-2/candidate-2.json.partial").touch()
    assert describe(output) == "a file: _run/phase-2/candidate-2.json.partial"


def test_a_glob_matches_the_end_of_a_path():
    assert matches("_run/phase-1/candidate-2/checkpoint-4/optimizer.pt", "checkpoint-*/optimizer.pt")
    assert not matches("_run/phase-1/candidate-2/optimizer.pt", "checkpoint-*/optimizer.pt")


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_seeded_and_changes_one_file(output, kind):
    path = output / "_run/phase-2/candidate-2/checkpoint-4/model.safetensors"
    fault = hurt(output, path, kind, random.Random(0))
    assert (fault.kind, fault.path) == (kind, "_run/phase-2/candidate-2/checkpoint-4/model.safetensors")
    assert not path.exists() or path.read_bytes() != bytes(100)
    drawn = [damage(output, random.Random(3), "flipped") for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert damage(output / "nothing", random.Random(0)) is None


def test_a_repair_is_named_by_file_or_folder():
    fault = Fault("flipped", "_run/phase-2/candidate-3/model.safetensors", "")
    assert fault.is_named("phase 2: candidate-3 is damaged, trained again")
    assert not fault.is_named("phase 2: candidate-2 is damaged, trained again")
    assert not fault.is_named("phase 2, candidate-3 (seed=9): loss 4.774, 8 steps, 0 s")


def test_results_differ_in_the_last_digit_and_not_in_time():
    one = flatten({"seconds": 1.0, "phases": [{"score": 0.1}]}, "report.json")
    other = flatten({"seconds": 2.0, "phases": [{"score": 0.2 - 0.1}]}, "report.json")
    assert differences(one, other) == []
    other = flatten({"phases": [{"score": 0.30000000000000004 - 0.2}]}, "report.json")
    assert differences(one, other) == ["report.json/phases/0/score: 0.1 -> 0.10000000000000003"]


def test_the_board_tells_the_last_operation():
    board = Board(2)
    assert [board.count(1, "mkdir _run"), board.count(1, "rename a")] == [1, 2]
    assert (board.operations(0), board.operations(1), board.last(1), board.finished) == (0, 2, "rename a", False)
    for worker in (0, 1):
        board.finish(worker)
    assert board.finished
