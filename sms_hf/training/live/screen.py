"""What the view of a run shows: facts that were told, drawn for a terminal of some size."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ...report.text import format_bytes
from ..plan.candidates import Phase

NAMES_WIDTH = 50
"""Width of a terminal from which candidates are called by their names, not by their numbers."""
FEWEST_ROWS = 3
"""Candidates that are shown on the lowest terminal."""


@dataclass
class Screen:
    """
    The state of a run as it was told, and its picture.

    Args:
        title (`str`): What people call the run.
        metric (`str`): That decides.
        phases (`Sequence[Phase]`): To come.
        folder (`Path`): Of the run, whose disk is shown.
    """

    title: str
    metric: str = ""
    phases: Sequence[Phase] = ()
    folder: Path = Path()
    doing: str = ""
    _begin: float = field(default_factory=time.monotonic)
    _dense: float | None = None
    _current: int = 0
    _trainings: dict[tuple[int, str], dict[str, Any]] = field(default_factory=dict)
    _ends: dict[int, dict[str, Any]] = field(default_factory=dict)
    _trial: dict[str, Any] | None = None

    # ---- What is told ------------------------------------------------------------------------------------------------

    def hear(self, topic: str, facts: Mapping[str, Any]) -> None:
        """Take facts in; those of a topic that it does not know are passed over."""
        hear = _HEARD.get(topic)
        if hear is not None:
            hear(self, dict(facts))

    def _hear_doing(self, facts: dict[str, Any]) -> None:
        self.doing = facts["what"]

    def _hear_dense(self, facts: dict[str, Any]) -> None:
        self._dense = facts["score"]

    def _hear_training(self, facts: dict[str, Any]) -> None:
        self._current = max(self._current, facts["phase"])
        self._trainings.setdefault((facts["phase"], facts["name"]), {}).update(facts)

    def _hear_trial(self, facts: dict[str, Any]) -> None:
        self._trial = facts

    def _hear_phase(self, facts: dict[str, Any]) -> None:
        self._ends[facts["phase"]], self._trial = facts, None

    # ---- The picture -------------------------------------------------------------------------------------------------

    def render(self, width: int, height: int) -> RenderableType:
        """The picture for a terminal of so many columns and lines."""
        lines: list[RenderableType] = [Text(), self._headline()]
        if self._dense is not None:
            lines.append(Text(f"dense model: {self.metric} {self._dense:.4g}", style="dim"))
        lines += [self._end(phase) for phase in self.phases if phase.number in self._ends]
        rows = self._rows()
        if rows:
            shown, rest = _fitting(rows, max(height - len(lines) - 5, FEWEST_ROWS))
            lines.append(_table(shown, self.metric, width))
            if rest:
                lines.append(Text(rest, style="dim"))
        if self._trial is not None:
            tried = "+".join(_short(name) for name in self._trial["ingredients"])
            lines.append(Text(f"soup of candidates {tried}: {self.metric} {self._trial['score']:.4g}"))
        lines.append(Text(self._foot(), style="dim"))
        for line in lines:
            if isinstance(line, Text):
                line.truncate(width, overflow="ellipsis")
        return Group(*lines)

    def _headline(self) -> Text:
        seconds = int(time.monotonic() - self._begin)
        line = Text.assemble((self.title, "bold"))
        if self._current:
            line.append(f"  phase {self._current} of {len(self.phases)}")
        line.append(f"  {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}", style="dim")
        return line

    def _foot(self) -> str:
        there = next((f for f in (self.folder.absolute(), *self.folder.absolute().parents) if f.exists()), Path("/"))
        free = f"{format_bytes(shutil.disk_usage(there).free)} of disk free"
        return f"{self.doing}, {free}" if self.doing else free

    def _end(self, phase: Phase) -> Text:
        end = self._ends[phase.number]
        line = Text(
            f"phase {phase.number}: {end['sparsity']:.1%} removed, mean {end['mean']:.4g}, best {end['best']:.4g}"
        )
        if end["soup"] is not None:
            line.append(f", soup of {end['ingredients']} ")
            line.append(f"{end['soup']:.4g}", style="bold")
        return line

    def _rows(self) -> list[dict[str, Any]]:
        """Trainings of the phase that goes on, those to come as well."""
        if self._current in self._ends:
            return []
        phase = next((p for p in self.phases if p.number == self._current), None)
        names = [c.name for c in phase.candidates] if phase else [n for p, n in self._trainings if p == self._current]
        return [self._trainings.get((self._current, name), {"name": name}) for name in names]


_HEARD: dict[str, Callable[[Screen, dict[str, Any]], None]] = {
    "doing": Screen._hear_doing,
    "dense": Screen._hear_dense,
    "training": Screen._hear_training,
    "trial": Screen._hear_trial,
    "phase": Screen._hear_phase,
}


# ---- A training ----------------------------------------------------------------------------------------------------------


def _is_done(row: Mapping[str, Any]) -> bool:
    return row.get("score") is not None or bool(row.get("failure"))


def _is_waiting(row: Mapping[str, Any]) -> bool:
    return "steps" not in row and not _is_done(row)


def _fitting(rows: Sequence[dict[str, Any]], most: int) -> tuple[list[dict[str, Any]], str]:
    """At most so many trainings, those that go on first, and what is said of the rest."""
    if len(rows) <= most:
        return list(rows), ""
    going = [row for row in rows if not _is_done(row) and not _is_waiting(row)]
    failed, done = [r for r in rows if r.get("failure")], [r for r in rows if _is_done(r) and not r.get("failure")]
    waiting = [row for row in rows if _is_waiting(row)]
    shown = [*going, *failed, *reversed(done), *waiting][:most]
    kinds = {"in training": going, "failed": failed, "done": done, "waiting": waiting}
    left = {kind: sum(not any(row is other for other in shown) for row in some) for kind, some in kinds.items()}
    return [r for r in rows if any(r is s for s in shown)], "and " + ", ".join(f"{n} {k}" for k, n in left.items() if n)


def _bar(row: Mapping[str, Any], width: int) -> RenderableType:
    if _is_waiting(row):
        return Text("waiting", style="dim")
    total, step = max(row.get("steps", 1), 1), row.get("step", 0)
    step, colour = (total, "green") if row.get("score") is not None else (step, "red" if row.get("failure") else "cyan")
    return ProgressBar(total, step, width=max(min(width // 5, 30), 6), complete_style=colour, finished_style=colour)


def _steps(row: Mapping[str, Any], width: int) -> RenderableType:
    return Text(f"{row['step']}/{row['steps']}" if "steps" in row else "")


def _speed(row: Mapping[str, Any], width: int) -> RenderableType:
    speed = row.get("seconds_per_step")
    return Text(f"{speed:.3g} s/step" if speed and not _is_done(row) else "", style="dim")


def _left(row: Mapping[str, Any], width: int) -> RenderableType:
    if _is_done(row):
        return Text(f"{row['seconds']:.0f} s" if "seconds" in row else "", style="dim")
    if _is_waiting(row):
        return Text("")
    if row["step"] >= row["steps"]:
        return Text("scoring", style="dim")
    seconds = round((row["steps"] - row["step"]) * row["seconds_per_step"]) if row["step"] else None
    return Text("" if seconds is None else f"{seconds // 60}:{seconds % 60:02} left", style="dim")


COLUMNS: Sequence[tuple[int, Callable[[Mapping[str, Any], int], RenderableType]]] = (
    (30, _bar),
    (60, _steps),
    (80, _speed),
    (50, _left),
)
"""Width of a terminal from which a column is shown, and its cell; how it goes comes last."""


def _table(rows: Sequence[Mapping[str, Any]], metric: str, width: int) -> Table:
    table = Table.grid(padding=(0, 1))
    cells = [cell for least, cell in COLUMNS if width >= least]
    for _ in range(len(cells) + 2):
        table.add_column(no_wrap=True, overflow="ellipsis")
    for row in rows:
        name = row["name"] if width >= NAMES_WIDTH else _short(row["name"])
        table.add_row(Text(name), *(cell(row, width) for cell in cells), _standing(row, metric))
    return table


def _standing(row: Mapping[str, Any], metric: str) -> Text:
    if row.get("failure"):
        return Text(f"failed: {row['failure']}", style="red")
    if row.get("score") is not None:
        return Text(f"{metric} {row['score']:.4g}", style="bold")
    return Text(f"loss {row['loss']:.4g}" if row.get("loss") is not None else "")


def _short(name: str) -> str:
    return name.removeprefix("candidate-")
