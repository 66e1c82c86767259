"""What of a finished run must not depend on how often it was interrupted."""

import hashlib
import json
from pathlib import Path
from typing import Any

INCIDENTAL = {"seconds", "started", "process", "versions", "train_loss"}
"""Entries of report.json that tell of this execution, not of the result."""


def read_result(output: Path) -> dict[str, Any]:
    """Hash of weights, masks and configuration of the final model, and every entry of the report."""
    paths = [*output.glob("*.safetensors"), *output.glob("*config.json")]
    found: dict[str, Any] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    return found | flatten(json.loads((output / "report.json").read_text("utf-8")), "report.json")


def differences(expected: dict[str, Any], got: dict[str, Any]) -> list[str]:
    """Entries that differ, exactly; numbers are not rounded."""
    names = sorted({*expected, *got})
    return [f"{n}: {expected.get(n)!r} -> {got.get(n)!r}" for n in names if repr(expected.get(n)) != repr(got.get(n))]


def train_losses(output: Path) -> list[float | None]:
    """Trainer starts its mean anew on resume, so these may differ; they are told apart from the result."""
    phases = json.loads((output / "report.json").read_text("utf-8"))["phases"]
    return [candidate["train_loss"] for phase in phases for candidate in phase["candidates"]]


def list_files(output: Path) -> set[str]:
    return {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}


def unrecorded_failures(output: Path, name: str) -> list[str]:
    """Phases in which a candidate that must fail has no reason on record, or is an ingredient."""
    found = []
    for phase in json.loads((output / "report.json").read_text("utf-8"))["phases"]:
        record = next(candidate for candidate in phase["candidates"] if candidate["name"] == name)
        if not record["failure"] or name in phase["soup"]["ingredients"]:
            found.append(f"phase {phase['number']}: {record}")
    return found


def flatten(value: Any, name: str) -> dict[str, Any]:
    """`{"a": [1, {"b": 2}]}` -> `{"name/a/0": 1, "name/a/1/b": 2}`, without `INCIDENTAL` entries."""
    if isinstance(value, dict):
        parts = [flatten(part, f"{name}/{key}") for key, part in value.items() if key not in INCIDENTAL]
    elif isinstance(value, list):
        parts = [flatten(part, f"{name}/{number}") for number, part in enumerate(value)]
    else:
        return {name: value}
    return {key: part for found in parts for key, part in found.items()}
