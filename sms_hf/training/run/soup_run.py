"""A run: prune, retrain, merge, phase after phase. Every stage asks first whether its result is there, and whole."""

import time
from collections.abc import Sequence
from typing import Any

from safetensors.torch import save

from ...files.records import read_record, write_record
from ...files.writing import whole_file
from ...report.schema import Report, make_report
from ..cost.advice import advice_line
from ..cost.forecast import Forecast
from ..cost.lines import start_lines
from ..cost.measure import TimeEstimate
from ..plan.candidates import Phase
from ..processes.groups import make_group
from ..processes.say import say, tell
from ..processes.store import Processes
from ..run_directory import PhaseFolder, RunDirectory, model_files, read_or_discard, remove, remove_weights
from ..tracking import track_phase
from .bench import Bench
from .merging import merge
from .parents import prune_parent
from .progress import candidate_facts, dense_line, parent_line, phase_facts, soup_lines
from .records import origin, phase_record
from .retraining import Retrainer, check_enough


class SoupRun:
    """
    What `train()` does (Zimmer, Spiegel, Pokutta, ICLR 2024, Algorithm 1), the same on every process of a launch.

    The main process prunes, merges and writes; the others wait for it, and all take candidates. What one process tells the
    others has a name that begins with `scope`.

    Args:
        bench ([`Bench`]): Where models come from.
        directory ([`RunDirectory`]): Where results go, and where they are looked for.
        processes ([`Processes`]): Of the launch.
        plan (`Sequence[Phase]`): What to do.
        scope (`str`): Of this call, and of no other of the launch.
        adapters (`LoraConfig`, *optional*): As for [`Retrainer`].
    """

    def __init__(
        self,
        bench: Bench,
        directory: RunDirectory,
        processes: Processes,
        plan: Sequence[Phase],
        scope: str,
        adapters: Any = None,
    ):
        self.bench, self.directory, self.processes, self.plan, self.scope = bench, directory, processes, plan, scope
        self._adapters = adapters
        self._estimate: TimeEstimate | None = None
        self._origin = ""
        self._dense: dict[str, float] = {}

    def make(self, settings: dict[str, Any], cost: Forecast | None, resume: bool) -> Report:
        """
        All phases.

        Args:
            settings (`dict`): What makes the run this run.
            cost ([`Forecast`]): What is to come, to be told by the main process; the others need none.
            resume (`bool`): Whether to go on with the run in the directory.

        Returns:
            [`Report`]: What `report.json` holds. The last soup lies in its phase's folder.
        """
        self._origin = origin(settings)
        self._on_main("open", lambda: self.directory.open(settings, self._was_here() or resume))
        self._on_main("cost", lambda: self._tell(cost))
        self.bench.release_()
        self._show("doing", what="scoring the dense model")
        dense = self._dense = self._on_main("dense", self._score_dense)
        self._say(dense_line(dense, self.bench.metric))
        self._show("dense", score=dense[self.bench.metric])
        self._on_main("teacher", self._cache_teacher)
        finished = self._on_main("finished", self._finished)
        phases = [self._make_phase(phase, phase.number in finished) for phase in self.plan]
        return make_report(self.bench.metric, settings, dense, phases)

    def _make_phase(self, phase: Phase, is_finished: bool) -> dict[str, Any]:
        folder, start = self.directory.phase(phase.number), time.time()
        if is_finished:
            record = read_record(folder.record)
            self._show("phase", **phase_facts(record))
            return record
        name = f"phase-{phase.number}"
        self._show("doing", what=f"pruning for phase {phase.number}")
        pending = self._on_main(f"{name}/pending", lambda: self._pending(phase, folder))
        parent = self._on_main(
            f"{name}/parent",
            lambda: prune_parent(
                self.bench, phase, folder, self._origin, bool(pending) or self.bench.args.keeps_parents
            ),
        )
        self._say(parent_line(phase, len(self.plan), parent))
        self._show("doing", what="retraining")
        for path in folder.candidate_records():
            self._show("training", **candidate_facts(phase.number, read_record(path)))
        # Processes that share a GPU cannot train together: one of them trains a trunk.
        able = 1 if self.processes.shares_gpu else self.processes.world_size
        group = make_group(self.processes, phase.group_size(self.bench.args.candidate_processes, able))
        retrainer = Retrainer(self.bench, group, self._adapters, [self._estimate] if self._estimate else [])

        def retrain(position: int) -> None:
            candidate = phase.candidates[position]
            retrainer.retrain(phase, candidate, folder, f"{self.scope}/{name}/{candidate.name}")

        self.processes.fan_out(f"{self.scope}/{name}/candidates", pending, retrain, group.size)
        return self._on_main(f"{name}/merged", lambda: self._finish_phase(phase, folder, parent, start))

    # ---- On the main process -----------------------------------------------------------------------------------------

    def _on_main(self, name: str, work: Any) -> Any:
        return self.processes.on_main(f"{self.scope}/{name}", work)

    def _say(self, line: str) -> None:
        if self.processes.is_main:
            say(line)

    def _show(self, topic: str, **facts: Any) -> None:
        if self.processes.is_main:
            tell(topic, **facts)

    def _was_here(self) -> bool:
        return self.processes.was_at(self.directory.root)

    def _tell(self, cost: Forecast | None) -> None:
        """Say what is to come."""
        assert cost is not None
        for line in (*start_lines(cost), advice_line(self.bench.args, cost)):
            if line is not None:
                say(line)
        self._estimate = TimeEstimate(cost)

    def _score_dense(self) -> dict[str, float]:
        """Score the model before pruning: the table's first row, and a check of the metric before hours of training."""
        there, start = read_or_discard(self.directory.dense_record), time.perf_counter()
        if there is not None:
            return there
        metrics = self.bench.score_dense(self.bench.copy())
        if self._estimate is not None:
            self._estimate.seconds_per_score = time.perf_counter() - start
        return write_record(self.directory.dense_record, metrics)

    def _cache_teacher(self) -> None:
        directory = self.directory
        if not self.bench.args.distill_cache or read_or_discard(directory.teacher_record) is not None:
            return
        with whole_file(directory.teacher) as file:
            file.write(save({"logits": self.bench.teacher_logits()}))
        write_record(directory.teacher_record, {}, [directory.teacher])

    def _finished(self) -> list[int]:
        """Numbers of the phases that are whole: what they hand on is there, or has been used up."""
        finished: list[int] = []
        for phase in reversed(self.plan):
            folder = self.directory.phase(phase.number)
            used_up = (phase.merge == "none" or phase.keeps_optimizers) and phase.number + 1 in finished
            folder.check_origin(self._origin)
            record = read_or_discard(folder.record, files=not used_up)
            if record is not None:
                finished.append(phase.number)
                folder.check_notes()
                if record["soup"] is not None:  # The run may have ended before it had cleared up.
                    self._clear_up(phase)
        return finished

    def _pending(self, phase: Phase, folder: PhaseFolder) -> list[int]:
        """Positions of the candidates that are not done yet. Failed ones are tried again only if too few are left."""
        records = [read_or_discard(folder.candidate_record(c.name)) for c in phase.candidates]
        failed = [record is not None and record["failure"] is not None for record in records]
        again = len(records) - sum(failed) < min(self.bench.args.min_candidates, len(records))
        return [i for i, record in enumerate(records) if record is None or (again and failed[i])]

    def _finish_phase(self, phase: Phase, folder: PhaseFolder, parent: dict[str, Any], start: float) -> dict[str, Any]:
        """Merge the candidates, if the phase says so; the record of the phase last."""
        args = self.bench.args
        self._show("doing", what="averaging")
        records = [read_record(folder.candidate_record(c.name)) for c in phase.candidates]
        check_enough(phase, records, args.min_candidates, folder)
        if not args.keep_candidates and not args.keeps_parents:
            remove_weights(folder.parent)
        soup, diagnostics = (None, {}) if phase.merge == "none" else merge(self.bench, phase, folder, records)
        record = phase_record(phase, parent, records, soup, diagnostics, self.bench.greater_is_better)
        left = [folder.candidate(r["name"]) for r in records if r["failure"] is None]
        files = [path for model in (left if soup is None else [folder.soup]) for path in model_files(model)]
        if phase.keeps_optimizers:
            files += [folder.optimizer(r["name"]) for r in records if r["failure"] is None]
            files += model_files(folder.velocity)
        if soup is None:
            files += folder.candidate_records()  # Read by the phases that go on from the candidates.
        track_phase(args, self.bench.metric, self._dense, record, self.directory.soups)
        record = write_record(folder.record, record | {"seconds": time.time() - start}, files)
        if soup is not None:
            self._clear_up(phase)
        for line in soup_lines(record, self.bench.metric):
            say(line)
        self._show("phase", **phase_facts(record))
        return record

    def _clear_up(self, merged: Phase) -> None:
        """Remove what only this phase needed, and the phases before it that waited for it."""
        for phase in self.plan[: merged.number]:
            folder, names = self.directory.phase(phase.number), [candidate.name for candidate in phase.candidates]
            for name in names if phase.number < merged.number else ():
                folder.optimizer(name).unlink(missing_ok=True)
            if phase.number < merged.number:
                remove(folder.velocity)
            for model in () if self.bench.args.keep_candidates else (folder.parent, *map(folder.candidate, names)):
                remove_weights(model)
