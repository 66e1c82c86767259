"""
The only room that knows file names.

    output_dir/                     the final model, tokenizer, masks.safetensors, report.json
      _run/run.json                 what this run is: settings and plan, frozen
      _run/dense.json               score of the model before pruning
      _run/phase-1/parent/          pruned weights and masks, then parent.json beside it
      _run/phase-1/candidate-1/     retrained weights, then candidate-1.json; Trainer's checkpoints while it is trained
      _run/phase-1/diagnostics.json how the candidates lie to each other
      _run/phase-1/trials.json      scores of the averages that were tried
      _run/phase-1/soup/            averaged weights, then phase.json
      _run/phase-2/ ...
      _run/final.json               the final model is whole

A record (`*.json`) is written last and in one piece, with checksums of itself and of the files it speaks of: where it is,
they are whole, and damage that comes later is noticed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..files.writing import write_text
from .say import say

INTERNAL = "_run"  # Trainer.push_to_hub leaves out what begins with an underscore.
CHECKPOINT_RECORD = "whole.json"
"""Written last into every checkpoint of Trainer, which writes its files one after the other under their own names."""
CHECKSUM, FILES = "checksum", "files"
ORIGIN = "origin"
"""Entry of a parent's record: which run it belongs to."""


class DamagedError(ValueError):
    """A record or a file that is not what was written."""


class RunDirectory:
    """Paths and records of one run."""

    def __init__(self, output_dir: str | Path):
        self.root = Path(output_dir)
        self.run_record = self.root / INTERNAL / "run.json"
        self.dense_record = self.root / INTERNAL / "dense.json"
        self.final_record = self.root / INTERNAL / "final.json"
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

    def diagnostics_record(self, number: int) -> Path:
        return self.phase(number) / "diagnostics.json"

    def trials_record(self, number: int) -> Path:
        return self.phase(number) / "trials.json"

    def soup(self, number: int) -> Path:
        return self.phase(number) / "soup"

    def trial(self, number: int) -> Path:
        return self.phase(number) / "trial"

    def scratch(self, number: int) -> Path:
        """A folder for a model that is scored and removed."""
        return self.root / INTERNAL / f"scratch-{number}"

    def remove(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    @property
    def is_started(self) -> bool:
        """Whether anything of a run is here that took time to make."""
        return any(self.phase(1).glob("*.json"))

    def open(self, settings: dict[str, Any], resume: bool) -> None:
        """
        Start a run here, or go on with the one that is here. A run that has pruned nothing yet may be started anew.

        Raises:
            ValueError: If another run is here and `resume` is not asked for, or it has other settings.
        """
        if not self.is_started:
            self.dense_record.unlink(missing_ok=True)
            write_record(self.run_record, settings)
            return
        if not resume:
            raise ValueError(
                f"Expected a new or empty output_dir, but {self.root} holds a run. Continue it with "
                "train(resume_from_checkpoint=True) (--resume in the recipes), or choose another folder."
            )
        before = self.whole(self.run_record)
        if before is None:
            say(f"{self.run_record}: written again, with the settings of now, which could not be compared")
            write_record(self.run_record, settings)
            return
        changed = differences(before, json.loads(json.dumps(settings)))
        # The plan follows from the arguments, and is long: it is news only where they are the same.
        told = [entry for entry in changed if not entry.startswith("plan: ")] or [
            "the plan, which another version made"
        ]
        if changed:
            raise ValueError(
                f"Expected the settings that the run in {self.root} was started with, got others: {'; '.join(told)}. "
                "Resume with the same settings, or choose another folder."
            )

    def check_origin(self, number: int, origin: str) -> None:
        """Remove a phase that another run made (other weights, other settings) and that was put in this one's place."""
        try:
            made_by = read_record(self.parent_record(number)).get(ORIGIN, origin)
        except DamagedError:
            return  # Missing or damaged: told where it is needed.
        if made_by != origin:
            say(f"of another run, to be made again: {self.phase(number)}")
            self.remove(self.phase(number))

    def check_notes(self, number: int) -> None:
        """Of a finished phase, what is only to be read by people: its record holds the same."""
        for path in (self.diagnostics_record(number), self.trials_record(number)):
            try:
                if path.is_file():
                    read_record(path)
            except DamagedError as error:
                say(f"damaged, removed: {error}; {self.phase_record(number).name} holds the same")
                path.unlink()

    def whole(self, record: Path, files: bool = True) -> dict[str, Any] | None:
        """
        A record, if it is there and whole, and so are the files that it speaks of (unless `files` is off).

        Where it is damaged, a line says so and the record is removed: its piece is to be made again.
        """
        if not record.is_file():
            return None
        try:
            value = read_record(record)
            if files:
                check_files(record)
        except DamagedError as error:
            say(f"damaged, to be made again: {error}")
            record.unlink()
            return None
        return value


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
    """Write a file so that it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_record(path: Path, value: dict[str, Any], files: Iterable[Path] = ()) -> dict[str, Any]:
    """Write a record with checksums of itself and of files; returns it as it will be read, without them."""
    listed = {os.path.relpath(file, path.parent): _digest(file) for file in sorted(files)}
    value = json.loads(json.dumps(value))
    write_json(path, {**value, FILES: listed, CHECKSUM: _checksum({**value, FILES: listed})})
    return value


def read_record(path: Path) -> dict[str, Any]:
    """
    Read what [`write_record`] wrote.

    Raises:
        DamagedError: If it is something else.
    """
    return _read_sealed(path)[0]


def check_files(record: Path) -> None:
    """Raise [`DamagedError`] for the first file of a record that is missing or not what its checksum says."""
    for name, digest in _read_sealed(record)[1].items():
        path = Path(os.path.normpath(record.parent / name))
        if not path.is_file():
            raise DamagedError(f"{path} is missing")
        if _digest(path) != digest:
            raise DamagedError(f"{path} does not match its checksum")


def _read_sealed(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """A record and its files."""
    try:
        value = read_json(path)
        checksum, is_right = value.pop(CHECKSUM), isinstance(value, dict)
        if not is_right or checksum != _checksum(value):
            raise DamagedError(f"{path} does not match its checksum")
        return value, value.pop(FILES)
    except DamagedError:
        raise
    except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        raise DamagedError(f"{path} is no whole record ({type(error).__name__})") from error


def model_files(folder: Path) -> list[Path]:
    """The files of a model folder; not those of Trainer and loggers in folders of their own, nor what was left unfinished."""
    return [path for path in folder.glob("[!.]*") if path.is_file() and path.suffix != ".partial"]


def remove_unfinished(folder: Path) -> None:
    """Remove what was being written when a process ended: ours, and what safetensors writes aside."""
    for path in [*folder.glob("*.partial"), *folder.glob(".tmp*")]:
        path.unlink()


def seal_checkpoint(folder: Path, value: dict[str, Any]) -> None:
    """Say that a checkpoint of Trainer is whole; with what Trainer does not keep in it."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != CHECKPOINT_RECORD]
    write_record(folder / CHECKPOINT_RECORD, value, files)


def read_seal(folder: Path) -> dict[str, Any]:
    """What was sealed with a checkpoint; nothing for those of other trainers."""
    return read_record(folder / CHECKPOINT_RECORD) if (folder / CHECKPOINT_RECORD).is_file() else {}


def last_checkpoint(folder: Path) -> str | None:
    """
    The newest checkpoint of a candidate that is whole, and whose best one so far is whole; others are removed.
    """
    whole: dict[str, Path] = {}
    for path in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[-1])):
        record = path / CHECKPOINT_RECORD
        try:
            if not record.is_file():
                raise DamagedError(f"{path} was not written to its end")
            check_files(record)
            best = read_json(path / "trainer_state.json").get("best_model_checkpoint")
            # Trainer would look for it there, and without it end with the last weights.
            if best is not None and Path(best) not in {*whole.values(), path}:
                raise DamagedError(f"{path} needs {best}, which is gone")
        except DamagedError as error:
            say(f"damaged, going on from before it: {error}")
            shutil.rmtree(path)
        else:
            whole[path.name] = path
    return str(list(whole.values())[-1]) if whole else None


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


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _checksum(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
