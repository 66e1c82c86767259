"""
The only room that knows file names.

    output_dir/                     the final model, tokenizer, masks.safetensors, report.json
      _run/run.json                 what this run is: settings and plan, frozen
      _run/dense.json               score of the model before pruning
      _run/phase-1/parent/          pruned weights and masks, then parent.json beside it
      _run/phase-1/candidate-1/     retrained weights, then candidate-1.json
      _run/phase-1/soup/            averaged weights, then phase.json
      _run/phase-2/ ...

A record (`*.json`) is written last and in one piece: where it is, what it speaks of is whole.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

INTERNAL = "_run"  # Trainer.push_to_hub leaves out what begins with an underscore.


class RunDirectory:
    """Paths and records of one run."""

    def __init__(self, output_dir: str | Path):
        self.root = Path(output_dir)
        self.run_record = self.root / INTERNAL / "run.json"
        self.dense_record = self.root / INTERNAL / "dense.json"
        self.report = self.root / "report.json"

    def phase(self, number: int) -> Path:
        return self.root / INTERNAL / f"phase-{number}"

    def phase_record(self, number: int) -> Path:
        return self.phase(number) / "phase.json"

    def parent(self, number: int) -> Path:
        return self.phase(number) / "parent"

    def parent_record(self, number: int) -> Path:
        return self.phase(number) / "parent.json"

    def candidate(self, number: int, name: str) -> Path:
        return self.phase(number) / name

    def candidate_record(self, number: int, name: str) -> Path:
        return self.phase(number) / f"{name}.json"

    def candidate_records(self, number: int) -> list[Path]:
        """Records of a phase that are there, in the order of the candidates."""
        paths = self.phase(number).glob("candidate-*.json")
        return sorted(paths, key=lambda path: int(path.stem.removeprefix("candidate-")))

    def soup(self, number: int) -> Path:
        return self.phase(number) / "soup"

    def trial(self, number: int) -> Path:
        return self.phase(number) / "trial"

    def scratch(self, number: int) -> Path:
        """A folder for a model that is scored and removed."""
        return self.root / INTERNAL / f"scratch-{number}"

    def remove(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    def open(self, settings: dict[str, Any], resume: bool) -> None:
        """
        Start a run here, or go on with the one that is here. A run that has pruned nothing yet may be started anew.

        Raises:
            ValueError: If another run is here and `resume` is not asked for, or it has other settings.
        """
        if not self.parent_record(1).is_file():
            self.dense_record.unlink(missing_ok=True)
            write_json(self.run_record, settings)
            return
        if not resume:
            raise ValueError(
                f"Expected a new or empty output_dir, but {self.root} holds a run. Continue it with "
                "train(resume_from_checkpoint=True) (--resume in the recipes), or choose another folder."
            )
        changed = differences(read_json(self.run_record), json.loads(json.dumps(settings)))
        if changed:
            raise ValueError(
                f"Expected the settings that the run in {self.root} was started with, got others: {'; '.join(changed)}. "
                "Resume with the same settings, or choose another folder."
            )


def differences(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> list[str]:
    """Entries that differ, as `name: before -> after`. Versions may differ: they are recorded, not compared."""
    changed = []
    for key in {**before, **after}:
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            changed += differences(old, new, f"{prefix}{key}.") if key != "versions" else []
        elif old != new:
            changed.append(f"{prefix}{key}: {old!r} -> {new!r}")
    return changed


def write_json(path: Path, value: Any) -> None:
    """Write a record so that it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def remove_weights(folder: Path) -> None:
    """Remove a model folder, but not what loggers wrote into folders of their own (`runs/` of TensorBoard)."""
    remove_checkpoints(folder)
    for path in folder.glob("*"):
        if path.is_file():
            path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def remove_checkpoints(folder: Path) -> None:
    """Remove the Trainer checkpoints of a finished candidate: they hold two or three times the model's size."""
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)
