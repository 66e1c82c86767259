"""A run survives a kill at any moment, and ends bit-identical."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_script(name: str, *options: str, timeout: float) -> None:
    """In a process of its own: what it forks must not inherit the trainers and launches of other tests."""
    command = [sys.executable, "-m", f"tests.reliability.{name}", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize(("processes", "variant"), [(1, "best"), (2, "plain")])
def test_a_run_that_is_killed_ends_bit_identical(tmp_path, processes, variant):
    options = ("--kills", "3", "--processes", str(processes), "--variants", variant, "--output", str(tmp_path))
    run_script("kill", *options, timeout=120)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_hundred_kills_over_all_variants(tmp_path):
    run_script("kill", "--kills", "100", "--seed", "1", "--output", str(tmp_path), timeout=1800)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_faults_of_all_kinds(tmp_path):
    run_script("endurance", "--runs", "60", "--minutes", "20", "--seed", "1", "--output", str(tmp_path), timeout=1800)
