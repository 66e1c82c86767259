"""Carries runs through interruptions and faults, and compares their end with that of an uninterrupted run."""

import contextlib
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .attempt import Attempt, Interrupt, attempt
from .disk import fill, set_writable, small_disk, used
from .faults import Fault, damage
from .job import FAILING, GROUPED
from .result import differences, list_files, read_result, train_losses, unrecorded_failures

# Children inherit what is imported; nothing is built in this process, and nothing joined.
with contextlib.suppress(ImportError):
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401

torch.set_num_threads(1)

MOMENTS = (
    "*.partial",
    "phase.json.partial",
    "parent.json.partial",
    "candidate-2.json.partial",
    "report.json.partial",
    "checkpoint-*",
    "checkpoint-*/model.safetensors",
    "checkpoint-*/optimizer.pt",
    "checkpoint-*/trainer_state.json",
    "phase-*/parent",
    "phase-*/trial",
    "phase-*/soup",
    "phase-*/soup/masks.safetensors",
    "candidate-*/model.safetensors",
    "candidate-*/masks.safetensors",
    "candidate-*.json",
    "phase.json",
    "model.safetensors",
    "report.json",
)
"""Files whose appearance is an interesting moment."""
MOST = 6
"""After so many interruptions a run is left alone."""
QUANTITY = re.compile(r"\d[\d,.]*\s*(bytes|[kMGT]i?B)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Reference:
    """An uninterrupted run: its result, seconds, operations on files, and the bytes it occupies at most."""

    result: dict[str, Any]
    train_losses: list[float | None]
    files: set[str]
    seconds: float
    operations: int
    peak: int


@dataclass
class Story:
    """
    What happened to one run.

    Attributes:
        lost (`str` or `None`): Why the run is lost: it could not be brought to its end, or its result is another.
        notes (`list[str]`): What is no loss, but worth knowing: a repair that no line named, files left over, ...
    """

    variant: str
    processes: int
    folder: Path
    attempts: list[Attempt] = field(default_factory=list)
    interrupts: list[Interrupt] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    bad_disks: int = 0
    lost: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return sum(a.seconds for a in self.attempts)

    @property
    def interrupted(self) -> list[tuple[Interrupt, Attempt]]:
        """Interruptions that fell before the run was over."""
        pairs = zip(self.interrupts, self.attempts, strict=False)
        return [(i, a) for i, a in pairs if a.outcome in ("killed", "terminated")]

    def lines(self) -> Iterator[str]:
        for interrupt, a in self.interrupted:
            yield f"  {interrupt}, {a.seconds:.2f} s: {a.where} [{a.last}]"
        for fault in self.faults:
            yield f"  {fault}"
        for note in self.notes:
            yield f"  note: {note}"
        if self.lost:
            yield f"  LOST: {self.lost}; kept in {self.folder}"


class NoReferenceError(RuntimeError):
    """The uninterrupted run failed, so that there is nothing to compare with."""


class Harness:
    """
    Runs of the job below a folder, in a seeded way.

    Args:
        root (`Path`): A new folder for the runs; those that end well are removed.
        seed (`int`): Of the moments, files and kinds.
    """

    def __init__(self, root: Path, seed: int = 0):
        self.root, self.rng = root, random.Random(seed)
        self._references: dict[tuple[str, int], Reference] = {}
        self._turn, self._count = self.rng.random(), 0
        root.mkdir(parents=True, exist_ok=True)

    def reference(self, variant: str, processes: int) -> Reference:
        """
        The uninterrupted run of a variant; made once.

        Raises:
            NoReferenceError: If it fails.
        """
        key = (variant, processes)
        if key not in self._references:
            self._references[key] = self._make_reference(variant, processes)
        return self._references[key]

    def draw(self, reference: Reference, processes: int, sign: int = signal.SIGKILL, worker: bool = False) -> Interrupt:
        """Draw an interruption: half of them by time, evenly over a run, the others by operation or by file."""
        self._turn = (self._turn + 0.6180339887498949) % 1.0  # Golden ratio: any number of moments lies evenly.
        who = self.rng.randrange(processes) if worker else None
        kind = self.rng.choices(["time", "operation", "file"], [5, 3, 2])[0]
        if kind == "time" or (kind == "operation" and sign != signal.SIGKILL):
            return Interrupt("time", self._turn * reference.seconds, sign, who)
        if kind == "operation":
            return Interrupt("operation", 1 + int(self._turn * reference.operations), sign, who)
        return Interrupt("file", self.rng.choice(MOMENTS), sign, who)

    def run(
        self,
        variant: str,
        processes: int = 1,
        draw: Callable[[Reference], Interrupt] | None = None,
        most: int = MOST,
        fault: str | None = None,
        after_the_end: bool = False,
    ) -> Story:
        """
        Interrupt a run again and again until it ends by itself, and compare its end with that of an uninterrupted one.

        Args:
            draw (`Callable`, *optional*): Makes an interruption. Default: `self.draw`, of all workers.
            most (`int`): How many of them there may be.
            fault (`str`, *optional*): Damage one file after every interruption: a kind of `faults.KINDS`, or `"any"`.
            after_the_end (`bool`): Damage one more when the run is over, and start it again.
        """
        story = self._new_story(variant, processes)
        try:
            reference = self.reference(variant, processes)
            draw = draw or (lambda reference: self.draw(reference, processes))
            while self._attempt(story, draw(reference) if len(story.interrupts) < most else None):
                if fault is not None:
                    self._damage(story, fault)
            if after_the_end and story.lost is None:
                self._damage(story, fault or "any")
                self._attempt(story, None)
            self._compare(story, reference)
        except NoReferenceError as error:
            story.lost = str(error)
        self._close(story)
        return story

    def run_on_full_disk(self, variant: str, processes: int = 1) -> Story:
        """
        Let a run stop for want of space, make room, and let it end.

        Where no disk can be mounted, a limit on the size of files stands in: the errors come at the same places.
        """
        return self._run_on_disk(variant, processes, self._starve)

    def run_on_read_only_disk(self, variant: str, processes: int = 1) -> Story:
        """Let a run stop because its disk cannot be written to any more, allow it again, and let it end."""
        return self._run_on_disk(variant, processes, self._lock)

    def _run_on_disk(
        self, variant: str, processes: int, spoil: Callable[[Story, Reference, Path | None], Attempt]
    ) -> Story:
        story = self._new_story(variant, processes)
        output = story.folder / "disk" / "run"
        try:
            reference = self.reference(variant, processes)
            with contextlib.ExitStack() as stack:
                try:
                    disk = stack.enter_context(small_disk(story.folder / "disk"))
                except PermissionError:
                    disk = None
                output.mkdir(parents=True, exist_ok=True)
                first = spoil(story, reference, disk)
                story.attempts.append(first)
                if first.outcome == "failed":
                    story.bad_disks += 1
                    if str(output) not in first.reason or not QUANTITY.search(first.reason):
                        story.notes.append(f"the error of the disk names no path and need: {first.reason[:300]}")
                if first.outcome == "hung":
                    story.lost = f"attempt 1 hung on the disk: {first.where}"
                else:
                    self._attempt(story, None, output)
                    self._compare(story, reference, output)
                if story.lost:  # The disk vanishes with its mount.
                    shutil.copytree(output, story.folder / "run", dirs_exist_ok=True)
        except NoReferenceError as error:
            story.lost = str(error)
        self._close(story)
        return story

    def _starve(self, story: Story, reference: Reference, disk: Path | None) -> Attempt:
        output, limit, ballast = story.folder / "disk" / "run", None, None
        if disk is None:
            limit = self.rng.randrange(1 << 10, 100 << 10)
            story.notes.append("no disk could be mounted: RLIMIT_FSIZE stood in for a full one")
        else:
            ballast = fill(disk, int(reference.peak * self.rng.uniform(0.05, 0.95)))
        done = attempt(output, story.variant, story.processes, None, self._log(story), file_limit=limit)
        if ballast is not None:
            ballast.unlink()
        return done

    def _lock(self, story: Story, reference: Reference, disk: Path | None) -> Attempt:
        if disk is None:
            raise NoReferenceError("Expected to be allowed to mount a disk. Start with `unshare -rm`.")
        moment, start, locked = self.rng.random() * reference.seconds, time.monotonic(), False

        def lock() -> None:
            nonlocal locked
            if not locked and time.monotonic() - start > moment:
                locked = set_writable(disk, False)  # Not while a file is open: in a millisecond again.

        output = story.folder / "disk" / "run"
        try:
            return attempt(output, story.variant, story.processes, None, self._log(story), meanwhile=lock)
        finally:
            set_writable(disk, True)

    # ---- Steps -------------------------------------------------------------------------------------------------------

    def _make_reference(self, variant: str, processes: int) -> Reference:
        folder, peak = self.root / f"reference-{variant}-{processes}", 0
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(PermissionError):
                stack.enter_context(small_disk(folder))

            def look() -> None:
                nonlocal peak
                peak = max(peak, used(folder))

            output = folder / "run"
            output.mkdir(parents=True)
            done = attempt(output, variant, processes, None, self.root / f"{folder.name}.log", meanwhile=look)
            if done.outcome != "ended":
                raise NoReferenceError(f"the uninterrupted run {done.outcome}: {done.reason} ({done.log})")
            alike = processes > 1 and variant not in GROUPED
            if alike and (more := differences(self.reference(variant, 1).result, read_result(output))):
                raise NoReferenceError(f"{processes} processes give another result than one: {more[:3]}")
            if variant in FAILING and (silent := unrecorded_failures(output, "candidate-2")):
                raise NoReferenceError(f"candidate-2 must fail, and its record say so; got {'; '.join(silent)[:500]}")
            return Reference(
                read_result(output), train_losses(output), list_files(output), done.seconds, done.operations, peak
            )

    def _new_story(self, variant: str, processes: int) -> Story:
        self._count += 1
        folder = self.root / f"run-{self._count:04d}-{variant}-{processes}"
        (folder / "run").mkdir(parents=True)
        return Story(variant, processes, folder)

    def _log(self, story: Story) -> Path:
        return story.folder / f"attempt-{len(story.attempts) + 1}.log"

    def _attempt(self, story: Story, interrupt: Interrupt | None, output: Path | None = None) -> bool:
        """One more attempt; whether another is needed."""
        done = attempt(output or story.folder / "run", story.variant, story.processes, interrupt, self._log(story))
        story.attempts.append(done)
        if interrupt is not None:
            story.interrupts.append(interrupt)
        if done.outcome in ("failed", "hung"):
            story.lost = f"attempt {len(story.attempts)} {done.outcome}: {done.reason[:500]}"
        return done.outcome in ("killed", "terminated")

    def _damage(self, story: Story, kind: str) -> None:
        fault = damage(story.folder / "run", self.rng, None if kind == "any" else kind)
        if fault is not None:
            story.faults.append(fault)

    def _compare(self, story: Story, reference: Reference, output: Path | None = None) -> None:
        output = output or story.folder / "run"
        printed = "".join(a.log.read_text(errors="replace") for a in story.attempts[1:])
        story.notes += [f"no line names what was redone for: {f}" for f in story.faults if not f.is_named(printed)]
        if story.lost is not None:
            return
        try:
            different = differences(reference.result, read_result(output))
            losses = train_losses(output)
        except (OSError, ValueError, KeyError) as error:
            story.lost = f"a run that ended well has no readable result: {type(error).__name__}: {error}"
            return
        if different:
            story.lost = f"another result, {len(different)} entries: {'; '.join(different[:4])[:600]}"
        if losses != reference.train_losses:
            story.notes.append("train_loss of some candidate differs from the uninterrupted run's")
        left = {re.sub(r"[^/]*\.partial$", "*.partial", path) for path in list_files(output) - reference.files}
        if left:
            story.notes.append(f"files that an uninterrupted run does not leave: {', '.join(sorted(left)[:5])}")

    def _close(self, story: Story) -> None:
        if story.lost is None:
            shutil.rmtree(story.folder)
