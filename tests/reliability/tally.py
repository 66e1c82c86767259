"""Counts over many runs."""

import re
import signal
from collections import Counter

from .harness import Story
from .progress import PLACES, place


class Tally:
    """What happened to all runs together."""

    def __init__(self) -> None:
        self.stories: list[Story] = []

    def add(self, story: Story, kind: str) -> str:
        """Count a run; a line about it, and one for everything that happened to it."""
        self.stories.append(story)
        end = "LOST" if story.lost else "identical"
        head = (
            f"run {len(self.stories)} {kind}: {story.variant}, {story.processes} process(es), {len(story.attempts)} attempts, "
            f"{story.seconds:.1f} s, {end}"
        )
        return "\n".join([head, *story.lines()])

    @property
    def lost(self) -> list[Story]:
        return [story for story in self.stories if story.lost]

    @property
    def kills(self) -> int:
        return sum(interrupt.sign == signal.SIGKILL for story in self.stories for interrupt, _ in story.interrupted)

    def table(self) -> str:
        """Markdown."""
        hits = [pair for story in self.stories for pair in story.interrupted]
        sizes = Counter(story.processes for story in self.stories)
        rows = [("runs", len(self.stories))]
        rows += [(f"runs on {processes} process(es)", sizes[processes]) for processes in sorted(sizes)]
        rows += [("attempts", sum(len(story.attempts) for story in self.stories))]
        rows += [("kills of all workers", sum(i.sign == signal.SIGKILL and i.worker is None for i, _ in hits))]
        rows += [("kills of one worker", sum(i.sign == signal.SIGKILL and i.worker is not None for i, _ in hits))]
        rows += [("SIGTERM", sum(i.sign == signal.SIGTERM for i, _ in hits))]
        waits = [a.needed for i, a in hits if i.sign == signal.SIGTERM and a.needed is not None]
        if waits:
            rows += [("longest way from SIGTERM to the end, s", round(max(waits), 2))]
        places = Counter(place(a.where) for _, a in hits)
        rows += [(f"interrupted in: {name}", places[name]) for name in PLACES if places[name]]
        faults = Counter(f"files {fault.kind}" for story in self.stories for fault in story.faults)
        rows += sorted(faults.items())
        rows += [("stopped by a full or read-only disk", sum(story.bad_disks for story in self.stories))]
        notes = Counter(re.split(r": | /", note)[0] for story in self.stories for note in story.notes)
        rows += [(f"note: {name}", count) for name, count in notes.most_common()]
        rows += [("lost", len(self.lost))]
        width = max(len(name) for name, _ in rows)
        lines = [f"| {'':<{width}} | count |", f"| {'-' * width} | ----: |"]
        return "\n".join(lines + [f"| {name:<{width}} | {count:>5} |" for name, count in rows])

    def causes(self) -> str:
        """Losses by reason, numbers and names made equal."""
        found = Counter(re.sub(r"/\S*/", "", re.sub(r"\d+", "N", str(story.lost)))[:200] for story in self.lost)
        return "\n".join(f"{count} x {cause}" for cause, count in found.most_common())
