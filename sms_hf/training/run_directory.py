"""
Where the files of a run lie: known here alone.

    output_dir/                     the final model, tokenizer, masks.safetensors, report.json, report.html
      _run/run.json                 what this run is: settings and plan, frozen
      _run/dense.json               score of the model before pruning
      _run/teacher.safetensors      its logits for the training data, then teacher.json
      _run/phase-1/parent/          pruned weights and masks, then parent.json beside it
      _run/phase-1/candidate-1/     retrained weights, then candidate-1.json; Trainer's checkpoints while it is trained
      _run/phase-1/diagnostics.json how the candidates lie to each other
      _run/phase-1/trials.json      scores of the averages that were tried
      _run/phase-1/soup/            averaged weights, then phase.json
      _run/phase-1/candidate-1.optimizer.safetensors     where the next phase goes on with it
      _run/phase-2/ ...
      _run/soups/                   what trackers write of all soups, and trackers.json: by what they find that run again
      _run/final.json               the final model is whole
"""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..files.folder import MASKS, REPORT
from ..files.records import DamagedError, check_files, read_json, read_record, write_record
from .processes.say import say

INTERNAL = "_run"  # Trainer.push_to_hub leaves out what begins with an underscore.
CHECKPOINT_RECORD = "whole.json"
"""Written last into every checkpoint of Trainer, which writes its files one after the other under their own names."""
ORIGIN = "origin"
"""Entry of a parent's record: which run it belongs to."""


class RunDirectory:
    """Paths and records of one run."""

    def __init__(self, output_dir: str | Path):
        self.root = Path(output_dir)
        self.run_record = self.root / INTERNAL / "run.json"
        self.dense_record = self.root / INTERNAL / "dense.json"
        self.teacher, self.teacher_record = (
            self.root / INTERNAL / name for name in ("teacher.safetensors", "teacher.json")
        )
        self.final_record = self.root / INTERNAL / "final.json"
        self.report = self.root / REPORT
        self.soups = self.root / INTERNAL / "soups"  # Of trackers that write files.

    def phase(self, number: int) -> "PhaseFolder":
        """A phase, counted from 1."""
        return PhaseFolder(self.root / INTERNAL, number)

    @property
    def is_started(self) -> bool:
        """Whether anything of a run is here that took time to make."""
        return any(self.phase(1).root.glob("*.json"))

    def open(self, settings: dict[str, Any], resume: bool) -> None:
        """
        Start a run here, or go on with the one that is here. A run that has pruned nothing yet may be started anew.

        Raises:
            ValueError: If another run is here and `resume` is not asked for, or it has other settings.
        """
        if not self.is_started:
            self.dense_record.unlink(missing_ok=True)
            self.teacher_record.unlink(missing_ok=True)
            write_record(self.run_record, settings)
            return
        if not resume:
            raise ValueError(
                f"Expected a new or empty output_dir, but {self.root} holds a run. Continue it with "
                "train(resume_from_checkpoint=True) (--resume in the recipes), or choose another folder."
            )
        before = read_or_discard(self.run_record)
        if before is None:
            say(
                f"{self.run_record}: written again, with the settings of now, which could not be compared",
                logging.WARNING,
            )
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


class PhaseFolder:
    """
    Paths and records of one phase.

    Attributes:
        number (`int`): Counts from 1.
        parent, soup, trial, velocity (`Path`): Model folders: what candidates start from, what they become, an average that is
            tried, what an outer step leaves for the next.
        parent_record, record, diagnostics, trials (`Path`): Records of the parent, of the whole phase, of how candidates lie
            to each other, and of the scores of averages.
    """

    def __init__(self, internal: Path, number: int):
        self.number = number
        self._internal = internal
        self.root = internal / f"phase-{number}"
        self.parent, self.parent_record = self.root / "parent", self.root / "parent.json"
        self.soup, self.record = self.root / "soup", self.root / "phase.json"
        self.trial, self.velocity = self.root / "trial", self.root / "velocity"
        self.diagnostics, self.trials = self.root / "diagnostics.json", self.root / "trials.json"

    @property
    def teacher(self) -> Path:
        """Of all phases: logits of the model before pruning."""
        return self._internal / "teacher.safetensors"

    @property
    def before(self) -> "PhaseFolder":
        """The phase before this one; of the first phase, one that is empty."""
        return PhaseFolder(self._internal, self.number - 1)

    def candidate(self, name: str) -> Path:
        return self.root / name

    def candidate_record(self, name: str) -> Path:
        return self.root / f"{name}.json"

    def log(self, name: str) -> Path:
        """What Trainer logged of a candidate, a JSON object a line."""
        return self.root / f"{name}.log"

    def optimizer(self, name: str) -> Path:
        """State of a candidate's optimizer, where the next phase goes on with it."""
        return self.root / f"{name}.optimizer.safetensors"

    def candidate_records(self) -> list[Path]:
        """Records that are there, in the order of the candidates."""
        return sorted(self.root.glob("candidate-*.json"), key=lambda path: int(path.stem.removeprefix("candidate-")))

    def survivors(self) -> list[str]:
        """Names of the candidates that did not fail."""
        records = [read_record(path) for path in self.candidate_records()]
        return [record["name"] for record in records if record["failure"] is None]

    def models(self, names: list[str]) -> dict[str, Path]:
        """Candidates (by these names) and the soup, as far as their weights are there."""
        folders = {name: self.root / name for name in (*names, self.soup.name)}
        return {name: folder for name, folder in folders.items() if (folder / MASKS).is_file()}

    def check_origin(self, origin: str) -> None:
        """Remove a phase that another run made (other weights, other settings) and that was put in this one's place."""
        try:
            made_by = read_record(self.parent_record).get(ORIGIN, origin)
        except DamagedError:
            return  # Missing or damaged: told where it is needed.
        if made_by != origin:
            say(f"of another run, to be made again: {self.root}", logging.WARNING)
            remove(self.root)

    def check_notes(self) -> None:
        """Of a finished phase, what is only to be read by people: its record holds the same."""
        for path in (self.diagnostics, self.trials):
            try:
                if path.is_file():
                    read_record(path)
            except DamagedError as error:
                say(f"damaged, removed: {error}; {self.record.name} holds the same", logging.WARNING)
                path.unlink()


def read_or_discard(
    record: Path, files: bool = True, as_good: Callable[[dict[str, Any]], bool] = lambda value: False
) -> dict[str, Any] | None:
    """
    A record, if it is there and whole, and so are the files that it speaks of (unless `files` is off).

    Where it is damaged, a line says so and the record is removed: its piece is to be made again. `as_good` is asked before,
    where files are not what they were: whether what is there is as good.
    """
    if not record.is_file():
        return None
    try:
        value = read_record(record)
        try:
            if files:
                check_files(record)
        except DamagedError:
            if not as_good(value):
                raise
    except DamagedError as error:
        say(f"damaged, to be made again: {error}", logging.WARNING)
        record.unlink()
        return None
    return value


def remove(folder: Path) -> None:
    """Remove a folder, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)


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
            say(f"damaged, going on from before it: {error}", logging.WARNING)
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
